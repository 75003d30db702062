//! The bytes of an answer as they come: for whoever keeps it, and for whoever joins while it is made.
//!
//! A stream is hundreds of events of some 250 bytes that say almost the same. Kept as they come, each would cost an
//! allocation, what counts its holders and a place in a list beside its bytes. So they are copied one behind the other,
//! and packed by the piece: a thirtieth of a microsecond an event, and a twentieth of the bytes. Whoever joins finds
//! them unpacked once for all. What comes in a large piece is shared, neither copied nor packed.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use lz4_flex::block;

/// Of so much a piece is made.
const PIECE_BYTES: usize = 4 << 10;

/// For a short answer there is less room at first.
const ROOM_BYTES_LEAST: usize = 512;

/// Such a chunk is no event, and is shared.
const SHARED_BYTES_LEAST: usize = 2 << 10;

/// A larger answer is neither kept nor shared further. `cache::Store` keeps none as large.
pub(super) const TAPE_BYTES_MAX: usize = 64 << 20;

/// One answer's bytes. Whoever holds a clone has the same ones.
#[derive(Debug, Clone, Default)]
pub struct Tape(Arc<Mutex<Reel>>);

#[derive(Debug, Default)]
struct Reel {
    pieces: Vec<Piece>,
    /// What has come since.
    open: BytesMut,
    /// All that came, kept or not.
    bytes: usize,
    /// Somebody has asked for it piece by piece: from then on nothing is packed.
    followed: bool,
}

#[derive(Debug)]
enum Piece {
    Plain(Bytes),
    /// With its length.
    Packed(Box<[u8]>, usize),
}

impl Tape {
    /// What has come, in bytes.
    pub fn bytes(&self) -> usize {
        self.reel().bytes
    }

    /// Whether more has come than it holds: then it holds nothing.
    pub fn is_lost(&self) -> bool {
        self.reel().is_lost()
    }

    /// Whether both are the same.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub fn push(&self, chunk: &Bytes) {
        let mut reel = self.reel();
        reel.bytes = reel.bytes.saturating_add(chunk.len());
        if reel.bytes > TAPE_BYTES_MAX {
            reel.lose();
        } else if chunk.len() >= SHARED_BYTES_LEAST {
            reel.close();
            reel.pieces.push(Piece::Plain(chunk.clone()));
        } else {
            reel.append(chunk);
        }
    }

    /// All of it in one piece; `None`: it is lost.
    pub fn body(&self) -> Option<Bytes> {
        let reel = self.reel();
        let mut body =
            Vec::with_capacity(reel.pieces.iter().map(Piece::len).sum::<usize>() + reel.open.len());
        for piece in &reel.pieces {
            body.extend_from_slice(&piece.plain()?);
        }
        body.extend_from_slice(&reel.open);
        (!reel.is_lost()).then(|| body.into())
    }

    /// The pieces that have come since. `seen`: how many were told.
    pub(super) fn news(&self, seen: &mut usize) -> Vec<Bytes> {
        let mut reel = self.reel();
        reel.unpack();
        reel.close();
        let plain = |piece: &Piece| match piece {
            Piece::Plain(bytes) => Some(bytes.clone()),
            Piece::Packed(..) => None,
        };
        let news: Vec<_> = reel.pieces.iter().skip(*seen).filter_map(plain).collect();
        *seen += news.len();
        news
    }

    fn reel(&self) -> MutexGuard<'_, Reel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reel {
    fn is_lost(&self) -> bool {
        self.bytes > TAPE_BYTES_MAX
    }

    fn lose(&mut self) {
        self.bytes = usize::MAX;
        (self.pieces, self.open) = Default::default();
    }

    fn append(&mut self, chunk: &[u8]) {
        if self.open.len() + chunk.len() > PIECE_BYTES {
            self.close();
        }
        let all = self.open.len() + chunk.len();
        if self.open.capacity() < all {
            // For those who follow, each event may be a piece: all are cut from one buffer.
            let least = if self.followed { PIECE_BYTES / 2 } else { ROOM_BYTES_LEAST };
            let mut open =
                BytesMut::with_capacity((2 * self.open.len()).max(least).min(PIECE_BYTES).max(all));
            open.extend_from_slice(&self.open);
            self.open = open;
        }
        self.open.extend_from_slice(chunk);
    }

    /// Makes a piece of what has come.
    fn close(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let packed = if self.followed { None } else { packed(&self.open) };
        match packed {
            Some(packed) => {
                self.pieces.push(Piece::Packed(packed, self.open.len()));
                // Its room is used again.
                self.open.clear();
            }
            None => self.pieces.push(Piece::Plain(self.open.split().freeze())),
        }
    }

    /// For those who follow; once for all of them.
    fn unpack(&mut self) {
        if std::mem::replace(&mut self.followed, true) {
            return;
        }
        for piece in &mut self.pieces {
            let Piece::Packed(..) = piece else { continue };
            match piece.plain().map(Cow::into_owned) {
                Some(plain) => *piece = Piece::Plain(plain.into()),
                None => return self.lose(),
            }
        }
    }
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Plain(bytes) => bytes.len(),
            Self::Packed(_, len) => *len,
        }
    }

    /// Its bytes; `None`: they cannot be read, as never happens.
    fn plain(&self) -> Option<Cow<'_, [u8]>> {
        match self {
            Self::Plain(bytes) => Some(Cow::Borrowed(bytes)),
            Self::Packed(packed, len) => {
                block::decompress(packed, *len).ok().filter(|plain| plain.len() == *len).map(Cow::Owned)
            }
        }
    }
}

