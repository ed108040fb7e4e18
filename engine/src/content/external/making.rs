//! Blobs that are being made there, and what becomes of their notes.
//!
//! Several writers may be making one blob of a namespace at once, under different refs. They share its note, so
//! none of them may take it back on its own: the last one to end does so, if it is certain that none has made the
//! blob.
//!
//! What was not answered may yet be done, for [`LATE_MAX`]. So long its note outlives a removal.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use snapshotter::external::{Reason, Refused};

use super::{External, Placed, made_name};
use crate::{digest::Digest, error::Error, namespace::Namespace};

/// How long after a call that was not answered it may still be done there.
pub(super) const LATE_MAX: Duration = Duration::from_secs(10 * 60);

/// The blobs that are being made, and those that may yet appear, by what they are noted as.
#[derive(Default)]
pub(super) struct Makings {
    under_way: Mutex<HashMap<String, Shared>>,
    /// Until when they may.
    late: Mutex<HashMap<String, Instant>>,
}

/// What those have in common who make one blob.
#[derive(Default)]
struct Shared {
    writers: usize,
    /// Whether one of them has noted it.
    is_noted: bool,
    /// What counts of how they ended.
    ending: Ending,
}

/// How it ended; of several, the highest counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    #[default]
    NotMade,
    WasThere,
    /// It may have been made.
    Unknown,
    Made,
}

impl Ending {
    fn of(placed: &Result<Placed, Refused>) -> Self {
        match placed {
            Ok(placed) if placed.is_new => Self::Made,
            Ok(_) => Self::WasThere,
            Err(refused) => match refused.reason {
                Reason::FailedPrecondition | Reason::InvalidArgument | Reason::NotFound => {
                    Self::NotMade
                }
                _ => Self::Unknown,
            },
        }
    }
}

impl Makings {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Shared>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_late(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until when what is noted as `name` may yet appear; nothing if it does not.
    pub(super) fn late_until(&self, name: &str) -> Option<Instant> {
        let mut late = self.lock_late();
        let until = late.get(name).copied()?;
        if until > Instant::now() {
            return Some(until);
        }
        late.remove(name);
        None
    }
}

impl External {
    /// Notes that a blob is about to be made, which the caller has claimed, unless it is there already.
    pub(in crate::content) fn begin_making(
        &self,
        namespace: &Namespace,
        digest: &Digest,
    ) -> Result<Making<'_>, Error> {
        let name = made_name(namespace, digest);
        self.makings.lock().entry(name.clone()).or_default().writers += 1;
        let mut making = Making { external: self, name, ending: Ending::NotMade, has_left: false };
        if !self.made.has(&making.name)? && self.backend.size(namespace, digest)?.is_none() {
            self.made.enter(&[&making.name])?;
            if let Some(shared) = self.makings.lock().get_mut(&making.name) {
                shared.is_noted = true;
            }
        }
        // Whatever keeps the caller from saying it.
        making.ending = Ending::Unknown;
        Ok(making)
    }

    /// Notes a blob that was made, and of which nobody knew before which it would be.
    pub(in crate::content) fn note_made(
        &self,
        namespace: &Namespace,
        digest: &Digest,
    ) -> Result<(), Error> {
        let name = made_name(namespace, digest);
        if let Some(shared) = self.makings.lock().get_mut(&name) {
            shared.ending = Ending::Made;
        }
        Ok(self.made.enter(&[&name])?)
    }
}

/// A blob that is being made.
pub(in crate::content) struct Making<'e> {
    external: &'e External,
    name: String,
    ending: Ending,
    has_left: bool,
}

impl Making<'_> {
    /// Notes how it ended.
    pub(in crate::content) fn end(mut self, placed: &Result<Placed, Refused>) -> Result<(), Error> {
        let External { made, makings, .. } = self.external;
        self.ending = Ending::of(placed);
        match placed {
            Ok(placed) => {
                makings.lock_late().remove(&self.name);
                // It was there when it was asked for, and then was not.
                if placed.is_new && !made.has(&self.name)? {
                    made.enter(&[&self.name])?;
                }
            }
            Err(refused) => {
                if refused.reason == Reason::Unavailable {
                    makings.lock_late().insert(self.name.clone(), Instant::now() + LATE_MAX);
                }
                self.external.note_removal();
            }
        }
        self.leave()
    }

    fn leave(&mut self) -> Result<(), Error> {
        self.has_left = true;
        // Until the note is gone, so that nobody who begins meanwhile relies on it.
        let mut under_way = self.external.makings.lock();
        let Some(shared) = under_way.get_mut(&self.name) else { return Ok(()) };
        shared.ending = shared.ending.max(self.ending);
        shared.writers -= 1;
        if shared.writers > 0 {
            return Ok(());
        }
        let forgets = shared.is_noted && shared.ending <= Ending::WasThere;
        let forgotten = if forgets { self.external.made.forget(&[&self.name]) } else { Ok(()) };
        under_way.remove(&self.name);
        Ok(forgotten?)
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if !self.has_left
            && let Err(error) = self.leave()
        {
            let error = sys::error::Chain(&error).to_string();
            tracing::warn!(error, blob = self.name, "it stays noted as made");
        }
    }
}
