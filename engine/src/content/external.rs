//! Blobs and unfinished writes that another program keeps.
//!
//! As in containerd the program is only below the records: it has the bytes of all blobs, and of all
//! writes under names that start with the namespace. Which namespace sees which blob, labels and
//! leases are the records' of this daemon. That there is a write is noted in a folder, as for
//! [one of our own](super), but for its bytes.
//!
//! Calls are made in the name of the namespace that they are about. A collection asks for what there is
//! in all of them by naming none, as containerd's does. A program that insists on a namespace, such as
//! another containerd, is asked for each that there is a record of.
//!
//! # Collections
//!
//! Calls take as long as the program does, so none is made while a collection keeps all changes out.
//! Afterwards, if something was removed since the last time, what is there without a record is removed, one
//! by one, with no commit under way. A program that is away keeps what it has, and is asked again after
//! [`SWEEP_PAUSE`], which [the next collection](Store::next_sweep) is due after.

use std::{
    sync::{Mutex, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant, SystemTime},
};

use snapshotter::external::{Reason, Refused};

use super::Store;
use crate::{digest::Digest, error::Error, namespace::Namespace};

/// How long a program that could not be swept is left alone: whoever waits for a collection waits for
/// it, too.
const SWEEP_PAUSE: Duration = Duration::from_secs(10);

/// The other program. Implementations name themselves in what they refuse.
///
/// Without a namespace, all are meant.
pub trait Backend: Send + Sync {
    /// The size of a blob, in bytes; nothing when there is no such blob.
    ///
    /// # Errors
    ///
    /// What the program says, or that it says nothing.
    fn size(&self, namespace: &Namespace, digest: &Digest) -> Result<Option<u64>, Refused>;

    /// The bytes of a blob from `offset` on: `len` of them, or up to its end.
    ///
    /// # Errors
    ///
    /// As [`size`](Self::size).
    fn read(
        &self,
        namespace: &Namespace,
        digest: &Digest,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, Refused>;

    /// Begins a write, or goes on with one.
    ///
    /// # Errors
    ///
    /// As [`size`](Self::size).
    fn write(
        &self,
        namespace: &Namespace,
        reference: &str,
        total: u64,
    ) -> Result<Box<dyn Session>, Refused>;

    /// How far a write has come; nothing when there is no such write.
    ///
    /// # Errors
    ///
    /// As [`size`](Self::size).
    fn progress(&self, namespace: &Namespace, reference: &str)
    -> Result<Option<Progress>, Refused>;

    /// Gives up a write; one that is not there is fine.
    ///
    /// # Errors
    ///
    /// As [`size`](Self::size).
    fn abort(&self, namespace: Option<&Namespace>, reference: &str) -> Result<(), Refused>;

    /// Removes a blob; one that is not there is fine.
    ///
    /// # Errors
    ///
    /// As [`size`](Self::size).
    fn remove(&self, namespace: Option<&Namespace>, digest: &Digest) -> Result<(), Refused>;

    /// All blobs.
    ///
    /// # Errors
    ///
    /// As [`size`](Self::size).
    fn blobs(&self, namespace: Option<&Namespace>) -> Result<Vec<Digest>, Refused>;

    /// The names of all writes.
    ///
    /// # Errors
    ///
    /// As [`size`](Self::size).
    fn references(&self, namespace: Option<&Namespace>) -> Result<Vec<String>, Refused>;
}

/// An open write there. Dropping it keeps what was written.
pub trait Session: Send {
    /// Where the write stands.
    fn offset(&self) -> u64;

    /// The digest of what is written, if the program tells it.
    fn digest(&self) -> Option<Digest>;

    /// Goes back to the beginning; the program hears of it with what comes next.
    fn rewind(&mut self);

    /// Appends `bytes`.
    ///
    /// # Errors
    ///
    /// What the program says; how much was written is not known then.
    fn append(&mut self, bytes: &[u8]) -> Result<(), Refused>;

    /// Makes a blob of what is written, and says which. That it is there already is fine.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition`: the digest is another, and what was written stays.
    fn commit(&mut self, expected: Option<&Digest>) -> Result<Digest, Refused>;
}

/// How far a write has come, there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// How much is written, in bytes.
    pub offset: u64,
    /// When it last grew.
    pub updated: SystemTime,
}

