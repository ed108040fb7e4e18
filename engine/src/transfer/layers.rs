//! Fetches layers and unpacks them: side by side, each in one pass, committed in order.
//!
//! ```text
//!  per layer:   socket ──> blob digest, content store ──> inflate ──> diff ID ──> extract
//!               (async)    └──────────────── one blocking thread ─────────────────────┘
//!
//!  per image:   layer 0  ═══════╗ commit
//!               layer 1  ══╗····╨ commit          extraction needs no order,
//!               layer 2  ════════════╗ commit     committing does
//! ```
//!
//! # Order, and why nothing deadlocks
//!
//! A job takes, in this order: the lock of its chain ID, the lock of its blob, one of the slots
//! that bound how many layers are worked on. It gives the last two back before it waits for the
//! layer below to be committed. So whoever has a slot waits for no lock, whoever has a blob waits
//! for slots only, and whoever has a chain ID waits for lower layers only.
//!
//! A snapshotter whose snapshots hold their parent's content cannot unpack out of order. For it
//! the layer is stored first and extracted once the layer below is committed. A layer that other programs
//! turn into one is stored before it is extracted, too: they read files. One that [another differ](super::differ)
//! applies waits for both.

use std::sync::Arc;

use proto::{
    any,
    containerd::events::{SnapshotCommit, SnapshotPrepare},
};
use snapshotter::{Key, Mount, Snapshotter};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    Error, Work, blocking,
    extract::{Extraction, Feed, Worker},
    plan,
    progress::{Item, State},
};
use crate::{digest::Digest, labels::Labels, oci::Descriptor};

/// How many parts of a body wait for the thread that stores them. A part is up to 64 KiB or so.
const FEED_LEN: usize = 64;

/// A layer of an image, and where it is unpacked.
pub(super) struct Job {
    pub(super) layer: Descriptor,
    pub(super) item: Arc<Item>,
    pub(super) unpack: Option<Unpack>,
}

/// A place in a stack of snapshots.
pub(super) struct Unpack {
    pub(super) snapshotter: Arc<dyn Snapshotter>,
    /// The snapshotter's name.
    pub(super) name: String,
    pub(super) diff_id: Digest,
    pub(super) chain_id: Digest,
    /// The layer below: its chain ID, and whether it is committed by now.
    pub(super) below: Option<(Digest, watch::Receiver<bool>)>,
    /// Tells the layer above.
    pub(super) committed: watch::Sender<bool>,
}

impl Work {
    /// Does all jobs, large layers first.
    ///
    /// # Errors
    ///
    /// The first error of a job. The others are stopped, and have ended when this returns; when the
    /// future is dropped instead, they end a little later.
    pub(super) async fn layers(self: &Arc<Self>, mut jobs: Vec<Job>) -> Result<(), Error> {
        jobs.sort_by_key(|job| std::cmp::Reverse(job.layer.size));
        let _stop = self.stop.clone().drop_guard();
        let mut running = JoinSet::new();
        for job in jobs {
            running.spawn(Arc::clone(self).job(job));
        }
        let mut outcome = Ok(());
        while let Some(ended) = running.join_next().await {
            let result = match ended {
                Ok(result) => result,
                Err(error) => Err(Error::Stopped(error.to_string())),
            };
            match (&outcome, result) {
                (Ok(()), Err(error)) => {
                    self.stop.cancel();
                    outcome = Err(error);
                }
                // A layer whose lower one failed knows less than that one.
                (Err(Error::Stopped(_)), Err(error)) => outcome = Err(error),
                _ => {}
            }
        }
        outcome
    }

