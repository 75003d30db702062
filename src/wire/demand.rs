//! What a request may cost in tokens, as far as its body tells.

use super::endpoint::{Endpoint, Work};
use super::tree::Members;
use super::value::{Json, Number, Value};

/// Completion tokens of a request that does not bound them.
const COMPLETION_TOKENS: u64 = 256;

/// Texts that are counted for one request; more are estimated.
const TEXTS_MAX: usize = 16;

/// Members that one `max_tokens` or another stands in; llama-server reads them all on all its endpoints.
pub(super) const COMPLETION_MAX: [&str; 4] =
    ["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"];

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    /// All choices of all prompts together.
    pub completion_tokens: u64,
    pub prompt: Prompt,
    /// What the prompt is likely to be.
    pub estimate: u64,
    /// How many prompts there are.
    pub prompts: u64,
    /// How many answers: all choices of all prompts.
    pub answers: u64,
}

/// How the size of the prompt can be known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Prompt {
    /// There is nothing that a model reads.
    #[default]
    None,
    /// The server counts the same body at this path.
    Body(&'static str),
    /// The server tokenises these texts; so many tokens come beside them.
    Texts { texts: Vec<String>, tokens: u64 },
    /// Only the estimate is there.
    Unknown,
    /// It has been counted.
    Counted(u64),
}

impl Demand {
    /// Takes in that the prompt was counted, for this request or for its twin.
    pub fn note_counted(&mut self, tokens: Option<u64>) {
        if let Some(tokens) = tokens {
            self.prompt = Prompt::Counted(tokens);
        }
    }

    /// What it was counted to be.
    pub fn counted(&self) -> Option<u64> {
        match self.prompt {
            Prompt::Counted(tokens) => Some(tokens),
            _ => None,
        }
    }
}

/// What a body asks of an endpoint. `counts`: whether the prompt is to be counted, not only estimated.
pub fn demand(endpoint: &Endpoint, body: &Members, counts: bool) -> Demand {
    let generates = endpoint.work == Work::Generate;
    let (prompt, prompts) = match endpoint.path {
        "/v1/chat/completions" | "/chat/completions" => {
            (Prompt::Body("/v1/chat/completions/input_tokens"), 1)
        }
        "/v1/messages" => (Prompt::Body("/v1/messages/count_tokens"), 1),
        "/v1/responses" | "/responses" => (Prompt::Body("/v1/responses/input_tokens"), 1),
        "/v1/completions" | "/completion" | "/completions" => texts(body.get("prompt")),
        "/v1/embeddings" | "/embeddings" => texts(body.get("input")),
        "/embedding" => texts(body.get("content").or_else(|| body.get("input"))),
        "/infill" => (Prompt::Unknown, 1),
        path if path.contains("rerank") => (Prompt::Unknown, 1),
        _ => return Demand::default(),
    };
    let prompt = if counts { prompt } else { Prompt::Unknown };
    let choices = ["n", "n_cmpl"].iter().filter_map(|name| count(body.get(name)?)).max();
    let answers = choices.unwrap_or(1).max(1).saturating_mul(prompts);
    let completion_tokens = if generates {
        let bound = COMPLETION_MAX.iter().filter_map(|name| count(body.get(name)?)).max();
        bound.unwrap_or(COMPLETION_TOKENS).saturating_mul(answers)
    } else {
        0
    };
    Demand { completion_tokens, estimate: body.estimate(), prompt, prompts, answers }
}

/// A number of tokens; negative ones mean no bound.
fn count(value: Value<'_>) -> Option<u64> {
    match value.as_number()? {
        Number::Unsigned(count) => Some(count),
        Number::Signed(_) => None,
        Number::Double(count) => (count >= 0.0).then_some(count as u64),
    }
}

