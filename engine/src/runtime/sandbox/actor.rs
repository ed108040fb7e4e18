//! The one owner of a sandbox's life, as [`crate::runtime`]'s actors are of tasks'.
//!
//! | what happens        | what the actor does                                             |
//! |---------------------|-----------------------------------------------------------------|
//! | create fails        | ends the shim, removes the bundle                               |
//! | shutdown            | asks the shim, waits for its end, removes the bundle            |
//! | shim dies           | runs `shim delete`, removes the bundle                          |
//! | connection is lost  | connects again; if nobody listens, the shim is killed. Who has  |
//! |                     | asked for a shutdown is told which of both it was               |
//! | no way to a shim    | tries again: descriptors may be short. A shutdown is refused    |
//! |                     | meanwhile: what the shim has of containers is not known         |
//! | something cannot be | tries again until nothing is left; the name stays taken         |
//! | removed for want of |                                                                 |
//! | descriptors or room |                                                                 |
//! | daemon stops        | leaves everything as it is                                      |
//!
//! The tasks of a sandbox whose shim dies have actors of their own, which clean up after them.

use std::{pin::pin, sync::Arc, time::Duration};

use prost_types::Any;
use proto::{
    containerd::{runtime::sandbox::v1 as api, task::v3},
    ttrpc::{CallError, Code},
};
use tokio::sync::{mpsc, oneshot};

use super::{CreateSandbox, Phase, Sandbox};
use crate::runtime::{
    Error,
    actor::{EXIT_LIMIT, Left, blocking},
    binary::Binary,
    bootstrap::Bootstrap,
    bundle::{Bundle, SANDBOX_FOLDER},
    context::Context,
    held::{
        CUTS_MAX, Held, Identity, LOST_WAIT, Lost, REACH_PAUSE, Reached, end_process, reach_again,
        remove_socket,
    },
    launch::Launch,
    log::ShimLog,
    process::Process,
    shim::{Call, Shim},
};

/// How long a shim that is about to be killed may take for an answer.
const FAREWELL_LIMIT: Duration = Duration::from_secs(5);

/// Where the answer to a shutdown goes.
type Reply = oneshot::Sender<Result<(), Error>>;

/// What an actor is asked to do.
pub(super) enum Command {
    /// Shut the sandbox down.
    Shutdown(Reply),
}

/// See the [module](self).
pub(super) struct Actor {
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) context: Arc<Context>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) bundle: Bundle,
    pub(super) binary: Binary,
    pub(super) left: Option<Left>,
}

impl Actor {
    /// Makes the sandbox, answers, and serves it to its end.
    pub(super) async fn create(
        mut self,
        request: CreateSandbox,
        reply: oneshot::Sender<Result<(), Error>>,
    ) {
        match Box::pin(self.make(request)).await {
            Ok(held) => {
                self.enter(Phase::Live(held.shim.clone()));
                // A caller that left finds the sandbox when it looks again.
                let _ = reply.send(Ok(()));
                self.run(held).await;
            }
            Err(error) => {
                // Nobody waits for what is tried again.
                if self.left.is_some() {
                    let _ = reply.send(Err(error));
                    self.leave().await;
                } else {
                    self.leave().await;
                    let _ = reply.send(Err(error));
                }
            }
        }
    }

    async fn make(&mut self, request: CreateSandbox) -> Result<Held, Error> {
        let folder = self.context.root.join(SANDBOX_FOLDER);
        let work = folder.join(self.sandbox.namespace.as_str()).join(&self.sandbox.id);
        let binary = self.binary.of(&self.bundle)?.to_owned();
        let (bundle, spec) = (self.bundle.clone(), request.spec);
        // The map says that there is none, so a bundle can only be a left-over.
        if bundle.path().exists() {
            self.clean_up().await;
        }
        blocking(move || bundle.make(&work, spec.as_ref(), &binary)).await?;
        let log = ShimLog::open(&self.bundle, &self.sandbox.id);
        let started = self.start_shim(request.options.as_ref()).await;
        let shim = match started {
            Ok(at) => self.reach(&at).await.map_err(|error| (Some(at), error)),
            Err(error) => Err((None, error)),
        };
        let shim = match shim {
            Ok(shim) => shim,
            Err((at, error)) => {
                self.end_unstarted(at).await;
                return Err(error);
            }
        };
        let identity = Identity::ask(&shim, &self.sandbox.id).await;
        let held = Held { shim, identity, _log: log };
        let call = api::CreateSandboxRequest {
            sandbox_id: self.sandbox.id.clone(),
            bundle_path: self.bundle.path().display().to_string(),
            rootfs: request.rootfs,
            options: request.sandbox_options,
            netns_path: request.netns_path,
            annotations: request.annotations,
        };
        match held.shim.call(&call).await {
            Ok(_) => Ok(held),
            Err(error) => {
                self.end_unused(&held).await;
                Err(error)
            }
        }
    }

