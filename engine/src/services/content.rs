//! Blobs: reads and writes them in streams.
//!
//! A write is a conversation: the client says something, hears how far the write has come, and so
//! on until it commits or hangs up. Its messages are taken one by one, on blocking threads, so a
//! client that is cut off loses nothing that it was told is written.

use bytes::Bytes;
use futures::{Stream, StreamExt, stream::BoxStream};
use proto::containerd::{
    events::{ContentCreate, ContentDelete},
    services::content::v1::{
        self as api, AbortRequest, DeleteContentRequest, InfoRequest, InfoResponse,
        ListContentRequest, ListContentResponse, ListStatusesRequest, ListStatusesResponse,
        ReadContentRequest, ReadContentResponse, StatusRequest, StatusResponse, UpdateRequest,
        UpdateResponse, WriteContentRequest, WriteContentResponse, content_server,
    },
};
use tonic::{Request, Response, Status, Streaming};

use super::{
    after_removal, blocking, paths, refused, required, scope, status, timestamp, wire::size_to_wire,
};
use crate::{
    content::{Blob, Store, WriteStatus},
    digest::Digest,
    error::Error,
    events::Exchange,
    filter::Filter,
    gc::Scheduler,
    metadata::ContentInfo,
};

mod write;

/// How much of a blob one message carries, in bytes. Clients take messages up to 4 MiB.
const CHUNK_LEN: u64 = 1 << 20;

/// How many blobs one message lists.
const LIST_LEN: usize = 100;

/// The service.
#[derive(Clone)]
pub struct Content {
    store: Store,
    events: Exchange,
    gc: Scheduler,
}

impl Content {
    /// Serves the blobs in `store`.
    pub fn new(store: Store, events: Exchange, gc: Scheduler) -> Self {
        Self { store, events, gc }
    }
}

