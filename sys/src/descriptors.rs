//! The descriptor table of this process.

#![expect(unsafe_code, reason = "close_range acts on descriptors by number")]

use std::{
    io,
    os::fd::{BorrowedFd, RawFd},
};

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
