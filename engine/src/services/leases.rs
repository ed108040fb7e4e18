//! What keeps resources from garbage collection.

use proto::containerd::services::leases::v1::{
    self as api, AddResourceRequest, CreateRequest, CreateResponse, DeleteRequest,
    DeleteResourceRequest, ListRequest, ListResourcesRequest, ListResourcesResponse, ListResponse,
    leases_server,
};
use tonic::{Request, Response, Status};

use super::{after_removal, blocking, required, scope, timestamp};
use crate::{
    error::Error,
    filter::Filter,
    gc::Scheduler,
    metadata::{Lease, Resource, Store},
};

/// The service.
#[derive(Clone)]
pub struct Leases {
    store: Store,
    gc: Scheduler,
}

impl Leases {
    /// Serves the leases in `store`.
    pub fn new(store: Store, gc: Scheduler) -> Self {
        Self { store, gc }
    }
}

#[tonic::async_trait]
impl leases_server::Leases for Leases {
    async fn create(
        &self,
        request: Request<CreateRequest>,
    ) -> Result<Response<CreateResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let CreateRequest { id, labels } = request.into_inner();
        let store = self.store.clone();
        let lease = blocking(move || {
            let id = if id.is_empty() { random_id()? } else { id };
            store.create_lease(&namespace, &id, labels)
        });
        Ok(Response::new(CreateResponse { lease: Some(to_wire(lease.await?)) }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<()>, Status> {
        let namespace = scope(&request)?.namespace;
        let DeleteRequest { id, sync } = request.into_inner();
        let store = self.store.clone();
        blocking(move || store.delete_lease(&namespace, &id)).await?;
        after_removal(&self.gc, sync).await?;
        Ok(Response::new(()))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let filters = request.into_inner().filters;
        let store = self.store.clone();
        let found =
            blocking(move || store.leases(&namespace, &Filter::parse_all(&filters)?)).await?;
        Ok(Response::new(ListResponse { leases: found.into_iter().map(to_wire).collect() }))
    }

    async fn add_resource(
        &self,
        request: Request<AddResourceRequest>,
    ) -> Result<Response<()>, Status> {
        let namespace = scope(&request)?.namespace;
        let AddResourceRequest { id, resource } = request.into_inner();
        let resource = required("resource", resource)?;
        let store = self.store.clone();
        blocking(move || {
            let resource = Resource::parse(&resource.r#type, &resource.id)?;
            store.add_lease_resource(&namespace, &id, &resource)
        })
        .await?;
        Ok(Response::new(()))
    }

    async fn delete_resource(
        &self,
        request: Request<DeleteResourceRequest>,
    ) -> Result<Response<()>, Status> {
        let namespace = scope(&request)?.namespace;
        let DeleteResourceRequest { id, resource } = request.into_inner();
        let resource = required("resource", resource)?;
        let store = self.store.clone();
        blocking(move || {
            let resource = Resource::parse(&resource.r#type, &resource.id)?;
            store.delete_lease_resource(&namespace, &id, &resource)
        })
        .await?;
        after_removal(&self.gc, false).await?;
        Ok(Response::new(()))
    }

    async fn list_resources(
        &self,
        request: Request<ListResourcesRequest>,
    ) -> Result<Response<ListResourcesResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let id = request.into_inner().id;
        let store = self.store.clone();
        let found = blocking(move || store.lease_resources(&namespace, &id)).await?;
        let to_wire = |resource: Resource| api::Resource {
            id: resource.id,
            r#type: resource.kind.to_string(),
        };
        let resources = found.into_iter().map(to_wire).collect();
        Ok(Response::new(ListResourcesResponse { resources }))
    }
}

/// A name for a lease that the client gave none.
fn random_id() -> Result<String, Error> {
    let path = "/proc/sys/kernel/random/uuid";
    let id = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
    Ok(id.trim_end().to_owned())
}

fn to_wire(lease: Lease) -> api::Lease {
    api::Lease { id: lease.id, created_at: timestamp(lease.created), labels: lease.labels }
}
