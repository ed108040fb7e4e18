//! The agent's side of seccomp notifications, seccomp_unotify(2): for tests of what gets a listener
//! to its agent.

#![expect(unsafe_code, reason = "a listener is read and written by ioctl")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// `SECCOMP_IOCTL_NOTIF_RECV` and `SECCOMP_IOCTL_NOTIF_SEND`.
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;

/// Waits for the next system call that the filter of `listener` asks about, and has it fail with
/// the error number `errno`.
///
/// # Errors
///
/// The process has ended, or `listener` is none.
pub fn refuse_next(listener: BorrowedFd<'_>, errno: i32) -> io::Result<()> {
    refuse(listener, receive(listener)?, errno)
}

/// Waits for the next system call that the filter of `listener` asks about; returns its number for
/// the answer.
///
/// # Errors
///
/// The process has ended, or `listener` is none.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: all-zero is the structure's empty value, which the kernel wants to see.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the request writes one structure of this type, which lives on this stack.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut call) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(call.id) }
}

/// Has the system call `id`, as [`receive`] numbers it, fail with the error number `errno`.
///
/// # Errors
///
/// The process has ended, or no longer waits for an answer.
pub fn refuse(listener: BorrowedFd<'_>, id: u64, errno: i32) -> io::Result<()> {
    let answer = libc::seccomp_notif_resp { id, val: 0, error: -errno, flags: 0 };
    // SAFETY: the request reads one structure of this type, which lives on this stack.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw const answer) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
