//! Other processes, stopped at each of their system calls: ptrace(2), for what tests do to programs.
//!
//! A process is seized, not attached to: it is not stopped by that, and signals reach it as ever.
//! When the tracer ends, whatever it traces runs on by itself.

#![expect(unsafe_code, reason = "ptrace and wait4 for traced threads have no safe wrapper")]

use std::{io, mem::MaybeUninit, ptr};

/// Which new processes of a traced one are traced too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// None.
    Nothing,
    /// Its threads.
    Threads,
    /// Its children, and theirs.
    Children,
}

/// What a traced process came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is about to make a system call.
    Entry {
        /// Which one, as the kernel numbers it.
        number: u64,
        /// Its arguments.
        arguments: [u64; 6],
    },
    /// It is to get a signal, which [`proceed`] has to hand on.
    Signal(i32),
    /// It is stopped, as by `SIGSTOP`, and stays so until it is told otherwise: [`listen`].
    Stopped,
    /// Something else, after which it only has to [`proceed`].
    Other,
    /// It has ended.
    Gone,
}

/// Begins to trace the thread `pid`, which goes on running until its next system call.
///
/// # Errors
///
/// `ESRCH` when there is none, `EPERM` when it is traced already.
pub fn seize(pid: i32, follow: Follow) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, pid, 0, options(follow))?;
    request(libc::PTRACE_INTERRUPT, pid, 0, 0)
}

/// Changes which new processes of a stopped one are traced.
///
/// # Errors
///
/// `ESRCH` when it is not stopped, or gone.
pub fn follow(pid: i32, follow: Follow) -> io::Result<()> {
    request(libc::PTRACE_SETOPTIONS, pid, 0, options(follow))
}

/// Lets a stopped process run to its next stop, with `signal` unless that is 0.
///
/// # Errors
///
/// `ESRCH` when it is not stopped, or gone.
pub fn proceed(pid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, pid, 0, libc::c_long::from(signal))
}

/// Leaves a process stopped, and tells of what happens to it.
///
/// # Errors
///
/// `ESRCH` when it is not stopped, or gone.
pub fn listen(pid: i32) -> io::Result<()> {
    request(libc::PTRACE_LISTEN, pid, 0, 0)
}

/// Traces a stopped process no longer.
///
/// # Errors
///
/// `ESRCH` when it is not stopped, or gone.
pub fn detach(pid: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, pid, 0, 0)
}

/// Waits until a process that this thread traces comes to something.
///
/// # Errors
///
/// `ECHILD` when none is traced.
pub fn wait() -> io::Result<(i32, Change)> {
    let mut status = 0;
    // SAFETY: the status is writable memory of the right type; usage may be null.
    let pid =
        unsafe { libc::wait4(-1, &mut status, libc::__WALL | libc::__WNOTHREAD, ptr::null_mut()) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if !libc::WIFSTOPPED(status) {
        return Ok((pid, Change::Gone));
    }
    let signal = libc::WSTOPSIG(status);
    let change = match (status >> 16, signal) {
        (0, SYSTEM_CALL) => entry(pid).unwrap_or(Change::Other),
        (0, signal) => Change::Signal(signal),
        (libc::PTRACE_EVENT_STOP, signal) if signal != libc::SIGTRAP => Change::Stopped,
        _ => Change::Other,
    };
    Ok((pid, change))
}

/// How a stop at a system call is told from a signal.
const SYSTEM_CALL: i32 = libc::SIGTRAP | 0x80;

/// The kernel's `struct ptrace_syscall_info`, as it is on entry.
#[repr(C)]
struct Info {
    kind: u8,
    _padding: [u8; 3],
    _architecture: u32,
    _instruction: u64,
    _stack: u64,
    number: u64,
    arguments: [u64; 6],
}

/// `PTRACE_GET_SYSCALL_INFO` and `PTRACE_SYSCALL_INFO_ENTRY`, which not every libc has.
const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const ENTRY: u8 = 1;

/// The call that a stopped process is about to make, if it is not about to return from it.
fn entry(pid: i32) -> Option<Change> {
    let mut info = MaybeUninit::<Info>::zeroed();
    let size = size_of::<Info>();
    // SAFETY: the kernel writes at most `size` bytes, which are there and outlive the call.
    let written =
        unsafe { libc::syscall(libc::SYS_ptrace, GET_SYSCALL_INFO, pid, size, info.as_mut_ptr()) };
    // SAFETY: all its fields are numbers, and it was zeroed before the kernel wrote to it.
    let info = unsafe { info.assume_init() };
    (written > 0 && info.kind == ENTRY)
        .then_some(Change::Entry { number: info.number, arguments: info.arguments })
}

fn options(follow: Follow) -> libc::c_long {
    let follow = match follow {
        Follow::Nothing => 0,
        Follow::Threads => libc::PTRACE_O_TRACECLONE,
        Follow::Children => {
            libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK
        }
    };
    libc::c_long::from(libc::PTRACE_O_TRACESYSGOOD | follow)
}

fn request<N: TryInto<libc::c_long>>(
    request: N,
    pid: i32,
    address: libc::c_long,
    data: libc::c_long,
) -> io::Result<()> {
    let request = request.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: these requests take numbers, and touch no memory of this process.
    let result = unsafe { libc::syscall(libc::SYS_ptrace, request, pid, address, data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn stops_at_system_calls_and_lets_go() {
        let mut child = Command::new("sh")
            .args(["-c", "read go; mkdir /nowhere/to/be/made 2>/dev/null; exit 3"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("start sh");
        let pid = i32::try_from(child.id()).expect("a number");
        seize(pid, Follow::Nothing).expect("seize");
        child.stdin.take().expect("piped").write_all(b"\n").expect("written");
        let mut calls = 0;
        let number = u64::try_from(libc::SYS_exit_group).expect("a number");
        loop {
            // Other tests of this program may have children: only the traced one stops.
            let (who, change) = wait().expect("wait");
            match change {
                Change::Entry { number: it, .. } if it == number => break,
                Change::Entry { .. } => calls += 1,
                Change::Gone if who == pid => panic!("it ended unseen"),
                _ => {}
            }
            proceed(who, 0).expect("proceed");
        }
        assert!(calls > 3, "{calls}");
        detach(pid).expect("detach");
        assert_eq!(child.wait().expect("wait").code(), Some(3));
        assert_eq!(
            follow(pid, Follow::Threads).map_err(|e| e.raw_os_error()),
            Err(Some(libc::ESRCH))
        );
    }
}
