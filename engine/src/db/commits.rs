//! Which of the two commits that a file keeps the database library goes on from.
//!
//! The header has a slot for each of the last two commits, and names one. When a file was not closed, the
//! library takes the other one if the pages of that are no good: a commit that the machine's stop cut short
//! is as if it had not been begun. But it may also have been whole, and its pages damaged since; which of
//! the two it is nobody can know, so it is told. Then the library notes its repair as a commit, in place of
//! the one that was no good.
//!
//! Source: redb 4.4, `src/tree_store/page_store/header.rs` and `src/db.rs` (`do_repair`).

use super::pages::{FLAGS_AT, HEADER_LEN, SLOTS_AT, long};

/// The length of a slot, and where in it is the number of the commit.
const SLOT_LEN: usize = 128;
const NUMBER_AT: usize = 104;

/// What the header of a file says of commits.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Commits {
    /// The slot that it names.
    last: usize,
    slots: [Vec<u8>; 2],
}

impl Commits {
    pub(super) fn of(header: &[u8; HEADER_LEN]) -> Self {
        let slots = SLOTS_AT.map(|at| header[at..at + SLOT_LEN].to_vec());
        Self { last: usize::from(header[FLAGS_AT] & 1), slots }
    }

    fn number(&self, slot: usize) -> u64 {
        long(&self.slots[slot], NUMBER_AT).unwrap_or(0)
    }

    /// Whether the library, which has left the header like this, has gone on from another commit than
    /// the last one of `before`.
    pub(super) fn went_back(&self, before: &Self) -> bool {
        // The slot that it has not written to.
        let is_kept = self.slots[self.last] == before.slots[self.last];
        let from = if is_kept { self.last } else { 1 - self.last };
        from != before.last && before.number(from) < before.number(before.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn going_back() {
        let commits = |last, numbers: [u64; 2]| {
            let mut header = [0; HEADER_LEN];
            header[FLAGS_AT] = last;
            for (slot, number) in SLOTS_AT.into_iter().zip(numbers) {
                header[slot + NUMBER_AT..slot + NUMBER_AT + 8]
                    .copy_from_slice(&number.to_le_bytes());
            }
            Commits::of(&header)
        };
        let before = || commits(1, [6, 7]);
        // Of the repair, which has the number of what it replaces.
        let mut replaced = commits(1, [6, 7]);
        replaced.slots[1][8] = 1;
        let cases = [
            ("closed", before(), before(), false),
            ("repaired", before(), commits(0, [8, 7]), false),
            ("the one before, closed", before(), commits(0, [6, 7]), true),
            ("the one before, repaired", before(), replaced, true),
            (
                "one that the header does not name yet",
                commits(1, [8, 7]),
                commits(0, [8, 7]),
                false,
            ),
            ("that one, repaired", commits(1, [8, 7]), commits(1, [8, 9]), false),
        ];
        for (case, before, after, want) in cases {
            assert_eq!(after.went_back(&before), want, "{case}");
        }
    }
}
