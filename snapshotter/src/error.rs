//! What goes wrong in snapshotters.

use std::{io, path::PathBuf};

use crate::{Key, Kind, external::Refused};

/// Why a call to a snapshotter failed.
///
/// A message does not repeat its source: whoever prints an error prints the chain.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum Error {
    /// No snapshot has this key.
    #[error("snapshot {key} does not exist")]
    NotFound { key: Key },

    /// A snapshot, of whichever kind, has this key.
    #[error("snapshot {key} already exists")]
    AlreadyExists { key: Key },

    /// The snapshot is of a kind for which the call has no meaning.
    #[error("snapshot {key} is {actual}, not {needed}")]
    WrongKind { key: Key, actual: Kind, needed: Kind },

    /// The snapshot is committed, so it has no mounts.
    #[error("snapshot {key} is committed, not active or view")]
    NotMountable { key: Key },

    /// The snapshot is the parent of others, of which this is one.
    #[error("cannot remove snapshot with child: {key} is the parent of {child}")]
    HasChildren { key: Key, child: Key },

    /// A commit names a parent, but the active snapshot has another.
    #[error("cannot change parent of active snapshot {key} to {parent} on commit")]
    OtherParent { key: Key, parent: Key },

    /// Two keys of one call are of different namespaces.
    #[error("snapshot {key} is not in the namespace of {other}")]
    OtherNamespace { key: Key, other: Key },

    /// The snapshot asks for something that this implementation does not do.
    #[error("snapshot {key}: {feature} is not supported")]
    Unsupported { key: Key, feature: &'static str },

    /// A label of the snapshot does not say what such a label has to.
    #[error("snapshot {key}: label {label}: {problem}")]
    Label { key: Key, label: &'static str, problem: String },

    /// The snapshot was committed shortly before the machine stopped without warning, so that its
    /// files may be incomplete, and it could not be made anew.
    #[error("snapshot {key} was not on disk yet when the machine stopped: unpack it again")]
    Suspect { key: Key },

    /// What was written to the active snapshot was not synced, as the operator wished, and the
    /// machine may have stopped since.
    #[error(
        "snapshot {key} was mounted with \"volatile\" before the machine was started again, so \
         that files may be lost: remove it and prepare it anew"
    )]
    Volatile { key: Key },

    /// What was to fill a snapshot's directory failed.
    #[error("fill snapshot {key}")]
    Fill { key: Key, source: Box<dyn std::error::Error + Send + Sync> },

    /// The program that keeps the files said no, or said nothing.
    #[error("{refused}")]
    External { refused: Refused },

    /// The kernel refused a file operation; `operation` is its verb, as in "rename".
    #[error("{operation} {}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },

    /// The database failed, or contradicts what is on disk.
    #[error("snapshot database")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::External { refused }
    }
}

impl Error {
    /// A failure of the database, of whichever of redb's error types.
    pub fn database(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Database(source.into())
    }

    /// For `map_err`: what was tried on which file.
    pub(crate) fn file<E: Into<io::Error>>(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::File { operation, path, source: source.into() }
    }
}
