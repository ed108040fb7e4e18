//! containerd's snapshots service over a [`Snapshotter`].

use std::{ops::ControlFlow, sync::Arc};

use futures::{StreamExt, stream::BoxStream};
use proto::containerd::{
    services::snapshots::v1::{
        self as api, CleanupRequest, CommitSnapshotRequest, ListSnapshotsRequest,
        ListSnapshotsResponse, MountsRequest, MountsResponse, PrepareSnapshotRequest,
        PrepareSnapshotResponse, RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse,
        UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest, UsageResponse,
        ViewSnapshotRequest, ViewSnapshotResponse, snapshots_server,
    },
    types,
};
use snapshotter::{Error, Info, Key, Kind, Labels, Mount, Snapshotter};
use tonic::{Code, Request, Response, Status};

/// The namespace of all keys: callers have theirs in the names.
const NAMESPACE: &str = "plugin";

/// How many snapshots one message lists.
const LIST_LEN: usize = 100;

/// The service.
pub(crate) struct Service {
    snapshotter: Arc<dyn Snapshotter>,
}

impl Service {
    /// Serves `snapshotter` under whatever name it is called.
    pub(crate) fn new(snapshotter: Arc<dyn Snapshotter>) -> Self {
        Self { snapshotter }
    }

    /// Runs blocking code on a thread of its own.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Snapshotter) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let snapshotter = Arc::clone(&self.snapshotter);
        let result = tokio::task::spawn_blocking(move || work(&*snapshotter)).await;
        result.map_err(|error| Status::internal(format!("blocking work: {error}")))?
    }
}

#[tonic::async_trait]
impl snapshots_server::Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let PrepareSnapshotRequest { key: name, parent, labels, .. } = request.into_inner();
        let mounts = self.call(move |snapshotter| {
            let parent = optional(&parent)?;
            snapshotter.prepare(&key(&name)?, parent.as_ref(), labels).map_err(status)
        });
        Ok(Response::new(PrepareSnapshotResponse { mounts: to_wire(mounts.await?) }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let ViewSnapshotRequest { key: name, parent, labels, .. } = request.into_inner();
        let mounts = self.call(move |snapshotter| {
            let parent = optional(&parent)?;
            snapshotter.view(&key(&name)?, parent.as_ref(), labels).map_err(status)
        });
        Ok(Response::new(ViewSnapshotResponse { mounts: to_wire(mounts.await?) }))
    }

    async fn mounts(
        &self,
        request: Request<MountsRequest>,
    ) -> Result<Response<MountsResponse>, Status> {
        let name = request.into_inner().key;
        let mounts =
            self.call(move |snapshotter| snapshotter.mounts(&key(&name)?).map_err(status)).await?;
        Ok(Response::new(MountsResponse { mounts: to_wire(mounts) }))
    }

    async fn commit(
        &self,
        request: Request<CommitSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.call(move |snapshotter| commit(snapshotter, request)).await?;
        Ok(Response::new(()))
    }

    async fn remove(
        &self,
        request: Request<RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let name = request.into_inner().key;
        self.call(move |snapshotter| snapshotter.remove(&key(&name)?).map_err(status)).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let name = request.into_inner().key;
        let info =
            self.call(move |snapshotter| snapshotter.stat(&key(&name)?).map_err(status)).await?;
        Ok(Response::new(StatSnapshotResponse { info: Some(info_to_wire(info)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let info = self.call(move |snapshotter| update(snapshotter, request)).await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(info_to_wire(info)) }))
    }

    type ListStream = BoxStream<'static, Result<ListSnapshotsResponse, Status>>;

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        if !request.into_inner().filters.is_empty() {
            // Engines filter what they know more of than this program; better than a list that is
            // too long.
            return Err(Status::unimplemented("filters are the engine's: not implemented"));
        }
        let found = self.call(|snapshotter| {
            let mut found = Vec::new();
            let visit = &mut |info| {
                found.push(info_to_wire(info));
                ControlFlow::Continue(())
            };
            snapshotter.walk(Some(NAMESPACE), visit).map_err(status)?;
            Ok(found)
        });
        let messages = futures::stream::iter(found.await?).chunks(LIST_LEN);
        Ok(Response::new(messages.map(|info| Ok(ListSnapshotsResponse { info })).boxed()))
    }

    async fn usage(
        &self,
        request: Request<UsageRequest>,
    ) -> Result<Response<UsageResponse>, Status> {
        let name = request.into_inner().key;
        let usage =
            self.call(move |snapshotter| snapshotter.usage(&key(&name)?).map_err(status)).await?;
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        let (size, inodes) = (number(usage.bytes), number(usage.inodes));
        Ok(Response::new(UsageResponse { size, inodes }))
    }

    async fn cleanup(&self, _request: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        self.call(|snapshotter| snapshotter.cleanup().map_err(status)).await?;
        Ok(Response::new(()))
    }
}

