//! Tasks: containers that run, each under a shim.
//!
//! # Who owns what
//!
//! The shim owns the container's processes, and outlives this daemon. An [`actor`] in this
//! daemon owns the task's life: its bundle, its shim's life, and what is told of its end. Calls go
//! past the actor to the shim, each with a deadline, so a shim that is slow or stopped delays
//! nobody but who asks for its task.
//!
//! # Rules
//!
//! - No lock is held across a call to a shim, the start of a process, or a wait.
//! - Every call has a deadline, but for `Wait`, which ends with the process or the shim.
//! - The directory of bundles is the only record of tasks. It is read once, when the daemon starts;
//!   the tasks are known then, and calls wait for the one that they want, not for all.
//! - Subscribers are told of a task's exit once: by its shim, or by this daemon when the shim cannot.
//!   An exit is written down before they are told, and marked as told after. A daemon that was
//!   killed in between left subscribers that had lost their connection; the next one tells again.
//!   Of execs' exits the shim is the record, which offers them until they are confirmed; see [`told`].
//!
//! The map of tasks is changed by [`Runtime::create`] and the actors. A container has at most one
//! entry, from before its bundle is made until the last of it is removed.
//!
//! Source: containerd, `core/runtime/v2`.

mod actor;
mod binary;
mod bootstrap;
mod bundle;
mod context;
mod error;
mod half_made;
mod health;
mod held;
mod launch;
mod log;
mod process;
mod resolve;
mod sandbox;
mod shim;
mod task;
mod told;

