//! What a failed `create` takes away again.

use std::os::fd::AsFd as _;

use rustix::process::{Pid, WaitOptions, waitpid};
use sys::error::Chain;

use crate::{
    cgroup::{self, Cgroup},
    container,
    error::Error,
    init::clone::Child,
    intel_rdt::Group,
    log,
    mount::left,
    spec::resources::LinuxResources,
    state::Entry,
};

/// Takes away a half-made container when dropped: its process, cgroup, mounts on the host, and
/// directory.
pub(crate) struct Undo(Option<Parts>);

struct Parts {
    entry: Entry,
    cgroup: Cgroup,
    /// Whether the cgroup is this container's. Before that it may be another's with the same path,
    /// whose processes are nobody's to kill.
    owns_cgroup: bool,
    process: Option<Child>,
    group: Option<Group>,
    /// The root filesystem, where the container mounts on the host.
    host_mounts: Option<left::Before>,
}

impl Undo {
    /// Guards a container's directory, which exists; its cgroup is where it is going to be.
    pub(crate) fn new(entry: Entry, cgroup: Cgroup) -> Self {
        let parts = Parts {
            entry,
            cgroup,
            owns_cgroup: false,
            process: None,
            group: None,
            host_mounts: None,
        };
        Self(Some(parts))
    }

    /// Guards the host's mounts, too.
    pub(super) fn watch_mounts(&mut self, before: Option<left::Before>) {
        if let Some(parts) = &mut self.0 {
            parts.host_mounts = before;
        }
    }

    /// The mount on the host that the container has made, if it has.
    pub(super) fn host_mount(&self) -> Option<u64> {
        self.parts().host_mounts.as_ref()?.made()
    }

    /// Makes the cgroup, and guards it from then on. What `delete` needs to find it after a crash is
    /// on record before.
    pub(crate) fn make_cgroup(
        &mut self,
        resources: Option<&LinuxResources>,
        owner: Option<u32>,
    ) -> Result<(), Error> {
        let Some(parts) = &mut self.0 else { return Ok(()) };
        parts.entry.plan_cgroups(&parts.cgroup.paths())?;
        parts.cgroup.create(resources)?;
        if parts.cgroup.begins_with_process() {
            return Ok(());
        }
        parts.owns_cgroup = true;
        parts.cgroup.give_to(owner)?;
        parts.entry.own_cgroups()
    }

    /// Has systemd make the cgroup for the process `pid`, if it is systemd's to make.
    pub(crate) fn start_cgroup(
        &mut self,
        pid: i32,
        resources: Option<&LinuxResources>,
        owner: Option<u32>,
    ) -> Result<(), Error> {
        let Some(parts) = self.0.as_mut().filter(|parts| parts.cgroup.begins_with_process()) else {
            return Ok(());
        };
        let started = parts.cgroup.start(pid.cast_unsigned(), resources);
        // A unit that did not start may be another's with the same name.
        let absent = |error: &cgroup::Error| {
            matches!(error, cgroup::Error::Unit { .. } | cgroup::Error::Systemd(_))
        };
        parts.owns_cgroup = !started.as_ref().is_err_and(absent);
        started?;
        parts.cgroup.give_to(owner)?;
        parts.entry.own_cgroups()
    }

    fn parts(&self) -> &Parts {
        self.0.as_ref().expect("only disarm, which consumes the guard, takes the parts")
    }

    /// The cgroup.
    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.parts().cgroup
    }

    /// Guards the process, too.
    pub(crate) fn add_process(&mut self, process: Child) {
        if let Some(parts) = &mut self.0 {
            parts.process = Some(process);
        }
    }

    /// Moves the process to its resctrl group, and guards the group if it was made for this.
    pub(super) fn join_group(&mut self, group: Group) -> Result<&Group, Error> {
        let parts = self.0.as_mut().expect("only disarm, which consumes the guard, takes it");
        let pid = parts.process.as_ref().map_or(0, |process| process.pid);
        let group = parts.group.insert(group);
        group.join(pid)?;
        Ok(group)
    }

    /// The process, once there is one.
    pub(crate) fn process(&self) -> Option<&Child> {
        self.parts().process.as_ref()
    }

    /// Lets everything be.
    pub(crate) fn disarm(mut self) -> Option<(Cgroup, Child)> {
        let parts = self.0.take()?;
        parts.process.map(|process| (parts.cgroup, process))
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let Some(parts) = self.0.take() else { return };
        if let Some(process) = &parts.process {
            // It may have ended by itself, which may be why this is.
            let _ = sys::pidfd::send_signal(process.pidfd.as_fd(), libc::SIGKILL);
        }
        // Logged, not returned: the caller has an error already, which is what matters.
        let warn = |what: &str, error: &(dyn std::error::Error + 'static)| {
            log::warn(&format!("clean up {what}: {}", Chain(error)));
        };
        if parts.owns_cgroup
            && let Err(error) = container::kill_all(&parts.cgroup)
        {
            warn("processes", &error);
        }
        if let Some(pid) = parts.process.as_ref().and_then(|process| Pid::from_raw(process.pid)) {
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
        if parts.owns_cgroup
            && let Err(error) = parts.cgroup.destroy()
        {
            warn("cgroup", &error);
        }
        if let Some(Err(error)) = parts.host_mounts.as_ref().map(left::Before::restore) {
            warn("mounts", &error);
        }
        if let Some(Err(error)) = parts.group.as_ref().map(Group::remove) {
            warn("resctrl group", &error);
        }
        if let Err(error) = parts.entry.remove() {
            warn("directory", &error);
        }
    }
}