fn commit(snapshotter: &dyn Snapshotter, request: CommitSnapshotRequest) -> Result<(), Status> {
    let CommitSnapshotRequest { name, key: active, labels, parent, .. } = request;
    let (name, active) = (key(&name)?, key(&active)?);
    match optional(&parent)? {
        Some(parent) => snapshotter.rebase(&name, &active, &parent, labels),
        None => snapshotter.commit(&name, &active, labels),
    }
    .map_err(status)?;
    snapshotter.sync().map_err(status)
}

fn update(snapshotter: &dyn Snapshotter, request: UpdateSnapshotRequest) -> Result<Info, Status> {
    let new = request.info.ok_or_else(|| Status::invalid_argument("info is required"))?;
    let mask = request.update_mask.unwrap_or_default().paths;
    let mut all = mask.is_empty();
    let mut names = Vec::new();
    for path in mask {
        match path.strip_prefix("labels.") {
            Some(name) => names.push(name.to_owned()),
            None if path == "labels" => all = true,
            None => {
                let text = format!("cannot update {path:?} field on snapshot {:?}", new.name);
                return Err(Status::invalid_argument(text));
            }
        }
    }
    let edit = &mut |labels: &mut Labels| {
        if all {
            labels.clone_from(&new.labels);
        }
        for name in &names {
            match new.labels.get(name).filter(|value| !value.is_empty()) {
                Some(value) => labels.insert(name.clone(), value.clone()),
                None => labels.remove(name),
            };
        }
    };
    snapshotter.update(&key(&new.name)?, edit).map_err(status)
}

fn key(name: &str) -> Result<Key, Status> {
    Key::new(NAMESPACE, name).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn optional(name: &str) -> Result<Option<Key>, Status> {
    if name.is_empty() { Ok(None) } else { key(name).map(Some) }
}

/// The status that tells the engine why a call failed, in containerd's words.
fn status(error: Error) -> Status {
    let (code, cause) = match &error {
        Error::NotFound { .. } => (Code::NotFound, ": not found"),
        Error::AlreadyExists { .. } => (Code::AlreadyExists, ": already exists"),
        Error::WrongKind { .. }
        | Error::NotMountable { .. }
        | Error::HasChildren { .. }
        | Error::OtherParent { .. }
        | Error::Suspect { .. }
        | Error::Volatile { .. } => (Code::FailedPrecondition, ": failed precondition"),
        Error::OtherNamespace { .. } | Error::Label { .. } => {
            (Code::InvalidArgument, ": invalid argument")
        }
        Error::Unsupported { .. } => (Code::Unimplemented, ": not implemented"),
        Error::Fill { .. } | Error::External { .. } | Error::File { .. } | Error::Database(_) => {
            (Code::Unknown, "")
        }
    };
    Status::new(code, format!("{}{cause}", sys::error::Chain(&error)))
}

fn to_wire(mounts: Vec<Mount>) -> Vec<types::Mount> {
    let to_wire = |mount: Mount| types::Mount {
        r#type: mount.kind,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    };
    mounts.into_iter().map(to_wire).collect()
}

fn info_to_wire(info: Info) -> api::Info {
    let kind = match info.kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    api::Info {
        name: info.key.name().to_owned(),
        parent: info.parent.as_ref().map_or("", Key::name).to_owned(),
        kind: kind.into(),
        created_at: Some(info.created.into()),
        updated_at: Some(info.updated.into()),
        labels: info.labels,
    }
}