/// A prompt, or several: text, tokens, or both mixed; and how many there are.
fn texts(prompt: Option<Value<'_>>) -> (Prompt, u64) {
    fn gather(value: Value<'_>, texts: &mut Vec<String>, tokens: &mut u64) {
        match value.read() {
            _ if texts.len() > TEXTS_MAX => {}
            Json::Text(text) => texts.push(text.read().into_owned()),
            Json::List(items) => items.for_each(|item| gather(item, texts, tokens)),
            Json::Object(_) => {
                if let Some(text) = value.get("prompt_string").or_else(|| value.get("content")) {
                    gather(text, texts, tokens);
                }
            }
            Json::Number(_) => *tokens += 1,
            Json::Null | Json::Bool(_) => {}
        }
    }
    let Some(prompt) = prompt else { return (Prompt::Unknown, 1) };
    let (mut found, mut tokens) = (Vec::new(), 0);
    gather(prompt, &mut found, &mut tokens);
    let several = match prompt.read() {
        // A list of numbers and texts is one prompt, unless none of it is a number.
        Json::List(items) if !{ items }.any(Value::is_number) => items.count().max(1),
        _ => 1,
    };
    let known = found.len() <= TEXTS_MAX;
    (if known { Prompt::Texts { texts: found, tokens } } else { Prompt::Unknown }, several as u64)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Method;

    use super::*;
    use crate::wire::estimate::MEDIA_TOKENS;
    use crate::wire::{Target, find, parse};

    fn asked(path: &str, body: &str) -> Demand {
        let Ok(Target::Server(endpoint)) = find(&Method::POST, path) else { panic!("{path} is an endpoint") };
        let document = parse(&Bytes::copy_from_slice(body.as_bytes())).expect("an object");
        demand(endpoint, &document.members, true)
    }

    #[test]
    fn a_completion_is_bounded_by_what_the_body_says_for_all_choices() {
        let cases = [
            ("{}", 256),
            (r#"{"max_tokens":10}"#, 10),
            (r#"{"max_tokens":10,"n":3}"#, 30),
            (r#"{"max_tokens":10,"max_completion_tokens":20,"n_predict":5}"#, 20),
            (r#"{"max_tokens":-1}"#, 256),
            (r#"{"max_tokens":1e1,"n":2.0}"#, 20),
            (r#"{"max_tokens":18446744073709551615,"n":7}"#, u64::MAX),
            (r#"{"n":0}"#, 256),
        ];
        for (body, tokens) in cases {
            assert_eq!(asked("/v1/chat/completions", body).completion_tokens, tokens, "{body}");
        }
        assert_eq!(asked("/v1/completions", r#"{"prompt":["a","b"],"max_tokens":5}"#).completion_tokens, 10);
        assert_eq!(asked("/completion", r#"{"prompt":[1,2,"x"],"n_predict":5}"#).completion_tokens, 5);
        assert_eq!(asked("/v1/embeddings", r#"{"input":"x"}"#).completion_tokens, 0);
        assert_eq!(asked("/completion", r#"{"prompt":["a",[1,2]],"n_cmpl":3}"#).answers, 6);
        assert_eq!(asked("/completion", r#"{"prompt":[1,2,"x"]}"#).answers, 1);
    }

    #[test]
    fn a_prompt_is_counted_where_its_endpoint_has_a_way() {
        let texts = |texts: &[&str], tokens| {
            let texts = texts.iter().map(|text| (*text).to_owned()).collect();
            Prompt::Texts { texts, tokens }
        };
        let count = Prompt::Body("/v1/messages/count_tokens");
        assert_eq!(asked("/v1/messages", "{}").prompt, count);
        assert_eq!(asked("/v1/completions", r#"{"prompt":"a b"}"#).prompt, texts(&["a b"], 0));
        assert_eq!(asked("/completion", r#"{"prompt":[1,2,"x",[3]]}"#).prompt, texts(&["x"], 3));
        assert_eq!(asked("/v1/embeddings", r#"{"input":["a","b"]}"#).prompt, texts(&["a", "b"], 0));
        assert_eq!(asked("/tokenize", r#"{"content":"a"}"#), Demand::default());
        assert_eq!(asked("/v1/completions", "{}").prompt, Prompt::Unknown);
    }

    #[test]
    fn an_estimate_counts_text_in_any_script_and_media_at_a_flat_rate() {
        let of = |body: &str| asked("/v1/chat/completions", body).estimate;
        assert_eq!(of(r#"{"messages":[{"content":"abcdefghi"}],"temperature":1}"#), 8 + 3);
        assert_eq!(of(r#"{"messages":[{"content":"日本語"}]}"#), 8 + 5);
        let image = r#"{"messages":[{"content":[{"image_url":{"url":"data:image/png;base64,AAAA"}}]}]}"#;
        assert_eq!(of(image), 3 * 8 + MEDIA_TOKENS);
        assert_eq!(of(r#"{"messages":[{"content":"data: a, b"}]}"#), 8 + 4, "a text that begins like one");
    }
}
