//! Looks at one container, and starts or stops it.
//!
//! A start makes what a client makes: the old task is deleted, the root filesystem's mounts come
//! from the snapshotter, and the rest from the record. Output goes where the labels say, and
//! otherwise nowhere.
//!
//! Source: containerd, `plugins/restart/change.go`, `client/container.go`.

use std::{sync::Arc, time::Duration};

use proto::containerd::{
    events::ContainerUpdate, task::v3::KillRequest, types::Mount, v1::types::Status,
};
use serde::Deserialize;
use snapshotter::Key;

use super::{
    Cause, Name, origin,
    policy::{self, LabelError, Memory, STATUS, Seen, Verdict},
};
use crate::{
    content::Store,
    error::Error as StateError,
    events::Exchange,
    filter::Filter,
    gc::Snapshotters,
    labels::Labels,
    metadata::Container,
    namespace::Namespace,
    runtime::{self, Create, Runtime, Task},
};

/// How long a task that was killed may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// SIGKILL, as tasks are told it.
const SIGKILL: u32 = 9;

/// What the monitor works with.
#[derive(Clone)]
#[expect(missing_docs, reason = "named by their types")]
pub struct Parts {
    pub content: Store,
    pub snapshotters: Arc<Snapshotters>,
    pub runtime: Arc<Runtime>,
    pub events: Exchange,
}

/// What came of looking at a container.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is as its labels ask, or was made so.
    Done,
    /// It is not as its labels ask, perhaps not for long.
    Later,
    /// It has no labels of the monitor's, or is gone.
    Unwatched,
    /// It could not be made as its labels ask.
    Failed(Error),
}

