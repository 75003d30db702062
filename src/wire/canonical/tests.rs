//! The form of RFC 8785, by its own examples, and of any value: the same for whoever writes it, and its own.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::wire::parse;

fn canonical(json: &str) -> String {
    let body = parse(&format!("{{\"value\":{json}}}").into()).expect("an object").members;
    let mut canonical = Canonical::to(Vec::new());
    canonical.value(body.get("value").expect("it is there")).expect("a vector takes every byte");
    String::from_utf8(canonical.finish().expect("the same")).expect("UTF-8")
}

#[test]
fn the_canonical_form_is_rfc_8785s() {
    // Numbers and strings of RFC 8785, section 3.2.2; sorting of 3.2.3.
    assert_eq!(
        canonical(
            r#"{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],
            "string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}"#
        ),
        concat!(
            r#"{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"#,
            r#""string":"€$\u000f\nA'B\"\\\\\"/"}"#
        )
    );
    assert_eq!(canonical(r#"{"\ufb33":1,"\ud83d\ude00":2,"a":3}"#), "{\"a\":3,\"😀\":2,\"\u{fb33}\":1}");
    assert_eq!(canonical("[1.0, -0.0, 1e2, 18446744073709551615]"), "[1,0,100,18446744073709551615]");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,4}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// The same value with the members of every object in another order, by turns of this number.
fn reordered(value: &Value, turns: usize) -> String {
    match value {
        Value::Array(items) => {
            format!("[{}]", items.iter().map(|it| reordered(it, turns)).collect::<Vec<_>>().join(","))
        }
        Value::Object(members) => {
            let member =
                |(name, value): (&String, &Value)| format!("{}:{}", json!(name), reordered(value, turns + 1));
            let mut members: Vec<_> = members.iter().map(member).collect();
            let middle = turns % members.len().max(1);
            members.rotate_left(middle);
            members[middle..].reverse();
            format!("{{{}}}", members.join(","))
        }
        _ => value.to_string(),
    }
}

proptest! {
    /// `escape` looks at sixteen bytes at once; a reader of JSON sees the same text.
    #[test]
    fn texts_are_escaped_wherever_it_is_needed(text in "[a\\x00-\\x1f\"\\\\\x7f-\u{90}é😀]{0,40}") {
        let written = canonical(&json!(text).to_string());
        prop_assert_eq!(serde_json::from_str::<String>(&written).expect("JSON"), text.as_str());
        let escapes = |json: &str| json.matches('\\').count();
        prop_assert_eq!(escapes(&written), escapes(&json!(text).to_string()), "no more than there must be");
    }

    /// `order` looks at eight bytes at once, and at none of them as letters.
    #[test]
    fn members_are_in_the_order_of_utf_16(
        names in prop::collection::btree_set("[ab\\x00é\u{ffff}\u{e000}😀]{0,10}|abcdefg[a-c]{0,70}", 0..20),
    ) {
        let value: serde_json::Map<_, _> = names.iter().map(|name| (name.clone(), json!(1))).collect();
        let mut sorted: Vec<_> = names.into_iter().collect();
        sorted.sort_by_key(|name| name.encode_utf16().collect::<Vec<_>>());
        let members: Vec<_> = sorted.iter().map(|name| format!("{}:1", json!(name))).collect();
        prop_assert_eq!(canonical(&Value::from(value).to_string()), format!("{{{}}}", members.join(",")));
    }

    #[test]
    fn the_canonical_form_is_its_own(value in any_json()) {
        let once = canonical(&value.to_string());
        prop_assert_eq!(canonical(&once), once);
    }

    #[test]
    fn the_order_of_members_does_not_matter(value in any_json(), turns in 0..6_usize) {
        prop_assert_eq!(canonical(&reordered(&value, turns)), canonical(&value.to_string()));
    }

    /// Whatever the tree keeps of a body, it is that body.
    #[test]
    fn what_is_read_is_what_was_written(value in any_json()) {
        let body = parse(&json!({ "value": value }).to_string().into()).expect("an object").members;
        let read = body.get("value").expect("it is there");
        prop_assert_eq!(&read.to_json(), &value);
        prop_assert_eq!(serde_json::to_value(read).expect("JSON"), value);
    }
}
