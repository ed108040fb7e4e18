//! Collects the exit status of every process below the shim.
//!
//! # Why it exists
//!
//! The shim is a child subreaper: when the runtime exits after `create`, the kernel makes the shim
//! the parent of the container's init, and of whatever init leaves behind in a shared pid
//! namespace. An unreaped child stays a zombie and its pid stays taken, so something must wait for
//! processes that this program did not start and cannot name in advance.
//!
//! # Invariants
//!
//! 1. **One caller of `waitpid(-1)`.** It takes any child's status, so a second waiter anywhere
//!    (`Child::wait`) loses exits to it at random.
//! 2. **No exit is lost to a race.** A process may exit before its pid has been read from the
//!    runtime's pid file. While a runtime that starts processes is at work ([`Reaper::hold`]),
//!    exits that nobody waits for are kept, and [`Reaper::claim`] looks there first. Otherwise they
//!    are dropped: they are orphans.
//! 3. **A pid means what it meant.** A process is a child of the shim until it is reaped here, so
//!    its pid is not given to another one before the owner of the exit has been told.
//!
//! ```text
//!  SIGCHLD ──> reap all ──> (pid, status) ──> does someone wait for pid? ──yes──> told
//!                                                 │ no
//!                                                 └──> is a start at work? ──yes──> kept
//!                                                                          └──no──> dropped
//! ```
//!
//! SIGCHLD coalesces, so one signal means "at least one": reaping goes on until nothing is left.
//!
//! Sources: prctl(2) `PR_SET_CHILD_SUBREAPER`; wait(2); containerd `core/runtime/v2/README.md`,
//! "Events"; the races are those that containerd's `task/service.go` (`preStart`) guards against.

use std::{collections::HashMap, time::SystemTime};

use prost_types::Timestamp;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, WaitStatus, wait, waitid};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The exit status, or 128 and the number of the signal that killed it.
    pub status: u32,
    /// When the shim learned of it.
    pub at: Timestamp,
}

impl Exit {
    /// An exit that has just happened.
    pub(crate) fn now(status: u32) -> Self {
        Self { status, at: SystemTime::now().into() }
    }

    fn from_wait(status: WaitStatus) -> Self {
        let code = status.exit_status().unwrap_or_default();
        let killed = status.terminating_signal().map(|signal| 128 + signal);
        Self::now(u32::try_from(killed.unwrap_or(code)).unwrap_or(u32::MAX))
    }
}

/// Collects exits, and keeps those whose owner is not known yet.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    kept: HashMap<Pid, Exit>,
    holds: usize,
}

impl Reaper {
    /// Takes the status of one child that has ended, if there is one.
    pub(crate) fn reap(&self) -> Option<(Pid, Exit)> {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(found) => {
                    let (pid, status) = found?;
                    return Some((pid, Exit::from_wait(status)));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }

    /// Keeps exits that nobody waits for from now on, until [`release`](Self::release).
    pub(crate) fn hold(&mut self) {
        self.holds += 1;
    }

    /// Takes back one [`hold`](Self::hold); with the last one, what is kept is dropped.
    pub(crate) fn release(&mut self) {
        self.holds = self.holds.saturating_sub(1);
        if self.holds == 0 {
            self.kept.clear();
        }
    }

    /// Takes an exit for which nobody waits.
    pub(crate) fn orphan(&mut self, pid: Pid, exit: Exit) {
        if self.holds > 0 {
            self.kept.insert(pid, exit);
        }
    }

    /// Whether a process is a child of the shim, which was not reaped: its number is nobody else's then.
    pub(crate) fn is_child(pid: Pid) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(pid), look).is_ok()
    }

    /// The exit of a process that ended before its pid was known.
    pub(crate) fn claim(&mut self, pid: Pid) -> Option<Exit> {
        self.kept.remove(&pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children() {
        let mut child = std::process::Command::new("true").spawn().expect("spawned");
        let pid = Pid::from_child(&child);
        assert!(Reaper::is_child(pid), "whether it runs or has ended");
        child.wait().expect("reaped");
        assert!(!Reaper::is_child(pid), "its number may be another's");
        assert!(!Reaper::is_child(Pid::INIT));
    }

    #[test]
    fn keeps_exits_only_while_held() {
        let pid = Pid::from_raw(7).expect("positive");
        let exit = Exit::now(3);
        let mut reaper = Reaper::default();
        reaper.orphan(pid, exit);
        assert_eq!(reaper.claim(pid), None, "without a hold");
        reaper.hold();
        reaper.hold();
        reaper.orphan(pid, exit);
        reaper.release();
        assert_eq!(reaper.claim(pid), Some(exit), "with a hold");
        assert_eq!(reaper.claim(pid), None, "only once");
        reaper.orphan(pid, exit);
        reaper.release();
        assert_eq!(reaper.claim(pid), None, "after the last release");
    }
}
