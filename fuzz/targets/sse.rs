//! A stream tells the same in whatever chunks it comes, and what is cut off can be closed.
#![no_main]

use ai_gateway::wire::{Protocol, Watch};
use libfuzzer_sys::fuzz_target;

const PROTOCOLS: [Protocol; 4] =
    [Protocol::OpenAi, Protocol::Anthropic, Protocol::Responses, Protocol::Llama];
const PIECE_BYTES_MAX: u32 = 17;

fn watched<'a>(protocol: Protocol, pieces: impl IntoIterator<Item = &'a [u8]>) -> Watch {
    let mut watch = Watch::new(protocol);
    pieces.into_iter().for_each(|piece| watch.feed(piece));
    watch
}

/// The stream in small pieces, some of them empty, of lengths that follow from its last byte.
fn pieces(mut stream: &[u8]) -> Vec<&[u8]> {
    let mut random = u32::from(stream.last().copied().unwrap_or_default());
    let mut pieces = Vec::new();
    while !stream.is_empty() {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = ((random >> 16) % PIECE_BYTES_MAX) as usize;
        let (piece, rest) = stream.split_at(length.min(stream.len()));
        pieces.push(piece);
        stream = rest;
    }
    pieces
}

fuzz_target!(|stream: &[u8]| {
    let pieces = pieces(stream);
    for protocol in PROTOCOLS {
        let mut whole = watched(protocol, [stream]);
        let pieces = watched(protocol, pieces.iter().copied());
        assert_eq!(
            (pieces.ended(), pieces.failed(), pieces.cut(), &pieces.usage),
            (whole.ended(), whole.failed(), whole.cut(), &whole.usage)
        );
        whole.feed(whole.cut().as_bytes());
        assert_eq!(whole.cut(), "");
    }
});