    async fn job(self: Arc<Self>, job: Job) -> Result<(), Error> {
        let Job { layer, item, mut unpack } = job;
        let _chain = match &unpack {
            Some(unpack) => {
                let key = (self.namespace(), unpack.name.clone(), unpack.chain_id.clone());
                Some(self.chains.lock(key).await)
            }
            None => None,
        };
        if let Some(ready) = unpack.take() {
            if self.has_snapshot(&ready).await? {
                ready.committed.send_replace(true);
            } else {
                unpack = Some(ready);
            }
        }
        if unpack.is_some() && self.has_processor(&layer) {
            self.pass(&layer, &item, None).await?;
        }
        let extraction = match &unpack {
            Some(unpack) if !self.waits_for_below(&layer, unpack) => {
                self.pass(&layer, &item, Some(unpack)).await?
            }
            _ => self.pass(&layer, &item, None).await?,
        };
        let Some(mut unpack) = unpack else { return Ok(()) };
        if let Some((_, below)) = &mut unpack.below {
            below.wait_for(|committed| *committed).await.map_err(|_| stopped())?;
        }
        let extraction = match extraction {
            Some(extraction) => extraction,
            None if self.asks_others(&layer) => {
                item.set(State::Extracting);
                self.have_applied(&layer, &unpack).await?
            }
            None => self.pass(&layer, &item, Some(&unpack)).await?.expect("asked to unpack"),
        };
        self.commit(&unpack, extraction).await?;
        unpack.committed.send_replace(true);
        item.set(State::Extracted);
        Ok(())
    }

    /// Whether the layer can only be extracted on top of the one below, or by somebody who wants it there.
    fn waits_for_below(&self, layer: &Descriptor, unpack: &Unpack) -> bool {
        self.asks_others(layer) || unpack.below.is_some() && !unpack.snapshotter.can_rebase()
    }

    /// Goes over the layer once: stores it unless it is stored, and extracts it if that is wanted.
    async fn pass(
        self: &Arc<Self>,
        layer: &Descriptor,
        item: &Arc<Item>,
        unpack: Option<&Unpack>,
    ) -> Result<Option<Extraction>, Error> {
        let blob = self.blobs.lock((self.namespace(), layer.digest.clone())).await;
        let (work, wanted) = (Arc::clone(self), layer.clone());
        let (stored, blob) = blocking(move || Ok((work.has_layer(&wanted)?, blob))).await?;
        if stored && unpack.is_none() {
            item.set(State::Exists);
            return Ok(None);
        }
        // A stored blob may be read by several at once.
        let blob = (!stored).then_some(blob);
        let _slot = self.slots.acquire().await.expect("never closed");
        if self.stop.is_cancelled() {
            return Err(stopped());
        }
        item.set(if stored { State::Extracting } else { State::Downloading });
        let extraction = match unpack {
            Some(unpack) => Some(self.extraction(layer, unpack).await?),
            None => None,
        };
        let (feed, _fetch) = if stored { (Feed::Stored, None) } else { self.fetch(layer, item)? };
        let worker = Worker {
            work: Arc::clone(self),
            layer: layer.clone(),
            feed,
            extraction,
            diff_id: unpack.map(|unpack| unpack.diff_id.clone()),
        };
        // The worker may go on for a while when nobody waits for it any more, and has the blob so long.
        let run = move || {
            let _blob = blob;
            worker.run()
        };
        let extraction = blocking(run).await?;
        if unpack.is_none() {
            item.set(State::Complete);
        }
        Ok(extraction)
    }

    /// Starts to fetch a layer. The task ends with the guard, and its end ends the feed.
    fn fetch(
        &self,
        layer: &Descriptor,
        item: &Arc<Item>,
    ) -> Result<(Feed, Option<JoinSet<()>>), Error> {
        let Some(client) = &self.source else {
            return Err(Error::Missing { digest: layer.digest.clone() });
        };
        let (parts, feed) = mpsc::channel(FEED_LEN);
        let mut stream = client.blob(layer, 0);
        let item = Arc::clone(item);
        let stop = self.stop.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                let part = tokio::select! {
                    part = stream.next() => part.transpose(),
                    () = stop.cancelled() => return,
                };
                if let Some(Ok(bytes)) = &part {
                    item.add(bytes.len() as u64);
                }
                let Some(part) = part else { return };
                let failed = part.is_err();
                if parts.send(part).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok((Feed::Fetched(feed), Some(task)))
    }

