//! A task, as calls see it.
//!
//! ```text
//!  Creating ──> Live(shim) ──> Ending ──> Gone
//!      │            ^  │^                  ^
//!      └────────────┼──┼┼──> Gone          │
//!  Adopting ────────┘  ├┼─ shim died ──────┤
//!      ├───> Lost <────┘│                  │
//!      └<──── │ ────────┴──────────────────┘
//! ```
//!
//! The phase is changed by the task's [actor](super::actor) alone. Everybody else reads it, takes a
//! clone of the connection and calls the shim, so that no call waits for another and no lock is
//! held meanwhile.
//!
//! A list does not ask a shim for what it knows: what the shim said a moment ago holds until a call
//! changes it, or the shim tells of an exit, which it does at once. Only a list takes that for an
//! answer; who asks for one task, asks its shim.
//!
//! A shim that misses deadlines is *suspect*, and in *quarantine* if it does not answer at all; see
//! [`health`](super::health). A list waits only briefly for a suspect, and says that its state is not
//! known. Calls to a shim in quarantine fail at once and say what to do.
//!
//! A shim whose connection broke is *lost*: it is tried again, and may well live. A loss is mended in
//! a moment or is the shim's end, so calls wait for a moment ([`LOST_WAIT`](super::held::LOST_WAIT)); after it they fail at
//! once, as those to a shim in quarantine do. Nobody is told meanwhile that there is no task.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use prost_types::Timestamp;
use proto::{
    containerd::{events::TaskExit, task::v3, v1::types::Status},
    ttrpc::CallError,
};
use tokio::sync::{OnceCell, mpsc, oneshot, watch};

use super::{
    Attempt, Error,
    actor::Command,
    bundle::Bundle,
    health::Health,
    held::{Lost, Way, way},
    process::Sighting,
    shim::{Call, Shim},
    told::Told,
};
use crate::namespace::Namespace;

/// How long a call waits for a task that is being adopted.
const ADOPT_WAIT: Duration = Duration::from_secs(8);

/// How long a list waits for a shim.
const LIST_LIMIT: Duration = Duration::from_secs(2);

/// How long a list waits for a suspect shim.
const SUSPECT_LIMIT: Duration = Duration::from_millis(100);

/// How old a shim's answer may be that is listed. An exit of which a shim did not tell is listed
/// after that time at the latest, and so is a shim that has stopped to answer.
const STATE_AGE_MAX: Duration = Duration::from_secs(5);

/// The signal that ends init in any case.
const SIGKILL: u32 = 9;

/// How long a call may wait for the end of a task whose shim died.
const END_WAIT: Duration = Duration::from_secs(60);

/// Where a task is in its life.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// The shim is being started, or init created.
    Creating,
    /// Found after a start of the daemon; its shim is being asked.
    Adopting,
    /// There is a shim that knows the task.
    Live(Shim),
    /// There may be a shim, which cannot be reached now.
    Lost(Lost),
    /// Deleted, or its shim died; what it leaves is being removed.
    Ending,
    /// Nothing is left, but for how init ended, if it ever ran.
    Gone(Option<Exit>),
}

/// Where the shim is that a task or a sandbox needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At this address.
    At(String),
    /// Where the bundle says, if it says so yet.
    InBundle,
    /// It needs none any more.
    Nowhere,
}

