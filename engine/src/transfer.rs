//! Moves images: from registries and archives into the stores, and out of them.
//!
//! ```text
//!  registry ──resolve──> root document ──> documents ──> images ──> layers ──> names
//!  archive  ──unpack───> (blobs stored)        │            │          │         │
//!                                              v            v          v         v
//!                                           content      platform   content,   image
//!                                            store       selected   snapshots  records
//! ```
//!
//! # Invariants
//!
//! 1. An image's name is recorded last: whoever sees it finds everything that was asked for.
//! 2. Whatever a transfer stores is in a lease until the name is recorded: garbage collection
//!    takes nothing away in between, and takes everything when the transfer fails.
//! 3. A snapshot is committed under a chain ID only if what was extracted hashes to it. A registry
//!    cannot give one image the layers of another.
//! 4. Two transfers of one blob, or of one layer, do the work once.
//!
//! Source: containerd, `core/transfer/local`, `core/unpack`.

mod archive;
mod differ;
mod documents;
mod export;
mod extract;
mod import;
mod layers;
mod locks;
mod plan;
mod progress;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use proto::containerd::services::images::v1::{ImageCreate, ImageUpdate};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    content::{self, NewWrite},
    diff::Processors,
    digest::Digest,
    events::Exchange,
    gc::{EXPIRE, Snapshotters},
    labels::{LABEL_UNCOMPRESSED, Labels},
    metadata::{Image as Record, Resource},
    namespace::{Namespace, Scope},
    oci::{DOCUMENT_LEN_MAX, Descriptor, DocumentError},
    platform::Platform,
    registry::{self, Client},
};

pub use self::{
    differ::{Applying, Differ},
    export::ExportOptions,
    plan::{NameRule, Platforms},
    progress::{Message, Progress},
};

use self::{
    documents::{Image, Selection},
    layers::{Job, Unpack},
    locks::Locks,
};

/// How many layers are worked on at once, in all transfers.
const LAYERS_AT_ONCE: usize = 4;

/// How long what a transfer stores is kept if the daemon dies in the middle.
const LEASE_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Where an image comes to, and what of it.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The image's name; empty when the archive names its images.
    pub name: String,
    /// Labels of the image's record.
    pub labels: Labels,
    /// For which platforms the content is wanted.
    pub platforms: Platforms,
    /// Whether manifests and configurations of other platforms are wanted.
    pub all_metadata: bool,
    /// The most images of an index; 0 for all.
    pub limit: usize,
    /// Further names.
    pub rules: Vec<NameRule>,
    /// Where the image is unpacked.
    pub unpack: Vec<UnpackTarget>,
}

impl Destination {
    /// Whether that is a name beside the image's own. What hung on itself would be gone at once.
    fn is_further(&self, name: &str) -> bool {
        name != self.name
    }

    /// The labels of a further name. Beside a name of its own it goes when that one goes.
    fn further_labels(&self) -> Labels {
        let mut labels = self.labels.clone();
        if !self.name.is_empty() {
            let now = jiff::Timestamp::now().to_string();
            labels.insert("containerd.io/gc.bref.image".to_owned(), self.name.clone());
            labels.insert(EXPIRE.to_owned(), now);
        }
        labels
    }
}

/// A platform whose image is unpacked, and the snapshotter that gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnpackTarget {
    /// The platform; the host's by default.
    pub platform: Platform,
    /// The snapshotter's name.
    pub snapshotter: String,
}

/// The stores that transfers fill and empty. A clone is another handle on the same.
#[derive(Clone)]
pub struct Transfer {
    shared: Arc<Shared>,
}

/// What all transfers have in common.
struct Shared {
    content: content::Store,
    snapshotters: Arc<Snapshotters>,
    events: Exchange,
    /// What layers of other types go through.
    processors: Processors,
    /// Who applies layers, in the order in which they are asked.
    differs: Vec<Differ>,
    /// Tells garbage collection that there may be some.
    on_release: Box<dyn Fn() + Send + Sync>,
    blobs: Locks<(Namespace, Digest)>,
    chains: Locks<(Namespace, String, Digest)>,
    slots: Semaphore,
}

