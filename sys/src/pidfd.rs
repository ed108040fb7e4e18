//! Signals by process descriptor, also those that have no name.

#![expect(unsafe_code, reason = "rustix sends named signals only")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Sends signal number `signal` to the process; 0 only checks that it could be sent.
///
/// # Errors
///
/// `ESRCH` when the process has ended and was reaped, `EINVAL` for a number that is no signal.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: pidfd_send_signal reads no memory when `info` is null.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
