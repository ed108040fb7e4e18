//! Lists the objects, and removes what was decided.

use std::{
    collections::{BTreeMap, HashSet},
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use snapshotter::{Key, Snapshotter};

use super::graph::{Graph, Plan};
use crate::{content, digest::Digest, error::Error, metadata, namespace::Namespace};

/// The snapshotters by name.
pub type Snapshotters = BTreeMap<String, Arc<dyn Snapshotter>>;

/// Collects garbage.
pub struct Collector {
    metadata: metadata::Store,
    content: content::Store,
    snapshotters: Arc<Snapshotters>,
    /// Told about what is gone.
    report: Box<dyn Fn(&Collected) + Send + Sync>,
}

/// What a collection has removed.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "named after what they list")]
pub struct Collected {
    pub leases: Vec<(Namespace, String)>,
    pub images: Vec<(Namespace, String)>,
    pub content: Vec<(Namespace, Digest)>,
    pub snapshots: Vec<(String, Key)>,
    /// How long nobody else could change anything.
    pub pause: Duration,
    /// When the next lease or image expires.
    pub next_expiry: Option<SystemTime>,
}

impl Collector {
    /// Collects from these stores, and tells `report` what is gone.
    pub fn new(
        content: content::Store,
        snapshotters: Arc<Snapshotters>,
        report: impl Fn(&Collected) + Send + Sync + 'static,
    ) -> Self {
        let metadata = content.metadata().clone();
        Self { metadata, content, snapshotters, report: Box::new(report) }
    }

    /// Removes what nothing keeps.
    ///
    /// # Errors
    ///
    /// `Database`, `Damaged`, `File`: not everything could be looked at, or the records could not
    /// be removed. What could not be freed on disk is logged and tried again next time.
    pub fn collect(&self) -> Result<Collected, Error> {
        let alone = self.metadata.collecting();
        let begun = Instant::now();
        let Plan { leases, images, content, snapshots, kept, next_expiry } = self.plan()?;
        if !(leases.is_empty() && images.is_empty() && content.is_empty()) {
            self.metadata.write_while_collecting(|changes| {
                for (namespace, id) in &leases {
                    metadata::remove_lease(changes, namespace, id)?;
                }
                for (namespace, name) in &images {
                    metadata::remove_image(changes, namespace, name);
                }
                for (namespace, digest) in &content {
                    metadata::remove_content(changes, namespace, digest);
                }
                Ok(())
            })?;
        }
        let snapshots = self.remove_snapshots(snapshots);
        self.sweep(&kept)?;
        let pause = begun.elapsed();
        drop(alone);
        self.cleanup();
        let collected = Collected { leases, images, content, snapshots, pause, next_expiry };
        (self.report)(&collected);
        Ok(collected)
    }

    fn plan(&self) -> Result<Plan, Error> {
        let mut graph = Graph::new(SystemTime::now());
        self.metadata.read(|view| {
            metadata::each(view, &mut |namespace, object| {
                graph.add(namespace, object);
                Ok(())
            })
        })?;
        for (name, snapshotter) in self.snapshotters.iter() {
            let mut add = |info| {
                graph.add_snapshot(name, info);
                ControlFlow::Continue(())
            };
            snapshotter.walk_records(None, &mut add).map_err(Error::database("list snapshots"))?;
        }
        Ok(graph.plan())
    }

    fn remove_snapshots(&self, snapshots: Vec<(String, Key)>) -> Vec<(String, Key)> {
        let is_removed = |(name, key): &(String, Key)| {
            let removed = self.snapshotters[name].remove(key);
            if let Err(error) = &removed {
                let error = sys::error::Chain(error);
                tracing::warn!(%error, snapshotter = name, "snapshot {key} stays");
            }
            removed.is_ok()
        };
        snapshots.into_iter().filter(is_removed).collect()
    }

    fn sweep(&self, kept: &HashSet<Digest>) -> Result<(), Error> {
        let mut leases = HashSet::new();
        self.metadata.read(|view| {
            metadata::each(view, &mut |namespace, object| {
                if let metadata::Object::Lease(lease) = object {
                    leases.insert((namespace, lease.id));
                }
                Ok(())
            })
        })?;
        let exists =
            |namespace: &Namespace, id: &str| leases.contains(&(namespace.clone(), id.to_owned()));
        let removed = self.content.sweep(kept, &exists)?;
        if !removed.is_empty() {
            tracing::debug!(count = removed.len(), "removed blobs");
        }
        Ok(())
    }

    fn cleanup(&self) {
        for (name, snapshotter) in self.snapshotters.iter() {
            if let Err(error) = snapshotter.cleanup() {
                let error = sys::error::Chain(&error);
                tracing::warn!(%error, snapshotter = name, "disk space is not free yet");
            }
        }
    }
}
