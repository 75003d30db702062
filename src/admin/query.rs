//! Queries of the operator's listener: a few known names, each once, with a value.

use std::borrow::Cow;

/// The values of these names, in their order. Fails with what is wrong, in a sentence for the caller.
pub(super) fn read<const N: usize>(query: &str, names: [&str; N]) -> Result<[Option<String>; N], String> {
    let mut values = [const { None }; N];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(at) = names.iter().position(|known| *known == name) else {
            return Err(format!("`{name}` is not known here; there are `{}`.", names.join("` and `")));
        };
        let value = value.replace('+', " ");
        let value = percent_encoding::percent_decode_str(&value).decode_utf8().map(Cow::into_owned);
        let value = value.ok().filter(|value| !value.is_empty());
        let value = value.ok_or_else(|| format!("`{name}` needs a value, in UTF-8."))?;
        if values[at].replace(value).is_some() {
            return Err(format!("`{name}` stands there twice."));
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_says_what() {
        let read = |query| read(query, ["model", "key"]);
        let asked =
            |model: Option<&str>, key: Option<&str>| Ok([model.map(str::to_owned), key.map(str::to_owned)]);
        assert_eq!(read(""), asked(None, None));
        assert_eq!(read("model=a%2Fb+c&key=%C3%A9"), asked(Some("a/b c"), Some("é")));
        for wrong in ["models=a", "model=", "key", "key=a&key=b", "model=%FF"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
