//! What a key is made of, and what makes no difference to it.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn canonical(json: &str) -> String {
    let mut out = Vec::new();
    write_value(&serde_json::from_str(json).expect("JSON"), &mut out).expect("a vector takes every byte");
    String::from_utf8(out).expect("UTF-8")
}

fn key(body: &str) -> Key {
    let body = serde_json::from_str(body).expect("a JSON object");
    question(&digest(Form::Plain, &body).expect("its numbers are what they were")).key()
}

fn question(body: &Digest) -> Question<'_> {
    Question {
        scope: None,
        endpoint: "/v1/completions",
        upstream: "local",
        model: Some("tiny"),
        fingerprint: None,
        purge: 0,
        headers: &[],
        body,
    }
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

#[test]
fn spelling_does_not_matter_and_everything_else_does() {
    let same = key(r#"{"prompt":"hi","temperature":1,"n":2}"#);
    for body in [
        r#"{ "n" : 2.0, "temperature":1.0, "prompt":"\u0068i" }"#,
        r#"{"prompt":"hi","temperature":1,"n":2,"user":"me","metadata":{"a":1},"stream":false}"#,
    ] {
        assert_eq!(key(body), same, "{body}");
    }
    for body in [
        r#"{"prompt":"hi ","temperature":1,"n":2}"#,
        r#"{"prompt":"hi","temperature":1,"n":3}"#,
        r#"{"prompt":"hi","temperature":"1","n":2}"#,
        r#"{"prompt":["hi"],"temperature":1,"n":2}"#,
        r#"{"prompt":"hi","temperature":1,"n":2,"seed":null}"#,
        r#"{"prompt":"hi","temperature":1,"n":2,"options":{"user":"me"}}"#,
    ] {
        assert_ne!(key(body), same, "{body}");
    }
    assert_ne!(key(r#"{"seed":9007199254740992}"#), key(r#"{"seed":9007199254740993}"#));
    // 2^60, and what ECMAScript writes for it.
    let double = key(r#"{"seed":1152921504606846976.0}"#);
    assert_ne!(double, key(r#"{"seed":1152921504606847000}"#));
    assert_eq!(double, key(r#"{"seed":1152921504606846976}"#));
}

#[test]
fn a_body_with_a_number_that_is_not_held_has_no_key() {
    for (number, has_key) in [
        ("18446744073709551615", true),
        ("18446744073709551616", false),
        ("18446744073709551617", false),
        ("-9223372036854775808", true),
        ("-9223372036854775809", false),
        ("9.2e18", true),
        ("1e300", false),
    ] {
        for body in [format!(r#"{{"a":{number}}}"#), format!(r#"{{"a":[{{"b":{number}}}]}}"#)] {
            let body = serde_json::from_str(&body).expect("a JSON object");
            assert_eq!(digest(Form::Plain, &body).is_some(), has_key, "{body:?}");
        }
    }
    let neutral = serde_json::from_str(r#"{"metadata":1e300}"#).expect("a JSON object");
    assert!(digest(Form::Plain, &neutral).is_some());
}

#[test]
fn every_part_of_a_question_counts() {
    let body = [0; 32];
    let base = question(&body).key();
    let others = [
        Question { scope: Some("alice"), ..question(&body) },
        Question { endpoint: "/completion", ..question(&body) },
        Question { upstream: "other", ..question(&body) },
        Question { model: None, ..question(&body) },
        Question { fingerprint: Some([0; 32]), ..question(&body) },
        Question { purge: 1, ..question(&body) },
        Question { headers: &[("anthropic-beta", Vec::new())], ..question(&body) },
        question(&[1; 32]),
    ]
    .map(|question| question.key());
    for (index, other) in others.iter().enumerate() {
        assert_ne!(*other, base);
        assert!(!others[..index].contains(other));
    }
}

#[test]
fn the_form_counts_where_a_stream_tells_more() {
    const STREAM: Form = Form::Stream { include_usage: false };
    let key = |body: &str, form: Form| {
        let body = serde_json::from_str(body).expect("a JSON object");
        digest(form, &body)
    };
    for (body, shared) in [
        ("{}", true),
        (r#"{"stream_options":null}"#, true),
        (r#"{"stream_options":{"include_usage":true}}"#, true),
        (r#"{"return_progress":false,"timings_per_token":null}"#, true),
        (r#"{"stream_options":{"include_usage":"yes"}}"#, false),
        (r#"{"stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#, false),
        (r#"{"stream_options":[]}"#, false),
        (r#"{"return_progress":true}"#, false),
        (r#"{"timings_per_token":true}"#, false),
    ] {
        assert_eq!(key(body, Form::Plain) == key(body, STREAM), shared, "{body}");
    }
    let keys = [Form::Plain, STREAM, Form::Stream { include_usage: true }].map(|form| only(&[7; 32], form));
    assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2] && !keys.contains(&[7; 32]));
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
    #[test]
    fn the_canonical_form_is_its_own(value in any_json()) {
        let once = canonical(&value.to_string());
        prop_assert_eq!(canonical(&once), once);
    }

    #[test]
    fn the_order_of_members_does_not_matter(value in any_json(), turns in 0..6_usize) {
        prop_assert_eq!(canonical(&reordered(&value, turns)), canonical(&value.to_string()));
    }
}
