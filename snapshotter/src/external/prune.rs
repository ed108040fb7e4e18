//! Removes what is there without a record, and only what this database has had made.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
};

use super::{
    Backend, External, Outside, Reason, Refused, STORE_LABEL, State, count_down, number_of,
};
use crate::{Error, Key};

/// What the records name of what is there.
#[derive(Default)]
struct Named {
    numbers: BTreeSet<u64>,
    names: BTreeSet<String>,
}

impl<B: Backend> External<B> {
    /// Removes what is there without a record, children first.
    pub(super) fn prune(&self) -> Result<(), Refused> {
        // In this order: what was noted is pending second, or has its record third.
        let made: BTreeSet<String> = self.made.all().map_err(refused)?.into_iter().collect();
        let pending = self.state().pending.clone();
        let named = self.named()?;
        let there = self.backend.list()?;
        let late = {
            let mut state = self.state();
            // What the pending ones leave, or what is spared for them, is looked at again; and so is
            // what goes by a transaction that is not committed yet.
            state.dirty |= !pending.is_empty();
            state.removed.retain(|id| named.numbers.contains(id));
            state.late.clone()
        };
        self.tell_foreign(&there, &made, &named);
        let is_orphan = |name: &String| {
            !named.names.contains(name)
                && number_of(name)
                    .is_none_or(|id| !pending.contains_key(&id) && !named.numbers.contains(&id))
        };
        let orphans: BTreeSet<&String> = made.iter().filter(|name| is_orphan(name)).collect();
        let names: BTreeSet<&String> = there.iter().map(|found| &found.name).collect();
        let is_gone = |name: &String| {
            !names.contains(name) && number_of(name).is_none_or(|id| !late.contains(&id))
        };
        let gone = orphans.iter().filter(|name| is_gone(name)).map(|name| name.as_str());
        self.made.forget(&gone.collect::<Vec<_>>()).map_err(refused)?;
        let orphans = there.iter().filter(|found| orphans.contains(&found.name)).collect();
        let stays = self.remove_all(children_first(&there, orphans))?;
        match self.backend.cleanup() {
            Err(refused) if refused.reason != Reason::NotImplemented => Err(refused),
            _ => stays.map_or(Ok(()), Err),
        }
    }

    /// Removes these, but for those that get a record meanwhile; gives what it says of one that stays.
    fn remove_all(&self, orphans: Vec<&Outside>) -> Result<Option<Refused>, Refused> {
        let mut claim = Removing { state: &self.state, names: BTreeSet::new() };
        {
            let mut state = self.state();
            let free = orphans.iter().filter(|found| !state.entering.contains_key(&found.name));
            claim.names = free.map(|found| found.name.clone()).collect();
            state.removing.extend(claim.names.iter().cloned());
            state.dirty |= claim.names.len() < orphans.len();
        }
        // Under the claim nobody enters one; who has done so before is seen now.
        let named = self.named()?;
        let mut stays = None;
        for found in orphans {
            let name = &found.name;
            if !claim.names.contains(name) || named.names.contains(name) {
                continue;
            }
            let namespace = name.split('/').next().unwrap_or_default();
            match self.backend.remove(&Key::stored(namespace, name)) {
                Err(refused) if refused.reason == Reason::Unavailable => return Err(refused),
                Err(refused) if refused.reason != Reason::NotFound => {
                    stays = Some(refused);
                    continue;
                }
                _ => {}
            }
            // Before another may be made under its name.
            self.made.forget(&[name]).map_err(refused)?;
            claim.release(name);
        }
        Ok(stays)
    }

