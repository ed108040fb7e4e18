//! Makes unpacked layers durable without making anybody wait, and makes good what a machine that
//! stopped without warning has lost of them.
//!
//! # Why it exists
//!
//! A layer is thousands of files. To sync them before a pull is done would make it several times
//! slower; not to sync them at all, as is usual, leaves a record on disk that promises a layer and
//! files that are empty, for good: nobody looks again (containerd#9401). So
//!
//! ```text
//!  commit ──> record: unsynced in this boot ──(Syncer, a moment later)──> files on disk ──> record: synced
//!                            │
//!                            └─ the machine stops ──> next start: suspect ──(recover)──> unpacked again
//! ```
//!
//! Blobs and records are on disk when a call returns, so what a layer is unpacked from again is
//! there. What cannot be unpacked again, since nobody keeps its blob or it never had one, is
//! removed, and so is made anew by whoever asks for it next; if containers are on top of it, it
//! refuses to be mounted, and the log says so. While the program that keeps blobs is away it stays
//! suspect, refuses to be mounted, and is tried again.

mod recovery;

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

pub use self::recovery::{Recovered, recover};
use crate::{content, error::Error, gc::Snapshotters};

/// How long after a commit its files are written, so that the layers of an image share that.
const DELAY: Duration = Duration::from_secs(1);

/// How long after a failure it is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(10);

/// How long after a program that keeps blobs was away it is asked again for what was lost; twice as long each time, up to
/// the other.
const RECOVERY_DELAY: Duration = Duration::from_secs(5);
const RECOVERY_DELAY_MAX: Duration = Duration::from_secs(60);

/// Syncs snapshots some time after they were committed. A clone is another handle on the same.
#[derive(Clone, Default)]
pub struct Syncer {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    due: bool,
    stop: bool,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// Tells that something was committed.
    pub fn note_commit(&self) {
        self.shared.lock().due = true;
        self.shared.changed.notify_all();
    }

    /// Starts the thread, which syncs what earlier daemons left unsynced, too. It ends when
    /// [`stop`](Self::stop) is called.
    pub fn start(&self, snapshotters: Arc<Snapshotters>) {
        let worker = Arc::clone(&self.shared);
        let thread = thread::Builder::new()
            .name("sync".to_owned())
            .spawn(move || worker.run(&snapshotters))
            .expect("a thread at the start of the program");
        let mut state = self.shared.lock();
        state.due = true;
        state.thread = Some(thread);
    }

    /// [Recovers](recover()) now, and again and again while something waits for another program; that ends, and is
    /// not waited for, when [`stop`](Self::stop) is called.
    ///
    /// # Errors
    ///
    /// As [`recover()`], of the first time.
    pub fn recover(
        &self,
        content: &content::Store,
        snapshotters: &Arc<Snapshotters>,
    ) -> Result<(), Error> {
        if recover(content, snapshotters)?.waiting == 0 {
            return Ok(());
        }
        let (content, snapshotters) = (content.clone(), Arc::clone(snapshotters));
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("recover".to_owned());
        thread
            .spawn(move || shared.recover_later(&content, &snapshotters))
            .expect("a thread at the start of the program");
        Ok(())
    }

    /// Syncs what is unsynced, and ends the thread. Blocks for as long as the disk takes.
    pub fn stop(&self) {
        let thread = {
            let mut state = self.shared.lock();
            state.stop = true;
            state.thread.take()
        };
        self.shared.changed.notify_all();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread that syncs snapshots has panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recover_later(&self, content: &content::Store, snapshotters: &Snapshotters) {
        let mut delay = RECOVERY_DELAY;
        loop {
            let going_on = |state: &mut State| !state.stop;
            let waited = self.changed.wait_timeout_while(self.lock(), delay, going_on);
            if waited.unwrap_or_else(PoisonError::into_inner).0.stop {
                return;
            }
            match recover(content, snapshotters) {
                Ok(recovered) if recovered.waiting == 0 => return,
                Ok(_) => {}
                Err(error) => {
                    let error = sys::error::Chain(&error).to_string();
                    tracing::warn!(error, "snapshots are not unpacked again yet");
                }
            }
            delay = (delay * 2).min(RECOVERY_DELAY_MAX);
        }
    }

    fn run(&self, snapshotters: &Snapshotters) {
        let mut delay = DELAY;
        loop {
            let idle = |state: &mut State| !state.due && !state.stop;
            let state = self.changed.wait_while(self.lock(), idle);
            let state = state.unwrap_or_else(PoisonError::into_inner);
            let going_on = |state: &mut State| !state.stop;
            let waited = self.changed.wait_timeout_while(state, delay, going_on);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            state.due = false;
            let last = state.stop;
            drop(state);
            delay = DELAY;
            if !sync(snapshotters) {
                delay = RETRY_DELAY;
                self.lock().due = true;
            }
            if last {
                return;
            }
        }
    }
}

/// Syncs all; whether that was possible.
fn sync(snapshotters: &Snapshotters) -> bool {
    let mut good = true;
    for (name, snapshotter) in snapshotters {
        if let Err(error) = snapshotter.sync() {
            let error = sys::error::Chain(&error).to_string();
            tracing::warn!(snapshotter = name, error, "snapshots are not durable yet");
            good = false;
        }
    }
    good
}
