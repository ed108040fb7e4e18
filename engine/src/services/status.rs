//! Which gRPC code an error becomes; nowhere else is one chosen for the engine's errors.

use tonic::{Code, Status};

use crate::error::Error;

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
        Error::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            Code::ResourceExhausted
        }
        Error::File { .. }
        | Error::Database { .. }
        | Error::Damaged { .. }
        | Error::NewerSchema { .. } => Code::Unknown,
    };
    let message = sys::error::Chain(&error).to_string();
    if code == Code::Unknown {
        tracing::error!(error = message, "call failed");
    }
    Status::new(code, message)
}
