//! What a child took, told when it is waited for.

#![expect(unsafe_code, reason = "wait4 has no safe wrapper with usage")]

use std::{
    io,
    mem::MaybeUninit,
    os::unix::process::ExitStatusExt,
    process::{Child, ExitStatus},
};

/// What a process and those of its children that it has waited for took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time on a processor, in microseconds.
    pub cpu_us: u64,
    /// The most memory that one of them had resident, in KiB.
    pub peak_kib: u64,
    /// Page faults for which nothing was read.
    pub faults: u64,
}

/// Waits for `child` to end. The times are exact to the microsecond, and not only to the tick.
///
/// # Errors
///
/// `ECHILD` when somebody else in this process has waited for it.
pub fn wait(child: Child) -> io::Result<(ExitStatus, Usage)> {
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to writable memory of the right types, which outlives the call.
        let waited = unsafe { libc::wait4(pid, &mut status, 0, usage.as_mut_ptr()) };
        if waited >= 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: all its fields are numbers, and it was zeroed before the kernel wrote to it.
    let usage = unsafe { usage.assume_init() };
    let microseconds = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
    let number = |value: libc::c_long| u64::try_from(value).unwrap_or(0);
    let usage = Usage {
        cpu_us: number(microseconds(usage.ru_utime) + microseconds(usage.ru_stime)),
        peak_kib: number(usage.ru_maxrss),
        faults: number(usage.ru_minflt),
    };
    Ok((ExitStatus::from_raw(status), usage))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_and_counts() {
        let child = std::process::Command::new("true").spawn().expect("start true");
        let (status, usage) = wait(child).expect("wait");
        assert!(status.success(), "{status}");
        assert!(usage.faults > 0 && usage.peak_kib > 0, "{usage:?}");
    }
}
