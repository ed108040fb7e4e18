//! Tells when the kernel has killed a process of a container for want of memory.
//!
//! The kernel's notice and the exit of what it killed come by different ways, so the count is
//! looked at once more before the exit of init is told: `TaskOOM` comes before `TaskExit`.

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
            self.ooms.insert(number, Watched { id: id.to_owned(), watch, kills: 0 });
        }
    }

    /// Takes the news about a container's memory.
    pub(crate) fn oom(&mut self, number: u64) {
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
        self.oom(number);
        if let Some(watched) = self.ooms.remove(&number) {
            self.poller.remove(&watched.watch);
        }
    }
}
