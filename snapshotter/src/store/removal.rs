//! Deletes the directories of removed snapshots, after whoever removed them has the answer.
//!
//! # Why
//!
//! A snapshot is gone with its record. To delete its files takes a moment or a minute, behind whatever the
//! filesystem's journal is busy with, and nobody needs to wait for that. So it is for a thread, which starts with
//! the first directory and ends when there was none for a while. It lets a moment pass before it begins, for
//! answers to be on their way and for more to come: to be woken for each directory, beside whoever is to answer,
//! would cost about as much as to delete it.
//!
//! Nothing here is stored. What is not deleted when the program ends, because it has crashed or was told to end, is a
//! directory without a record, and the [sweep](Removal::sweep) that begins when the snapshotter is opened finds
//! it. What cannot be deleted is left to the next cleanup, which has somebody to tell.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::Shared;
use crate::layout::Layout;

/// How many directories wait by their numbers. When there are more, all are looked for.
const QUEUE_LEN_MAX: usize = 4096;

/// How long the thread lets others go first, when it was idle.
const PAUSE: Duration = Duration::from_millis(50);

/// How long the thread waits for more.
const LINGER: Duration = Duration::from_secs(10);

/// How long the end of a snapshotter waits for the thread, which is at one file.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Deletes directories of a snapshotter. Dropping it has that end.
pub(super) struct Removal<L: Layout> {
    shared: Arc<Shared<L>>,
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// Notified when there is something for a thread that was idle, and when one ends.
    changed: Condvar,
    /// Whether the thread is to end.
    stop: AtomicBool,
}

#[derive(Default)]
struct State {
    numbers: VecDeque<u64>,
    /// Whether to look for directories without records.
    sweep: bool,
    /// Whether there is a thread that will see what is new.
    has_thread: bool,
    /// How many threads there are, those included that are about to end.
    threads: usize,
}

/// What is to be done next.
enum Job {
    Delete(u64),
    Sweep,
}

impl<L: Layout> Removal<L> {
    pub(super) fn new(shared: Arc<Shared<L>>) -> Self {
        Self { shared, queue: Arc::default() }
    }

    /// Has the directory `number`, whose record is gone, deleted.
    pub(super) fn add(&self, number: u64) {
        self.ask(|state| state.add(number));
    }

    /// Has all directories deleted that have no record.
    pub(super) fn sweep(&self) {
        self.ask(|state| state.sweep = true);
    }

    fn ask(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.queue.lock();
        let was_idle = state.is_idle();
        change(&mut state);
        if state.has_thread {
            drop(state);
            if was_idle {
                self.queue.changed.notify_all();
            }
            return;
        }
        state.has_thread = true;
        state.threads += 1;
        drop(state);
        let turn = Turn { queue: Arc::clone(&self.queue), shared: Some(Arc::clone(&self.shared)) };
        let builder = thread::Builder::new().name(format!("remove {}", L::NAME));
        if builder.spawn(move || turn.take()).is_err() {
            // There can be no more threads, and the turn went with this one.
            while self.queue.wait(Duration::ZERO) {
                self.queue.work_off(&self.shared);
            }
        }
    }
}

impl<L: Layout> Drop for Removal<L> {
    fn drop(&mut self) {
        let state = self.queue.lock();
        self.queue.stop.store(true, Ordering::Relaxed);
        self.queue.changed.notify_all();
        // Whoever opens the snapshotter again gives numbers away anew.
        let changed = &self.queue.changed;
        drop(changed.wait_timeout_while(state, STOP_PATIENCE, |state| state.threads > 0));
    }
}

impl Queue {
    /// Waits until there is something to do. If there is nothing in so long, or it is to end, there is no thread any
    /// more.
    fn wait(&self, patience: Duration) -> bool {
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), patience, |state| !self.stops() && state.is_idle());
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.has_thread = !self.stops() && !state.is_idle();
        state.has_thread
    }

    /// Lets others go first.
    fn pause(&self) {
        drop(self.changed.wait_timeout_while(self.lock(), PAUSE, |_| !self.stops()));
    }

    /// Does what there is to do, unless it is to end.
    fn work_off<L: Layout>(&self, shared: &Shared<L>) {
        while !self.stops()
            && let Some(job) = self.take()
        {
            // What cannot be deleted now is an orphan, and the next cleanup reports it.
            let _ = match job {
                Job::Delete(number) => shared.delete(number, &self.stop),
                Job::Sweep => shared.sweep(&self.stop),
            };
        }
    }

    fn take(&self) -> Option<Job> {
        self.lock().take()
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one operation, so a panic elsewhere left nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, number: u64) {
        if self.numbers.len() < QUEUE_LEN_MAX {
            self.numbers.push_back(number);
        } else {
            self.sweep = true;
        }
    }

    fn is_idle(&self) -> bool {
        !self.sweep && self.numbers.is_empty()
    }

    fn take(&mut self) -> Option<Job> {
        if std::mem::take(&mut self.sweep) {
            return Some(Job::Sweep);
        }
        self.numbers.pop_front().map(Job::Delete)
    }
}

/// What a thread does. Its end, if only by a panic, makes room for the next.
struct Turn<L> {
    queue: Arc<Queue>,
    /// Until the end.
    shared: Option<Arc<Shared<L>>>,
}

impl<L: Layout> Turn<L> {
    fn take(self) {
        while self.queue.wait(LINGER) {
            self.queue.pause();
            if let Some(shared) = &self.shared {
                self.queue.work_off(shared);
            }
        }
    }
}

impl<L> Drop for Turn<L> {
    fn drop(&mut self) {
        // First: whoever waits for the end may open the database again.
        self.shared = None;
        let mut state = self.queue.lock();
        if thread::panicking() {
            state.has_thread = false;
        }
        state.threads -= 1;
        self.queue.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_queue_has_no_room_for_is_looked_for() {
        let mut state = State::default();
        let most = u64::try_from(QUEUE_LEN_MAX).expect("small");
        (0..most).for_each(|number| state.add(number));
        assert!(!state.sweep, "there was room for all");
        state.add(most);
        assert_eq!((state.numbers.len(), state.sweep), (QUEUE_LEN_MAX, true));
        assert!(matches!(state.take(), Some(Job::Sweep)), "which finds all of them");
        assert!(matches!(state.take(), Some(Job::Delete(0))));
    }
}
