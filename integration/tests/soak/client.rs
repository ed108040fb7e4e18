//! A client that makes a container, runs something more in it and removes it again, over gRPC.
//!
//! Programs would take longer to start than the calls take that they make.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use prost_types::Any;
use proto::{
    any::RUNTIME_PROCESS,
    containerd::services::{
        containers::v1::{
            Container, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest,
            containers_client::ContainersClient,
        },
        snapshots::v1::{
            PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
            snapshots_client::SnapshotsClient,
        },
        tasks::v1::{
            CreateTaskRequest, DeleteProcessRequest, DeleteTaskRequest, ExecProcessRequest,
            KillRequest, StartRequest, WaitRequest, tasks_client::TasksClient,
        },
    },
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

type Service = InterceptedService<Channel, Scope>;

/// Says in each call which containerd namespace it is about.
#[derive(Clone)]
struct Scope(MetadataValue<Ascii>);

impl Interceptor for Scope {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("containerd-namespace", self.0.clone());
        Ok(request)
    }
}

/// A connection to an engine, and what containers are made after. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Client {
    containers: ContainersClient<Service>,
    snapshots: SnapshotsClient<Service>,
    tasks: TasksClient<Service>,
    model: Container,
    spec: Value,
    parent: String,
    output: PathBuf,
}

impl Client {
    /// Connects to the engine at `address`. Containers are made like `model`, which must exist; what
    /// they write goes into the file `output`.
    pub(crate) async fn connect(
        address: &Path,
        namespace: &str,
        model: &str,
        output: PathBuf,
    ) -> Result<Self> {
        let address = format!("unix://{}", address.display());
        let channel = Endpoint::from_shared(address)?.connect().await.context("connect")?;
        let service = InterceptedService::new(channel, Scope(namespace.parse()?));
        let mut containers = ContainersClient::new(service.clone());
        let mut snapshots = SnapshotsClient::new(service.clone());
        let answer = containers.get(GetContainerRequest { id: model.to_owned() }).await?;
        let model = answer.into_inner().container.context("no container in the answer")?;
        let spec = model.spec.as_ref().context("the container has no specification")?;
        let spec = serde_json::from_slice(&spec.value)?;
        let stat = StatSnapshotRequest {
            snapshotter: model.snapshotter.clone(),
            key: model.snapshot_key.clone(),
        };
        let stat = snapshots.stat(stat).await?.into_inner();
        let parent = stat.info.context("no snapshot in the answer")?.parent;
        let tasks = TasksClient::new(service);
        Ok(Self { containers, snapshots, tasks, model, spec, parent, output })
    }

    /// Makes the container `id`, starts it, runs one thing more in it, and removes all of it.
    pub(crate) async fn cycle(&self, id: &str) -> Result<()> {
        self.start(id).await.with_context(|| format!("start {id}"))?;
        self.exec(id, "e").await?;
        self.remove(id).await.with_context(|| format!("remove {id}"))
    }

    /// Makes the container `id` and starts it.
    pub(crate) async fn start(&self, id: &str) -> Result<()> {
        let mut client = self.clone();
        let prepare = PrepareSnapshotRequest {
            snapshotter: self.model.snapshotter.clone(),
            key: id.to_owned(),
            parent: self.parent.clone(),
            // Nothing refers to it before the container is made.
            labels: [("containerd.io/gc.root".to_owned(), "made".to_owned())].into(),
        };
        let mounts = client.snapshots.prepare(prepare).await?.into_inner().mounts;
        let mut container = self.model.clone();
        id.clone_into(&mut container.id);
        id.clone_into(&mut container.snapshot_key);
        let mut spec = self.spec.clone();
        let path = spec["linux"]["cgroupsPath"].as_str().unwrap_or_default();
        spec["linux"]["cgroupsPath"] = json!(path.replace(&self.model.id, id));
        if let Some(packed) = &mut container.spec {
            packed.value = serde_json::to_vec(&spec)?;
        }
        let create = CreateContainerRequest { container: Some(container) };
        client.containers.create(create).await?;
        let create = CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs: mounts,
            stdout: format!("file://{}", self.output.display()),
            ..Default::default()
        };
        client.tasks.create(create).await?;
        let start = StartRequest { container_id: id.to_owned(), ..Default::default() };
        client.tasks.start(start).await?;
        Ok(())
    }

    /// Runs `true` in the container `id`, as its process `exec_id`, to its end.
    pub(crate) async fn exec(&self, id: &str, exec_id: &str) -> Result<()> {
        let code = self.exec_inner(id, exec_id).await;
        let code = code.with_context(|| format!("exec {exec_id} in {id}"))?;
        ensure!(code == 0, "exec {exec_id} in {id} ended with {code}");
        Ok(())
    }

    async fn exec_inner(&self, id: &str, exec_id: &str) -> Result<u32> {
        let mut tasks = self.tasks.clone();
        let mut process = self.spec["process"].clone();
        process["args"] = json!(["true"]);
        let spec = Any { type_url: RUNTIME_PROCESS.to_owned(), value: process.to_string().into() };
        let (container_id, exec_id) = (id.to_owned(), exec_id.to_owned());
        let exec = ExecProcessRequest {
            container_id: container_id.clone(),
            stdout: format!("file://{}", self.output.display()),
            spec: Some(spec),
            exec_id: exec_id.clone(),
            ..Default::default()
        };
        tasks.exec(exec).await?;
        let (its, exec_its) = (container_id.clone(), exec_id.clone());
        tasks.start(StartRequest { container_id: its, exec_id: exec_its }).await?;
        let (its, exec_its) = (container_id.clone(), exec_id.clone());
        let wait = WaitRequest { container_id: its, exec_id: exec_its };
        let code = tasks.wait(wait).await?.into_inner().exit_status;
        tasks.delete_process(DeleteProcessRequest { container_id, exec_id }).await?;
        Ok(code)
    }

    /// Ends the container `id` and removes all of it.
    pub(crate) async fn remove(&self, id: &str) -> Result<()> {
        let mut client = self.clone();
        let kill = KillRequest {
            container_id: id.to_owned(),
            signal: Signal::KILL.as_raw().cast_unsigned(),
            ..Default::default()
        };
        client.tasks.kill(kill).await?;
        let wait = WaitRequest { container_id: id.to_owned(), ..Default::default() };
        client.tasks.wait(wait).await?;
        client.tasks.delete(DeleteTaskRequest { container_id: id.to_owned() }).await?;
        let remove = RemoveSnapshotRequest {
            snapshotter: self.model.snapshotter.clone(),
            key: id.to_owned(),
        };
        client.snapshots.remove(remove).await?;
        client.containers.delete(DeleteContainerRequest { id: id.to_owned() }).await?;
        Ok(())
    }
}