impl Transfer {
    /// Transfers between `content`, with its records, and `snapshotters`. Layers of types that `processors` accept go
    /// through those when they are unpacked. Of `differs`, each is asked until one knows a kind of layer; this program's
    /// own, if it is alone, tries any.
    /// When a transfer has given up what kept objects, `on_release` is called.
    pub fn new(
        content: content::Store,
        snapshotters: Arc<Snapshotters>,
        events: Exchange,
        processors: Processors,
        differs: Vec<Differ>,
        on_release: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                content,
                snapshotters,
                events,
                processors,
                differs,
                on_release: Box::new(on_release),
                blobs: Locks::default(),
                chains: Locks::default(),
                slots: Semaphore::new(LAYERS_AT_ONCE),
            }),
        }
    }

    /// Pulls the image that `client` is for.
    ///
    /// Dropping the future stops the transfer; what it stored is collected with its lease.
    ///
    /// # Errors
    ///
    /// As of [`Error`].
    pub async fn pull(
        &self,
        scope: Scope,
        client: Client,
        to: Destination,
        progress: Progress,
    ) -> Result<(), Error> {
        let client = Arc::new(client);
        let name = client.reference().to_string();
        let lease = self.lease(scope).await?;
        let work = self.work(&lease, Some(Arc::clone(&client)), progress);
        work.progress.say(format!("Resolving from {name}"), "", None).await;
        let (root, bytes) = client.resolve().await?;
        work.progress.say("fetching image content", &name, Some(&root)).await;
        work.fill(&root, Some(bytes), &to).await?;
        work.record_whole(&root, &to).await?;
        work.progress.say(format!("Completed pull from {name}"), "", None).await;
        lease.end().await
    }

    /// Gives an image a second name.
    ///
    /// # Errors
    ///
    /// As of [`Error`].
    pub async fn tag(
        &self,
        scope: Scope,
        from: String,
        to: String,
        labels: Labels,
    ) -> Result<(), Error> {
        let work = Arc::new(Work::new(self, scope, None, Progress::none()));
        let reader = Arc::clone(&work);
        let image = blocking(move || {
            Ok(reader.content.metadata().image(&reader.scope.namespace, &from)?)
        })
        .await?;
        work.record_target(&to, image.target, labels).await
    }

    /// The scope with a lease of its own, unless the client brought one.
    async fn lease(&self, scope: Scope) -> Result<Lease, Error> {
        let mut lease = Lease { shared: Arc::clone(&self.shared), scope, own: false };
        if lease.scope.lease.is_some() {
            return Ok(lease);
        }
        blocking(move || {
            let id = format!("transfer-{}", unique());
            let expires = jiff::Timestamp::try_from(SystemTime::now() + LEASE_TIME)
                .expect("a day from now is in range");
            let labels = Labels::from([(EXPIRE.to_owned(), expires.to_string())]);
            let metadata = lease.shared.content.metadata();
            metadata.create_lease(&lease.scope.namespace, &id, labels)?;
            lease.scope.lease = Some(id);
            lease.own = true;
            Ok(lease)
        })
        .await
    }

    fn work(&self, lease: &Lease, source: Option<Arc<Client>>, progress: Progress) -> Arc<Work> {
        Arc::new(Work::new(self, lease.scope.clone(), source, progress))
    }
}

/// The lease of a transfer. Ends with it, whatever way that ends.
struct Lease {
    shared: Arc<Shared>,
    scope: Scope,
    own: bool,
}

impl Lease {
    async fn end(mut self) -> Result<(), Error> {
        blocking(move || {
            self.release();
            Ok(())
        })
        .await
    }

    fn release(&mut self) {
        if !std::mem::take(&mut self.own) {
            return;
        }
        let id = self.scope.lease.as_deref().expect("an own lease has a name");
        let metadata = self.shared.content.metadata();
        if let Err(error) = metadata.delete_lease(&self.scope.namespace, id) {
            let error = sys::error::Chain(&error).to_string();
            tracing::warn!(lease = id, error, "the lease of a transfer is left to expire");
        }
        (self.shared.on_release)();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Of a transfer that failed or was cancelled: one commit, waited for here.
        self.release();
    }
}

/// One transfer.
struct Work {
    shared: Arc<Shared>,
    scope: Scope,
    /// Where blobs come from that are not stored; `None` for an archive, whose blobs all are.
    source: Option<Arc<Client>>,
    progress: Progress,
    /// Cancelled when a part has failed: the others shall end soon, with any error.
    stop: CancellationToken,
}

