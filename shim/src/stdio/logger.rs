//! A logging program that takes a task's output (`binary://`).
//!
//! It is started before the task, with the reading ends of stdout and stderr as descriptors 3 and
//! 4. It says that it is ready by closing descriptor 5; with `binary-v2://` it must write a byte
//! first, so that a program that dies is told from one that is ready.
//!
//! Source: containerd `core/runtime/v2/README.md`, "Logging"; `core/runtime/v2/logging`.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
};

use rustix::{io::Errno, process::Pid};
use sys::spawn::CommandChild;

/// A logging program that was started.
#[derive(Debug)]
pub(crate) struct Logger {
    /// The program's process.
    pub pid: Pid,
    /// Becomes readable when it is ready.
    pub ready: OwnedFd,
    /// Whether it must write a byte.
    pub must_report: bool,
}

/// Starts `program`, and returns it with the writing ends of stdout and stderr.
///
/// # Errors
///
/// A pipe cannot be made or the program not be run.
pub(super) fn start(
    (program, arguments, must_report): (&Path, &[String], bool),
    id: &str,
    namespace: &str,
) -> io::Result<(Logger, OwnedFd, OwnedFd)> {
    let (stdout, stdout_target) = io::pipe()?;
    let (stderr, stderr_target) = io::pipe()?;
    let (ready, ready_target) = io::pipe()?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("CONTAINER_ID", id)
        .env("CONTAINER_NAMESPACE", namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .pass_fds(vec![stdout.into(), stderr.into(), ready_target.into()]);
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("no process ID"))?;
    rustix::io::ioctl_fionbio(&ready, true)?;
    let logger = Logger { pid, ready: ready.into(), must_report };
    Ok((logger, stdout_target.into(), stderr_target.into()))
}

impl Logger {
    /// Whether the program is ready, now that something can be read; `None` if that was nothing.
    pub(crate) fn is_ready(&self) -> Option<bool> {
        let mut byte = [0];
        match rustix::io::read(&self.ready, &mut byte) {
            Ok(0) => Some(!self.must_report),
            Ok(_) => Some(true),
            Err(Errno::AGAIN | Errno::INTR) => None,
            Err(_) => Some(false),
        }
    }
}
