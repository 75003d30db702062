//! The last hundred requests, for whoever looks: what their lines say, less what is long.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::line::Line;

/// Requests that are kept.
const REQUESTS_MAX: usize = 100;

/// Of each text that a caller wrote, this is kept.
const TEXT_CHARS_MAX: usize = 120;

/// A message may be longer: it says what to do.
const MESSAGE_CHARS_MAX: usize = 400;

/// One of them. Never a key, a prompt or an answer. Milliseconds unless another unit is named.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Passed {
    /// Counted from the first.
    pub number: u64,
    pub ts: jiff::Timestamp,
    pub request_id: String,
    pub key: Option<String>,
    pub user: Option<String>,
    pub path: String,
    pub model: Option<String>,
    pub server: Option<String>,
    pub attempts: u32,
    pub status: u16,
    pub upstream_status: Option<u16>,
    pub error_code: Option<&'static str>,
    pub limit: Option<&'static str>,
    /// What the caller was told, where that repeats nothing of what it sent.
    pub message: Option<String>,
    pub cache: &'static str,
    pub stream: bool,
    pub complete: bool,
    pub finish_reason: Option<String>,
    pub queue_ms: f64,
    pub ttft_ms: Option<f64>,
    pub prefill_ms: Option<f64>,
    pub generation_ms: Option<f64>,
    pub duration_ms: f64,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    pub cached_prompt_tokens: Option<u64>,
}

impl Passed {
    /// What is kept of a line, and of what its caller was told.
    pub fn of(line: &Line<'_>, message: Option<&str>) -> Self {
        let text = |text: &str| cut(text, TEXT_CHARS_MAX);
        Self {
            number: 0,
            ts: line.ts,
            request_id: text(line.request_id),
            key: line.key.map(text),
            user: line.user.map(text),
            path: text(line.path),
            model: line.model.or(line.model_requested).map(text),
            server: line.server.map(text),
            attempts: line.attempts,
            status: line.status,
            upstream_status: line.upstream_status,
            error_code: line.error_code,
            limit: line.limit,
            message: message.map(|message| cut(message, MESSAGE_CHARS_MAX)),
            cache: line.cache,
            stream: line.stream,
            complete: line.complete,
            finish_reason: line.finish_reason.map(text),
            queue_ms: line.queue_ms,
            ttft_ms: line.ttft_ms,
            prefill_ms: line.prefill_ms,
            generation_ms: line.generation_ms,
            duration_ms: line.duration_ms,
            prompt_tokens: line.prompt_tokens,
            completion_tokens: line.completion_tokens,
            cached_prompt_tokens: line.cached_prompt_tokens,
        }
    }
}

fn cut(text: &str, chars_max: usize) -> String {
    if text.len() <= chars_max {
        return text.to_owned();
    }
    match text.char_indices().nth(chars_max) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// The last requests.
#[derive(Debug, Default)]
pub struct Recent(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    requests: VecDeque<Passed>,
    next: u64,
}

impl Recent {
    /// Takes one in, and forgets the oldest.
    pub fn note(&self, mut passed: Passed) {
        let mut kept = self.lock();
        passed.number = kept.next;
        kept.next += 1;
        let forgotten = if kept.requests.len() < REQUESTS_MAX { None } else { kept.requests.pop_front() };
        kept.requests.push_back(passed);
        drop(kept);
        // Its texts are given back when nobody waits for the lock.
        drop(forgotten);
    }

    /// Those from this number on, the oldest first.
    pub fn since(&self, from: u64) -> Vec<Passed> {
        let kept = self.lock();
        let known = kept.requests.partition_point(|passed| passed.number < from);
        kept.requests.iter().skip(known).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'a>(request_id: &'a str, model: &'a str) -> Line<'a> {
        Line { request_id, model_requested: Some(model), ..Line::SAMPLE }
    }

    #[test]
    fn the_last_hundred_are_kept_and_only_the_new_ones_told() {
        let recent = Recent::default();
        for number in 0..250 {
            recent.note(Passed::of(&line(&number.to_string(), "tiny"), None));
        }
        let numbers = |from| recent.since(from).iter().map(|it| it.number).collect::<Vec<_>>();
        assert_eq!(numbers(0), (150..250).collect::<Vec<_>>());
        assert_eq!(numbers(248), [248, 249]);
        assert_eq!(recent.since(249)[0].request_id, "249");
        assert!(numbers(250).is_empty());
    }

    #[test]
    fn what_a_caller_wrote_is_cut() {
        let model = "é".repeat(10_000);
        let passed = Passed::of(&line("a", &model), Some(&model));
        assert_eq!(passed.model.map(|it| it.chars().count()), Some(TEXT_CHARS_MAX + 1));
        assert_eq!(passed.message.map(|it| it.chars().count()), Some(MESSAGE_CHARS_MAX + 1));
    }
}
