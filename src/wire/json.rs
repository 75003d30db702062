//! A request's JSON: parsed once, refused where two readers could understand it differently.
//!
//! serde_json keeps the last of two members with one name; llama-server may keep the other. Such a body is refused,
//! so that what the gateway decided on is what the server sees. Depth is bounded by serde_json (128).

use std::cell::Cell;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// A name is written into logs and errors.
pub(super) const MODEL_BYTES_MAX: usize = 256;

/// A value takes some 30 bytes in memory, and as few as two in a body.
const VALUES_MAX: u32 = 1 << 20;

/// A body that is a JSON object.
#[derive(Debug)]
pub struct Document {
    /// All members but `model`.
    pub members: Map<String, Value>,
    pub model: Option<Model>,
}

/// The `model` member.
#[derive(Debug, PartialEq, Eq)]
pub struct Model {
    pub name: String,
    /// Where its value stands in the body, in bytes, quotes included.
    pub span: Range<usize>,
}

/// What is wrong with a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not a JSON object that every reader understands alike; what the parser says, with line and column.
    Syntax(String),
    /// An object with a member of the wrong type or one that is not the caller's to set.
    Shape { message: String, param: Option<&'static str> },
}

impl Fault {
    fn shape(message: impl Into<String>, param: Option<&'static str>) -> Self {
        Self::Shape { message: message.into(), param }
    }
}

/// Reads a body. Numbers keep their value, not their spelling.
pub fn parse(body: &[u8]) -> Result<Document, Fault> {
    // All of it at once, instead of text by text.
    let text = str::from_utf8(body).map_err(|error| not_utf8(body, error.valid_up_to()))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let values = Cell::new(0);
    let parsed = json
        .deserialize_any(TopLevel { body, tree: Tree { values: &values } })
        .and_then(|parsed| json.end().map(|()| parsed));
    match parsed {
        Ok(parsed) => parsed,
        Err(error) => Err(Fault::Syntax(error.to_string())),
    }
}

/// The fault of a body that is UTF-8 up to this byte, in the parser's words.
fn not_utf8(body: &[u8], valid: usize) -> Fault {
    let before = &body[..valid];
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
    Fault::Syntax(format!("invalid unicode code point at line {line} column {column}"))
}

struct TopLevel<'a> {
    body: &'a [u8],
    tree: Tree<'a>,
}

impl<'de> Visitor<'de> for TopLevel<'_> {
    type Value = Result<Document, Fault>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Map::new();
        let mut model: Option<Result<Option<Model>, Fault>> = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == "model" {
                if model.is_some() {
                    return Err(twice(&name));
                }
                model = Some(self.model(map.next_value::<&'de RawValue>()?));
            } else if members.contains_key(&name) {
                return Err(twice(&name));
            } else {
                let value = map.next_value_seed(self.tree)?;
                members.insert(name, value);
            }
        }
        Ok(model.unwrap_or(Ok(None)).map(|model| Document { members, model }))
    }
}

impl TopLevel<'_> {
    fn model(&self, raw: &RawValue) -> Result<Option<Model>, Fault> {
        let text = raw.get();
        let start = text.as_ptr() as usize - self.body.as_ptr() as usize;
        match serde_json::from_str(text) {
            Ok(Value::String(name)) if name.len() > MODEL_BYTES_MAX => Err(long_model()),
            Ok(Value::String(name)) => Ok(Some(Model { name, span: start..start + text.len() })),
            Ok(Value::Null) => Ok(None),
            Err(error) => Err(Fault::Syntax(error.to_string())),
            Ok(_) => Err(Fault::shape("`model` must be a string", Some("model"))),
        }
    }
}

/// The fault of a model's name that is too long to be one.
pub(super) fn long_model() -> Fault {
    Fault::shape(format!("`model` is longer than {MODEL_BYTES_MAX} bytes"), Some("model"))
}

fn twice<E: Error>(name: &str) -> E {
    E::custom(format_args!("the member `{name}` is there twice"))
}

