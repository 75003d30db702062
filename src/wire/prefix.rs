//! The beginning of a prompt, as far as servers can have it in common: a hash for each block of its text, each over
//! all text up to there.

use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};

use foldhash::quality::FixedState;

use super::canonical::Canonical;
use super::tree::Members;

/// About 60 tokens: llama-server reuses a KV cache token by token, so a block more or less is cheap.
pub const BLOCK_BYTES: usize = 256;

/// Blocks that are told apart; a longer prompt is known by its beginning.
const BLOCKS_MAX: usize = 1024;

/// What stands in the prompt, in the order in which chat templates put it there.
const PARTS: [&str; 7] = ["tools", "system", "instructions", "messages", "input", "input_prefix", "prompt"];

/// Hashes of the beginning of a prompt for a model.
pub fn prefix(model: Option<&str>, body: &Members) -> Vec<u64> {
    let mut blocks = Blocks { begun: Vec::with_capacity(BLOCK_BYTES), last: 0, hashes: Vec::new() };
    blocks.last = blocks.after(model.unwrap_or_default().as_bytes());
    let mut canonical = Canonical::to(&mut blocks);
    // Ends early with an error where there are blocks enough.
    let written = PARTS.iter().filter_map(|name| body.get(name)).try_for_each(|part| canonical.value(part));
    let _ = written.and_then(|()| canonical.finish().map(drop));
    blocks.hashes
}

struct Blocks {
    /// What there is of the block that is not full.
    begun: Vec<u8>,
    last: u64,
    hashes: Vec<u64>,
}

impl Blocks {
    /// The hash of what has been, and these bytes: the same in all processes of one build, as replicas tell each other
    /// of blocks by it.
    fn after(&self, bytes: &[u8]) -> u64 {
        let mut hasher = FixedState::default().build_hasher();
        hasher.write_u64(self.last);
        hasher.write(bytes);
        hasher.finish()
    }
}

impl Write for Blocks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.hashes.len() == BLOCKS_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let taken = bytes.len().min(BLOCK_BYTES - self.begun.len());
        self.begun.extend_from_slice(&bytes[..taken]);
        if self.begun.len() == BLOCK_BYTES {
            self.last = self.after(&self.begun);
            self.begun.clear();
            self.hashes.push(self.last);
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::wire::parse;

    fn of(model: &str, body: &Value) -> Vec<u64> {
        prefix(Some(model), &parse(&body.to_string().into()).expect("an object").members)
    }

    fn common(one: &[u64], other: &[u64]) -> usize {
        one.iter().zip(other).take_while(|(one, other)| one == other).count()
    }

    #[test]
    fn a_conversation_that_goes_on_begins_as_before() {
        let system = json!({"role": "system", "content": "x".repeat(1000)});
        let turn = |text: &str| json!({"role": "user", "content": text});
        let first = of("m", &json!({"messages": [system, turn("one")], "temperature": 1}));
        let second = of("m", &json!({"messages": [system, turn("one"), turn(&"y".repeat(600))], "n": 2}));
        let other = of("m", &json!({"messages": [turn("one"), system]}));
        assert_eq!((first.len(), common(&first, &second)), (4, 4));
        assert_eq!(
            (common(&first, &other), common(&first, &of("n", &json!({"messages": [system]})))),
            (0, 0)
        );
        assert!(second.len() > 5);
    }

    #[test]
    fn the_blocks_of_any_prompt_are_bounded_and_the_same_each_time() {
        let long = json!({"prompt": "z".repeat(1 << 20)});
        assert_eq!((of("m", &long).len(), of("m", &long)), (BLOCKS_MAX, of("m", &long)));
        assert!(of("m", &json!({"prompt": "short"})).is_empty());
    }
}
