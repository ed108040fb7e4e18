//! A container that exists, and what can be done with it from outside.
//!
//! Its status is not stored but follows from facts:
//!
//! | init lives (pid and start time) | `exec.fifo` | frozen | status    |
//! |---------------------------------|-------------|--------|-----------|
//! | no                              |             |        | `stopped` |
//! | yes                             | yes         |        | `created` |
//! | yes                             | no          | yes    | `paused`  |
//! | yes                             | no          | no     | `running` |

use std::{fmt, io, os::fd::AsFd as _, os::fd::OwnedFd, path::Path, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open},
};

use crate::{
    cgroup::Cgroup,
    error::Error,
    hooks,
    id::ContainerId,
    intel_rdt::{Group, Resctrl},
    mount::left,
    proc,
    spec::IntelRdt,
    state::{Entry, Root, State},
};

/// How long `delete` waits for a killed container to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// What a container is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its init waits for `start`.
    Created,
    /// Its program runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its init has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// A container that exists.
#[derive(Debug)]
pub struct Container {
    pub(crate) entry: Entry,
    pub(crate) state: State,
    pub(crate) cgroup: Cgroup,
}

impl Container {
    /// Finds a container.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchContainer`] when the root has none with this id.
    pub fn load(root: &Root, id: &ContainerId) -> Result<Self, Error> {
        let entry = root.entry(id);
        let state = entry.load()?;
        let cgroup = Cgroup::load(state.cgroup_paths.clone());
        let cgroup = if state.config.systemd { cgroup.of_unit(state.rootless) } else { cgroup };
        Ok(Self { entry, state, cgroup })
    }

    /// What is left of a container whose record is missing or cannot be read, to be removed.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchContainer`] when nothing is.
    pub(crate) fn remains(root: &Root, id: &ContainerId) -> Result<Self, Error> {
        let entry = root.entry(id);
        let found = entry.remains().ok_or(Error::NoSuchContainer)?;
        Cgroup::load(found.planned).forget();
        let cgroup = Cgroup::load(found.state.cgroup_paths.clone());
        Ok(Self { entry, state: found.state, cgroup })
    }

    /// What was recorded.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// What it is doing.
    ///
    /// # Errors
    ///
    /// [`Error::Cgroup`] when the freezer cannot be read.
    pub fn status(&self) -> Result<Status, Error> {
        if self.init()?.is_none() {
            return Ok(Status::Stopped);
        }
        // One that was created can be paused, too, and resumed.
        let paused = match self.cgroup.exists().then(|| self.cgroup.is_frozen()) {
            Some(Ok(frozen)) => frozen,
            // It may have been deleted meanwhile, and then its init is gone, too.
            Some(Err(_)) if self.init()?.is_none() => return Ok(Status::Stopped),
            Some(Err(error)) => return Err(error.into()),
            None => false,
        };
        let is_created = || self.entry.fifo().symlink_metadata().is_ok();
        Ok(match paused {
            true => Status::Paused,
            false if is_created() => Status::Created,
            false => Status::Running,
        })
    }

