//! What was there when the snapshotter was last open, and is not when it is opened again.

use super::{Layout, Store};
use crate::{Error, Key, Kind, records::Record};

impl<L: Layout> Store<L> {
    /// Makes directories of active snapshots and views that were lost with the machine.
    pub(super) fn restore_lost(&self) -> Result<(), Error> {
        let lost = |record: Record| {
            let lost = record.kind != Kind::Committed && !self.shared.directories.exists(record.id);
            lost.then_some(())
        };
        for (key, ()) in self.shared.records.select(lost)? {
            // One that cannot be made, because of what is below it perhaps, keeps nobody from using
            // the others. Whoever asks for its mounts is told why.
            let _ = self.restore(&key);
        }
        Ok(())
    }

    /// Makes the directory of a snapshot, if it was lost.
    pub(super) fn restore(&self, key: &Key) -> Result<(), Error> {
        let (_turn, record) = self.turn(key)?;
        if record.kind == Kind::Committed || self.shared.directories.exists(record.id) {
            return Ok(());
        }
        // On top of a suspect it stays away, and is filled when that was renewed.
        let chain = self.shared.records.parent_chain(record.parent_key(key).as_ref())?;
        let below = chain.first().map(|id| self.shared.directories.path(*id));
        below.iter().try_for_each(|below| self.shared.layout.show(below, record.id))?;
        // Whole, or not at all: what is there is not filled again.
        let pending = self.shared.directories.create()?;
        self.shared.layout.fill(&pending.path(), record.kind, below.as_deref(), &record.labels)?;
        self.shared.directories.replace(record.id, pending)
    }

    /// Shows all that active snapshots and views are on top of: somebody may have been given their
    /// mounts before, and would see empty layers. Returns those for which that failed.
    pub(super) fn show_again(&self) -> Result<Vec<(Key, Error)>, Error> {
        let mut failed = Vec::new();
        if !L::SHOWS {
            return Ok(failed);
        }
        let user = |record: Record| (record.kind != Kind::Committed).then_some(record.id);
        for (key, id) in self.shared.records.select(user)? {
            // As above: one that cannot be shown is in nobody else's way.
            let chain = self.shared.records.get_chain(&key);
            if let Err(error) = chain.and_then(|(_, chain)| self.show(&self.paths(&chain), id)) {
                failed.push((key, error));
            }
        }
        Ok(failed)
    }
}
