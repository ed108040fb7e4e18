//! What tasks are made from.

use std::sync::Arc;

use futures::{
    Stream, StreamExt, TryStreamExt, future,
    stream::{self, BoxStream},
};
use proto::containerd::{
    events::{ContainerCreate, ContainerDelete, ContainerUpdate, container_create},
    services::containers::v1::{
        self as api, CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest,
        GetContainerRequest, GetContainerResponse, ListContainerMessage, ListContainersRequest,
        ListContainersResponse, UpdateContainerRequest, UpdateContainerResponse, containers_server,
    },
};
use tonic::{Request, Response, Status};

use super::{after_removal, blocking, glance, paths, refused, required, scope, status, timestamp};
use crate::{
    content,
    events::Exchange,
    filter::Filter,
    gc::Scheduler,
    metadata::{Container, Page, Runtime, Store, View},
    namespace::Namespace,
    restart::{Monitor, strip_image_labels},
};

/// The service.
#[derive(Clone)]
pub struct Containers {
    content: content::Store,
    store: Store,
    events: Exchange,
    gc: Scheduler,
    monitor: Monitor,
}

impl Containers {
    /// Serves the containers in the metadata of `content`. `monitor` is told of them.
    pub fn new(content: content::Store, events: Exchange, gc: Scheduler, monitor: Monitor) -> Self {
        let store = content.metadata().clone();
        Self { content, store, events, gc, monitor }
    }
}

/// How many bytes of records a piece of a list has. All of a list may be many times what the daemon
/// takes otherwise, and a client may take it as slowly as it likes.
const PIECE_LEN: usize = 256 << 10;

/// A list under way.
#[derive(Clone)]
struct List {
    store: Store,
    namespace: Namespace,
    filter: Arc<Filter>,
}

impl List {
    async fn piece(&self, after: String) -> Result<Page<Container>, Status> {
        let Self { store, namespace, filter } = self.clone();
        blocking(move || store.containers_after(&namespace, &filter, &after, PIECE_LEN)).await
    }

    /// The pieces after this one.
    fn rest(self, next: Option<String>) -> impl Stream<Item = Result<Vec<Container>, Status>> {
        stream::try_unfold((self, next), async |(list, next)| {
            let Some(after) = next else { return Ok(None) };
            let page = list.piece(after).await?;
            Ok(Some((page.objects, (list, page.next))))
        })
    }
}

#[tonic::async_trait]
impl containers_server::Containers for Containers {
    async fn get(
        &self,
        request: Request<GetContainerRequest>,
    ) -> Result<Response<GetContainerResponse>, Status> {
        let scope = scope(&request)?;
        let id = request.into_inner().id;
        let find = move |view: &View| view.container(&scope.namespace, &id);
        let container = glance(&self.store, find).await?;
        Ok(Response::new(GetContainerResponse { container: Some(to_wire(container)) }))
    }

    async fn list(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let scope = scope(&request)?;
        let store = self.store.clone();
        let filters = request.into_inner().filters;
        let containers =
            blocking(move || store.containers(&scope.namespace, &Filter::parse_all(&filters)?));
        let containers = containers.await?.into_iter().map(to_wire).collect();
        Ok(Response::new(ListContainersResponse { containers }))
    }

    type ListStreamStream = BoxStream<'static, Result<ListContainerMessage, Status>>;

    async fn list_stream(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<Self::ListStreamStream>, Status> {
        let namespace = scope(&request)?.namespace;
        let filter = Filter::parse_all(&request.into_inner().filters);
        let filter = Arc::new(filter.map_err(|error| status(error.into()))?);
        let list = List { store: self.store.clone(), namespace, filter };
        let first = list.piece(String::new()).await?;
        let pieces = stream::once(future::ok(first.objects)).chain(list.rest(first.next));
        let message = |container| ListContainerMessage { container: Some(to_wire(container)) };
        let messages = pieces
            .map_ok(move |piece| stream::iter(piece.into_iter().map(message).map(Ok)))
            .try_flatten();
        Ok(Response::new(messages.boxed()))
    }

    async fn create(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let mut container = from_wire(required("container", request.into_inner().container)?);
        let (content, owner) = (self.content.clone(), namespace.clone());
        let (container, stripped) = blocking(move || {
            let stripped = strip_image_labels(&content, &owner, &mut container)?;
            Ok((content.metadata().create_container(&owner, container)?, stripped))
        })
        .await?;
        if !stripped.is_empty() {
            let id = &container.id;
            tracing::warn!(%namespace, id, ?stripped, "container does not get labels of its image");
        }
        self.monitor.note(&namespace, &container.id, &container.labels);
        let runtime = container.runtime.clone();
        let event = ContainerCreate {
            id: container.id.clone(),
            image: container.image.clone(),
            runtime: Some(container_create::Runtime {
                name: runtime.name,
                options: runtime.options,
            }),
        };
        self.events.publish(&namespace, "/containers/create", proto::any::pack(&event));
        Ok(Response::new(CreateContainerResponse { container: Some(to_wire(container)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateContainerRequest>,
    ) -> Result<Response<UpdateContainerResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let UpdateContainerRequest { container, update_mask } = request.into_inner();
        let container = from_wire(required("container", container)?);
        if container.id.is_empty() {
            return Err(refused("Container.ID required"));
        }
        let (store, owner, mask) = (self.store.clone(), namespace.clone(), paths(update_mask));
        let container = blocking(move || store.update_container(&owner, &container, &mask)).await?;
        self.monitor.note(&namespace, &container.id, &container.labels);
        let event = ContainerUpdate {
            id: container.id.clone(),
            image: container.image.clone(),
            labels: container.labels.clone(),
            snapshot_key: container.snapshot_key.clone(),
        };
        self.events.publish(&namespace, "/containers/update", proto::any::pack(&event));
        Ok(Response::new(UpdateContainerResponse { container: Some(to_wire(container)) }))
    }

    async fn delete(
        &self,
        request: Request<DeleteContainerRequest>,
    ) -> Result<Response<()>, Status> {
        let namespace = scope(&request)?.namespace;
        let (store, owner, id) = (self.store.clone(), namespace.clone(), request.into_inner().id);
        let event = ContainerDelete { id: id.clone() };
        blocking(move || store.delete_container(&owner, &id)).await?;
        self.monitor.forget(&namespace, &event.id);
        self.events.publish(&namespace, "/containers/delete", proto::any::pack(&event));
        after_removal(&self.gc, false).await?;
        Ok(Response::new(()))
    }
}

fn from_wire(wire: api::Container) -> Container {
    let runtime = wire.runtime.unwrap_or_default();
    Container {
        id: wire.id,
        labels: wire.labels,
        image: wire.image,
        runtime: Runtime { name: runtime.name, options: runtime.options },
        spec: wire.spec,
        snapshotter: wire.snapshotter,
        snapshot_key: wire.snapshot_key,
        created: std::time::SystemTime::UNIX_EPOCH,
        updated: std::time::SystemTime::UNIX_EPOCH,
        extensions: wire.extensions,
        sandbox: wire.sandbox,
    }
}

fn to_wire(container: Container) -> api::Container {
    let Runtime { name, options } = container.runtime;
    api::Container {
        id: container.id,
        labels: container.labels,
        image: container.image,
        runtime: Some(api::container::Runtime { name, options }),
        spec: container.spec,
        snapshotter: container.snapshotter,
        snapshot_key: container.snapshot_key,
        created_at: timestamp(container.created),
        updated_at: timestamp(container.updated),
        extensions: container.extensions,
        sandbox: container.sandbox,
    }
}
