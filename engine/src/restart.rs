//! Keeps containers running whose labels ask for that.
//!
//! # How it goes
//!
//! The containers with a `containerd.io/restart.status` label are watched. What makes the monitor
//! look at one is an event, and each has its delay:
//!
//! | what happened               | when it is acted on                                            |
//! |-----------------------------|----------------------------------------------------------------|
//! | the daemon starts           | at once                                                        |
//! | the task exits              | after 0.1 s; doubled with each life of less than 10 s, up to   |
//! |                             | a minute, so that a container that dies at once costs little   |
//! | a start fails               | the same                                                       |
//! | labels change, or the exited task was deleted by somebody else before the delay was over |    |
//! |                             | after the interval: a client is at work, and is not interfered |
//! |                             | with while it replaces the task or removes the container       |
//! | nothing                     | each interval it is looked whether an event was lost           |
//!
//! What the labels mean is in [`policy`], which of them are not believed in [`origin`], and what a
//! start does in [`start`].
//!
//! # Rules
//!
//! - Whatever is to be done is decided anew from the record when its time has come. A stop that was
//!   noted meanwhile is a stop, also while the monitor was starting the container.
//! - One thing at a time for each container, and [`JOBS_MAX`] for all.
//! - A task of which the shim says nothing is left alone.
//!
//! containerd looks at all containers every ten seconds instead, and has no such delays.
//!
//! Source: containerd, `plugins/restart`.

mod origin;
mod policy;
mod start;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use proto::containerd::{events::TaskExit, types::Envelope};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use self::{
    policy::{Memory, STATUS},
    start::Outcome,
};
use crate::{
    error::Error,
    events::{Exchange, Subscription, SubscriptionError},
    filter::Filter,
    labels::Labels,
    namespace::Namespace,
};

pub use self::{origin::strip_image_labels, policy::POLICIES, start::Parts};

/// The delay of a restart after a life that was long enough, and the longest.
const DELAY_MIN: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(60);

/// How long a life must be so that the next restart is not delayed more than the last.
const LIFE_MIN: Duration = Duration::from_secs(10);

/// How many containers are looked at or started at a time.
const JOBS_MAX: usize = 16;

/// A container, by namespace and name.
type Name = (Namespace, String);

/// The monitor. A clone is another handle on the same.
#[derive(Clone)]
pub struct Monitor {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    interval: Duration,
    /// What was heard since before there were tasks; of whoever runs the monitor.
    heard: tokio::sync::Mutex<Subscription>,
    watched: Mutex<HashMap<Name, Watch>>,
    /// Something may be due earlier than what is waited for.
    changed: Notify,
}

/// A container that is watched.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    due: Option<Due>,
    busy: bool,
    memory: Memory,
    /// When the monitor started the task.
    started: Option<Instant>,
    /// How many lives in a row were short.
    short_lives: u32,
}

/// When a container is looked at, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    at: Instant,
    cause: Cause,
}

/// Why a container is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// To see whether something was missed.
    Look,
    /// Its task has exited.
    Exit,
    /// It has been as it is for long enough.
    Settled,
}

impl Watch {
    /// Has the container looked at, unless it is before.
    fn schedule(&mut self, due: Due) {
        let earlier = self.due.filter(|set| set.at <= due.at && set.cause != Cause::Look);
        self.due = earlier.or(Some(due));
    }

    /// How long to wait after an exit or a failure.
    fn delay(&self) -> Duration {
        DELAY_MIN.saturating_mul(1 << self.short_lives.min(16)).min(DELAY_MAX)
    }

    fn note_exit(&mut self, status: u32, now: Instant) {
        let lived = self.started.take().map(|started| now.duration_since(started));
        let short = lived.is_some_and(|lived| lived < LIFE_MIN);
        self.short_lives = if short { self.short_lives + 1 } else { 0 };
        self.memory.exit = Some(status);
        self.due = Some(Due { at: now + self.delay(), cause: Cause::Exit });
    }

    fn note_failure(&mut self, now: Instant) {
        self.short_lives += 1;
        self.started = None;
        self.memory.exit = Some(1);
        self.due = Some(Due { at: now + self.delay(), cause: Cause::Settled });
    }
}

