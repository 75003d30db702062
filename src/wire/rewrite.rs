//! A body with some of its members changed. All other members keep their order and spelling.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::demand::COMPLETION_MAX;
use super::endpoint::{Endpoint, Protocol};
use super::tree::Members;
use super::value;

/// What callers of a model may not decide.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RequestRules {
    /// Whatever the caller says.
    pub set: Map<String, Value>,
    /// Where the caller says nothing.
    pub default: Map<String, Value>,
    pub remove: Vec<String>,
    /// A request asks for no more, and for so many where it names none.
    pub max_tokens: Option<u64>,
}

/// Changes to the members of a body: a value to write, or `None` to leave the member out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes(Vec<(String, Option<Value>)>);

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A member is to have this value.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.put(name.into(), Some(value.into()));
    }

    fn put(&mut self, name: String, value: Option<Value>) {
        self.0.retain(|(other, _)| *other != name);
        self.0.push((name, value));
    }

    /// A body with these changes; `None` if it is no JSON object.
    pub fn made_to(&self, body: &[u8]) -> Option<Vec<u8>> {
        let Spelled(members) = serde_json::from_slice(body).ok()?;
        let change = |name: &str| self.0.iter().find(|(changed, _)| changed == name).map(|(_, value)| value);
        let mut made = Vec::with_capacity(body.len() + 64);
        made.push(b'{');
        let mut write = |name: &str, value: &dyn fmt::Display| {
            if made.len() > 1 {
                made.push(b',');
            }
            made.extend_from_slice(format!("{}:{value}", Value::from(name)).as_bytes());
        };
        for (name, value) in &members {
            match change(name) {
                None => write(name, value),
                Some(Some(value)) => write(name, value),
                Some(None) => {}
            }
        }
        for (name, value) in &self.0 {
            if let Some(value) = value.as_ref().filter(|_| members.iter().all(|(known, _)| known != name)) {
                write(name, value);
            }
        }
        made.push(b'}');
        Some(made)
    }
}

impl RequestRules {
    /// Changes what a body says; `changes` gets what is to be written.
    pub fn apply(&self, endpoint: &Endpoint, members: &mut Members, changes: &mut Changes) {
        self.set.iter().for_each(|(name, value)| change(members, changes, name, value));
        for (name, value) in &self.default {
            if members.get(name).is_none_or(value::Value::is_null) {
                change(members, changes, name, value);
            }
        }
        for name in &self.remove {
            if members.remove(name) {
                changes.put(name.clone(), None);
            }
        }
        // Last, so that the bound stands even where callers may not name one.
        self.bound(endpoint, members, changes);
    }

    fn bound(&self, endpoint: &Endpoint, members: &mut Members, changes: &mut Changes) {
        let Some(most) = self.max_tokens else { return };
        let mut bounded = false;
        for name in COMPLETION_MAX {
            let Some(asked) = members.get(name).filter(|asked| !asked.is_null()) else { continue };
            bounded = true;
            // A negative number means no bound.
            let within = asked.as_f64().is_some_and(|asked| asked >= 0.0 && asked <= most as f64);
            if !within {
                change(members, changes, name, &most.into());
            }
        }
        if !bounded {
            let name = match endpoint.protocol {
                Protocol::Responses => "max_output_tokens",
                Protocol::Llama => "n_predict",
                Protocol::OpenAi | Protocol::Anthropic => "max_tokens",
            };
            change(members, changes, name, &most.into());
        }
    }
}

fn change(members: &mut Members, changes: &mut Changes, name: &str, value: &Value) {
    if members.get(name).is_none_or(|held| held.to_json() != *value) {
        members.insert(name, value);
        changes.set(name, value.clone());
    }
}

/// The members of an object in their order, as they are spelled.
struct Spelled<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Spelled<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;

        impl<'de> Visitor<'de> for Read {
            type Value = Spelled<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Spelled<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Spelled(members))
            }
        }

        deserializer.deserialize_map(Read)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::wire::{Target, find, parse};

    fn object(value: &Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    fn applied(rules: &RequestRules, path: &str, body: &str) -> String {
        let Ok(Target::Server(endpoint)) = find(&Method::POST, path) else { panic!("{path} is an endpoint") };
        let mut members = parse(&Bytes::copy_from_slice(body.as_bytes())).expect("an object").members;
        let mut changes = Changes::default();
        rules.apply(endpoint, &mut members, &mut changes);
        if changes.is_empty() {
            return body.to_owned();
        }
        let made = String::from_utf8(changes.made_to(body.as_bytes()).expect("an object")).expect("UTF-8");
        assert_eq!(
            object(&serde_json::from_str(&made).expect("JSON")),
            members.to_json(),
            "what is written is what counts"
        );
        made
    }

    #[test]
    fn what_the_operator_decides_is_written_and_the_rest_stays_as_it_was() {
        let rules = RequestRules {
            set: object(&json!({"top_k": 40})),
            default: object(&json!({"temperature": 0.7})),
            remove: vec!["logit_bias".to_owned()],
            max_tokens: None,
        };
        let cases = [
            (r#"{"b" : 1.10, "top_k":1, "a":[ 1 ]}"#, r#"{"b":1.10,"top_k":40,"a":[ 1 ],"temperature":0.7}"#),
            (r#"{"temperature":0,"logit_bias":{"1":2}}"#, r#"{"temperature":0,"top_k":40}"#),
            (r#"{"temperature":null}"#, r#"{"temperature":0.7,"top_k":40}"#),
            (r#"{ "top_k": 40, "temperature": 1 }"#, r#"{ "top_k": 40, "temperature": 1 }"#),
            ("{}", r#"{"top_k":40,"temperature":0.7}"#),
        ];
        for (body, made) in cases {
            assert_eq!(applied(&rules, "/v1/chat/completions", body), made);
        }
    }

    #[test]
    fn no_more_tokens_are_asked_for_than_the_operator_allows() {
        let rules = RequestRules { max_tokens: Some(100), ..RequestRules::default() };
        let cases = [
            ("/v1/chat/completions", r#"{"max_tokens":7}"#, r#"{"max_tokens":7}"#),
            ("/v1/chat/completions", r#"{"max_tokens":101}"#, r#"{"max_tokens":100}"#),
            ("/v1/chat/completions", r#"{"n_predict":-1}"#, r#"{"n_predict":100}"#),
            ("/v1/chat/completions", r#"{"max_tokens":"x"}"#, r#"{"max_tokens":100}"#),
            (
                "/v1/chat/completions",
                r#"{"max_tokens":1,"max_completion_tokens":1e9}"#,
                r#"{"max_tokens":1,"max_completion_tokens":100}"#,
            ),
            ("/v1/messages", "{}", r#"{"max_tokens":100}"#),
            ("/v1/responses", "{}", r#"{"max_output_tokens":100}"#),
            ("/completion", r#"{"n_predict":null}"#, r#"{"n_predict":100}"#),
        ];
        for (path, body, made) in cases {
            assert_eq!(applied(&rules, path, body), made);
        }
        let remove = vec!["max_tokens".to_owned(), "n_predict".to_owned()];
        let unnamed = RequestRules { remove, ..rules };
        for body in [r#"{"max_tokens":101}"#, r#"{"n_predict":-1}"#, "{}"] {
            assert_eq!(applied(&unnamed, "/v1/chat/completions", body), r#"{"max_tokens":100}"#, "{body}");
        }
    }
}
