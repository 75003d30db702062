//! A body is the same in whatever pieces it comes, up to what is wrong in it, and none is longer than what came.
#![no_main]

use ai_gateway::wire::{Framing, Misframed};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use libfuzzer_sys::fuzz_target;

mod pieces;

use pieces::pieces;

fn framing(name: Option<HeaderName>, value: &str) -> Framing {
    let headers: HeaderMap =
        name.into_iter().filter_map(|name| Some((name, HeaderValue::from_str(value).ok()?))).collect();
    Framing::of(StatusCode::OK, &headers).expect("such a body is known")
}

/// The body, and what stands behind it.
fn read<'a>(
    mut framing: Framing,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<u8>, Result<usize, Misframed>) {
    let (mut body, mut behind) = (Vec::new(), Ok(0));
    for piece in pieces {
        let took = framing.take(piece, &mut body);
        assert!(behind.is_ok() || piece.is_empty() || took == behind, "what is wrong stays so");
        behind = behind.and_then(|before| took.map(|more| before + more));
    }
    let closed = framing.close();
    assert_eq!(framing.is_over(), closed.is_ok());
    (body, behind.and_then(|behind| closed.map(|()| behind)))
}

fuzz_target!(|bytes: &[u8]| {
    let length = (bytes.len() / 2).to_string();
    for (name, value) in [
        (Some(header::TRANSFER_ENCODING), "chunked"),
        (Some(header::CONTENT_LENGTH), length.as_str()),
        (None, ""),
    ] {
        let whole = read(framing(name.clone(), value), [bytes]);
        assert_eq!(read(framing(name, value), pieces(bytes)), whole);
        assert!(whole.0.len() + whole.1.unwrap_or_default() <= bytes.len());
    }
});