impl Place {
    /// Whether that is at `address`, for all that is known.
    pub(super) fn is(&self, address: &str, bundle: &Bundle) -> bool {
        match self {
            Self::At(its) => its == address,
            // One that cannot be looked at now may be there.
            Self::InBundle => bundle
                .find_bootstrap()
                .map_or(true, |found| found.is_some_and(|its| its.address == address)),
            Self::Nowhere => false,
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// The process, as the host sees it.
    pub pid: u32,
    /// What `wait` gave: a code, or 128 and a signal.
    pub status: u32,
    /// When.
    pub at: Option<Timestamp>,
}

impl From<&TaskExit> for Exit {
    fn from(exit: &TaskExit) -> Self {
        Self { pid: exit.pid, status: exit.exit_status, at: exit.exited_at }
    }
}

/// A running container. See the [module](self).
pub struct Task {
    namespace: Namespace,
    id: String,
    phase: watch::Sender<Phase>,
    commands: mpsc::Sender<Command>,
    known: Mutex<Known>,
    waits: Mutex<HashMap<String, Waiting>>,
    health: Health,
    /// The exits of execs that subscribers were told of.
    told_execs: Told,
    /// Whether subscribers were told that the task is deleted.
    told_delete: AtomicBool,
    /// Whether what an earlier daemon kept of what it told was read.
    recalled: OnceCell<()>,
}

/// What is known of a task without its shim.
#[derive(Debug, Default)]
struct Known {
    /// What the shim said last of init.
    state: v3::StateResponse,
    /// When the shim was asked for that, if nothing has changed it since.
    current_since: Option<Instant>,
    /// How often something happened that may have changed the state.
    changes: u64,
    /// What subscribers were told of init's end.
    told: Option<TaskExit>,
    /// The exit that an earlier daemon recorded and may not have told.
    recorded: Option<Exit>,
    /// The shim's process.
    shim_pid: Option<u32>,
    /// Init's process.
    init: Option<Sighting>,
}

impl Known {
    /// Notes that the state may not be any more what the shim said last.
    fn change(&mut self) {
        self.changes += 1;
        self.current_since = None;
    }
}

/// When a shim was asked for the state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    at: Instant,
    changes: u64,
}

/// A wait that all who wait for one process share: a shim cannot be told that nobody waits any
/// more, so there is one call to it for as long as the process runs.
type Waiting = Shared<BoxFuture<'static, Result<Exit, Arc<Error>>>>;

impl Task {
    pub(super) fn new(
        namespace: Namespace,
        id: String,
        phase: Phase,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        // Of a task that is made now there was no earlier daemon.
        let is_new = matches!(phase, Phase::Creating);
        let phase = watch::Sender::new(phase);
        Self {
            namespace,
            id,
            phase,
            commands,
            known: Mutex::default(),
            waits: Mutex::default(),
            health: Health::default(),
            told_execs: Told::default(),
            told_delete: AtomicBool::new(false),
            recalled: OnceCell::new_with(is_new.then_some(())),
        }
    }

    /// The container's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The tenant.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Makes a call to the shim.
    ///
    /// # Errors
    ///
    /// - `NotFound`: the task is not there yet, or no longer.
    /// - `Refused`, `NoAnswer`: the shim's.
    /// - `Quarantined`: the shim does not answer at all.
    /// - `Unreachable`: there is no way to it.
    pub async fn call<C: Call>(&self, request: &C) -> Result<C::Answer, Error> {
        self.call_within(request, C::LIMIT).await
    }

    async fn call_within<C: Call>(
        &self,
        request: &C,
        limit: Option<Duration>,
    ) -> Result<C::Answer, Error> {
        let shim = self.shim().await?;
        self.call_shim(&shim, request, limit).await
    }

    /// Makes a call to a shim that is this task's, if it is not in quarantine.
    pub(super) async fn call_shim<C: Call>(
        &self,
        shim: &Shim,
        request: &C,
        limit: Option<Duration>,
    ) -> Result<C::Answer, Error> {
        let _change = C::changes_init().then(|| Change::begin(self));
        tokio::select! {
            biased;
            since = self.health.quarantined() => Err(Error::Quarantined {
                id: self.id.clone(),
                pid: self.known().shim_pid,
                address: shim.address().to_owned(),
                since: Duration::from_secs(since.elapsed().as_secs()),
            }),
            result = shim.call_within(request, limit) => {
                self.judge(&result);
                if matches!(&result, Err(Error::NoAnswer { source: CallError::Closed, .. })) {
                    // From now on whoever looks sees that it is lost.
                    shim.closed().await;
                }
                result
            }
        }
    }

    /// Sends a signal.
    ///
    /// A shim in quarantine, and one that is lost, cannot pass it on. If it is to kill init, the shim is
    /// killed in its place, and what is left is cleaned up. One that others need is left alone, and
    /// init itself is killed.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call). `Unending`: neither can be killed.
    pub async fn kill(&self, request: &v3::KillRequest) -> Result<(), Error> {
        let result = self.call(request).await;
        let ends = request.exec_id.is_empty() && request.signal == SIGKILL;
        if !ends || !result.as_ref().is_err_and(Error::is_unheard) {
            return result;
        }
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Command::EndShim(reply)).await;
        sent.map_err(|_| self.not_found())?;
        answer.await.unwrap_or_else(|_| Err(self.not_found()))
    }

    /// The state of init, or of the exec `exec_id` if it is not empty.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call); a shim that died counts as no task.
    pub async fn state(&self, exec_id: &str) -> Result<v3::StateResponse, Error> {
        self.state_within(exec_id, v3::StateRequest::LIMIT).await
    }

