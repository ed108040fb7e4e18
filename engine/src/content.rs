//! The blobs: their bytes, on disk as containerd lays them out.
//!
//! ```text
//! <root>/blobs/<algorithm>/<hex>      a blob, read-only, complete
//! <root>/ingest/<hash of ref>/data    an unfinished write: the bytes so far
//!                             ref     "<namespace>/<ref>"
//!                             startedat, updatedat   RFC 3339
//!                             total   the expected size in decimal, if it was told
//!                             lease   the leases that keep it, a line for each
//! <root>/gone/<number>                what is being deleted
//! ```
//!
//! # Rules
//!
//! - **Whole or absent.** A blob appears by a rename, after its bytes were verified and are on disk.
//! - **Shared.** Blobs are kept once. Which namespace sees which is a record
//!   ([`ContentInfo`]); a file without any is garbage. A blob that some namespace has is not sent
//!   again by a client that names its digest (containerd's sharing policy "shared").
//! - **One writer.** A ref has one open writer; a second is told to try again.
//! - **Resumable.** What was written is there for the next writer of the ref, who hears the offset.
//!
//! An unfinished write is kept while it has a writer, for [`INGEST_KEPT`] after its last change, or
//! as long as its lease exists.
//!
//! Source: containerd, `plugins/content/local`, `core/metadata/content.go`.

mod ingest;
mod sweep;
mod writer;

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

pub(crate) use self::sweep::Kept;
pub use self::writer::{Committed, Hashing, NewWrite, Writer};
use crate::{
    digest::Digest,
    error::Error,
    filter::{self, Fields, Filter},
    metadata::{self, ContentInfo},
    namespace::{Namespace, Scope},
};

/// How long an unfinished write without a lease is kept after its last change.
pub const INGEST_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// The blobs. A clone is another handle on the same.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    metadata: metadata::Store,
    /// The refs, with their namespaces, that have a writer.
    open: Mutex<HashSet<String>>,
    /// The blobs to which somebody is about to refer, and how many do.
    claims: Mutex<HashMap<Digest, usize>>,
    /// The next number in `gone`.
    gone: AtomicU64,
}

/// How far a write has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteStatus {
    /// Its name in the namespace.
    pub reference: String,
    /// How much is written, in bytes.
    pub offset: u64,
    /// How much it will be, in bytes, if the client said.
    pub total: u64,
    /// What it will be, if that is known.
    pub expected: Option<Digest>,
    /// When it was begun.
    pub started: SystemTime,
    /// When it last grew.
    pub updated: SystemTime,
}

/// The bytes of a blob.
#[derive(Debug)]
pub struct Blob {
    file: File,
    path: PathBuf,
    size: u64,
}

