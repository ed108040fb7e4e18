//! What all actors share.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use proto::containerd::events::TaskExit;
use tokio_util::sync::CancellationToken;

use super::{
    Error,
    actor::blocking,
    bundle::{Bundle, FOLDER},
    launch::{Daemon, Dialects},
    sandbox::Sandbox,
    task::{Exit, Task},
    told::Told,
};
use crate::{events::Exchange, namespace::Namespace};

/// What all actors share.
pub(super) struct Context {
    pub(super) root: PathBuf,
    pub(super) state: PathBuf,
    pub(super) daemon: Daemon,
    pub(super) dialects: Dialects,
    pub(super) events: Exchange,
    /// The deletes that this daemon told in place of a shim, which may still be heard.
    pub(super) deletes: Told,
    /// Stops the actors, and leaves their tasks alone.
    pub(super) stop: CancellationToken,
    /// The tasks that there are, from before their bundle is made until nothing is left of them.
    pub(super) tasks: Mutex<Tasks>,
    /// The sandboxes, in the same way.
    pub(super) sandboxes: Mutex<Sandboxes>,
}

/// Tasks by namespace and container.
pub(super) type Tasks = HashMap<Namespace, HashMap<String, Arc<Task>>>;

/// Sandboxes by namespace and name.
pub(super) type Sandboxes = HashMap<Namespace, HashMap<String, Arc<Sandbox>>>;

impl Context {
    pub(super) fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory of a task that outlives the kernel.
    pub(super) fn work(&self, task: &Task) -> PathBuf {
        self.root.join(FOLDER).join(task.namespace().as_str()).join(task.id())
    }

    /// Who else the shim at `address` serves or is about to serve beside a task, as in `task c2`. Of
    /// one that the shim has not been asked about, the bundle says where it is.
    pub(super) fn sharing(&self, task: &Task, address: &str) -> Option<String> {
        let is_other = |other: &Task, _: &Bundle| other.id() != task.id();
        let found = self.task_at(task.namespace(), address, is_other);
        found.or_else(|| self.sandbox_at(task.namespace(), address, None))
    }

    /// Who else the shim at `address` serves beside a sandbox and its tasks, which end with it.
    pub(super) fn sharing_with(&self, sandbox: &Sandbox, address: &str) -> Option<String> {
        let is_other = |_: &Task, bundle: &Bundle| !bundle.is_of_sandbox(sandbox.id());
        let found = self.task_at(sandbox.namespace(), address, is_other);
        found.or_else(|| self.sandbox_at(sandbox.namespace(), address, Some(sandbox)))
    }

    fn task_at(
        &self,
        namespace: &Namespace,
        address: &str,
        is_meant: impl Fn(&Task, &Bundle) -> bool,
    ) -> Option<String> {
        let in_namespace = self.tasks().get(namespace).cloned().unwrap_or_default();
        let found = in_namespace.into_values().find(|task| {
            let bundle = Bundle::at(&self.state, namespace, task.id());
            task.place().is(address, &bundle) && is_meant(task, &bundle)
        });
        found.map(|task| format!("task {}", task.id()))
    }

    fn sandbox_at(
        &self,
        namespace: &Namespace,
        address: &str,
        but: Option<&Sandbox>,
    ) -> Option<String> {
        let in_namespace = self.sandboxes().get(namespace).cloned().unwrap_or_default();
        let but = but.map(Sandbox::id);
        let found = in_namespace.into_values().find(|sandbox| {
            let bundle = Bundle::of_sandbox(&self.state, namespace, sandbox.id());
            but != Some(sandbox.id()) && sandbox.place().is(address, &bundle)
        });
        found.map(|sandbox| format!("sandbox {}", sandbox.id()))
    }

    /// Another task whose init is the process `pid` too: that of a shim for virtual machines is all of a
    /// pod. Of one that the shim has not been asked about, the bundle says who init is.
    pub(super) fn sharing_init(&self, task: &Task, pid: u32) -> Option<Arc<Task>> {
        let in_namespace = self.tasks().get(task.namespace()).cloned().unwrap_or_default();
        let mut others = in_namespace.into_values().filter(|other| other.id() != task.id());
        others.find(|other| match other.last().pid {
            // The number of one that has ended may be anyone's.
            _ if other.told().is_some() => false,
            0 => Bundle::at(&self.state, other.namespace(), other.id()).init_pid() == Some(pid),
            known => known == pid,
        })
    }

    /// Takes a task out of the map, if it is the one in there.
    pub(super) fn forget(&self, task: &Task) {
        let mut tasks = self.tasks();
        if let Some(in_namespace) = tasks.get_mut(task.namespace()) {
            if in_namespace.get(task.id()).is_some_and(|found| std::ptr::eq(&**found, task)) {
                in_namespace.remove(task.id());
            }
            if in_namespace.is_empty() {
                tasks.remove(task.namespace());
            }
        }
    }

