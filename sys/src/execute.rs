//! Replacing the program of this process.

#![expect(unsafe_code, reason = "execve takes arrays of pointers")]

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

/// A null-terminated array of C strings, as execve(2) wants it.
#[derive(Debug)]
pub struct Strings {
    pointers: Vec<*const libc::c_char>,
    /// Keeps alive what `pointers` point at.
    _strings: Vec<CString>,
}

impl Strings {
    /// Lays out `strings` for execve.
    pub fn new(strings: Vec<CString>) -> Self {
        let pointers =
            strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
        Self { pointers, _strings: strings }
    }
}

/// Runs the program at `path` in this process; returns only when that is not possible.
pub fn execve(path: &std::ffi::CStr, arguments: &Strings, environment: &Strings) -> io::Error {
    // SAFETY: `path` is a C string; both arrays end in a null pointer and their strings live in
    // the `Strings` that are borrowed here.
    unsafe {
        libc::execve(path.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr())
    };
    io::Error::last_os_error()
}

/// Runs the program that `file` refers to in this process; returns only when that is not possible.
pub fn execveat(file: BorrowedFd<'_>, arguments: &Strings, environment: &Strings) -> io::Error {
    // SAFETY: the path is a literal; both arrays end in a null pointer and their strings live in
    // the `Strings` that are borrowed here.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Ends this process at once: nothing is flushed, no destructor and no exit handler runs, as befits
/// a forked child that shares its parent's buffers.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit only ends the process.
    unsafe { libc::_exit(status) }
}