use std::{
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use prost::{Message, Name};
use prost_types::Any;
use proto::containerd::{
    events::{TaskDelete, TaskExit},
    runc::v1::Options,
    types::{Envelope, Mount, RuntimeInfo},
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    actor::{Actor, blocking},
    binary::Binary,
    bundle::{Bundle, FOLDER, SANDBOX_FOLDER},
    context::Context,
    launch::{Daemon, Dialects},
    task::Phase,
    told::{Mark, Told},
};
use crate::{error::Error as ApiError, events::Exchange, identifier, namespace::Namespace};

pub use self::{
    error::{Attempt, Error},
    resolve::{RuntimeConfig, RuntimeTable},
    sandbox::{CreateSandbox, Membership, Sandbox},
    shim::Call,
    task::{Exit, Task},
};

/// How long a create waits for the end of the container's earlier task.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(10);

/// How many commands may wait for an actor.
const COMMANDS_MAX: usize = 8;

/// How many tasks are adopted at a time.
const ADOPTIONS_MAX: usize = 32;

/// Where things are, and what runtimes' names mean.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "named after the daemon's paths")]
pub struct Settings {
    pub root: PathBuf,
    pub state: PathBuf,
    pub address: PathBuf,
    pub ttrpc_address: PathBuf,
    /// The version that shims are told.
    pub version: &'static str,
    /// Whether shims log what they do.
    pub debug: bool,
    /// The soft limit of open files that shims, and so containers, get; `None` for this daemon's.
    pub open_files_limit: Option<u64>,
    pub runtimes: RuntimeTable,
}

/// What a task goes on from.
#[derive(Clone, Debug, Default)]
pub enum Checkpoint {
    /// Nothing: it begins.
    #[default]
    None,
    /// A directory that criu wrote.
    Folder(String),
    /// A tar stream of one, which is unpacked for as long as the task lives.
    Archive(Arc<File>),
}

/// What a task is made from.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "named as in the API")]
pub struct Create {
    pub id: String,
    /// The OCI runtime specification, as JSON.
    pub spec: Option<Any>,
    /// The runtime's name, or its shim's path.
    pub runtime: String,
    pub options: Option<Any>,
    pub rootfs: Vec<Mount>,
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
    pub checkpoint: Checkpoint,
    /// The sandbox whose shim makes the task; `None` for a shim of its own, or its group's.
    pub sandbox: Option<Membership>,
}

/// The tasks. See the [module](self).
pub struct Runtime {
    context: Arc<Context>,
    runtimes: RuntimeTable,
    actors: TaskTracker,
}

impl Runtime {
    /// Finds the tasks that an earlier daemon left, and begins to take them over. They are known
    /// when this returns, and usable as soon as their shims have answered.
    ///
    /// Must be called within a tokio runtime. Blocks for the reading of directories.
    ///
    /// # Errors
    ///
    /// `File`: the directories cannot be made or read.
    pub fn open(settings: Settings, events: Exchange) -> Result<Self, ApiError> {
        let Settings { root, state, address, ttrpc_address, version, debug, .. } = settings;
        let Settings { runtimes, open_files_limit, .. } = settings;
        for folder in [&root, &state].map(|base| base.join(FOLDER)) {
            fs::create_dir_all(&folder).map_err(ApiError::file("create", folder))?;
        }
        let context = Arc::new(Context {
            root,
            state,
            daemon: Daemon { address, ttrpc_address, version, debug, open_files_limit },
            dialects: Dialects::default(),
            events,
            deletes: Told::default(),
            stop: CancellationToken::new(),
            tasks: Mutex::default(),
            sandboxes: Mutex::default(),
        });
        let runtime = Self { context, runtimes, actors: TaskTracker::new() };
        runtime.adopt()?;
        runtime.adopt_sandboxes()?;
        Ok(runtime)
    }

    /// The task of a container.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn task(&self, namespace: &Namespace, id: &str) -> Result<Arc<Task>, Error> {
        let tasks = self.context.tasks();
        let task = tasks.get(namespace).and_then(|tasks| tasks.get(id)).cloned();
        task.ok_or_else(|| Error::NotFound { id: id.to_owned() })
    }

    /// The tasks of a namespace, by container.
    pub fn tasks(&self, namespace: &Namespace) -> Vec<Arc<Task>> {
        let tasks = self.context.tasks();
        let mut found: Vec<_> =
            tasks.get(namespace).into_iter().flat_map(|tasks| tasks.values().cloned()).collect();
        drop(tasks);
        found.sort_by(|a, b| a.id().cmp(b.id()));
        found
    }

    /// All tasks, as namespace and container.
    pub fn all(&self) -> Vec<(Namespace, String)> {
        let tasks = self.context.tasks();
        let ids = |(namespace, tasks): (&Namespace, &HashMap<String, Arc<Task>>)| {
            tasks.keys().map(|id| (namespace.clone(), id.clone())).collect::<Vec<_>>()
        };
        tasks.iter().flat_map(ids).collect()
    }

    /// Makes a task and gives its init's number on the host. Init waits for `Start`.
    ///
    /// If this is dropped before it is done, the task is deleted again.
    ///
    /// # Errors
    ///
    /// - `Exists`: the container has a task.
    /// - `Invalid`, `NotInstalled`: there is no such runtime.
    /// - `Ending`: an earlier task is not removed in time.
    /// - The others say what cannot be done. Nothing is left then.
    pub async fn create(&self, namespace: &Namespace, mut request: Create) -> Result<u32, Error> {
        identifier::check(&request.id)
            .map_err(|error| Error::Invalid(format!("invalid task id {}: {error}", request.id)))?;
        let binary = self.resolve(&request.runtime).await?;
        request.options = self.complete(&request.runtime, request.options);
        let actor = loop {
            match self.claim(namespace, &request.id, Phase::Creating, Some(&binary)) {
                Ok(actor) => break actor,
                Err(task) if task.is_ending() => {
                    tokio::time::timeout(PREDECESSOR_LIMIT, task.ended()).await.map_err(|_| {
                        Error::Ending { id: request.id.clone(), limit: PREDECESSOR_LIMIT }
                    })?;
                }
                Err(_) => return Err(Error::Exists { id: request.id }),
            }
        };
        let (reply, answer) = oneshot::channel();
        self.actors.spawn(actor.create(request, reply));
        answer.await.unwrap_or(Err(Error::Stopping))
    }

    /// What a runtime says about itself, and about the OCI runtime that `options` name.
    ///
    /// # Errors
    ///
    /// - `Invalid`, `NotInstalled`: there is no such runtime.
    /// - `Info`, `Spawn`: it does not say.
    pub async fn info(&self, runtime: &str, options: Option<Any>) -> Result<RuntimeInfo, Error> {
        let binary = self.resolve(runtime).await?;
        launch::info(&binary, self.complete(runtime, options).as_ref()).await
    }

    /// Finds the shim of a runtime.
    async fn resolve(&self, runtime: &str) -> Result<PathBuf, Error> {
        let (runtime, table) = (runtime.to_owned(), self.runtimes.clone());
        blocking(move || resolve::resolve(&runtime, &table)).await
    }

    /// The options with what the configuration says for the runtime, where they leave it open.
    fn complete(&self, runtime: &str, options: Option<Any>) -> Option<Any> {
        match self.runtimes.get(runtime) {
            Some(entry) => with_binary_name(options, &entry.binary_name),
            None => options,
        }
    }

    /// A directory for what belongs to a task and is to go with it at the latest. It is not made.
    pub fn scratch(&self, task: &Task, name: &str) -> PathBuf {
        self.context.work(task).join(name)
    }

    /// Tells subscribers about an event that a shim publishes. An exit that they were told of is
    /// left out, and so is a delete.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: the envelope is malformed.
    pub async fn forward(&self, envelope: Envelope) -> Result<(), ApiError> {
        let context = &self.context;
        if self.is_told_delete(&envelope) {
            return Ok(());
        }
        let Some((namespace, exit)) = event_of::<TaskExit>(&envelope) else {
            return context.events.forward(envelope);
        };
        let Ok(task) = self.task(&namespace, &exit.container_id) else {
            return context.events.forward(envelope);
        };
        let bundle = Bundle::at(&context.state, &namespace, task.id());
        context.recall(&task, &bundle).await;
        let is_init = exit.id == exit.container_id;
        let pid = task.last().pid;
        if is_init && pid != 0 && exit.pid != 0 && exit.pid != pid {
            // Of an earlier task of the container, whose shim is late, or of an exec of that name.
            return context.events.forward(envelope);
        }
        let is_new =
            if is_init { task.tell(&exit) } else { task.told_execs().note(Mark::of(&exit)) };
        if !is_new {
            tracing::debug!(%namespace, id = exit.id, "exit was told before");
            return Ok(());
        }
        if is_init {
            context.record_exit(&bundle, &exit).await;
        }
        let forwarded = context.events.forward(envelope);
        if is_init {
            context.note_told(&bundle).await;
        } else {
            context.keep_told(task, &bundle).await;
        }
        forwarded
    }

    /// Whether an event tells of a task's delete that subscribers were told of in the shim's place.
    fn is_told_delete(&self, envelope: &Envelope) -> bool {
        let Some((namespace, delete)) = event_of::<TaskDelete>(envelope) else { return false };
        if !delete.id.is_empty() && delete.id != delete.container_id {
            return false;
        }
        if self.context.deletes.has(actor::mark_of(&namespace, &delete)) {
            return true;
        }
        let task = self.task(&namespace, &delete.container_id).ok();
        // The container's next task is told of by its own.
        let its_own = |task: &Arc<Task>| {
            let pid = task.last().pid;
            pid == delete.pid || pid == 0 && !task.is_new()
        };
        task.filter(its_own).is_some_and(|task| !task.tell_delete())
    }

    /// Stops to look after tasks, and leaves them running. Waits for what is under way.
    pub async fn close(&self) {
        self.context.stop.cancel();
        self.actors.close();
        self.actors.wait().await;
    }

    /// Enters a task, or gives the one that the container has. Without a `binary`, the bundle says
    /// which it is.
    fn claim(
        &self,
        namespace: &Namespace,
        id: &str,
        phase: Phase,
        binary: Option<&Path>,
    ) -> Result<Actor, Arc<Task>> {
        let mut tasks = self.context.tasks();
        if let Some(task) = tasks.get(namespace).and_then(|tasks| tasks.get(id)) {
            return Err(Arc::clone(task));
        }
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let task = Arc::new(Task::new(namespace.clone(), id.to_owned(), phase, sender));
        tasks.entry(namespace.clone()).or_default().insert(id.to_owned(), Arc::clone(&task));
        let bundle = Bundle::at(&self.context.state, namespace, id);
        let context = Arc::clone(&self.context);
        let binary = Binary::new(binary);
        Ok(Actor { task, context, commands, bundle, binary, half_made: false, left: None })
    }

    fn adopt(&self) -> Result<(), ApiError> {
        let places = Arc::new(Semaphore::new(ADOPTIONS_MAX));
        for (namespace, id) in found(&self.context.state.join(FOLDER))? {
            let Ok(actor) = self.claim(&namespace, &id, Phase::Adopting, None) else { continue };
            let places = Arc::clone(&places);
            self.actors.spawn(actor.adopt(places));
        }
        let context = Arc::clone(&self.context);
        self.actors.spawn_blocking(move || remove_work(&context));
        Ok(())
    }
}

