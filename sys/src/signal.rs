//! Signals as something to read: a blocked set and a descriptor that delivers it.

#![expect(unsafe_code, reason = "signalfd has no safe wrapper")]

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// Signals that are blocked for this thread and read from a descriptor instead.
///
/// The descriptor is non-blocking. Signals coalesce: one that is read means "at least one". The
/// signals stay blocked when the value is dropped. A child that `std::process` starts begins
/// with an empty mask.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks `signals` for the calling thread and opens a descriptor for them.
    ///
    /// # Errors
    ///
    /// A number is not a signal, or the kernel has no descriptor left.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let set = signal_set(signals)?;
        // SAFETY: `set` was initialised by sigemptyset in `signal_set`; no old mask is asked for.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: -1 asks for a new descriptor, and `set` is initialised.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd has just returned `fd`, and nothing else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes the next signal that is pending, if one is.
    ///
    /// # Errors
    ///
    /// The kernel refused the read.
    pub fn take(&self) -> io::Result<Option<i32>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let len = size_of::<libc::signalfd_siginfo>();
        // SAFETY: `info` is writable for `len` bytes.
        let read = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), len) };
        if read < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        // SAFETY: signalfd(2) delivers whole records, so all of `info` is written.
        let info = unsafe { info.assume_init() };
        Ok(i32::try_from(info.ssi_signo).ok())
    }
}

impl std::os::fd::AsFd for SignalFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends a signal by its number, real-time signals included.
///
/// # Errors
///
/// `INVAL`: no such signal. `SRCH`: no such process. `PERM`: not allowed.
pub fn send(pid: rustix::process::Pid, signal: u32) -> rustix::io::Result<()> {
    let number = i32::try_from(signal).map_err(|_| rustix::io::Errno::INVAL)?;
    // SAFETY: kill takes two numbers, which the kernel checks.
    if unsafe { libc::kill(pid.as_raw_nonzero().get(), number) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))
}

/// Lets all signals through to this thread.
pub fn unblock_all() {
    let set = signal_set(&[]).expect("no number to refuse");
    // SAFETY: `set` was initialised by `signal_set`; no old mask is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) };
}

/// Has a program begin with no signal blocked, whatever this thread has blocked.
pub fn unblock_all_for(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt as _;
    let unblock = || {
        unblock_all();
        Ok(())
    };
    // SAFETY: between fork and exec this makes one system call and touches nothing of the parent's.
    unsafe { command.pre_exec(unblock) };
}

/// Has each of `signals` end this process with status 128 and its number, as the default would.
///
/// The first process of a pid namespace needs this: the kernel keeps from it all signals but
/// `KILL` whose disposition is the default.
pub fn end_on(signals: &[i32]) {
    extern "C" fn end(signal: libc::c_int) {
        // SAFETY: _exit may be called in a handler, and takes any number.
        unsafe { libc::_exit(128 + signal) }
    }
    for &signal in signals {
        // SAFETY: `end` has the type of a handler, and calls only what signal-safety(7) lists.
        unsafe { libc::signal(signal, end as *const () as libc::sighandler_t) };
    }
}

/// Gives all signals their default disposition, for a program that is about to be run: it would
/// keep those that are ignored.
///
/// This goes past the C library, which keeps some signals for itself; it must not be used by a
/// program that goes on and has threads.
pub fn set_all_default() {
    const LAST: libc::c_long = 64;
    const SET_SIZE: usize = 8;
    // The kernel's structure: SIG_DFL is 0, with no flags, no restorer and an empty mask.
    let action = [0_usize; 4];
    for signal in 1..=LAST {
        // SAFETY: the kernel reads 32 bytes, which is the size of `action`, and writes no old
        // one. It refuses KILL and STOP, which are always at their default.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                action.as_ptr(),
                std::ptr::null_mut::<usize>(),
                SET_SIZE,
            )
        };
    }
}

fn signal_set(signals: &[i32]) -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `set` is writable and of the type that sigemptyset initialises.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: sigemptyset has initialised it.
    let mut set = unsafe { set.assume_init() };
    for &signal in signals {
        // SAFETY: `set` is initialised; sigaddset checks the number.
        if unsafe { libc::sigaddset(&mut set, signal) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_is_pending() {
        let signals = SignalFd::new(&[libc::SIGUSR1]).expect("signalfd");
        assert_eq!(signals.take().expect("read"), None, "nothing pending");
        // SAFETY: raise has no precondition; the signal is blocked for this thread.
        unsafe { libc::raise(libc::SIGUSR1) };
        assert_eq!(signals.take().expect("read"), Some(libc::SIGUSR1), "one pending");
    }

    #[test]
    fn refuses_what_is_no_signal() {
        assert!(SignalFd::new(&[0]).is_err());
    }
}
