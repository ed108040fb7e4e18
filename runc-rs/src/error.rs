//! What can go wrong, in runc's words where clients match on them.
//!
//! dockerd looks for `executable file not found`, `no such file or directory`, `permission denied`
//! and the like in the message; containerd's shim looks for `container does not exist`, `container
//! not running`, `process already finished` and `no such process`. All of them know the texts
//! that Go gives error numbers, so [`Cause`] prints those.

use std::{fmt, io, path::Path};

/// Why a command of the runtime failed.
///
/// A message does not repeat its source: whoever prints an error prints the chain.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum Error {
    /// The command line cannot be understood.
    #[error("{0}")]
    Usage(String),
    /// Flags or arguments are not those of the command.
    #[error("{0}")]
    CommandLine(String),
    /// Somebody asks how a command is written.
    #[error("help was asked for")]
    Help,
    /// There is no command with this name.
    #[error("No help topic for '{0}'")]
    NoSuchCommand(String),
    /// No container in the root directory has this id.
    #[error("container does not exist")]
    NoSuchContainer,
    /// A container in the root directory has this id.
    #[error("container with given ID already exists")]
    ContainerExists,
    /// The text is no container id.
    #[error("invalid container ID format")]
    InvalidId(#[source] crate::id::ParseIdError),
    /// The container's status does not allow the command.
    #[error("{0}")]
    Status(String),
    /// The bundle's configuration cannot be used.
    #[error(transparent)]
    Spec(#[from] crate::spec::Error),
    /// The kernel refused an operation; `operation` is its verb, as in "mount".
    #[error("{operation} {object}")]
    System { operation: &'static str, object: String, source: Cause },
    /// The container's cgroup could not be made or changed.
    #[error("cgroup")]
    Cgroup(#[from] crate::cgroup::Error),
    /// The container's resctrl group could not be made or changed.
    #[error("{0}")]
    Resctrl(String),
    /// A process could not be put into the groups that were asked for.
    #[error("adding pid {pid} to cgroups")]
    Join { pid: u32, source: crate::cgroup::Error },
    /// The seccomp profile could not be compiled.
    #[error("seccomp")]
    Seccomp(#[from] crate::seccomp::Error),
    /// Nobody listens where the seccomp profile says that an agent does.
    #[error("failed to connect with seccomp agent specified in the seccomp profile {}", path.display())]
    SeccompAgent { path: std::path::PathBuf, source: Box<Error> },
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] crate::hooks::Error),
    /// A process of the container failed before it ran its program; the text is that of its error.
    #[error("unable to start container process: {0}")]
    Process(String),
    /// criu is missing, or could not do it.
    #[error("{0}")]
    Criu(String),
    /// The kernel, or this runtime, lacks what is asked for.
    #[error("{0} is not supported")]
    Unsupported(String),
}

impl Error {
    /// The error of a system call on `object`.
    pub(crate) fn system(
        operation: &'static str,
        object: impl fmt::Display,
        cause: impl Into<io::Error>,
    ) -> Self {
        Self::System { operation, object: object.to_string(), source: Cause(cause.into()) }
    }

    /// The error of a system call on the file at `path`.
    pub(crate) fn file(
        operation: &'static str,
        path: impl AsRef<Path>,
        cause: impl Into<io::Error>,
    ) -> Self {
        Self::system(operation, path.as_ref().display(), cause)
    }
}

/// An error of the operating system, printed as Go prints it: `no such file or directory`.
#[derive(Debug)]
pub struct Cause(pub io::Error);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let text = text.split(" (os error").next().unwrap_or(&text);
        let mut rest = text.chars();
        match rest.next() {
            // "I/O error" and "RPC ..." keep their capitals.
            Some(first) if !rest.as_str().starts_with(|c: char| !c.is_lowercase() && c != ' ') => {
                write!(f, "{}{}", first.to_lowercase(), rest.as_str())
            }
            _ => f.write_str(text),
        }
    }
}

impl std::error::Error for Cause {}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

impl std::ops::Deref for Cause {
    type Target = io::Error;

    fn deref(&self) -> &io::Error {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::error::Chain;

    #[test]
    fn texts_that_clients_match() {
        let cases = [
            (libc::ENOENT, "open /x: no such file or directory"),
            (libc::EACCES, "open /x: permission denied"),
            (libc::EPERM, "open /x: operation not permitted"),
            (libc::ENOTDIR, "open /x: not a directory"),
            (libc::ENOEXEC, "open /x: exec format error"),
        ];
        for (number, want) in cases {
            let error = Error::file("open", "/x", io::Error::from_raw_os_error(number));
            assert_eq!(Chain(&error).to_string(), want, "errno {number}");
        }
    }
}
