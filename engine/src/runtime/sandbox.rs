//! Sandboxes: shims that are there for the containers of a pod, whether or not there are any.
//!
//! A sandbox has a shim, a bundle and an [`actor`], as a task has; see the [module above](super) for
//! the rules. The bundles are in a directory of their own, so a sandbox may have the name of a
//! container, as a pod's pause container has. A task joins a sandbox by connecting to its shim: no
//! shim is started for it, and none is shut down when it is deleted.
//!
//! Source: containerd, `plugins/sandbox/controller.go`, `core/runtime/v2/shim_manager.go`.

mod actor;

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use prost_types::{Any, Timestamp};
use proto::{
    containerd::{
        runtime::sandbox::v1::{self as api, StartSandboxResponse, WaitSandboxResponse},
        types::Mount,
    },
    ttrpc::CallError,
};
use tokio::sync::{mpsc, oneshot, watch};

use self::actor::{Actor, Command};
use super::{
    COMMANDS_MAX, Error, Runtime,
    actor::STATUS_UNKNOWN,
    binary::Binary,
    bootstrap::Bootstrap,
    bundle::{Bundle, SANDBOX_FOLDER},
    context::{Context, Sandboxes},
    found,
    held::{Lost, Way, way},
    shim::{Call, Shim},
    task::Place,
};
use crate::{error::Error as ApiError, identifier, namespace::Namespace};

/// How long a caller waits for a sandbox that is being taken over.
const ADOPT_WAIT: Duration = Duration::from_secs(10);

/// How long someone who waits for a sandbox whose shim has died waits for its cleaning.
const END_WAIT: Duration = Duration::from_secs(60);

/// How often a shim is asked to stop a sandbox whose connection breaks meanwhile.
const STOP_TRIES: usize = 3;

/// What a shim that stops a sandbox is given beyond the patience that the caller names.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// The protocol between this program and shims.
pub(super) const PROTOCOL: &str = "ttrpc";

/// Assigns the methods of the sandbox API to their requests.
macro_rules! calls {
    ($($request:ident $method:literal -> $answer:ident, $limit:expr;)*) => {$(
        impl Call for api::$request {
            type Answer = api::$answer;
            const SERVICE: Option<&'static str> = Some("containerd.runtime.sandbox.v1.Sandbox");
            const METHOD: &'static str = $method;
            const LIMIT: Option<Duration> = $limit;
        }
    )*};
}

const LOOK: Option<Duration> = Some(Duration::from_secs(5));
const MAKE: Option<Duration> = Some(Duration::from_secs(120));

calls! {
    CreateSandboxRequest "CreateSandbox" -> CreateSandboxResponse, MAKE;
    StartSandboxRequest "StartSandbox" -> StartSandboxResponse, MAKE;
    PlatformRequest "Platform" -> PlatformResponse, LOOK;
    StopSandboxRequest "StopSandbox" -> StopSandboxResponse, MAKE;
    WaitSandboxRequest "WaitSandbox" -> WaitSandboxResponse, None;
    SandboxStatusRequest "SandboxStatus" -> SandboxStatusResponse, LOOK;
    ShutdownSandboxRequest "ShutdownSandbox" -> ShutdownSandboxResponse, MAKE;
    SandboxMetricsRequest "SandboxMetrics" -> SandboxMetricsResponse, LOOK;
}

/// What a sandbox is made from.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "named as in the API")]
pub struct CreateSandbox {
    pub id: String,
    /// The OCI runtime specification, as JSON.
    pub spec: Option<Any>,
    /// The runtime's name, or its shim's path.
    pub runtime: String,
    /// The runtime's options, for the start of the shim.
    pub options: Option<Any>,
    pub rootfs: Vec<Mount>,
    /// What the client tells the sandbox itself.
    pub sandbox_options: Option<Any>,
    pub netns_path: String,
    pub annotations: BTreeMap<String, String>,
}

