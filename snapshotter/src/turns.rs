//! Who is at work on the directory of a snapshot.
//!
//! A client whose deadline is over calls again while its first call is still at work. What a call
//! does to the files of one snapshot must not meet what another one does to them. Nor may a snapshot be
//! removed while what it is on top of is shown for it, which nobody would hide again.

use std::{
    collections::BTreeSet,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

/// The numbers of the snapshots on which somebody is at work.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    taken: Mutex<BTreeSet<u64>>,
    /// Notified when one is given back.
    free: Condvar,
}

impl Turns {
    /// Waits until nobody else is at work on the snapshot `id`, and keeps others waiting until what
    /// this returns is dropped.
    pub(crate) fn take(&self, id: u64) -> Turn<'_> {
        let mut taken = self.taken();
        while !taken.insert(id) {
            taken = self.free.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        Turn { turns: self, id }
    }

    fn taken(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        // Every change is one operation, so a panic elsewhere left nothing half-done.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to work on one snapshot.
#[derive(Debug)]
pub(crate) struct Turn<'t> {
    turns: &'t Turns,
    id: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.taken().remove(&self.id);
        self.turns.free.notify_all();
    }
}