impl std::ops::Deref for Work {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Work {
    fn new(
        transfer: &Transfer,
        scope: Scope,
        source: Option<Arc<Client>>,
        progress: Progress,
    ) -> Self {
        let (shared, stop) = (Arc::clone(&transfer.shared), CancellationToken::new());
        Self { shared, scope, source, progress, stop }
    }

    fn namespace(&self) -> Namespace {
        self.scope.namespace.clone()
    }

    /// Brings everything below `root` that `to` asks for into the stores.
    async fn fill(
        self: &Arc<Self>,
        root: &Descriptor,
        bytes: Option<bytes::Bytes>,
        to: &Destination,
    ) -> Result<(), Error> {
        let selection = Selection {
            platforms: to.platforms.clone(),
            all_metadata: to.all_metadata,
            limit: to.limit,
        };
        let images = self.documents(root, bytes, &selection).await?;
        let mut jobs = Vec::new();
        let mut unpacked: Vec<&Image> = Vec::new();
        let mut pins = Vec::new();
        for target in &to.unpack {
            let Some(image) = best(&images, &target.platform) else { continue };
            if let Some((more, chain_id)) = self.unpack_jobs(image, target)? {
                jobs.extend(more);
                unpacked.push(image);
                pins.push((image.config.digest.clone(), target.snapshotter.clone(), chain_id));
            }
        }
        for image in images.iter().filter(|image| image.whole) {
            if !unpacked.contains(&image) {
                jobs.extend(image.layers.iter().map(|layer| self.job_for(layer, image, None)));
            }
        }
        self.layers(jobs).await?;
        let work = Arc::clone(self);
        blocking(move || work.pin(pins)).await
    }

    fn job_for(&self, layer: &Descriptor, image: &Image, unpack: Option<Unpack>) -> Job {
        let parent = progress::ingest_ref(&image.manifest);
        Job { layer: layer.clone(), item: self.progress.item(layer, &parent), unpack }
    }

    /// The jobs that unpack `image`, and the chain ID that they end at. An image without layers
    /// has nothing to unpack.
    fn unpack_jobs(
        &self,
        image: &Image,
        target: &UnpackTarget,
    ) -> Result<Option<(Vec<Job>, Digest)>, Error> {
        let name = &target.snapshotter;
        let missing = || crate::error::Error::NotFound(format!("snapshotter {name}"));
        let snapshotter = self.snapshotters.get(name).ok_or_else(missing)?;
        let Some(config) = &image.parsed else { return Ok(None) };
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != image.layers.len() {
            let manifest = image.manifest.digest.clone();
            let (layers, diff_ids) = (image.layers.len(), diff_ids.len());
            return Err(InvalidImage::LayerCount { manifest, layers, diff_ids }.into());
        }
        let chain = crate::oci::chain_ids(diff_ids);
        let mut jobs = Vec::new();
        let mut below = None;
        for ((layer, diff_id), chain_id) in image.layers.iter().zip(diff_ids).zip(&chain) {
            let (committed, ready) = tokio::sync::watch::channel(false);
            let unpack = Unpack {
                snapshotter: Arc::clone(snapshotter),
                name: name.clone(),
                diff_id: diff_id.clone(),
                chain_id: chain_id.clone(),
                below: below.replace((chain_id.clone(), ready)),
                committed,
            };
            jobs.push(self.job_for(layer, image, Some(unpack)));
        }
        Ok(chain.last().map(|top| (jobs, top.clone())))
    }

    /// Labels configurations so that they keep the snapshots of their layers.
    fn pin(&self, pins: Vec<(Digest, String, Digest)>) -> Result<(), Error> {
        for (config, snapshotter, chain_id) in pins {
            let (key, value) = plan::snapshot_label(&snapshotter, &chain_id);
            let mask = [format!("labels.{key}")];
            let labels = Labels::from([(key, value)]);
            self.content.metadata().update_content(&self.namespace(), &config, &labels, &mask)?;
        }
        Ok(())
    }

    /// Gives what was transferred as a whole its names.
    async fn record_whole(
        self: &Arc<Self>,
        root: &Descriptor,
        to: &Destination,
    ) -> Result<(), Error> {
        // The name of its own first: the others are kept by it.
        if !to.name.is_empty() {
            self.record(&to.name, root, &to.labels).await?;
        }
        let further = to.rules.iter().filter_map(|rule| rule.name_of_whole(root));
        for name in further.filter(|name| to.is_further(name)) {
            self.record(&name, root, &to.further_labels()).await?;
        }
        Ok(())
    }