    /// The state of init for a list: what the shim says, or what it said last with a status that is
    /// not known. `None` when there is no task any more.
    pub async fn state_or_last(&self) -> Option<v3::StateResponse> {
        let limit = if self.health.is_good() { LIST_LIMIT } else { SUSPECT_LIMIT };
        let state = async {
            // An adoption ends with an answer of the shim's.
            self.shim().await?;
            match self.current() {
                Some(state) => Ok(state),
                None => self.state_within("", Some(limit)).await,
            }
        };
        let state = tokio::time::timeout(limit, state).await.unwrap_or_else(|_| {
            // The call's own deadline, which is as long, did not get to say so; or the time has gone
            // by in an adoption, of which that deadline knows nothing. The next list waits less.
            self.health.doubt();
            Err(self.late(limit))
        });
        match state {
            Ok(state) => Some(state),
            Err(Error::NotFound { .. }) => None,
            Err(error) if error.is_unknown_to_shim() => None,
            Err(error) => {
                let error = sys::error::Chain(&error);
                tracing::warn!(namespace = %self.namespace, id = self.id, %error, "state is not known");
                Some(self.last_unless_running())
            }
        }
    }

    /// The state of init; of a shim that does not answer what it said last, with a status that is not
    /// known. A client that means to end the task has to get past this.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call), but for a missing answer.
    pub async fn state_or_unknown(&self) -> Result<v3::StateResponse, Error> {
        match self.state("").await {
            Err(error) if error.is_unheard() => Ok(self.last_unless_running()),
            Err(Error::NoAnswer { source: CallError::Deadline { .. }, .. }) => {
                Ok(self.last_unless_running())
            }
            state => state,
        }
    }

    /// What the shim said last of init. The status is not known, unless it was one that stays.
    fn last_unless_running(&self) -> v3::StateResponse {
        let mut state = self.last();
        if state.status != i32::from(Status::Stopped) {
            state.status = Status::Unknown.into();
        }
        state
    }

    async fn state_within(
        &self,
        exec_id: &str,
        limit: Option<Duration>,
    ) -> Result<v3::StateResponse, Error> {
        let request = v3::StateRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        let mut asked = self.ask();
        let mut answer = self.call_within(&request, limit).await;
        if matches!(&answer, Err(Error::NoAnswer { source: CallError::Closed, .. })) {
            // The actor finds out what that means: there is no task, or soon another connection.
            asked = self.ask();
            answer = self.call_within(&request, limit).await;
        }
        let state = answer?;
        if exec_id.is_empty() {
            self.note_answer(asked, state.clone());
        }
        Ok(state)
    }