/// Why a container cannot be made as its labels ask.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("label")]
    Label(#[from] LabelError),
    #[error("state")]
    State(#[from] StateError),
    #[error("task")]
    Task(#[from] runtime::Error),
    #[error("specification")]
    Spec(#[source] serde_json::Error),
    #[error("snapshot {key}")]
    Snapshot { key: String, source: snapshotter::Error },
    #[error("snapshotter {0:?} not found")]
    NoSnapshotter(String),
    #[error("snapshot key")]
    Key(#[from] snapshotter::KeyError),
    #[error("task was killed and does not end")]
    Alive,
    #[error("the daemon is stopping")]
    Stopping,
}

/// What a start has to know of the specification.
#[derive(Debug, Default, Deserialize)]
struct Spec {
    process: Option<Process>,
    linux: Option<Linux>,
}

#[derive(Debug, Deserialize)]
struct Process {
    #[serde(default)]
    terminal: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    #[serde(default)]
    mount_label: String,
}

impl Parts {
    /// The containers of all namespaces that are to be watched. Blocks.
    pub(super) fn labelled(&self) -> Result<Vec<Name>, StateError> {
        let records = self.content.metadata();
        let filter = Filter::parse_all(&[format!("labels.{STATUS:?}")]).expect("a valid filter");
        let mut found = Vec::new();
        for info in records.namespaces()? {
            for container in records.containers(&info.name, &filter)? {
                found.push((info.name.clone(), container.id));
            }
        }
        Ok(found)
    }

    /// Compares a container with its labels, and acts when its time has come. `started` is called
    /// before init runs.
    pub(super) async fn look(
        &self,
        name: &Name,
        cause: Cause,
        memory: Memory,
        started: impl Fn(),
    ) -> Outcome {
        let looked = self.look_inner(name, cause, memory, started).await;
        looked.unwrap_or_else(|error| match error {
            // Nobody gains from trying again what the labels cannot mean; they may change.
            Error::Label(error) => {
                let (namespace, id) = name;
                tracing::error!(%namespace, id, %error, "restart labels are not heeded");
                Outcome::Done
            }
            Error::State(StateError::NotFound(_)) => Outcome::Unwatched,
            Error::Stopping | Error::Task(runtime::Error::Stopping) => Outcome::Done,
            error => Outcome::Failed(error),
        })
    }

    async fn look_inner(
        &self,
        name: &Name,
        cause: Cause,
        memory: Memory,
        started: impl Fn(),
    ) -> Result<Outcome, Error> {
        let mut container = self.container(name).await?;
        if !container.labels.contains_key(STATUS) {
            return Ok(Outcome::Unwatched);
        }
        // Whoever made the sandbox knows what is to become of its containers.
        if !container.sandbox.is_empty() {
            return Ok(Outcome::Done);
        }
        let task = self.runtime.task(&name.0, &name.1).ok();
        let seen = match &task {
            Some(task) => see(task).await,
            None => Seen::Absent,
        };
        if seen == Seen::Unknown {
            return Ok(Outcome::Later);
        }
        if policy::decide(&container.labels, seen, memory)? == Verdict::Leave {
            let stale = policy::after_no_start(&container.labels, seen, memory);
            if !stale.is_empty() {
                self.change_labels(&name.0, &name.1, stale).await?;
            }
            return Ok(Outcome::Done);
        }
        self.distrust(name, &mut container).await?;
        let verdict = policy::decide(&container.labels, seen, memory)?;
        let in_time = match cause {
            Cause::Look => false,
            // A client has deleted the task, and may have more in mind.
            Cause::Exit => seen != Seen::Absent,
            Cause::Settled => true,
        };
        match verdict {
            Verdict::Leave => return Ok(Outcome::Done),
            _ if !in_time => return Ok(Outcome::Later),
            Verdict::Stop => self.end(name).await?,
            Verdict::Start => {
                let changed = policy::at_start(&container.labels, memory)?;
                let begun = changed.clone();
                let result = self.start(name, container, changed, started).await;
                if let Err(Error::Stopping | Error::Task(runtime::Error::Stopping)) = result {
                    // For the next daemon that is a start that was cut short, not one that failed.
                    return result.map(|()| Outcome::Done);
                }
                let after = policy::after_start(&begun, result.is_ok());
                if !after.is_empty() {
                    self.change_labels(&name.0, &name.1, after).await?;
                }
                result?;
            }
        }
        Ok(Outcome::Done)
    }

    /// Forgets labels that the image brought; see [`origin`].
    async fn distrust(&self, name: &Name, container: &mut Container) -> Result<(), Error> {
        let (content, namespace, mut own) =
            (self.content.clone(), name.0.clone(), container.clone());
        let (own, stripped) = blocking(move || {
            let stripped = origin::strip_image_labels(&content, &namespace, &mut own)?;
            Ok((own, stripped))
        })
        .await?;
        if !stripped.is_empty() {
            let (namespace, id) = name;
            tracing::warn!(%namespace, id, ?stripped, "labels of the image are not heeded");
        }
        *container = own;
        Ok(())
    }

    async fn start(
        &self,
        (namespace, id): &Name,
        container: Container,
        labels: Labels,
        started: impl Fn(),
    ) -> Result<(), Error> {
        let name = (namespace.clone(), id.clone());
        let spec = match &container.spec {
            Some(spec) => serde_json::from_slice::<Spec>(&spec.value).map_err(Error::Spec)?,
            None => Spec::default(),
        };
        let rootfs = self.rootfs(namespace, &container, &spec).await?;
        self.change_labels(namespace, id, labels).await?;
        self.end(&name).await?;
        let output = policy::output(&container.labels);
        let create = Create {
            id: id.clone(),
            spec: container.spec,
            runtime: container.runtime.name,
            options: container.runtime.options,
            rootfs,
            terminal: !output.is_empty() && spec.process.is_some_and(|process| process.terminal),
            stdout: output.clone(),
            stderr: output,
            ..Create::default()
        };
        self.runtime.create(namespace, create).await?;
        started();
        let running = async { self.runtime.task(namespace, id)?.start("").await };
        let pid = match running.await {
            Ok(pid) => pid,
            Err(error) => {
                self.end(&name).await?;
                return Err(error.into());
            }
        };
        tracing::info!(%namespace, id, pid, "container was restarted");
        // Whoever stopped or deleted the container meanwhile did not know of the new task.
        let wanted = match self.container(&name).await {
            Ok(container) => policy::may_run(&container.labels),
            Err(Error::State(StateError::NotFound(_))) => false,
            Err(error) => return Err(error),
        };
        if !wanted {
            tracing::info!(%namespace, id, "container was stopped while it was restarted");
            self.end(&name).await?;
        }
        Ok(())
    }

    /// Deletes the task, if there is one. Init is killed if it has not ended.
    async fn end(&self, (namespace, id): &Name) -> Result<(), Error> {
        let Ok(task) = self.runtime.task(namespace, id) else { return Ok(()) };
        if !matches!(see(&task).await, Seen::Stopped { .. }) {
            let kill =
                KillRequest { id: id.clone(), exec_id: String::new(), signal: SIGKILL, all: true };
            // It may have ended just now.
            if let Err(error) = task.call(&kill).await {
                tracing::debug!(id, error = %sys::error::Chain(&error), "not killed");
            }
            let ended = tokio::time::timeout(KILL_LIMIT, task.wait("")).await;
            drop(ended.map_err(|_| Error::Alive)?);
        }
        match task.delete().await {
            Ok(_) | Err(runtime::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn rootfs(
        &self,
        namespace: &Namespace,
        container: &Container,
        spec: &Spec,
    ) -> Result<Vec<Mount>, Error> {
        let key = container.snapshot_key.clone();
        if key.is_empty() {
            return Ok(Vec::new());
        }
        let name = &container.snapshotter;
        let snapshotter = self.snapshotters.get(name).map(Arc::clone);
        let snapshotter = snapshotter.ok_or_else(|| Error::NoSnapshotter(name.clone()))?;
        let full = Key::new(namespace.as_str(), &key)?;
        let mounts = tokio::task::spawn_blocking(move || snapshotter.mounts(&full)).await;
        let mounts = mounts.map_err(|_| Error::Stopping)?;
        let mounts = mounts.map_err(|source| Error::Snapshot { key, source })?;
        let label = spec.linux.as_ref().map(|linux| linux.mount_label.as_str());
        let context = label.filter(|label| !label.is_empty()).map(|it| format!("context={it:?}"));
        let to_wire = |mount: snapshotter::Mount| Mount {
            r#type: mount.kind,
            source: mount.source,
            target: mount.target,
            options: mount.options.into_iter().chain(context.clone()).collect(),
        };
        Ok(mounts.into_iter().map(to_wire).collect())
    }

    async fn change_labels(
        &self,
        namespace: &Namespace,
        id: &str,
        changed: Labels,
    ) -> Result<(), Error> {
        let mask: Vec<_> = changed.keys().map(|key| format!("labels.{key}")).collect();
        let (content, owner, id) = (self.content.clone(), namespace.clone(), id.to_owned());
        let container = blocking(move || {
            let mut container = content.metadata().container(&owner, &id)?;
            container.labels.extend(changed);
            content.metadata().update_container(&owner, &container, &mask)
        })
        .await?;
        let event = ContainerUpdate {
            id: container.id,
            image: container.image,
            labels: container.labels,
            snapshot_key: container.snapshot_key,
        };
        self.events.publish(namespace, "/containers/update", proto::any::pack(&event));
        Ok(())
    }

    async fn container(&self, (namespace, id): &Name) -> Result<Container, Error> {
        let (content, namespace, id) = (self.content.clone(), namespace.clone(), id.clone());
        blocking(move || content.metadata().container(&namespace, &id)).await
    }
}

/// What a task does.
async fn see(task: &Task) -> Seen {
    let Some(state) = task.state_or_last().await else { return Seen::Absent };
    match Status::try_from(state.status) {
        Ok(Status::Created) => Seen::Created,
        Ok(Status::Running | Status::Paused | Status::Pausing) => Seen::Running,
        Ok(Status::Stopped) => Seen::Stopped { exit_status: state.exit_status },
        Ok(Status::Unknown) | Err(_) => Seen::Unknown,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StateError> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopping)?;
    Ok(done?)
}
