//! The parts that keep state.
//!
//! Below the root there is
//!
//! ```text
//! metadata.redb              all records
//! content/                   blobs, as containerd lays them out
//! snapshots/<snapshotter>/   the snapshots' files
//! uuid                       the server's name for itself
//! ```
//!
//! No name is one that containerd uses, so the two can take turns on one root without taking each
//! other's data for garbage.

use std::{path::Path, sync::Arc};

use proto::containerd::{events::SnapshotRemove, services::images::v1::ImageDelete};
use snapshotter::{Copies, Native, Overlay, OverlayOptions, Snapshotter, Transactions};

use crate::{
    config::{self, Paths},
    content, db,
    durability::{self, Syncer},
    error::Error,
    events::Exchange,
    gc::{Collected, Collector, Scheduler, Snapshotters},
    metadata,
};

/// The parts that keep state.
pub(super) struct State {
    pub(super) metadata: metadata::Store,
    pub(super) content: content::Store,
    pub(super) snapshotters: Arc<Snapshotters>,
    pub(super) gc: Scheduler,
    pub(super) syncer: Syncer,
}

impl State {
    pub(super) fn open(paths: &Paths, gc: &config::Gc, events: Exchange) -> Result<Self, Error> {
        db::refuse_lost(&paths.root)?;
        let metadata = metadata::Store::open(&paths.root.join(db::DATABASE))?;
        let content = content::Store::open(&paths.root.join("content"), metadata.clone())?;
        let syncer = Syncer::default();
        let root = paths.root.join("snapshots");
        let snapshotters = Arc::new(snapshotters(&root, &metadata, &syncer)?);
        durability::recover(&content, &snapshotters)?;
        syncer.start(Arc::clone(&snapshotters));
        let report = move |collected: &Collected| publish(&events, collected);
        let collector = Collector::new(content.clone(), Arc::clone(&snapshotters), report);
        let gc = Scheduler::start(gc.clone(), collector);
        Ok(Self { metadata, content, snapshotters, gc, syncer })
    }
}

fn snapshotters(
    root: &Path,
    metadata: &metadata::Store,
    syncer: &Syncer,
) -> Result<Snapshotters, Error> {
    let records: Arc<dyn Transactions> = Arc::new(metadata.clone());
    let notice = || {
        let syncer = syncer.clone();
        move || syncer.note_commit()
    };
    let overlay =
        Overlay::open(&root.join("overlayfs"), Arc::clone(&records), OverlayOptions::default())?
            .on_commit(notice());
    let native = Native::open(&root.join("native"), records, Copies)?.on_commit(notice());
    Ok(Snapshotters::from([
        ("overlayfs".to_owned(), Arc::new(overlay) as Arc<dyn Snapshotter>),
        ("native".to_owned(), Arc::new(native)),
    ]))
}

/// Tells what a collection has removed, as containerd does: images and snapshots.
fn publish(events: &Exchange, collected: &Collected) {
    for (namespace, name) in &collected.images {
        let event = ImageDelete { name: name.clone() };
        events.publish(namespace, "/images/delete", proto::any::pack(&event));
    }
    for (snapshotter, key) in &collected.snapshots {
        let Ok(namespace) = key.namespace().parse() else { continue };
        let event = SnapshotRemove { key: key.name().to_owned(), snapshotter: snapshotter.clone() };
        events.publish(&namespace, "/snapshot/remove", proto::any::pack(&event));
    }
}
