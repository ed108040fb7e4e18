//! The one owner of a task's life.
//!
//! Each task has an actor, from the first file of its bundle to the removal of the last. It alone
//! starts the shim, deletes, notices the shim's death, and cleans up after it, so these cannot race:
//! they are the turns of one loop. A caller that leaves does not stop it half-way.
//!
//! | what happens        | what the actor does                                                   |
//! |---------------------|-----------------------------------------------------------------------|
//! | start is cut short  | finds the shim that may run, shuts it down, removes the bundle        |
//! | create fails        | shuts the shim down, removes the bundle                               |
//! | the creator left    | deletes the task again                                                |
//! | delete              | asks the shim; then shuts it down and removes the bundle              |
//! | shim dies           | runs `shim delete`, removes the bundle, tells of exit and delete once |
//! | `shim delete` fails | tries again; then tells of the exit, and leaves the bundle for the    |
//! |                     | next create or the next daemon, which try again                       |
//! | connection is lost  | connects again; if nobody listens, the shim is killed and counts as    |
//! |                     | dead                                                                  |
//! | shim is suspect     | asks it whether it is there; if not, it is in quarantine, and asked   |
//! |                     | again; nothing is killed on a suspicion                               |
//! | SIGKILL for init of | kills the shim, which then counts as dead; see [`reaching`]           |
//! | one in quarantine   |                                                                       |
//! | no way to a shim    | tries again: descriptors or room for it may be short; see there       |
//! | daemon stops        | leaves everything as it is                                            |
//!
//! A delete is answered when the shim has exited: a shim's socket is named after the container, and a
//! new task must not find the old shim there. What cannot be removed for want of descriptors,
//! processes or room is removed later, by the actor, which stays until then.

mod cleaning;
mod reaching;

use std::{
    fs::DirBuilder,
    io::{self, BufReader},
    os::unix::fs::DirBuilderExt,
    path::Path,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use prost_types::Any;
use proto::{
    any::pack,
    containerd::{
        events::{TaskDelete, TaskExit},
        task::v3,
        v1::types::Status,
    },
    ttrpc::CallError,
};
use snapshotter::Mount;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

pub(super) use self::cleaning::{EXIT_LIMIT, Left};
use super::{
    Checkpoint, Create, Error,
    binary::Binary,
    bootstrap::Bootstrap,
    bundle::Bundle,
    context::Context,
    health::probe,
    held::{Held, Identity, Lost, Reached},
    launch::Launch,
    log::ShimLog,
    process::Process,
    sandbox::Membership,
    shim::{Call, Shim},
    task::{Exit, Phase, Task},
    told::Mark,
};
use crate::{
    diff::{self, Limits},
    namespace::Namespace,
};

/// How long a shim may take to answer when the daemon finds it again.
const ADOPT_LIMIT: Duration = Duration::from_secs(5);

/// How often a shim is asked whether it has created the task now that it was asked for when the
/// daemon went away, and the pause between.
const CREATE_LOOKS: usize = 20;
const CREATE_PAUSE: Duration = Duration::from_millis(50);

/// How long a shim is given to tell of an exit that happened while no daemon ran. Shims try again
/// at most five seconds apart.
const TELL_GRACE: Duration = Duration::from_secs(6);

/// How much of the archive of a checkpoint is read at once, in bytes.
const ARCHIVE_BUFFER_LEN: usize = 256 << 10;

/// The status of a process whose shim died and could not be cleaned up after, as containerd's.
pub(super) const STATUS_UNKNOWN: u32 = 255;

/// The first version of shims' API that has sandboxes.
const SANDBOX_VERSION_MIN: u8 = 3;

/// Where the answer to a delete goes.
type DeleteReply = oneshot::Sender<Result<Exit, Error>>;

/// What an actor is asked to do.
pub(super) enum Command {
    /// Delete the task.
    Delete(DeleteReply),
    /// Kill the shim, which does not answer.
    EndShim(oneshot::Sender<Result<(), Error>>),
}

/// See the [module](self).
pub(super) struct Actor {
    pub(super) task: Arc<Task>,
    pub(super) context: Arc<Context>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) bundle: Bundle,
    /// Of a task that was found, it is looked for after the shim.
    pub(super) binary: Binary,
    /// Whether a create may have been cut short, so that not even the runtime knows what it made.
    pub(super) half_made: bool,
    pub(super) left: Option<Left>,
}

