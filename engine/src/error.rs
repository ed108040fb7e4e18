//! The errors of the API.
//!
//! Clients know a fixed set of causes (containerd, `errdefs`), match on it, and print the text. So
//! an error here is a cause and what it concerns, and its text ends with the cause, as
//! containerd's does. How a cause becomes a gRPC code is said in one place, `services/status.rs`.

use std::{io, path::PathBuf};

/// Why a call on the engine's state failed.
///
/// A message does not repeat its source: whoever prints an error prints the chain.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum Error {
    /// What the call is about does not exist.
    #[error("{0}: not found")]
    NotFound(String),

    /// What the call would make exists.
    #[error("{0}: already exists")]
    AlreadyExists(String),

    /// The request can never be served.
    #[error("{0}: invalid argument")]
    InvalidArgument(String),

    /// The request cannot be served in the state that things are in.
    #[error("{0}: failed precondition")]
    FailedPrecondition(String),

    /// Somebody else is at it; it may work later.
    #[error("{0}: unavailable")]
    Unavailable(String),

    /// An offset is beyond the end.
    #[error("{0}")]
    OutOfRange(String),

    /// A part of the engine that is another program failed.
    #[error("{0}")]
    Plugin(String),

    /// There is no such function.
    #[error("{0}: not implemented")]
    NotImplemented(String),

    /// The kernel refused a file operation; `operation` is its verb, as in "rename".
    #[error("{operation} {}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },

    /// A layer could not be applied or made.
    #[error("layer")]
    Layer(#[source] crate::diff::DiffError),

    /// The database failed; `operation` is its verb.
    #[error("metadata database: {operation}")]
    Database { operation: &'static str, source: Box<dyn std::error::Error + Send + Sync> },

    /// What is stored is not what this program writes.
    #[error("metadata database: record of {what} is damaged")]
    Damaged { what: String, source: Box<dyn std::error::Error + Send + Sync> },

    /// The database as such is no good.
    #[error("metadata database {} is damaged; `gantryd db repair` saves what there is", path.display())]
    DamagedDatabase { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },

    /// There is no database, but what it told of.
    #[error("metadata database {} is missing, but there is {beside}; `gantryd db repair` makes one", path.display())]
    LostDatabase { path: PathBuf, beside: &'static str },

    /// The database was written by a newer program.
    #[error("metadata database {} has schema {found}, this program reads up to {known}", path.display())]
    NewerSchema { path: PathBuf, found: u64, known: u64 },
}

impl Error {
    /// A failed file operation.
    pub fn file(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { operation, path, source }
    }

    pub(crate) fn database<E>(operation: &'static str) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        move |source| Self::Database { operation, source: Box::new(source) }
    }
}

impl From<crate::identifier::ParseIdentifierError> for Error {
    fn from(error: crate::identifier::ParseIdentifierError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}

impl From<crate::filter::ParseFilterError> for Error {
    fn from(error: crate::filter::ParseFilterError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}

impl From<crate::digest::ParseDigestError> for Error {
    fn from(error: crate::digest::ParseDigestError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}

impl From<crate::diff::DiffError> for Error {
    fn from(error: crate::diff::DiffError) -> Self {
        use crate::diff::DiffError as E;
        match error {
            E::Mounts { .. } => Self::InvalidArgument(error.to_string()),
            error => Self::Layer(error),
        }
    }
}

impl From<snapshotter::Error> for Error {
    fn from(error: snapshotter::Error) -> Self {
        use snapshotter::Error as E;
        match error {
            E::NotFound { key } => {
                Self::NotFound(format!("snapshot {} does not exist", key.name()))
            }
            E::AlreadyExists { key } => Self::AlreadyExists(format!("snapshot {key}")),
            E::HasChildren { .. } => {
                Self::FailedPrecondition("cannot remove snapshot with child".to_owned())
            }
            E::NotMountable { key } => Self::FailedPrecondition(format!(
                "requested snapshot {} not active or view",
                key.name()
            )),
            E::WrongKind { .. }
            | E::OtherParent { .. }
            | E::Suspect { .. }
            | E::Volatile { .. } => Self::FailedPrecondition(error.to_string()),
            E::Fill { .. } => Self::FailedPrecondition(sys::error::Chain(&error).to_string()),
            E::External { refused } => refused.into(),
            E::OtherNamespace { .. } | E::Label { .. } => Self::InvalidArgument(error.to_string()),
            E::Unsupported { .. } => Self::NotImplemented(error.to_string()),
            E::File { operation, path, source } => Self::File { operation, path, source },
            E::Database(source) => Self::Database { operation: "snapshots", source },
        }
    }
}

/// What another program says ends with the cause already, if it is containerd's kind.
impl From<snapshotter::external::Refused> for Error {
    fn from(refused: snapshotter::external::Refused) -> Self {
        use snapshotter::external::Reason;
        let text = |cause: &str| {
            let message = refused.message.strip_suffix(cause).and_then(|it| it.strip_suffix(": "));
            message.unwrap_or(&refused.message).to_owned()
        };
        match refused.reason {
            Reason::NotFound => Self::NotFound(text("not found")),
            Reason::AlreadyExists => Self::AlreadyExists(text("already exists")),
            Reason::InvalidArgument => Self::InvalidArgument(text("invalid argument")),
            Reason::FailedPrecondition => Self::FailedPrecondition(text("failed precondition")),
            Reason::NotImplemented => Self::NotImplemented(text("not implemented")),
            Reason::Unavailable => Self::Unavailable(text("unavailable")),
            Reason::Other => Self::Plugin(refused.message),
        }
    }
}
