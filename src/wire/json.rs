//! A request's JSON: parsed once, refused where two readers could understand it differently.
//!
//! serde_json keeps the last of two members with one name; llama-server may keep the other. Such a body is refused,
//! so that what the gateway decided on is what the server sees. Depth is bounded by serde_json (128).

use std::fmt;
use std::hash::BuildHasher;
use std::ops::Range;

use bytes::Bytes;
use bytestring::ByteString;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::tree::{self, Json, Members, Node, Number, Tree};

/// A name is written into logs and errors.
pub(super) const MODEL_BYTES_MAX: usize = 256;

/// A value takes 16 bytes in memory, and as few as two in a body.
const VALUES_MAX: u32 = 1 << 20;

/// The members of an object are looked through for a name, up to so many; those of a larger one have a table.
const LOOKED_THROUGH_MAX: usize = 16;

/// A body that is a JSON object.
#[derive(Debug)]
pub struct Document {
    /// All members but `model`.
    pub members: Members,
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
pub fn parse(body: &Bytes) -> Result<Document, Fault> {
    if u32::try_from(body.len()).is_err() {
        return Err(Fault::Syntax("it has more than 4 GiB".to_owned()));
    }
    // All of it at once, instead of text by text.
    let text = ByteString::try_from(body.clone()).map_err(|_| not_utf8(body))?;
    let mut json = serde_json::Deserializer::from_str(&text);
    let reader = Reader::of(text.clone());
    let top = TopLevel { body, reader };
    let parsed = json.deserialize_any(top).and_then(|parsed| json.end().map(|()| parsed));
    match parsed {
        Ok(parsed) => parsed,
        Err(error) => Err(Fault::Syntax(error.to_string())),
    }
}

/// The fault of a body that is not UTF-8, in the parser's words.
fn not_utf8(body: &[u8]) -> Fault {
    let valid = str::from_utf8(body).map_or_else(|error| error.valid_up_to(), str::len);
    let before = &body[..valid];
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
    Fault::Syntax(format!("invalid unicode code point at line {line} column {column}"))
}

struct TopLevel<'a> {
    body: &'a [u8],
    reader: Reader,
}

impl<'de> Visitor<'de> for TopLevel<'_> {
    type Value = Result<Document, Fault>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self { body, mut reader } = self;
        let mut model: Option<Result<Option<Model>, Fault>> = None;
        let mut names = Names::of(&reader);
        while let Some(at) = map.next_key_seed(Name(&mut reader))? {
            if reader.tree.text(at).text == "model" {
                if model.is_some() {
                    return Err(twice("model"));
                }
                reader.tree.take_back(at);
                model = Some(named(body, map.next_value::<&'de RawValue>()?));
            } else {
                names.add(at, &mut reader)?;
                map.next_value_seed(&mut reader)?;
            }
        }
        let members = Members::new(reader.tree, reader.names);
        Ok(model.unwrap_or(Ok(None)).map(|model| Document { members, model }))
    }
}

/// What a body names, or nothing.
fn named(body: &[u8], raw: &RawValue) -> Result<Option<Model>, Fault> {
    let text = raw.get();
    let start = text.as_ptr() as usize - body.as_ptr() as usize;
    match serde_json::from_str(text) {
        Ok(Value::String(name)) if name.len() > MODEL_BYTES_MAX => Err(long_model()),
        Ok(Value::String(name)) => Ok(Some(Model { name, span: start..start + text.len() })),
        Ok(Value::Null) => Ok(None),
        Err(error) => Err(Fault::Syntax(error.to_string())),
        Ok(_) => Err(Fault::shape("`model` must be a string", Some("model"))),
    }
}

/// The fault of a model's name that is too long to be one.
pub(super) fn long_model() -> Fault {
    Fault::shape(format!("`model` is longer than {MODEL_BYTES_MAX} bytes"), Some("model"))
}

fn twice<E: Error>(name: &str) -> E {
    E::custom(format_args!("the member `{name}` is there twice"))
}

/// Reads any JSON value into a tree, with no member twice at any depth, and not too many values in all.
struct Reader {
    tree: Tree,
    /// Of the objects that are being read, one after the other.
    names: Vec<u32>,
    values: u32,
    keyed: RandomState,
}

/// A member's name; says where it is.
struct Name<'a>(&'a mut Reader);

/// The names of one object, which are the reader's last.
struct Names {
    first: usize,
    table: HashTable<u32>,
}

impl Names {
    fn of(reader: &Reader) -> Self {
        Self { first: reader.names.len(), table: HashTable::new() }
    }

