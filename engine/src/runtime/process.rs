//! Another process, held by a descriptor: its number cannot come to mean somebody else.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{Interest, unix::AsyncFd};

/// A process that is not a child of this one.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Takes hold of the process that has the number now.
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number = number.ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty())?;
        #[expect(deprecated, reason = "unsound for descriptors that are not owned; this one is")]
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
        Ok(Self { pid, pidfd })
    }

    /// Its number, which may be another's after its end.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the process has exited.
    pub(super) async fn exited(&self) {
        // An error can only mean that the runtime is shutting down.
        let _ = self.pidfd.readable().await;
    }

    /// Kills the process, if it still runs.
    pub(super) fn kill(&self) {
        let _ = pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn exit_is_noticed() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("spawned");
        let process = Process::open(child.id()).expect("runs");
        process.kill();
        process.exited().await;
        assert!(!child.wait().expect("reaped").success());
        assert!(Process::open(0).is_err());
    }
}
