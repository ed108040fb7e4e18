//! How an actor ends a shim, and removes what a task leaves.
//!
//! All of it takes descriptors, processes and sometimes room, which may be what there was too little
//! of when the task failed. Then the caller has its answer, what is left is noted ([`Left`]), and the
//! actor tries again until nothing is; the container's name stays taken meanwhile.

use std::time::{Duration, Instant};

use prost_types::Timestamp;
use proto::{
    SHIM_FAREWELL_MAX,
    containerd::task::v3::{self, DeleteResponse},
    time::known,
    ttrpc::CallError,
};

use super::{Actor, STATUS_UNKNOWN, blocking};
use crate::runtime::{
    Error,
    binary::Binary,
    bootstrap::Bootstrap,
    half_made,
    held::{Held, Identity, REACH_PAUSE, end_process, remove_socket},
    log::ShimLog,
    process::Process,
    shim::{Call, Shim},
    task::{Exit, Phase},
};

/// How long a shim may take to exit after it was shut down, before it is killed: more than shims take
/// that hand on their last events.
pub(in crate::runtime) const EXIT_LIMIT: Duration = SHIM_FAREWELL_MAX.saturating_mul(2);

/// How often `shim delete` is tried, the pause between, and for how long it is tried at all.
const CLEAN_TRIES: usize = 3;
const CLEAN_PAUSE: Duration = Duration::from_millis(300);
const CLEAN_LIMIT: Duration = Duration::from_secs(10);

/// What could not be removed for want of something, and is tried again.
#[derive(Debug)]
pub(in crate::runtime) enum Left {
    /// A shim that may run, and all that it made; at this address, if that is known.
    Shim(Option<Bootstrap>),
    /// The bundle, and before it the socket of the shim, at this address or where the bundle says.
    Rest(Option<String>),
    /// The bundle.
    Bundle,
}

impl Actor {
    /// Cleans up when the daemon went away before it knew the shim's address.
    pub(super) async fn clear_unrecorded(&mut self) {
        tracing::warn!(id = self.task.id(), "half-made bundle is removed");
        let may_have_shim =
            !matches!(self.bundle.find_binary(), Ok(None)) && !self.bundle.is_in_sandbox();
        if may_have_shim && self.bundle.path().join("config.json").exists() {
            self.end_unstarted(None).await;
        } else {
            self.remove_bundle().await;
        }
        self.leave(None).await;
    }

    /// Ends the shim that may run although its start did not succeed, and removes all that is left.
    /// To start a shim that runs gives its address, if that is not known, and one that does not run
    /// is soon shut down again, with the socket that it had. Nothing is written: the disk may be
    /// full, which may be why the start did not succeed.
    pub(super) async fn end_unstarted(&mut self, known: Option<Bootstrap>) {
        if known.is_none() && self.bundle.is_in_sandbox() {
            // A start would make a shim that is not the sandbox's.
            return self.clean_and_remove().await;
        }
        let log = ShimLog::open(&self.bundle, self.task.id());
        let at = match known {
            Some(at) => Ok(at),
            None => self.start_shim(None).await,
        };
        let (at, error) = match at {
            Ok(at) => match Shim::connect(self.task.namespace(), self.task.id(), &at).await {
                Ok(shim) => {
                    let identity = Identity::ask(&shim, self.task.id()).await;
                    return self.end_unused(&Held { shim, identity, _log: log }).await;
                }
                Err(error) => (Some(at), error),
            },
            Err(error) => (None, error),
        };
        if error.is_shortage() {
            self.left = Some(Left::Shim(at));
            return;
        }
        if at.is_none() {
            self.report("find the shim", &error);
            return self.remove_bundle().await;
        }
        self.clean_and_remove().await;
    }

