//! A stream tells the same in whatever chunks it comes, and what is cut off can be closed.
#![no_main]

use ai_gateway::wire::{Protocol, Watch};
use libfuzzer_sys::fuzz_target;

mod pieces;

use pieces::pieces;

const PROTOCOLS: [Protocol; 4] =
    [Protocol::OpenAi, Protocol::Anthropic, Protocol::Responses, Protocol::Llama];

fn watched<'a>(protocol: Protocol, pieces: impl IntoIterator<Item = &'a [u8]>) -> Watch {
    let mut watch = Watch::new(protocol);
    pieces.into_iter().for_each(|piece| watch.feed(piece));
    watch
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