    /// Keeps cleanups from removing what is called `name` there, until the guard is dropped.
    pub(super) fn begin_entering(&self, name: &str) -> Result<Entering<'_>, Refused> {
        let mut state = self.state();
        if state.removing.contains(name) {
            let message = format!("snapshot {name:?} is being removed; try again");
            return Err(Refused { reason: Reason::Unavailable, message });
        }
        *state.entering.entry(name.to_owned()).or_default() += 1;
        Ok(Entering { state: &self.state, name: name.to_owned() })
    }

    /// Takes what the program has made by itself for ours, unless it is another database's.
    pub(super) fn own(&self, there: &Key, found: &Outside) -> Result<(), Error> {
        // Names of this form are given by whoever has it made: by this database, which has noted it, or by another.
        if number_of(there.name()).is_some() {
            return Ok(());
        }
        match found.labels.get(STORE_LABEL) {
            Some(store) if store != self.made.own() => return Ok(()),
            Some(_) => {}
            None => {
                let mut labels = found.labels.clone();
                labels.insert(STORE_LABEL.to_owned(), self.made.own().to_owned());
                let changed = [STORE_LABEL.to_owned()];
                if self.backend.update(there, &labels, &changed).is_err() {
                    // Others could not tell, so it stays.
                    return Ok(());
                }
            }
        }
        self.made.enter(&[there.name()])
    }

    fn named(&self) -> Result<Named, Refused> {
        let mut named = Named::default();
        let records = self.records.select(|it| Some((it.id, it.external)));
        for (_, (id, external)) in records.map_err(refused)? {
            named.numbers.insert(id);
            named.names.extend(external);
        }
        Ok(named)
    }

    fn is_foreign(&self, found: &Outside, made: &BTreeSet<String>, named: &Named) -> bool {
        // What was made since it was noted has its number in a record, or is being made.
        let known = number_of(&found.name).is_some_and(|id| {
            named.numbers.contains(&id) || self.state().pending.contains_key(&id)
        });
        !made.contains(&found.name) && !named.names.contains(&found.name) && !known
    }

    /// The names of what is somebody else's.
    pub(super) fn list_foreign(&self) -> Result<Vec<String>, Refused> {
        // Both before and after: what is there may be gone by then, or not have been there yet.
        let mut made: BTreeSet<String> = self.made.all().map_err(refused)?.into_iter().collect();
        let there = self.backend.list()?;
        made.extend(self.made.all().map_err(refused)?);
        let named = self.named()?;
        let foreign = there.into_iter().filter(|found| self.is_foreign(found, &made, &named));
        Ok(foreign.map(|found| found.name).collect())
    }

    /// Tells what is somebody else's, if that is more or less than it was.
    fn tell_foreign(&self, there: &[Outside], made: &BTreeSet<String>, named: &Named) {
        let foreign: Vec<_> =
            there.iter().filter(|found| self.is_foreign(found, made, named)).collect();
        let before = std::mem::replace(&mut self.state().foreign, foreign.len());
        if let Some(first) = foreign.first().filter(|_| before != foreign.len()) {
            (self.foreign)(foreign.len(), &first.name);
        }
    }
}

/// Names that are being removed there. They are free again one by one, or when it is dropped.
struct Removing<'s> {
    state: &'s Mutex<State>,
    names: BTreeSet<String>,
}

impl Removing<'_> {
    fn release(&mut self, name: &str) {
        self.names.remove(name);
        self.state.lock().unwrap_or_else(PoisonError::into_inner).removing.remove(name);
    }
}

impl Drop for Removing<'_> {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &self.names {
            state.removing.remove(name);
        }
    }
}

/// A name there that is about to get a record.
pub(super) struct Entering<'s> {
    state: &'s Mutex<State>,
    name: String,
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        count_down(&mut state.entering, &self.name);
    }
}

/// Puts `some` of what is there in an order in which all can be removed.
fn children_first<'a>(there: &[Outside], mut some: Vec<&'a Outside>) -> Vec<&'a Outside> {
    let parents: HashMap<_, _> =
        there.iter().map(|found| (found.name.as_str(), found.parent.as_deref())).collect();
    let depth = |found: &&Outside| {
        let mut depth = 0;
        let mut next = found.parent.as_deref();
        // As many steps as there are snapshots, whatever the parents are said to be.
        while let Some(parent) = next.filter(|_| depth < there.len()) {
            depth += 1;
            next = parents.get(parent).copied().flatten();
        }
        depth
    };
    some.sort_by_cached_key(|found| std::cmp::Reverse(depth(found)));
    some
}

fn refused(error: Error) -> Refused {
    Refused { reason: Reason::Other, message: sys::error::Chain(&error).to_string() }
}
