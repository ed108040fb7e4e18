//! Blobs and unfinished writes that another program keeps.
//!
//! As in containerd the program is only below the records: it has the bytes of all blobs, and of all
//! writes under names that start with the namespace. Which namespace sees which blob, labels and
//! leases are the records' of this daemon. That there is a write is noted in a folder, as for
//! [one of our own](super), but for its bytes.
//!
//! Calls are made in the name of the namespace that they are about. Only what there is
//! is asked for
//! in all of them by naming none. A program that insists on a namespace, such as another containerd, is asked for
//! each that there is a record of.
//!
//! # Collections
//!
//! What is made there is noted first, with the namespace that it is made for ([`Made`]); a blob that is there
//! already is not ours. After a collection, if something was removed since the last time, what was noted and has no
//! record is removed, and then forgotten. What was not noted is left alone, and the log says how many blobs
//! that are. Of unfinished writes the folders are the note: a write is given up there before its folder goes.
//!
//! Calls take as long as the program does, so none is made while a collection keeps all changes out, nor on
//! its thread. Whoever refers to a blob claims it, and waits while just that one is being removed. A
//! program that is away keeps what it has, and is asked again after [`SWEEP_PAUSE`], which
//! [the next collection](Store::next_sweep) is due after.

mod making;

use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use snapshotter::{
    external::{Reason, Refused},
    made::Made,
};

use self::making::Makings;
use super::{Store, ingest, sweep};
use crate::{digest::Digest, error::Error, namespace::Namespace};

/// How long a program that could not be swept is left alone.
const SWEEP_PAUSE: Duration = Duration::from_secs(10);

/// The other program. Implementations name themselves in what they refuse.
pub trait Backend: Send + Sync {
    /// What it is called in the configuration.
    fn name(&self) -> &str;

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
    fn abort(&self, namespace: &Namespace, reference: &str) -> Result<(), Refused>;

    /// Removes a blob; one that is not there is fine.
    ///
    /// # Errors
    ///
    /// As [`size`](Self::size).
    fn remove(&self, namespace: &Namespace, digest: &Digest) -> Result<(), Refused>;

    /// All blobs; without a namespace, of all of them.
    ///
    /// # Errors
    ///
    /// As [`size`](Self::size).
    fn blobs(&self, namespace: Option<&Namespace>) -> Result<Vec<Digest>, Refused>;
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
    fn commit(&mut self, expected: Option<&Digest>) -> Result<Placed, Refused>;
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The blob.
    pub digest: Digest,
    /// Whether it was not there before.
    pub is_new: bool,
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
    made: Made,
    due: Mutex<Due>,
    /// Blobs that are being removed there.
    removing: Mutex<HashSet<Digest>>,
    removed: Condvar,
    makings: Makings,
    has_told_foreign: AtomicBool,
}

/// When to sweep.
#[derive(Default)]
struct Due {
    /// From when on there is something to sweep, if there may be something.
    since: Option<Instant>,
    /// Until when the program is left alone.
    not_before: Option<Instant>,
    /// Whether it is being swept.
    under_way: bool,
}

impl Due {
    fn at(&self) -> Option<Instant> {
        self.since.map(|since| self.not_before.map_or(since, |other| other.max(since)))
    }
}

impl External {
    pub(super) fn new(
        backend: Box<dyn Backend>,
        metadata: &crate::metadata::Store,
    ) -> Result<Self, Error> {
        let made = Made::open(std::sync::Arc::new(metadata.clone()), backend.name())?;
        // Nobody knows what was left when the daemon stopped.
        let due = Due { since: Some(Instant::now()), ..Due::default() };
        Ok(Self {
            backend,
            made,
            due: Mutex::new(due),
            removing: Mutex::default(),
            removed: Condvar::new(),
            makings: Makings::default(),
            has_told_foreign: AtomicBool::new(false),
        })
    }

    fn lock_due(&self) -> MutexGuard<'_, Due> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that there is something to sweep.
    pub(super) fn note_removal(&self) {
        self.lock_due().since = Some(Instant::now());
    }

    /// Begins a sweep if one is due, and says how it is known: what is noted meanwhile is another's business.
    fn begin_sweep(&self) -> Option<Instant> {
        let mut due = self.lock_due();
        due.at().filter(|at| *at <= Instant::now())?;
        let next = Instant::now() + SWEEP_PAUSE;
        due.since = Some(next);
        due.under_way = true;
        Some(next)
    }

