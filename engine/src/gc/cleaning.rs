//! Frees the disk space of removed snapshots, without holding collections up for long.
//!
//! Each snapshotter is cleaned up by a thread of its own: one that is another program may take as
//! long as its calls may, for each snapshot, and so may a large tree on a slow disk. A collection
//! waits for them for a while, so that usually the space is free when it ends; what takes longer goes
//! on beside the collections that come later. A snapshotter has one such thread at most, which
//! starts over when it was asked again.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use snapshotter::Snapshotter;

use super::Snapshotters;

/// How long a collection waits for disk space to be freed.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What is being cleaned up. A clone is another handle on the same.
#[derive(Clone, Default)]
pub(super) struct Cleaning {
    /// The snapshotters that have a thread, and whether that is to start over.
    running: Arc<Mutex<BTreeMap<String, bool>>>,
}

impl Cleaning {
    /// Cleans all of `snapshotters` up, and waits for that for as long as `patience`.
    pub(super) fn run(&self, snapshotters: &Snapshotters, patience: Duration) {
        let until = Instant::now() + patience;
        let (ended, wait) = mpsc::channel::<()>();
        for (name, snapshotter) in snapshotters {
            let Some(turn) = self.turn(name, &ended) else { continue };
            let own = Arc::clone(snapshotter);
            let builder = thread::Builder::new().name(format!("clean {name}"));
            if let Err(error) = builder.spawn(move || turn.take(&*own)) {
                // The turn went with the thread.
                tracing::warn!(%error, snapshotter = name, "disk space is freed without a thread");
                clean(name, &**snapshotter);
            }
        }
        drop(ended);
        // Nothing is ever sent: the channel closes when the last of them has ended.
        let left = until.saturating_duration_since(Instant::now());
        if wait.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) {
            let names: Vec<_> = self.lock().keys().cloned().collect();
            let names = names.join(", ");
            tracing::warn!("disk space of {names} is still being freed; collections go on");
        }
    }

    /// Says that `name` has a thread now; if it has one already, that is to start over.
    fn turn(&self, name: &str, ended: &mpsc::Sender<()>) -> Option<Turn> {
        match self.lock().entry(name.to_owned()) {
            Entry::Occupied(mut again) => {
                again.insert(true);
                None
            }
            Entry::Vacant(free) => {
                free.insert(false);
                let (cleaning, name, ended) = (self.clone(), name.to_owned(), ended.clone());
                Some(Turn { cleaning, name, has_ended: false, _ended: ended })
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a thread does. Its end, if only by a panic, makes room for the next.
struct Turn {
    cleaning: Cleaning,
    name: String,
    has_ended: bool,
    _ended: mpsc::Sender<()>,
}

impl Turn {
    fn take(mut self, snapshotter: &dyn Snapshotter) {
        while !self.has_ended {
            clean(&self.name, snapshotter);
            let mut running = self.cleaning.lock();
            match running.get_mut(&self.name) {
                Some(again) if *again => *again = false,
                _ => {
                    // Under the lock in which it was found that nobody has asked again.
                    running.remove(&self.name);
                    self.has_ended = true;
                }
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.has_ended {
            self.cleaning.lock().remove(&self.name);
        }
    }
}

fn clean(name: &str, snapshotter: &dyn Snapshotter) {
    if let Err(error) = snapshotter.cleanup() {
        let error = sys::error::Chain(&error);
        tracing::warn!(%error, snapshotter = name, "disk space is not free yet");
    }
}

#[cfg(test)]
pub(super) mod tests;
