//! Decides when to collect.
//!
//! One thread waits for whichever comes first of
//!
//! - somebody who waits for a collection: at once;
//! - enough removals: `schedule_delay` later, but so that collections stop changes for no more than
//!   `pause_threshold` of the time;
//! - the expiry of a lease or an image.
//!
//! A daemon in which nothing is removed does nothing. Source: containerd, `plugins/gc`; it looks
//! again after `mutation_threshold` changes because it does not know when things expire.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use super::collector::Collector;
use crate::{config::Gc, error::Error};

/// What a collection counts as at least, when the time until the next is worked out.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// How long after a failed collection the next one starts.
const RETRY_DELAY: Duration = Duration::from_secs(10);

/// Runs a [`Collector`] when it is time. A clone is another handle on the same.
#[derive(Clone)]
pub struct Scheduler {
    shared: Arc<Shared>,
}

struct Shared {
    config: Gc,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Removals since the last collection began.
    removals: u64,
    /// How many collections were asked for by somebody who waits, and how many of these are done.
    wanted: u64,
    done: u64,
    failed: Option<String>,
    /// Not before this, unless somebody waits.
    earliest: Option<Instant>,
    /// Without any removal.
    at_latest: Option<Instant>,
    stop: bool,
}

impl Scheduler {
    /// Starts the thread. It ends when [`stop`](Self::stop) is called.
    pub fn start(config: Gc, collector: Collector) -> Self {
        let state =
            State { at_latest: Some(Instant::now() + config.startup_delay()), ..State::default() };
        let shared = Arc::new(Shared { config, state: Mutex::new(state), changed: Condvar::new() });
        let worker = Arc::clone(&shared);
        thread::Builder::new()
            .name("gc".to_owned())
            .spawn(move || worker.run(&collector))
            .expect("a thread at the start of the program");
        Self { shared }
    }

    /// Tells that something was removed that may have kept something else.
    pub fn note_removal(&self) {
        let mut state = self.shared.lock();
        state.removals += 1;
        if state.removals == self.shared.config.deletion_threshold.max(1) {
            let delayed = Instant::now() + self.shared.config.schedule_delay();
            state.earliest = Some(state.earliest.map_or(delayed, |earliest| earliest.max(delayed)));
            self.shared.changed.notify_all();
        }
    }

    /// Collects, and returns when that is done.
    ///
    /// # Errors
    ///
    /// `Unavailable`: the collection failed, or the daemon stops.
    pub fn collect(&self) -> Result<(), Error> {
        let mut state = self.shared.lock();
        state.wanted += 1;
        let ticket = state.wanted;
        self.shared.changed.notify_all();
        let state = self
            .shared
            .changed
            .wait_while(state, |state| state.done < ticket && !state.stop)
            .unwrap_or_else(PoisonError::into_inner);
        match &state.failed {
            Some(reason) => Err(Error::Unavailable(format!("gc failed: {reason}"))),
            None if state.done < ticket => Err(Error::Unavailable("gc stopped".to_owned())),
            None => Ok(()),
        }
    }

    /// Ends the thread after the collection that is under way.
    pub fn stop(&self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, collector: &Collector) {
        let mut state = self.lock();
        loop {
            if state.stop {
                return;
            }
            match state.wait(self.config.deletion_threshold) {
                Wait::No => state = self.collect(collector, state),
                Wait::Until(time) => {
                    let timeout = time.saturating_duration_since(Instant::now());
                    let woken = self.changed.wait_timeout(state, timeout);
                    state = woken.unwrap_or_else(PoisonError::into_inner).0;
                }
                Wait::Forever => {
                    let woken = self.changed.wait(state);
                    state = woken.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn collect<'s>(
        &'s self,
        collector: &Collector,
        mut state: MutexGuard<'s, State>,
    ) -> MutexGuard<'s, State> {
        state.removals = 0;
        let wanted = state.wanted;
        drop(state);
        let result = collector.collect();
        let now = Instant::now();
        let mut state = self.lock();
        state.done = wanted;
        match result {
            Ok(collected) => {
                state.failed = None;
                state.earliest = Some(now + self.interval(collected.pause));
                state.at_latest = collected.next_expiry.map(|expiry| {
                    now + expiry.duration_since(SystemTime::now()).unwrap_or_default()
                        // The clock may stand just before it.
                        + Duration::from_millis(1)
                });
            }
            Err(error) => {
                let reason = sys::error::Chain(&error).to_string();
                tracing::error!(error = reason, "garbage collection failed");
                state.failed = Some(reason);
                state.earliest = Some(now + RETRY_DELAY);
                state.at_latest = state.earliest;
            }
        }
        self.changed.notify_all();
        state
    }

    /// How long to wait after a collection that paused everybody for `pause`.
    fn interval(&self, pause: Duration) -> Duration {
        let threshold = self.config.pause_threshold;
        if threshold <= 0.0 {
            return Duration::ZERO;
        }
        let pause = pause.max(PAUSE_MIN);
        pause.mul_f64((1.0 / threshold.min(0.5)) - 1.0)
    }
}

enum Wait {
    No,
    Until(Instant),
    Forever,
}

impl State {
    fn wait(&self, deletion_threshold: u64) -> Wait {
        let now = Instant::now();
        let enough = self.removals >= deletion_threshold.max(1);
        let for_removals = enough.then(|| self.earliest.unwrap_or(now));
        let due = match (for_removals, self.at_latest) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        match due {
            _ if self.wanted > self.done => Wait::No,
            Some(due) if due <= now => Wait::No,
            Some(due) => Wait::Until(due),
            None => Wait::Forever,
        }
    }
}
