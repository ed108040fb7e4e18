//! Filesystem changesets, by the name of their snapshotter.
//!
//! What a snapshot is called in its namespace is what the snapshotter calls it: there are no
//! records beside its own that could disagree. What is added here is leases, filters, and events.

use std::{borrow::Cow, ops::ControlFlow, sync::Arc};

use futures::{StreamExt, stream::BoxStream};
use proto::containerd::{
    events::{SnapshotCommit, SnapshotPrepare, SnapshotRemove},
    services::snapshots::v1::{
        self as api, CleanupRequest, CommitSnapshotRequest, ListSnapshotsRequest,
        ListSnapshotsResponse, MountsRequest, MountsResponse, PrepareSnapshotRequest,
        PrepareSnapshotResponse, RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse,
        UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest, UsageResponse,
        ViewSnapshotRequest, ViewSnapshotResponse, snapshots_server,
    },
};
use snapshotter::{Info, Key, Kind, Mount, Snapshotter};
use tonic::{Request, Response, Status};

use super::{
    after_removal, blocking, paths, required, scope, status, timestamp,
    wire::{mounts_to_wire, size_to_wire},
};
use crate::{
    error::Error,
    events::Exchange,
    field_mask::{Path, replace, set_entry},
    filter::{self, Fields, Filter},
    gc::{Scheduler, Snapshotters},
    labels::{self, Labels},
    metadata::{Resource, Store},
    namespace::Scope,
};

/// The label that names the committed snapshot which a prepared one is to become: clients of a
/// snapshotter that has it already need not unpack it.
const TARGET_LABEL: &str = "containerd.io/snapshot.ref";

/// How many snapshots one message lists.
const LIST_LEN: usize = 100;

/// The service.
#[derive(Clone)]
pub struct Snapshots {
    snapshotters: Arc<Snapshotters>,
    store: Store,
    events: Exchange,
    gc: Scheduler,
}

/// What `prepare` and `view` are asked for.
struct Creation {
    snapshotter: String,
    key: String,
    parent: String,
    labels: Labels,
}

impl Snapshots {
    /// Serves `snapshotters`.
    pub fn new(
        snapshotters: Arc<Snapshotters>,
        store: Store,
        events: Exchange,
        gc: Scheduler,
    ) -> Self {
        Self { snapshotters, store, events, gc }
    }

    fn find(&self, name: &str) -> Result<Arc<dyn Snapshotter>, Status> {
        if name.is_empty() {
            let message = "snapshotter argument missing".to_owned();
            return Err(status(Error::InvalidArgument(message)));
        }
        let found = self.snapshotters.get(name).map(Arc::clone);
        found.ok_or_else(|| {
            status(Error::InvalidArgument(format!("snapshotter not loaded: {name}")))
        })
    }

    async fn create(
        &self,
        scope: Scope,
        creation: Creation,
        kind: Kind,
    ) -> Result<Vec<Mount>, Status> {
        let snapshotter = self.find(&creation.snapshotter)?;
        let store = self.store.clone();
        blocking(move || create(&*snapshotter, &store, &scope, creation, kind)).await
    }
}

/// Makes a snapshot, and adds it to the lease before there is anything to collect.
fn create(
    snapshotter: &dyn Snapshotter,
    store: &Store,
    scope: &Scope,
    creation: Creation,
    kind: Kind,
) -> Result<Vec<Mount>, Error> {
    let Creation { snapshotter: name, key: key_name, parent, mut labels } = creation;
    check_labels(&labels)?;
    labels.retain(|_, value| !value.is_empty());
    let key = to_key(scope, &key_name)?;
    let parent = if parent.is_empty() { None } else { Some(to_key(scope, &parent)?) };
    if let Some(target) = labels.get(TARGET_LABEL) {
        // Before it is looked for: what is seen stays then, and the call may be what makes it.
        store.lease(scope, &Resource::snapshot(&name, target))?;
        if snapshotter.stat(&to_key(scope, target)?).is_ok() {
            return Err(Error::AlreadyExists(format!("target snapshot {target:?}")));
        }
    }
    store.lease(scope, &Resource::snapshot(&name, &key_name))?;
    let mounts = match kind {
        Kind::View => snapshotter.view(&key, parent.as_ref(), labels),
        Kind::Active | Kind::Committed => snapshotter.prepare(&key, parent.as_ref(), labels),
    };
    mounts.map_err(|error| match (error, &parent) {
        (snapshotter::Error::AlreadyExists { key: found }, _) => {
            Error::AlreadyExists(format!("snapshot {:?}", found.name()))
        }
        (snapshotter::Error::NotFound { key }, Some(parent)) if key == *parent => {
            Error::NotFound(format!("parent snapshot {} does not exist", parent.name()))
        }
        (snapshotter::Error::WrongKind { key, .. }, Some(parent)) if key == *parent => {
            Error::InvalidArgument(format!("parent {parent} is not committed snapshot"))
        }
        (error, _) => error.into(),
    })
}

