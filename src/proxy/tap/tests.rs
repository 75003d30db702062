//! A stream is kept the same in whatever pieces it comes.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::wire::Protocol;

/// What a real llama-server said, with a last word that nobody asked for.
fn streams() -> Vec<(Protocol, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let files =
        fs::read_dir(folder).expect("the captures are there").map(|entry| entry.expect("a file").path());
    let named = files.filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path)));
    let mut streams: Vec<_> = named.filter(|(name, _)| !name.ends_with(".plain.txt")).collect();
    streams.sort();
    let stream = |(name, path): (String, _)| {
        let protocol = match name.trim_start_matches("b11434_").split(['_', '.']).next() {
            Some("chat" | "completions") => Protocol::OpenAi,
            Some("messages") => Protocol::Anthropic,
            Some("responses") => Protocol::Responses,
            _ => Protocol::Llama,
        };
        (protocol, [fs::read(path).expect("a capture"), b": bye\n\n".to_vec()].concat())
    };
    streams.into_iter().map(stream).collect()
}

/// What is kept of a stream in these pieces.
fn kept(protocol: Protocol, several: bool, pieces: &[&[u8]]) -> Option<Keepsake> {
    let form = Form::Stream { include_usage: false };
    let mut tap = Tap {
        kind: Kind::Stream(Watch::new(protocol)),
        keep: Some(Keep { key: [7; 32], form, made: form, dialect: None, fingerprint: [0; 32] }),
        recording: Some(Tape::default()),
        shared: None,
        entry_bytes_max: 1 << 20,
        content_type: Bytes::from_static(b"text/event-stream"),
        framed: true,
        marked: true,
        several,
        whole: false,
        recorded: 0,
        gathers: false,
        gathered: None,
        unasked: None,
    };
    let took = Duration::from_secs(1);
    let mut last = None;
    for piece in pieces {
        let said = tap.chunk(&mut Bytes::copy_from_slice(piece), || took, |_| true);
        last = said.or(last);
    }
    match (tap.end(took), last) {
        (End::Keep(kept), _) | (_, Some(End::Keep(kept))) => Some(kept),
        _ => None,
    }
}

proptest! {
    #[test]
    fn any_chunking_of_a_stream_gives_the_same_entry(
        which in any::<Index>(),
        cuts in prop::collection::vec(any::<Index>(), 0..40),
        several in any::<bool>(),
    ) {
        let streams = streams();
        let (protocol, stream) = which.get(&streams);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        // Just after the end mark's event, too.
        cuts.push(stream.len() - 7);
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts.into_iter().chain([stream.len()]) {
            pieces.push(&stream[from..cut]);
            from = cut;
        }
        let whole = kept(*protocol, several, &[stream]);
        prop_assert!(whole.as_ref().is_some_and(|kept| kept.answer.body == *stream));
        prop_assert_eq!(kept(*protocol, several, &pieces), whole);
    }
}
