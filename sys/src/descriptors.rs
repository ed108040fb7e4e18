//! The descriptor table of this process.

#![expect(unsafe_code, reason = "close_range acts on descriptors by number")]

use std::{
    io,
    os::fd::{BorrowedFd, RawFd},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Marks all descriptors from `first` on close-on-exec.
///
/// # Errors
///
/// `ENOSYS` before Linux 5.11.
pub fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: with this flag no descriptor is closed, so no owner loses one.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Raises this process's soft limit of open files to the hard limit, and returns the former one if
/// it was lower. Its children inherit the new one.
///
/// # Errors
///
/// The kernel refuses.
pub fn raise_limit() -> io::Result<Option<u64>> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match current {
        Some(soft) if maximum.is_none_or(|hard| soft < hard) => {
            setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
            Ok(Some(soft))
        }
        _ => Ok(None),
    }
}

/// Says whether this process has a descriptor with this number.
pub fn is_open(number: RawFd) -> bool {
    // SAFETY: F_GETFD touches no memory, and fails with EBADF where there is no descriptor.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

/// Says whether this process was started with a descriptor of this number, and hands it on to the
/// programs that it executes: those that it has opened itself close then.
pub fn is_inherited(number: RawFd) -> bool {
    // SAFETY: as in `is_open`.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

/// One of the standard descriptors; `None` when it is closed.
pub fn standard(number: RawFd) -> Option<BorrowedFd<'static>> {
    assert!((0..=2).contains(&number), "only 0, 1 and 2 stay open as long as the process");
    // SAFETY: the number was checked to be open, and no code here closes a standard descriptor.
    is_open(number).then(|| unsafe { BorrowedFd::borrow_raw(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_once() {
        let before = getrlimit(Resource::Nofile);
        let raised = raise_limit().expect("raising to the hard limit is always allowed");
        assert_eq!(raised, before.current.filter(|_| before.current != before.maximum));
        let after = getrlimit(Resource::Nofile);
        assert_eq!((after.current, after.maximum), (before.maximum, before.maximum));
        assert_eq!(raise_limit().expect("nothing to do"), None);
    }
}