impl Monitor {
    /// Watches the containers that there are. Nothing is done before the monitor
    /// [runs](Self::run). `heard` is from [`listen`](Self::listen). Blocks.
    ///
    /// # Errors
    ///
    /// `Database`, `Damaged`: they cannot be read.
    pub fn open(parts: Parts, interval: Duration, heard: Subscription) -> Result<Self, Error> {
        let due = Some(Due { at: Instant::now(), cause: Cause::Settled });
        let memory = Memory { booting: true, exit: None };
        let watch = Watch { due, memory, ..Watch::default() };
        let found = parts.labelled()?.into_iter().map(|name| (name, watch));
        let watched = Mutex::new(found.collect());
        let heard = tokio::sync::Mutex::new(heard);
        let inner = Inner { parts, interval, heard, watched, changed: Notify::new() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The events that a monitor must have heard since before there were tasks.
    pub fn listen(events: &Exchange) -> Subscription {
        let filter = Filter::parse_all(&[r#"topic=="/tasks/exit""#]).expect("a valid filter");
        events.subscribe(filter)
    }

    /// Notes that a container was made or changed.
    pub fn note(&self, namespace: &Namespace, id: &str, labels: &Labels) {
        let name = (namespace.clone(), id.to_owned());
        let mut watched = self.watched();
        if !labels.contains_key(STATUS) {
            watched.remove(&name);
            return;
        }
        let at = Instant::now() + self.inner.interval;
        watched.entry(name).or_default().schedule(Due { at, cause: Cause::Settled });
        drop(watched);
        self.inner.changed.notify_one();
    }

    /// Notes that a container was deleted.
    pub fn forget(&self, namespace: &Namespace, id: &str) {
        self.watched().remove(&(namespace.clone(), id.to_owned()));
    }

    /// Watches until `stop`, and ends what is under way then.
    pub async fn run(self, stop: CancellationToken) {
        let mut heard = self.inner.heard.lock().await;
        let mut tick = tokio::time::interval(self.inner.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        let mut jobs = JoinSet::new();
        loop {
            let next = self.begin_due(&mut jobs);
            tokio::select! {
                event = heard.next() => match event {
                    Ok(envelope) => self.hear(&envelope),
                    Err(SubscriptionError::Ended) => break,
                    Err(SubscriptionError::TooSlow) => {
                        *heard = Self::listen(&self.inner.parts.events);
                        self.find().await;
                    }
                },
                Some(done) = jobs.join_next() => if let Ok((name, outcome)) = done {
                    self.settle(&name, outcome);
                },
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)),
                    if next.is_some() => {}
                () = self.inner.changed.notified() => {}
                _ = tick.tick() => self.look_at_all(),
                () = stop.cancelled() => break,
            }
        }
        while jobs.join_next().await.is_some() {}
    }

    /// Has every container looked at, after events were lost.
    async fn find(&self) {
        let parts = self.inner.parts.clone();
        let found = tokio::task::spawn_blocking(move || parts.labelled()).await;
        let found = match found.unwrap_or_else(|_| Ok(Vec::new())) {
            Ok(found) => found,
            Err(error) => {
                let error = sys::error::Chain(&error);
                tracing::error!(%error, "containers are not looked at for restarts");
                return;
            }
        };
        let due = Due { at: Instant::now(), cause: Cause::Look };
        let mut watched = self.watched();
        for name in found {
            watched.entry(name).or_default().due.get_or_insert(due);
        }
    }

    /// Begins what is due, as far as there is room, and tells when more will be. What finds no room
    /// is begun when a job ends.
    fn begin_due(&self, jobs: &mut JoinSet<(Name, Outcome)>) -> Option<Instant> {
        let now = Instant::now();
        let mut next = None;
        for (name, watch) in self.watched().iter_mut().filter(|(_, watch)| !watch.busy) {
            let Some(due) = watch.due else { continue };
            if due.at > now {
                next = Some(next.map_or(due.at, |next: Instant| next.min(due.at)));
            } else if jobs.len() < JOBS_MAX {
                watch.due = None;
                watch.busy = true;
                let (monitor, name, memory) = (self.clone(), name.clone(), watch.memory);
                jobs.spawn(async move {
                    let started = || monitor.note_start(&name);
                    let parts = &monitor.inner.parts;
                    let outcome = parts.look(&name, due.cause, memory, started).await;
                    (name, outcome)
                });
            }
        }
        next
    }

    /// Notes an exit.
    fn hear(&self, envelope: &Envelope) {
        let exit = envelope.event.as_ref().map(proto::any::unpack::<TaskExit>);
        let Some(Ok(Some(exit))) = exit else { return };
        let Ok(namespace) = envelope.namespace.parse() else { return };
        if exit.id != exit.container_id {
            return;
        }
        if let Some(watch) = self.watched().get_mut(&(namespace, exit.id)) {
            watch.note_exit(exit.exit_status, Instant::now());
        }
    }

    fn note_start(&self, name: &Name) {
        if let Some(watch) = self.watched().get_mut(name) {
            watch.started = Some(Instant::now());
        }
    }

    /// Decides from the outcome of a job when the container is looked at again.
    fn settle(&self, name: &Name, outcome: Outcome) {
        let now = Instant::now();
        let mut watched = self.watched();
        let Some(watch) = watched.get_mut(name) else { return };
        watch.busy = false;
        watch.memory.booting &= matches!(outcome, Outcome::Later);
        let (namespace, id) = name;
        match outcome {
            Outcome::Done => {}
            Outcome::Later => {
                watch.schedule(Due { at: now + self.inner.interval, cause: Cause::Settled });
            }
            Outcome::Failed(error) => {
                watch.note_failure(now);
                let error = sys::error::Chain(&error);
                let again = watch.delay();
                tracing::error!(%namespace, id, %error, ?again, "container could not be restarted");
            }
            // What was noted meanwhile is about another container of the name.
            Outcome::Unwatched if watch.due.is_none() => drop(watched.remove(name)),
            Outcome::Unwatched => {}
        }
    }

    /// Has everything looked at of which nothing is known to be to do.
    fn look_at_all(&self) {
        let due = Due { at: Instant::now(), cause: Cause::Look };
        for watch in self.watched().values_mut().filter(|watch| watch.due.is_none()) {
            watch.due = Some(due);
        }
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<Name, Watch>> {
        self.inner.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A container's record for tests.
#[cfg(test)]
pub(crate) fn sample(id: &str) -> crate::metadata::Container {
    use std::time::SystemTime;

    crate::metadata::Container {
        id: id.to_owned(),
        labels: Labels::new(),
        image: String::new(),
        runtime: crate::metadata::Runtime { name: "r".to_owned(), options: None },
        spec: Some(prost_types::Any::default()),
        snapshotter: String::new(),
        snapshot_key: String::new(),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
        extensions: Default::default(),
        sandbox: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays() {
        let now = Instant::now();
        let after = |seconds: f64| now + Duration::from_secs_f64(seconds);
        let mut watch = Watch::default();
        let mut delay = |started: Option<f64>, ended: f64| {
            watch.started = started.map(after);
            watch.note_exit(1, after(ended));
            (watch.due.expect("set").at - after(ended)).as_secs_f64()
        };
        assert_eq!(delay(None, 0.0), 0.1, "of a client's task");
        assert_eq!(delay(Some(1.0), 1.5), 0.2, "short");
        assert_eq!(delay(Some(2.0), 2.5), 0.4, "short again");
        for _ in 0..8 {
            delay(Some(3.0), 3.5);
        }
        assert_eq!(delay(Some(4.0), 4.5), 60.0, "the longest");
        for _ in 0..100 {
            delay(Some(3.0), 3.5);
        }
        assert_eq!(delay(Some(5.0), 15.0), 0.1, "a long life");
    }

    #[test]
    fn what_is_due_first_counts() {
        let now = Instant::now();
        let at = |seconds: u64, cause| Due { at: now + Duration::from_secs(seconds), cause };
        let (look, exit, settled) =
            (at(0, Cause::Look), at(1, Cause::Exit), at(10, Cause::Settled));
        let cases = [
            ("nothing set", None, settled, settled),
            ("exit before a change", Some(exit), settled, exit),
            ("change again", Some(settled), at(12, Cause::Settled), settled),
            ("look gives way", Some(look), settled, settled),
        ];
        for (case, set, new, want) in cases {
            let mut watch = Watch { due: set, ..Watch::default() };
            watch.schedule(new);
            assert_eq!(watch.due, Some(want), "{case}");
        }
    }
}