    /// Cleans up after a shim that died, and tells of the end of the task. The actor leaves next.
    pub(super) async fn bury(&mut self, process: Option<&Process>) -> Exit {
        tracing::warn!(namespace = %self.task.namespace(), id = self.task.id(), "shim died; cleaning up");
        self.task.enter(Phase::Ending);
        // Perhaps in the middle of its create.
        self.half_made = true;
        self.end_process(process).await;
        let answer = self.clean().await;
        let now = Some(Timestamp::from(std::time::SystemTime::now()));
        let cleaned = match &answer {
            Ok(answer) => {
                let at = known(answer.exited_at).or(now);
                Exit { pid: answer.pid, status: answer.exit_status, at }
            }
            Err(_) => Exit { pid: self.task.last().pid, status: STATUS_UNKNOWN, at: now },
        };
        let cleaned = self.task.recorded().unwrap_or(cleaned);
        self.tell_exit(cleaned).await;
        let exit = self.task.told().map_or(cleaned, |told| Exit::from(&told));
        if self.remove_cleaned(answer).await {
            self.tell_delete(exit);
        }
        exit
    }

    async fn end_process(&self, process: Option<&Process>) {
        let is_shared = |address: &str| self.is_shared(address);
        end_process(process, &self.bundle, &self.binary, is_shared).await;
    }

    async fn clean_and_remove(&mut self) {
        let cleaned = self.clean().await;
        self.remove_cleaned(cleaned).await;
    }

    /// Removes the bundle after [`clean`](Self::clean), unless a container may be left that only the
    /// bundle leads to. `false` when it stays.
    async fn remove_cleaned(&mut self, answer: Result<DeleteResponse, Error>) -> bool {
        if let Err(error) = answer {
            if error.is_shortage() {
                self.report("clean up after the shim for now", &error);
                self.left = Some(Left::Shim(self.bundle.bootstrap()));
                return false;
            }
            if self.bundle.has_container() {
                self.report("clean up after the shim, and keep the bundle", &error);
                return false;
            }
            self.report("clean up after the shim", &error);
        }
        // A shim that was killed leaves its socket, and containerd's binary does not look there.
        self.remove_rest(None).await;
        true
    }

    /// Has the shim's binary remove what a shim left. Little is tried for long: somebody may wait.
    async fn clean(&self) -> Result<DeleteResponse, Error> {
        let begun = Instant::now();
        for _ in 1..CLEAN_TRIES {
            match self.delete_left().await {
                Err(error) if begun.elapsed() < CLEAN_LIMIT => {
                    self.report("clean up after the shim", &error);
                    tokio::time::sleep(CLEAN_PAUSE).await;
                }
                answer => return answer,
            }
        }
        self.delete_left().await
    }

    async fn delete_left(&self) -> Result<DeleteResponse, Error> {
        self.launch()?.delete().await
    }

    /// Cleans up what an earlier task of the container left that could not be cleaned up then.
    pub(super) async fn clear_left_over(&mut self) -> Result<(), Error> {
        let (exit, recorded) = (self.bundle.exit(), self.bundle.find_binary()?);
        if let Some(recorded) = recorded {
            let own = std::mem::replace(&mut self.binary, Binary::new(Some(&recorded)));
            let cleaned = self.delete_left().await;
            self.binary = own;
            match cleaned {
                Err(error) if self.bundle.has_container() => return Err(error),
                Err(error) => self.report("clean up after an earlier task", &error),
                Ok(_) => {}
            }
        }
        let bundle = self.bundle.clone();
        blocking(move || bundle.remove()).await?;
        if let Some((exit, true)) = exit {
            self.publish_delete(Exit::from(&exit));
        }
        Ok(())
    }

    /// Ends a shim whose task nobody was told of, after the shim's own cleaning.
    pub(super) async fn abandon(&mut self, held: &Held) {
        self.task.enter(Phase::Ending);
        let request = v3::DeleteRequest { id: self.task.id().to_owned(), exec_id: String::new() };
        let deleted = held.shim.call_within(&request, v3::ShutdownRequest::LIMIT).await;
        let clean = match &deleted {
            Ok(_) => true,
            Err(error) => error.is_unknown_to_shim(),
        };
        if clean && self.shutdown(&held.shim).await {
            self.await_exit(held).await;
            self.remove_rest(Some(held.shim.address().to_owned())).await;
        } else {
            self.end_unused(held).await;
        }
    }

