//! Layers: applies blobs to snapshots, and makes blobs from snapshots.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use prost::Message as _;
use proto::containerd::services::diff::v1::{
    ApplyRequest, ApplyResponse, DiffRequest, DiffResponse, diff_server,
};
use snapshotter::Mount;
use tonic::{Code, Request, Response, Status};

use super::{
    blocking, required, scope, status,
    wire::{descriptor_from_wire, descriptor_to_wire, mounts_from_wire, mounts_to_wire},
};
use crate::{
    content::{Hashing, NewWrite, Store, Writer},
    diff::{self, Chain, CompareOptions, Compared, Compression, Limits, Processors},
    error::Error,
    labels::Labels,
    namespace::Scope,
    oci::{Descriptor, media_type},
    proxy::Plugin,
    transfer,
};

/// The label of a compressed layer with the digest of what it holds.
const UNCOMPRESSED_LABEL: &str = "containerd.io/uncompressed";

/// How much of a blob is read at once, in bytes.
const BUFFER_LEN: usize = 256 << 10;

/// Who applies and makes layers.
#[derive(Clone, Debug)]
pub enum Differ {
    /// This program.
    Own,
    /// Another one, which has access to the blobs and to what is mounted.
    Other(Plugin),
}

impl Differ {
    /// The same, for transfers.
    pub(crate) fn for_transfers(&self) -> transfer::Differ {
        let Self::Other(plugin) = self else { return transfer::Differ::Own };
        let plugin = plugin.clone();
        transfer::Differ::Other(Arc::new(move |scope, layer, mounts| {
            let plugin = plugin.clone();
            Box::pin(async move {
                let request = ApplyRequest {
                    diff: Some(descriptor_to_wire(layer)),
                    mounts: mounts_to_wire(mounts),
                    ..ApplyRequest::default()
                };
                let applied = plugin.apply(&scope, request).await?.applied;
                let digest = applied.and_then(|applied| applied.digest.parse().ok());
                digest.ok_or_else(|| {
                    let name = plugin.name();
                    Error::Unavailable(format!(
                        "proxy plugin {name:?} does not tell what it applied"
                    ))
                })
            })
        }))
    }
}

/// The service.
#[derive(Clone)]
pub struct Diff {
    content: Store,
    differs: Arc<[Differ]>,
    processors: Arc<Processors>,
}

impl Diff {
    /// Reads and writes the blobs in `content`. Of `differs`, each is asked until one knows how to do
    /// what is asked for; this program's own reads layers through `processors`, too.
    pub fn new(content: Store, differs: Vec<Differ>, processors: Processors) -> Self {
        Self { content, differs: differs.into(), processors: Arc::new(processors) }
    }

    async fn apply_own(
        &self,
        scope: Scope,
        request: ApplyRequest,
    ) -> Result<ApplyResponse, Status> {
        let ApplyRequest { diff, mounts, payloads, sync_fs } = request;
        let layer = descriptor_from_wire(required("diff", diff)?)?;
        let (content, mounts) = (self.content.clone(), mounts_from_wire(mounts));
        let processors = Arc::clone(&self.processors);
        let applied = blocking(move || {
            let encoded = payloads.into_iter().map(|(name, any)| (name, any.encode_to_vec()));
            let source = Source { processors: &processors, payloads: encoded.collect() };
            apply(&content, &scope, &layer, &mounts, &source, sync_fs)
        });
        let applied = applied.await?;
        Ok(ApplyResponse { applied: Some(descriptor_to_wire(applied)) })
    }

    async fn diff_own(&self, scope: Scope, request: DiffRequest) -> Result<DiffResponse, Status> {
        let DiffRequest { left, right, media_type, r#ref, labels, source_date_epoch } = request;
        let comparison = Comparison {
            lower: mounts_from_wire(left),
            upper: mounts_from_wire(right),
            media_type: if media_type.is_empty() {
                format!("{}+gzip", media_type::OCI_LAYER)
            } else {
                media_type
            },
            reference: r#ref,
            labels,
            mtime_max: source_date_epoch.map(|time| time.seconds),
        };
        let content = self.content.clone();
        let made = blocking(move || compare(&content, &scope, comparison)).await?;
        Ok(DiffResponse { diff: Some(descriptor_to_wire(made)) })
    }
}

#[tonic::async_trait]
impl diff_server::Diff for Diff {
    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let scope = scope(&request)?;
        let request = request.into_inner();
        let mut last = none();
        for differ in self.differs.iter() {
            let answer = match differ {
                Differ::Own => self.apply_own(scope.clone(), request.clone()).await,
                Differ::Other(plugin) => {
                    plugin.apply(&scope, request.clone()).await.map_err(status)
                }
            };
            match answer {
                Err(refused) if refused.code() == Code::Unimplemented => last = refused,
                answer => return answer.map(Response::new),
            }
        }
        Err(last)
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        let scope = scope(&request)?;
        let request = request.into_inner();
        let mut last = none();
        for differ in self.differs.iter() {
            let answer = match differ {
                Differ::Own => self.diff_own(scope.clone(), request.clone()).await,
                Differ::Other(plugin) => plugin.diff(&scope, request.clone()).await.map_err(status),
            };
            match answer {
                Err(refused) if refused.code() == Code::Unimplemented => last = refused,
                answer => return answer.map(Response::new),
            }
        }
        Err(last)
    }
}

/// What is answered when there is nobody to ask.
fn none() -> Status {
    status(Error::NotImplemented("no differ is configured".to_owned()))
}