#[tonic::async_trait]
impl snapshots_server::Snapshots for Snapshots {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let scope = scope(&request)?;
        let namespace = scope.namespace.clone();
        let PrepareSnapshotRequest { snapshotter, key, parent, labels } = request.into_inner();
        let event = SnapshotPrepare {
            key: key.clone(),
            parent: parent.clone(),
            snapshotter: snapshotter.clone(),
        };
        let creation = Creation { snapshotter, key, parent, labels };
        let mounts = self.create(scope, creation, Kind::Active).await?;
        self.events.publish(&namespace, "/snapshot/prepare", proto::any::pack(&event));
        Ok(Response::new(PrepareSnapshotResponse { mounts: mounts_to_wire(mounts) }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let scope = scope(&request)?;
        let ViewSnapshotRequest { snapshotter, key, parent, labels } = request.into_inner();
        let creation = Creation { snapshotter, key, parent, labels };
        let mounts = self.create(scope, creation, Kind::View).await?;
        Ok(Response::new(ViewSnapshotResponse { mounts: mounts_to_wire(mounts) }))
    }

    async fn mounts(
        &self,
        request: Request<MountsRequest>,
    ) -> Result<Response<MountsResponse>, Status> {
        let scope = scope(&request)?;
        let MountsRequest { snapshotter, key } = request.into_inner();
        let snapshotter = self.find(&snapshotter)?;
        let mounts = blocking(move || Ok(snapshotter.mounts(&to_key(&scope, &key)?)?)).await?;
        Ok(Response::new(MountsResponse { mounts: mounts_to_wire(mounts) }))
    }

    async fn commit(
        &self,
        request: Request<CommitSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let scope = scope(&request)?;
        let namespace = scope.namespace.clone();
        let request = request.into_inner();
        let snapshotter = self.find(&request.snapshotter)?;
        let event = SnapshotCommit {
            key: request.key.clone(),
            name: request.name.clone(),
            snapshotter: request.snapshotter.clone(),
        };
        let store = self.store.clone();
        blocking(move || commit(&*snapshotter, &store, &scope, request)).await?;
        self.events.publish(&namespace, "/snapshot/commit", proto::any::pack(&event));
        Ok(Response::new(()))
    }

    async fn remove(
        &self,
        request: Request<RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let scope = scope(&request)?;
        let namespace = scope.namespace.clone();
        let RemoveSnapshotRequest { snapshotter: name, key } = request.into_inner();
        let snapshotter = self.find(&name)?;
        let event = SnapshotRemove { key: key.clone(), snapshotter: name.clone() };
        let store = self.store.clone();
        blocking(move || {
            snapshotter.remove(&to_key(&scope, &key)?)?;
            store.release(&scope, &Resource::snapshot(&name, &key))
        })
        .await?;
        self.events.publish(&namespace, "/snapshot/remove", proto::any::pack(&event));
        after_removal(&self.gc, false).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let scope = scope(&request)?;
        let StatSnapshotRequest { snapshotter, key } = request.into_inner();
        let snapshotter = self.find(&snapshotter)?;
        let info = blocking(move || Ok(snapshotter.stat(&to_key(&scope, &key)?)?)).await?;
        Ok(Response::new(StatSnapshotResponse { info: Some(to_wire(info)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let scope = scope(&request)?;
        let UpdateSnapshotRequest { snapshotter, info, update_mask } = request.into_inner();
        let snapshotter = self.find(&snapshotter)?;
        let (new, mask) = (required("info", info)?, paths(update_mask));
        let info = blocking(move || {
            let edit = edit(&new.name, new.labels, &mask)?;
            Ok(snapshotter.update(&to_key(&scope, &new.name)?, &mut { edit })?)
        });
        Ok(Response::new(UpdateSnapshotResponse { info: Some(to_wire(info.await?)) }))
    }

    type ListStream = BoxStream<'static, Result<ListSnapshotsResponse, Status>>;

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let namespace = scope(&request)?.namespace;
        let ListSnapshotsRequest { snapshotter, filters } = request.into_inner();
        let snapshotter = self.find(&snapshotter)?;
        let found = blocking(move || {
            let filter = Filter::parse_all(&filters)?;
            let mut found = Vec::new();
            snapshotter.walk(Some(namespace.as_str()), &mut |info| {
                if filter.matches(&Shown(&info)) {
                    found.push(info);
                }
                ControlFlow::Continue(())
            })?;
            Ok(found)
        });
        let messages = futures::stream::iter(found.await?).chunks(LIST_LEN).map(|infos| {
            Ok(ListSnapshotsResponse { info: infos.into_iter().map(to_wire).collect() })
        });
        Ok(Response::new(messages.boxed()))
    }

    async fn usage(
        &self,
        request: Request<UsageRequest>,
    ) -> Result<Response<UsageResponse>, Status> {
        let scope = scope(&request)?;
        let UsageRequest { snapshotter, key } = request.into_inner();
        let snapshotter = self.find(&snapshotter)?;
        let usage = blocking(move || Ok(snapshotter.usage(&to_key(&scope, &key)?)?)).await?;
        let (size, inodes) = (size_to_wire(usage.bytes), size_to_wire(usage.inodes));
        Ok(Response::new(UsageResponse { size, inodes }))
    }

    async fn cleanup(&self, request: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        scope(&request)?;
        let snapshotter = self.find(&request.into_inner().snapshotter)?;
        blocking(move || Ok(snapshotter.cleanup()?)).await?;
        Ok(Response::new(()))
    }
}

fn commit(
    snapshotter: &dyn Snapshotter,
    store: &Store,
    scope: &Scope,
    request: CommitSnapshotRequest,
) -> Result<(), Error> {
    let CommitSnapshotRequest { snapshotter: kind, name, key, mut labels, parent } = request;
    check_labels(&labels)?;
    labels.retain(|_, value| !value.is_empty());
    let (committed, active) = (to_key(scope, &name)?, to_key(scope, &key)?);
    store.lease(scope, &Resource::snapshot(&kind, &name))?;
    if snapshotter.stat(&committed).is_ok() {
        return Err(Error::AlreadyExists(format!("snapshot {name:?}")));
    }
    let result = if parent.is_empty() || snapshotter.stat(&active)?.parent.is_some() {
        snapshotter.commit(&committed, &active, labels)
    } else {
        snapshotter.rebase(&committed, &active, &to_key(scope, &parent)?, labels)
    };
    result.map_err(|error| match error {
        snapshotter::Error::AlreadyExists { .. } => {
            Error::AlreadyExists(format!("snapshot {name:?}"))
        }
        error => error.into(),
    })?;
    store.release(scope, &Resource::snapshot(&kind, &key))
}

/// What an update does to labels; everything that can be wrong with it is found before.
fn edit(name: &str, new: Labels, mask: &[String]) -> Result<impl FnMut(&mut Labels) + Send, Error> {
    check_labels(&new)?;
    let mut keys = Vec::new();
    let mut all = mask.is_empty();
    for path in mask {
        match Path::parse(path) {
            Path::Entry("labels", key) => keys.push(key.to_owned()),
            Path::Field("labels") => all = true,
            _ => {
                return Err(Error::InvalidArgument(format!(
                    "cannot update {path:?} field on snapshot {name:?}"
                )));
            }
        }
    }
    Ok(move |labels: &mut Labels| {
        if all {
            replace(labels, &new);
        }
        keys.iter().for_each(|key| set_entry(labels, key, &new));
    })
}

fn check_labels(labels: &Labels) -> Result<(), Error> {
    labels::check(labels).map_err(|error| Error::InvalidArgument(format!("info.Labels: {error}")))
}

fn to_key(scope: &Scope, name: &str) -> Result<Key, Error> {
    Key::new(scope.namespace.as_str(), name)
        .map_err(|error| Error::InvalidArgument(error.to_string()))
}

/// A snapshot as filters see it.
struct Shown<'a>(&'a Info);

impl Fields for Shown<'_> {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "kind" => Some(Cow::Owned(self.0.kind.to_string())),
            "name" => Some(Cow::Borrowed(self.0.key.name())),
            // One without a parent has the field all the same, empty.
            "parent" => Some(Cow::Borrowed(self.0.parent.as_ref().map_or("", Key::name))),
            "labels" => filter::entry(&self.0.labels, rest),
            _ => None,
        }
    }
}

fn to_wire(info: Info) -> api::Info {
    let kind = match info.kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    api::Info {
        name: info.key.name().to_owned(),
        parent: info.parent.as_ref().map_or("", Key::name).to_owned(),
        kind: kind.into(),
        created_at: timestamp(info.created),
        updated_at: timestamp(info.updated),
        labels: info.labels,
    }
}
