//! What a child process does between fork and exec.

#![expect(unsafe_code, reason = "code between fork and exec may only call what is safe there")]

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Additions to [`Command`] that std does not have.
pub trait CommandChild {
    /// Has the kernel send `signal` to the child when the thread that starts it ends.
    ///
    /// The child dies at once when that happened before the request took effect.
    fn parent_death_signal(&mut self, signal: i32) -> &mut Self;

    /// Gives `fds` to the child as descriptors 3, 4, 5 and so on, and nothing behind them, not
    /// even what whoever started this process has left open; this process keeps none.
    fn pass_fds(&mut self, fds: Vec<OwnedFd>) -> &mut Self;

    /// Makes the child the leader of a new session, which has no terminal.
    fn new_session(&mut self) -> &mut Self;

    /// Gives the child `soft` as its soft limit of open files, or the hard limit if that is lower.
    fn open_files_limit(&mut self, soft: u64) -> &mut Self;

    /// Lets all signals through to the child, which would keep those that this thread blocks.
    fn unblock_signals(&mut self) -> &mut Self;
}

/// Says what has run out when no process could be started: the kernel's own word for it is only
/// that it may work later. Other errors stay as they are.
pub fn name_shortage(error: io::Error) -> io::Error {
    if error.raw_os_error() != Some(libc::EAGAIN) {
        return error;
    }
    io::Error::new(error.kind(), format!("the limit of processes is reached: {error}"))
}

impl CommandChild for Command {
    fn parent_death_signal(&mut self, signal: i32) -> &mut Self {
        let parent = rustix::process::getpid();
        let in_child = move || {
            let number = libc::c_ulong::try_from(signal).map_err(io::Error::other)?;
            // SAFETY: PR_SET_PDEATHSIG takes one number, which the kernel checks.
            if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, number) } != 0 {
                return Err(io::Error::last_os_error());
            }
            if rustix::process::getppid() != Some(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        };
        // SAFETY: the closure makes two system calls and does not allocate unless it fails.
        unsafe { self.pre_exec(in_child) }
    }

    fn pass_fds(&mut self, fds: Vec<OwnedFd>) -> &mut Self {
        let mut moved: Vec<RawFd> = Vec::with_capacity(fds.len());
        let occupied = occupy_below(FIRST_PASSED + fds.len() as RawFd, &fds);
        let in_child = move || {
            let _held_until_exec = &occupied;
            // First out of the way of the targets, then into place without close-on-exec.
            moved.clear();
            for fd in &fds {
                let above = FIRST_PASSED + fds.len() as RawFd;
                // SAFETY: `fd` is open: the closure owns it.
                let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) };
                if copy < 0 {
                    return Err(io::Error::last_os_error());
                }
                moved.push(copy);
            }
            for (target, &copy) in (FIRST_PASSED..).zip(&moved) {
                // SAFETY: `copy` was opened by the loop above; what `target` held before is
                // of no use after exec.
                if unsafe { libc::dup2(copy, target) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            close_others_on_exec(FIRST_PASSED + fds.len() as RawFd);
            Ok(())
        };
        // SAFETY: the closure makes system calls; `moved` has the room that it needs.
        unsafe { self.pre_exec(in_child) }
    }

    fn new_session(&mut self) -> &mut Self {
        // SAFETY: the closure makes one system call.
        unsafe { self.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from)) }
    }

    fn open_files_limit(&mut self, soft: u64) -> &mut Self {
        let in_child = move || {
            let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
            let current = Some(maximum.map_or(soft, |hard| hard.min(soft)));
            setrlimit(Resource::Nofile, Rlimit { current, maximum }).map_err(io::Error::from)
        };
        // SAFETY: the closure makes two system calls and does not allocate.
        unsafe { self.pre_exec(in_child) }
    }

    fn unblock_signals(&mut self) -> &mut Self {
        let in_child = || {
            crate::signal::unblock_all();
            Ok(())
        };
        // SAFETY: the closure makes one system call and does not allocate.
        unsafe { self.pre_exec(in_child) }
    }
}

/// Makes every descriptor from `first` on close-on-exec, where the kernel can (5.11).
fn close_others_on_exec(first: RawFd) {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: close_range takes three numbers; with this flag it closes nothing now. A kernel
    // that lacks it says so, and what was left open stays open, as without this call.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) };
}

/// Opens every free descriptor from [`FIRST_PASSED`] up to `end`.
///
/// std reports a failed exec through a pipe of its own; this keeps the pipe off the numbers that
/// the child overwrites.
fn occupy_below(end: RawFd, fds: &[OwnedFd]) -> Vec<OwnedFd> {
    let mut occupied = Vec::new();
    while let Some(Ok(copy)) = fds.first().map(OwnedFd::try_clone) {
        if copy.as_raw_fd() >= end {
            break;
        }
        occupied.push(copy);
    }
    occupied
}

/// Takes the descriptor that the parent passed as number `fd`, for good.
///
/// It is close-on-exec afterwards.
///
/// # Errors
///
/// No such descriptor is open, or it is one of the standard three.
///
/// # Panics
///
/// Never; but two callers for one number would close each other's descriptor, so a program calls
/// this once per number, when it starts.
pub fn take_passed_fd(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < FIRST_PASSED {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: fcntl checks the descriptor.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (fcntl succeeded), and by the contract above the caller is
    // the only one that takes it.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })
}

/// The number of the first descriptor after the standard three.
pub const FIRST_PASSED: RawFd = 3;

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        process::Stdio,
    };

    use super::*;

    #[test]
    fn passes_descriptors_in_order() {
        let (mut first, first_child) = io::pipe().expect("pipe");
        let (mut second, second_child) = io::pipe().expect("pipe");
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "echo one >&3; echo two >&4; test ! -e /proc/self/fd/5"])
            .pass_fds(vec![first_child.into(), second_child.into()]);
        let mut child = command.spawn().expect("spawn");
        drop(command);
        assert!(child.wait().expect("wait").success());
        let mut text = String::new();
        first.read_to_string(&mut text).expect("read");
        second.read_to_string(&mut text).expect("read");
        assert_eq!(text, "one\ntwo\n");
    }

    #[test]
    fn shortages_have_names() {
        let cases =
            [(libc::EAGAIN, Some("the limit of processes is reached")), (libc::ENOENT, None)];
        for (errno, want) in cases {
            let plain = io::Error::from_raw_os_error(errno);
            let (kind, text) = (plain.kind(), plain.to_string());
            let named = name_shortage(plain);
            assert_eq!(named.kind(), kind, "{text}");
            let want = want.map_or(text.clone(), |name| format!("{name}: {text}"));
            assert_eq!(named.to_string(), want, "{text}");
        }
    }

    #[test]
    fn limit_of_open_files() {
        let mut command = Command::new("/bin/sh");
        let output = command.args(["-c", "ulimit -Sn"]).open_files_limit(77).output();
        let output = output.expect("runs");
        assert_eq!((output.status.success(), output.stdout.as_slice()), (true, &b"77\n"[..]));
    }

    #[test]
    fn dies_with_its_parent() {
        let (mut read, write) = io::pipe().expect("pipe");
        let starter = std::thread::spawn(move || {
            let mut command = Command::new("/bin/sleep");
            command.arg("1000").stdout(Stdio::from(write)).parent_death_signal(libc::SIGKILL);
            command.spawn().expect("spawn")
        });
        let mut child = starter.join().expect("join");
        let mut nothing = Vec::new();
        read.read_to_end(&mut nothing).expect("the end comes with the child's death");
        assert!(!child.wait().expect("wait").success());
        io::stdout().flush().expect("flush");
    }
}