    /// Starts init, or the exec `exec_id` if it is not empty, and gives its number on the host.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn start(&self, exec_id: &str) -> Result<u32, Error> {
        let request = v3::StartRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        let answer = self.call(&request).await?;
        let mut known = self.known();
        if exec_id.is_empty() && known.told.is_none() {
            known.state.pid = answer.pid;
            known.state.status = Status::Running.into();
            // One from a checkpoint has had no process when it was made.
            known.init = known.init.or_else(|| Sighting::of(answer.pid));
        }
        Ok(answer.pid)
    }

    /// Waits for the end of init, or of the exec `exec_id` if it is not empty. A wait outlives the
    /// shim: if that dies, so do its processes.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn wait(&self, exec_id: &str) -> Result<Exit, Arc<Error>> {
        let waiting = self
            .waits()
            .entry(exec_id.to_owned())
            .or_insert_with(|| self.begin_wait(exec_id))
            .clone();
        let result = waiting.await;
        if exec_id.is_empty() {
            // The shim's event may be on its way still.
            self.known().change();
        }
        self.waits().remove(exec_id);
        result
    }

    fn begin_wait(&self, exec_id: &str) -> Waiting {
        let request = v3::WaitRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        wait(self.phase.subscribe(), request)
            .map(|result| result.map_err(Arc::new))
            .boxed()
            .shared()
    }

    /// Deletes the exec `exec_id`, which has ended or never ran.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn delete_exec(&self, exec_id: &str) -> Result<v3::DeleteResponse, Error> {
        let request = v3::DeleteRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        let answer = self.call(&request).await.map_err(|error| match error {
            // What is put before it is said of tasks.
            Error::Refused { status, .. } => Error::Refused { attempt: Attempt::Other, status },
            error => error,
        })?;
        // A wait whose callers have all left stays, and must not answer for the next exec of the name.
        self.waits().remove(exec_id);
        Ok(answer)
    }

    /// Deletes a task whose init has ended, with everything that is left of it. May be repeated.
    ///
    /// The work goes on when this is dropped.
    ///
    /// # Errors
    ///
    /// - `NotFound`: it was deleted before.
    /// - `Refused`: init has not ended.
    /// - `NoAnswer`, `Quarantined`, `Unreachable`: the shim does not answer; nothing is deleted.
    pub async fn delete(&self) -> Result<Exit, Error> {
        // Waits for an adoption to end, and refuses what is not there.
        match self.shim().await {
            // What has ended needs no answer of the shim's.
            Err(Error::Unreachable { .. }) if self.told().is_some() => {}
            shim => drop(shim?),
        }
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Delete(reply)).await;
        sent.map_err(|_| self.not_found())?;
        answer.await.unwrap_or_else(|_| Err(self.not_found()))
    }

    /// The connection to the shim, once there is one.
    async fn shim(&self) -> Result<Shim, Error> {
        if let Phase::Live(shim) = &*self.phase.borrow()
            && !shim.is_closed()
        {
            return Ok(shim.clone());
        }
        let settled = tokio::time::timeout(ADOPT_WAIT, self.settled_shim()).await;
        // It may live: whoever were told that there is none would remove what it uses.
        settled.unwrap_or_else(|_| Err(self.late(ADOPT_WAIT)))
    }

    async fn settled_shim(&self) -> Result<Shim, Error> {
        let way = way(&self.phase, |phase| match phase {
            Phase::Live(shim) => Way::There(shim.clone()),
            Phase::Adopting => Way::Soon,
            Phase::Lost(lost) => Way::Lost(lost.clone()),
            Phase::Creating | Phase::Ending | Phase::Gone(_) => Way::None,
        });
        way.await.map_err(|lost| lost.map_or_else(|| self.not_found(), |it| self.unreachable(&it)))
    }

    /// Why a call cannot be made now; for the actor, of a task that has no way to its shim.
    pub(super) fn unheard(&self) -> Error {
        match &*self.phase.borrow() {
            Phase::Lost(lost) => self.unreachable(lost),
            _ => self.late(ADOPT_WAIT),
        }
    }

    fn unreachable(&self, lost: &Lost) -> Error {
        Error::Unreachable {
            id: self.id.clone(),
            pid: self.known().shim_pid,
            address: lost.address.clone(),
            since: lost.duration(),
        }
    }

    fn late(&self, limit: Duration) -> Error {
        let source = CallError::Deadline { limit };
        Error::NoAnswer { id: self.id.clone(), method: v3::StateRequest::METHOD, source }
    }

    pub(super) fn not_found(&self) -> Error {
        Error::NotFound { id: self.id.clone() }
    }

    /// Changes the phase; for the actor.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Where the shim is that this task needs.
    pub(super) fn place(&self) -> Place {
        match &*self.phase.borrow() {
            Phase::Live(shim) => Place::At(shim.address().to_owned()),
            Phase::Lost(Lost { address: Some(address), .. }) => Place::At(address.clone()),
            Phase::Creating | Phase::Adopting | Phase::Lost(_) => Place::InBundle,
            Phase::Ending | Phase::Gone(_) => Place::Nowhere,
        }
    }

    /// Whether what the task leaves is being removed.
    pub(super) fn is_ending(&self) -> bool {
        matches!(&*self.phase.borrow(), Phase::Ending | Phase::Gone(_))
    }

    /// Waits until nothing is left, or until it turns out that it lives.
    pub(super) async fn ended(&self) {
        let _ = self.phase.subscribe().wait_for(|phase| !matches!(phase, Phase::Ending)).await;
    }

    /// Notes that subscribers are told of init's end; `false` when they were told before.
    pub(super) fn tell(&self, exit: &TaskExit) -> bool {
        let mut known = self.known();
        if known.told.is_some() {
            return false;
        }
        known.state.status = Status::Stopped.into();
        known.state.exit_status = exit.exit_status;
        known.state.exited_at = exit.exited_at;
        known.told = Some(exit.clone());
        known.change();
        true
    }

    /// Notes init's end, of which subscribers may not have been told.
    pub(super) fn record(&self, exit: Exit) {
        self.known().recorded = Some(exit);
    }

    /// Init's end as an earlier daemon recorded it.
    pub(super) fn recorded(&self) -> Option<Exit> {
        self.known().recorded
    }

    /// What subscribers were told of init's end.
    pub(super) fn told(&self) -> Option<TaskExit> {
        self.known().told.clone()
    }

    /// The exits of execs that subscribers were told of.
    pub(super) fn told_execs(&self) -> &Told {
        &self.told_execs
    }

    /// Whether it is being made, and not known by a number yet.
    pub(super) fn is_new(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Creating)
    }

    /// Notes that subscribers are told of the delete; `false` when they were told before.
    pub(super) fn tell_delete(&self) -> bool {
        !self.told_delete.swap(true, Ordering::Relaxed)
    }

    /// Whether what an earlier daemon kept of what it told was read, and is being read only once.
    pub(super) fn recalled(&self) -> &OnceCell<()> {
        &self.recalled
    }

    /// Notes what is known of init without the shim's having said it.
    pub(super) fn note(&self, state: v3::StateResponse) {
        let mut known = self.known();
        known.state = state;
        known.change();
    }

    /// Begins to ask the shim for the state of init.
    pub(super) fn ask(&self) -> Asked {
        Asked { at: Instant::now(), changes: self.known().changes }
    }

    /// Notes what the shim says of init.
    pub(super) fn note_answer(&self, asked: Asked, state: v3::StateResponse) {
        let mut known = self.known();
        if known.changes == asked.changes {
            known.state = state;
            known.current_since = Some(asked.at);
        } else if known.told.is_none() {
            known.state = state;
        }
    }

    /// What the shim would say of init, as far as can be known without asking it.
    fn current(&self) -> Option<v3::StateResponse> {
        let live = matches!(&*self.phase.borrow(), Phase::Live(shim) if !shim.is_closed());
        if !live || !self.health.is_good() {
            return None;
        }
        let known = self.known();
        let fresh = known.current_since.is_some_and(|since| since.elapsed() < STATE_AGE_MAX);
        fresh.then(|| known.state.clone())
    }

    /// What the shim said last of init.
    pub(super) fn last(&self) -> v3::StateResponse {
        self.known().state.clone()
    }

    /// Notes whether the shim keeps deadlines.
    pub(super) fn judge<T>(&self, result: &Result<T, Error>) {
        match result {
            Err(Error::NoAnswer { source: CallError::Deadline { .. }, .. }) => self.health.doubt(),
            Err(Error::NoAnswer { .. } | Error::Quarantined { .. } | Error::Unreachable { .. }) => {
            }
            _ => {
                if let Some(after) = self.health.clear() {
                    let namespace = &self.namespace;
                    tracing::info!(%namespace, id = self.id, ?after, "shim answers again");
                }
            }
        }
    }

    /// Lets calls fail from now on.
    pub(super) fn quarantine(&self) {
        if self.health.quarantine() {
            let (namespace, pid) = (&self.namespace, self.known().shim_pid);
            tracing::error!(%namespace, id = self.id, pid, "shim does not answer; it is in quarantine");
        }
    }

    /// Whether the shim answers.
    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Notes which process the shim is.
    pub(super) fn note_shim(&self, pid: Option<u32>) {
        self.known().shim_pid = pid;
    }

    /// Notes which process init is, of which the shim has just said that it is there.
    pub(super) fn note_init(&self, pid: u32) {
        self.known().init = Sighting::of(pid);
    }

    /// Init's process, if it is known for sure.
    pub(super) fn init(&self) -> Option<Sighting> {
        self.known().init
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waits(&self) -> MutexGuard<'_, HashMap<String, Waiting>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that may change the state, from before it is made until it has its answer or is dropped.
struct Change<'a>(&'a Task);