/// Why there is no shim to talk to, and where one may listen all the same.
struct NotStarted {
    at: Option<Bootstrap>,
    error: Error,
}

impl NotStarted {
    fn nowhere(error: Error) -> Self {
        Self { at: None, error }
    }
}

/// How a turn of the actor's loop ends.
enum Turn {
    Stay,
    Leave,
}

impl Actor {
    /// Makes the task, answers, and serves it to its end.
    pub(super) async fn create(
        mut self,
        request: Create,
        reply: oneshot::Sender<Result<u32, Error>>,
    ) {
        match Box::pin(self.make(request)).await {
            Ok((held, pid)) => {
                self.task.enter(Phase::Live(held.shim.clone()));
                if reply.send(Ok(pid)).is_ok() {
                    self.run(held).await;
                } else {
                    tracing::info!(id = self.task.id(), "creator left; the task is deleted");
                    Box::pin(self.abandon(&held)).await;
                    self.leave(None).await;
                }
            }
            Err(error) => {
                // Nobody waits for what is tried again.
                if self.left.is_some() {
                    self.task.enter(Phase::Ending);
                    let _ = reply.send(Err(error));
                    self.leave(None).await;
                } else {
                    self.leave(None).await;
                    let _ = reply.send(Err(error));
                }
            }
        }
    }

