//! Decides when to collect.
//!
//! One thread waits for whichever comes first of
//!
//! - somebody who waits for a collection, or `deletion_threshold` removals, if that is not 0:
//!   `schedule_delay` later;
//! - any removal, or `mutation_threshold` changes: when the next collection is due, that is, so
//!   that collections stop changes for no more than `pause_threshold` of the time;
//! - the expiry of a lease or an image.
//!
//! A daemon in which nothing is changed does nothing. Source: containerd, `plugins/gc`; it also
//! looks again and again whether something was changed, and at what expires only then.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use super::collector::{Collected, Collector};
use crate::{config::Gc, error::Error};

/// What a collection counts as at least, when the time until the next is worked out.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// The time until the next collection when none of the time is set as a limit.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);

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
    /// Removals and changes since the last collection began.
    removals: u64,
    mutations: u64,
    /// How many collections were asked for by somebody who waits, and how many of these are done.
    wanted: u64,
    done: u64,
    last: Option<Result<Arc<Collected>, String>>,
    /// Since when one is wanted, not counting the delay.
    asked: Option<Instant>,
    /// When one is due if there is something to collect; nothing before the first.
    next: Option<Instant>,
    /// When one is due in any case.
    at_latest: Option<Instant>,
    /// What the collections took so far, and how many there were.
    paused: Duration,
    collections: u32,
    stop: bool,
}

impl Scheduler {
    /// Starts the thread. It ends when [`stop`](Self::stop) is called.
    pub fn start(config: Gc, collector: Collector) -> Self {
        let startup = config.startup_delay;
        let first = (!startup.is_zero()).then(|| Instant::now() + startup);
        let state = State { next: first, at_latest: first, ..State::default() };
        let shared = Arc::new(Shared { config, state: Mutex::new(state), changed: Condvar::new() });
        let counting = Arc::clone(&shared);
        collector.on_change(move || counting.note(0, 1));
        let worker = Arc::clone(&shared);
        thread::Builder::new()
            .name("gc".to_owned())
            .spawn(move || worker.run(&collector))
            .expect("a thread at the start of the program");
        Self { shared }
    }

    /// Tells that something was removed that may have kept something else.
    pub fn note_removal(&self) {
        self.shared.note(1, 0);
    }

