//! Writes one blob.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    Blob, Store, WriteStatus,
    external::{External, Session},
    full_reference, ingest,
    sweep::Claim,
};
use crate::{
    digest::{Algorithm, Digest, Hasher},
    error::Error,
    labels::Labels,
    metadata::{Resource, already_exists},
    namespace::Scope,
};

/// How much is read at once when bytes are hashed again, in bytes.
const BUFFER_LEN: usize = 1 << 20;

/// What a writer is told when it is opened.
#[derive(Clone, Debug)]
pub struct NewWrite<'a> {
    /// The name of the write, unique in its namespace.
    pub reference: &'a str,
    /// How large the blob will be, in bytes, or 0.
    pub total: u64,
    /// The digest that the blob will have, if that is known.
    pub expected: Option<Digest>,
    /// Who hashes.
    pub hashing: Hashing,
}

impl<'a> NewWrite<'a> {
    /// A write of which nothing is known but its name.
    pub fn new(reference: &'a str) -> Self {
        Self { reference, total: 0, expected: None, hashing: Hashing::Writer }
    }
}

/// Who computes the digest of what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hashing {
    /// The writer, while it writes.
    Writer,
    /// The caller, who sees the bytes anyway: the writer believes what
    /// [`commit`](Writer::commit) says.
    Caller,
}

/// What was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The blob's address.
    pub digest: Digest,
    /// Its size, in bytes.
    pub size: u64,
}

/// An open write. Dropping it keeps what was written, for a later writer of the same ref.
///
/// ```text
///            ┌─ the blob is there for another namespace ──> shared ──> commit: a record only
///  open ─────┤                                                │ write, truncate
///            └─ otherwise ──────────────────────────────> writing ──> commit: verify, sync, rename
/// ```
///
/// Where another program keeps the bytes, it hashes, verifies and places them.
pub struct Writer {
    store: Store,
    scope: Scope,
    reference: String,
    folder: PathBuf,
    total: u64,
    started: SystemTime,
    updated: SystemTime,
    state: State,
}

enum State {
    /// It is being opened.
    New,
    /// The blob exists, in another namespace, and stays at least until this is dropped.
    Shared { blob: Committed, _claim: Claim },
    /// Bytes come.
    Writing { file: File, offset: u64, hasher: Option<Box<Hasher>> },
    /// Bytes come, and go to another program.
    Sending(Box<dyn Session>),
}

impl Writer {
    pub(super) fn open(store: &Store, scope: &Scope, new: NewWrite<'_>) -> Result<Self, Error> {
        if new.reference.is_empty() {
            return Err(Error::InvalidArgument("ref must not be empty".to_owned()));
        }
        if let Some(expected) = &new.expected {
            // From before the look, so that what is seen is still there when it is leased.
            let keep = store.metadata().referring();
            if store.info(&scope.namespace, expected).is_ok() {
                let resource = Resource::content(expected);
                store.metadata().lease_seen(&keep, scope, &resource)?;
                return Err(already_exists(expected));
            }
        }
        let reference = full_reference(&scope.namespace, new.reference);
        if !store.lock_open().insert(reference.clone()) {
            let name = new.reference;
            return Err(Error::Unavailable(format!("ref {name} locked")));
        }
        let folder = store.ingest_folder(&scope.namespace, new.reference);
        let now = SystemTime::now();
        // From here on dropping the writer frees the ref.
        let mut writer = Self {
            store: store.clone(),
            scope: scope.clone(),
            reference,
            folder,
            total: new.total,
            started: now,
            updated: now,
            state: State::New,
        };
        writer.state = match writer.find_shared(new.expected.as_ref()) {
            Some((blob, claim)) => State::Shared { blob, _claim: claim },
            None => writer.resume(new.expected.as_ref(), new.hashing)?,
        };
        Ok(writer)
    }

    /// The expected blob, if some namespace has it.
    fn find_shared(&self, expected: Option<&Digest>) -> Option<(Committed, Claim)> {
        let digest = expected?;
        let inner = &self.store.inner;
        if inner.is_isolated && !inner.metadata.shares_content(digest).ok()? {
            return None;
        }
        let claim = self.store.claim(digest);
        let size = match &self.store.inner.external {
            None => fs::metadata(self.store.path(digest)).ok()?.len(),
            // When it is away, the write says so.
            Some(external) => external.backend.size(&self.scope.namespace, digest).ok()??,
        };
        // Of another size than the client says: it has to find out by sending it.
        let is_it = self.total == 0 || self.total == size;
        is_it.then(|| (Committed { digest: digest.clone(), size }, claim))
    }

