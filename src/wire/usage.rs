//! What an answer says of itself: tokens, times, why it ended. Read from plain answers and stream events alike.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::report::{Choice, Counts, Delta, Text, Timings, report};

/// What is known of an answer's cost so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// Prompt tokens, those found in the server's KV cache included.
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    /// Prompt tokens that the server found in its KV cache.
    pub cached_prompt_tokens: Option<u64>,
    pub prefill_ms: Option<f64>,
    pub generation_ms: Option<f64>,
    pub finish_reason: Option<String>,
    /// Completion tokens of the choices that have ended: llama-server reports each by itself.
    ended: u64,
    /// What was reported of the choice that ended last, if it has been.
    last: Option<u64>,
}

/// What a document is, besides what it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    Good,
    /// An error in an answer's clothes.
    Failed,
    /// No JSON, or not all of it.
    Broken,
}

impl Usage {
    /// Takes what a JSON document says into account; later documents overrule earlier ones. What cannot be read
    /// changes nothing.
    pub fn note(&mut self, json: &[u8]) -> Noted {
        let Some(report) = report(json) else { return strange(json) };
        let noted = if report.error.is_some() { Noted::Failed } else { Noted::Good };
        let nested = report.response.is_some();
        let (before, has_timings) = (self.completion_tokens.take(), report.timings.is_some());
        for part in [report.message, report.response].into_iter().flatten() {
            self.count(part.usage);
            self.time(part.timings);
            if nested {
                replace(&mut self.finish_reason, part.status.filter(|status| status != "in_progress"));
            }
        }
        self.time(report.timings);
        self.count(report.usage);
        let several = report.choices.as_deref();
        self.completion_tokens = self.of_all_choices(several, report.stop, has_timings).or(before);
        let choices = report.choices.unwrap_or_default();
        replace(&mut self.finish_reason, choices.into_iter().find_map(|choice| choice.finish_reason));
        replace(&mut self.finish_reason, report.stop_reason);
        replace(&mut self.finish_reason, report.stop_type.filter(|reason| reason != "none"));
        let stop = report.delta.and_then(|Delta(stop)| stop).and_then(|stop| stop.stop_reason);
        replace(&mut self.finish_reason, stop.and_then(|Text(reason)| reason));
        if self.finish_reason.is_none() {
            self.finish_reason = report.status.and_then(|Text(status)| status);
        }
        noted
    }

    /// The completion tokens of all choices so far, from what one document reported of the choices in it, which stands
    /// in `completion_tokens`; `None`: it reported nothing.
    fn of_all_choices(
        &mut self,
        choices: Option<&[Choice]>,
        stop: Option<bool>,
        has_timings: bool,
    ) -> Option<u64> {
        let ends = stop == Some(true)
            || choices.is_some_and(|choices| choices.iter().any(|choice| choice.finish_reason.is_some()));
        let reported = self.completion_tokens;
        if ends {
            self.last = None;
        }
        let reported = reported?;
        if !ends && choices.is_none_or(|choices| !choices.is_empty()) {
            return Some(self.ended.saturating_add(reported));
        }
        let all = match choices {
            // A plain answer of llama-server's: the first choice's alone. The others are as long as they look.
            Some(choices @ [first, _, ..]) if has_timings => {
                let all: u64 = choices.iter().map(Choice::length).sum();
                reported.saturating_mul(all).div_ceil(first.length())
            }
            _ => reported,
        };
        // What follows the end of a choice tells of the same one again.
        let again = self.last.replace(all).unwrap_or_default();
        self.ended = self.ended.saturating_sub(again).saturating_add(all);
        Some(self.ended)
    }

    fn count(&mut self, counts: Option<Counts>) {
        let Some(counts) = counts else { return };
        let details = counts.prompt_tokens_details.or(counts.input_tokens_details);
        let cached = details.and_then(|details| details.cached_tokens).or(counts.cache_read_input_tokens);
        replace(&mut self.cached_prompt_tokens, cached);
        replace(
            &mut self.completion_tokens,
            counts.completion_tokens.or(counts.output_tokens).filter(|&n| n > 0),
        );
        // Anthropic's `input_tokens` leaves out what was cached.
        let input = match counts.cache_read_input_tokens {
            Some(cached) => counts.input_tokens.map(|input| input.saturating_add(cached)),
            None => counts.input_tokens,
        };
        replace(&mut self.prompt_tokens, counts.prompt_tokens.or(input).filter(|&n| n > 0));
    }

    fn time(&mut self, timings: Option<Timings>) {
        let Some(timings) = timings else { return };
        replace(&mut self.prefill_ms, timings.prompt_ms);
        replace(&mut self.generation_ms, timings.predicted_ms);
        replace(&mut self.cached_prompt_tokens, timings.cache_n);
        let prompt = timings.prompt_n.map(|prompt| prompt.saturating_add(timings.cache_n.unwrap_or(0)));
        replace(&mut self.prompt_tokens, prompt);
        replace(&mut self.completion_tokens, timings.predicted_n);
    }
}

/// What a document is that tells nothing that is known here.
fn strange(json: &[u8]) -> Noted {
    #[derive(Deserialize)]
    struct Strange {
        error: Option<IgnoredAny>,
    }
    if serde_json::from_slice::<IgnoredAny>(json).is_err() {
        return Noted::Broken;
    }
    let is_object = json.trim_ascii_start().starts_with(b"{");
    let failed = is_object && serde_json::from_slice::<Strange>(json).is_ok_and(|it| it.error.is_some());
    if failed { Noted::Failed } else { Noted::Good }
}

