//! A stream tells the same in whatever chunks it comes.
#![no_main]

use ai_gateway::wire::{Protocol, Watch};
use libfuzzer_sys::fuzz_target;

const PROTOCOLS: [Protocol; 4] =
    [Protocol::OpenAi, Protocol::Anthropic, Protocol::Responses, Protocol::Llama];

// The first byte chooses the protocol, the second how the rest is cut.
fuzz_target!(|data: &[u8]| {
    let [protocol, cut, stream @ ..] = data else { return };
    let protocol = PROTOCOLS[usize::from(*protocol) % PROTOCOLS.len()];
    let mut whole = Watch::new(protocol);
    whole.feed(stream);
    let mut pieces = Watch::new(protocol);
    let mut seed = u32::from(*cut);
    let mut rest = stream;
    while !rest.is_empty() {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = ((seed >> 16) as usize % 17).min(rest.len());
        let (piece, after) = rest.split_at(length);
        pieces.feed(piece);
        rest = after;
    }
    assert_eq!(
        (pieces.ended(), pieces.failed(), pieces.cut(), &pieces.usage),
        (whole.ended(), whole.failed(), whole.cut(), &whole.usage)
    );
});