    async fn start(&self) -> Result<Shim, Error> {
        let at = self.start_shim(None).await?;
        self.reach(&at).await
    }

    /// Keeps where a shim is that was started, and connects to it.
    async fn reach(&self, at: &Bootstrap) -> Result<Shim, Error> {
        self.bundle.keep_bootstrap(at)?;
        Shim::connect(&self.sandbox.namespace, &self.sandbox.id, at).await
    }

    /// Ends the shim that may run at `at` although its start did not succeed.
    async fn end_unstarted(&mut self, at: Option<Bootstrap>) {
        let Some(at) = at else { return self.remove_bundle().await };
        match Shim::connect(&self.sandbox.namespace, &self.sandbox.id, &at).await {
            Ok(shim) => {
                let identity = Identity::ask(&shim, &self.sandbox.id).await;
                let log = ShimLog::open(&self.bundle, &self.sandbox.id);
                self.end_unused(&Held { shim, identity, _log: log }).await;
            }
            Err(error) if error.is_shortage() => self.left = Some(Left::Shim(Some(at))),
            Err(_) => self.clean_up().await,
        }
    }

    /// Takes over the sandbox that an earlier daemon left, and serves it to its end.
    pub(super) async fn adopt(mut self) {
        if let Some(held) = Box::pin(self.find()).await {
            self.run(held).await;
        }
    }

    async fn find(&mut self) -> Option<Held> {
        let log = ShimLog::open(&self.bundle, &self.sandbox.id);
        let mut lost = None;
        let shim = loop {
            let shim = match self.bundle.find_bootstrap() {
                Ok(Some(bootstrap)) => {
                    Shim::connect(&self.sandbox.namespace, &self.sandbox.id, &bootstrap).await
                }
                // The daemon went away before it knew the address. To start a shim that runs gives
                // its address, and one that does not run is soon shut down again.
                Ok(None) => self.start().await,
                Err(error) => Err(error),
            };
            match shim {
                Ok(shim) => break shim,
                Err(error) if error.is_unreachable_for_now() || error.is_shortage() => {
                    self.report("reach the sandbox's shim", &error);
                }
                Err(_) => {
                    self.bury(None, None).await;
                    return None;
                }
            }
            let lost = lost.get_or_insert_with(|| Lost::now(None)).clone();
            self.enter(Phase::Lost(lost));
            if !self.pause_lost().await {
                return None;
            }
        };
        self.enter(Phase::Adopting);
        let identity = Identity::ask(&shim, &self.sandbox.id).await;
        let held = Held { shim, identity, _log: log };
        let id = self.sandbox.id.clone();
        let request = api::SandboxStatusRequest { sandbox_id: id, verbose: false };
        match held.shim.call(&request).await {
            // The daemon went away before the sandbox was made, so nobody was told of one.
            Err(error) if error.is_unknown_to_shim() => {
                tracing::warn!(id = self.sandbox.id, "shim without a sandbox is shut down");
                self.end_unused(&held).await;
                self.leave().await;
                return None;
            }
            // If the connection has ended, what that means is found out as of any other that ends.
            Err(error) => self.report("ask for the sandbox, and keep its shim", &error),
            Ok(_) => {}
        }
        self.enter(Phase::Live(held.shim.clone()));
        Some(held)
    }