/// Where a sandbox is in its life.
#[derive(Clone, Debug)]
enum Phase {
    /// It is not there yet.
    Creating,
    /// An earlier daemon left it.
    Adopting,
    Live(Shim),
    /// There may be a shim, which cannot be reached now.
    Lost(Lost),
    /// What is left of it is being removed.
    Ending,
    Gone,
}

/// A sandbox that runs. See the [module](self).
pub struct Sandbox {
    namespace: Namespace,
    id: String,
    phase: watch::Sender<Phase>,
    commands: mpsc::Sender<Command>,
}

impl Sandbox {
    /// Makes a call to the shim.
    ///
    /// # Errors
    ///
    /// `NoSandbox`, `SandboxUnreachable`, and those of the shim.
    pub async fn call<C: Call>(&self, request: &C) -> Result<C::Answer, Error> {
        self.shim().await?.call(request).await
    }

    /// Starts the sandbox.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn start(&self) -> Result<StartSandboxResponse, Error> {
        self.call(&api::StartSandboxRequest { sandbox_id: self.id.clone() }).await
    }

    /// Ends what runs in the sandbox. One whose shim is gone has ended.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn stop(&self, timeout_secs: u32) -> Result<(), Error> {
        let request = api::StopSandboxRequest { sandbox_id: self.id.clone(), timeout_secs };
        let limit = STOP_LIMIT + Duration::from_secs(timeout_secs.into());
        let mut tries = 0;
        loop {
            let shim = match self.shim().await {
                Err(Error::NoSandbox { .. }) => return Ok(()),
                shim => shim?,
            };
            tries += 1;
            match shim.call_within(&request, Some(limit)).await {
                // The actor finds out what that means: its end, or soon another connection.
                Err(Error::NoAnswer { source: CallError::Closed, .. }) if tries < STOP_TRIES => {
                    shim.closed().await;
                }
                Err(error) if error.is_unknown_to_shim() => return Ok(()),
                answer => return answer.map(drop),
            }
        }
    }

    /// Waits for the end of the sandbox. That of its shim is its end too.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn wait(&self) -> Result<WaitSandboxResponse, Error> {
        let request = api::WaitSandboxRequest { sandbox_id: self.id.clone() };
        let mut phase = self.phase.subscribe();
        let mut was_there = false;
        loop {
            let now = phase.borrow_and_update().clone();
            let limit = match now {
                Phase::Live(shim) if !shim.is_closed() => {
                    was_there = true;
                    match shim.call(&request).await {
                        Err(Error::NoAnswer { source: CallError::Closed, .. }) => {
                            shim.closed().await;
                            continue;
                        }
                        answer => return answer,
                    }
                }
                // It may run, for as long as nobody knows.
                Phase::Live(_) | Phase::Adopting | Phase::Lost(_) => Duration::MAX,
                Phase::Ending if was_there => END_WAIT,
                Phase::Gone if was_there => Duration::ZERO,
                Phase::Creating | Phase::Ending | Phase::Gone => return Err(self.not_found()),
            };
            if tokio::time::timeout(limit, phase.changed()).await.is_err() {
                let exited_at = Some(Timestamp::from(std::time::SystemTime::now()));
                return Ok(WaitSandboxResponse { exit_status: STATUS_UNKNOWN, exited_at });
            }
        }
    }

    /// Ends the shim, and removes what is left of the sandbox. The work goes on when this is dropped.
    ///
    /// # Errors
    ///
    /// - `NoSandbox`: it was shut down before.
    /// - `Refused`: it still has containers.
    /// - `NoAnswer`, `SandboxUnreachable`: the shim does not answer; nothing is removed.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.shim().await?;
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Shutdown(reply)).await;
        sent.map_err(|_| self.not_found())?;
        answer.await.unwrap_or_else(|_| Err(self.not_found()))
    }

    /// Where tasks of the sandbox can be made, and the version of the API there; nothing for a
    /// sandbox that does not run.
    pub fn endpoint(&self) -> Option<(String, u32)> {
        let Phase::Live(shim) = &*self.phase.borrow() else { return None };
        Some((format!("{PROTOCOL}+{}", shim.address()), shim.version().into()))
    }

    /// The connection to the shim, once there is one.
    async fn shim(&self) -> Result<Shim, Error> {
        let way = way(&self.phase, |phase| match phase {
            Phase::Live(shim) => Way::There(shim.clone()),
            Phase::Adopting => Way::Soon,
            Phase::Lost(lost) => Way::Lost(lost.clone()),
            Phase::Creating | Phase::Ending | Phase::Gone => Way::None,
        });
        match tokio::time::timeout(ADOPT_WAIT, way).await {
            Ok(Ok(shim)) => Ok(shim),
            Ok(Err(None)) => Err(self.not_found()),
            Ok(Err(Some(lost))) => Err(self.unreachable(&lost)),
            // It may live: whoever were told that there is none would remove what it uses.
            Err(_) => Err(Error::SandboxUnreachable {
                id: self.id.clone(),
                address: None,
                since: ADOPT_WAIT,
            }),
        }
    }

    fn unreachable(&self, lost: &Lost) -> Error {
        let (id, address) = (self.id.clone(), lost.address.clone());
        Error::SandboxUnreachable { id, address, since: lost.duration() }
    }

    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Where the shim is that this sandbox needs.
    pub(super) fn place(&self) -> Place {
        match &*self.phase.borrow() {
            Phase::Live(shim) => Place::At(shim.address().to_owned()),
            Phase::Lost(Lost { address: Some(address), .. }) => Place::At(address.clone()),
            Phase::Creating | Phase::Adopting | Phase::Lost(_) => Place::InBundle,
            Phase::Ending | Phase::Gone => Place::Nowhere,
        }
    }

    fn not_found(&self) -> Error {
        Error::NoSandbox { id: self.id.clone() }
    }
}

