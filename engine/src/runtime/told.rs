//! What subscribers were told of lately, so that what is told again can be left out.
//!
//! A shim offers an event until the daemon confirms it, and the daemon confirms what it has told. So
//! the shim is the record of an event that nobody was told of; what has to be kept here is which one
//! was told and not confirmed. A shim offers one event after the other, and has no more than one or
//! two under way, so a few marks are enough for as many events as there may be.
//!
//! In memory a mark is set before subscribers are told, so that two copies that arrive together are
//! one. On disk it is written after. A daemon that is killed in between left subscribers that lost
//! their connection, and the next one tells again: of all that a shim tells, that is one event at
//! most, and none is lost.
//!
//! The marks are one block of bytes, the latest first, that is written with a single call at the
//! beginning of a file: somebody who is killed does not leave half of it.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use prost::Message;

/// How many events are remembered.
const MARKS_MAX: usize = 16;

const MARK_LEN: usize = ring::digest::SHA256_OUTPUT_LEN;

/// Which events were told. See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Marks>);

/// The latest first.
#[derive(Debug, Default)]
struct Marks(VecDeque<Mark>);

/// What tells one event from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark([u8; MARK_LEN]);

impl Mark {
    /// The mark of an event, of which the time must be a part.
    pub(super) fn of<M: Message>(event: &M) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, &event.encode_to_vec());
        let mut mark = [0; MARK_LEN];
        mark.copy_from_slice(digest.as_ref());
        Self(mark)
    }
}

impl Told {
    /// Sets a mark; `false` when it was set before.
    pub(super) fn note(&self, mark: Mark) -> bool {
        let mut marks = self.marks();
        if marks.0.contains(&mark) {
            return false;
        }
        marks.0.truncate(MARKS_MAX - 1);
        marks.0.push_front(mark);
        true
    }

    /// Whether a mark is set.
    pub(super) fn has(&self, mark: Mark) -> bool {
        self.marks().0.contains(&mark)
    }

    /// Adds what an earlier daemon kept, as older than all that there is.
    pub(super) fn recall(&self, kept: &[u8]) {
        let mut marks = self.marks();
        for chunk in kept.chunks_exact(MARK_LEN) {
            let mut mark = [0; MARK_LEN];
            mark.copy_from_slice(chunk);
            if marks.0.len() < MARKS_MAX && !marks.0.contains(&Mark(mark)) {
                marks.0.push_back(Mark(mark));
            }
        }
    }

    /// Passes what there is to keep to `write`. Who comes later writes later.
    pub(super) fn keep<T>(&self, write: impl FnOnce(&[u8]) -> T) -> T {
        let marks = self.marks();
        let bytes: Vec<u8> = marks.0.iter().flat_map(|mark| mark.0).collect();
        write(&bytes)
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;
    use proto::containerd::events::TaskExit;

    use super::*;

    fn mark(seconds: i64) -> Mark {
        Mark::of(&TaskExit {
            exited_at: Some(Timestamp { seconds, nanos: 0 }),
            ..Default::default()
        })
    }

    fn kept(told: &Told) -> Vec<u8> {
        told.keep(<[u8]>::to_vec)
    }

    #[test]
    fn the_latest_are_remembered_over_daemons() {
        let told = Told::default();
        for i in 0..1000 {
            assert!(told.note(mark(i)), "{i}");
            assert!(!told.note(mark(i)) && told.has(mark(i)) && !told.has(mark(i + 1)), "{i}");
        }
        let bytes = kept(&told);
        assert_eq!(bytes.len(), MARKS_MAX * MARK_LEN);

        let next = Told::default();
        assert!(next.note(mark(1000)), "before the others are recalled");
        next.recall(&bytes);
        let latest = 1001 - MARKS_MAX as i64;
        for i in latest..=1000 {
            assert!(!next.note(mark(i)), "{i}");
        }
        assert!(next.note(mark(latest - 1)), "too long ago");
        assert_eq!(kept(&next).len(), MARKS_MAX * MARK_LEN);
    }

    #[test]
    fn what_is_no_mark_is_none() {
        for bytes in [&[][..], &[1; MARK_LEN - 1], &[2; MARK_LEN * MARKS_MAX * 3]] {
            let told = Told::default();
            told.recall(bytes);
            assert!(told.note(mark(1)));
            assert!(kept(&told).len() <= MARKS_MAX * MARK_LEN);
        }
    }
}
