//! Why a call on a task failed.

use std::{io, path::PathBuf, time::Duration};

use proto::ttrpc::{CallError, Code, Status};

/// Why a call on a task failed.
///
/// Texts are containerd's where clients match on them or print them.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum Error {
    /// There is no such task, or there is not yet, or no longer.
    #[error("task {id} not found")]
    NotFound { id: String },

    /// The container has a task.
    #[error("task {id}: already exists")]
    Exists { id: String },

    /// There is no such sandbox, or there is not yet, or no longer.
    #[error("can't find shim for sandbox {id}: not found")]
    NoSandbox { id: String },

    /// There is a sandbox of the name.
    #[error("sandbox {id} already running: already exists")]
    SandboxExists { id: String },

    /// The request can never be served.
    #[error("{0}: invalid argument")]
    Invalid(String),

    /// The runtime's shim is not installed.
    #[error(
        "failed to start shim: failed to resolve runtime path: runtime {runtime:?} binary not installed {binary:?}: file does not exist"
    )]
    NotInstalled { runtime: String, binary: String },

    /// The bundle cannot be made or removed; `operation` is a verb.
    #[error("{operation} {}", path.display())]
    Bundle { operation: &'static str, path: PathBuf, source: io::Error },

    /// The shim's binary failed; `text` is what it said.
    #[error("failed to start shim: start failed: {text}")]
    Start { text: String },

    /// The shim's binary cannot be run.
    #[error("failed to start shim: start failed: {}", binary.display())]
    Spawn { binary: PathBuf, source: io::Error },

    /// The shim's binary was killed; unlike one that fails, it may have left a shim.
    #[error("failed to start shim: start failed: {text}")]
    Cut { text: String },

    /// The shim's binary does not say what it is; `text` is what it said instead.
    #[error("failed to run [{} -info]: {text}", binary.display())]
    Info { binary: PathBuf, text: String },

    /// The shim answers in a way that this program does not know.
    #[error("failed to start shim: {0}: not implemented")]
    Unsupported(String),

    /// The shim cannot be connected to.
    #[error("failed to start shim: connect to {address}")]
    Connect { address: String, source: io::Error },

    /// The shim refused; the text is its own.
    #[error("{}{}", attempt.prefix(), status.message)]
    Refused { attempt: Attempt, status: Status },

    /// The shim gave no answer.
    #[error("task {id}: shim does not answer {method}")]
    NoAnswer { id: String, method: &'static str, source: CallError },

    /// The shim has not answered for a while, and is not asked.
    #[error(
        "task {id}: shim ({}, {address}) has not answered for {since:?}; it is asked again, and its container may well run; SIGKILL (ctr tasks rm -f {id}) ends both: unavailable",
        pid.map_or("of unknown pid".to_owned(), |pid| format!("pid {pid}"))
    )]
    Quarantined { id: String, pid: Option<u32>, address: String, since: Duration },

    /// There is no way to the shim, which is tried again.
    #[error(
        "task {id}: shim ({}, {}) cannot be reached for {since:?}; it is tried again, and its container may well run; SIGKILL (ctr tasks rm -f {id}) ends both: unavailable",
        pid.map_or("of unknown pid".to_owned(), |pid| format!("pid {pid}")),
        address.as_deref().unwrap_or("of unknown address")
    )]
    Unreachable { id: String, pid: Option<u32>, address: Option<String>, since: Duration },

    /// There is no way to a sandbox's shim, which is tried again.
    #[error(
        "sandbox {id}: shim ({}) cannot be reached for {since:?}; it is tried again, and its containers may well run: unavailable",
        address.as_deref().unwrap_or("of unknown address")
    )]
    SandboxUnreachable { id: String, address: Option<String>, since: Duration },

    /// The shim cannot be ended.
    #[error("task {id}: shim at {address} cannot be ended: {reason}: failed precondition")]
    Unending { id: String, address: String, reason: String },

    /// An earlier task of the same container is still being cleaned up.
    #[error("task {id} is still being removed after {limit:?}: unavailable")]
    Ending { id: String, limit: Duration },

    /// The daemon is stopping.
    #[error("the daemon is stopping: unavailable")]
    Stopping,
}

/// What containerd says before a shim's own text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// A create.
    Create,
    /// A delete.
    Delete,
    /// Anything else.
    Other,
}

impl Attempt {
    fn prefix(self) -> &'static str {
        match self {
            Self::Create => "failed to create shim task: ",
            Self::Delete => "failed to delete task: ",
            Self::Other => "",
        }
    }
}

impl Error {
    /// Whether a shim says that it has no such task.
    pub(super) fn is_unknown_to_shim(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.code == Code::NotFound as i32)
    }

    /// Whether a start that failed so has left no shim: its binary has failed, or there was no sandbox to
    /// join, or nothing that could name one.
    pub(super) fn leaves_no_shim(&self) -> bool {
        matches!(
            self,
            Self::Start { .. }
                | Self::Spawn { .. }
                | Self::NoSandbox { .. }
                | Self::SandboxUnreachable { .. }
                | Self::Invalid(_)
        )
    }

    /// Whether the shim was not asked, because it would not hear it.
    pub(super) fn is_unheard(&self) -> bool {
        matches!(self, Self::Quarantined { .. } | Self::Unreachable { .. })
    }

    /// Whether a shim could not be connected to for a reason that says nothing about the shim's life.
    pub(super) fn is_unreachable_for_now(&self) -> bool {
        let Self::Connect { source, .. } = self else { return false };
        source.kind() == io::ErrorKind::TimedOut || is_shortage(source)
    }

    /// Whether this program or the machine has too little of something, which may be better later.
    pub(super) fn is_shortage(&self) -> bool {
        match self {
            Self::Bundle { source, .. }
            | Self::Connect { source, .. }
            | Self::Spawn { source, .. } => is_shortage(source),
            _ => false,
        }
    }

    /// A failed file operation on a bundle.
    pub(super) fn bundle(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Bundle { operation, path, source }
    }
}

/// Whether there are too few descriptors or processes, too little memory or room.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;

    // By kind too: what was not started for want of processes has been given another text.
    let short = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::NOSPC];
    error.kind() == io::ErrorKind::WouldBlock
        || short.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
