//! How an actor ends a shim, and removes what a task leaves.

use std::time::{Duration, Instant};

use prost_types::Timestamp;
use proto::{
    containerd::task::v3::{self, DeleteResponse},
    ttrpc::CallError,
};

use super::{Actor, STATUS_UNKNOWN, blocking, identify};
use crate::runtime::{
    Error,
    held::Held,
    log::ShimLog,
    process::Process,
    shim::{Call, Shim, remove_dead_socket},
    task::{Exit, Phase},
};

/// How long a shim may take to exit after it was shut down, before it is killed.
const EXIT_LIMIT: Duration = Duration::from_secs(3);

/// How often `shim delete` is tried, the pause between, and for how long it is tried at all.
const CLEAN_TRIES: usize = 3;
const CLEAN_PAUSE: Duration = Duration::from_millis(300);
const CLEAN_LIMIT: Duration = Duration::from_secs(10);

impl Actor {
    /// Cleans up when the daemon went away before it knew the shim's address.
    pub(super) async fn clear_unrecorded(&mut self) {
        tracing::warn!(id = self.task.id(), "half-made bundle is removed");
        let may_have_shim = self.bundle.binary().is_some() && !self.bundle.is_in_sandbox();
        if may_have_shim && self.bundle.path().join("config.json").exists() {
            self.end_unstarted().await;
        }
        self.remove_bundle().await;
        self.leave(None);
    }

    /// Ends the shim that may run although its start did not succeed. To start a shim that runs gives
    /// its address, and one that does not run is soon shut down again, with the socket that it had.
    /// Nothing is written: the disk may be full, which may be why the start did not succeed.
    pub(super) async fn end_unstarted(&mut self) {
        let log = ShimLog::open(&self.bundle, self.task.id());
        let found = match self.launch().start(None).await {
            Ok(at) => Shim::connect(self.task.namespace(), self.task.id(), &at).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(shim) => {
                let process = identify(&shim, self.task.id()).await;
                self.end_unused(&Held { shim, process, _log: log }).await;
            }
            Err(error) => self.report("find the shim", &error),
        }
    }

    /// Cleans up after a shim that died, and tells of the end of the task.
    pub(super) async fn bury(&mut self, process: Option<&Process>) -> Exit {
        tracing::warn!(namespace = %self.task.namespace(), id = self.task.id(), "shim died; cleaning up");
        self.task.enter(Phase::Ending);
        if let Some(process) = process {
            process.kill();
            // Until it is dead, what cleans up after it takes its socket for one that is served.
            let _ = tokio::time::timeout(EXIT_LIMIT, process.exited()).await;
        }
        let answer = self.clean().await;
        let now = Some(Timestamp::from(std::time::SystemTime::now()));
        let cleaned = match &answer {
            Ok(answer) => {
                Exit { pid: answer.pid, status: answer.exit_status, at: answer.exited_at.or(now) }
            }
            Err(_) => Exit { pid: self.task.last().pid, status: STATUS_UNKNOWN, at: now },
        };
        let cleaned = self.task.recorded().unwrap_or(cleaned);
        self.tell_exit(cleaned).await;
        let exit = self.task.told().map_or(cleaned, |told| Exit::from(&told));
        if self.remove_cleaned(answer).await {
            self.tell_delete(exit);
        }
        self.leave(Some(exit));
        exit
    }

    /// Removes the bundle after [`clean`](Self::clean), unless a container may be left that only the
    /// bundle leads to. `false` when it stays.
    async fn remove_cleaned(&self, answer: Result<DeleteResponse, Error>) -> bool {
        if let Err(error) = answer {
            if self.bundle.has_container() {
                self.report("clean up after the shim, and keep the bundle", &error);
                return false;
            }
            self.report("clean up after the shim", &error);
        }
        // A shim that was killed leaves it, and containerd's binary does not look there.
        if let Some(bootstrap) = self.bundle.bootstrap() {
            remove_dead_socket(&bootstrap.address).await;
        }
        self.remove_bundle().await;
        true
    }

    /// Has the shim's binary remove what a shim left. Little is tried for long: somebody may wait.
    async fn clean(&self) -> Result<DeleteResponse, Error> {
        let begun = Instant::now();
        for _ in 1..CLEAN_TRIES {
            match self.launch().delete().await {
                Err(error) if begun.elapsed() < CLEAN_LIMIT => {
                    self.report("clean up after the shim", &error);
                    tokio::time::sleep(CLEAN_PAUSE).await;
                }
                answer => return answer,
            }
        }
        self.launch().delete().await
    }

    /// Cleans up what an earlier task of the container left that could not be cleaned up then.
    pub(super) async fn clear_left_over(&mut self) -> Result<(), Error> {
        let (exit, recorded) = (self.bundle.exit(), self.bundle.binary());
        if let Some(recorded) = recorded {
            let own = std::mem::replace(&mut self.binary, recorded);
            let cleaned = self.launch().delete().await;
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
            self.tell_delete(Exit::from(&exit));
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
            self.remove_socket(&held.shim).await;
            self.remove_bundle().await;
        } else {
            self.end_unused(held).await;
        }
    }

    /// Ends a shim, and cleans up what it may have left: it is not known how far it came.
    pub(super) async fn end_unused(&mut self, held: &Held) {
        self.task.enter(Phase::Ending);
        let down = self.shutdown(&held.shim).await;
        if let Some(process) =
            held.process.as_ref().filter(|_| !down && !self.is_shared(&held.shim))
        {
            process.kill();
        }
        self.await_exit(held).await;
        let cleaned = self.clean().await;
        self.remove_cleaned(cleaned).await;
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

    /// Waits for the end of a shim that was shut down, unless others need it.
    pub(super) async fn await_exit(&self, held: &Held) {
        if self.is_shared(&held.shim) {
            return;
        }
        if tokio::time::timeout(EXIT_LIMIT, held.gone()).await.is_ok() || self.is_shared(&held.shim)
        {
            return;
        }
        tracing::warn!(id = self.task.id(), "shim still runs after it was shut down");
        if let Some(process) = &held.process {
            process.kill();
        }
    }

    /// Removes the socket of a shim that has ended and could not do that any more.
    pub(super) async fn remove_socket(&self, shim: &Shim) {
        if !self.is_shared(shim) {
            remove_dead_socket(shim.address()).await;
        }
    }

    fn is_shared(&self, shim: &Shim) -> bool {
        self.bundle.is_in_sandbox()
            || self
                .context
                .others(&self.task)
                .iter()
                .any(|other| other.is_served_at(shim.address()))
    }

    pub(super) async fn remove_bundle(&self) {
        let bundle = self.bundle.clone();
        if let Err(error) = blocking(move || bundle.remove()).await {
            self.report("remove the bundle", &error);
        }
    }

    /// Ends the task: whoever looks for it from now on finds none.
    pub(super) fn leave(&self, exit: Option<Exit>) {
        self.context.forget(&self.task);
        self.task.enter(Phase::Gone(exit));
    }
}