    /// The descriptor of its init; `None` when it has ended.
    pub(crate) fn init(&self) -> Result<Option<OwnedFd>, Error> {
        let pid = self.state.init_process_pid;
        let Some(number) = Pid::from_raw(pid.max(0)) else { return Ok(None) };
        let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(Error::system("open", format!("process {pid}"), error)),
        };
        // The descriptor pins the process; whether it is the right one is asked after that.
        match start_time(pid) {
            Some((start, true)) if start == self.state.init_process_start => Ok(Some(pidfd)),
            _ => Ok(None),
        }
    }

    /// Sends a signal to its init. With no pid namespace of its own, `KILL` goes to all of its
    /// processes, for the kernel does not end them with the init.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] when the init has ended, so that nothing is left to get the signal.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        let shared = !self.has_own_pid_namespace();
        let all = signal == libc::SIGKILL && shared && self.cgroup.exists();
        if all && !self.cgroup.pids_left()?.is_empty() {
            self.cgroup.kill_all(Signal::KILL)?;
            return Ok(());
        }
        let not_running = || Error::Status("container not running".to_owned());
        let init = self.init()?.ok_or_else(not_running)?;
        match sys::pidfd::send_signal(init.as_fd(), signal) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Err(not_running()),
            Err(error) => return Err(Error::system("unable to signal", "init", error)),
        }
        if signal == libc::SIGKILL && self.cgroup.exists() {
            self.cgroup.thaw_if_frozen()?;
        }
        Ok(())
    }

    fn has_own_pid_namespace(&self) -> bool {
        let link = |path: &str| rustix::fs::readlink(path, Vec::new());
        let pid = self.state.init_process_pid;
        match (link("/proc/self/ns/pid"), link(&format!("/proc/{pid}/ns/pid"))) {
            (Ok(own), Ok(other)) => own != other,
            // It has ended: what its namespace had has ended with it, or is in the cgroup.
            _ => false,
        }
    }

    /// Lets the init run its program.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] when it does not wait for that. [`Error::Hook`] when a poststart hook
    /// fails; then the container has been killed.
    pub fn start(&self) -> Result<(), Error> {
        let refuse = |text: &str| Err(Error::Status(text.to_owned()));
        match self.status()? {
            Status::Created => {}
            Status::Stopped => return refuse("cannot start a container that has stopped"),
            Status::Running => return refuse("cannot start an already running container"),
            Status::Paused => return refuse("cannot start a container in the paused state"),
        }
        let path = self.entry.fifo();
        let fail = |error| Error::file("open", &path, error);
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fifo = match openat(CWD, &path, flags, Mode::empty()) {
            Ok(fifo) => fifo,
            Err(Errno::NXIO) => return refuse("cannot start a container that has stopped"),
            Err(error) => return Err(fail(error)),
        };
        // First the name, so that of two starts at once only one writes.
        match rustix::fs::unlink(&path) {
            Ok(()) => {}
            Err(Errno::NOENT) => return refuse("cannot start an already running container"),
            Err(error) => return Err(fail(error)),
        }
        rustix::io::write(&fifo, b"0").map_err(|error| Error::file("write", &path, error))?;
        let hooks = self.run_poststart_hooks();
        if hooks.is_err()
            && let Err(error) = self.kill()
        {
            crate::log::warn(&format!("kill container: {}", sys::error::Chain(&error)));
        }
        hooks
    }

    /// Its resctrl group, if it has one.
    pub(crate) fn resctrl_group(&self) -> Option<Group> {
        let state = &self.state;
        let path = state.intel_rdt_path.as_ref()?;
        let monitoring = state.intel_rdt_mon_path.as_deref();
        Some(Resctrl::find()?.recorded(path, monitoring, state.intel_rdt_owned))
    }

    /// Gives its resctrl group other shares, and records them.
    pub(crate) fn set_shares(&mut self, shares: IntelRdt) -> Result<(), Error> {
        if let Some(group) = self.resctrl_group() {
            group.set(&shares)?;
        }
        self.state.config.intel_rdt = Some(shares);
        self.entry.store(&self.state)
    }

    /// Runs the poststart hooks.
    pub(crate) fn run_poststart_hooks(&self) -> Result<(), Error> {
        let hooks = &self.state.config.hooks.poststart;
        if hooks.is_empty() {
            return Ok(());
        }
        let state = self.hook_state(Status::Running);
        hooks::run_all(
            "poststart",
            hooks,
            &state,
            hooks::Environment::Inherited,
            Path::new(self.state.bundle()),
        )?;
        Ok(())
    }

    fn hook_state(&self, status: Status) -> hooks::State {
        let alive = status != Status::Stopped;
        hooks::State {
            oci_version: self.state.config.version.clone(),
            id: self.state.id.clone(),
            status: if alive { "running" } else { "stopped" },
            pid: if alive { self.state.init_process_pid } else { 0 },
            bundle: self.state.bundle().to_owned(),
            annotations: self.state.annotations(),
        }
    }

    /// Ends all its processes, and waits until they have.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] when the init does not end in time.
    pub fn kill(&self) -> Result<(), Error> {
        let init = self.init()?;
        if let Some(init) = &init {
            // It may end by itself meanwhile.
            let _ = sys::pidfd::send_signal(init.as_fd(), libc::SIGKILL);
        }
        // What did not die with the init, and what is frozen.
        kill_all(&self.cgroup)?;
        if self.cgroup.is_frozen().unwrap_or(false) {
            self.cgroup.thaw()?;
        }
        let Some(init) = init else { return Ok(()) };
        if ends_within(&init, KILL_TIMEOUT)? {
            Ok(())
        } else {
            Err(Error::Status("container init still running".to_owned()))
        }
    }

    /// Removes all that is left of a container whose processes have ended, and runs its poststop
    /// hooks.
    ///
    /// # Errors
    ///
    /// [`Error::Cgroup`] when the cgroup still has processes; then the record stays, so that this
    /// can be tried again.
    pub fn destroy(self) -> Result<(), Error> {
        // In a shared pid namespace there may be processes that the init has left behind.
        let killed = if self.cgroup.remove_unused() { Ok(()) } else { kill_all(&self.cgroup) };
        self.cgroup.destroy()?;
        self.resctrl_group().map_or(Ok(()), |group| group.remove())?;
        if let Some(number) = self.state.host_mount {
            left::take_away(Path::new(&self.state.config.rootfs), number)?;
        }
        self.run_poststop_hooks();
        killed.and(self.entry.remove())
    }

    /// Runs the poststop hooks, all of them: a failure is logged, and not obeyed (runtime-spec
    /// `runtime.md`, "Lifecycle").
    fn run_poststop_hooks(&self) {
        let hooks = &self.state.config.hooks.poststop;
        if hooks.is_empty() {
            return;
        }
        let state = self.hook_state(Status::Stopped);
        let directory = Path::new(self.state.bundle());
        hooks::run_each("poststop", hooks, &state, directory, |error| {
            crate::log::warn(&format!("poststop hooks: {}", sys::error::Chain(&error)));
        });
    }
}

