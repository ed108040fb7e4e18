//! What runs; see [`crate::runtime`].
//!
//! A call is about the task of a container, so the container is looked up first: its absence has
//! another text than the absence of its task, and clients tell them apart.
//!
//! Source: containerd, `plugins/services/tasks/local.go`.

use std::{borrow::Cow, fs, sync::Arc, time::SystemTime};

use proto::{
    containerd::{
        runc::v1::{CheckpointOptions, Options},
        services::tasks::v1::{
            CheckpointTaskRequest, CheckpointTaskResponse, CloseIoRequest, CreateTaskRequest,
            CreateTaskResponse, DeleteProcessRequest, DeleteResponse, DeleteTaskRequest,
            ExecProcessRequest, GetRequest, GetResponse, KillRequest, ListPidsRequest,
            ListPidsResponse, ListTasksRequest, ListTasksResponse, MetricsRequest, MetricsResponse,
            PauseTaskRequest, ResizePtyRequest, ResumeTaskRequest, StartRequest, StartResponse,
            UpdateTaskRequest, WaitRequest, WaitResponse, tasks_server,
        },
        task::v3,
        types::Metric,
        v1::types::{Process, ProcessInfo},
    },
    time::NO_TIME,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{blocking, checkpoint, scope, status::task_status, timestamp};
use crate::{
    content,
    error::Error as ApiError,
    filter::{Fields, Filter, value},
    identifier,
    metadata::{Container, Store},
    namespace::Namespace,
    runtime::{Call, Checkpoint, Create, Error, Membership, Runtime, Task},
};

/// The service.
#[derive(Clone)]
pub struct Tasks {
    store: Store,
    content: content::Store,
    runtime: Arc<Runtime>,
    stop: CancellationToken,
}

impl Tasks {
    /// Serves the tasks of `runtime` that belong to containers in the records of `content`, where
    /// checkpoints go. Waits end with `stop`.
    pub fn new(content: content::Store, runtime: Arc<Runtime>, stop: CancellationToken) -> Self {
        Self { store: content.metadata().clone(), content, runtime, stop }
    }

    async fn container(&self, namespace: &Namespace, id: &str) -> Result<Container, Status> {
        let (store, namespace, id) = (self.store.clone(), namespace.clone(), id.to_owned());
        blocking(move || store.container(&namespace, &id)).await
    }

    /// The sandbox that a task is made in: where its container belongs to one that has a record.
    async fn membership(
        &self,
        namespace: &Namespace,
        container: &Container,
        request: &CreateTaskRequest,
    ) -> Result<Option<Membership>, Status> {
        if container.sandbox.is_empty() {
            return Ok(None);
        }
        let (store, id) = (self.store.clone(), container.sandbox.clone());
        let record = {
            let (namespace, id) = (namespace.clone(), id.clone());
            blocking(move || match store.sandbox(&namespace, &id) {
                Err(ApiError::NotFound(_)) => Ok(false),
                found => found.map(|_| true),
            })
        };
        if !record.await? {
            // Made by a client that groups containers by an annotation.
            tracing::warn!(id = container.id, sandbox = id, "sandbox not found");
            return Ok(None);
        }
        let (address, version) = task_api(container, request);
        Ok(Some(Membership { id, address, version }))
    }

    /// The task that a request is about, and the request.
    async fn task<R>(
        &self,
        request: Request<R>,
        id: impl FnOnce(&R) -> &str,
    ) -> Result<(Arc<Task>, R), Status> {
        let namespace = scope(&request)?.namespace;
        let request = request.into_inner();
        let id = id(&request);
        let task = match self.runtime.task(&namespace, id) {
            Ok(task) => task,
            Err(error) => {
                self.container(&namespace, id).await?;
                return Err(task_status(&error));
            }
        };
        Ok((task, request))
    }
}

async fn ask<C: Call>(task: &Task, call: C) -> Result<C::Answer, Status> {
    task.call(&call).await.map_err(|error| task_status(&error))
}

async fn done<C: Call<Answer = ()>>(task: &Task, call: C) -> Result<Response<()>, Status> {
    ask(task, call).await.map(Response::new)
}

#[tonic::async_trait]
impl tasks_server::Tasks for Tasks {
    async fn create(
        &self,
        request: Request<CreateTaskRequest>,
    ) -> Result<Response<CreateTaskResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let mut request = request.into_inner();
        let container = self.container(&namespace, &request.container_id).await?;
        let blob = request.checkpoint.take();
        let id = container.id.clone();
        let sandbox = self.membership(&namespace, &container, &request).await?;
        let mut create = Create { sandbox, ..create(container, request)? };
        if let (Checkpoint::None, Some(blob)) = (&create.checkpoint, blob) {
            let (content, namespace) = (self.content.clone(), namespace.clone());
            let file = blocking(move || checkpoint::find(&content, &namespace, blob)).await?;
            create.checkpoint = Checkpoint::Archive(Arc::new(file));
        }
        let pid = self.runtime.create(&namespace, create).await;
        let pid = pid.map_err(|error| task_status(&error))?;
        Ok(Response::new(CreateTaskResponse { container_id: id, pid }))
    }

    async fn start(
        &self,
        request: Request<StartRequest>,
    ) -> Result<Response<StartResponse>, Status> {
        let (task, request) = self.task(request, |r| &r.container_id).await?;
        let pid = task.start(&request.exec_id).await.map_err(|error| task_status(&error))?;
        Ok(Response::new(StartResponse { pid }))
    }

    async fn delete(
        &self,
        request: Request<DeleteTaskRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let (task, _) = self.task(request, |r| &r.container_id).await?;
        let exit = task.delete().await.map_err(|error| task_status(&error))?;
        Ok(Response::new(DeleteResponse {
            id: String::new(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: exit.at.or(Some(NO_TIME)),
        }))
    }

    async fn delete_process(
        &self,
        request: Request<DeleteProcessRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let (task, DeleteProcessRequest { exec_id, .. }) =
            self.task(request, |r| &r.container_id).await?;
        if exec_id.is_empty() {
            return Err(no_exec_id());
        }
        let answer = task.delete_exec(&exec_id).await.map_err(|error| task_status(&error))?;
        Ok(Response::new(DeleteResponse {
            id: exec_id,
            pid: answer.pid,
            exit_status: answer.exit_status,
            exited_at: answer.exited_at.or(Some(NO_TIME)),
        }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let (task, request) = self.task(request, |r| &r.container_id).await?;
        let state = match request.exec_id.as_str() {
            "" => task.state_or_unknown().await,
            exec_id => task.state(exec_id).await,
        };
        let state = state.map_err(|error| task_status(&error))?;
        let id = if request.exec_id.is_empty() { request.container_id } else { request.exec_id };
        Ok(Response::new(GetResponse { process: Some(process(id, state)) }))
    }

    async fn list(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let tasks = self.runtime.tasks(&namespace);
        let states = futures::future::join_all(tasks.iter().map(|task| task.state_or_last())).await;
        let known = tasks.iter().zip(states).filter_map(|(task, state)| Some((task, state?)));
        let tasks = known.map(|(task, state)| process(task.id().to_owned(), state)).collect();
        Ok(Response::new(ListTasksResponse { tasks }))
    }

    async fn kill(&self, request: Request<KillRequest>) -> Result<Response<()>, Status> {
        let (task, KillRequest { container_id: id, exec_id, signal, all }) =
            self.task(request, |r| &r.container_id).await?;
        let call = v3::KillRequest { id, exec_id, signal, all };
        task.kill(&call).await.map_err(|error| task_status(&error))?;
        Ok(Response::new(()))
    }

    async fn exec(&self, request: Request<ExecProcessRequest>) -> Result<Response<()>, Status> {
        let (task, request) = self.task(request, |r| &r.container_id).await?;
        if request.exec_id.is_empty() {
            return Err(no_exec_id());
        }
        identifier::check(&request.exec_id).map_err(|error| {
            let id = &request.exec_id;
            Status::invalid_argument(format!("invalid exec id {id}: {error}: invalid argument"))
        })?;
        let call = v3::ExecProcessRequest {
            id: request.container_id,
            exec_id: request.exec_id,
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            spec: request.spec,
        };
        done(&task, call).await
    }

    async fn resize_pty(&self, request: Request<ResizePtyRequest>) -> Result<Response<()>, Status> {
        let (task, ResizePtyRequest { container_id: id, exec_id, width, height }) =
            self.task(request, |r| &r.container_id).await?;
        done(&task, v3::ResizePtyRequest { id, exec_id, width, height }).await
    }

    async fn close_io(&self, request: Request<CloseIoRequest>) -> Result<Response<()>, Status> {
        let (task, CloseIoRequest { container_id: id, exec_id, stdin }) =
            self.task(request, |r| &r.container_id).await?;
        if !stdin {
            return Ok(Response::new(()));
        }
        done(&task, v3::CloseIoRequest { id, exec_id, stdin }).await
    }

    async fn pause(&self, request: Request<PauseTaskRequest>) -> Result<Response<()>, Status> {
        let (task, request) = self.task(request, |r| &r.container_id).await?;
        done(&task, v3::PauseRequest { id: request.container_id }).await
    }

    async fn resume(&self, request: Request<ResumeTaskRequest>) -> Result<Response<()>, Status> {
        let (task, request) = self.task(request, |r| &r.container_id).await?;
        done(&task, v3::ResumeRequest { id: request.container_id }).await
    }

    async fn list_pids(
        &self,
        request: Request<ListPidsRequest>,
    ) -> Result<Response<ListPidsResponse>, Status> {
        let (task, request) = self.task(request, |r| &r.container_id).await?;
        let answer = ask(&task, v3::PidsRequest { id: request.container_id }).await?;
        let processes = answer
            .processes
            .into_iter()
            .map(|p| ProcessInfo { pid: p.pid, info: p.info })
            .collect();
        Ok(Response::new(ListPidsResponse { processes }))
    }

    async fn checkpoint(
        &self,
        request: Request<CheckpointTaskRequest>,
    ) -> Result<Response<CheckpointTaskResponse>, Status> {
        let scope = scope(&request)?;
        let (task, request) = self.task(request, |r| &r.container_id).await?;
        let path = checkpoint_path(request.options.as_ref())?;
        let CheckpointTaskRequest { container_id: id, options, .. } = request;
        if !path.is_empty() {
            ask(&task, v3::CheckpointTaskRequest { id, path, options }).await?;
            return Ok(Response::new(CheckpointTaskResponse { descriptors: vec![] }));
        }
        let container = self.container(&scope.namespace, &id).await?;
        // If the call is cut short, the directory goes with the task.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let folder = self.runtime.scratch(&task, &format!("checkpoint-{}", now.as_nanos()));
        let made = folder.clone();
        blocking(move || checkpoint::make_folder(&made)).await?;
        let path = folder.display().to_string();
        let written = ask(&task, v3::CheckpointTaskRequest { id, path, options }).await;
        let content = self.content.clone();
        let descriptors = blocking(move || {
            let kept = match written {
                Ok(()) => {
                    checkpoint::keep(&content, &scope, &folder, container.spec.as_ref()).map(Ok)
                }
                Err(status) => Ok(Err(status)),
            };
            if let Err(error) = fs::remove_dir_all(&folder) {
                tracing::warn!(%error, "remains of a checkpoint stay until the task goes");
            }
            kept
        });
        Ok(Response::new(CheckpointTaskResponse { descriptors: descriptors.await?? }))
    }

    async fn update(&self, request: Request<UpdateTaskRequest>) -> Result<Response<()>, Status> {
        let (task, request) = self.task(request, |r| &r.container_id).await?;
        let call = v3::UpdateTaskRequest {
            id: request.container_id,
            resources: request.resources,
            annotations: request.annotations,
        };
        done(&task, call).await
    }

    async fn metrics(
        &self,
        request: Request<MetricsRequest>,
    ) -> Result<Response<MetricsResponse>, Status> {
        let namespace = scope(&request)?.namespace;
        let filter = Filter::parse_all(&request.into_inner().filters)
            .map_err(|error| super::status(error.into()))?;
        let mut tasks = self.runtime.tasks(&namespace);
        tasks.retain(|task| filter.matches(&TaskFields(task)));
        let metrics = futures::future::join_all(tasks.iter().map(|task| metric(task))).await;
        Ok(Response::new(MetricsResponse { metrics: metrics.into_iter().flatten().collect() }))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        let (task, request) = self.task(request, |r| &r.container_id).await?;
        let exit = tokio::select! {
            exit = task.wait(&request.exec_id) => exit.map_err(|error| task_status(&error))?,
            () = self.stop.cancelled() => return Err(task_status(&Error::Stopping)),
        };
        Ok(Response::new(WaitResponse { exit_status: exit.status, exited_at: exit.at }))
    }
}

fn no_exec_id() -> Status {
    Status::invalid_argument("exec id cannot be empty")
}

/// Decides what a task is made from: what the request leaves open is the container's.
fn create(container: Container, request: CreateTaskRequest) -> Result<Create, Status> {
    let given = request.options.filter(|options| !options.value.is_empty());
    let runc = given.as_ref().map(proto::any::unpack::<Options>).transpose();
    let runc = runc.map_err(|error| Status::invalid_argument(error.to_string()))?.flatten();
    if let (Some(given), None) = (&given, &runc) {
        let (runtime, kind) = (&container.runtime.name, &given.type_url);
        let text = format!("invalid task create option for {runtime}: {kind:?}");
        return Err(Status::invalid_argument(text));
    }
    let checkpoint = match runc.map(|options| options.criu_image_path) {
        Some(path) if !path.is_empty() => Checkpoint::Folder(path),
        _ => Checkpoint::None,
    };
    let runtime =
        if request.runtime_path.is_empty() { container.runtime.name } else { request.runtime_path };
    Ok(Create {
        id: container.id,
        spec: container.spec,
        runtime,
        options: given.or(container.runtime.options),
        rootfs: request.rootfs,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
        checkpoint,
        sandbox: None,
    })
}

/// Where the request says that tasks are made, if it does: by itself, or as clients did once, by the
/// runtime's options.
fn task_api(container: &Container, request: &CreateTaskRequest) -> (String, u32) {
    let given = request.options.as_ref().filter(|options| !options.value.is_empty());
    let options = given.or(container.runtime.options.as_ref());
    let options = options.and_then(|options| proto::any::unpack::<Options>(options).ok().flatten());
    let options = options.unwrap_or_default();
    let address = Some(request.task_api_address.clone()).filter(|address| !address.is_empty());
    let version = Some(request.task_api_version).filter(|&version| version != 0);
    (address.unwrap_or(options.task_api_address), version.unwrap_or(options.task_api_version))
}

fn checkpoint_path(options: Option<&prost_types::Any>) -> Result<String, Status> {
    let Some(options) = options else { return Ok(String::new()) };
    match proto::any::unpack::<CheckpointOptions>(options) {
        Ok(Some(options)) => Ok(options.image_path),
        Ok(None) => Err(Status::invalid_argument("invalid task checkpoint option")),
        Err(error) => Err(Status::invalid_argument(error.to_string())),
    }
}

fn process(id: String, state: v3::StateResponse) -> Process {
    Process {
        id,
        pid: state.pid,
        status: state.status,
        stdin: state.stdin,
        stdout: state.stdout,
        stderr: state.stderr,
        terminal: state.terminal,
        exit_status: state.exit_status,
        exited_at: state.exited_at.or(Some(NO_TIME)),
        ..Process::default()
    }
}

async fn metric(task: &Task) -> Option<Metric> {
    let collected = timestamp(SystemTime::now());
    let id = task.id().to_owned();
    match task.call(&v3::StatsRequest { id: id.clone() }).await {
        Ok(answer) => Some(Metric { timestamp: collected, id, data: answer.stats }),
        Err(error) => {
            let error = sys::error::Chain(&error);
            tracing::debug!(id, %error, "no metrics");
            None
        }
    }
}

/// A task, as the filters of metrics see it.
struct TaskFields<'t>(&'t Task);

impl Fields for TaskFields<'_> {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        match path.first().map(String::as_str) {
            Some("id") => value(self.0.id()),
            Some("namespace") => value(self.0.namespace().as_str()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Any;

    use super::*;
    use crate::metadata::Runtime as ContainerRuntime;

    #[test]
    fn what_the_request_leaves_open_is_the_containers() {
        let options = |name: &str| {
            proto::any::pack(&Options { binary_name: name.to_owned(), ..Options::default() })
        };
        let cases = [
            ("nothing given", "", None, "io.containerd.runc.v2", "crun"),
            ("empty options", "", Some(Any::default()), "io.containerd.runc.v2", "crun"),
            ("options", "", Some(options("runc")), "io.containerd.runc.v2", "runc"),
            ("path", "/bin/shim", None, "/bin/shim", "crun"),
        ];
        for (case, runtime_path, given, runtime, want) in cases {
            let container = Container {
                id: "c1".to_owned(),
                labels: Default::default(),
                image: String::new(),
                runtime: ContainerRuntime {
                    name: "io.containerd.runc.v2".to_owned(),
                    options: Some(options("crun")),
                },
                spec: None,
                snapshotter: String::new(),
                snapshot_key: String::new(),
                created: SystemTime::UNIX_EPOCH,
                updated: SystemTime::UNIX_EPOCH,
                extensions: Default::default(),
                sandbox: String::new(),
            };
            let request = CreateTaskRequest {
                options: given,
                runtime_path: runtime_path.to_owned(),
                ..Default::default()
            };
            let got = create(container, request).expect(case);
            assert_eq!(
                (got.runtime.as_str(), got.options),
                (runtime, Some(options(want))),
                "{case}"
            );
        }
    }
}
