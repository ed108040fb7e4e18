//! Sandboxes: their records (`Store`), and what runs them (`Controller`).
//!
//! The two know nothing of each other, as in containerd: a client makes a record, has a controller
//! make the sandbox, and keeps them in step. There is one controller, `shim`.
//!
//! Source: containerd, `plugins/services/sandbox`.

use std::sync::Arc;

use proto::containerd::{
    events::{SandboxCreate, SandboxExit, SandboxStart},
    runtime::sandbox::v1 as shim,
    services::sandbox::v1::{
        ControllerCreateRequest, ControllerCreateResponse, ControllerMetricsRequest,
        ControllerMetricsResponse, ControllerPlatformRequest, ControllerPlatformResponse,
        ControllerShutdownRequest, ControllerShutdownResponse, ControllerStartRequest,
        ControllerStartResponse, ControllerStatusRequest, ControllerStatusResponse,
        ControllerStopRequest, ControllerStopResponse, ControllerUpdateRequest,
        ControllerUpdateResponse, ControllerWaitRequest, ControllerWaitResponse,
        StoreCreateRequest, StoreCreateResponse, StoreDeleteRequest, StoreDeleteResponse,
        StoreGetRequest, StoreGetResponse, StoreListRequest, StoreListResponse, StoreUpdateRequest,
        StoreUpdateResponse, controller_server, store_server,
    },
    types,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{after_removal, blocking, required, scope, status, status::task_status, timestamp};
use crate::{
    error::Error as ApiError,
    events::Exchange,
    filter::Filter,
    gc::Scheduler,
    metadata::{Runtime as RuntimeRecord, Sandbox as Record, Store},
    namespace::Namespace,
    runtime::{CreateSandbox, Error, Runtime, Sandbox},
};

/// The controller's name, which clients use when they name none.
const SANDBOXER: &str = "shim";

/// The records.
#[derive(Clone)]
pub struct SandboxStore {
    store: Store,
    gc: Scheduler,
}

impl SandboxStore {
    /// Serves the sandboxes in `store`.
    pub fn new(store: Store, gc: Scheduler) -> Self {
        Self { store, gc }
    }
}

#[tonic::async_trait]
impl store_server::Store for SandboxStore {
    async fn create(
        &self,
        request: Request<StoreCreateRequest>,
    ) -> Result<Response<StoreCreateResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let record = from_wire(required("sandbox", request.into_inner().sandbox)?);
        let store = self.store.clone();
        let record = blocking(move || store.create_sandbox(&namespace, record)).await?;
        Ok(Response::new(StoreCreateResponse { sandbox: Some(to_wire(record)) }))
    }

    async fn update(
        &self,
        request: Request<StoreUpdateRequest>,
    ) -> Result<Response<StoreUpdateResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let StoreUpdateRequest { sandbox, fields } = request.into_inner();
        let record = from_wire(required("sandbox", sandbox)?);
        let store = self.store.clone();
        let record = blocking(move || store.update_sandbox(&namespace, &record, &fields)).await?;
        // A label that kept something may be gone.
        self.gc.note_removal();
        Ok(Response::new(StoreUpdateResponse { sandbox: Some(to_wire(record)) }))
    }

    async fn delete(
        &self,
        request: Request<StoreDeleteRequest>,
    ) -> Result<Response<StoreDeleteResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let id = request.into_inner().sandbox_id;
        let store = self.store.clone();
        blocking(move || store.delete_sandbox(&namespace, &id)).await?;
        after_removal(&self.gc, false).await?;
        Ok(Response::new(StoreDeleteResponse {}))
    }

    async fn list(
        &self,
        request: Request<StoreListRequest>,
    ) -> Result<Response<StoreListResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let filters = request.into_inner().filters;
        let store = self.store.clone();
        let found =
            blocking(move || store.sandboxes(&namespace, &Filter::parse_all(&filters)?)).await?;
        Ok(Response::new(StoreListResponse { list: found.into_iter().map(to_wire).collect() }))
    }

    async fn get(
        &self,
        request: Request<StoreGetRequest>,
    ) -> Result<Response<StoreGetResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let id = request.into_inner().sandbox_id;
        let store = self.store.clone();
        let record = blocking(move || store.sandbox(&namespace, &id)).await?;
        Ok(Response::new(StoreGetResponse { sandbox: Some(to_wire(record)) }))
    }
}

/// The controllers, of which there is one.
#[derive(Clone)]
pub struct SandboxController {
    store: Store,
    runtime: Arc<Runtime>,
    events: Exchange,
    stop: CancellationToken,
}

