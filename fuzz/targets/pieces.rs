//! What comes over a connection, cut as it may be.

const PIECE_BYTES_MAX: u32 = 17;

/// The bytes in small pieces, some of them empty, of lengths that follow from their last.
pub(crate) fn pieces(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut random = u32::from(bytes.last().copied().unwrap_or_default());
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = ((random >> 16) % PIECE_BYTES_MAX) as usize;
        let (piece, rest) = bytes.split_at(length.min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}
