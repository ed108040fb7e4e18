//! Frees the disk space of what was removed, without holding collections up for long.
//!
//! Each snapshotter is cleaned up by a thread of its own, and so is a content store that is another program: such
//! a program may take as long as its calls may, for each object, and so may a large tree on a slow disk. A
//! collection waits for them for a while, so that usually the space is free when it ends; what takes
//! longer goes on beside the collections that come later. A [`Job`] has one thread at most, which
//! starts over when it was asked again. Nothing waits for one when the daemon stops.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

/// How long a collection waits for disk space to be freed.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Something that is cleaned up. It logs what it cannot do.
pub(super) struct Job {
    /// What it is about.
    pub(super) name: String,
    pub(super) work: Work,
}

type Work = Arc<dyn Fn() + Send + Sync>;

/// What is being cleaned up. A clone is another handle on the same.
#[derive(Clone, Default)]
pub(super) struct Cleaning {
    /// The jobs that have a thread, and whether that is to start over.
    running: Arc<Mutex<BTreeMap<String, bool>>>,
}

impl Cleaning {
    /// Does all of `jobs`, and waits for that for as long as `patience`.
    pub(super) fn run(&self, jobs: Vec<Job>, patience: Duration) {
        let until = Instant::now() + patience;
        let (ended, wait) = mpsc::channel::<()>();
        for Job { name, work } in jobs {
            let Some(turn) = self.turn(&name, &ended) else { continue };
            let own = Arc::clone(&work);
            let builder = thread::Builder::new().name(format!("clean {name}"));
            if let Err(error) = builder.spawn(move || turn.take(&*own)) {
                // The turn went with the thread.
                tracing::warn!(%error, "disk space of {name} is freed without a thread");
                work();
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
    fn take(mut self, work: &dyn Fn()) {
        while !self.has_ended {
            work();
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

#[cfg(test)]
pub(super) mod tests;