/// The sandbox that a task is made in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The sandbox.
    pub id: String,
    /// Where its tasks are made, as in `ttrpc+unix:///run/s`; empty for the sandbox's shim.
    pub address: String,
    /// The version of the API there.
    pub version: u32,
}

impl Membership {
    /// How to reach who makes the tasks of the sandbox.
    pub(super) async fn bootstrap(
        &self,
        context: &Context,
        namespace: &Namespace,
    ) -> Result<Bootstrap, Error> {
        if self.address.is_empty() {
            let sandbox = context.sandbox(namespace, &self.id);
            let sandbox = sandbox.ok_or_else(|| Error::NoSandbox { id: self.id.clone() })?;
            return Ok(sandbox.shim().await?.bootstrap());
        }
        let Some((protocol, address)) = self.address.split_once('+') else {
            return Err(Error::Invalid(format!(
                "the sandbox's address {:?} has no protocol, as in ttrpc+unix",
                self.address
            )));
        };
        if protocol != PROTOCOL {
            return Err(Error::Unsupported(format!("unexpected protocol: {protocol:?}")));
        }
        let version = u8::try_from(self.version).unwrap_or(u8::MAX);
        Ok(Bootstrap { version, address: address.to_owned(), protocol: protocol.to_owned() })
    }
}

impl Context {
    pub(super) fn sandboxes(&self) -> MutexGuard<'_, Sandboxes> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sandbox(&self, namespace: &Namespace, id: &str) -> Option<Arc<Sandbox>> {
        self.sandboxes().get(namespace)?.get(id).cloned()
    }

    /// Takes a sandbox out of the map.
    fn forget_sandbox(&self, sandbox: &Sandbox) {
        let mut sandboxes = self.sandboxes();
        if let Some(in_namespace) = sandboxes.get_mut(&sandbox.namespace) {
            in_namespace.remove(&sandbox.id);
            if in_namespace.is_empty() {
                sandboxes.remove(&sandbox.namespace);
            }
        }
    }
}