/// The bundles that there are. What is no bundle is left alone; what an earlier daemon did not
/// finish to remove is removed.
fn found(folder: &Path) -> Result<Vec<(Namespace, String)>, ApiError> {
    let mut found = Vec::new();
    for namespace in names(folder)? {
        let Ok(parsed) = namespace.parse::<Namespace>() else { continue };
        let folder = folder.join(&namespace);
        for id in names(&folder)? {
            if id.starts_with('.') {
                if let Err(error) = fs::remove_dir_all(folder.join(&id)) {
                    tracing::warn!(%error, id, "left-over bundle stays");
                }
            } else if identifier::check(&id).is_ok() {
                found.push((parsed.clone(), id));
            }
        }
    }
    Ok(found)
}

/// The names of the directories in `folder`.
fn names(folder: &Path) -> Result<Vec<String>, ApiError> {
    let entries = fs::read_dir(folder).map_err(ApiError::file("read", folder))?;
    let names = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.collect())
}

/// Removes the working directories without a task or a sandbox, such as those from before a reboot.
fn remove_work(context: &Context) {
    // Who is in a map is there before its directory is made, so what is hidden under the lock has
    // nobody.
    remove_unused(&context.root.join(FOLDER), |namespace, id, hide| {
        let tasks = context.tasks();
        !tasks.get(namespace).is_some_and(|tasks| tasks.contains_key(id)) && hide()
    });
    remove_unused(&context.root.join(SANDBOX_FOLDER), |namespace, id, hide| {
        let sandboxes = context.sandboxes();
        !sandboxes.get(namespace).is_some_and(|found| found.contains_key(id)) && hide()
    });
}