#[tonic::async_trait]
impl content_server::Content for Content {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let digest = parse(&request.into_inner().digest)?;
        let store = self.store.clone();
        let info = blocking(move || store.info(&namespace, &digest)).await?;
        Ok(Response::new(InfoResponse { info: Some(info_to_wire(info)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateRequest>,
    ) -> Result<Response<UpdateResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let UpdateRequest { info, update_mask } = request.into_inner();
        let info = required("info", info)?;
        let (digest, mask) = (parse(&info.digest)?, paths(update_mask));
        let store = self.store.metadata().clone();
        let update = move || store.update_content(&namespace, &digest, &info.labels, &mask);
        Ok(Response::new(UpdateResponse { info: Some(info_to_wire(blocking(update).await?)) }))
    }

    type ListStream = BoxStream<'static, Result<ListContentResponse, Status>>;

    async fn list(
        &self,
        request: Request<ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let namespace = scope(&request)?.namespace;
        let filters = request.into_inner().filters;
        let store = self.store.metadata().clone();
        let found =
            blocking(move || store.contents(&namespace, &Filter::parse_all(&filters)?)).await?;
        let messages = futures::stream::iter(found).chunks(LIST_LEN).map(|infos| {
            Ok(ListContentResponse { info: infos.into_iter().map(info_to_wire).collect() })
        });
        Ok(Response::new(messages.boxed()))
    }

    async fn delete(&self, request: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        let scope = scope(&request)?;
        let digest: Result<Digest, _> = request.into_inner().digest.parse();
        let digest = digest.map_err(|error| refused(error.to_string()))?;
        let (store, namespace) = (self.store.clone(), scope.namespace.clone());
        let event = ContentDelete { digest: digest.to_string() };
        blocking(move || store.delete(&scope, &digest)).await?;
        self.events.publish(&namespace, "/content/delete", proto::any::pack(&event));
        after_removal(&self.gc, false).await?;
        Ok(Response::new(()))
    }

    type ReadStream = BoxStream<'static, Result<ReadContentResponse, Status>>;

    async fn read(
        &self,
        request: Request<ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let namespace = scope(&request)?.namespace;
        let ReadContentRequest { digest, offset, size } = request.into_inner();
        let digest: Digest =
            digest.parse().map_err(|error| refused(format!("{digest}: {error}")))?;
        let store = self.store.clone();
        let blob = blocking(move || store.blob(&namespace, &digest)).await?;
        let (length, start) = (blob.size(), u64::try_from(offset).unwrap_or(0));
        if start > length {
            let message = format!("read past object length {length} bytes");
            return Err(status(Error::OutOfRange(message)));
        }
        let end = match u64::try_from(size) {
            Ok(size) if size > 0 => start.saturating_add(size).min(length),
            _ => length,
        };
        Ok(Response::new(chunks(blob, start, end).boxed()))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let name = request.into_inner().r#ref;
        let store = self.store.clone();
        let find = move || {
            store.status(&namespace, &name).map_err(|error| match error {
                Error::NotFound(what) => {
                    Error::NotFound(format!("could not get status for ref {name:?}: {what}"))
                }
                error => error,
            })
        };
        let status = blocking(find).await?;
        Ok(Response::new(StatusResponse { status: Some(status_to_wire(status)) }))
    }

    async fn list_statuses(
        &self,
        request: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let filters = request.into_inner().filters;
        let store = self.store.clone();
        let found = blocking(move || store.statuses(&namespace, &Filter::parse_all(&filters)?));
        let statuses = found.await?.into_iter().map(status_to_wire).collect();
        Ok(Response::new(ListStatusesResponse { statuses }))
    }

    type WriteStream = BoxStream<'static, Result<WriteContentResponse, Status>>;

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let scope = scope(&request)?;
        let session = write::Session::new(self.store.clone(), self.events.clone(), scope);
        Ok(Response::new(write::converse(session, request.into_inner()).boxed()))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<()>, Status> {
        let namespace = scope(&request)?.namespace;
        let name = request.into_inner().r#ref;
        let store = self.store.clone();
        blocking(move || store.abort(&namespace, &name)).await?;
        Ok(Response::new(()))
    }
}

/// The bytes of `blob` from `start` to `end`. Offsets in messages count from `start`, as
/// containerd's do.
fn chunks(
    blob: Blob,
    start: u64,
    end: u64,
) -> impl Stream<Item = Result<ReadContentResponse, Status>> {
    futures::stream::try_unfold((blob, start), move |(blob, at)| async move {
        if at >= end {
            return Ok(None);
        }
        let (blob, data) = blocking(move || {
            let len = usize::try_from((end - at).min(CHUNK_LEN)).expect("at most a chunk");
            let mut data = vec![0; len];
            let read = blob.read_at(&mut data, at)?;
            data.truncate(read);
            Ok((blob, data))
        })
        .await?;
        if data.is_empty() {
            return Err(Status::data_loss("blob is shorter than its record says"));
        }
        let next = at + data.len() as u64;
        let message =
            ReadContentResponse { offset: size_to_wire(at - start), data: Bytes::from(data) };
        Ok(Some((message, (blob, next))))
    })
}

/// The digest of a blob that a client asks about.
fn parse(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|_| refused(format!("{text:?} failed validation")))
}

fn info_to_wire(info: ContentInfo) -> api::Info {
    api::Info {
        digest: info.digest.to_string(),
        size: size_to_wire(info.size),
        created_at: timestamp(info.created),
        updated_at: timestamp(info.updated),
        labels: info.labels,
    }
}

fn status_to_wire(status: WriteStatus) -> api::Status {
    api::Status {
        started_at: timestamp(status.started),
        updated_at: timestamp(status.updated),
        r#ref: status.reference,
        offset: size_to_wire(status.offset),
        total: size_to_wire(status.total),
        expected: status.expected.map(|digest| digest.to_string()).unwrap_or_default(),
    }
}

/// Tells that `namespace` has a new blob.
fn publish_create(
    events: &Exchange,
    namespace: &crate::namespace::Namespace,
    event: &ContentCreate,
) {
    events.publish(namespace, "/content/create", proto::any::pack(event));
}