/// How a blob becomes a layer.
struct Source<'a> {
    processors: &'a Processors,
    /// For processors, by their names.
    payloads: BTreeMap<String, Vec<u8>>,
}

/// Applies `layer` to `mounts`, and describes the uncompressed layer.
fn apply(
    content: &Store,
    scope: &Scope,
    layer: &Descriptor,
    mounts: &[Mount],
    source: &Source<'_>,
    sync: bool,
) -> Result<Descriptor, Error> {
    let chain = Chain::find(source.processors, &layer.media_type).ok_or_else(|| {
        let kind = &layer.media_type;
        Error::NotImplemented(format!(
            "failed to get stream processor for {kind}: no processor for media-type"
        ))
    })?;
    let blob = content.blob(&scope.namespace, &layer.digest)?;
    let applied = if chain.is_empty() {
        let reader = BufReader::with_capacity(BUFFER_LEN, blob.into_reader());
        diff::apply(reader, mounts, &Limits::default())?
    } else {
        let mut running = chain.start(blob.into_file()?, &source.payloads)?;
        let reader = BufReader::with_capacity(BUFFER_LEN, &mut running);
        let applied = diff::apply(reader, mounts, &Limits::default());
        running.finish(applied)?
    };
    if sync {
        flush(mounts)?;
    }
    Ok(Descriptor {
        digest: applied.diff_id,
        size: applied.size,
        ..Descriptor::of(media_type::OCI_LAYER, b"")
    })
}

/// Waits until the filesystem that holds what `mounts` write to is on disk.
fn flush(mounts: &[Mount]) -> Result<(), Error> {
    let Some(mount) = mounts.last() else { return Ok(()) };
    let folder = mount.option("upperdir").unwrap_or(&mount.source);
    let file = File::open(folder).map_err(Error::file("open", folder))?;
    rustix::fs::syncfs(&file).map_err(|error| Error::file("sync", folder)(error.into()))
}

/// What `diff` is asked for.
struct Comparison {
    lower: Vec<Mount>,
    upper: Vec<Mount>,
    media_type: String,
    /// The name of the write; empty for one of our own.
    reference: String,
    labels: Labels,
    /// In seconds since 1970.
    mtime_max: Option<i64>,
}

/// Makes a layer with the changes from `lower` to `upper`, and describes it.
fn compare(content: &Store, scope: &Scope, wanted: Comparison) -> Result<Descriptor, Error> {
    let Some(compression) = Compression::of_media_type(&wanted.media_type) else {
        let kind = wanted.media_type;
        return Err(Error::NotImplemented(format!("unsupported diff media type: {kind}")));
    };
    write(content, scope, wanted, compression)
}

/// Makes a blob of `media_type` with all files of `folder`, as a layer has them, and describes it.
pub(super) fn archive(
    content: &Store,
    scope: &Scope,
    folder: &Path,
    media_type: &str,
) -> Result<Descriptor, Error> {
    let wanted = Comparison {
        lower: Vec::new(),
        upper: vec![Mount::bind(folder.display().to_string(), true)],
        media_type: media_type.to_owned(),
        reference: String::new(),
        labels: Labels::new(),
        mtime_max: None,
    };
    write(content, scope, wanted, Compression::Uncompressed)
}

fn write(
    content: &Store,
    scope: &Scope,
    wanted: Comparison,
    compression: Compression,
) -> Result<Descriptor, Error> {
    let is_own = wanted.reference.is_empty();
    let reference = if is_own { own_reference() } else { wanted.reference };
    let mut new = NewWrite::new(&reference);
    new.hashing = Hashing::Caller;
    let mut writer = content.writer(scope, new)?;
    writer.truncate()?;
    let options = CompareOptions { compression, mtime_max: wanted.mtime_max };
    let mut sink = Sink { writer: &mut writer, error: None };
    let compared = diff::compare(&wanted.lower, &wanted.upper, &options, &mut sink);
    // What kept the blob from being written is the better reason.
    let failed = sink.error;
    let compared = compared.map_err(|error| failed.unwrap_or_else(|| error.into()));
    let compared = compared.inspect_err(|_| {
        if is_own && let Err(error) = content.abort(&scope.namespace, &reference) {
            tracing::warn!(%error, reference, "remains of a layer stay");
        }
    })?;
    let Compared { digest, size, diff_id } = compared;
    let mut labels = wanted.labels;
    let label = (UNCOMPRESSED_LABEL.to_owned(), diff_id.to_string());
    if compression != Compression::Uncompressed {
        labels.extend([label.clone()]);
    }
    match writer.commit(size, Some(&digest), labels) {
        Ok(_) => {}
        Err(Error::AlreadyExists(_)) if compression != Compression::Uncompressed => {
            let (labels, mask) = (Labels::from([label]), format!("labels.{UNCOMPRESSED_LABEL}"));
            content.metadata().update_content(&scope.namespace, &digest, &labels, &[mask])?;
        }
        Err(Error::AlreadyExists(_)) => {}
        Err(error) => return Err(error),
    }
    Ok(Descriptor { digest, size, ..Descriptor::of(&wanted.media_type, b"") })
}

/// A name for a write that is used once.
fn own_reference() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    format!("diff-{}-{:?}", now.as_nanos(), std::thread::current().id())
}

/// Lets a layer be written into a blob; keeps what went wrong, which `Write` cannot say.
struct Sink<'a> {
    writer: &'a mut Writer,
    error: Option<Error>,
}

impl io::Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.writer.write(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                let shown = io::Error::other(error.to_string());
                self.error = Some(error);
                Err(shown)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
