//! What goes wrong with layers.

use std::{io, path::PathBuf};

use super::TarError;

/// Why a layer could not be applied or made.
///
/// A message does not repeat its source: whoever prints an error prints the chain. Names from
/// layers are quoted and escaped.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum DiffError {
    /// The blob could not be read, or not be decompressed.
    #[error("read layer")]
    Read(#[source] io::Error),

    /// A program that was to make a layer of the blob has failed.
    #[error("stream processor {name:?}")]
    Processor { name: String, source: io::Error },

    /// What was read is not a tar archive that can be understood.
    #[error("read layer after entry {after:?}")]
    Tar { after: String, source: TarError },

    /// The kernel refused what an entry asks for; `operation` is its verb.
    #[error("{operation} for layer entry {entry:?}")]
    Entry { operation: &'static str, entry: String, source: io::Error },

    /// An entry asks for what no layer may.
    #[error("layer entry {entry:?}: {problem}")]
    BadEntry { entry: String, problem: EntryProblem },

    /// A layer is larger than [`Limits`](super::Limits) allow.
    #[error("layer has more than {max} {what}")]
    TooLarge { what: &'static str, max: u64 },

    /// The mounts are such that there is nothing to write to, or of a type that is not known.
    #[error("mounts cannot be used: {reason}")]
    Mounts { reason: String },

    /// The kernel refused to show or mount a directory.
    #[error("{operation} {}", path.display())]
    View { operation: &'static str, path: PathBuf, source: io::Error },

    /// A file could not be read for a layer.
    #[error("{operation} {path:?} for a layer")]
    Source { operation: &'static str, path: String, source: io::Error },

    /// The layer could not be written.
    #[error("write layer")]
    Write(#[source] io::Error),
}

/// What no layer entry may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// A whiteout of nothing, `.` or `..`.
    #[error("invalid whiteout name")]
    WhiteoutName,
    /// A directory in the path has the name of a whiteout.
    #[error("is below a whiteout")]
    BelowWhiteout,
    /// A type of entry that has no meaning in layers.
    #[error("unhandled tar header type {0:?}")]
    Type(char),
    /// More symbolic links in a path than the kernel would follow.
    #[error("too many symbolic links")]
    Links,
    /// An empty name or target.
    #[error("has an empty name")]
    Empty,
}

/// `name` for messages: as text, with what is not text replaced, and cut where it is long.
pub(super) fn shown(name: &[u8]) -> String {
    const SHOWN_MAX: usize = 256;
    let text = String::from_utf8_lossy(&name[..name.len().min(SHOWN_MAX)]);
    if name.len() > SHOWN_MAX { format!("{text}…") } else { text.into_owned() }
}
