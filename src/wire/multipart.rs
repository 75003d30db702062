//! Multipart bodies (transcriptions): the model's name in its part.

use std::convert::Infallible;
use std::ops::Range;

use bytes::Bytes;
use futures_util::stream;
use memchr::memmem;
use multer::{Constraints, Multipart, SizeLimit, parse_boundary};

use super::fault::Fault;
use super::json::{MODEL_BYTES_MAX, Model, long_model};

/// Finds the part named `model`, if there is one.
pub async fn model(content_type: &str, body: &Bytes) -> Result<Option<Model>, Fault> {
    let wrong = |error: multer::Error| Fault::Shape {
        message: format!("the multipart body cannot be read ({error})"),
        param: None,
    };
    let boundary = parse_boundary(content_type).map_err(wrong)?;
    let limits = Constraints::new().size_limit(SizeLimit::new().for_field("model", MODEL_BYTES_MAX as u64));
    let once = stream::iter([Ok::<_, Infallible>(body.clone())]);
    let mut parts = Multipart::with_constraints(once, boundary.clone(), limits);
    let mut found: Option<Model> = None;
    while let Some(part) = parts.next_field().await.map_err(wrong)? {
        if part.name() != Some("model") {
            continue;
        }
        if found.is_some() {
            return Err(Fault::Shape {
                message: "the part `model` is there twice".to_owned(),
                param: Some("model"),
            });
        }
        let name = match part.text().await {
            Err(multer::Error::FieldSizeExceeded { .. }) => return Err(long_model()),
            text => text.map_err(wrong)?,
        };
        let span = place(body, &boundary, &name).ok_or_else(|| Fault::Shape {
            message: "the part `model` must be plain UTF-8 text".to_owned(),
            param: Some("model"),
        })?;
        found = Some(Model { name, span });
    }
    Ok(found)
}

/// Where the part's text stands in the body. No file can hold the boundary, so what stands behind one is a header.
fn place(body: &[u8], boundary: &str, name: &str) -> Option<Range<usize>> {
    let delimiter = format!("--{boundary}\r\n");
    memmem::find_iter(body, delimiter.as_bytes()).find_map(|at| {
        let head = at + delimiter.len();
        let start = head + memmem::find(&body[head..], b"\r\n\r\n")? + 4;
        let is_model = [&b"name=\"model\""[..], b"name=model"]
            .iter()
            .any(|it| memmem::find(&body[head..start], it).is_some());
        let end = start + name.len();
        let is_text = body.get(start..end)? == name.as_bytes() && body[end..].starts_with(b"\r\n--");
        (is_model && is_text).then_some(start..end)
    })
}

/// The body with another model's name in its part, every other byte as it was.
pub fn rename(body: &[u8], model: &Model, name: &str) -> Vec<u8> {
    [&body[..model.span.start], name.as_bytes(), &body[model.span.end..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(parts: &[(&str, &str)]) -> Bytes {
        let part = |(name, text): &(&str, &str)| {
            format!("--X\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n")
        };
        Bytes::from(parts.iter().map(part).collect::<String>() + "--X--\r\n")
    }

    #[tokio::test]
    async fn the_model_is_found_and_replaced() {
        let file = "name=\"model\"\r\n\r\nwhisper-1\r\n--";
        let body = form(&[("file", file), ("model", "whisper-1"), ("language", "en")]);
        let found = model("multipart/form-data; boundary=X", &body).await.expect("a form").expect("a model");
        assert_eq!(found.name, "whisper-1");
        let renamed = rename(&body, &found, "base.en");
        assert_eq!(renamed, form(&[("file", file), ("model", "base.en"), ("language", "en")]));
        let none = model("multipart/form-data; boundary=X", &form(&[("file", "abc")])).await.expect("a form");
        assert_eq!(none, None);
    }

    #[tokio::test]
    async fn a_body_that_is_no_form_is_a_fault() {
        assert!(model("application/json", &Bytes::from_static(b"{}")).await.is_err());
        assert!(model("multipart/form-data; boundary=X", &Bytes::from_static(b"--X\r\n")).await.is_err());
        assert!(
            model("multipart/form-data; boundary=X", &form(&[("model", "a"), ("model", "b")])).await.is_err()
        );
    }
}