impl SandboxController {
    /// Serves the sandboxes that `runtime` runs. Waits end with `stop`.
    pub fn new(
        store: &Store,
        runtime: &Arc<Runtime>,
        events: &Exchange,
        stop: &CancellationToken,
    ) -> Self {
        let (store, runtime) = (store.clone(), Arc::clone(runtime));
        Self { store, runtime, events: events.clone(), stop: stop.clone() }
    }

    /// The sandbox that a request is about.
    fn sandbox(
        &self,
        namespace: &Namespace,
        sandboxer: &str,
        id: &str,
    ) -> Result<Option<Arc<Sandbox>>, Status> {
        check_sandboxer(sandboxer)?;
        Ok(self.runtime.sandbox(namespace, id))
    }

    fn must_find(
        &self,
        namespace: &Namespace,
        sandboxer: &str,
        id: &str,
    ) -> Result<Arc<Sandbox>, Status> {
        self.sandbox(namespace, sandboxer, id)?.ok_or_else(|| no_sandbox(id))
    }

    /// What a sandbox is made from: what the client says, or else what its record says.
    async fn record(
        &self,
        namespace: &Namespace,
        request: &mut ControllerCreateRequest,
    ) -> Result<Record, Status> {
        if let Some(sandbox) = request.sandbox.take() {
            let mut record = from_wire(sandbox);
            if record.id.is_empty() {
                record.id.clone_from(&request.sandbox_id);
            }
            return Ok(record);
        }
        let (store, namespace) = (self.store.clone(), namespace.clone());
        let id = request.sandbox_id.clone();
        blocking(move || store.sandbox(&namespace, &id)).await
    }
}

