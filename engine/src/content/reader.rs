//! Reads one blob.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::Store;
use crate::{digest::Digest, error::Error, namespace::Namespace};

/// How much is asked of another program at once, in bytes. Of a layer this is little memory, and
/// much for a message.
const CHUNK_LEN: usize = 1 << 20;

/// The bytes of a blob.
pub struct Blob {
    source: Source,
    size: u64,
}

enum Source {
    File { file: File, path: PathBuf },
    External { store: Store, namespace: Namespace, digest: Digest },
}

impl Blob {
    /// Opens the blob `digest`, which by its record has `size` bytes.
    pub(super) fn open(
        store: &Store,
        namespace: &Namespace,
        digest: &Digest,
        size: u64,
    ) -> Result<Self, Error> {
        let Some(external) = &store.inner.external else {
            let path = store.path(digest);
            return match File::open(&path) {
                Ok(file) => Ok(Self { source: Source::File { file, path }, size }),
                // Deleted since: then it says so.
                Err(error) => Err(store
                    .info(namespace, digest)
                    .err()
                    .unwrap_or_else(|| Error::file("open", &path)(error))),
            };
        };
        if external.backend.size(namespace, digest)?.is_none() {
            return Err(Error::NotFound(format!("content digest {digest}")));
        }
        let (store, namespace, digest) = (store.clone(), namespace.clone(), digest.clone());
        Ok(Self { source: Source::External { store, namespace, digest }, size })
    }

    /// Its size, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` from `offset` on; less is read only at the end.
    ///
    /// # Errors
    ///
    /// - `File`.
    /// - `Unavailable` or what else the program says that keeps the blob.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_some(&mut buffer[filled..], offset + filled as u64)? {
                0 => break,
                len => filled += len,
            }
        }
        Ok(filled)
    }

    fn read_some(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error> {
        match &self.source {
            Source::File { file, path } => loop {
                match file.read_at(buffer, offset) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => return result.map_err(Error::file("read", path)),
                }
            },
            Source::External { store, namespace, digest } => {
                let external = store.inner.external.as_ref().expect("it was opened there");
                let rest = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
                let len = buffer.len().min(CHUNK_LEN).min(rest);
                if len == 0 {
                    return Ok(0);
                }
                let bytes = external.backend.read(namespace, digest, offset, len)?;
                let len = len.min(bytes.len());
                buffer[..len].copy_from_slice(&bytes[..len]);
                Ok(len)
            }
        }
    }

    /// Reads everything, if that is at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// - `InvalidArgument`: it is larger.
    /// - As [`read_at`](Self::read_at).
    pub fn read_all(&self, limit: u64) -> Result<Vec<u8>, Error> {
        if self.size > limit {
            let size = self.size;
            let message = format!("blob of {size} bytes is larger than {limit}");
            return Err(Error::InvalidArgument(message));
        }
        let mut bytes = vec![0; usize::try_from(self.size).expect("below the limit")];
        let len = self.read_at(&mut bytes, 0)?;
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Its bytes from the first on, for whoever reads them in order.
    pub fn into_reader(self) -> BlobReader {
        BlobReader { blob: self, at: 0, chunk: Vec::new(), used: 0 }
    }

    /// An open file, positioned at its start, for another program to read. What is not a file of ours is
    /// copied into a nameless one.
    ///
    /// # Errors
    ///
    /// As [`read_at`](Self::read_at).
    pub fn into_file(self) -> Result<File, Error> {
        match self {
            Self { source: Source::File { file, .. }, .. } => Ok(file),
            Self { source: Source::External { ref store, .. }, .. } => {
                let folder = store.inner.root.join("ingest");
                self.copy_into(&folder)
            }
        }
    }

    fn copy_into(&self, folder: &Path) -> Result<File, Error> {
        let mut file = nameless(folder).map_err(Error::file("create a file in", folder))?;
        let mut chunk = vec![0; CHUNK_LEN];
        let mut at = 0;
        loop {
            let len = self.read_at(&mut chunk, at)?;
            if len == 0 {
                break;
            }
            file.write_all(&chunk[..len]).map_err(Error::file("write a file in", folder))?;
            at += len as u64;
        }
        file.rewind().map_err(Error::file("rewind a file in", folder))?;
        Ok(file)
    }
}

/// A file that goes when it is closed.
fn nameless(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(openat(CWD, folder, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// The bytes of a blob in order.
pub struct BlobReader {
    blob: Blob,
    /// Where the next chunk begins, of those that another program gives.
    at: u64,
    /// What was read last.
    chunk: Vec<u8>,
    /// How much of that was given.
    used: usize,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self { blob, at, chunk, used } = self;
        if let Source::File { file, .. } = &mut blob.source {
            return file.read(buffer);
        }
        if *used == chunk.len() {
            chunk.resize(CHUNK_LEN, 0);
            *used = 0;
            let read = blob.read_at(chunk, *at);
            // Of what failed nothing is given.
            chunk.truncate(read.as_ref().copied().unwrap_or(0));
            *at += read.map_err(io::Error::other)? as u64;
        }
        let len = buffer.len().min(chunk.len() - *used);
        buffer[..len].copy_from_slice(&chunk[*used..*used + len]);
        *used += len;
        Ok(len)
    }
}