    fn resume(&mut self, expected: Option<&Digest>, hashing: Hashing) -> Result<State, Error> {
        let found = self.note()?;
        if self.store.inner.external.is_some() {
            return self.send(found.is_some());
        }
        let algorithm = expected.map_or(Algorithm::Sha256, Digest::algorithm);
        let mut hasher = Hasher::new(algorithm);
        let offset = match found {
            Some(_) if hashing == Hashing::Writer => self.hash(&mut hasher)?,
            Some(offset) => offset,
            None => 0,
        };
        let path = self.folder.join("data");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        file.set_len(offset).map_err(Error::file("truncate", &path))?;
        file.seek(SeekFrom::Start(offset)).map_err(Error::file("seek", path))?;
        let hasher = (hashing == Hashing::Writer).then(|| Box::new(hasher));
        Ok(State::Writing { file, offset, hasher })
    }

    /// Has a folder tell of the write. Gives the length of the data there, if it told of it before.
    fn note(&mut self) -> Result<Option<u64>, Error> {
        let found = ingest::status(&self.folder)?.filter(|found| {
            found.reference == self.reference
                && (self.total == 0 || found.total == 0 || found.total == self.total)
        });
        if let Some(found) = found {
            self.started = found.started;
            self.updated = found.updated;
            self.total = found.total;
            if let Some(lease) = &self.scope.lease {
                ingest::add_lease(&self.folder, lease)?;
            }
            return Ok(Some(found.offset));
        }
        let lease = self.scope.lease.as_deref();
        ingest::create(&self.folder, &self.reference, self.total, lease)?;
        Ok(None)
    }

    /// Goes on with a write at another program, or begins one.
    fn send(&self, resumed: bool) -> Result<State, Error> {
        let external = self.store.inner.external.as_ref().expect("asked before");
        let namespace = &self.scope.namespace;
        let mut session = external.backend.write(namespace, &self.reference, self.total)?;
        if !resumed {
            session.rewind();
        }
        Ok(State::Sending(session))
    }