    /// Serves the sandbox until it is shut down, its shim dies, or the daemon stops.
    async fn run(mut self, mut held: Held) {
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown(reply)) => {
                        let result = Box::pin(self.shutdown(&held)).await;
                        // That is the shim's end, or it has not heard it.
                        if let Err(Error::NoAnswer { source: CallError::Closed, .. }) = &result {
                            if !Box::pin(self.lose(&mut held, Some(reply))).await {
                                return;
                            }
                            continue;
                        }
                        let is_over = result.is_ok();
                        if self.left.is_some() || !is_over {
                            let _ = reply.send(result);
                            if is_over {
                                return self.leave().await;
                            }
                        } else {
                            self.leave().await;
                            let _ = reply.send(result);
                            return;
                        }
                    }
                    None => return,
                },
                () = held.ended() => {
                    if !Box::pin(self.lose(&mut held, None)).await {
                        return;
                    }
                }
                () = held.short() => {
                    held.identity = Identity::ask(&held.shim, &self.sandbox.id).await;
                }
                () = tokio::time::sleep(REACH_PAUSE), if matches!(held.identity, Identity::Slow) => {
                    held.identity = Identity::ask(&held.shim, &self.sandbox.id).await;
                }
                () = self.context.stop.cancelled() => return,
            }
        }
    }

    async fn shutdown(&mut self, held: &Held) -> Result<(), Error> {
        let request = api::ShutdownSandboxRequest { sandbox_id: self.sandbox.id.clone() };
        match held.shim.call(&request).await {
            Ok(_) => {}
            Err(error) if error.is_unknown_to_shim() => {}
            Err(error) => return Err(error),
        }
        self.enter(Phase::Ending);
        self.await_exit(held).await;
        self.remove_rest(Some(held.shim.address().to_owned())).await;
        Ok(())
    }

    /// Decides what the end of a connection or of a process means, and answers a shutdown that it came in
    /// the middle of; `false` when there is nothing more to serve.
    async fn lose(&mut self, held: &mut Held, mut waiting: Option<Reply>) -> bool {
        // Not by the bundle's: to read it takes a descriptor.
        let at = held.shim.bootstrap();
        for _ in 0..CUTS_MAX {
            let reached;
            (reached, waiting) = self.reach_again(&at, held.process(), waiting).await;
            match reached {
                Reached::Shim(shim) => held.shim = shim,
                Reached::Nobody => {
                    self.bury(held.process(), waiting).await;
                    return false;
                }
                Reached::Stop => return false,
            }
            if held.process().is_none() {
                held.identity = Identity::ask(&held.shim, &self.sandbox.id).await;
            }
            if !matches!(held.identity, Identity::Cut) {
                break;
            }
        }
        if matches!(held.identity, Identity::Unknown | Identity::Cut) {
            // One that does not say who it is, and drops connections, is none.
            self.bury(None, waiting).await;
            return false;
        }
        if let Some(reply) = waiting {
            // It is not known whether the shim has heard it. It may be repeated.
            let (id, method) = (self.sandbox.id.clone(), api::ShutdownSandboxRequest::METHOD);
            let _ = reply.send(Err(Error::NoAnswer { id, method, source: CallError::Closed }));
        }
        self.enter(Phase::Live(held.shim.clone()));
        true
    }

    /// Connects again to a shim that is lost, and answers meanwhile who asks for its end.
    async fn reach_again(
        &mut self,
        at: &Bootstrap,
        process: Option<&Process>,
        mut waiting: Option<Reply>,
    ) -> (Reached, Option<Reply>) {
        self.enter(Phase::Lost(Lost::now(Some(&at.address))));
        let (sandbox, context) = (Arc::clone(&self.sandbox), Arc::clone(&self.context));
        let connect = || Shim::connect(&sandbox.namespace, &sandbox.id, at);
        let mut reaching = pin!(reach_again(process, &context.stop, connect, || {}));
        let mut moment = pin!(tokio::time::sleep(LOST_WAIT));
        let mut is_lost = false;
        loop {
            tokio::select! {
                reached = &mut reaching => return (reached, waiting),
                () = &mut moment, if !is_lost => {
                    is_lost = true;
                    if let Some(reply) = waiting.take() {
                        self.refuse(Command::Shutdown(reply));
                    }
                }
                Some(command) = self.commands.recv(), if is_lost => self.refuse(command),
            }
        }
    }

    /// Waits before something is tried again that is needed to reach the shim, and answers meanwhile
    /// who asks for its end. `false` when the daemon stops.
    async fn pause_lost(&mut self) -> bool {
        let context = Arc::clone(&self.context);
        let mut pause = pin!(tokio::time::sleep(REACH_PAUSE));
        loop {
            tokio::select! {
                () = &mut pause => return true,
                () = context.stop.cancelled() => return false,
                Some(command) = self.commands.recv() => self.refuse(command),
            }
        }
    }

    fn refuse(&self, command: Command) {
        let Command::Shutdown(reply) = command;
        let error = match &*self.sandbox.phase.borrow() {
            Phase::Lost(lost) => self.sandbox.unreachable(lost),
            _ => self.sandbox.not_found(),
        };
        let _ = reply.send(Err(error));
    }

    /// Cleans up after a shim that died, and answers who asked for its end.
    async fn bury(&mut self, process: Option<&Process>, mut waiting: Option<Reply>) {
        let (namespace, id) = (&self.sandbox.namespace, &self.sandbox.id);
        tracing::warn!(%namespace, id, "shim of a sandbox died; cleaning up");
        self.enter(Phase::Ending);
        let is_shared = |address: &str| self.is_shared(address);
        end_process(process, &self.bundle, &self.binary, is_shared).await;
        self.clean_up().await;
        // Nobody waits for what is tried again.
        if self.left.is_some()
            && let Some(reply) = waiting.take()
        {
            let _ = reply.send(Ok(()));
        }
        self.leave().await;
        if let Some(reply) = waiting {
            let _ = reply.send(Ok(()));
        }
    }

    /// Whether the shim at `address` serves others than the sandbox and its tasks too.
    fn is_shared(&self, address: &str) -> bool {
        self.context.sharing_with(&self.sandbox, address).is_some()
    }

    /// Ends a shim whose sandbox nobody was told of.
    async fn end_unused(&mut self, held: &Held) {
        let request = api::ShutdownSandboxRequest { sandbox_id: self.sandbox.id.clone() };
        let answer = held.shim.call_within(&request, Some(FAREWELL_LIMIT)).await;
        let knows_none = matches!(&answer, Err(Error::Refused { status, .. })
            if [Code::NotFound as i32, Code::Unimplemented as i32].contains(&status.code));
        if knows_none {
            let request = v3::ShutdownRequest { id: self.sandbox.id.clone(), now: false };
            let _ = held.shim.call(&request).await;
        }
        self.await_exit(held).await;
        self.clean_up().await;
    }

    /// Waits for the end of a shim that was shut down, unless others need it.
    async fn await_exit(&self, held: &Held) {
        let address = held.shim.address();
        if self.is_shared(address) {
            return;
        }
        if tokio::time::timeout(EXIT_LIMIT, held.gone()).await.is_err() && !self.is_shared(address)
        {
            tracing::warn!(id = self.sandbox.id, "shim still runs after it was shut down");
            if let Some(process) = held.process() {
                process.kill();
            }
        }
    }

    async fn clean_up(&mut self) {
        let cleaned = match self.bundle.find_binary() {
            Ok(None) => Ok(()),
            Ok(Some(_)) => self.delete_left().await,
            Err(error) => Err(error),
        };
        if let Err(error) = cleaned {
            self.report("clean up after the sandbox's shim", &error);
            if error.is_shortage() {
                self.left = Some(Left::Shim(self.bundle.bootstrap()));
                return;
            }
        }
        // A shim that was killed leaves its socket, and containerd's binary does not look there.
        self.remove_rest(None).await;
    }

    /// Removes the socket of a shim that has ended, and then the bundle, which leads to it.
    async fn remove_rest(&mut self, address: Option<String>) {
        let is_shared = |address: &str| self.is_shared(address);
        let (is_gone, address) = remove_socket(address, &self.bundle, is_shared).await;
        if is_gone {
            self.remove_bundle().await;
        }
        // With the socket: what there is too little of may be why others seem to need it.
        if !is_gone || matches!(self.left, Some(Left::Bundle)) {
            self.left = Some(Left::Rest(address));
        }
    }

    async fn remove_bundle(&mut self) {
        let bundle = self.bundle.clone();
        if let Err(error) = blocking(move || bundle.remove()).await {
            self.report("remove the sandbox's bundle", &error);
            if error.is_shortage() {
                self.left = Some(Left::Bundle);
            }
        }
    }

    async fn start_shim(&self, options: Option<&Any>) -> Result<Bootstrap, Error> {
        self.launch()?.start(options).await
    }

    async fn delete_left(&self) -> Result<(), Error> {
        self.launch()?.delete().await.map(drop)
    }

    fn launch(&self) -> Result<Launch<'_>, Error> {
        Ok(Launch {
            daemon: &self.context.daemon,
            dialects: &self.context.dialects,
            binary: self.binary.of(&self.bundle)?,
            namespace: &self.sandbox.namespace,
            id: &self.sandbox.id,
            bundle: &self.bundle,
        })
    }

    fn enter(&self, phase: Phase) {
        self.sandbox.phase.send_replace(phase);
    }

    /// Ends the sandbox, when nothing is left of it: whoever looks for it from now on finds none.
    async fn leave(&mut self) {
        // As for a task, nobody has to wait for what is tried again.
        self.commands.close();
        while self.commands.try_recv().is_ok() {}
        if self.left.is_some() {
            self.enter(Phase::Ending);
        }
        while let Some(left) = self.left.take() {
            tokio::select! {
                () = tokio::time::sleep(REACH_PAUSE) => {}
                // The next daemon finds it.
                () = self.context.stop.cancelled() => break,
            }
            match left {
                Left::Shim(Some(at)) => Box::pin(self.end_unstarted(Some(at))).await,
                Left::Shim(None) => self.clean_up().await,
                Left::Rest(address) => self.remove_rest(address).await,
                Left::Bundle => self.remove_bundle().await,
            }
        }
        self.context.forget_sandbox(&self.sandbox);
        self.enter(Phase::Gone);
    }

    fn report(&self, attempt: &str, error: &Error) {
        let (namespace, id) = (&self.sandbox.namespace, &self.sandbox.id);
        tracing::error!(%namespace, id, error = %sys::error::Chain(error), "could not {attempt}");
    }
}