    /// Ends a sweep; `again` says when what it has left is to be looked at.
    fn end_sweep(&self, begun: Instant, is_good: bool, again: Option<Instant>) {
        let mut due = self.lock_due();
        due.under_way = false;
        due.not_before = (!is_good).then(|| Instant::now() + SWEEP_PAUSE);
        if is_good && due.since == Some(begun) {
            due.since = again;
        }
    }

    /// When collections are to see to it. Whoever asks while it is under way has nothing to do for a while,
    /// whatever was noted meanwhile.
    fn next_sweep(&self) -> Option<Instant> {
        let due = self.lock_due();
        let at = due.at()?;
        Some(if due.under_way { at.max(Instant::now() + SWEEP_PAUSE) } else { at })
    }

    fn lock_removing(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.removing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until that blob is not being removed, which takes as long as the program does for it.
    pub(super) fn wait_removed(&self, digest: &Digest) {
        let removing = self.lock_removing();
        let is_going = |removing: &mut HashSet<Digest>| removing.contains(digest);
        drop(self.removed.wait_while(removing, is_going).unwrap_or_else(PoisonError::into_inner));
    }
}

/// What a blob is called where it is noted what was made.
fn made_name(namespace: &Namespace, digest: &Digest) -> String {
    format!("{namespace}/{digest}")
}

fn split_name(name: &str) -> Option<(Namespace, Digest)> {
    let (namespace, digest) = name.split_once('/')?;
    Some((namespace.parse().ok()?, digest.parse().ok()?))
}

/// A blob that is being removed there, until it is dropped.
struct Removing<'e> {
    external: &'e External,
    digest: Digest,
}

impl Drop for Removing<'_> {
    fn drop(&mut self) {
        self.external.lock_removing().remove(&self.digest);
        self.external.removed.notify_all();
    }
}

/// What is left of a sweep: one thing that does not go keeps no other; a program that is away is not asked again and again.
#[derive(Default)]
struct Left {
    refused: Option<Refused>,
    /// When to look again.
    again: Option<Instant>,
}

impl Left {
    /// Whether it went.
    fn note(&mut self, result: Result<(), Refused>) -> Result<bool, Error> {
        match result {
            Err(error) if error.reason == Reason::Unavailable => Err(error.into()),
            Err(error) => {
                self.refused = Some(error);
                Ok(false)
            }
            Ok(()) => Ok(true),
        }
    }

    fn look_again(&mut self, at: Instant) {
        self.again = Some(self.again.map_or(at, |other| other.min(at)));
    }
}

impl Store {
    /// Whether there is something to be removed at another program, as far as is known, and it is time.
    pub(crate) fn is_external_sweep_due(&self) -> bool {
        let external = self.inner.external.as_ref();
        let at = external.and_then(|external| external.lock_due().at());
        at.is_some_and(|at| at <= Instant::now())
    }

    /// Removes what another program was had to make and nobody keeps, if there is such a program and it is
    /// due: blobs without a record, and unfinished writes. Nobody is kept waiting but who refers to what is
    /// being removed. Returns what was removed.
    ///
    /// # Errors
    ///
    /// - `Unavailable` or what else the program says; what was removed stays so.
    /// - `Database`, `File`.
    pub(crate) fn sweep_external(&self) -> Result<Vec<Digest>, Error> {
        let Some(external) = &self.inner.external else { return Ok(Vec::new()) };
        let Some(begun) = external.begin_sweep() else { return Ok(Vec::new()) };
        let mut left = Left::default();
        let swept = self.sweep_at(external, &mut left);
        external.end_sweep(begun, swept.is_ok() && left.refused.is_none(), left.again);
        let removed = swept?;
        left.refused.map_or(Ok(removed), |refused| Err(refused.into()))
    }

    /// When a sweep is due that was put off, or that is under way.
    pub(crate) fn next_sweep(&self) -> Option<SystemTime> {
        let at = self.inner.external.as_ref()?.next_sweep()?;
        Some(SystemTime::now() + at.saturating_duration_since(Instant::now()))
    }

