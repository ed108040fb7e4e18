//! Maps of sparse files.

use super::{SPARSE_PIECES_MAX, TarError, header::Piece, header::unsigned, numbers::decimal};

/// The pieces in one block's part of a GNU map, up to the first unused slot.
pub(super) fn gnu_pieces(slots: &[u8], pieces: &mut Vec<Piece>) -> Result<(), TarError> {
    for slot in slots.chunks_exact(24) {
        if slot[0] == 0 {
            return Ok(());
        }
        let offset = unsigned(&slot[..12], "sparse offset")?;
        let len = unsigned(&slot[12..], "sparse length")?;
        pieces.push(Piece { offset, len });
        limit(pieces.len())?;
    }
    Ok(())
}

/// Reads the map of version 1.0, which is text in front of the data.
#[derive(Default)]
pub(super) struct TextMap {
    numbers: Vec<u64>,
    digits: Vec<u8>,
}

impl TextMap {
    /// Takes the next block; `true` when the map is complete. What follows it in the block is
    /// padding.
    pub(super) fn add(&mut self, block: &[u8]) -> Result<bool, TarError> {
        for byte in block {
            if *byte != b'\n' {
                self.digits.push(*byte);
                if self.digits.len() > 20 {
                    return Err(TarError::Sparse);
                }
                continue;
            }
            let number = decimal(&self.digits).and_then(|number| u64::try_from(number).ok());
            self.numbers.push(number.ok_or(TarError::Sparse)?);
            self.digits.clear();
            let count = usize::try_from(self.numbers[0]).unwrap_or(usize::MAX);
            limit(count)?;
            if self.numbers.len() == 1 + 2 * count {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn pieces(&self) -> Vec<Piece> {
        let (pairs, _) = self.numbers[1..].as_chunks::<2>();
        pairs.iter().map(|&[offset, len]| Piece { offset, len }).collect()
    }
}

/// Checks that pieces are in order, within `size`, and together `stored` long.
pub(super) fn check(pieces: &[Piece], size: u64, stored: u64) -> Result<(), TarError> {
    limit(pieces.len())?;
    let (mut at, mut sum) = (0_u64, 0_u64);
    for piece in pieces {
        let end = piece.offset.checked_add(piece.len).ok_or(TarError::Sparse)?;
        if piece.offset < at || end > size {
            return Err(TarError::Sparse);
        }
        at = end;
        sum += piece.len;
    }
    if sum == stored { Ok(()) } else { Err(TarError::Sparse) }
}

fn limit(count: usize) -> Result<(), TarError> {
    if count <= SPARSE_PIECES_MAX {
        return Ok(());
    }
    Err(TarError::TooLarge { what: "sparse file map", max: SPARSE_PIECES_MAX as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps() {
        let piece = |offset, len| Piece { offset, len };
        let cases = [
            ("none", vec![], 10, 0, true),
            ("one", vec![piece(2, 3)], 10, 3, true),
            ("touching", vec![piece(2, 3), piece(5, 5)], 10, 8, true),
            ("end marker", vec![piece(2, 3), piece(10, 0)], 10, 3, true),
            ("overlap", vec![piece(2, 3), piece(4, 1)], 10, 4, false),
            ("backwards", vec![piece(5, 1), piece(2, 1)], 10, 2, false),
            ("beyond the end", vec![piece(8, 3)], 10, 3, false),
            ("overflow", vec![piece(u64::MAX, 3)], 10, 3, false),
            ("too little data", vec![piece(2, 3)], 10, 2, false),
        ];
        for (case, pieces, size, stored, want) in cases {
            assert_eq!(check(&pieces, size, stored).is_ok(), want, "{case}");
        }
    }
}
