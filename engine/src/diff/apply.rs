//! Applies layers.
//!
//! ```text
//!   Read ──> Decoder ──> Stream (diff ID) ──> Reader (entries) ──> Extractor ──> files
//! ```
//!
//! What a whiteout becomes depends on where the layer goes ([`Whiteouts`]): into the upper
//! directory of an overlay, a mark for the kernel; anywhere else, a removal.

mod directories;
mod extract;
mod file;

use std::{io::Read, os::fd::OwnedFd};

use snapshotter::Mount;

use super::{
    Decoder, DiffError,
    error::shown,
    tar::{Reader, Stream},
    view::{View, open},
};
use crate::digest::Digest;
use extract::Extractor;

/// What a layer was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The digest of the uncompressed layer.
    pub diff_id: Digest,
    /// The length of the uncompressed layer, in bytes.
    pub size: u64,
    /// The directories that had to be made and of which neither the layer nor what is below tells
    /// anything; see [`adopt`].
    pub invented: Vec<Vec<u8>>,
}

/// What a layer may ask for at most. Lengths of names, headers and attributes have limits of
/// their own, which no honest layer comes near.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Uncompressed bytes.
    pub bytes_max: u64,
    /// Bytes of files, which holes let be more than those of the layer.
    pub file_bytes_max: u64,
    /// Files, links, directories and whiteouts.
    pub entries_max: u64,
}

impl Default for Limits {
    /// One TiB, and four million entries, which take less than a GiB of memory.
    fn default() -> Self {
        Self { bytes_max: 1 << 40, file_bytes_max: 1 << 44, entries_max: 1 << 22 }
    }
}

/// What becomes of a whiteout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whiteouts {
    /// A device 0:0, or the mark of an opaque directory with this name.
    Mark { opaque: &'static std::ffi::CStr },
    /// The removal of what it hides.
    Remove,
}

/// Applies the layer in `blob`, of whichever compression, to what `mounts` show.
///
/// The digest of `blob` is not computed; give a reader that does. It is read to its end. `blob`
/// may be empty: then so is the layer.
///
/// Changes are not undone on error, and not synced.
///
/// # Errors
///
/// Every variant of [`DiffError`] but those of reading and writing for a comparison.
pub fn apply(blob: impl Read, mounts: &[Mount], limits: &Limits) -> Result<Applied, DiffError> {
    let (root, whiteouts, parents) = target(mounts)?;
    let decoder = Decoder::new(blob).map_err(DiffError::Read)?;
    let mut reader = Reader::new(Stream::new(decoder, limits.bytes_max));
    let mut extractor = Extractor::new(root, whiteouts, parents, limits)?;
    extractor.extract(&mut reader)?;
    let invented = extractor.into_invented();
    let (diff_id, size) = reader.into_stream().finish()?;
    Ok(Applied { diff_id, size, invented })
}

/// Makes the `invented` directories in what `mounts` show like those in what `below` shows.
///
/// For a layer that was applied before it was known what is below it.
///
/// # Errors
///
/// - `Mounts`, `View`: one of the trees cannot be looked at.
/// - `Entry`: a directory cannot be changed.
pub fn adopt(mounts: &[Mount], below: &[Mount], invented: &[Vec<u8>]) -> Result<(), DiffError> {
    let (root, ..) = target(mounts)?;
    let below = match View::of(below)? {
        None => Vec::new(),
        Some(View::Directory { path, .. }) => vec![open(&path)?],
        Some(View::Overlay { upper, lower, .. }) => {
            upper.iter().chain(&lower).map(|path| open(path)).collect::<Result<_, _>>()?
        }
        Some(view @ View::Other(_)) => vec![view.open()?],
    };
    directories::imitate_all(&root, &below, invented).map_err(|(path, source)| DiffError::Entry {
        operation: "set attributes",
        entry: shown(&path),
        source,
    })
}

type Target = (OwnedFd, Whiteouts, Vec<OwnedFd>);

/// Where to write, how to remove, and what is below, nearest first.
fn target(mounts: &[Mount]) -> Result<Target, DiffError> {
    let unusable = |reason: &str| DiffError::Mounts { reason: reason.to_owned() };
    match View::of(mounts)?.ok_or_else(|| unusable("there are none"))? {
        View::Directory { read_only: true, .. } => Err(unusable("they are read-only")),
        View::Directory { path, .. } => Ok((open(&path)?, Whiteouts::Remove, Vec::new())),
        View::Overlay { upper: None, .. } => Err(unusable("the overlay has no upperdir")),
        View::Overlay { upper: Some(upper), lower, user_xattr, .. } => {
            let opaque =
                if user_xattr { c"user.overlay.opaque" } else { c"trusted.overlay.opaque" };
            let parents = lower.iter().map(|path| open(path)).collect::<Result<_, _>>()?;
            Ok((open(&upper)?, Whiteouts::Mark { opaque }, parents))
        }
        View::Other(mount) => {
            Err(unusable(&format!("nothing can be written to type {:?}", mount.kind)))
        }
    }
}
