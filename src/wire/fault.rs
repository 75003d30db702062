//! What is wrong with a body, in serde_json's words where it is no JSON.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::scan::Stopped;
use super::tree::VALUES_MAX;

/// What is wrong with a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not a JSON object that every reader understands alike; what the parser says, with line and column.
    Syntax(String),
    /// An object with a member of the wrong type or one that is not the caller's to set.
    Shape { message: String, param: Option<&'static str> },
}

impl Fault {
    pub(super) fn shape(message: impl Into<String>, param: Option<&'static str>) -> Self {
        Self::Shape { message: message.into(), param }
    }
}

/// Of a body that was not read to its end.
pub(super) fn stopped(body: &[u8], stopped: Stopped) -> Fault {
    let text = match str::from_utf8(body) {
        Ok(text) => text,
        // In serde_json's words.
        Err(error) => {
            let message = placed("invalid unicode code point", body, error.valid_up_to() + 1);
            return Fault::Syntax(message);
        }
    };
    Fault::Syntax(match stopped {
        Stopped::Twice { name, at } => placed(&format!("the member `{name}` is there twice"), body, at),
        Stopped::Long => "it has more than 4 GiB".to_owned(),
        Stopped::Many { at } => placed(&format!("it has more than {} values", VALUES_MAX), body, at),
        Stopped::Syntax => {
            let mut json = serde_json::Deserializer::from_str(text);
            let read = json.deserialize_map(Heeded).and_then(|()| json.end());
            read.err().map_or_else(|| "it is no JSON object".to_owned(), |error| error.to_string())
        }
    })
}

/// As serde_json says where something is: the line, and its bytes up to there.
fn placed(what: &str, body: &[u8], bytes: usize) -> String {
    let before = body.get(..bytes).unwrap_or(body);
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count();
    format!("{what} at line {line} column {column}")
}

/// A value that is read for what is wrong in it.
struct Heeded;

impl<'de> DeserializeSeed<'de> for Heeded {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Heeded {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(Self)?.is_some() {
            map.next_value_seed(Self)?;
        }
        Ok(())
    }
}
