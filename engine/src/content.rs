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
//!   again by a client that names its digest (containerd's sharing policy "shared"), unless blobs are
//!   [isolated](Store::isolated): then only if that namespace is labelled as shareable.
//! - **One writer.** A ref has one open writer; a second is told to try again.
//! - **Resumable.** What was written is there for the next writer of the ref, who hears the offset.
//!
//! An unfinished write is kept while it has a writer, for [`INGEST_KEPT`] after its last change, or
//! as long as its lease exists.
//!
//! All bytes may also be kept by [another program](external); then only what there is to say of unfinished
//! writes is in their folders.
//!
//! Source: containerd, `plugins/content/local`, `core/metadata/content.go`.

pub mod external;
mod ingest;
mod reader;
mod sweep;
mod writer;

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use self::external::{Backend, External};
pub(crate) use self::sweep::Kept;
pub use self::{
    reader::{Blob, BlobReader},
    writer::{Committed, Hashing, NewWrite, Writer},
};
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
    /// Who keeps the bytes, if that is another program.
    external: Option<External>,
    /// Whether a namespace has to send what another one has.
    is_isolated: bool,
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

impl Store {
    /// Keeps blobs below `root`, and their records in `metadata`.
    ///
    /// # Errors
    ///
    /// `File`.
    pub fn open(root: &Path, metadata: metadata::Store) -> Result<Self, Error> {
        Self::open_over(root, metadata, None)
    }

    /// Keeps the records of blobs in `metadata`, and what is known of unfinished writes below `root`; all bytes
    /// are kept by `backend`.
    ///
    /// # Errors
    ///
    /// `File`, `Database`.
    pub fn open_external(
        root: &Path,
        metadata: metadata::Store,
        backend: impl Backend + 'static,
    ) -> Result<Self, Error> {
        let external = External::new(Box::new(backend), &metadata)?;
        Self::open_over(root, metadata, Some(external))
    }

    fn open_over(
        root: &Path,
        metadata: metadata::Store,
        external: Option<External>,
    ) -> Result<Self, Error> {
        for folder in ["blobs/sha256", "ingest", "gone"] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).map_err(Error::file("create", folder))?;
        }
        let inner = Inner {
            root: root.to_owned(),
            metadata,
            external,
            is_isolated: false,
            open: Mutex::default(),
            claims: Mutex::default(),
            gone: AtomicU64::new(0),
        };
        let store = Self { inner: Arc::new(inner) };
        store.empty_gone()?;
        Ok(store)
    }

    /// The same, with containerd's sharing policy "isolated". To be called before there are clones.
    #[must_use]
    pub fn isolated(mut self) -> Self {
        let inner = Arc::get_mut(&mut self.inner);
        inner.expect("nobody else has the store yet").is_isolated = true;
        self
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

    /// Opens a blob for reading; a file of our own stays readable when it is deleted meanwhile.
    ///
    /// # Errors
    ///
    /// - `NotFound`: the namespace does not have it, or the program that keeps it.
    /// - `Unavailable`: the program that keeps it is away.
    pub fn blob(&self, namespace: &Namespace, digest: &Digest) -> Result<Blob, Error> {
        let size = self.info(namespace, digest)?.size;
        Blob::open(self, namespace, digest, size)
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

    /// Lets the namespace forget a blob; its bytes go when no namespace has it.
    ///
    /// # Errors
    ///
    /// `NotFound`: the namespace does not have it.
    pub fn delete(&self, scope: &Scope, digest: &Digest) -> Result<(), Error> {
        self.metadata().delete_content(scope, digest)?;
        self.note_removal();
        Ok(())
    }

    /// Notes that there are blobs without a record.
    pub(crate) fn note_removal(&self) {
        if let Some(external) = &self.inner.external {
            external.note_removal();
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
        if !self.ask_progress(namespace, &mut status)? {
            return Err(no_write(reference));
        }
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
            let name = name.to_owned();
            if !self.ask_progress(namespace, &mut status)? {
                continue;
            }
            status.reference = name;
            if filter.matches(&status) {
                found.push(status);
            }
        }
        Ok(found)
    }

    /// Enters how far a write, under its whole name, has come where another program keeps its bytes.
    /// Returns whether it is there.
    fn ask_progress(&self, namespace: &Namespace, status: &mut WriteStatus) -> Result<bool, Error> {
        let Some(external) = &self.inner.external else { return Ok(true) };
        let Some(progress) = external.backend.progress(namespace, &status.reference)? else {
            return Ok(false);
        };
        status.offset = progress.offset;
        status.updated = status.updated.max(progress.updated);
        Ok(true)
    }

    /// Gives up a write; an open writer of it fails when it commits.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn abort(&self, namespace: &Namespace, reference: &str) -> Result<(), Error> {
        let folder = self.ingest_folder(namespace, reference);
        if let Some(external) = &self.inner.external
            && folder.exists()
        {
            // While its folder is there it can be given up again when this fails.
            external.backend.abort(namespace, &full_reference(namespace, reference))?;
        }
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
        self.folder_of(&full_reference(namespace, reference))
    }

    /// The folder of a write, by its whole name.
    fn folder_of(&self, reference: &str) -> PathBuf {
        self.inner.root.join("ingest").join(folder_name(reference))
    }

    fn lock_open(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.inner.open.lock().unwrap_or_else(PoisonError::into_inner)
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
pub(crate) mod tests;
