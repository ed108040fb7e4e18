//! Makes layers: the changes from one tree of files to another.
//!
//! # Two ways, one result
//!
//! Where the upper tree is an overlay on just the lower tree, its upper directory lists what has
//! changed, and only that is looked at. Otherwise all of both trees is. The layer is the same.
//! The upper tree is only ever read, so a running container does no harm but to itself.
//!
//! # What is compared
//!
//! Type, mode, owner, device, extended attributes; of files and links also size and time of last
//! change, and content where no nanoseconds tell the times apart (layers keep only seconds).
//! Times of directories do not count. Sockets are left out.
//!
//! # Form
//!
//! Entries are in the order of their paths, each after the directories that it is in, changed or
//! not. A removed file is a whiteout; there are no opaque marks. Files with several names become
//! hard links where one of the names has changed. The order, the choice and the bytes are those of
//! containerd, except that `user.` attributes are kept too.
//!
//! Sources: containerd `pkg/archive/tar.go` (`ChangeWriter`), continuity `fs/diff.go`,
//! `fs/path.go`.

mod changes;
mod emit;
mod source;

use std::io::{self, Write};

use snapshotter::Mount;

use super::{Compression, DiffError, Encoder, tar::Writer, view::View};
use crate::digest::{Algorithm, Digest, Hasher};
use changes::{Marks, Walk};

/// What a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// The digest of the layer as it was written.
    pub digest: Digest,
    /// Its length, in bytes.
    pub size: u64,
    /// The digest of the uncompressed layer.
    pub diff_id: Digest,
}

/// How to make a layer.
#[derive(Clone, Copy, Debug)]
pub struct CompareOptions {
    /// How it is compressed.
    pub compression: Compression,
    /// Later times of files become this one, in seconds since 1970 (`SOURCE_DATE_EPOCH`).
    pub mtime_max: Option<i64>,
}

/// Writes the layer with the changes from what `lower` shows to what `upper` shows. No mounts show
/// an empty tree.
///
/// # Errors
///
/// - `Mounts`, `View`: one of the trees cannot be looked at.
/// - `Source`: a file cannot be read, or changed meanwhile.
/// - `Write`: `sink` failed.
pub fn compare(
    lower: &[Mount],
    upper: &[Mount],
    options: &CompareOptions,
    sink: impl Write,
) -> Result<Compared, DiffError> {
    let (lower, upper) = (View::of(lower)?, View::of(upper)?);
    let encoder =
        Encoder::new(options.compression, Hashing::new(sink)).map_err(DiffError::Write)?;
    let writer = Writer::new(Hashing::new(encoder));
    let writer = match &upper {
        None => writer,
        Some(upper_view) => {
            let (root, marks) = match direct(lower.as_ref(), upper_view) {
                Some((directory, marks)) => (super::view::open(directory)?, Some(marks)),
                None => (upper_view.open()?, None),
            };
            let lower = lower.as_ref().map(View::open).transpose()?;
            Walk::new(lower, root, marks, options.mtime_max, writer).run()?
        }
    };
    let encoder = writer.finish().map_err(DiffError::Write)?;
    let diff_id = encoder.hasher.finish();
    let mut sink = encoder.sink.finish().map_err(DiffError::Write)?;
    sink.flush().map_err(DiffError::Write)?;
    Ok(Compared { digest: sink.hasher.finish(), size: sink.len, diff_id })
}

/// The directory with the changes alone, if there is one that can be understood.
fn direct<'v>(lower: Option<&View>, upper: &'v View) -> Option<(&'v std::path::Path, Marks)> {
    let View::Overlay { upper: Some(directory), lower: below, user_xattr, redirects: false } =
        upper
    else {
        return None;
    };
    let is_below = match lower? {
        View::Directory { path, .. } => below.as_slice() == std::slice::from_ref(path),
        View::Overlay { upper: None, lower, .. } => lower == below,
        _ => false,
    };
    let opaque = if *user_xattr { c"user.overlay.opaque" } else { c"trusted.overlay.opaque" };
    is_below.then_some((directory, Marks { opaque }))
}

/// Counts and hashes what passes.
struct Hashing<W> {
    sink: W,
    hasher: Hasher,
    len: u64,
}

impl<W> Hashing<W> {
    fn new(sink: W) -> Self {
        Self { sink, hasher: Hasher::new(Algorithm::Sha256), len: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.sink.write(bytes)?;
        self.hasher.update(&bytes[..len]);
        self.len += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
