//! Runtime processes at work, and what is to happen when they end.
//!
//! A job is started, and the loop goes on; when the reaper finds its process, the job's [`Then`]
//! says which step of which operation comes next. What a runtime prints goes to a memory file, so
//! that it can print as much as it likes and nobody has to read meanwhile.
//!
//! A runtime is killed when the shim dies: containerd cleans up after a dead shim by `delete`, and
//! a runtime that went on creating would race with that.

use std::{
    fs::File,
    io::{self, Read, Seek},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command as Program, Stdio},
};

use proto::containerd::{runc::v1::CheckpointOptions, task::v3 as api};
use rustix::{
    fs::{MemfdFlags, memfd_create, statvfs},
    process::Pid,
};
use sys::spawn::{CommandChild, name_shortage};

use crate::{
    error::Error,
    reaper::Exit,
    runtime::{self, Command, Runtime},
    server::Call,
    stdio::{ChildStreams, Prepared},
    task::create::Creation,
};

/// The most of a runtime's output that is used, in bytes.
const OUTPUT_LEN_MAX: u64 = 4 << 20;

/// The most of a runtime's output that goes into an error, in bytes.
const ERROR_LEN_MAX: usize = 4096;

/// A runtime process at work.
#[derive(Debug)]
pub(crate) struct Job {
    program: String,
    log: PathBuf,
    log_from: u64,
    output: File,
    /// What comes next.
    pub then: Then,
}

/// What is to happen when a runtime has ended.
#[derive(Debug)]
pub(crate) enum Then {
    /// The task exists, or `Create` fails.
    Create(Box<Creation>),
    /// What a `create` has left is removed, and `Create` fails.
    Uncreate(Box<Creation>, Error),
    /// Init runs, or `Start` fails.
    Start { id: String, call: Call },
    /// A checkpoint runs again, or `Start` fails.
    Restore { id: String, call: Call, prepared: Box<Prepared> },
    /// What a `restore` has left is removed, and `Start` fails.
    Unrestore { id: String, call: Call, error: Error },
    /// An exec runs, or `Start` fails.
    Exec { id: String, exec: String, call: Call, prepared: Box<Prepared>, _spec: OwnedFd },
    /// The signal was sent.
    Kill { id: String, call: Call },
    /// All that init has left behind is killed.
    KillAll { id: String },
    /// The runtime has forgotten the container.
    Delete { id: String },
    /// The task is frozen.
    Pause { id: String, call: Call },
    /// The task is thawed; nobody asked when init has exited.
    Resume { id: String, call: Option<Call> },
    /// What a pause that was cut short has frozen goes on, and `Pause` fails.
    Unpause { id: String, call: Call, error: Error },
    /// What a resume that was cut short has thawed is frozen again, and `Resume` fails.
    Unresume { id: String, call: Call, error: Error },
    /// The process IDs are known.
    Pids { id: String, call: Call },
    /// The resources are changed.
    Update(Call),
    /// The checkpoint is written.
    Checkpoint {
        call: Call,
        request: Box<api::CheckpointTaskRequest>,
        work: Scratch,
        dump_log: PathBuf,
    },
}

/// A directory for criu.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// Where.
    pub path: PathBuf,
    /// Whether it goes when the checkpoint is done.
    pub temporary: bool,
}

/// What a runtime reads and writes.
#[derive(Debug, Default)]
pub(crate) enum Streams {
    /// Nothing; what it prints is kept for errors.
    #[default]
    Captured,
    /// It reads this.
    Input(OwnedFd),
    /// Those of the process that it starts.
    Container(ChildStreams),
}

impl Job {
    /// Starts the runtime with a command.
    ///
    /// # Errors
    ///
    /// The program cannot be run.
    pub(crate) fn start(
        runtime: &Runtime,
        command: &Command<'_>,
        streams: Streams,
        then: Then,
    ) -> Result<(Pid, Self), (io::Error, Box<Then>)> {
        let log_from = runtime::log_len(runtime.log());
        match spawn(runtime, command, streams) {
            Ok((pid, output)) => {
                let program = runtime.program().to_owned();
                let log = runtime.log().to_owned();
                Ok((pid, Self { program, log, log_from, output, then }))
            }
            Err(error) => Err((error, Box::new(then))),
        }
    }