/// `None` where it is hardly less.
fn packed(bytes: &[u8]) -> Option<Box<[u8]>> {
    let packed = block::compress(bytes);
    (packed.len() < bytes.len() / 2).then(|| packed.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taped(chunks: &[Vec<u8>]) -> Tape {
        let tape = Tape::default();
        chunks.iter().for_each(|chunk| tape.push(&Bytes::copy_from_slice(chunk)));
        tape
    }

    #[test]
    fn chunks_of_any_size_are_the_same_in_one_piece() {
        let sizes = [0, 1, 250, 511, 513, 2047, 2048, 9000, 3, 0, 70_000, 250, 250];
        let chunks: Vec<_> = sizes.iter().zip(1..).map(|(size, byte)| vec![byte; *size]).collect();
        let tape = taped(&chunks);
        assert_eq!(tape.body().expect("it is there"), chunks.concat());
        assert_eq!(tape.bytes(), chunks.concat().len());
        assert_eq!(tape.news(&mut 0).concat(), chunks.concat());
    }

    #[test]
    fn whoever_asks_again_is_told_what_is_new() {
        let tape = taped(&[b"one".to_vec(), b"two".to_vec()]);
        let (mut seen, mut late) = (0, 0);
        assert_eq!(tape.news(&mut seen), ["onetwo"]);
        assert!(tape.news(&mut seen).is_empty());
        tape.push(&Bytes::from_static(b"three"));
        assert_eq!(tape.news(&mut seen), ["three"]);
        assert_eq!(tape.news(&mut late), ["onetwo", "three"]);
        assert_eq!(tape.body().expect("it is there"), "onetwothree");
    }

    #[test]
    fn events_that_say_almost_the_same_take_little_room() {
        let events: Vec<_> =
            (0..1000).map(|number| format!("data: {{\"n\":{number:0250}}}\n\n").into()).collect();
        let tape = taped(&events);
        let held = |piece: &Piece| match piece {
            Piece::Plain(bytes) => bytes.len(),
            Piece::Packed(packed, _) => packed.len(),
        };
        let reel = tape.reel();
        assert!(reel.pieces.iter().map(held).sum::<usize>() + reel.open.capacity() < 30_000);
        drop(reel);
        assert_eq!(tape.body().expect("it is there"), events.concat());
        assert_eq!(tape.news(&mut 0).concat(), events.concat());
        assert_eq!(tape.body().expect("it is there"), events.concat());
    }

    #[test]
    fn what_cannot_be_packed_is_kept_as_it_is() {
        let mut noise = 1_u64;
        let mut random = || {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (noise >> 56) as u8
        };
        let chunks: Vec<Vec<u8>> = (0..100).map(|_| (0..250).map(|_| random()).collect()).collect();
        let tape = taped(&chunks);
        assert!(tape.reel().pieces.iter().all(|piece| matches!(piece, Piece::Plain(_))));
        assert_eq!(tape.body().expect("it is there"), chunks.concat());
    }

    #[test]
    fn what_is_too_long_is_not_held() {
        let tape = Tape::default();
        let chunk = Bytes::from(vec![0; 1 << 20]);
        (0..64).for_each(|_| tape.push(&chunk));
        assert!(!tape.is_lost());
        tape.push(&Bytes::from_static(b"x"));
        tape.push(&chunk);
        assert!(tape.is_lost() && tape.body().is_none());
    }
}
