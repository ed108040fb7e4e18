//! Why a call to the shim failed, and the code that the caller gets for it.

use proto::ttrpc::{Code, Status};

/// Why a call failed.
///
/// The variants are containerd's error classes; clients act on the class, and some on the text.
/// `Display` ends with the class as Go's `%w` prints it, because that is what those clients see
/// from the Go shim.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// What the call names does not exist, or not any more.
    #[error("{0}: not found")]
    NotFound(String),
    /// What the call makes exists.
    #[error("{0}: already exists")]
    AlreadyExists(String),
    /// The state of the task does not allow the call.
    #[error("{0}: failed precondition")]
    FailedPrecondition(String),
    /// The request makes no sense.
    #[error("{0}: invalid argument")]
    InvalidArgument(String),
    /// There is no room for more.
    #[error("{0}: resource exhausted")]
    ResourceExhausted(String),
    /// The shim does not do this.
    #[error("{0}: not implemented")]
    NotImplemented(String),
    /// Everything else, such as what a runtime says.
    #[error("{0}")]
    Unknown(String),
}

impl Error {
    /// An error that has no class, with its causes.
    pub(crate) fn unknown(context: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Unknown(format!("{context}: {}", sys::error::Chain(error)))
    }

    /// The status that goes over the wire.
    pub(crate) fn status(&self) -> Status {
        let code = match self {
            Self::NotFound(_) => Code::NotFound,
            Self::AlreadyExists(_) => Code::AlreadyExists,
            Self::FailedPrecondition(_) => Code::FailedPrecondition,
            Self::InvalidArgument(_) => Code::InvalidArgument,
            Self::ResourceExhausted(_) => Code::ResourceExhausted,
            Self::NotImplemented(_) => Code::Unimplemented,
            Self::Unknown(_) => Code::Unknown,
        };
        Status { code: code as i32, message: self.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_has_class_and_text() {
        let status = Error::NotFound("process already finished".to_owned()).status();
        assert_eq!(
            (status.code, status.message.as_str()),
            (5, "process already finished: not found")
        );
    }
}
