//! Tells when the kernel has killed a process of a container for want of memory.
//!
//! The kernel's notice and the exit of what it killed come by different ways, so the count is
//! looked at once more before the exit of init is told: `TaskOOM` comes before `TaskExit`. On cgroup
//! v1 the notice even comes before the kill is counted, and never again for that one, so a notice
//! is followed by a few more looks, further and further apart ([`Recheck`]).

use std::time::{Duration, Instant};

use proto::containerd::events::TaskOom;
use runc_rs::cgroup::{Cgroup, OomWatch};

use crate::{
    metrics,
    poller::{Interest, Token},
    shim::Shim,
};

/// A container's memory, watched.
#[derive(Debug)]
pub(crate) struct Watched {
    id: String,
    watch: OomWatch,
    kills: u64,
    recheck: Option<Recheck>,
}

/// The next look at a count that may rise late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recheck {
    pub(crate) due: Instant,
    delay: Duration,
}

impl Recheck {
    const DELAY_MIN: Duration = Duration::from_millis(5);
    /// What takes longer is told with the next kill, or before the exit of init.
    const DELAY_MAX: Duration = Duration::from_secs(3);

    fn first(now: Instant) -> Self {
        Self { due: now + Self::DELAY_MIN, delay: Self::DELAY_MIN }
    }

    fn next(self, now: Instant) -> Option<Self> {
        let delay = self.delay * 2;
        (delay <= Self::DELAY_MAX).then(|| Self { due: now + delay, delay })
    }
}

impl Watched {
    /// When to look again though nothing happens.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.recheck.map(|recheck| recheck.due)
    }
}

impl Shim {
    /// Finds the control groups of a container that has just been created, and watches them.
    pub(super) fn watch_oom(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(pid) = container.init.pid else { return };
        match metrics::paths_of(pid) {
            Ok(paths) => container.cgroups = paths,
            Err(error) => return self.log.warn(&format!("find the cgroup of {id}: {error}")),
        }
        let watch = match Cgroup::load(container.cgroups.clone()).oom_watch() {
            Ok(watch) => watch,
            Err(error) => {
                let chain = sys::error::Chain(&error);
                return self.log.debug(&format!("watch the memory of {id}: {chain}"));
            }
        };
        let number = self.poller.number();
        if self.poller.add(&watch, Token::Oom(number), Interest::Read).is_ok() {
            self.ooms.insert(number, Watched { id: id.to_owned(), watch, kills: 0, recheck: None });
        }
    }

    /// Takes the news about a container's memory.
    pub(crate) fn oom(&mut self, number: u64) {
        self.look(number);
        let Some(watched) = self.ooms.get_mut(&number) else { return };
        // Also where there is a kill: it may be an earlier notice's.
        watched.recheck = watched.watch.counts_late().then(|| Recheck::first(Instant::now()));
    }

    /// Looks again where the kernel may have counted late.
    pub(crate) fn recheck_ooms(&mut self, now: Instant) {
        let due = |watched: &Watched| watched.due().is_some_and(|due| due <= now);
        let numbers: Vec<u64> = self
            .ooms
            .iter()
            .filter(|(_, watched)| due(watched))
            .map(|(&number, _)| number)
            .collect();
        for number in numbers {
            self.look(number);
            if let Some(watched) = self.ooms.get_mut(&number) {
                watched.recheck = watched.recheck.and_then(|recheck| recheck.next(now));
            }
        }
    }

    /// Tells of kills that were not told.
    fn look(&mut self, number: u64) {
        let Some(watched) = self.ooms.get_mut(&number) else { return };
        match watched.watch.kills() {
            Ok(Some(kills)) if kills > watched.kills => {
                watched.kills = kills;
                let event = TaskOom { container_id: watched.id.clone() };
                self.publisher.publish("/tasks/oom", &event, &self.poller);
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => {
                self.poller.remove(&watched.watch);
                self.ooms.remove(&number);
            }
        }
    }

    /// Looks at a container's memory for the last time.
    pub(super) fn unwatch_oom(&mut self, id: &str) {
        let found = self.ooms.iter().find(|(_, watched)| watched.id == id);
        let Some(number) = found.map(|(&number, _)| number) else { return };
        self.look(number);
        if let Some(watched) = self.ooms.remove(&number) {
            self.poller.remove(&watched.watch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_few_and_come_to_an_end() {
        let begin = Instant::now();
        let mut recheck = Some(Recheck::first(begin));
        let mut dues = Vec::new();
        while let Some(current) = recheck {
            assert!(dues.len() < 100, "there is an end");
            dues.push((current.due - begin).as_millis());
            recheck = current.next(current.due);
        }
        assert_eq!(dues, [5, 15, 35, 75, 155, 315, 635, 1275, 2555, 5115]);
    }
}
