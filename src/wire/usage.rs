//! What an answer says of itself: tokens, times, why it ended. Read from plain answers and stream events alike.

use serde::Deserialize;
use serde::de::IgnoredAny;

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
}

/// The union of the shapes that report usage: OpenAI's chat and completions, responses, Anthropic's messages (whole,
/// `message_start`, `message_delta`), llama.cpp's own. A document with a member of another type tells
/// nothing.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Report {
    usage: Option<Counts>,
    timings: Option<Timings>,
    choices: Vec<Choice>,
    stop_reason: Option<String>,
    stop_type: Option<String>,
    status: Option<Text>,
    delta: Option<Delta>,
    message: Option<Nested>,
    response: Option<Nested>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Counts {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    input_tokens_details: Option<Details>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Details {
    cached_tokens: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Timings {
    cache_n: Option<u64>,
    prompt_n: Option<u64>,
    prompt_ms: Option<f64>,
    predicted_n: Option<u64>,
    predicted_ms: Option<f64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Choice {
    finish_reason: Option<String>,
}

/// `delta` of a stream event: an object on Anthropic's, a string on responses.
#[derive(Deserialize)]
#[serde(untagged)]
enum Delta {
    Object {
        #[serde(default)]
        stop_reason: Option<String>,
    },
    Other(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Text(String),
    Other(IgnoredAny),
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Nested {
    usage: Option<Counts>,
    status: Option<String>,
    timings: Option<Timings>,
}

impl Usage {
    /// Takes what a JSON document says into account; later documents overrule earlier ones. What cannot be read
    /// changes nothing.
    pub fn note(&mut self, json: &[u8]) {
        let Ok(report) = serde_json::from_slice::<Report>(json) else { return };
        let nested = report.response.is_some();
        for part in [report.message, report.response].into_iter().flatten() {
            self.count(part.usage);
            self.time(part.timings);
            if nested {
                replace(&mut self.finish_reason, part.status.filter(|status| status != "in_progress"));
            }
        }
        self.time(report.timings);
        self.count(report.usage);
        replace(&mut self.finish_reason, report.choices.into_iter().find_map(|choice| choice.finish_reason));
        replace(&mut self.finish_reason, report.stop_reason);
        replace(&mut self.finish_reason, report.stop_type.filter(|reason| reason != "none"));
        if let Some(Delta::Object { stop_reason }) = report.delta {
            replace(&mut self.finish_reason, stop_reason);
        }
        if let Some(Text::Text(status)) = report.status
            && self.finish_reason.is_none()
        {
            self.finish_reason = Some(status);
        }
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
        documents.iter().for_each(|document| usage.note(document.as_bytes()));
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
        let absurd = r#"{"timings":{"prompt_n":18446744073709551615,"cache_n":1}}"#;
        assert_eq!(read(&[absurd]).0, Some(u64::MAX));
        assert_eq!(read(&["nonsense", "[]", r#"{"usage":7}"#]), (None, None, None, None));
    }
}
