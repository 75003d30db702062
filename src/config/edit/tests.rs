//! Keys files of every layout, edited and given back.

use std::path::Path;

use proptest::prelude::*;

use super::*;

const A: &str = "2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90";
const B: &str = "81b637d8fcd2c6da6359e6963113a1170de795e4b725b84d1e0b4cfd9ec58ce9";
const C: &str = "4c26d9074c27d89ede59270c0ac14b71e071b15239519f75474b2f3ba63481f5";

fn keys(text: &str) -> KeysText<'_> {
    KeysText {
        text,
        path: Path::new("keys.yaml"),
        main: &[],
        certificates_asked: true,
        environment: &|_| None,
    }
}

fn new(name: &str, text: &str) -> NewKey {
    NewKey::new(name, KeyHash::of(text.as_bytes()), &[], None).expect("right arguments")
}

/// `A` and `B` in a text stand for hashes.
fn hashed(text: &str) -> String {
    text.replace("sha256: A", &format!("sha256: {A}")).replace("sha256: B", &format!("sha256: {B}"))
}

#[test]
fn a_key_stands_at_the_end_and_nothing_else_changes() {
    let item = format!("- name: carol\n  sha256: {C}\n");
    for (before, after) in [
        ("", "+"),
        ("# ours\n", "# ours\n+"),
        ("# ours", "# ours\n+"),
        ("\u{feff}", "\u{feff}\n+"),
        ("---\n", "---\n+"),
        ("[]\n", "\n+"),
        ("--- [ ]  # none yet\n", "---   # none yet\n+"),
        ("- name: alice # hers\n  sha256: A\n# end\n", "- name: alice # hers\n  sha256: A\n# end\n+"),
        ("- {name: 'al', sha256: A}", "- {name: 'al', sha256: A}\n+"),
        ("---\n- name: al\n  sha256: A\n...\n# end\n", "---\n- name: al\n  sha256: A\n+...\n# end\n"),
    ] {
        let (before, after) = (hashed(before), hashed(after));
        let found = keys(&before).with(&new("carol", "carol"));
        let expected = if before.is_empty() || before.ends_with('\n') {
            after.replace('+', &item)
        } else {
            after.replace('+', item.trim_end())
        };
        assert_eq!(found.as_ref(), Ok(&expected), "{before:?}");
        if !before.contains('[') {
            assert_eq!(keys(&expected).without("carol"), Ok(before));
        }
    }
}

#[test]
fn a_key_is_written_as_its_neighbours_are() {
    let before = hashed("  - name: al\r\n    sha256: A\r\n");
    let models = ["qwen2.5".to_owned(), "a/${b}*".to_owned()];
    let key = NewKey::new("no", KeyHash::of(b"carol"), &models, Some("2027-01-01")).expect("right arguments");
    let more = format!(
        "  - name: \"no\"\r\n    sha256: {C}\r\n    models: [qwen2.5, \"a/$${{b}}*\"]\r\n{}",
        "    expires: 2027-01-01T00:00:00Z\r\n"
    );
    let after = keys(&before).with(&key).expect("it can be edited");
    assert_eq!(after, format!("{before}{more}"));
    let read = keys(&after).read().expect("the gateway reads it").keys;
    assert_eq!(read[1].key, key.key());
}

#[test]
fn exactly_that_item_goes() {
    for (before, after) in [
        (
            "# 1\n- name: al\n  sha256: A\n# 2\n- name: bo\n  sha256: B\n",
            "# 1\n# 2\n- name: bo\n  sha256: B\n",
        ),
        (
            "- name: al\n  # in it\n  sha256: A   # too\n  # still\n\n  # and this\n\n# not\n- name: bo\n  sha256: B",
            "\n# not\n- name: bo\n  sha256: B",
        ),
        ("- {name: al, sha256: A}\n- {name: bo, sha256: B}\n", "- {name: bo, sha256: B}\n"),
        ("- # first\n  name: al\n  sha256: A\n-\n  name: bo\n  sha256: B\n", "-\n  name: bo\n  sha256: B\n"),
        ("- {name: bo, sha256: B}\n- name: al\n  sha256: A", "- {name: bo, sha256: B}"),
        ("- {name: bo, sha256: B}\r\n- name: al\r\n  sha256: A", "- {name: bo, sha256: B}"),
        ("- name: al\n  sha256:\n  - A\n\n\n- {name: bo, sha256: B}\n", "\n\n- {name: bo, sha256: B}\n"),
        ("- sha256: A\n  name: >-\n    al\n\n...\n# end\n", "\n...\n# end\n"),
        ("\u{feff}- {name: al, sha256: A}\n", "\u{feff}"),
        ("  - {name: al,\n     sha256: A}\n  # not\n# nor\n", "  # not\n# nor\n"),
        ("- name: al\n  sha256: A\n", ""),
    ] {
        let before = hashed(&before.replace("  - A", &format!("  - {A}")));
        assert_eq!(keys(&before).without("al"), Ok(hashed(after)), "{before:?}");
    }
}