impl<'a> Change<'a> {
    fn begin(task: &'a Task) -> Self {
        task.known().change();
        Self(task)
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.0.known().change();
    }
}

async fn wait(mut phase: watch::Receiver<Phase>, request: v3::WaitRequest) -> Result<Exit, Error> {
    let not_found = || Error::NotFound { id: request.id.clone() };
    loop {
        let now = phase.borrow_and_update().clone();
        let shim = match now {
            Phase::Live(shim) => shim,
            Phase::Gone(Some(exit)) => return Ok(exit),
            Phase::Gone(None) => return Err(not_found()),
            // It may run, for as long as nobody knows.
            Phase::Adopting | Phase::Lost(_) => {
                phase.changed().await.map_err(|_| not_found())?;
                continue;
            }
            Phase::Creating | Phase::Ending => {
                let changed = tokio::time::timeout(END_WAIT, phase.changed()).await;
                changed.map_err(|_| not_found())?.map_err(|_| not_found())?;
                continue;
            }
        };
        match shim.call(&request).await {
            Ok(answer) => {
                return Ok(Exit { pid: 0, status: answer.exit_status, at: answer.exited_at });
            }
            Err(Error::NoAnswer { source: CallError::Closed, .. }) => {}
            Err(error) => return Err(error),
        }
        // The actor sees the loss too, and either connects again or ends the task.
        let changed = tokio::time::timeout(END_WAIT, phase.changed()).await;
        changed.map_err(|_| not_found())?.map_err(|_| not_found())?;
    }
}