    /// Gives what was transferred its name, or moves the name to it.
    async fn record(
        self: &Arc<Self>,
        name: &str,
        root: &Descriptor,
        labels: &Labels,
    ) -> Result<(), Error> {
        self.record_target(name, root.clone(), labels.clone()).await?;
        self.progress.say("saved", name, Some(root)).await;
        Ok(())
    }

    async fn record_target(
        self: &Arc<Self>,
        name: &str,
        target: Descriptor,
        labels: Labels,
    ) -> Result<(), Error> {
        let (work, name) = (Arc::clone(self), name.to_owned());
        blocking(move || {
            let now = SystemTime::now();
            let record = Record { name, labels, target, created: now, updated: now };
            let metadata = work.content.metadata();
            let (verb, image) = match metadata.create_image(&work.scope, record.clone()) {
                Err(crate::error::Error::AlreadyExists(_)) => {
                    ("update", metadata.update_image(&work.scope, &record, &[])?)
                }
                created => ("create", created?),
            };
            work.announce(verb, &image);
            Ok(())
        })
        .await
    }

    fn announce(&self, verb: &str, image: &Record) {
        let (name, labels) = (image.name.clone(), image.labels.clone());
        let event = match verb {
            "create" => proto::any::pack(&ImageCreate { name, labels }),
            _ => proto::any::pack(&ImageUpdate { name, labels }),
        };
        self.events.publish(&self.scope.namespace, &format!("/images/{verb}"), event);
    }