    /// Prepares the snapshot that a layer is extracted into.
    pub(super) async fn extraction(
        self: &Arc<Self>,
        layer: &Descriptor,
        unpack: &Unpack,
    ) -> Result<Extraction, Error> {
        let key = self.key(&format!("extract-{} {}", super::unique(), unpack.chain_id));
        let parent = match &unpack.below {
            Some((below, _)) if self.waits_for_below(layer, unpack) => {
                Some(self.key(&below.to_string()))
            }
            _ => None,
        };
        let (work, snapshotter) = (Arc::clone(self), Arc::clone(&unpack.snapshotter));
        let name = unpack.name.clone();
        let is_changeset = unpack.below.is_some() && parent.is_none();
        blocking(move || {
            work.lease_snapshot(&name, key.name())?;
            let mut mounts = snapshotter.prepare(&key, parent.as_ref(), Labels::new())?;
            if is_changeset {
                mounts = mounts.into_iter().map(changeset).collect();
            }
            let event = SnapshotPrepare {
                key: key.name().to_owned(),
                parent: parent.map(|parent| parent.name().to_owned()).unwrap_or_default(),
                snapshotter: name,
            };
            work.events.publish(&work.namespace(), "/snapshot/prepare", any::pack(&event));
            Ok(Extraction::new(snapshotter, key, mounts))
        })
        .await
    }

    /// Makes an extracted layer a committed snapshot on top of the one below.
    async fn commit(
        self: &Arc<Self>,
        unpack: &Unpack,
        extraction: Extraction,
    ) -> Result<(), Error> {
        let name = self.key(&unpack.chain_id.to_string());
        let parent = unpack.below.as_ref().map(|(below, _)| self.key(&below.to_string()));
        let labels = Labels::from([(plan::LABEL_SNAPSHOT_REF.to_owned(), name.name().to_owned())]);
        let (work, snapshotter) = (Arc::clone(self), unpack.name.clone());
        blocking(move || {
            work.lease_snapshot(&snapshotter, name.name())?;
            let look = extraction.look();
            if let Some(look) = &look {
                work.lease_snapshot(&snapshotter, look.name())?;
            }
            let key = extraction.key().to_owned();
            extraction.commit(&name, parent.as_ref(), labels)?;
            if let Some(look) = &look {
                work.release_snapshot(&snapshotter, look.name())?;
            }
            let name = name.name().to_owned();
            let event = SnapshotCommit { key, name, snapshotter };
            work.events.publish(&work.namespace(), "/snapshot/commit", any::pack(&event));
            Ok(())
        })
        .await
    }

    async fn has_snapshot(self: &Arc<Self>, unpack: &Unpack) -> Result<bool, Error> {
        let key = self.key(&unpack.chain_id.to_string());
        let (work, snapshotter) = (Arc::clone(self), Arc::clone(&unpack.snapshotter));
        let name = unpack.name.clone();
        blocking(move || {
            // Before the look, so that what is seen stays.
            work.lease_snapshot(&name, key.name())?;
            match snapshotter.stat(&key) {
                Ok(_) => Ok(true),
                Err(snapshotter::Error::NotFound { .. }) => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// The snapshot `name` of the transfer's namespace.
    pub(super) fn key(&self, name: &str) -> Key {
        Key::new(self.scope.namespace.as_str(), name).expect("digests and prefixes are short")
    }
}

/// The directory that `mount` shows, as the upper directory of an overlay whose lower ones are not
/// known yet: what the layer removes has to be marked, for it is somewhere below.
fn changeset(mount: Mount) -> Mount {
    let options = vec![format!("upperdir={}", mount.source)];
    Mount { kind: "overlay".to_owned(), source: "overlay".to_owned(), options, ..mount }
}

pub(super) fn stopped() -> Error {
    Error::Stopped("another layer failed".to_owned())
}
