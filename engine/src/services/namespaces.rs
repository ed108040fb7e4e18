//! The tenants.

use proto::containerd::{
    events::{NamespaceCreate, NamespaceDelete, NamespaceUpdate},
    services::namespaces::v1::{
        self as api, CreateNamespaceRequest, CreateNamespaceResponse, DeleteNamespaceRequest,
        GetNamespaceRequest, GetNamespaceResponse, ListNamespacesRequest, ListNamespacesResponse,
        UpdateNamespaceRequest, UpdateNamespaceResponse, namespaces_server,
    },
};
use snapshotter::{Transactions, records::snapshotters_of};
use tonic::{Request, Response, Status};

use super::{blocking, paths, required, status};
use crate::{error::Error, events::Exchange, metadata::Store, namespace::Namespace};

/// The service.
#[derive(Clone)]
pub struct Namespaces {
    store: Store,
    events: Exchange,
}

impl Namespaces {
    /// Serves the namespaces in `store`.
    pub fn new(store: Store, events: Exchange) -> Self {
        Self { store, events }
    }
}

#[tonic::async_trait]
impl namespaces_server::Namespaces for Namespaces {
    async fn get(
        &self,
        request: Request<GetNamespaceRequest>,
    ) -> Result<Response<GetNamespaceResponse>, Status> {
        let store = self.store.clone();
        let name = request.into_inner().name;
        blocking(move || {
            let labels = store.namespace_labels(&name)?;
            let namespace = Some(api::Namespace { name, labels });
            Ok(Response::new(GetNamespaceResponse { namespace }))
        })
        .await
    }

    async fn list(
        &self,
        _request: Request<ListNamespacesRequest>,
    ) -> Result<Response<ListNamespacesResponse>, Status> {
        let store = self.store.clone();
        let found = blocking(move || store.namespaces()).await?;
        let namespaces = found
            .into_iter()
            .map(|found| api::Namespace { name: found.name.to_string(), labels: found.labels })
            .collect();
        Ok(Response::new(ListNamespacesResponse { namespaces }))
    }

    async fn create(
        &self,
        request: Request<CreateNamespaceRequest>,
    ) -> Result<Response<CreateNamespaceResponse>, Status> {
        let wire = required("namespace", request.into_inner().namespace)?;
        let namespace = parse(&wire.name)?;
        let (store, labels) = (self.store.clone(), wire.labels.clone());
        let name = namespace.clone();
        blocking(move || store.create_namespace(&name, labels)).await?;
        let event = NamespaceCreate { name: wire.name.clone(), labels: wire.labels.clone() };
        self.events.publish(&namespace, "/namespaces/create", proto::any::pack(&event));
        Ok(Response::new(CreateNamespaceResponse { namespace: Some(wire) }))
    }

    async fn update(
        &self,
        request: Request<UpdateNamespaceRequest>,
    ) -> Result<Response<UpdateNamespaceResponse>, Status> {
        let UpdateNamespaceRequest { namespace, update_mask } = request.into_inner();
        let wire = required("namespace", namespace)?;
        let namespace = parse(&wire.name)?;
        let (store, name, mask) = (self.store.clone(), namespace.clone(), paths(update_mask));
        let labels = blocking(move || store.update_namespace(&name, &wire.labels, &mask)).await?;
        let event = NamespaceUpdate { name: wire.name.clone(), labels: labels.clone() };
        self.events.publish(&namespace, "/namespaces/update", proto::any::pack(&event));
        let namespace = Some(api::Namespace { name: wire.name, labels });
        Ok(Response::new(UpdateNamespaceResponse { namespace }))
    }

    async fn delete(
        &self,
        request: Request<DeleteNamespaceRequest>,
    ) -> Result<Response<()>, Status> {
        let name = request.into_inner().name;
        let namespace = name.parse::<Namespace>();
        let namespace =
            namespace.map_err(|_| status(Error::NotFound(format!("namespace {name:?}"))))?;
        let store = self.store.clone();
        blocking(move || {
            let _keep = store.collecting();
            // Also of those that are not loaded now: they may be again.
            let holders = snapshotters_of(&Transactions::read(&store)?, &name)?;
            store.delete_namespace(&name, &holders)
        })
        .await?;
        let event = NamespaceDelete { name: namespace.to_string() };
        self.events.publish(&namespace, "/namespaces/delete", proto::any::pack(&event));
        Ok(Response::new(()))
    }
}

fn parse(name: &str) -> Result<Namespace, Status> {
    name.parse().map_err(|error: crate::identifier::ParseIdentifierError| status(error.into()))
}
