//! Waits for a process in the foreground, as if it were this one: signals that come here go there,
//! and its exit status becomes this process's.

use std::os::fd::AsFd as _;

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, WaitOptions, WaitStatus, set_child_subreaper, wait, waitpid},
};
use sys::signal::SignalFd;

use super::{Started, receive_master, relay::Relay};
use crate::{error::Error, init::clone::Child, log, notify::Notify};

/// What is set up before the process exists, so that no signal of its end or for it is lost.
pub struct Waiter {
    signals: SignalFd,
    subreaper: bool,
}

impl Waiter {
    /// Blocks all signals, to read them one by one, and with `subreaper` adopts what processes the
    /// container may leave behind.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when the kernel refuses.
    pub fn new(subreaper: bool) -> Result<Self, Error> {
        let signals = SignalFd::new(&forwarded())
            .map_err(|error| Error::system("open", "signalfd", error))?;
        if subreaper {
            set_child_subreaper(Pid::from_raw(1))
                .map_err(|error| Error::system("become", "subreaper", error))?;
        }
        Ok(Self { signals, subreaper })
    }

    /// Waits for the end of `process`, and returns its exit status as a shell would have it.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when the terminal cannot be set up.
    pub fn wait(&self, process: &Started) -> Result<i32, Error> {
        self.wait_and_notify(process, None)
    }

    /// The same, and hands on that the program is ready.
    pub(crate) fn wait_and_notify(
        &self,
        process: &Started,
        notify: Option<&Notify>,
    ) -> Result<i32, Error> {
        let mut notify = notify;
        let relay = match &process.terminal {
            None => None,
            Some(socket) => Some(Relay::new(receive_master(socket.as_fd())?)?),
        };
        loop {
            let mut waiting = vec![PollFd::new(&self.signals, PollFlags::IN)];
            if let Some(notify) = notify {
                waiting.push(PollFd::new(notify, PollFlags::IN));
            }
            if let Some(relay) = &relay {
                relay.add_to(&mut waiting);
            }
            match poll(&mut waiting, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::system("wait for", "process", error)),
            }
            let ready: Vec<PollFlags> = waiting.iter().map(PollFd::revents).collect();
            let (own, ready) = ready.split_at(1 + usize::from(notify.is_some()));
            if let (Some(socket), Some(events)) = (notify, own.get(1))
                && !events.is_empty()
                && pass_on(socket)
            {
                notify = None;
            }
            if let Some(relay) = &relay {
                relay.pass_on(ready);
            }
            if let Some(status) = self.handle_signals(&process.child, relay.as_ref())? {
                if let Some(relay) = relay {
                    relay.drain();
                }
                return Ok(status);
            }
        }
    }

    fn handle_signals(&self, child: &Child, relay: Option<&Relay>) -> Result<Option<i32>, Error> {
        let fail = |error| Error::system("read", "signals", error);
        while let Some(signal) = self.signals.take().map_err(fail)? {
            match signal {
                libc::SIGCHLD => {
                    if let Some(status) = self.reap(child) {
                        return Ok(Some(status));
                    }
                }
                libc::SIGWINCH => {
                    if let Some(relay) = relay {
                        relay.resize();
                    }
                }
                // A stopped runtime could not wait; and this one is of no use to a container.
                libc::SIGURG | libc::SIGTTOU | libc::SIGTTIN => {}
                signal => {
                    // It may have ended just now.
                    let _ = sys::pidfd::send_signal(child.pidfd.as_fd(), signal);
                }
            }
        }
        Ok(None)
    }

    /// Collects all children that have ended; returns the status if the process is among them.
    fn reap(&self, child: &Child) -> Option<i32> {
        // Not waitpid(0), which would leave out the container: it has a session of its own.
        let next = || match Pid::from_raw(child.pid).filter(|_| !self.subreaper) {
            Some(pid) => waitpid(Some(pid), WaitOptions::NOHANG),
            None => wait(WaitOptions::NOHANG),
        };
        let mut found = None;
        while let Ok(Some((pid, status))) = next() {
            if pid.as_raw_nonzero().get() == child.pid {
                found = exit_status(status);
            }
        }
        found
    }
}

/// All signals that can be blocked; 32 to 34 are the C library's own.
fn forwarded() -> Vec<i32> {
    (1..=64).filter(|signal| !matches!(*signal, libc::SIGKILL | libc::SIGSTOP | 32..=34)).collect()
}

fn exit_status(status: WaitStatus) -> Option<i32> {
    status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal))
}

/// Says how a process ended that should not have.
pub(super) fn describe_end(child: &Child) -> String {
    let status = Pid::from_raw(child.pid)
        .and_then(|pid| waitpid(Some(pid), WaitOptions::empty()).ok().flatten());
    match status {
        Some((_, status)) => match (status.exit_status(), status.terminating_signal()) {
            (_, Some(libc::SIGKILL)) => {
                "container init was killed (memory limit too low?)".to_owned()
            }
            (_, Some(signal)) => format!("container process was ended by signal {signal}"),
            (Some(code), _) => format!("container process exited with status {code}"),
            _ => "container process ended unexpectedly".to_owned(),
        },
        None => "container process ended unexpectedly".to_owned(),
    }
}

/// Hands a message of the container on; says whether that was the last. A receiver that is gone
/// is no reason for the container to go, too.
fn pass_on(notify: &Notify) -> bool {
    // In the foreground it is this program that is watched.
    notify.pass_on(std::process::id().cast_signed()).unwrap_or_else(|error| {
        log::warn(&sys::error::Chain(&error).to_string());
        true
    })
}