    async fn make(&mut self, request: Create) -> Result<(Held, u32), Error> {
        let work = self.context.work(&self.task);
        let (bundle, binary, spec) = (self.bundle.clone(), self.binary()?.to_owned(), request.spec);
        // The map of tasks says that there is none, so a bundle can only be a left-over.
        if bundle.path().exists() {
            self.clear_left_over().await?;
        }
        blocking(move || bundle.make(&work, spec.as_ref(), &binary)).await?;
        let log = ShimLog::open(&self.bundle, self.task.id());
        let checkpoint = match self.checkpoint(request.checkpoint).await {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                self.remove_bundle().await;
                return Err(error);
            }
        };
        let started = match &request.sandbox {
            Some(sandbox) => self.join(sandbox, request.options.as_ref()).await,
            None => self.start(request.options.as_ref()).await,
        };
        let shim = match started {
            Ok(shim) => shim,
            Err(NotStarted { at, error }) => {
                // A binary that was killed may leave a shim, and so does one whose shim could not be
                // connected to.
                if error.leaves_no_shim() {
                    self.remove_bundle().await;
                } else {
                    self.end_unstarted(at).await;
                }
                return Err(error);
            }
        };
        let call = v3::CreateTaskRequest {
            id: self.task.id().to_owned(),
            bundle: self.bundle.path().display().to_string(),
            rootfs: request.rootfs,
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            checkpoint,
            parent_checkpoint: String::new(),
            options: request.options,
        };
        let identified = Identity::ask_by(&self.bundle, &shim, self.task.id());
        let (identity, created) = tokio::join!(identified, shim.call(&call));
        let held = Held { shim, identity, _log: log };
        match created {
            Ok(answer) => {
                self.task.note_init(answer.pid);
                self.task.note(v3::StateResponse {
                    id: call.id,
                    pid: answer.pid,
                    status: Status::Created.into(),
                    bundle: call.bundle,
                    stdin: call.stdin,
                    stdout: call.stdout,
                    stderr: call.stderr,
                    terminal: call.terminal,
                    ..Default::default()
                });
                Ok((held, answer.pid))
            }
            Err(error) => {
                self.half_made = matches!(error, Error::NoAnswer { .. });
                self.abandon(&held).await;
                Err(error)
            }
        }
    }

    /// The directory that the task is restored from, or an empty text. An archive is unpacked into
    /// the working directory, which goes with the bundle.
    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<String, Error> {
        let archive = match checkpoint {
            Checkpoint::None => return Ok(String::new()),
            Checkpoint::Folder(path) => return Ok(path),
            Checkpoint::Archive(archive) => archive,
        };
        let folder = self.context.work(&self.task).join("checkpoint");
        let path = folder.display().to_string();
        blocking(move || {
            let made = DirBuilder::new().mode(0o700).create(&folder);
            made.map_err(Error::bundle("make", &folder))?;
            let target = [Mount::bind(folder.display().to_string(), false)];
            let reader = BufReader::with_capacity(ARCHIVE_BUFFER_LEN, &*archive);
            diff::apply(reader, &target, &Limits::default()).map_err(|error| {
                Error::bundle("unpack checkpoint", folder)(io::Error::other(error))
            })
        })
        .await?;
        Ok(path)
    }

    async fn start(&self, options: Option<&Any>) -> Result<Shim, NotStarted> {
        let at = self.start_shim(options).await.map_err(NotStarted::nowhere)?;
        let shim = async {
            self.bundle.keep_bootstrap(&at)?;
            Shim::connect(self.task.namespace(), self.task.id(), &at).await
        };
        shim.await.map_err(|error| NotStarted { at: Some(at), error })
    }

    /// Finds the shim of the sandbox that the task belongs to. One that is older than the sandbox API
    /// is found by the start of the runtime's own, as any group of containers is.
    async fn join(&self, sandbox: &Membership, options: Option<&Any>) -> Result<Shim, NotStarted> {
        let found = sandbox.bootstrap(&self.context, self.task.namespace()).await;
        let at = found.map_err(NotStarted::nowhere)?;
        if at.version < SANDBOX_VERSION_MIN {
            return self.start(options).await;
        }
        let shim = async {
            // First, so that nobody ever takes the sandbox's shim for the task's own.
            self.bundle.keep_sandbox(&sandbox.id)?;
            self.bundle.keep_bootstrap(&at)?;
            Shim::connect(self.task.namespace(), self.task.id(), &at).await
        };
        shim.await.map_err(|error| NotStarted { at: None, error })
    }

    /// Takes over the task that an earlier daemon left, and serves it to its end.
    pub(super) async fn adopt(mut self, places: Arc<Semaphore>) {
        let place = places.acquire_owned().await.ok();
        let held = Box::pin(self.find(place)).await;
        if let Some(held) = held {
            // Clients wait for other tasks, and nobody for this one. When the binary is needed there may
            // be too little of something to look for it; if there is now, it is looked for then.
            tokio::task::yield_now().await;
            let _ = self.binary();
            self.run(held).await;
        }
    }

    /// Where the shim is. When the bundle does not say, what there is of the task is cleared away.
    async fn find_bootstrap(
        &mut self,
        place: &mut Option<OwnedSemaphorePermit>,
    ) -> Option<Bootstrap> {
        loop {
            match self.bundle.find_bootstrap() {
                Ok(Some(found)) => return Some(found),
                Ok(None) => {
                    self.clear_unrecorded().await;
                    return None;
                }
                Err(error) => {
                    self.report("look for the shim", &error);
                    // Others need not wait for this one.
                    if place.take().is_some() {
                        self.task.enter(Phase::Lost(Lost::now(None)));
                    }
                }
            }
            if !self.pause_lost().await {
                return None;
            }
        }
    }

    async fn find(&mut self, mut place: Option<OwnedSemaphorePermit>) -> Option<Held> {
        self.context.recall(&self.task, &self.bundle).await;
        let bootstrap = self.find_bootstrap(&mut place).await?;
        let log = ShimLog::open(&self.bundle, self.task.id());
        let mut identity = Identity::Unknown;
        let connected = Shim::connect(self.task.namespace(), self.task.id(), &bootstrap).await;
        let (reached, reply) = match connected {
            Ok(shim) => (Reached::Shim(shim), None),
            Err(error) if error.is_unreachable_for_now() => {
                // Others need not wait for this one.
                place = None;
                self.report("reach the shim", &error);
                self.reach(&bootstrap, &mut identity, None).await
            }
            Err(_) => (Reached::Nobody, None),
        };
        let shim = match reached {
            Reached::Shim(shim) => shim,
            Reached::Nobody => {
                self.end(identity.process(), reply).await;
                return None;
            }
            Reached::Stop => return None,
        };
        self.task.enter(Phase::Adopting);
        // Both at once, so that the shim has to wake up once.
        let identified = Identity::ask_by(&self.bundle, &shim, self.task.id());
        let asked = self.task.ask();
        let (answer, identity) = tokio::join!(self.ask_found(&shim), identified);
        self.task.judge(&answer);
        match answer {
            Ok(state) => {
                // The number of one that has ended may be anyone's.
                if state.status != i32::from(Status::Stopped) {
                    self.task.note_init(state.pid);
                }
                self.task.note_answer(asked, state);
            }
            Err(error) if error.is_unknown_to_shim() => {
                // The daemon went away between the start of the shim and the end of the create,
                // so nobody was told of a task.
                tracing::warn!(id = self.task.id(), "shim without a task is shut down");
                self.half_made = true;
                self.end_unused(&Held { shim, identity, _log: log }).await;
                self.leave(None).await;
                return None;
            }
            // If the connection has ended, what that means is found out as of any other that ends.
            Err(error) => {
                let pid = self.bundle.init_pid().unwrap_or_default();
                // With what an earlier daemon kept of its end.
                self.task.note(v3::StateResponse { pid, ..self.task.last() });
                let error = sys::error::Chain(&error);
                tracing::error!(id = self.task.id(), %error, "shim is kept, although it gives no state");
            }
        }
        self.task.enter(Phase::Live(shim.clone()));
        drop(place);
        Some(Held { shim, identity, _log: log })
    }

    /// The state of the task that a shim has which an earlier daemon left. It may be about to create
    /// the task still, and to stop it in the middle would leave what no one else knows how to clean.
    async fn ask_found(&self, shim: &Shim) -> Result<v3::StateResponse, Error> {
        let request = v3::StateRequest { id: self.task.id().to_owned(), exec_id: String::new() };
        // What ended has been created.
        let looks = if self.task.told().is_some() { 0 } else { CREATE_LOOKS };
        for _ in 0..looks {
            match shim.call_within(&request, Some(ADOPT_LIMIT)).await {
                Err(error) if error.is_unknown_to_shim() => {
                    // Nobody has to wait to see that there is no task.
                    self.task.enter(Phase::Ending);
                    tokio::time::sleep(CREATE_PAUSE).await;
                }
                answer => return answer,
            }
        }
        shim.call_within(&request, Some(ADOPT_LIMIT)).await
    }

    /// Serves the task until it is deleted, its shim dies, or the daemon stops.
    async fn run(mut self, mut held: Held) {
        let mut grace = pin!(tokio::time::sleep(TELL_GRACE));
        let mut untold = self.is_stopped() && self.task.told().is_none();
        self.task.note_shim(held.process().map(Process::pid));
        if matches!(held.identity, Identity::Slow) {
            // It is asked again when it answers.
            self.task.health().doubt();
        }
        loop {
            let turn = tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Delete(reply)) => {
                        if std::mem::take(&mut untold) {
                            self.tell_exit(self.last_exit()).await;
                        }
                        Box::pin(self.delete(&mut held, reply)).await
                    }
                    Some(Command::EndShim(reply)) => {
                        let address = Some(held.shim.address());
                        let killed = self.kill(held.process(), address).await;
                        let _ = reply.send(killed.map(drop));
                        Turn::Stay
                    }
                    None => Turn::Leave,
                },
                () = held.ended() => Box::pin(self.lose(&mut held, None)).await,
                () = probe(&self.task, &held.shim) => {
                    if held.process().is_none() {
                        self.identify(&mut held).await;
                    }
                    Turn::Stay
                }
                () = held.short() => {
                    self.identify(&mut held).await;
                    Turn::Stay
                }
                () = &mut grace, if untold => {
                    untold = false;
                    self.tell_exit(self.last_exit()).await;
                    Turn::Stay
                }
                () = self.context.stop.cancelled() => return,
            };
            if matches!(turn, Turn::Leave) {
                return;
            }
        }
    }

    async fn delete(&mut self, held: &mut Held, reply: DeleteReply) -> Turn {
        let request = v3::DeleteRequest { id: self.task.id().to_owned(), exec_id: String::new() };
        // The turn that does this otherwise is this one.
        let probing = async {
            loop {
                probe(&self.task, &held.shim).await;
            }
        };
        let answer = tokio::select! {
            answer = self.task.call_shim(&held.shim, &request, v3::DeleteRequest::LIMIT) => answer,
            never = probing => never,
        };
        let result = match answer {
            Ok(answer) => {
                Ok(Exit { pid: answer.pid, status: answer.exit_status, at: answer.exited_at })
            }
            // That is the shim's end, or init may run.
            Err(Error::NoAnswer { source: CallError::Closed, .. }) => {
                return self.lose(held, Some(reply)).await;
            }
            // An earlier delete was cut short, after the shim's part.
            Err(error) if error.is_unknown_to_shim() => {
                self.task.told().map(|exit| Exit::from(&exit)).ok_or(error)
            }
            Err(error) => {
                let _ = reply.send(Err(error));
                return Turn::Stay;
            }
        };
        self.task.enter(Phase::Ending);
        // The bundle goes last: a daemon that is killed in between finds shim and socket by it.
        self.shutdown(&held.shim).await;
        let mut ended = false;
        if self.bundle.is_in_sandbox() {
            self.remove_bundle().await;
        } else {
            ended = self.await_exit(held).await;
            self.remove_rest(Some(held.shim.address().to_owned())).await;
        }
        let exit = result.as_ref().ok().copied();
        let _ = reply.send(result);
        // Some shims end before they have told what they were shut down for.
        if let Some(exit) = exit.filter(|_| ended) {
            self.tell_delete(exit);
        }
        self.leave(exit).await;
        Turn::Leave
    }

    /// Tells subscribers how init ended, if they were not told.
    async fn tell_exit(&self, exit: Exit) {
        let id = self.task.id().to_owned();
        let event = TaskExit {
            container_id: id.clone(),
            id,
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: exit.at,
        };
        if self.task.tell(&event) {
            self.context.record_exit(&self.bundle, &event).await;
            self.context.events.publish(self.task.namespace(), "/tasks/exit", pack(&event));
            self.context.note_told(&self.bundle).await;
        }
    }

    /// Tells subscribers that nothing is left of the task, if they were not told.
    fn tell_delete(&self, exit: Exit) {
        if self.task.tell_delete() {
            self.publish_delete(exit);
        }
    }

    fn publish_delete(&self, exit: Exit) {
        let event = TaskDelete {
            container_id: self.task.id().to_owned(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: exit.at,
            id: String::new(),
        };
        // What the shim sent last may come later than the news of its end.
        self.context.deletes.note(mark_of(self.task.namespace(), &event));
        self.context.events.publish(self.task.namespace(), "/tasks/delete", pack(&event));
    }

    fn is_stopped(&self) -> bool {
        self.task.last().status == i32::from(Status::Stopped)
    }

    fn last_exit(&self) -> Exit {
        let last = self.task.last();
        Exit { pid: last.pid, status: last.exit_status, at: last.exited_at }
    }

    pub(super) fn binary(&self) -> Result<&Path, Error> {
        self.binary.of(&self.bundle)
    }

    async fn start_shim(&self, options: Option<&Any>) -> Result<Bootstrap, Error> {
        self.launch()?.start(options).await
    }

    fn launch(&self) -> Result<Launch<'_>, Error> {
        Ok(Launch {
            daemon: &self.context.daemon,
            dialects: &self.context.dialects,
            binary: self.binary()?,
            namespace: self.task.namespace(),
            id: self.task.id(),
            bundle: &self.bundle,
        })
    }

    fn report(&self, attempt: &str, error: &Error) {
        let (namespace, id) = (self.task.namespace(), self.task.id());
        tracing::error!(%namespace, id, error = %sys::error::Chain(error), "could not {attempt}");
    }
}

/// What tells the delete of one task from that of another. Shims give times of their own.
pub(super) fn mark_of(namespace: &Namespace, delete: &TaskDelete) -> Mark {
    let container_id = format!("{namespace}/{}", delete.container_id);
    Mark::of(&TaskDelete { container_id, pid: delete.pid, ..TaskDelete::default() })
}

/// Runs blocking code on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Stopping))
}