impl Runtime {
    /// The sandbox `id`, if there is one that runs.
    pub fn sandbox(&self, namespace: &Namespace, id: &str) -> Option<Arc<Sandbox>> {
        self.context.sandbox(namespace, id)
    }

    /// Makes a sandbox: starts its shim, and has it make what it needs.
    ///
    /// If this is dropped before it is done, the sandbox stays, and can be shut down.
    ///
    /// # Errors
    ///
    /// - `SandboxExists`.
    /// - `Invalid`, `NotInstalled`: there is no such runtime.
    /// - The others say what cannot be done. Nothing is left then.
    pub async fn create_sandbox(
        &self,
        namespace: &Namespace,
        mut request: CreateSandbox,
    ) -> Result<(), Error> {
        identifier::check(&request.id).map_err(|error| {
            Error::Invalid(format!("invalid sandbox id {}: {error}", request.id))
        })?;
        let binary = self.resolve(&request.runtime).await?;
        request.options = self.complete(&request.runtime, request.options);
        let id = request.id.clone();
        let binary = Binary::new(Some(&binary));
        let actor = self.claim_sandbox(namespace, &id, Phase::Creating, binary);
        let actor = actor.ok_or(Error::SandboxExists { id })?;
        let (reply, answer) = oneshot::channel();
        self.actors.spawn(actor.create(request, reply));
        answer.await.unwrap_or(Err(Error::Stopping))
    }

    /// Enters a sandbox, unless there is one of the name.
    fn claim_sandbox(
        &self,
        namespace: &Namespace,
        id: &str,
        phase: Phase,
        binary: Binary,
    ) -> Option<Actor> {
        let mut sandboxes = self.context.sandboxes();
        let in_namespace = sandboxes.entry(namespace.clone()).or_default();
        if in_namespace.contains_key(id) {
            return None;
        }
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let sandbox = Arc::new(Sandbox {
            namespace: namespace.clone(),
            id: id.to_owned(),
            phase: watch::Sender::new(phase),
            commands: sender,
        });
        in_namespace.insert(id.to_owned(), Arc::clone(&sandbox));
        let bundle = Bundle::of_sandbox(&self.context.state, namespace, id);
        let context = Arc::clone(&self.context);
        Some(Actor { sandbox, context, commands, bundle, binary, left: None })
    }

    /// Begins to take over the sandboxes that an earlier daemon left.
    pub(super) fn adopt_sandboxes(&self) -> Result<(), ApiError> {
        let folder = self.context.state.join(SANDBOX_FOLDER);
        fs::create_dir_all(&folder).map_err(ApiError::file("create", &folder))?;
        for (namespace, id) in found(&folder)? {
            let actor = self.claim_sandbox(&namespace, &id, Phase::Adopting, Binary::new(None));
            if let Some(actor) = actor {
                self.actors.spawn(actor.adopt());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn where_tasks_are_made() {
        let context = Context::for_tests();
        let namespace: Namespace = "default".parse().expect("a namespace");
        let bootstrap = |version, address: &str| {
            Some(Bootstrap { version, address: address.to_owned(), protocol: PROTOCOL.to_owned() })
        };
        let cases = [
            ("address", "ttrpc+unix:///s/a", 3, bootstrap(3, "unix:///s/a")),
            ("no version", "ttrpc+unix:///s/a", 0, bootstrap(0, "unix:///s/a")),
            ("no protocol", "unix:///s/a", 3, None),
            ("another protocol", "grpc+vsock://3:1", 3, None),
            ("a sandbox that is not there", "", 3, None),
        ];
        for (case, address, version, want) in cases {
            let membership =
                Membership { id: "s1".to_owned(), address: address.to_owned(), version };
            assert_eq!(membership.bootstrap(&context, &namespace).await.ok(), want, "{case}");
        }
    }
}
