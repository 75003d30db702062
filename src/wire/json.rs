//! A request's JSON: parsed once, refused where two readers could understand it differently.
//!
//! serde_json keeps the last of two members with one name; llama-server may keep the other. Such a body is refused,
//! so that what the gateway decided on is what the server sees. Depth is bounded by `scan.rs` (127).

use std::ops::Range;

use bytes::Bytes;
use serde_json::Value;

use super::fault::{self, Fault};
use super::media;
use super::scan::{Scan, Scanned};
use super::tree::{Members, Tree};
use super::value::{self, Json};

/// A name is written into logs and errors.
pub(super) const MODEL_BYTES_MAX: usize = 256;

/// A body that is a JSON object.
#[derive(Debug)]
pub struct Document {
    /// All members but `model`.
    pub members: Members,
    pub model: Option<Model>,
    /// The first member within it that names media which a server would fetch.
    pub remote_media: Option<&'static str>,
}

/// The `model` member.
#[derive(Debug, PartialEq, Eq)]
pub struct Model {
    pub name: String,
    /// Where its value stands in the body, in bytes, quotes included.
    pub span: Range<usize>,
}

/// A body that is being read, in steps. Numbers keep their value, not their spelling.
pub struct Reading(Scan);

/// How far it has been read.
pub enum Step {
    More(Reading),
    Whole(Document),
}

impl Reading {
    pub fn of(body: &Bytes) -> Self {
        Self(Scan::of(body.clone()))
    }

    /// How many values have been read, and names of members.
    pub fn values(&self) -> usize {
        self.0.values()
    }

    /// Reads so many bytes more, and on to the next value. `None`: it is refused, and [`parse`] says why.
    pub fn go_on(mut self, bytes: usize) -> Option<Step> {
        match self.0.go_on(bytes) {
            Ok(false) => Some(Step::More(self)),
            Ok(true) => document(self.0.scanned()).ok().map(Step::Whole),
            Err(_) => None,
        }
    }
}

/// Reads a body at once.
pub fn parse(body: &Bytes) -> Result<Document, Fault> {
    let mut scan = Scan::of(body.clone());
    scan.go_on(usize::MAX).map_err(|stopped| fault::stopped(body, stopped))?;
    document(scan.scanned())
}

fn document(Scanned { tree, names, model, estimate, media }: Scanned) -> Result<Document, Fault> {
    let remote_media = remote_media(&tree, &names, &media);
    let mut members = Members::new(tree, names, estimate);
    let model = match (members.get("model").map(value::Value::read), model) {
        (Some(Json::Text(name)), Some(span)) => {
            let name = name.read();
            if name.len() > MODEL_BYTES_MAX {
                return Err(long_model());
            }
            Some(Model { name: name.into_owned(), span })
        }
        (None | Some(Json::Null), _) => None,
        (Some(_), _) => return Err(Fault::shape("`model` must be a string", Some("model"))),
    };
    members.remove("model");
    Ok(Document { members, model, remote_media })
}

/// The fault of a model's name that is too long to be one.
pub(super) fn long_model() -> Fault {
    Fault::shape(format!("`model` is longer than {MODEL_BYTES_MAX} bytes"), Some("model"))
}

/// The first of these members that names media which a server would fetch, in what holds content. `names`: of the
/// whole, in their order.
fn remote_media(tree: &Tree, names: &[u32], media: &[u32]) -> Option<&'static str> {
    media.iter().find_map(|at| {
        let around = names.partition_point(|name| name <= at).checked_sub(1);
        let around = tree.name(*names.get(around?)? as usize);
        media::is_content(around.bytes()).then(|| media::remote(tree.name(*at as usize)))?
    })
}