/// Removes the directories that `take` hides, whose names begin with a dot then.
fn remove_unused(root: &Path, take: impl Fn(&str, &str, &dyn Fn() -> bool) -> bool) {
    for namespace in names(root).unwrap_or_default() {
        let folder = root.join(&namespace);
        for id in names(&folder).unwrap_or_default() {
            let hidden = folder.join(format!(".{}", id.trim_start_matches('.')));
            let hide = || id.starts_with('.') || fs::rename(folder.join(&id), &hidden).is_ok();
            if take(&namespace, &id, &hide)
                && let Err(error) = fs::remove_dir_all(&hidden)
            {
                tracing::warn!(%error, id, "left-over working directory stays");
            }
        }
    }
}

/// What the event tells, if it is of this kind.
fn event_of<M: Message + Name + Default>(envelope: &Envelope) -> Option<(Namespace, M)> {
    let event = proto::any::unpack::<M>(envelope.event.as_ref()?).ok()??;
    Some((envelope.namespace.parse().ok()?, event))
}

/// Names the OCI runtime in options that do not.
fn with_binary_name(options: Option<Any>, binary_name: &str) -> Option<Any> {
    if binary_name.is_empty() {
        return options;
    }
    let mut parsed = match &options {
        Some(any) if !any.value.is_empty() => match proto::any::unpack::<Options>(any) {
            Ok(Some(parsed)) => parsed,
            _ => return options,
        },
        _ => Options::default(),
    };
    if parsed.binary_name.is_empty() {
        parsed.binary_name = binary_name.to_owned();
    }
    let type_url = options.map(|any| any.type_url).filter(|url| !url.is_empty());
    let packed = proto::any::pack(&parsed);
    Some(Any { type_url: type_url.unwrap_or(packed.type_url), value: parsed.encode_to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_name_of_the_configuration() {
        let pack = |name: &str| {
            proto::any::pack(&Options { binary_name: name.to_owned(), ..Options::default() })
        };
        let foreign = Any { type_url: "my.Options".to_owned(), value: vec![1] };
        let cases = [
            ("no options", None, "crun", Some(pack("crun"))),
            ("options without", Some(pack("")), "crun", Some(pack("crun"))),
            ("options with", Some(pack("runc")), "crun", Some(pack("runc"))),
            ("foreign options", Some(foreign.clone()), "crun", Some(foreign)),
            ("no name", None, "", None),
        ];
        for (case, options, name, want) in cases {
            assert_eq!(with_binary_name(options, name), want, "{case}");
        }
    }
}