fn replace<T>(slot: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *slot = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(documents: &[&str]) -> (Option<u64>, Option<u64>, Option<u64>, Option<String>) {
        let mut usage = Usage::default();
        for document in documents {
            usage.note(document.as_bytes());
        }
        (usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens, usage.finish_reason)
    }

    #[test]
    fn every_protocol_tells_its_usage() {
        let some = |p, c, cached, reason: &str| (Some(p), Some(c), Some(cached), Some(reason.to_owned()));
        let chat = r#"{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":3,
            "prompt_tokens_details":{"cached_tokens":4}},"timings":{"cache_n":4,"prompt_n":5,"predicted_n":3}}"#;
        assert_eq!(read(&[chat]), some(9, 3, 4, "stop"));
        let start = r#"{"type":"message_start","message":{"usage":{"cache_read_input_tokens":4,"input_tokens":5,
            "output_tokens":0}}}"#;
        let delta =
            r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":3}}"#;
        assert_eq!(read(&[start, delta]), some(9, 3, 4, "end_turn"));
        let native =
            r#"{"stop":true,"stop_type":"limit","timings":{"cache_n":4,"prompt_n":5,"predicted_n":3}}"#;
        assert_eq!(read(&[native]), some(9, 3, 4, "limit"));
        let completed = r#"{"type":"response.completed","response":{"status":"completed","usage":{"input_tokens":9,
            "output_tokens":3,"input_tokens_details":{"cached_tokens":4}}}}"#;
        assert_eq!(read(&[completed]), some(9, 3, 4, "completed"));
        let ended = |index: u64, tokens: u64| {
            let end = format!(r#"{{"choices":[{{"index":{index},"finish_reason":"stop"}}]"#);
            let usage = format!(r#""usage":{{"completion_tokens":{tokens},"prompt_tokens":9}}"#);
            [end.clone() + "}", format!(r#"{{"choices":[],{usage}}}"#), end + "," + &usage + "}"]
        };
        let [first, usage, both] = ended(0, 3);
        let [second, more, other] = ended(1, 4);
        assert_eq!(read(&[&first, &usage, &second, &more]).1, Some(7), "each choice by itself");
        assert_eq!(read(&[&both, &other]).1, Some(7));
        assert_eq!(read(&[&both, &usage, &other, &more]).1, Some(7), "told twice");
        assert_eq!(read(&[&first, &second, &usage]).1, Some(3), "all choices at once");
        let several = r#"{"choices":[{"finish_reason":"stop","text":"abcd"},
            {"finish_reason":"stop","text":"abcdabcdab"}],
            "usage":{"completion_tokens":3,"prompt_tokens":9},"timings":{"cache_n":4,"prompt_n":5,"predicted_n":3}}"#;
        assert_eq!(read(&[several]).1, Some(9), "llama-server reports the first choice alone");
        assert_eq!(read(&[&several.replace("timings", "x")]).1, Some(3), "others report all of them");
        let absurd = r#"{"timings":{"prompt_n":18446744073709551615,"cache_n":1}}"#;
        assert_eq!(read(&[absurd]).0, Some(u64::MAX));
        assert_eq!(read(&["nonsense", "[]", r#"{"usage":7}"#]), (None, None, None, None));
    }

    #[test]
    fn a_document_is_good_or_failed_or_broken() {
        let cases = [
            ("{}", Noted::Good),
            (
                " {\"a\": [1, {\"b\": -0.5e+3}, \"\\u00e9\\n\"], \"usage\": {\"prompt_tokens\": \"9\"}} \n",
                Noted::Good,
            ),
            ("[{\"error\": 1}]", Noted::Good),
            ("7", Noted::Good),
            ("{\"error\": null}", Noted::Good),
            ("{\"error\": {\"message\": \"x\"}}", Noted::Failed),
            ("{\"error\": false, \"usage\": 7}", Noted::Failed),
            ("{\"usage\": {\"prompt_tokens\": 9}", Noted::Broken),
            ("{\"a\": \"\\u00g0\"}", Noted::Broken),
            ("{\"a\": \"\\x\"}", Noted::Broken),
            ("{\"a\": 01}", Noted::Broken),
            ("{\"a\": tru}", Noted::Broken),
            ("{} {}", Noted::Broken),
            ("", Noted::Broken),
        ];
        for (document, noted) in cases {
            assert_eq!(Usage::default().note(document.as_bytes()), noted, "{document}");
        }
        let mut usage = Usage::default();
        assert_eq!(usage.note(b"{\"a\": \"\xff\", \"usage\": {\"prompt_tokens\": 9}}"), Noted::Good);
        assert_eq!(usage.prompt_tokens, Some(9), "what is no text elsewhere changes nothing");
        let deep = |depth| ("[".repeat(depth), "]".repeat(depth));
        for depth in [125, 126, 127, 300, 10_000] {
            let (open, close) = deep(depth);
            let document = format!(r#"{{"x":{open}{close},"usage":{{"prompt_tokens":{depth}}}}}"#);
            assert_eq!(usage.note(document.as_bytes()), Noted::Good);
            assert_eq!(usage.prompt_tokens, Some(depth as u64), "however deep a tool's arguments are");
            assert_eq!(usage.note(document.replacen(']', "", 1).as_bytes()), Noted::Broken);
        }
    }
}