/// Whether the caller asked for a stream. Absent and `null` mean no, as on llama-server.
pub fn wants_stream(members: &Members) -> Result<bool, Fault> {
    match members.get("stream").map(value::Value::read) {
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
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::wire::tree::VALUES_MAX;

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

    /// What the values of a body are taken for, by serde_json and here; the same where two readers must agree.
    fn read(value: &str) -> (Option<Value>, Option<Value>) {
        let body = format!("{{\"value\":{value}}}");
        let here = parse(&Bytes::copy_from_slice(body.as_bytes())).ok();
        let here = here.and_then(|here| here.members.get("value").map(value::Value::to_json));
        let there: Option<Value> = serde_json::from_str(&body).ok();
        (here, there.and_then(|there| there.get("value").cloned()))
    }

    #[test]
    fn values_are_read_as_serde_json_reads_them() {
        let numbers = [
            "0",
            "-0",
            "00",
            "01",
            "-01",
            "-",
            "+1",
            "1.",
            ".5",
            "1.5",
            "-1.5e-3",
            "1e",
            "1e+",
            "1E+2",
            "1e999",
            "9223372036854775808",
            "-9223372036854775808",
            "-9223372036854775809",
            "18446744073709551615",
            "18446744073709551616",
            "123456789012345678901234567890",
            "1.7976931348623157e308",
            "1.7976931348623159e308",
            "5e-324",
            "1e-400",
            "0.1",
            "9007199254740993.0",
            "1 ",
            "1x",
            "--1",
        ];
        let texts = [
            r#""""#,
            r#""a\"\\\/\b\f\n\r\tb""#,
            r#""\x""#,
            r#""\u00e9""#,
            r#""\u00E9\ud83d\ude00""#,
            r#""\ud83d""#,
            r#""\ud83dx""#,
            r#""\ude00""#,
            r#""\u12""#,
            r#""\u""#,
            r#""\"#,
            r#"""#,
            "\"a\u{1}b\"",
            "\"\t\"",
            "\"\u{7f}\"",
            r#""seven77""#,
            r#""eight888""#,
            r#""nine99999""#,
            r#""sixteen161616161616\n""#,
        ];
        let others = [
            "",
            " ",
            "null",
            "nul",
            "nulll",
            "true",
            "false",
            "True",
            "[]",
            "[1]",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[",
            "]",
            "{}",
            r#"{"a":1}"#,
            r#"{"a":1,}"#,
            r#"{,"a":1}"#,
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{a:1}"#,
            r#"{"a":1 "b":2}"#,
            r#"{"a":{"b":[{"c":[]}, {"d\u00e9\n":-0}]}}"#,
            " \r\n\t[ \r\n\t1 \r\n\t, 2 ] ",
            "\u{a0}1",
            "/**/1",
            "1,2",
        ];
        for value in numbers.into_iter().chain(texts).chain(others) {
            let (here, there) = read(value);
            assert_eq!(here, there, "{value}");
        }
        // Exponents that many digits outweigh.
        let zeros = "0".repeat(700_000);
        for number in [format!("0.{zeros}5e700006"), format!("5{zeros}e-700000"), format!("5{zeros}e-70000")]
        {
            let (here, there) = read(&number);
            assert_eq!(here, there, "{} of {} bytes", &number[..3], number.len());
        }
        assert_eq!(read(&format!("0.{zeros}5e700006")).0, Some(json!(500_000.0)));
        for depth in [1, 125, 126, 127, 128, 1000] {
            let (here, there) = read(&format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
            assert_eq!(here, there, "{depth}");
        }
    }

    proptest! {
        #[test]
        fn any_value_is_read_as_serde_json_reads_it(
            value in r#"([\[\]{}:,"]|"[a-z/]{0,9}|\\\\[u"nx/]|[0-9]{1,3}|[-+eE. ]|null|true|[0-9a-f]{4}|é|\x01){0,12}"#,
        ) {
            let (here, there) = read(&value);
            // Members that are there twice are refused here, and may bring a second value.
            let is_twice = || syntax(&format!("{{\"value\":{value}}}")).contains("is there twice");
            let agree = here == there || here.is_none() && is_twice();
            prop_assert!(agree, "{:?} {:?}", here, there);
        }
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
