//! Lists the objects, and removes what was decided.

use std::{
    collections::{BTreeMap, HashSet},
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use snapshotter::{Key, Snapshotter, Transactions};

use super::{
    cleaning::{Cleaning, Job, PATIENCE},
    graph::{Graph, Plan},
    inspect::Doomed,
    object::{Kind, Object},
};
use crate::{content, digest::Digest, error::Error, metadata, namespace::Namespace};

/// How long files of which no record tells may stay when nothing is removed: unfinished writes that
/// are too old, and what a crash left.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// The snapshotters by name.
pub type Snapshotters = BTreeMap<String, Arc<dyn Snapshotter>>;

/// Collects garbage.
pub struct Collector {
    metadata: metadata::Store,
    content: content::Store,
    snapshotters: Arc<Snapshotters>,
    /// Told about what is gone.
    report: Box<dyn Fn(&Collected) + Send + Sync>,
    /// When files of which no record tells were last looked for.
    swept: Mutex<Option<Instant>>,
    cleaning: Cleaning,
}

/// What a collection has removed.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "named after what they list")]
pub struct Collected {
    pub leases: Vec<(Namespace, String)>,
    pub images: Vec<(Namespace, String)>,
    pub content: Vec<(Namespace, Digest, u64)>,
    pub snapshots: Vec<(String, Key)>,
    /// How long nobody else could change anything.
    pub pause: Duration,
    /// When the next lease or image expires, or another program is to be asked again.
    pub next_expiry: Option<SystemTime>,
}

impl Collected {
    /// What was removed, as a list; of blobs, all that shared their bytes have the size.
    pub fn list(&self) -> Vec<Doomed> {
        let one = |namespace: &Namespace, kind, name: String, bytes| {
            let object = Object { namespace: namespace.clone(), kind, name };
            Doomed { object, bytes }
        };
        let leases = self.leases.iter().map(|(ns, id)| one(ns, Kind::Lease, id.clone(), 0));
        let images = self.images.iter().map(|(ns, name)| one(ns, Kind::Image, name.clone(), 0));
        let content = self.content.iter();
        let content = content.map(|(ns, id, size)| one(ns, Kind::Content, id.to_string(), *size));
        let snapshots = self.snapshots.iter().filter_map(|(snapshotter, key)| {
            let namespace = key.namespace().parse().ok()?;
            let kind = Kind::Snapshot(snapshotter.clone());
            Some(one(&namespace, kind, key.name().to_owned(), 0))
        });
        leases.chain(images).chain(content).chain(snapshots).collect()
    }
}

impl Collector {
    /// Collects from these stores, and tells `report` what is gone.
    pub fn new(
        content: content::Store,
        snapshotters: Arc<Snapshotters>,
        report: impl Fn(&Collected) + Send + Sync + 'static,
    ) -> Self {
        let metadata = content.metadata().clone();
        let (swept, cleaning) = (Mutex::default(), Cleaning::default());
        Self { metadata, content, snapshotters, report: Box::new(report), swept, cleaning }
    }

    /// Has `notice` called, briefly, after every change that is not a collection's.
    pub(super) fn on_change(&self, notice: impl Fn() + Send + Sync + 'static) {
        self.metadata.on_change(Box::new(notice));
    }

    /// Removes what nothing keeps: the records at once, while nobody else can change any, and the
    /// files afterwards. Files of which no record tells are looked for only now and then, unless
    /// `thorough` says that there may be some.
    ///
    /// # Errors
    ///
    /// `Database`, `Damaged`, `File`: not everything could be looked at, or the records could not
    /// be removed. What could not be freed on disk is logged and tried again next time.
    pub fn collect(&self, thorough: bool) -> Result<Collected, Error> {
        let alone = self.metadata.collecting();
        let begun = Instant::now();
        let plan = graph(&self.metadata, &self.snapshotters)?.plan();
        let snapshots = self.remove_records(&plan)?;
        let pause = begun.elapsed();
        drop(alone);
        let Plan { leases, images, content, kept, next_expiry, .. } = plan;
        if !content.is_empty() {
            self.content.note_removal();
        }
        let mut collected = Collected { leases, images, content, snapshots, pause, next_expiry };
        (self.report)(&collected);
        let is_empty = collected.content.is_empty() && collected.snapshots.is_empty();
        let mut jobs = Vec::new();
        if self.is_sweep_due(thorough || !is_empty) {
            self.sweep(&kept);
            jobs.extend(self.snapshotters.iter().map(|(name, it)| clean(name, Arc::clone(it))));
        }
        if self.content.is_external_sweep_due() {
            jobs.push(sweep_external(self.content.clone()));
        }
        self.cleaning.run(jobs, PATIENCE);
        let next_sweep = self.content.next_sweep();
        collected.next_expiry = collected.next_expiry.into_iter().chain(next_sweep).min();
        Ok(collected)
    }

    /// Removes the records in one transaction; returns which snapshots are gone.
    fn remove_records(&self, plan: &Plan) -> Result<Vec<(String, Key)>, Error> {
        let Plan { leases, images, content, snapshots, .. } = plan;
        if [leases.len(), images.len(), content.len(), snapshots.len()] == [0; 4] {
            return Ok(Vec::new());
        }
        let mut keys: BTreeMap<&str, Vec<Key>> = BTreeMap::new();
        for (snapshotter, key) in snapshots {
            keys.entry(snapshotter).or_default().push(key.clone());
        }
        let mut removed = Vec::new();
        self.metadata.collect(|transaction, changes| {
            for (namespace, id) in leases {
                metadata::remove_lease(changes, namespace, id)?;
            }
            for (namespace, name) in images {
                metadata::remove_image(changes, namespace, name);
            }
            for (namespace, digest, _) in content {
                metadata::remove_content(changes, namespace, digest);
            }
            for (name, keys) in &keys {
                let gone = self.snapshotters[*name].remove_within(transaction, keys);
                let gone = gone.map_err(snapshots_failed)?.into_iter();
                removed.extend(gone.map(|key| ((*name).to_owned(), key)));
            }
            Ok(())
        })?;
        Ok(removed)
    }

    /// Whether to look for files now; if so, that is noted.
    fn is_sweep_due(&self, needed: bool) -> bool {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        let due = needed || swept.is_none_or(|swept| swept.elapsed() >= SWEEP_INTERVAL);
        if due {
            *swept = Some(Instant::now());
        }
        due
    }

    fn sweep(&self, kept: &HashSet<Digest>) {
        match self.content.sweep(kept) {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => tracing::debug!(count = removed.len(), "removed blobs"),
            Err(error) => {
                let error = sys::error::Chain(&error);
                tracing::warn!(%error, "disk space of content is not free yet");
            }
        }
    }
}

fn clean(name: &str, snapshotter: Arc<dyn Snapshotter>) -> Job {
    let named = name.to_owned();
    let work = move || {
        if let Err(error) = snapshotter.cleanup() {
            let error = sys::error::Chain(&error);
            tracing::warn!(%error, snapshotter = named, "disk space is not free yet");
        }
    };
    Job { name: format!("snapshotter {name}"), work: Arc::new(work) }
}

fn sweep_external(content: content::Store) -> Job {
    let work = move || match content.sweep_external() {
        Ok(removed) if removed.is_empty() => {}
        Ok(removed) => tracing::debug!(count = removed.len(), "had blobs removed"),
        Err(error) => {
            let error = sys::error::Chain(&error);
            tracing::warn!(%error, "blobs are kept until the next collection");
        }
    };
    Job { name: "content".to_owned(), work: Arc::new(work) }
}

/// Everything, and what keeps what.
///
/// Whoever does not keep others from changing it meanwhile sees snapshots as they were a little
/// earlier: none that is seen lacks what was there to keep it.
pub(super) fn graph(
    metadata: &metadata::Store,
    snapshotters: &Snapshotters,
) -> Result<Graph, Error> {
    let mut graph = Graph::new(SystemTime::now());
    for (name, snapshotter) in snapshotters {
        let mut add = |info| {
            graph.add_snapshot(name, info);
            ControlFlow::Continue(())
        };
        snapshotter.walk_records(None, &mut add).map_err(snapshots_failed)?;
    }
    let view = Transactions::read(metadata).map_err(snapshots_failed)?;
    snapshotter::records::walk_of(
        &view,
        |name| !snapshotters.contains_key(name),
        |name, info| graph.add_out_of_reach(name, info),
    )
    .map_err(snapshots_failed)?;
    metadata.read(|view| {
        metadata::each_keeper(view, &mut |namespace, object| {
            graph.add(namespace, object);
            Ok(())
        })
    })?;
    Ok(graph)
}

fn snapshots_failed(source: snapshotter::Error) -> Error {
    Error::database("collect snapshots")(source)
}

#[cfg(test)]
mod tests;