    /// Hashes what is written, and says how much that is.
    fn hash(&self, hasher: &mut Hasher) -> Result<u64, Error> {
        let path = self.folder.join("data");
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            file => hash(file.map_err(Error::file("open", &path))?, &path, hasher),
        }
    }

    /// How far the write has come. The ref is the client's.
    pub fn status(&self) -> WriteStatus {
        let (offset, total, expected) = match &self.state {
            State::New => (0, self.total, None),
            State::Shared { blob, .. } => (blob.size, blob.size, Some(blob.digest.clone())),
            State::Writing { .. } | State::Sending(_) => (self.offset(), self.total, None),
        };
        let name = &self.reference[self.scope.namespace.as_str().len() + 1..];
        WriteStatus {
            reference: name.to_owned(),
            offset,
            total,
            expected,
            started: self.started,
            updated: self.updated,
        }
    }

    /// How much is written, in bytes.
    pub fn offset(&self) -> u64 {
        match &self.state {
            State::New => 0,
            State::Shared { blob, .. } => blob.size,
            State::Writing { offset, .. } => *offset,
            State::Sending(session) => session.offset(),
        }
    }

    /// Whether the blob is there already, so that it can be committed without writing it.
    pub fn is_shared(&self) -> bool {
        matches!(self.state, State::Shared { .. })
    }

    /// The digest of what is written; nothing when the caller hashes, or another program that does not
    /// tell.
    pub fn digest(&self) -> Option<Digest> {
        match &self.state {
            State::New => None,
            State::Shared { blob, .. } => Some(blob.digest.clone()),
            State::Writing { hasher, .. } => {
                hasher.as_ref().map(|hasher| Hasher::clone(hasher).finish())
            }
            State::Sending(session) => session.digest(),
        }
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    ///
    /// `File`, or what the program says that keeps blobs; how much of `bytes` was written is not known
    /// then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.unshare(true)?;
        match &mut self.state {
            State::New | State::Shared { .. } => unreachable!("unshared"),
            State::Sending(session) => session.append(bytes)?,
            State::Writing { file, offset, hasher } => {
                file.write_all(bytes).map_err(Error::file("write", self.folder.join("data")))?;
                if let Some(hasher) = hasher {
                    hasher.update(bytes);
                }
                *offset += bytes.len() as u64;
            }
        }
        self.updated = SystemTime::now();
        Ok(())
    }

    /// Starts from the beginning.
    ///
    /// # Errors
    ///
    /// `File`, or what the program says that keeps blobs.
    pub fn truncate(&mut self) -> Result<(), Error> {
        self.unshare(false)?;
        let (file, offset, hasher) = match &mut self.state {
            State::New | State::Shared { .. } => unreachable!("unshared"),
            State::Sending(session) => {
                session.rewind();
                return Ok(());
            }
            State::Writing { file, offset, hasher } => (file, offset, hasher),
        };
        let path = self.folder.join("data");
        file.set_len(0).map_err(Error::file("truncate", &path))?;
        file.rewind().map_err(Error::file("seek", path))?;
        *offset = 0;
        if let Some(hasher) = hasher {
            **hasher = Hasher::new(hasher.algorithm());
        }
        Ok(())
    }

    /// Gives the write bytes of its own, instead of those of another namespace's blob.
    fn unshare(&mut self, copy: bool) -> Result<(), Error> {
        let State::Shared { blob, .. } = &self.state else { return Ok(()) };
        let Committed { digest, size } = blob.clone();
        let _claim = self.store.claim(&digest);
        self.state = self.resume(Some(&digest), Hashing::Writer)?;
        self.truncate()?;
        if copy {
            // That of another namespace, for which there is no record in this one.
            let blob = Blob::open(&self.store, &self.scope.namespace, &digest, size)?;
            let mut buffer = vec![0; BUFFER_LEN];
            let mut at = 0;
            loop {
                let len = blob.read_at(&mut buffer, at)?;
                if len == 0 {
                    break;
                }
                self.write(&buffer[..len])?;
                at += len as u64;
            }
        }
        Ok(())
    }

    /// Makes what is written a blob of the namespace, under `labels`.
    ///
    /// The blob and its record are on disk when this returns. `size` is what the caller expects,
    /// or 0. When the caller hashes, `expected` is what it found.
    ///
    /// # Errors
    ///
    /// - `FailedPrecondition`: size or digest differ; what was written stays.
    /// - `AlreadyExists`: the namespace has the blob; what was written is gone.
    /// - `InvalidArgument`: a label is too long, or nobody has hashed.
    /// - `Unavailable`: the blob was to be shared, and is gone.
    /// - `NotFound`: the lease does not exist.
    pub fn commit(
        mut self,
        size: u64,
        expected: Option<&Digest>,
        labels: Labels,
    ) -> Result<Committed, Error> {
        crate::labels::check(&labels)
            .map_err(|error| Error::InvalidArgument(format!("info.Labels: {error}")))?;
        let name = &self.reference[self.scope.namespace.as_str().len() + 1..];
        let written = self.offset();
        if size != 0 && size != written {
            let message = format!("{name:?} failed size validation: {written} != {size}");
            return Err(Error::FailedPrecondition(message));
        }
        let store = self.store.clone();
        if let State::Writing { file, .. } = &self.state {
            // Before anything is locked: this takes as long as the disk does.
            file.sync_data().map_err(Error::file("sync", self.folder.join("data")))?;
        }
        if let State::Shared { blob, .. } = &self.state
            && expected.is_some_and(|expected| *expected != blob.digest)
        {
            return Err(Error::FailedPrecondition(format!("{name:?} unexpected digest")));
        }
        let (digest, _claim) = match &store.inner.external {
            Some(external) => self.finish_there(external, expected)?,
            None => self.finish_here(expected)?,
        };
        let committed = Committed { digest, size: written };
        let entered =
            store.metadata().insert_content(&self.scope, &committed.digest, written, labels);
        // Perhaps nobody has it then.
        entered.inspect_err(|_| store.note_removal())?;
        Ok(committed)
    }

    /// Has another program make a blob of what is written. It is claimed until the record is there.
    fn finish_there(
        &mut self,
        external: &External,
        expected: Option<&Digest>,
    ) -> Result<(Digest, Option<Claim>), Error> {
        let namespace = &self.scope.namespace;
        let session = match &mut self.state {
            State::Shared { blob, .. } => {
                let found = external.backend.size(namespace, &blob.digest)?;
                return found
                    .map(|_| (blob.digest.clone(), None))
                    .ok_or_else(|| gone(&blob.digest));
            }
            State::Sending(session) => session,
            State::New | State::Writing { .. } => unreachable!("where a program keeps the bytes"),
        };
        let (digest, claim) = if let Some(known) = expected.cloned().or_else(|| session.digest()) {
            let claim = self.store.claim(&known);
            let making = external.begin_making(namespace, &known)?;
            let placed = session.commit(expected);
            making.end(&placed)?;
            (placed?.digest, claim)
        } else {
            let placed = session.commit(expected)?;
            if placed.is_new {
                external.note_made(namespace, &placed.digest)?;
            }
            let claim = self.store.claim(&placed.digest);
            // It was not claimed before.
            let found = external.backend.size(namespace, &placed.digest)?;
            found.ok_or_else(|| gone(&placed.digest))?;
            (placed.digest, claim)
        };
        self.clear();
        Ok((digest, Some(claim)))
    }

    /// Makes a blob of what is written. It is claimed until the record is there, which says that it is
    /// somebody's.
    fn finish_here(&mut self, expected: Option<&Digest>) -> Result<(Digest, Option<Claim>), Error> {
        match &mut self.state {
            State::Shared { blob, .. } => {
                let path = self.store.path(&blob.digest);
                match path.try_exists().map_err(Error::file("stat", path))? {
                    true => Ok((blob.digest.clone(), None)),
                    false => Err(gone(&blob.digest)),
                }
            }
            State::Writing { hasher, .. } => {
                let hasher = hasher.take().map(|hasher| *hasher);
                let digest = self.verify(hasher, expected)?;
                let claim = self.store.claim(&digest);
                self.place(&digest)?;
                Ok((digest, Some(claim)))
            }
            State::New | State::Sending(_) => unreachable!("where files are written"),
        }
    }

    /// The digest of what is written, which is the expected one if there is one.
    fn verify(&self, hasher: Option<Hasher>, expected: Option<&Digest>) -> Result<Digest, Error> {
        let found = match (hasher, expected) {
            (None, None) => {
                let message = format!("{:?} was not hashed", self.reference);
                return Err(Error::InvalidArgument(message));
            }
            (None, Some(expected)) => expected.clone(),
            // The algorithm was not told before: hash again.
            (Some(hasher), Some(expected)) if hasher.algorithm() != expected.algorithm() => {
                let mut hasher = Hasher::new(expected.algorithm());
                self.hash(&mut hasher)?;
                hasher.finish()
            }
            (Some(hasher), _) => hasher.finish(),
        };
        match expected {
            Some(expected) if found != *expected => Err(Error::FailedPrecondition(format!(
                "unexpected commit digest {found}, expected {expected}"
            ))),
            _ => Ok(found),
        }
    }

    /// Moves the bytes to where blobs are, and removes the rest of the write.
    fn place(&self, digest: &Digest) -> Result<(), Error> {
        let (data, blob) = (self.folder.join("data"), self.store.path(digest));
        let folder = blob.parent().expect("a blob is in a folder");
        let exists = blob.try_exists().map_err(Error::file("stat", &blob))?;
        if !exists {
            if !folder.exists() {
                fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
                folder.parent().map_or(Ok(()), sync)?;
            }
            fs::set_permissions(&data, Permissions::from_mode(0o444))
                .map_err(Error::file("set permissions of", &data))?;
            fs::rename(&data, &blob).map_err(Error::file("rename", &blob))?;
        }
        // Also of one that is there: whoever put it there may not have come to this yet.
        sync(folder)?;
        self.clear();
        Ok(())
    }

    /// Removes what tells of the write.
    fn clear(&self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            // The next collection takes it.
            tracing::warn!(%error, folder = %self.folder.display(), "remains of a write stay");
        }
    }
}

fn sync(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::file("sync", folder))
}

/// Whoever had the blob has deleted it since the write was opened.
fn gone(digest: &Digest) -> Error {
    Error::Unavailable(format!("blob {digest} was removed; it has to be sent"))
}

impl Drop for Writer {
    fn drop(&mut self) {
        if matches!(self.state, State::Writing { .. } | State::Sending(_)) && self.folder.exists() {
            // Only the time of the last change is lost, and the data's own stands in for it.
            let _ = ingest::touch(&self.folder);
        }
        self.store.lock_open().remove(&self.reference);
    }
}

fn hash(mut file: File, path: &Path, hasher: &mut Hasher) -> Result<u64, Error> {
    let mut buffer = vec![0; BUFFER_LEN];
    let mut total = 0;
    loop {
        match file.read(&mut buffer).map_err(Error::file("read", path))? {
            0 => return Ok(total),
            len => {
                hasher.update(&buffer[..len]);
                total += len as u64;
            }
        }
    }
}
