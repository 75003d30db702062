//! What a key is made of, and what makes no difference to it.

use bytes::Bytes;

use super::*;
use crate::wire::parse;

fn members(body: &str) -> Members {
    parse(&Bytes::copy_from_slice(body.as_bytes())).expect("a JSON object").members
}

fn key(body: &str) -> Key {
    question(&digest(Form::Plain, &members(body)).expect("its numbers are what they were")).key()
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
            assert_eq!(digest(Form::Plain, &members(&body)).is_some(), has_key, "{body}");
        }
    }
    assert!(digest(Form::Plain, &members(r#"{"metadata":1e300}"#)).is_some());
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
    let key = |body: &str, form: Form| digest(form, &members(body));
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

#[test]
fn a_long_body_is_told_apart_by_any_byte_however_it_is_spelled() {
    for bytes in [SHORT_BYTES_MAX / 2, SHORT_BYTES_MAX - 40, SHORT_BYTES_MAX, SHORT_BYTES_MAX + 1, 300_000] {
        let text = "long \\n".repeat(bytes / 7);
        let same = key(&format!(r#"{{"n":2,"prompt":"{text}"}}"#));
        let respelled = text.replace("\\n", "\\u000a");
        assert_eq!(key(&format!(r#"{{"prompt" : "{respelled}" , "n":2.0}}"#)), same, "{bytes}");
        for at in [0, text.len() / 14 * 7, text.len() - 7] {
            let mut other = text.clone();
            other.replace_range(at..=at, "L");
            assert_ne!(key(&format!(r#"{{"n":2,"prompt":"{other}"}}"#)), same, "{bytes}, {at}");
        }
    }
}

#[test]
fn the_pieces_that_are_hashed_make_no_difference() {
    let bytes: Vec<u8> = (0..100_000_u32).map(|number| (number / 7) as u8).collect();
    for length in
        [0, 1, SHORT_BYTES_MAX - 1, SHORT_BYTES_MAX, SHORT_BYTES_MAX + 1, 3 * SHORT_BYTES_MAX, 100_000]
    {
        let hashed = |piece: usize| {
            let mut hash = Hasher::new();
            bytes[..length].chunks(piece).for_each(|piece| hash.add(piece));
            hash.finish()
        };
        let whole = hashed(bytes.len());
        assert!([1, 1000, SHORT_BYTES_MAX, SHORT_BYTES_MAX + 1].iter().all(|piece| hashed(*piece) == whole));
        let sha: Key = Sha256::digest(&bytes[..length]).into();
        assert_eq!(whole == sha, length <= SHORT_BYTES_MAX, "{length}");
    }
}