#[tonic::async_trait]
impl controller_server::Controller for SandboxController {
    async fn create(
        &self,
        request: Request<ControllerCreateRequest>,
    ) -> Result<Response<ControllerCreateResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let mut request = request.into_inner();
        check_sandboxer(&request.sandboxer)?;
        let record = self.record(&namespace, &mut request).await?;
        let create = CreateSandbox {
            id: record.id.clone(),
            spec: record.spec,
            runtime: record.runtime.name,
            options: record.runtime.options,
            rootfs: request.rootfs,
            sandbox_options: request.options,
            netns_path: request.netns_path,
            annotations: request.annotations,
        };
        let created = self.runtime.create_sandbox(&namespace, create).await;
        created.map_err(|error| task_status(&error))?;
        let event = SandboxCreate { sandbox_id: record.id.clone() };
        self.events.publish(&namespace, "/sandboxes/create", proto::any::pack(&event));
        Ok(Response::new(ControllerCreateResponse { sandbox_id: record.id }))
    }

    async fn start(
        &self,
        request: Request<ControllerStartRequest>,
    ) -> Result<Response<ControllerStartResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let ControllerStartRequest { sandbox_id, sandboxer } = request.into_inner();
        let sandbox = self.must_find(&namespace, &sandboxer, &sandbox_id)?;
        let started = sandbox.start().await.map_err(|error| task_status(&error))?;
        let (address, version) = sandbox.endpoint().unwrap_or_default();
        let event = SandboxStart { sandbox_id: sandbox_id.clone() };
        self.events.publish(&namespace, "/sandboxes/start", proto::any::pack(&event));
        Ok(Response::new(ControllerStartResponse {
            sandbox_id,
            pid: started.pid,
            created_at: started.created_at,
            labels: Default::default(),
            address,
            version,
            spec: started.spec,
        }))
    }

    async fn platform(
        &self,
        request: Request<ControllerPlatformRequest>,
    ) -> Result<Response<ControllerPlatformResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let ControllerPlatformRequest { sandbox_id, sandboxer } = request.into_inner();
        let sandbox = self.must_find(&namespace, &sandboxer, &sandbox_id)?;
        let answer = sandbox.call(&shim::PlatformRequest { sandbox_id }).await;
        let platform = answer.map_err(|error| task_status(&error))?.platform;
        Ok(Response::new(ControllerPlatformResponse { platform }))
    }

    async fn stop(
        &self,
        request: Request<ControllerStopRequest>,
    ) -> Result<Response<ControllerStopResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let ControllerStopRequest { sandbox_id, timeout_secs, sandboxer } = request.into_inner();
        // What is not there has stopped.
        if let Some(sandbox) = self.sandbox(&namespace, &sandboxer, &sandbox_id)? {
            let stopped = sandbox.stop(timeout_secs).await;
            stopped.map_err(|error| task_status(&error))?;
        }
        Ok(Response::new(ControllerStopResponse {}))
    }

    async fn wait(
        &self,
        request: Request<ControllerWaitRequest>,
    ) -> Result<Response<ControllerWaitResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let ControllerWaitRequest { sandbox_id, sandboxer } = request.into_inner();
        let sandbox = self.must_find(&namespace, &sandboxer, &sandbox_id)?;
        let answer = tokio::select! {
            answer = sandbox.wait() => answer.map_err(|error| task_status(&error))?,
            () = self.stop.cancelled() => return Err(task_status(&Error::Stopping)),
        };
        let shim::WaitSandboxResponse { exit_status, exited_at } = answer;
        let event = SandboxExit { sandbox_id, exit_status, exited_at };
        self.events.publish(&namespace, "/sandboxes/exit", proto::any::pack(&event));
        Ok(Response::new(ControllerWaitResponse { exit_status, exited_at }))
    }

    async fn status(
        &self,
        request: Request<ControllerStatusRequest>,
    ) -> Result<Response<ControllerStatusResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let ControllerStatusRequest { sandbox_id, verbose, sandboxer } = request.into_inner();
        let Some(sandbox) = self.sandbox(&namespace, &sandboxer, &sandbox_id)? else {
            // As containerd: a sandbox that nobody runs has ended, at the latest now.
            let exited_at = timestamp(std::time::SystemTime::now());
            let gone = ControllerStatusResponse { sandbox_id, exited_at, ..Default::default() };
            return Ok(Response::new(gone));
        };
        let answer = sandbox.call(&shim::SandboxStatusRequest { sandbox_id, verbose }).await;
        let answer = answer.map_err(|error| task_status(&error))?;
        let (address, version) = sandbox.endpoint().unwrap_or_default();
        Ok(Response::new(ControllerStatusResponse {
            sandbox_id: answer.sandbox_id,
            pid: answer.pid,
            state: answer.state,
            info: answer.info,
            created_at: answer.created_at,
            exited_at: answer.exited_at,
            extra: answer.extra,
            address,
            version,
        }))
    }

    async fn shutdown(
        &self,
        request: Request<ControllerShutdownRequest>,
    ) -> Result<Response<ControllerShutdownResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let ControllerShutdownRequest { sandbox_id, sandboxer } = request.into_inner();
        let sandbox = self.must_find(&namespace, &sandboxer, &sandbox_id)?;
        sandbox.shutdown().await.map_err(|error| task_status(&error))?;
        Ok(Response::new(ControllerShutdownResponse {}))
    }

    async fn metrics(
        &self,
        request: Request<ControllerMetricsRequest>,
    ) -> Result<Response<ControllerMetricsResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let ControllerMetricsRequest { sandbox_id, sandboxer } = request.into_inner();
        let sandbox = self.must_find(&namespace, &sandboxer, &sandbox_id)?;
        let answer = sandbox.call(&shim::SandboxMetricsRequest { sandbox_id }).await;
        let metrics = answer.map_err(|error| task_status(&error))?.metrics;
        Ok(Response::new(ControllerMetricsResponse { metrics }))
    }

    /// Changes nothing: shims have no such call. The record is the store's.
    async fn update(
        &self,
        request: Request<ControllerUpdateRequest>,
    ) -> Result<Response<ControllerUpdateResponse>, Status> {
        scope(&request)?;
        let request = request.into_inner();
        check_sandboxer(&request.sandboxer)?;
        required("sandbox", request.sandbox)?;
        Ok(Response::new(ControllerUpdateResponse {}))
    }
}

fn check_sandboxer(name: &str) -> Result<(), Status> {
    match name {
        "" => Err(status(ApiError::InvalidArgument(
            "sandbox controller name can not be empty".to_owned(),
        ))),
        SANDBOXER => Ok(()),
        other => Err(status(ApiError::NotFound(format!("sandbox controller {other:?}")))),
    }
}

fn no_sandbox(id: &str) -> Status {
    status(ApiError::NotFound(format!("sandbox {id:?}")))
}

fn from_wire(sandbox: types::Sandbox) -> Record {
    let runtime = sandbox.runtime.unwrap_or_default();
    Record {
        id: sandbox.sandbox_id,
        labels: sandbox.labels,
        runtime: RuntimeRecord { name: runtime.name, options: runtime.options },
        spec: sandbox.spec,
        sandboxer: sandbox.sandboxer,
        // The store's own.
        created: std::time::SystemTime::UNIX_EPOCH,
        updated: std::time::SystemTime::UNIX_EPOCH,
        extensions: sandbox.extensions,
    }
}

fn to_wire(record: Record) -> types::Sandbox {
    types::Sandbox {
        sandbox_id: record.id,
        runtime: Some(types::sandbox::Runtime {
            name: record.runtime.name,
            options: record.runtime.options,
        }),
        spec: record.spec,
        labels: record.labels,
        created_at: timestamp(record.created),
        updated_at: timestamp(record.updated),
        extensions: record.extensions,
        sandboxer: record.sandboxer,
    }
}
