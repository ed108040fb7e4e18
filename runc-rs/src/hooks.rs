//! Runs hooks.
//!
//! A hook gets the container's state on standard input. Input and output are memory files, not
//! pipes: a hook that reads nothing, or writes much, or leaves a child behind that keeps its output
//! open, blocks nobody.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde::Serialize;

use crate::{error::Cause, spec};

/// How much of a hook's output an error shows, in bytes.
const OUTPUT_LEN_MAX: u64 = 4096;

/// What a hook is told about its container.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    pub(crate) oci_version: String,
    pub(crate) id: String,
    pub(crate) status: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) pid: i32,
    pub(crate) bundle: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be run.
    #[error("error running {point} hook #{number}: {path}")]
    Start { point: &'static str, number: usize, path: String, source: Cause },
    /// The program ended with an error.
    #[error("error running {point} hook #{number}: {status}, stdout: {stdout}, stderr: {stderr}")]
    Exit { point: &'static str, number: usize, status: String, stdout: String, stderr: String },
    /// The program was killed, for it took longer than it may.
    #[error(
        "error running {point} hook #{number}: hook ran past specified timeout of {seconds}.0s"
    )]
    Timeout { point: &'static str, number: usize, seconds: i64 },
}

/// The environment of a hook that has none of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Environment<'a> {
    /// The runtime's: hooks on the host have always found their programs by its `PATH`.
    Inherited,
    /// These variables and no others.
    Only(&'a [String]),
}

/// Runs the hooks of one point, in order, until one fails.
pub(crate) fn run_all(
    point: &'static str,
    hooks: &[spec::Hook],
    state: &State,
    environment: Environment<'_>,
    directory: &Path,
) -> Result<(), Error> {
    let mut hooks = hooks.iter().enumerate();
    hooks.try_for_each(|hook| run_one(point, hook, state, environment, directory))
}

/// Runs the hooks of one point, in order, and passes what fails to `report`.
pub(crate) fn run_each(
    point: &'static str,
    hooks: &[spec::Hook],
    state: &State,
    directory: &Path,
    report: impl FnMut(Error),
) {
    let environment = Environment::Inherited;
    let hooks = hooks.iter().enumerate();
    hooks
        .filter_map(|hook| run_one(point, hook, state, environment, directory).err())
        .for_each(report);
}

fn run_one(
    point: &'static str,
    (number, hook): (usize, &spec::Hook),
    state: &State,
    environment: Environment<'_>,
    directory: &Path,
) -> Result<(), Error> {
    let start =
        |error| Error::Start { point, number, path: hook.path.clone(), source: Cause(error) };
    let mut hook = Running::start(hook, state, environment, directory).map_err(start)?;
    let Some(status) = hook.wait().map_err(start)? else {
        return Err(Error::Timeout { point, number, seconds: hook.timeout.unwrap_or(0) });
    };
    if status.success() {
        return Ok(());
    }
    Err(Error::Exit {
        point,
        number,
        status: describe(status),
        stdout: content(&mut hook.stdout),
        stderr: content(&mut hook.stderr),
    })
}

/// What Go calls each signal, by its number.
const SIGNALS: [&str; 32] = [
    "signal 0",
    "hangup",
    "interrupt",
    "quit",
    "illegal instruction",
    "trace/breakpoint trap",
    "aborted",
    "bus error",
    "floating point exception",
    "killed",
    "user defined signal 1",
    "segmentation fault",
    "user defined signal 2",
    "broken pipe",
    "alarm clock",
    "terminated",
    "stack fault",
    "child exited",
    "continued",
    "stopped (signal)",
    "stopped",
    "stopped (tty input)",
    "stopped (tty output)",
    "urgent I/O condition",
    "CPU time limit exceeded",
    "file size limit exceeded",
    "virtual timer expired",
    "profiling timer expired",
    "window changed",
    "I/O possible",
    "power failure",
    "bad system call",
];

/// In Go's words.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => {
            let core = if status.core_dumped() { " (core dumped)" } else { "" };
            let name = usize::try_from(signal).ok().and_then(|number| SIGNALS.get(number));
            match name {
                Some(name) => format!("signal: {name}{core}"),
                None => format!("signal: signal {signal}{core}"),
            }
        }
        (None, None) => status.to_string(),
    }
}

struct Running {
    child: Child,
    timeout: Option<i64>,
    stdout: File,
    stderr: File,
}

impl Running {
    fn start(
        hook: &spec::Hook,
        state: &State,
        environment: Environment<'_>,
        directory: &Path,
    ) -> io::Result<Self> {
        let mut stdin = memory_file()?;
        serde_json::to_writer(&mut stdin, state)?;
        stdin.flush()?;
        stdin.rewind()?;
        let (stdout, stderr) = (memory_file()?, memory_file()?);
        let mut command = Command::new(&hook.path);
        if let Some((zero, rest)) = hook.args.split_first() {
            command.arg0(zero).args(rest);
        }
        // `run` blocks signals to read them; a hook shall be killable.
        sys::signal::unblock_all_for(&mut command);
        let variables = match (hook.env.as_deref(), environment) {
            (Some(own), _) => Some(own),
            (None, Environment::Only(these)) => Some(these),
            (None, Environment::Inherited) => None,
        };
        if let Some(variables) = variables {
            let pairs = variables.iter().filter_map(|variable| variable.split_once('='));
            command.env_clear().envs(pairs);
        }
        let child = command
            .current_dir(directory)
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::from(stdout.try_clone()?))
            .stderr(Stdio::from(stderr.try_clone()?))
            .spawn()
            .map_err(sys::spawn::name_shortage)?;
        Ok(Self { child, timeout: hook.timeout, stdout, stderr })
    }

    /// Waits for the end; `None` when it did not come in time and the hook was killed.
    fn wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if let Some(seconds) = self.timeout
            && !self.ends_within(seconds)?
        {
            self.child.kill()?;
            self.child.wait()?;
            return Ok(None);
        }
        self.child.wait().map(Some)
    }

    fn ends_within(&self, seconds: i64) -> io::Result<bool> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let timeout = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let mut waiting = [PollFd::new(&pidfd, PollFlags::IN)];
        Ok(poll(&mut waiting, Some(&timeout))? > 0)
    }
}

fn memory_file() -> io::Result<File> {
    Ok(File::from(memfd_create("hook", MemfdFlags::CLOEXEC)?))
}

fn content(file: &mut File) -> String {
    let mut text = Vec::new();
    let _ = file.rewind();
    let _ = file.take(OUTPUT_LEN_MAX).read_to_end(&mut text);
    String::from_utf8_lossy(&text).trim_end().to_owned()
}