    /// Keeps for later daemons an exit that subscribers are about to be told of.
    pub(super) async fn record_exit(&self, bundle: &Bundle, exit: &TaskExit) {
        let (bundle, exit) = (bundle.clone(), exit.clone());
        keep(move || {
            // Without a bundle there is no later daemon that would tell.
            if bundle.path().exists() { bundle.record_exit(&exit) } else { Ok(()) }
        })
        .await;
    }

    /// Reads, once, what an earlier daemon kept of the exits that it told or was about to tell. Its
    /// shims may be heard before anybody has looked at their bundles.
    pub(super) async fn recall(&self, task: &Task, bundle: &Bundle) {
        let read = async {
            let (exit, marks) = (bundle.exit(), bundle.told());
            task.told_execs().recall(&marks);
            match exit {
                Some((exit, true)) => drop(task.tell(&exit)),
                Some((exit, false)) => task.record(Exit::from(&exit)),
                None => {}
            }
        };
        task.recalled().get_or_init(|| read).await;
    }

    /// Keeps for later daemons which exits of execs subscribers were told of.
    pub(super) async fn keep_told(&self, task: Arc<Task>, bundle: &Bundle) {
        let bundle = bundle.clone();
        keep(move || task.told_execs().keep(|marks| bundle.keep_told(marks))).await;
    }

    /// Keeps for later daemons that subscribers were told of the exit that was recorded.
    pub(super) async fn note_told(&self, bundle: &Bundle) {
        let bundle = bundle.clone();
        keep(move || bundle.note_told()).await;
    }
}

/// Writes for later daemons. A failure costs them an event too many or the exact status of an exit,
/// and must not cost subscribers the event.
async fn keep(write: impl FnOnce() -> Result<(), Error> + Send + 'static) {
    if let Err(error) = blocking(write).await {
        tracing::warn!(error = %sys::error::Chain(&error), "exit is not kept for later daemons");
    }
}

#[cfg(test)]
impl Context {
    /// A context without anything in it, whose paths do not exist.
    pub(super) fn for_tests() -> Self {
        Self {
            root: "/nonexistent/root".into(),
            state: "/nonexistent/state".into(),
            daemon: Daemon {
                address: PathBuf::new(),
                ttrpc_address: PathBuf::new(),
                version: "",
                debug: false,
                open_files_limit: None,
            },
            dialects: Dialects::default(),
            events: Exchange::default(),
            deletes: Told::default(),
            stop: CancellationToken::new(),
            tasks: Mutex::default(),
            sandboxes: Mutex::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::runtime::{bootstrap::Bootstrap, shim::Shim, task::Phase};

    #[tokio::test]
    async fn who_shares_a_shim() {
        let state = tempfile::tempdir().expect("a temporary directory");
        let context = Context { state: state.path().to_owned(), ..Context::for_tests() };
        let namespace: Namespace = "default".parse().expect("a namespace");
        let other: Namespace = "other".parse().expect("a namespace");
        let path = state.path().join("sock");
        let _listener = tokio::net::UnixListener::bind(&path).expect("bound");
        let address = format!("unix://{}", path.display());
        let at = |address: &str| Bootstrap {
            version: 3,
            address: address.to_owned(),
            protocol: "ttrpc".to_owned(),
        };
        let shim = Shim::connect(&namespace, "c2", &at(&address)).await.expect("connected");
        let task = |namespace: &Namespace, id: &str, phase| {
            let (commands, _) = mpsc::channel(1);
            Arc::new(Task::new(namespace.clone(), id.to_owned(), phase, commands))
        };
        let this = task(&namespace, "c1", Phase::Live(shim.clone()));
        let elsewhere = "unix:///elsewhere";
        let cases = [
            ("lives", &namespace, Phase::Live(shim.clone()), elsewhere, true),
            ("is looked for", &namespace, Phase::Adopting, &address, true),
            ("is being made", &namespace, Phase::Creating, &address, true),
            ("is looked for elsewhere", &namespace, Phase::Adopting, elsewhere, false),
            ("is being made, nobody knows where", &namespace, Phase::Creating, "", false),
            ("is deleted too", &namespace, Phase::Ending, &address, false),
            ("of another namespace", &other, Phase::Live(shim.clone()), &address, false),
        ];
        for (case, namespace, phase, written, want) in cases {
            let bundle = Bundle::at(&context.state, namespace, "c2");
            std::fs::create_dir_all(bundle.path()).expect("made");
            bundle.keep_bootstrap(&at(written)).expect("written");
            let in_namespace = HashMap::from([("c2".to_owned(), task(namespace, "c2", phase))]);
            *context.tasks() = HashMap::from([(namespace.clone(), in_namespace)]);
            let found = context.sharing(&this, &address);
            assert_eq!(found, want.then(|| "task c2".to_owned()), "{case}");
        }
    }
}