    /// What the runtime has printed.
    ///
    /// # Errors
    ///
    /// The memory file cannot be read.
    pub(crate) fn output(&mut self) -> io::Result<Vec<u8>> {
        let mut output = Vec::new();
        self.output.rewind()?;
        (&self.output).take(OUTPUT_LEN_MAX).read_to_end(&mut output)?;
        Ok(output)
    }

    /// Whether the runtime has done what it should; why not, if not: the last error in its log,
    /// else what it printed.
    ///
    /// # Errors
    ///
    /// It has not.
    pub(crate) fn result(&mut self, exit: Exit) -> Result<(), String> {
        if exit.status == 0 {
            return Ok(());
        }
        if let Ok(Some(message)) = runtime::last_error(&self.log, self.log_from) {
            return Err(message);
        }
        let output = self.output().unwrap_or_default();
        let output = String::from_utf8_lossy(&output[output.len().saturating_sub(ERROR_LEN_MAX)..]);
        let status = exit.status;
        if output.is_empty() && is_on_full_disk(&self.log) {
            let (program, log) = (&self.program, self.log.display());
            return Err(format!(
                "{program}: exit status {status}; its log {log} is empty: No space left on device"
            ));
        }
        Err(format!(
            "{} did not terminate successfully: exit status {status}: {output}",
            self.program
        ))
    }
}

/// Whether nothing can be written beside `file`: what has nothing in it might have had.
fn is_on_full_disk(file: &Path) -> bool {
    file.parent().is_some_and(|place| statvfs(place).is_ok_and(|disk| disk.f_bavail == 0))
}

fn spawn(runtime: &Runtime, command: &Command<'_>, streams: Streams) -> io::Result<(Pid, File)> {
    let output = File::from(memfd_create("runtime-output", MemfdFlags::CLOEXEC)?);
    let mut program = Program::new(runtime.program());
    program
        .args(runtime.arguments(command))
        // systemd's notification socket is the engine's, not the container's.
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .parent_death_signal(libc::SIGKILL)
        // Those that this program reads by descriptor would stay blocked in the container.
        .unblock_signals();
    let stdio = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
    match streams {
        Streams::Container(ChildStreams { stdin, stdout, stderr }) => {
            program.stdin(stdio(stdin)).stdout(stdio(stdout)).stderr(stdio(stderr));
        }
        streams => {
            program.stdout(output.try_clone()?).stderr(output.try_clone()?);
            if let Streams::Input(input) = streams {
                program.stdin(input);
            }
        }
    }
    let child = program.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(
            error.kind(),
            format!("exec: {:?}: executable file not found in $PATH", runtime.program()),
        ),
        _ => name_shortage(error),
    })?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    Ok((pid.ok_or_else(|| io::Error::other("no process ID"))?, output))
}

/// A memory file with `bytes` in it, at its start.
///
/// # Errors
///
/// There is no memory or no descriptor left.
pub(super) fn memory_file(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    use std::io::Write;

    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// What a failed `kill` means to callers.
pub(super) fn kill_error(message: &str) -> Error {
    let lower = message.to_lowercase();
    let says = |texts: &[&str]| texts.iter().any(|text| lower.contains(text));
    if says(&["process already finished", "container not running", "no such process"]) {
        Error::NotFound("process already finished".to_owned())
    } else if says(&["does not exist"]) {
        Error::NotFound("no such container".to_owned())
    } else {
        Error::Unknown(format!("unknown error after kill: {message}"))
    }
}

/// The options of a checkpoint.
///
/// # Errors
///
/// `InvalidArgument`: they cannot be decoded.
pub(super) fn checkpoint_options(
    request: &api::CheckpointTaskRequest,
) -> Result<CheckpointOptions, Error> {
    let packed = request.options.as_ref();
    let options = packed.map(proto::any::unpack::<CheckpointOptions>).transpose();
    let options = options.map_err(|error| Error::InvalidArgument(error.to_string()))?;
    Ok(options.flatten().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failed_kill_means() {
        let not_found = |text: &str| Error::NotFound(text.to_owned());
        let cases = [
            ("container not running", not_found("process already finished")),
            ("kill: No such process", not_found("process already finished")),
            ("container does not exist", not_found("no such container")),
            ("ouch", Error::Unknown("unknown error after kill: ouch".to_owned())),
        ];
        for (message, want) in cases {
            assert_eq!(kill_error(message), want, "{message}");
        }
    }
}