pub(super) struct External {
    pub(super) backend: Box<dyn Backend>,
    /// Taken to write while something is removed there.
    commits: RwLock<()>,
    /// From when on there is something to sweep, if there may be something.
    due: Mutex<Option<Instant>>,
}

impl External {
    pub(super) fn new(backend: Box<dyn Backend>) -> Self {
        // Nobody knows what was left when the daemon stopped.
        Self { backend, commits: RwLock::default(), due: Mutex::new(Some(Instant::now())) }
    }

    /// Notes that there is something to sweep.
    pub(super) fn note_removal(&self) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        due.get_or_insert_with(Instant::now);
    }

    /// Whether a sweep is due; if so, it begins.
    fn begin_sweep(&self) -> bool {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = due.is_some_and(|due| due <= Instant::now());
        if is_due {
            *due = None;
        }
        is_due
    }

    fn put_off_sweep(&self) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        *due = Some(Instant::now() + SWEEP_PAUSE);
    }

    /// Keeps blobs from being removed until the record of one is made.
    pub(super) fn committing(&self) -> RwLockReadGuard<'_, ()> {
        self.commits.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Removes what the other program keeps and nobody else does, if there is such a program and it is
    /// due: blobs without a record, and writes of which nothing is noted. Nobody is kept waiting but who commits.
    /// Returns what was removed.
    ///
    /// # Errors
    ///
    /// - `Unavailable` or what else the program says; what was removed stays so.
    /// - `Database`, `File`.
    pub(crate) fn sweep_external(&self) -> Result<Vec<Digest>, Error> {
        match &self.inner.external {
            Some(external) if external.begin_sweep() => {
                self.sweep_at(external).inspect_err(|_| external.put_off_sweep())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// When a sweep is due that was put off.
    pub(crate) fn next_sweep(&self) -> Option<SystemTime> {
        let due = *self.inner.external.as_ref()?.due.lock().unwrap_or_else(PoisonError::into_inner);
        due.map(|due| SystemTime::now() + due.saturating_duration_since(Instant::now()))
    }

    fn sweep_at(&self, external: &External) -> Result<Vec<Digest>, Error> {
        let mut removed = Vec::new();
        // One that does not go keeps no other; one that is away is not asked again and again.
        let mut left = None;
        let mut note = |result: Result<(), Refused>| match result {
            Err(error) if error.reason == Reason::Unavailable => Err(error),
            Err(error) => {
                left = Some(error);
                Ok(false)
            }
            Ok(()) => Ok(true),
        };
        for (namespace, digest) in self.everywhere(|it| external.backend.blobs(it))? {
            if self.metadata().is_content_known(&digest)? {
                continue;
            }
            let _alone = external.commits.write().unwrap_or_else(PoisonError::into_inner);
            // Perhaps it was just committed.
            if self.metadata().is_content_known(&digest)? {
                continue;
            }
            if note(external.backend.remove(namespace.as_ref(), &digest))? {
                removed.push(digest);
            }
        }
        for (namespace, reference) in self.everywhere(|it| external.backend.references(it))? {
            // The folder is made before the write is begun there.
            if !self.folder_of(&reference).exists() {
                tracing::debug!(reference, "giving up an unfinished write");
                note(external.backend.abort(namespace.as_ref(), &reference))?;
            }
        }
        match left {
            Some(error) => Err(error.into()),
            None => Ok(removed),
        }
    }

    /// What `list` gives for all namespaces at once, or else for one after the other.
    fn everywhere<T>(
        &self,
        list: impl Fn(Option<&Namespace>) -> Result<Vec<T>, Refused>,
    ) -> Result<Vec<(Option<Namespace>, T)>, Error> {
        match list(None) {
            Ok(found) => Ok(found.into_iter().map(|it| (None, it)).collect()),
            Err(Refused {
                reason: Reason::FailedPrecondition | Reason::InvalidArgument, ..
            }) => {
                let mut all = Vec::new();
                for namespace in self.metadata().namespaces()? {
                    let found = list(Some(&namespace.name))?;
                    all.extend(found.into_iter().map(|it| (Some(namespace.name.clone()), it)));
                }
                Ok(all)
            }
            Err(refused) => Err(refused.into()),
        }
    }
}

#[cfg(test)]
mod tests;
