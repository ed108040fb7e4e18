//! Starts a process in Linux namespaces that are new, or another's, or both.
//!
//! Joining changes the process that joins, so where there is something to join a helper does that
//! and makes the wanted process, as its own sibling: the runtime stays where it is and is the
//! parent all the same.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid},
    thread::{
        LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space,
        move_into_thread_name_spaces,
    },
};
use sys::{error::Chain, spawn::name_shortage};

use crate::{
    error::Error,
    init::{
        channel::{Channel, Message},
        clone::{Child, Request, Side, clone3},
    },
    spec::NamespaceKind,
};

/// The namespaces that a process joins.
#[derive(Debug)]
pub(crate) enum Join {
    /// None.
    Nothing,
    /// Those that the files show.
    Files(Vec<(NamespaceKind, OwnedFd)>),
    /// Those of another process, all at once; bits are `CLONE_NEW*`.
    Process(OwnedFd, u32),
}

/// The v2 cgroup in which a process is started.
#[derive(Default)]
pub(crate) struct Destination<'a> {
    /// Its directory; none is this process's own.
    pub(crate) directory: Option<BorrowedFd<'a>>,
    /// Finds another one, for when the first may have no processes because groups below it have
    /// controllers.
    pub(crate) otherwise: Option<&'a dyn Fn() -> Option<OwnedFd>>,
}

/// Starts a process that runs `body` and ends when that returns, and returns it with the
/// runtime's end of the channel.
///
/// A helper is started in the cgroup, too, and hands it on: once it has joined the container's
/// cgroup namespace, its own group is out of the namespace's sight, and then the kernel has none
/// but groups below it to move to (`nsdelegate`).
pub(crate) fn spawn(
    join: &Join,
    namespaces: u32,
    destination: &Destination<'_>,
    body: impl FnOnce(Channel),
) -> Result<(Child, Channel), Error> {
    let fail = |error: io::Error| Error::system("unable to start", "new process", error);
    let (ours, theirs) = Channel::pair().map_err(|error| fail(error.into()))?;
    if matches!(join, Join::Nothing) {
        return match clone_into(namespaces, destination).map_err(fail)? {
            Side::Parent(child) => Ok((child, ours)),
            Side::Child => {
                drop(ours);
                body(theirs);
                sys::execute::exit_now(1)
            }
        };
    }
    match clone_into(0, destination).map_err(fail)? {
        Side::Parent(helper) => {
            drop(theirs);
            let child = from_helper(&helper, &ours)?;
            Ok((child, ours))
        }
        Side::Child => {
            drop(ours);
            let request = Request { namespaces, cgroup: None, sibling: true };
            help(join, &request, theirs, body)
        }
    }
}

/// Clones into the cgroup, or into the other one.
fn clone_into(namespaces: u32, destination: &Destination<'_>) -> io::Result<Side> {
    let request = Request { namespaces, cgroup: destination.directory, sibling: false };
    match clone3(&request) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            let Some(other) = destination.otherwise.and_then(|find| find()) else {
                return Err(error);
            };
            clone3(&Request { cgroup: Some(other.as_fd()), ..request })
        }
        result => result,
    }
    .map_err(name_shortage)
}

/// The helper: joins, makes the process, says which it is, and ends.
fn help(join: &Join, request: &Request<'_>, channel: Channel, body: impl FnOnce(Channel)) -> ! {
    let side = enter(join).and_then(|()| {
        let side = clone3(request).map_err(name_shortage);
        side.map_err(|error| Error::system("unable to start", "new process", error))
    });
    let message = match side {
        Ok(Side::Child) => {
            body(channel);
            sys::execute::exit_now(1)
        }
        Ok(Side::Parent(child)) => Message::Created(child.pid),
        Err(error) => Message::Failed(Chain(&error).to_string()),
    };
    let _ = channel.send(&message);
    sys::execute::exit_now(0)
}

fn from_helper(helper: &Child, channel: &Channel) -> Result<Child, Error> {
    let fail = |error: rustix::io::Errno| Error::system("unable to start", "helper", error);
    // The process that it made has the channel too, and would keep it open after its death.
    let answered = has_answered(helper, channel).map_err(fail)?;
    let answer = if answered { channel.receive().map_err(fail)? } else { None };
    let helper = Pid::from_raw(helper.pid).ok_or_else(|| fail(rustix::io::Errno::SRCH))?;
    waitpid(Some(helper), WaitOptions::empty()).map_err(fail)?;
    match answer {
        Some(Message::Created(number)) => {
            let pid = Pid::from_raw(number).ok_or_else(|| fail(rustix::io::Errno::SRCH))?;
            // It is this process's child, so its number stays its own until it is waited for.
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(fail)?;
            Ok(Child { pid: number, pidfd })
        }
        Some(Message::Failed(text)) => Err(Error::Process(text)),
        _ => Err(Error::Process("helper process ended unexpectedly".to_owned())),
    }
}