    /// Collects, and returns what was removed when that is done.
    ///
    /// # Errors
    ///
    /// `Unavailable`: the collection failed, or the daemon stops.
    pub fn collect(&self) -> Result<Arc<Collected>, Error> {
        let mut state = self.shared.lock();
        state.wanted += 1;
        state.asked.get_or_insert_with(Instant::now);
        let ticket = state.wanted;
        self.shared.changed.notify_all();
        let state = self
            .shared
            .changed
            .wait_while(state, |state| state.done < ticket && !state.stop)
            .unwrap_or_else(PoisonError::into_inner);
        match &state.last {
            _ if state.done < ticket => Err(Error::Unavailable("gc stopped".to_owned())),
            Some(Ok(collected)) => Ok(Arc::clone(collected)),
            Some(Err(reason)) => Err(Error::Unavailable(format!("gc failed: {reason}"))),
            None => unreachable!("one is done"),
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

    fn note(&self, removals: u64, mutations: u64) {
        let mut state = self.lock();
        let before = state.due(&self.config);
        state.note(removals, mutations, &self.config, Instant::now());
        if state.due(&self.config) != before {
            self.changed.notify_all();
        }
    }

    fn run(&self, collector: &Collector) {
        let mut state = self.lock();
        loop {
            if state.stop {
                return;
            }
            let Some(due) = state.due(&self.config) else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let timeout = due.saturating_duration_since(Instant::now());
            if timeout.is_zero() {
                state = self.collect(collector, state);
            } else {
                let woken = self.changed.wait_timeout(state, timeout);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn collect<'s>(
        &'s self,
        collector: &Collector,
        mut state: MutexGuard<'s, State>,
    ) -> MutexGuard<'s, State> {
        let thorough = state.removals > 0 || state.wanted > state.done;
        state.begin();
        let wanted = state.wanted;
        drop(state);
        let result = collector.collect(thorough);
        let now = Instant::now();
        let mut state = self.lock();
        state.done = wanted;
        state.last = Some(match result {
            Ok(collected) => {
                state.end(collected.pause, self.config.pause_threshold, now);
                state.at_latest = collected.next_expiry.map(|expiry| {
                    now + expiry.duration_since(SystemTime::now()).unwrap_or_default()
                        // The clock may stand just before it.
                        + Duration::from_millis(1)
                });
                Ok(Arc::new(collected))
            }
            Err(error) => {
                let reason = sys::error::Chain(&error).to_string();
                tracing::error!(error = reason, "garbage collection failed");
                state.next = Some(now + RETRY_DELAY);
                state.at_latest = state.next;
                Err(reason)
            }
        });
        self.changed.notify_all();
        state
    }
}

impl State {
    fn note(&mut self, removals: u64, mutations: u64, config: &Gc, now: Instant) {
        self.removals += removals;
        self.mutations += mutations;
        let first = self.next.is_none() && self.is_needed(config);
        // Below the threshold, removals wait for one that is due for another reason.
        let first = first && (config.deletion_threshold == 0 || self.has_mutated(config));
        let many = config.deletion_threshold > 0 && self.removals >= config.deletion_threshold;
        if first || many {
            self.asked.get_or_insert(now);
        }
    }

    fn has_mutated(&self, config: &Gc) -> bool {
        config.mutation_threshold > 0 && self.mutations >= config.mutation_threshold
    }

    fn is_needed(&self, config: &Gc) -> bool {
        self.removals > 0 || self.has_mutated(config)
    }

    /// When to collect; nothing when there is no reason to.
    fn due(&self, config: &Gc) -> Option<Instant> {
        let asked = self.asked.map(|asked| {
            let asked = asked + config.schedule_delay;
            self.next.map_or(asked, |next| next.min(asked))
        });
        let needed = self.next.filter(|_| self.is_needed(config));
        [asked, needed, self.at_latest].into_iter().flatten().min()
    }

    fn begin(&mut self) {
        self.removals = 0;
        self.mutations = 0;
        self.asked = None;
    }

    /// Works out when the next one is due after one that stopped everybody for `pause`.
    fn end(&mut self, pause: Duration, threshold: f64, now: Instant) {
        self.paused += pause;
        self.collections = self.collections.saturating_add(1);
        let interval = if threshold > 0.0 {
            let average = (self.paused / self.collections).max(PAUSE_MIN);
            average.mul_f64((1.0 / threshold.min(0.5)) - 1.0)
        } else {
            INTERVAL_DEFAULT
        };
        self.next = Some(now + interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When a collection is due, in milliseconds, after things were noted at 10 ms, with the
    /// regular one at 1000 ms or never.
    fn due(config: &Gc, next: bool, removals: u64, mutations: u64) -> Option<u128> {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut state = State { next: next.then(|| at(1000)), ..State::default() };
        for _ in 0..removals {
            state.note(1, 0, config, at(10));
        }
        for _ in 0..mutations {
            state.note(0, 1, config, at(10));
        }
        state.due(config).map(|due| (due - start).as_millis())
    }

    #[test]
    fn thresholds() {
        let default = Gc::default();
        let config = |deletion_threshold, mutation_threshold, delay| Gc {
            deletion_threshold,
            mutation_threshold,
            schedule_delay: Duration::from_millis(delay),
            ..Gc::default()
        };
        let cases = [
            ("nothing", default.clone(), true, 0, 0, None),
            ("a removal waits for the regular one", default.clone(), true, 1, 0, Some(1000)),
            ("or comes first", default.clone(), false, 1, 0, Some(10)),
            ("with a delay", config(0, 100, 50), false, 1, 0, Some(60)),
            ("few changes", default.clone(), true, 0, 99, None),
            ("many changes", default.clone(), true, 0, 100, Some(1000)),
            ("many changes come first", default.clone(), false, 0, 100, Some(10)),
            ("changes do not count", config(0, 0, 0), true, 0, 100, None),
            ("below the threshold", config(3, 100, 0), true, 2, 0, Some(1000)),
            ("below the threshold, first", config(3, 100, 0), false, 2, 0, None),
            ("at the threshold", config(3, 100, 50), true, 3, 0, Some(60)),
            (
                "the delay does not put the regular one off",
                config(3, 9, 5000),
                true,
                3,
                0,
                Some(1000),
            ),
        ];
        for (case, config, next, removals, mutations, want) in cases {
            assert_eq!(due(&config, next, removals, mutations), want, "{case}");
        }
    }

    #[test]
    fn pauses_are_a_part_of_the_time() {
        let now = Instant::now();
        let cases = [
            ("2 %", 0.02, vec![100], 4900),
            ("of the average", 0.02, vec![50, 150], 4900),
            ("at least 5 ms", 0.02, vec![1], 245),
            ("at most half", 0.9, vec![100], 100),
            ("no limit", 0.0, vec![100], 1000),
            ("below none", -1.0, vec![100], 1000),
        ];
        for (case, threshold, pauses, want) in cases {
            let mut state = State::default();
            for pause in pauses {
                state.end(Duration::from_millis(pause), threshold, now);
            }
            let next = state.next.expect("there is a next one");
            assert_eq!((next - now).as_millis(), want, "{case}");
        }
    }
}