#[test]
fn what_cannot_be_edited_is_refused() {
    let refused = |text: &str, says: &str| {
        let text = hashed(text);
        for edited in [keys(&text).with(&new("carol", "carol")), keys(&text).without("al")] {
            let message = edited.expect_err(&text);
            assert!(message.contains(says), "{text:?}: {message}");
        }
    };
    refused("[{name: al, sha256: A}]", "edit it by hand");
    refused("al: A\n", "keys.yaml:1:1: expected a list");
    refused("- name: al\n", "keys.yaml:1:3: [0].sha256: is missing");
    refused("- {name: al, sha256: A\n", "keys.yaml:");
    let anchored =
        hashed("- {name: al, sha256: &a A}\n- {name: bo, sha256: *a}\n").replace("&a A", &format!("&a {A}"));
    assert!(keys(&anchored).without("al").is_err());

    let text = hashed("- {name: al, sha256: A}\n");
    let main = keys(&text).read().expect("right").keys;
    let main: Vec<_> = main.into_iter().map(|key| KeySettings { from_keys_file: false, ..key }).collect();
    let other = hashed("- {name: bo, sha256: B}\n");
    for (main, text) in [(&[][..], &text), (&main[..], &other)] {
        let keys = KeysText { main, ..keys(text) };
        for key in [new("al", "carol"), new("carol", "alice")] {
            let message = keys.with(&key).expect_err("it is there already");
            assert!(message.contains("already"), "{message}");
        }
    }
    let message = KeysText { main: &main, ..keys(&other) }.without("al").expect_err("it is not there");
    assert!(message.contains("main file"), "{message}");
    assert_eq!(KeysText { main: &main, ..keys(&other) }.without("bo"), Ok(String::new()));
    assert!(keys(&other).without("zoe").expect_err("no such key").contains("no key `zoe`"));
}

#[test]
fn arguments_are_checked() {
    let hash = KeyHash::of(b"x");
    for (name, model, expires, says) in [
        ("", "m", "2027-01-01", "--name: expected"),
        ("a\nb", "m", "2027-01-01", "--name: expected"),
        ("a", "", "2027-01-01", "--models: expected"),
        ("a", "m", "soon", "--expires: expected"),
    ] {
        let message = NewKey::new(name, hash, &[model.to_owned()], Some(expires)).expect_err(says);
        assert!(message.starts_with(says), "{message}");
    }
}

/// An item of a list, as people write them.
fn item(number: usize, layout: usize) -> String {
    let hash = KeyHash::of(&number.to_be_bytes());
    match layout {
        0 => format!("- name: key{number}\n  sha256: {hash}\n"),
        1 => format!("- {{name: 'key{number}', sha256: {hash}}}   # {number}\n"),
        2 => format!("-\n    # of it\n    sha256: [{hash}]\n    name: key{number}\n    # - name: x\n"),
        3 => format!(
            "- sha256: \"{hash}\"\n\n  limits: {{requests: 5/s,\n    burst: 7}}\n  name: key{number}\n"
        ),
        _ => format!("- name: >-\n    key{number}\n  sha256:\n  - {hash}\n"),
    }
}

fn file() -> impl Strategy<Value = String> {
    let between = prop::sample::select(vec!["", "", "\n", "# between\n", "\n  \n# two\n\n"]);
    let items = prop::collection::vec((0..5_usize, between), 0..6);
    let head = prop::sample::select(vec!["", "# head\n", "---\n", "\u{feff}# head\n---\n"]);
    (head, items, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(head, items, indented, carriage, end, cut)| {
            let items: String = items
                .iter()
                .enumerate()
                .map(|(number, (layout, after))| item(number, *layout) + after)
                .collect();
            let items = if indented {
                items.split_inclusive('\n').map(|line| format!("  {line}")).collect()
            } else {
                items
            };
            let mut text =
                format!("{head}{items}{}", if end && !items.is_empty() { "...\n# end\n" } else { "" });
            if cut && text.ends_with('\n') {
                text.pop();
            }
            if carriage { text.replace('\n', "\r\n") } else { text }
        },
    )
}

proptest! {
    #[test]
    fn adding_and_revoking_gives_the_text_back(text in file()) {
        let more = keys(&text).with(&new("carol", "carol")).map_err(TestCaseError::fail)?;
        prop_assert_eq!(more.len() - text.len() >= C.len(), true);
        prop_assert_eq!(keys(&more).without("carol"), Ok(text));
    }

    #[test]
    fn revoking_takes_one_stretch_out(text in file(), pick in any::<prop::sample::Index>()) {
        let before = keys(&text).read().map_err(|faults| TestCaseError::fail(faults.to_string()))?.keys;
        if before.is_empty() {
            return Ok(());
        }
        let name = &pick.get(&before).key.name;
        let after = keys(&text).without(name).map_err(TestCaseError::fail)?;
        let common = text.bytes().zip(after.bytes()).take_while(|(one, other)| one == other).count();
        let gone = text.len() - after.len();
        let at = (0..=common).rev().find(|at| text.as_bytes()[at + gone..] == after.as_bytes()[*at..]);
        prop_assert!(at.is_some(), "{after:?}");
        let read = keys(&after).read().map_err(|faults| TestCaseError::fail(faults.to_string()))?.keys;
        prop_assert_eq!(read.len() + 1, before.len());
    }
}