/// Waits for the helper's message or its end; `false` when it has ended without a message.
fn has_answered(helper: &Child, channel: &Channel) -> Result<bool, rustix::io::Errno> {
    let look = |timeout: Option<&Timespec>| {
        let mut waiting =
            [PollFd::new(channel, PollFlags::IN), PollFd::new(&helper.pidfd, PollFlags::IN)];
        loop {
            match poll(&mut waiting, timeout) {
                Err(rustix::io::Errno::INTR) => {}
                result => return result.map(|_| !waiting[0].revents().is_empty()),
            }
        }
    };
    // Its message may have come just before its end was seen.
    Ok(look(None)? || look(Some(&Timespec::default()))?)
}

fn enter(join: &Join) -> Result<(), Error> {
    match join {
        Join::Nothing => Ok(()),
        Join::Process(pidfd, kinds) => {
            let kinds = ThreadNameSpaceType::from_bits_retain(*kinds);
            move_into_thread_name_spaces(pidfd.as_fd(), kinds)
                .map_err(|error| Error::system("setns", "of container's init", error))
        }
        Join::Files(files) => enter_files(files),
    }
}

/// Joins in an order that works: with the rights that this process has, all it may; then the user
/// namespace, and with the rights in that, the rest.
fn enter_files(files: &[(NamespaceKind, OwnedFd)]) -> Result<(), Error> {
    let fail = |kind: NamespaceKind, error| Error::system("setns", kind.name(), error);
    let (user, others): (Vec<_>, Vec<_>) =
        files.iter().partition(|(kind, _)| *kind == NamespaceKind::User);
    let mut later = Vec::new();
    for (kind, file) in others {
        match move_into_link_name_space(file.as_fd(), Some(link_kind(*kind))) {
            Ok(()) => {}
            Err(rustix::io::Errno::PERM) if !user.is_empty() => later.push((kind, file)),
            Err(error) => return Err(fail(*kind, error)),
        }
    }
    for (kind, file) in user.into_iter().map(|(kind, file)| (kind, file)).chain(later) {
        move_into_link_name_space(file.as_fd(), Some(link_kind(*kind)))
            .map_err(|error| fail(*kind, error))?;
    }
    Ok(())
}

fn link_kind(kind: NamespaceKind) -> LinkNameSpaceType {
    match kind {
        NamespaceKind::User => LinkNameSpaceType::User,
        NamespaceKind::Ipc => LinkNameSpaceType::InterProcessCommunication,
        NamespaceKind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        NamespaceKind::Net => LinkNameSpaceType::Network,
        NamespaceKind::Pid => LinkNameSpaceType::ProcessID,
        NamespaceKind::Mnt => LinkNameSpaceType::Mount,
        NamespaceKind::Cgroup => LinkNameSpaceType::ControlGroup,
        NamespaceKind::Time => LinkNameSpaceType::Time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A helper that ends without a word, as when it is killed.
    #[expect(clippy::zombie_processes, reason = "what is tested waits for it")]
    fn dead_helper() -> Child {
        let child = std::process::Command::new("true").spawn().expect("start true");
        let pid = i32::try_from(child.id()).expect("a number");
        let known = Pid::from_raw(pid).expect("a process ID");
        let pidfd = pidfd_open(known, PidfdFlags::empty()).expect("a descriptor");
        Child { pid, pidfd }
    }

    #[test]
    fn a_helper_that_ends() {
        // The other end stays open, as it does in the process that the helper has made.
        let (ours, theirs) = Channel::pair().expect("a channel");
        let error = from_helper(&dead_helper(), &ours).expect_err("it said nothing");
        assert!(error.to_string().contains("ended unexpectedly"), "{error}");
        theirs.send(&Message::Failed("because".to_owned())).expect("sent");
        let error = from_helper(&dead_helper(), &ours).expect_err("it said why");
        assert!(error.to_string().contains("because"), "{error}");
    }
}
