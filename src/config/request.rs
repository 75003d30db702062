//! `models.*.request`: what callers of a model may not decide. Its values are YAML that becomes JSON.

use serde_json::{Map, Number, Value};

use super::section::{Field, Section};
use super::value::{self, Read, expected};
use crate::wire::RequestRules;

/// What the gateway itself decides on, and where it does.
const TAKEN: [(&str, &str); 4] = [
    ("model", "`as` of the model"),
    ("stream", "`streamed` of the upstream"),
    ("stream_options", "the caller"),
    ("id_slot", "the gateway"),
];

pub(super) fn read(section: &mut Section) -> RequestRules {
    let rules = RequestRules {
        set: members(section, "set"),
        default: members(section, "default"),
        remove: section.values("remove", member).unwrap_or_default(),
        max_tokens: section.value("max_tokens", value::count),
    };
    if let Some(twice) = rules.remove.iter().find(|name| rules.set.contains_key(*name)) {
        section.fault(format!("`{twice}` is both set and removed; keep one"));
    }
    rules
}

fn members(section: &mut Section, key: &'static str) -> Map<String, Value> {
    let mut members = Map::new();
    for (name, field) in section.take(key).map(|field| field.members()).unwrap_or_default() {
        if let Err(message) = member(name) {
            field.fault(message);
        } else if let Some(value) = json(&field) {
            members.insert(name.to_owned(), value);
        }
    }
    members
}

/// The name of a member of the body.
fn member(name: &str) -> Read<String> {
    match TAKEN.iter().find(|(taken, _)| *taken == name) {
        Some((_, by)) => Err(format!("`{name}` is decided on by {by}, not here")),
        None => value::text(name),
    }
}

/// A value of any kind. What is quoted is a text; what is not is what YAML's core schema says.
fn json(field: &Field) -> Option<Value> {
    if field.is_null() {
        return Some(Value::Null);
    }
    if field.is_list() {
        return Some(field.items().iter().filter_map(json).collect());
    }
    if field.is_mapping() {
        let members = field.members();
        let members = members.iter().filter_map(|(name, field)| Some(((*name).to_owned(), json(field)?)));
        return Some(Value::Object(members.collect()));
    }
    let quoted = field.is_quoted();
    field.value(|text| if quoted { Ok(text.into()) } else { plain(text) })
}

fn plain(text: &str) -> Read<Value> {
    match text {
        "true" | "True" | "TRUE" => return Ok(true.into()),
        "false" | "False" | "FALSE" => return Ok(false.into()),
        ".inf" | "-.inf" | ".nan" | ".NaN" => return expected("a number that JSON has", text),
        _ => {}
    }
    if let Ok(number) = text.parse::<i64>() {
        return Ok(number.into());
    }
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
    match text.parse::<f64>().ok().filter(|_| numeric).map(Number::from_f64) {
        Some(Some(number)) => Ok(Value::Number(number)),
        Some(None) => expected("a number that JSON has", text),
        None => Ok(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_quoted_is_what_it_looks_like() {
        let cases = [
            ("40", json!(40)),
            ("-1", json!(-1)),
            ("+7", json!(7)),
            ("0.7", json!(0.7)),
            (".5", json!(0.5)),
            ("1e3", json!(1000.0)),
            ("true", json!(true)),
            ("high", json!("high")),
            ("1.2.3", json!("1.2.3")),
            ("infinity", json!("infinity")),
        ];
        for (text, value) in cases {
            assert_eq!(plain(text), Ok(value), "{text}");
        }
        assert!(plain(".inf").is_err() && plain("1e999").is_err());
    }
}
