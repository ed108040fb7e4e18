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

use std::{collections::BTreeMap, path::Path, sync::Arc};

use proto::containerd::{events::SnapshotRemove, services::images::v1::ImageDelete};
use snapshotter::{
    Btrfs, Copies, Erofs, External, Images, Native, Overlay, OverlayOptions, Remap, Snapshotter,
    Subvolumes, Transactions,
};

use crate::{
    config::{Config, OWN_DIFFER, Paths, ProxyKind, ProxyPlugin, SharingPolicy},
    content, db,
    durability::Syncer,
    error::Error,
    events::Exchange,
    gc::{Collected, Collector, Scheduler, Snapshotters},
    metadata,
    proxy::{self, Deadlines},
    services::Differ,
};

/// The parts that keep state.
pub(super) struct State {
    pub(super) metadata: metadata::Store,
    pub(super) content: content::Store,
    pub(super) snapshotters: Arc<Snapshotters>,
    /// Whether snapshots can be shown as of other owners.
    pub(super) remap: Remap,
    pub(super) gc: Scheduler,
    pub(super) syncer: Syncer,
}

impl State {
    pub(super) fn open(paths: &Paths, config: &Config, events: Exchange) -> Result<Self, Error> {
        db::refuse_lost(&paths.root)?;
        let metadata = metadata::Store::open(&paths.root.join(db::DATABASE))?;
        let content = content(&paths.root.join("content"), config, metadata.clone())?;
        let syncer = Syncer::default();
        let root = paths.root.join("snapshots");
        let remap = Remap::on(&root);
        let mut snapshotters = snapshotters(&root, config, &remap, &metadata, &syncer)?;
        add_external(&mut snapshotters, &config.proxy_plugins, &metadata)?;
        let snapshotters = Arc::new(snapshotters);
        syncer.recover(&content, &snapshotters)?;
        syncer.start(Arc::clone(&snapshotters));
        let report = move |collected: &Collected| publish(&events, collected);
        let collector = Collector::new(content.clone(), Arc::clone(&snapshotters), report);
        let gc = Scheduler::start(config.gc.clone(), collector);
        Ok(Self { metadata, content, snapshotters, remap, gc, syncer })
    }
}

/// The blobs, below `root` or, as the configuration says, at another program, which is not asked for
/// anything yet.
///
/// # Errors
///
/// `InvalidArgument`: the configuration names two programs.
fn content(
    root: &Path,
    config: &Config,
    metadata: metadata::Store,
) -> Result<content::Store, Error> {
    let store = match config.content_plugin()? {
        None => content::Store::open(root, metadata)?,
        Some((name, proxy)) => {
            let plugin = proxy::Plugin::new(name, &proxy.address, Deadlines::default())?;
            content::Store::open_external(root, metadata, proxy::RemoteContent::new(plugin))?
        }
    };
    Ok(match config.content.sharing_policy {
        SharingPolicy::Shared => store,
        SharingPolicy::Isolated => store.isolated(),
    })
}

fn snapshotters(
    root: &Path,
    Config { overlayfs, erofs, .. }: &Config,
    remap: &Remap,
    metadata: &metadata::Store,
    syncer: &Syncer,
) -> Result<Snapshotters, Error> {
    let records: Arc<dyn Transactions> = Arc::new(metadata.clone());
    let notice = || {
        let syncer = syncer.clone();
        move || syncer.note_commit()
    };
    let options = OverlayOptions {
        upperdir_label: overlayfs.upperdir_label,
        remap: remap.clone(),
        ..OverlayOptions::default()
    };
    let options = options.with_mount_options(&overlayfs.mount_options);
    let overlay = Overlay::open(&root.join("overlayfs"), Arc::clone(&records), options.clone())?
        .on_commit(notice());
    let native =
        Native::open(&root.join("native"), Arc::clone(&records), Copies)?.on_commit(notice());
    let mut snapshotters = Snapshotters::from([
        ("overlayfs".to_owned(), Arc::new(overlay) as Arc<dyn Snapshotter>),
        ("native".to_owned(), Arc::new(native)),
    ]);
    if Images::is_supported() {
        let images = Images::new(options).with_verity(erofs.enable_fsverity);
        let mut erofs =
            Erofs::open(&root.join("erofs"), Arc::clone(&records), images)?.on_commit(notice());
        for (key, error) in erofs.take_unshown() {
            let (namespace, error) = (key.namespace(), sys::error::Chain(&error));
            tracing::warn!(namespace, "snapshot {key}: layers are not mounted: {error}");
        }
        snapshotters.insert("erofs".to_owned(), Arc::new(erofs));
    }
    if has_btrfs(root) {
        let btrfs = Btrfs::open(&root.join("btrfs"), records, Subvolumes)?.on_commit(notice());
        snapshotters.insert("btrfs".to_owned(), Arc::new(btrfs));
    }
    Ok(snapshotters)
}

/// Whether snapshots below `root` can be subvolumes.
pub(super) fn has_btrfs(root: &Path) -> bool {
    let there = root.ancestors().find(|path| path.exists());
    there.is_some_and(|path| sys::btrfs::is_on(path).unwrap_or(false))
}

/// Adds the snapshotters that are other programs. None is asked for anything yet.
fn add_external(
    snapshotters: &mut Snapshotters,
    proxies: &BTreeMap<String, ProxyPlugin>,
    metadata: &metadata::Store,
) -> Result<(), Error> {
    for (name, proxy) in proxies.iter().filter(|(_, it)| it.kind == ProxyKind::Snapshot) {
        if snapshotters.contains_key(name) {
            return Err(taken(name));
        }
        let plugin = proxy::Plugin::new(name, &proxy.address, Deadlines::default())?;
        let can_rebase = proxy.capabilities.iter().any(|it| it == "rebase");
        let records: Arc<dyn Transactions> = Arc::new(metadata.clone());
        let snapshotter = name.clone();
        let external = External::open(name, records, proxy::Remote::new(plugin), can_rebase)?
            .on_foreign(move |count, first| {
                tracing::warn!(
                    snapshotter,
                    count,
                    "snapshots of the plugin that this database has not had made, such as {first:?}, are left alone"
                );
            });
        snapshotters.insert(name.clone(), Arc::new(external));
    }
    Ok(())
}

/// Who applies and makes layers, in the order in which they are asked.
///
/// # Errors
///
/// `InvalidArgument`: the configuration names one that is not there, or gives one a name that is taken.
pub(super) fn differs(config: &Config) -> Result<Vec<Differ>, Error> {
    if config.proxy_plugins.get(OWN_DIFFER).is_some_and(|it| it.kind == ProxyKind::Diff) {
        return Err(taken(OWN_DIFFER));
    }
    let find = |name: &String| {
        if name == OWN_DIFFER {
            return Ok(Differ::Own);
        }
        match config.proxy_plugins.get(name) {
            Some(proxy) if proxy.kind == ProxyKind::Diff => {
                let plugin = proxy::Plugin::new(name, &proxy.address, Deadlines::default())?;
                Ok(Differ::Other(plugin))
            }
            _ => {
                let text = format!("diff.order names {name:?}, which is no differ");
                Err(Error::InvalidArgument(text))
            }
        }
    };
    config.diff.order.iter().map(find).collect()
}

fn taken(name: &str) -> Error {
    Error::InvalidArgument(format!("proxy plugin {name:?} has the name of a part that is built in"))
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
