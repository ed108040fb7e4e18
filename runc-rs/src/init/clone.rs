//! Process creation by clone3(2).

#![expect(unsafe_code, reason = "clone3 returns twice, which no safe function does")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// What the new process does not share with this one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Request<'fd> {
    /// `CLONE_NEW*` bits.
    pub(crate) namespaces: u32,
    /// The v2 cgroup to start in; none is this process's own.
    pub(crate) cgroup: Option<BorrowedFd<'fd>>,
    /// Whether the new process becomes a child of this process's parent.
    pub(crate) sibling: bool,
}

/// Which of the two processes this is.
#[derive(Debug)]
pub(crate) enum Side {
    Parent(Child),
    Child,
}

/// A process that was created.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

/// Closes every descriptor but the standard ones, those up to `preserved` after them, and `kept`:
/// whatever else the runtime has open, now or in a later version of it, is none of the container's.
///
/// For a new process only, which goes on in `body` and never comes back to who owned the others.
///
/// # Errors
///
/// Those of close_range(2).
pub(crate) fn keep_only(preserved: i32, kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    let mut first = 3 + preserved;
    for fd in kept.into_iter().map(Some).chain([None]) {
        let last = fd.map_or(libc::c_uint::MAX, |fd| (fd - 1).max(0).cast_unsigned());
        if first.cast_unsigned() <= last {
            // SAFETY: the call touches no memory. The owners of what it closes are in frames below
            // this one, to which this process, a copy that ends in `exit_now`, does not return.
            let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        first = first.max(fd.map_or(first, |fd| fd + 1));
    }
    Ok(())
}

/// Creates a process that continues here, with a copy of this one's memory.
///
/// The program must have one thread, as this one's have: then the copy is whole, locks included,
/// and the child may go on as if nothing had happened.
///
/// # Errors
///
/// Those of clone3(2).
pub(crate) fn clone3(request: &Request<'_>) -> io::Result<Side> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    let mut flags = u64::from(request.namespaces) | libc::CLONE_PIDFD as u64;
    if request.cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    if request.sibling {
        flags |= libc::CLONE_PARENT as u64;
    }
    // SAFETY: all-zero is the structure's empty value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    arguments.pidfd = &raw mut pidfd as u64;
    // With CLONE_PARENT the new process signals what this one does.
    arguments.exit_signal = if request.sibling { 0 } else { libc::SIGCHLD as u64 };
    arguments.cgroup = request.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64);
    // SAFETY: the structure is whole and of the size that is passed; without CLONE_VM the child
    // runs on a copy of this stack, so returning in both processes is sound; the process has one
    // thread (no crate that this program links starts one), so no lock is held by a thread that
    // the child lacks.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>())
    };
    match pid {
        0 => Ok(Side::Child),
        pid if pid > 0 => {
            // SAFETY: clone3 has just stored a new descriptor, which nobody else knows.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Side::Parent(Child { pid: pid as i32, pidfd }))
        }
        _ => Err(io::Error::last_os_error()),
    }
}