    /// Ends a shim, and cleans up what it may have left: it is not known how far it came.
    pub(super) async fn end_unused(&mut self, held: &Held) {
        self.task.enter(Phase::Ending);
        let down = self.shutdown(&held.shim).await;
        if !down && !self.is_shared(held.shim.address()) {
            self.end_process(held.process()).await;
        }
        self.await_exit(held).await;
        self.clean_and_remove().await;
    }

    pub(super) async fn shutdown(&self, shim: &Shim) -> bool {
        if self.bundle.is_in_sandbox() {
            return true;
        }
        let request = v3::ShutdownRequest { id: self.task.id().to_owned(), now: false };
        match shim.call(&request).await {
            // The shim may be gone before its answer.
            Ok(()) | Err(Error::NoAnswer { source: CallError::Closed, .. }) => true,
            Err(error) => {
                self.report("shut down the shim", &error);
                false
            }
        }
    }

    /// Waits for the end of a shim that was shut down, unless others need it; `false` when it lives on.
    pub(super) async fn await_exit(&self, held: &Held) -> bool {
        let address = held.shim.address();
        if self.is_shared(address) {
            return false;
        }
        if tokio::time::timeout(EXIT_LIMIT, held.gone()).await.is_ok() {
            return true;
        }
        if self.is_shared(address) {
            return false;
        }
        tracing::warn!(id = self.task.id(), "shim still runs after it was shut down");
        self.end_process(held.process()).await;
        true
    }

    /// Removes the socket of a shim that has ended and could not do that any more, and then the bundle,
    /// which leads to it.
    pub(super) async fn remove_rest(&mut self, address: Option<String>) {
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

    /// Whether the shim at `address` serves others too.
    pub(super) fn is_shared(&self, address: &str) -> bool {
        self.bundle.is_in_sandbox() || self.context.sharing(&self.task, address).is_some()
    }

    /// Removes the bundle, and first what a runtime may have left of a create that was cut short: only the
    /// bundle leads there.
    pub(super) async fn remove_bundle(&mut self) {
        if self.half_made && !self.bundle.has_container() {
            self.remove_cgroups().await;
        }
        let bundle = self.bundle.clone();
        if let Err(error) = blocking(move || bundle.remove()).await {
            self.report("remove the bundle", &error);
            if error.is_shortage() {
                self.left = Some(Left::Bundle);
            }
        }
    }

    async fn remove_cgroups(&self) {
        let bundle = self.bundle.clone();
        let Ok(Some(cgroup)) = blocking(move || Ok(bundle.cgroup())).await else { return };
        if let Err(error) = half_made::remove_cgroups(cgroup.clone()).await {
            let id = self.task.id();
            tracing::warn!(id, cgroup, %error, "a cgroup of a half-made container stays");
        }
    }

    /// Ends the task, when nothing is left of it: whoever looks for it from now on finds none.
    pub(super) async fn leave(&mut self, exit: Option<Exit>) {
        // Nobody has to wait for what is tried again: whoever asked for something is told that there
        // is no task, as those are who ask from now on.
        self.commands.close();
        while self.commands.try_recv().is_ok() {}
        while let Some(left) = self.left.take() {
            tokio::select! {
                () = tokio::time::sleep(REACH_PAUSE) => {}
                // The next daemon finds it.
                () = self.context.stop.cancelled() => break,
            }
            let untold = matches!(left, Left::Shim(_));
            match left {
                Left::Shim(at) => self.end_unstarted(at).await,
                Left::Rest(address) => self.remove_rest(address).await,
                Left::Bundle => self.remove_bundle().await,
            }
            if let (Some(exit), true, None) = (exit, untold, &self.left) {
                self.tell_delete(exit);
            }
        }
        self.context.forget(&self.task);
        self.task.enter(Phase::Gone(exit));
    }
}