impl Store {
    /// Keeps blobs below `root`, and their records in `metadata`.
    ///
    /// # Errors
    ///
    /// `File`.
    pub fn open(root: &Path, metadata: metadata::Store) -> Result<Self, Error> {
        for folder in ["blobs/sha256", "ingest", "gone"] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).map_err(Error::file("create", folder))?;
        }
        let inner = Inner {
            root: root.to_owned(),
            metadata,
            open: Mutex::default(),
            claims: Mutex::default(),
            gone: AtomicU64::new(0),
        };
        let store = Self { inner: Arc::new(inner) };
        store.empty_gone()?;
        Ok(store)
    }

    /// The records.
    pub fn metadata(&self) -> &metadata::Store {
        &self.inner.metadata
    }

    /// What the namespace knows of a blob.
    ///
    /// # Errors
    ///
    /// `NotFound`: the namespace does not have it.
    pub fn info(&self, namespace: &Namespace, digest: &Digest) -> Result<ContentInfo, Error> {
        self.metadata().content(namespace, digest)
    }

    /// Opens a blob for reading; it stays readable when it is deleted meanwhile.
    ///
    /// # Errors
    ///
    /// `NotFound`: the namespace does not have it.
    pub fn blob(&self, namespace: &Namespace, digest: &Digest) -> Result<Blob, Error> {
        let size = self.info(namespace, digest)?.size;
        let path = self.path(digest);
        match File::open(&path) {
            Ok(file) => Ok(Blob { file, path, size }),
            // Deleted since: then it says so.
            Err(error) => Err(self
                .info(namespace, digest)
                .err()
                .unwrap_or_else(|| Error::file("open", &path)(error))),
        }
    }

    /// Where a blob is or would be.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        let mut path = self.inner.root.join("blobs");
        path.push(digest.algorithm().name());
        path.push(digest.hex());
        path
    }

    /// Begins a write, or goes on with one.
    ///
    /// # Errors
    ///
    /// - `InvalidArgument`: there is no ref.
    /// - `AlreadyExists`: the namespace has the expected blob; it is added to the scope's lease.
    /// - `Unavailable`: the ref has a writer.
    /// - `NotFound`: there is no such lease.
    pub fn writer(&self, scope: &Scope, new: NewWrite<'_>) -> Result<Writer, Error> {
        Writer::open(self, scope, new)
    }

    /// Writes a whole blob that is in memory; a blob that the namespace has is fine.
    ///
    /// # Errors
    ///
    /// As [`writer`](Self::writer) and [`Writer::commit`], except `AlreadyExists`.
    pub fn put(
        &self,
        scope: &Scope,
        bytes: &[u8],
        labels: crate::labels::Labels,
    ) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        let reference = format!("put-{digest}");
        let size = bytes.len() as u64;
        let mut new = NewWrite::new(&reference);
        new.total = size;
        new.expected = Some(digest.clone());
        let written = self.writer(scope, new).and_then(|mut writer| {
            if writer.is_shared() {
                return writer.commit(size, None, labels);
            }
            writer.truncate()?;
            writer.write(bytes)?;
            writer.commit(size, Some(&digest), labels)
        });
        match written {
            Ok(_) | Err(Error::AlreadyExists(_)) => Ok(digest),
            Err(error) => Err(error),
        }
    }

    /// How far the write `reference` has come.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn status(&self, namespace: &Namespace, reference: &str) -> Result<WriteStatus, Error> {
        let folder = self.ingest_folder(namespace, reference);
        let mut status = ingest::status(&folder)?.ok_or_else(|| no_write(reference))?;
        status.reference = reference.to_owned();
        Ok(status)
    }

    /// The unfinished writes that `filter` selects.
    ///
    /// # Errors
    ///
    /// `File`.
    pub fn statuses(
        &self,
        namespace: &Namespace,
        filter: &Filter,
    ) -> Result<Vec<WriteStatus>, Error> {
        let mut found = Vec::new();
        for (_, mut status) in self.ingests()? {
            let name = status.reference.strip_prefix(namespace.as_str());
            let Some(name) = name.and_then(|name| name.strip_prefix('/')) else { continue };
            status.reference = name.to_owned();
            if filter.matches(&status) {
                found.push(status);
            }
        }
        Ok(found)
    }

    /// Gives up a write; an open writer of it fails when it commits.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn abort(&self, namespace: &Namespace, reference: &str) -> Result<(), Error> {
        let folder = self.ingest_folder(namespace, reference);
        match self.set_aside(&folder) {
            Ok(None) => Err(no_write(reference)),
            Ok(gone) => {
                sweep::delete(Ok(gone), "a write that was given up stays");
                Ok(())
            }
            Err(error) => Err(Error::file("remove", folder)(error)),
        }
    }

    /// The folders of all unfinished writes; the refs in their statuses start with the namespace.
    pub(crate) fn ingests(&self) -> Result<Vec<(PathBuf, WriteStatus)>, Error> {
        let root = self.inner.root.join("ingest");
        let mut found = Vec::new();
        for name in names(&root)? {
            let folder = root.join(name);
            if let Some(status) = ingest::status(&folder)? {
                found.push((folder, status));
            }
        }
        Ok(found)
    }

    fn ingest_folder(&self, namespace: &Namespace, reference: &str) -> PathBuf {
        let name = folder_name(&full_reference(namespace, reference));
        self.inner.root.join("ingest").join(name)
    }

    fn lock_open(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.inner.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blob {
    /// Its size, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` from `offset` on; less is read only at the end.
    ///
    /// # Errors
    ///
    /// `File`.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(len) => filled += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::file("read", &self.path)(error)),
            }
        }
        Ok(filled)
    }

    /// Reads everything, if that is at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// - `InvalidArgument`: it is larger.
    /// - `File`.
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

    /// The open file, positioned at its start, for whoever reads it in order.
    pub fn into_file(self) -> File {
        self.file
    }
}

impl Fields for WriteStatus {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        match path.first()?.as_str() {
            "ref" => filter::value(&self.reference),
            _ => None,
        }
    }
}

fn full_reference(namespace: &Namespace, reference: &str) -> String {
    format!("{namespace}/{reference}")
}

/// The name of the folder of a write, by its ref and namespace.
fn folder_name(reference: &str) -> String {
    Digest::of(reference.as_bytes()).hex().to_owned()
}

fn no_write(reference: &str) -> Error {
    Error::NotFound(format!("reference {reference}"))
}

/// The names in `folder`; of one that does not exist, none.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::file("read", folder))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::file("read", folder))?.file_name();
        names.extend(name.into_string());
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
