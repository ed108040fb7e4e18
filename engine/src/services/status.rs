//! Which gRPC code an error becomes; nowhere else is one chosen for the engine's errors.

use proto::ttrpc::CallError;
use tonic::{Code, Status};

use crate::{error::Error, registry, runtime, streaming::StreamError, transfer};

/// The status that tells a client about `error`, with the whole chain of causes as its text.
///
/// Source: containerd, `errdefs`, `errgrpc`: what is not of the fixed set is unknown.
pub fn status(error: Error) -> Status {
    let code = match &error {
        Error::NotFound(_) => Code::NotFound,
        Error::AlreadyExists(_) => Code::AlreadyExists,
        Error::InvalidArgument(_) => Code::InvalidArgument,
        Error::FailedPrecondition(_) => Code::FailedPrecondition,
        Error::Unavailable(_) => Code::Unavailable,
        Error::OutOfRange(_) => Code::OutOfRange,
        Error::NotImplemented(_) => Code::Unimplemented,
        error if is_full(error) => Code::ResourceExhausted,
        Error::File { .. }
        | Error::Plugin(_)
        | Error::Layer(_)
        | Error::Database { .. }
        | Error::Damaged { .. }
        | Error::DamagedDatabase { .. }
        | Error::LostDatabase { .. }
        | Error::NewerSchema { .. } => Code::Unknown,
    };
    let message = sys::error::Chain(&error).to_string();
    let code = name_shortage(code, &message);
    if code == Code::Unknown {
        tracing::error!(error = message, "call failed");
    }
    Status::new(code, message)
}

/// A request that containerd's services refuse before they ask a store: such a text does not end
/// with its cause.
pub(super) fn refused(text: impl Into<String>) -> Status {
    Status::invalid_argument(text)
}

/// The status that tells a client why a transfer failed.
pub(super) fn transfer_status(error: transfer::Error) -> Status {
    use registry::Error as Registry;
    use transfer::Error as E;
    let code = match &error {
        E::State(_) => {
            let E::State(error) = error else { unreachable!("just matched") };
            return status(error);
        }
        E::Registry(Registry::NotFound { .. })
        | E::Missing { .. }
        | E::NothingSelected { .. }
        | E::Stream(StreamError::NotFound { .. }) => Code::NotFound,
        E::Registry(Registry::Denied { .. }) => Code::PermissionDenied,
        E::Registry(
            Registry::Connection { .. } | Registry::Silent { .. } | Registry::Status { .. },
        )
        | E::Fetch { .. } => Code::Unavailable,
        E::Registry(_) | E::Document(_) | E::Invalid(_) | E::Archive(_) => Code::InvalidArgument,
        E::Stream(_) => Code::Aborted,
        E::Diff(_) | E::Snapshot(_) | E::Write(_) | E::Stopped(_) => Code::Unknown,
    };
    let code = if is_full(&error) { Code::ResourceExhausted } else { code };
    let message = sys::error::Chain(&error).to_string();
    if code == Code::Unknown {
        tracing::error!(error = message, "transfer failed");
    }
    Status::new(code, message)
}

/// Whether a full disk is the cause.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::StorageFull) {
            return true;
        }
        // What an I/O error wraps is its source's source.
        if io.and_then(std::io::Error::get_ref).is_some_and(|inner| is_full(inner)) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The status that tells a client about a failed call on a task. What a shim refused keeps the
/// shim's code.
pub(super) fn task_status(error: &runtime::Error) -> Status {
    use runtime::Error as E;

    let code = match error {
        E::NotFound { .. } | E::NoSandbox { .. } | E::NotInstalled { .. } => Code::NotFound,
        E::Exists { .. } | E::SandboxExists { .. } => Code::AlreadyExists,
        E::Invalid(_) => Code::InvalidArgument,
        E::Refused { status, .. } => Code::from(status.code),
        E::Unsupported(_) => Code::Unimplemented,
        E::NoAnswer { source: CallError::Deadline { .. }, .. } => Code::DeadlineExceeded,
        E::NoAnswer { source: CallError::TooMany, .. } => Code::ResourceExhausted,
        E::NoAnswer { source: CallError::Request(_), .. } => Code::InvalidArgument,
        E::Unending { .. } => Code::FailedPrecondition,
        E::NoAnswer { .. }
        | E::Quarantined { .. }
        | E::Unreachable { .. }
        | E::SandboxUnreachable { .. }
        | E::Ending { .. }
        | E::Stopping => Code::Unavailable,
        E::Bundle { .. }
        | E::Start { .. }
        | E::Spawn { .. }
        | E::Cut { .. }
        | E::Info { .. }
        | E::Connect { .. } => Code::Unknown,
    };
    let message = sys::error::Chain(error).to_string();
    Status::new(name_shortage(code, &message), message)
}

/// How the kernel says that something has run out, in the words of glibc, musl and Go.
const SHORTAGES: [&str; 8] = [
    "no space left on device",
    "disk quota exceeded",
    "too many open files",
    "no file descriptors available",
    "cannot allocate memory",
    "out of memory",
    "resource temporarily unavailable",
    "limit of processes",
];

/// The code of an error that has none of its own, when its text says that something has run out.
///
/// Databases, shims and runtimes hand their causes on as text only.
fn name_shortage(code: Code, message: &str) -> Code {
    if code != Code::Unknown {
        return code;
    }
    let message = message.to_lowercase();
    let is_short = SHORTAGES.iter().any(|shortage| message.contains(shortage));
    if is_short { Code::ResourceExhausted } else { code }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortages_have_a_code() {
        let start = |text: &str| runtime::Error::Start { text: text.to_owned() };
        let refused = |code: proto::ttrpc::Code, text: &str| runtime::Error::Refused {
            attempt: runtime::Attempt::Create,
            status: proto::ttrpc::Status { code: code as i32, message: text.to_owned() },
        };
        let cases = [
            ("disk", start("write shim.pid: No space left on device"), Code::ResourceExhausted),
            ("descriptors", start("Too many open files (os error 24)"), Code::ResourceExhausted),
            (
                "a runtime's, by a shim",
                refused(
                    proto::ttrpc::Code::Unknown,
                    "OCI runtime create failed: mkdir c1: no space left on device: unknown",
                ),
                Code::ResourceExhausted,
            ),
            (
                "a shim's own code",
                refused(proto::ttrpc::Code::NotFound, "c1: no space left on device"),
                Code::NotFound,
            ),
            ("something else", start("ouch"), Code::Unknown),
        ];
        for (case, error, want) in cases {
            assert_eq!(task_status(&error).code(), want, "{case}");
        }
    }
}
