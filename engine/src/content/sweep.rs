//! Deletes files of which no record tells.
//!
//! # Why nobody waits for it
//!
//! A collection removes records, while nobody else can change any; files go afterwards, when
//! everybody works again. So a file that seems to be nobody's may just be getting its record. Two
//! things keep such files: whoever is about to refer to a blob has a [`Claim`] on it from before
//! it looks for the file until its record is there, and an unfinished write is in the table of
//! open refs from before its folder is looked for until its writer is dropped. Under the lock of
//! that table, or of the claims, the sweep looks once more and moves the file to `gone`, which is
//! a rename; it is deleted there, however long that takes, without any lock.
//!
//! What a crash leaves in `gone` is deleted at the next start, and what it leaves of records'
//! files by the first collection.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{MutexGuard, PoisonError, atomic::Ordering},
    time::SystemTime,
};

use super::{INGEST_KEPT, Store, WriteStatus, ingest, names};
use crate::{
    digest::{Algorithm, Digest},
    error::Error,
    metadata::{Resource, ResourceKind},
    namespace::Namespace,
};

/// Keeps the file of a blob from being swept away until it is dropped.
pub(super) struct Claim {
    store: Store,
    digest: Digest,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = self.store.lock_claims();
        if let Some(count) = claims.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                claims.remove(&self.digest);
            }
        }
    }
}

/// The name of a write that nobody has.
pub(super) struct Held<'s> {
    store: &'s Store,
    reference: String,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.store.lock_open().remove(&self.reference);
    }
}

/// Why an unfinished write is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It has a writer.
    Open,
    /// These leases hold it.
    Leased(Vec<String>),
    /// It is young: it goes at this time, unless it grows.
    Until(SystemTime),
}

impl Store {
    /// Claims a blob, which need not exist.
    pub(super) fn claim(&self, digest: &Digest) -> Claim {
        *self.lock_claims().entry(digest.clone()).or_insert(0) += 1;
        let claim = Claim { store: self.clone(), digest: digest.clone() };
        if let Some(external) = &self.inner.external {
            external.wait_removed(digest);
        }
        claim
    }

    /// Keeps others from writing under this whole name until it is dropped; nothing if somebody writes.
    pub(super) fn hold(&self, reference: &str) -> Option<Held<'_>> {
        let free = self.lock_open().insert(reference.to_owned());
        free.then(|| Held { store: self, reference: reference.to_owned() })
    }

    /// Deletes the files of blobs that no namespace has, and of unfinished writes that nobody
    /// keeps. Returns which blobs are gone. `known` are blobs that have a record: they need not be
    /// looked for.
    ///
    /// # Errors
    ///
    /// `File`, `Database`: a folder or a record cannot be read. A file that cannot be deleted is
    /// logged and left for the next time.
    pub(crate) fn sweep(&self, known: &HashSet<Digest>) -> Result<Vec<Digest>, Error> {
        let mut removed = Vec::new();
        // Where another program keeps blobs, no file here is known to the records.
        let own = if self.inner.external.is_none() { Algorithm::ALL.as_slice() } else { &[] };
        for algorithm in own {
            let folder = self.inner.root.join("blobs").join(algorithm.name());
            for name in names(&folder)? {
                let digest = format!("{}:{name}", algorithm.name()).parse::<Digest>();
                let Ok(digest) = digest else { continue };
                if known.contains(&digest) {
                    continue;
                }
                let claims = self.lock_claims();
                if claims.contains_key(&digest) || self.metadata().is_content_known(&digest)? {
                    continue;
                }
                let gone = self.set_aside(&folder.join(name));
                drop(claims);
                if delete(gone, "blob stays") {
                    removed.push(digest);
                }
            }
        }
        self.sweep_ingests()?;
        self.empty_gone()?;
        Ok(removed)
    }

    fn sweep_ingests(&self) -> Result<(), Error> {
        let root = self.inner.root.join("ingest");
        for name in names(&root)? {
            let folder = root.join(&name);
            let status = ingest::status(&folder)?;
            if let Some(status) = &status
                && self.kept(&folder, status, SystemTime::now())?.is_some()
            {
                continue;
            }
            if let (Some(external), Some(_)) = (&self.inner.external, &status) {
                // It is given up there first.
                external.note_removal();
                continue;
            }
            let open = self.lock_open();
            // Without a ref it is one that is being made, or whose making a crash cut short.
            let is_open = open.iter().any(|reference| super::folder_name(reference) == name);
            let grew = status != ingest::status(&folder)?;
            let gone = (!is_open && !grew).then(|| self.set_aside(&folder));
            drop(open);
            if let Some(gone) = gone {
                let reference = status.map(|status| status.reference).unwrap_or_default();
                tracing::debug!(reference, "removing unfinished write");
                delete(gone, "unfinished write stays");
            }
        }
        Ok(())
    }

    /// Why the unfinished write in `folder` is kept; nothing when it is not.
    ///
    /// # Errors
    ///
    /// `Database`.
    pub(crate) fn kept(
        &self,
        folder: &Path,
        status: &WriteStatus,
        now: SystemTime,
    ) -> Result<Option<Kept>, Error> {
        if self.lock_open().contains(&status.reference) {
            return Ok(Some(Kept::Open));
        }
        let named = status.reference.split_once('/');
        let named = named.and_then(|(name, rest)| Some((name.parse::<Namespace>().ok()?, rest)));
        let Some((namespace, reference)) = named else { return Ok(None) };
        let own = ingest::leases(folder);
        let mut leases = Vec::new();
        for lease in &own {
            if self.metadata().has_lease(&namespace, lease)? {
                leases.push(lease.clone());
            }
        }
        let resource = Resource { kind: ResourceKind::Ingest, id: reference.to_owned() };
        leases.extend(self.metadata().holders(&namespace, &resource)?);
        if !leases.is_empty() {
            return Ok(Some(Kept::Leased(leases)));
        }
        let until = status.updated + INGEST_KEPT;
        Ok((own.is_empty() && until > now).then_some(Kept::Until(until)))
    }

    /// Moves a file or folder to where it is deleted. Nothing is returned when it is not there.
    pub(super) fn set_aside(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let number = self.inner.gone.fetch_add(1, Ordering::Relaxed);
        let gone = self.inner.root.join("gone").join(number.to_string());
        match fs::rename(path, &gone) {
            Ok(()) => Ok(Some(gone)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes what was set aside, and could not be deleted then.
    pub(super) fn empty_gone(&self) -> Result<(), Error> {
        let folder = self.inner.root.join("gone");
        for name in names(&folder)? {
            delete(Ok(Some(folder.join(name))), "what was removed stays");
        }
        Ok(())
    }

    pub(super) fn lock_claims(&self) -> MutexGuard<'_, std::collections::HashMap<Digest, usize>> {
        self.inner.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Deletes what was set aside; whether there was something, and it is gone.
pub(super) fn delete(set_aside: io::Result<Option<PathBuf>>, complaint: &str) -> bool {
    let deleted = set_aside.and_then(|gone| {
        let Some(gone) = gone else { return Ok(false) };
        match fs::remove_file(&gone) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                sys::tree::remove(&gone)?;
            }
            // Somebody else who empties the folder was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
        Ok(true)
    });
    deleted.unwrap_or_else(|error| {
        tracing::warn!(%error, "{complaint}");
        false
    })
}