    fn add<E: Error>(&mut self, at: usize, reader: &mut Reader) -> Result<(), E> {
        let text = |at: &u32| reader.tree.text(*at as usize).text;
        let name = reader.tree.text(at).text;
        let place = u32::try_from(at).map_err(E::custom)?;
        let before = reader.names.get(self.first..).unwrap_or_default();
        let is_there = if before.len() < LOOKED_THROUGH_MAX {
            before.iter().any(|other| text(other) == name)
        } else {
            let hash = |at: &u32| reader.keyed.hash_one(text(at));
            if self.table.is_empty() {
                for at in before {
                    self.table.insert_unique(hash(at), *at, hash);
                }
            }
            let is_there = self.table.find(hash(&place), |other| text(other) == name).is_some();
            self.table.insert_unique(hash(&place), place, hash);
            is_there
        };
        if is_there {
            return Err(twice(name));
        }
        reader.names.push(place);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut Reader {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.values += 1;
        if self.values > VALUES_MAX {
            return Err(D::Error::custom(format_args!("it has more than {VALUES_MAX} values")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        let at = self.0.tree.len();
        deserializer.deserialize_str(self.0)?;
        Ok(at)
    }
}

impl Reader {
    fn of(body: ByteString) -> Self {
        Self { tree: Tree::of(body), names: Vec::new(), values: 0, keyed: RandomState::default() }
    }

    fn push<E>(&mut self, node: Node) -> Result<(), E> {
        self.tree.push(node);
        Ok(())
    }
}

impl<'de> Visitor<'de> for &mut Reader {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.push(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.push(Node::Number(Number::Signed(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.push(Node::Number(Number::Unsigned(value)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.push(Node::Number(Number::Double(value)))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<(), E> {
        self.tree.push_plain(value);
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.tree.push_apart(value);
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.push(Node::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let at = self.tree.len();
        self.tree.push(Node::List(0));
        while seq.next_element_seed(&mut *self)?.is_some() {}
        self.tree.end(at);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let at = self.tree.len();
        self.tree.push(Node::Object(0));
        let mut names = Names::of(self);
        while let Some(name) = map.next_key_seed(Name(self))? {
            names.add(name, self)?;
            map.next_value_seed(&mut *self)?;
        }
        self.names.truncate(names.first);
        self.tree.end(at);
        Ok(())
    }
}

/// Whether the caller asked for a stream. Absent and `null` mean no, as on llama-server.
pub fn wants_stream(members: &Members) -> Result<bool, Fault> {
    match members.get("stream").map(tree::Value::read) {
        None | Some(Json::Null) => Ok(false),
        Some(Json::Bool(stream)) => Ok(stream),
        Some(_) => Err(Fault::shape("`stream` must be true or false", Some("stream"))),
    }
}

/// Refuses a slot chosen by the caller: slots are the gateway's to give.
pub fn refuse_slot(members: &Members) -> Result<(), Fault> {
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
        match parse(&Bytes::copy_from_slice(body.as_bytes())) {
            Err(Fault::Syntax(message)) => message,
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn bodies_that_two_readers_could_understand_differently_are_refused() {
        assert!(syntax(r#"{"a":1,"a":2}"#).contains("`a` is there twice"));
        assert!(syntax(r#"{"model":"a","model":"b"}"#).contains("`model` is there twice"));
        assert!(syntax(r#"{"a":[{"b":1,"b":1}]}"#).contains("`b` is there twice"));
        // However many there are.
        let members: String = (0..100).map(|number| format!("\"\\u0061{number}\":1,")).collect();
        for twice in [0, 15, 16, 99] {
            let message = syntax(&format!("{{\"a\":{{{members}\"a{twice}\":2}}}}"));
            assert!(message.contains(&format!("`a{twice}` is there twice")), "{message}");
        }
        assert!(parse(&format!("{{{members}\"a\":2}}").into()).is_ok());
        assert!(syntax("[1]").contains("JSON object"));
        assert!(syntax("7").contains("JSON object"));
        let param = Some("model");
        assert_eq!(
            parse(&Bytes::from_static(br#"{"model":7}"#)).err(),
            Some(Fault::shape("`model` must be a string", param))
        );
    }

    #[test]
    fn what_is_not_json_is_a_syntax_fault() {
        let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(1000), "]".repeat(1000));
        let cases =
            ["", " ", "{", "{}x", "nul", r#"{"a":NaN}"#, r#"{"a":1e999}"#, r#"{"a":"\ud800"}"#, &deep];
        for body in cases {
            assert!(
                matches!(parse(&Bytes::copy_from_slice(body.as_bytes())), Err(Fault::Syntax(_))),
                "{body}: {:?}",
                parse(&Bytes::copy_from_slice(body.as_bytes()))
            );
        }
        assert!(matches!(parse(&Bytes::from_static(b"{\"a\":\"\xff\"}")), Err(Fault::Syntax(_))));
        let many = format!("{{\"a\":[{}1]}}", "1,".repeat(VALUES_MAX as usize));
        assert!(syntax(&many).contains("more than 1048576 values"));
        let long = format!("{{\"model\":\"{}\"}}", "m".repeat(MODEL_BYTES_MAX + 1));
        assert_eq!(parse(&long.into()).err(), Some(long_model()));
    }

    #[test]
    fn a_model_is_replaced_and_nothing_else() {
        let renamed = |body: &str| {
            let document = parse(&Bytes::copy_from_slice(body.as_bytes())).expect("a JSON object");
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