    fn sweep_at(&self, external: &External, left: &mut Left) -> Result<Vec<Digest>, Error> {
        let mut removed = Vec::new();
        for name in external.made.all()? {
            let Some((namespace, digest)) = split_name(&name) else { continue };
            if self.metadata().is_content_known(&digest)? {
                continue;
            }
            let Some(_alone) = self.begin_removal(external, &digest)? else {
                left.look_again(Instant::now() + SWEEP_PAUSE);
                continue;
            };
            if !left.note(external.backend.remove(&namespace, &digest))? {
                continue;
            }
            if let Some(until) = external.makings.late_until(&name) {
                left.look_again(until);
                continue;
            }
            external.made.forget(&[&name])?;
            removed.push(digest);
        }
        self.sweep_writes(external, left)?;
        if !external.has_told_foreign.load(Ordering::Relaxed) {
            let told = self.tell_foreign(external);
            // One that is away is asked again; one that refuses to list would do so for ever.
            let is_away = matches!(told, Err(Error::Unavailable(_)));
            external.has_told_foreign.store(!is_away, Ordering::Relaxed);
            told?;
        }
        Ok(removed)
    }

    /// Keeps everybody from referring to a blob, unless somebody is about to, or does.
    fn begin_removal<'e>(
        &self,
        external: &'e External,
        digest: &Digest,
    ) -> Result<Option<Removing<'e>>, Error> {
        let claims = self.lock_claims();
        // Perhaps it was just committed.
        if claims.contains_key(digest) || self.metadata().is_content_known(digest)? {
            return Ok(None);
        }
        external.lock_removing().insert(digest.clone());
        Ok(Some(Removing { external, digest: digest.clone() }))
    }

    /// Gives up unfinished writes that nobody keeps: there, then here.
    fn sweep_writes(&self, external: &External, left: &mut Left) -> Result<(), Error> {
        for (folder, status) in self.ingests()? {
            if self.kept(&folder, &status, SystemTime::now())?.is_some() {
                continue;
            }
            // Under the name nobody writes meanwhile.
            let Some(_held) = self.hold(&status.reference) else { continue };
            let grew = ingest::status(&folder)?.as_ref() != Some(&status);
            let namespace = status.reference.split('/').next().and_then(|name| name.parse().ok());
            let Some(namespace) = namespace.filter(|_| !grew) else { continue };
            tracing::debug!(reference = status.reference, "giving up an unfinished write");
            if left.note(external.backend.abort(&namespace, &status.reference))? {
                sweep::delete(self.set_aside(&folder), "unfinished write stays");
            }
        }
        Ok(())
    }

    /// The name of the other program that keeps the blobs, if one does.
    pub(crate) fn plugin(&self) -> Option<&str> {
        Some(self.inner.external.as_ref()?.backend.name())
    }

    /// The blobs that another program has and this database has not had made there, nor has records of:
    /// nothing here touches them. Waits for that program.
    ///
    /// # Errors
    ///
    /// - `Unavailable` or what else the program says.
    /// - `Database`.
    pub(crate) fn foreign(&self) -> Result<BTreeSet<Digest>, Error> {
        let external = self.inner.external.as_ref();
        external.map_or_else(|| Ok(BTreeSet::new()), |external| self.list_foreign(external))
    }

    fn list_foreign(&self, external: &External) -> Result<BTreeSet<Digest>, Error> {
        // Both before and after: what is there may be gone by then, or not have been there yet.
        let mut made: HashSet<String> = external.made.all()?.into_iter().collect();
        let there = self.everywhere(|namespace| external.backend.blobs(namespace))?;
        made.extend(external.made.all()?);
        let digests: HashSet<&str> = made.iter().filter_map(|it| it.rsplit('/').next()).collect();
        let mut foreign = BTreeSet::new();
        for digest in there {
            if !digests.contains(digest.to_string().as_str())
                && !self.metadata().is_content_known(&digest)?
            {
                foreign.insert(digest);
            }
        }
        Ok(foreign)
    }

    /// Tells of blobs there that are somebody else's.
    fn tell_foreign(&self, external: &External) -> Result<(), Error> {
        let foreign = self.list_foreign(external)?;
        if let Some(first) = foreign.first() {
            let (plugin, count) = (external.backend.name(), foreign.len());
            tracing::warn!(
                plugin,
                count,
                "blobs of the plugin that this database has not had made, such as {first}, are left alone"
            );
        }
        Ok(())
    }

    /// What `list` gives for all namespaces at once, or else for one after the other.
    fn everywhere<T>(
        &self,
        list: impl Fn(Option<&Namespace>) -> Result<Vec<T>, Refused>,
    ) -> Result<Vec<T>, Error> {
        match list(None) {
            Err(Refused {
                reason: Reason::FailedPrecondition | Reason::InvalidArgument, ..
            }) => {
                let mut all = Vec::new();
                for namespace in self.metadata().namespaces()? {
                    all.extend(list(Some(&namespace.name))?);
                }
                Ok(all)
            }
            listed => Ok(listed?),
        }
    }
}

#[cfg(test)]
mod tests;