/// Any JSON value, with no member twice at any depth, and not too many values in all.
#[derive(Clone, Copy)]
struct Tree<'a> {
    values: &'a Cell<u32>,
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.values.set(self.values.get() + 1);
        if self.values.get() > VALUES_MAX {
            return Err(D::Error::custom(format_args!("it has more than {VALUES_MAX} values")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if members.contains_key(&name) {
                return Err(twice(&name));
            }
            let value = map.next_value_seed(self)?;
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}

/// Whether the caller asked for a stream. Absent and `null` mean no, as on llama-server.
pub fn wants_stream(members: &Map<String, Value>) -> Result<bool, Fault> {
    match members.get("stream") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(stream)) => Ok(*stream),
        Some(_) => Err(Fault::shape("`stream` must be true or false", Some("stream"))),
    }
}

/// Refuses a slot chosen by the caller: slots are the gateway's to give.
pub fn refuse_slot(members: &Map<String, Value>) -> Result<(), Fault> {
    match members.get("id_slot") {
        None => Ok(()),
        Some(_) => {
            Err(Fault::shape("`id_slot` is not the caller's to choose; leave it out", Some("id_slot")))
        }
    }
}

/// The body with another model's name in place of the caller's, every other byte as it was.
///
/// A body without a model gets one as its first member.
pub fn rename_model(body: &[u8], model: Option<&Model>, name: &str) -> Vec<u8> {
    let quoted = Value::from(name).to_string();
    let mut renamed = Vec::with_capacity(body.len() + quoted.len() + 10);
    if let Some(model) = model {
        renamed.extend_from_slice(&body[..model.span.start]);
        renamed.extend_from_slice(quoted.as_bytes());
        renamed.extend_from_slice(&body[model.span.end..]);
        return renamed;
    }
    let brace = body.iter().position(|&byte| byte == b'{').map_or(0, |at| at + 1);
    let empty = body[brace..].iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'}');
    renamed.extend_from_slice(&body[..brace]);
    renamed.extend_from_slice(b"\"model\":");
    renamed.extend_from_slice(quoted.as_bytes());
    if !empty {
        renamed.push(b',');
    }
    renamed.extend_from_slice(&body[brace..]);
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syntax(body: &str) -> String {
        match parse(body.as_bytes()) {
            Err(Fault::Syntax(message)) => message,
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn bodies_that_two_readers_could_understand_differently_are_refused() {
        assert!(syntax(r#"{"a":1,"a":2}"#).contains("`a` is there twice"));
        assert!(syntax(r#"{"model":"a","model":"b"}"#).contains("`model` is there twice"));
        assert!(syntax(r#"{"a":[{"b":1,"b":1}]}"#).contains("`b` is there twice"));
        assert!(syntax("[1]").contains("JSON object"));
        assert!(syntax("7").contains("JSON object"));
        let param = Some("model");
        assert_eq!(parse(br#"{"model":7}"#).err(), Some(Fault::shape("`model` must be a string", param)));
    }

    #[test]
    fn what_is_not_json_is_a_syntax_fault() {
        let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(1000), "]".repeat(1000));
        let cases =
            ["", " ", "{", "{}x", "nul", r#"{"a":NaN}"#, r#"{"a":1e999}"#, r#"{"a":"\ud800"}"#, &deep];
        for body in cases {
            assert!(
                matches!(parse(body.as_bytes()), Err(Fault::Syntax(_))),
                "{body}: {:?}",
                parse(body.as_bytes())
            );
        }
        assert!(matches!(parse(b"{\"a\":\"\xff\"}"), Err(Fault::Syntax(_))));
        let many = format!("{{\"a\":[{}1]}}", "1,".repeat(VALUES_MAX as usize));
        assert!(syntax(&many).contains("more than 1048576 values"));
        let long = format!("{{\"model\":\"{}\"}}", "m".repeat(MODEL_BYTES_MAX + 1));
        assert_eq!(parse(long.as_bytes()).err(), Some(long_model()));
    }

    #[test]
    fn a_model_is_replaced_and_nothing_else() {
        let renamed = |body: &str| {
            let document = parse(body.as_bytes()).expect("a JSON object");
            String::from_utf8(rename_model(body.as_bytes(), document.model.as_ref(), "q\"3")).expect("UTF-8")
        };
        assert_eq!(
            renamed(r#"{ "x" : 1, "model" : "a\u0062" , "y":2 }"#),
            r#"{ "x" : 1, "model" : "q\"3" , "y":2 }"#
        );
        assert_eq!(renamed(r#" {"x":1}"#), r#" {"model":"q\"3","x":1}"#);
        assert_eq!(renamed("{ }"), r#"{"model":"q\"3" }"#);
    }
}