/// Kills what is in the groups, where there are any: somebody may have removed them, or they could
/// not be made in the first place.
pub(crate) fn kill_all(cgroup: &Cgroup) -> Result<(), Error> {
    if cgroup.exists() { Ok(cgroup.kill_all(Signal::KILL)?) } else { Ok(()) }
}

/// Waits for the end of a process.
fn ends_within(pidfd: &OwnedFd, timeout: Duration) -> Result<bool, Error> {
    let timeout = Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: 0 };
    let mut waiting = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut waiting, Some(&timeout))
        .map(|ended| ended > 0)
        .map_err(|error| Error::system("wait for", "init", io::Error::from(error)))
}

/// When a process started, and whether it still runs: a zombie does not.
pub(crate) fn start_time(pid: i32) -> Option<(u64, bool)> {
    let text = proc::read(CWD, &format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&text)
}

pub(crate) fn parse_stat(text: &str) -> Option<(u64, bool)> {
    // The name, in parentheses, may have anything in it.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((start, !matches!(state, "Z" | "X" | "x")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat() {
        let of = |name: &str, state: &str| {
            format!("7 ({name}) {state} 1 7 7 0 -1 4 5 6 7 8 9 10 11 12 20 0 1 0 12345 99 1")
        };
        let cases = [
            ("plain", of("sh", "S"), Some((12345, true))),
            ("name with parenthesis", of("a) R 1 (b", "R"), Some((12345, true))),
            ("zombie", of("sh", "Z"), Some((12345, false))),
            ("short", "7 (sh) S 1".to_owned(), None),
            ("empty", String::new(), None),
        ];
        for (case, text, want) in cases {
            assert_eq!(parse_stat(&text), want, "{case}");
        }
    }
}