    /// A stored document, if it is stored.
    fn local_document(&self, descriptor: &Descriptor) -> Result<Option<bytes::Bytes>, Error> {
        match self.content.blob(&self.scope.namespace, &descriptor.digest) {
            Ok(blob) => Ok(Some(blob.read_all(DOCUMENT_LEN_MAX)?.into())),
            Err(crate::error::Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores a document with its labels, or adds the labels to the one that is stored.
    async fn store_document(
        self: &Arc<Self>,
        descriptor: &Descriptor,
        bytes: bytes::Bytes,
        mut labels: Labels,
    ) -> Result<(), Error> {
        let (work, descriptor) = (Arc::clone(self), descriptor.clone());
        let blob = self.blobs.lock((self.namespace(), descriptor.digest.clone())).await;
        blocking(move || {
            let _blob = blob;
            labels.extend(work.source_labels());
            let has = work.has_blob(&descriptor.digest)?;
            work.content.put(&work.scope, &bytes, labels.clone())?;
            if has {
                let mask: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
                if !mask.is_empty() {
                    let (namespace, digest) = (work.namespace(), &descriptor.digest);
                    work.content.metadata().update_content(&namespace, digest, &labels, &mask)?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Whether the namespace has the blob; if so it is added to the lease.
    fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        let metadata = self.content.metadata();
        let keep = metadata.referring();
        match self.content.info(&self.scope.namespace, digest) {
            Ok(_) => {
                metadata.lease_seen(&keep, &self.scope, &Resource::content(digest))?;
                Ok(true)
            }
            Err(crate::error::Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Labels a blob with what it was inflated to: so it is found when its layer has to be unpacked
    /// again.
    fn note_diff_id(&self, digest: &Digest, diff_id: &Digest) -> Result<(), Error> {
        let (metadata, namespace) = (self.content.metadata(), &self.scope.namespace);
        let value = diff_id.to_string();
        let labels = self.content.info(namespace, digest)?.labels;
        if digest == diff_id || labels.get(LABEL_UNCOMPRESSED) == Some(&value) {
            return Ok(());
        }
        let labels = Labels::from([(LABEL_UNCOMPRESSED.to_owned(), value)]);
        let mask = [format!("labels.{LABEL_UNCOMPRESSED}")];
        metadata.update_content(namespace, digest, &labels, &mask)?;
        Ok(())
    }

    fn blob(&self, digest: &Digest) -> Result<content::Blob, Error> {
        Ok(self.content.blob(&self.scope.namespace, digest)?)
    }

    /// Whether the namespace has the layer, or another one, which then shares it.
    fn has_layer(&self, layer: &Descriptor) -> Result<bool, Error> {
        if self.has_blob(&layer.digest)? {
            return Ok(true);
        }
        let writer = self.ingest(layer)?;
        if !writer.is_shared() {
            return Ok(false);
        }
        match writer.commit(layer.size, Some(&layer.digest), self.source_labels()) {
            Ok(_) => Ok(true),
            // It went away just now.
            Err(crate::error::Error::Unavailable(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Begins to store a layer. Of an earlier try that was cut short, nothing is used: the layer is
    /// extracted as it comes, so it is needed from its start.
    fn ingest(&self, layer: &Descriptor) -> Result<content::Writer, Error> {
        let reference = progress::ingest_ref(layer);
        let mut writer = self.content.writer(
            &self.scope,
            NewWrite {
                total: layer.size,
                expected: Some(layer.digest.clone()),
                ..NewWrite::new(&reference)
            },
        )?;
        if !writer.is_shared() {
            writer.truncate()?;
        }
        Ok(writer)
    }

    fn source_labels(&self) -> Labels {
        let reference = self.source.as_ref().map(|client| client.reference());
        reference.map(|r| plan::source_label(r.host(), r.path())).into_iter().collect()
    }

    /// Adds a snapshot to the lease. The caller has kept garbage collection out.
    fn lease_snapshot(&self, snapshotter: &str, name: &str) -> Result<(), Error> {
        let resource = Resource::snapshot(snapshotter, name);
        Ok(self.content.metadata().lease(&self.scope, &resource)?)
    }

    fn release_snapshot(&self, snapshotter: &str, name: &str) -> Result<(), Error> {
        let resource = Resource::snapshot(snapshotter, name);
        Ok(self.content.metadata().release(&self.scope, &resource)?)
    }
}

/// The image that runs best on `platform`.
fn best<'a>(images: &'a [Image], platform: &Platform) -> Option<&'a Image> {
    let rank = |image: &Image| image.platform().map_or(Some(u32::MAX), |own| platform.rank(own));
    let ranked = images.iter().filter(|image| image.whole && image.parsed.is_some());
    ranked
        .filter_map(|image| Some((rank(image)?, image)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, image)| image)
}

/// A name that nothing else has: time, process-wide count.
fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{count}", time.as_nanos())
}

/// Runs blocking code on a thread of its own; it runs to its end even if nobody waits any more.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Stopped(error.to_string())),
    }
}

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum Error {
    /// The registry does not give what is asked for.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// A layer cannot be fetched or stored.
    #[error("fetch {what}")]
    Fetch { what: String, source: std::io::Error },
    /// A document cannot be understood.
    #[error("image document")]
    Document(#[from] DocumentError),
    /// The image contradicts itself, or is over a limit.
    #[error("invalid image")]
    Invalid(#[from] InvalidImage),
    /// What comes over the stream is no archive of images.
    #[error("archive")]
    Archive(#[from] archive::ArchiveError),
    /// The stream to or from the client broke.
    #[error("stream")]
    Stream(#[from] crate::streaming::StreamError),
    /// An archive cannot be written.
    #[error("write archive")]
    Write(#[source] std::io::Error),
    /// Neither the stores nor the source have it.
    #[error("content {digest}: not found")]
    Missing { digest: Digest },
    /// The image is for none of the platforms that are wanted.
    #[error("{root}: no image for the wanted platforms: not found")]
    NothingSelected { root: Digest },
    /// A layer is not what it should be, or cannot be extracted.
    #[error("unpack layer")]
    Diff(#[from] crate::diff::DiffError),
    /// A snapshotter fails.
    #[error("snapshot")]
    Snapshot(#[from] ::snapshotter::Error),
    /// The engine's own stores fail.
    #[error(transparent)]
    State(#[from] crate::error::Error),
    /// A layer below this one failed, whose error says more; or the work panicked.
    #[error("stopped: {0}")]
    Stopped(String),
}

/// How an image contradicts itself or is over a limit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum InvalidImage {
    #[error("{root} leads to more than {max} documents, or nests indexes too deeply")]
    TooManyDocuments { root: Digest, max: usize },
    #[error("document {digest} of {size} bytes is over the limit of {DOCUMENT_LEN_MAX}")]
    DocumentTooLarge { digest: Digest, size: u64 },
    #[error("manifest {manifest} has {layers} layers, and its configuration {diff_ids}")]
    LayerCount { manifest: Digest, layers: usize, diff_ids: usize },
    #[error("layer {layer} inflates to {got} where the configuration says {want}")]
    DiffId { layer: Digest, want: Digest, got: Digest },
}
