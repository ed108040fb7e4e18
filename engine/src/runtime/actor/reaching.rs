//! What an actor does when there is no way to its task's shim, or when the shim does not answer.
//!
//! A shim that is lost is tried again for as long as nothing speaks against its life, since whoever
//! takes a shim that lives for dead ends a container that runs. The actor goes on to read what it is
//! asked for meanwhile, so that each caller has an answer:
//!
//! | asked for         | the shim is the task's own     | others need the shim, or it is not found    |
//! |-------------------|--------------------------------|---------------------------------------------|
//! | SIGKILL for init  | is killed, and cleaned up after | init is killed, if it is known for sure     |
//! |                   |                                | and is no other task's                      |
//! | delete, init has  | the same                       | refused                                     |
//! | been seen to end  |                                |                                             |
//! | any other delete  | refused                        | refused                                     |
//!
//! Nobody is killed by a number alone. The shim is held by a descriptor since it said its number, or
//! has its own socket open. Init is who had its number, and started when it did, when its shim said
//! so last.

use std::{io, pin::pin, sync::Arc};

use proto::{containerd::task::v3, ttrpc::CallError};
use tokio::time::sleep;

use super::{Actor, Command, DeleteReply, Turn, blocking};
use crate::runtime::{
    Error,
    bootstrap::Bootstrap,
    held::{CUTS_MAX, Held, Identity, LOST_WAIT, Lost, REACH_PAUSE, Reached, reach_again},
    process::{Process, Sighting},
    shim::{Call, Shim},
    task::Phase,
};

/// What was killed for someone who wants init dead.
pub(super) enum Killed {
    /// The shim; and its process, if nobody had it before.
    Shim(Option<Process>),
    /// Init. The shim lives.
    Init,
}

/// What came of a request to an actor that has no way to the shim.
enum Answered {
    /// Nothing has changed for the shim.
    Stay,
    /// The shim was killed. Whoever waits for the delete is told when it is cleaned up after.
    Killed(Option<Process>, Option<DeleteReply>),
}

impl Actor {
    /// Decides what the end of a connection or of a process means, and answers a delete that it came
    /// in the middle of.
    pub(super) async fn lose(&mut self, held: &mut Held, waiting: Option<DeleteReply>) -> Turn {
        // Not by the bundle's: to read it takes a descriptor.
        let at = held.shim.bootstrap();
        let mut reply = waiting;
        for _ in 0..CUTS_MAX {
            let reached;
            (reached, reply) = self.reach(&at, &mut held.identity, reply).await;
            held.shim = match reached {
                Reached::Shim(shim) => shim,
                Reached::Nobody => {
                    self.end(held.process(), reply).await;
                    return Turn::Leave;
                }
                Reached::Stop => return Turn::Leave,
            };
            if held.process().is_none() {
                self.identify(held).await;
            }
            if !matches!(held.identity, Identity::Cut) {
                break;
            }
        }
        if matches!(held.identity, Identity::Unknown | Identity::Cut) {
            // One that does not say who it is, and drops connections, is none.
            self.end(None, reply).await;
            return Turn::Leave;
        }
        tracing::warn!(id = self.task.id(), "connection to the shim was lost, and made again");
        if let Some(reply) = reply {
            // It is not known whether the shim has heard it. It may be repeated.
            let (id, method) = (self.task.id().to_owned(), v3::DeleteRequest::METHOD);
            let _ = reply.send(Err(Error::NoAnswer { id, method, source: CallError::Closed }));
        }
        self.task.enter(Phase::Live(held.shim.clone()));
        Turn::Stay
    }

    /// Asks the shim who it is.
    pub(super) async fn identify(&self, held: &mut Held) {
        held.identity = Identity::ask(&held.shim, self.task.id()).await;
        self.task.note_shim(held.process().map(Process::pid));
        if matches!(held.identity, Identity::Slow) {
            // It is asked again when it answers.
            self.task.health().doubt();
        }
    }

    /// Cleans up after a shim that is dead, and answers who has asked for the delete.
    pub(super) async fn end(&mut self, process: Option<&Process>, reply: Option<DeleteReply>) {
        let exit = self.bury(process).await;
        if let Some(reply) = reply {
            let _ = reply.send(Ok(exit));
        }
        self.leave(Some(exit)).await;
    }

    /// Connects again to a shim that is lost, and answers meanwhile who asks for its task. Who it
    /// is may become known when it is killed.
    pub(super) async fn reach(
        &mut self,
        at: &Bootstrap,
        identity: &mut Identity,
        mut waiting: Option<DeleteReply>,
    ) -> (Reached, Option<DeleteReply>) {
        self.task.enter(Phase::Lost(Lost::now(Some(&at.address))));
        let (task, context) = (Arc::clone(&self.task), Arc::clone(&self.context));
        let (found, reached, reply) = {
            let process = identity.process();
            let connect = || Shim::connect(task.namespace(), task.id(), at);
            // Lists need not wait for it.
            let waits = || task.health().doubt();
            let mut reaching = pin!(reach_again(process, &context.stop, connect, waits));
            let mut moment = pin!(sleep(LOST_WAIT));
            let mut is_lost = false;
            loop {
                tokio::select! {
                    reached = &mut reaching => break (None, reached, None),
                    () = &mut moment, if !is_lost => {
                        is_lost = true;
                        if let Some(reply) = waiting.take() {
                            let _ = reply.send(Err(self.task.unheard()));
                        }
                    }
                    command = self.commands.recv(), if is_lost => {
                        let Some(command) = command else { break (None, Reached::Stop, None) };
                        let answered = self.answer_lost(command, process, Some(&at.address)).await;
                        if let Answered::Killed(found, reply) = answered {
                            break (found, Reached::Nobody, reply);
                        }
                    }
                }
            }
        };
        if let Some(found) = found {
            *identity = Identity::Known(found);
        }
        (reached, reply.or(waiting))
    }

    /// Waits before something is tried again that is needed to find the shim, and answers meanwhile who
    /// asks for its task. `false` when the daemon stops.
    pub(super) async fn pause_lost(&mut self) -> bool {
        let context = Arc::clone(&self.context);
        let mut pause = pin!(sleep(REACH_PAUSE));
        loop {
            tokio::select! {
                () = &mut pause => return true,
                () = context.stop.cancelled() => return false,
                Some(command) = self.commands.recv() => {
                    // Nobody is killed whose address is not known.
                    let _ = self.answer_lost(command, None, None).await;
                }
            }
        }
    }

    async fn answer_lost(
        &self,
        command: Command,
        process: Option<&Process>,
        address: Option<&str>,
    ) -> Answered {
        match command {
            Command::EndShim(reply) => match self.kill(process, address).await {
                Ok(Killed::Shim(found)) => {
                    let _ = reply.send(Ok(()));
                    Answered::Killed(found, None)
                }
                killed => {
                    let _ = reply.send(killed.map(drop));
                    Answered::Stay
                }
            },
            Command::Delete(reply) if self.task.told().is_some() && !self.is_needed(address) => {
                // Init's number may be another's by now.
                match self.kill_shim(process, address).await {
                    Ok(found) => Answered::Killed(found, Some(reply)),
                    Err(reason) => {
                        let _ = reply.send(Err(self.unending(address, reason)));
                        Answered::Stay
                    }
                }
            }
            Command::Delete(reply) => {
                let _ = reply.send(Err(self.task.unheard()));
                Answered::Stay
            }
        }
    }

    fn is_needed(&self, address: Option<&str>) -> bool {
        address.is_none_or(|address| self.is_shared(address))
    }

    /// Kills the shim, which does not answer, or else init. A shim was identified while it did, or is
    /// who listens at its socket.
    pub(super) async fn kill(
        &self,
        process: Option<&Process>,
        address: Option<&str>,
    ) -> Result<Killed, Error> {
        match self.kill_shim(process, address).await {
            Ok(found) => Ok(Killed::Shim(found)),
            Err(reason) => self.kill_init(process, address, reason),
        }
    }

    /// Kills the shim, and gives its process if that was not known; or says why it may not be.
    async fn kill_shim(
        &self,
        process: Option<&Process>,
        address: Option<&str>,
    ) -> Result<Option<Process>, String> {
        let found = self.find_killable(process, address).await?;
        if let Some(process) = process.or(found.as_ref()) {
            let (id, pid) = (self.task.id(), process.pid());
            tracing::warn!(id, pid, "shim that does not answer is killed");
            process.kill();
        }
        Ok(found)
    }

    /// The process of a shim that may be killed, if it is not known yet; or why it may not be.
    async fn find_killable(
        &self,
        process: Option<&Process>,
        address: Option<&str>,
    ) -> Result<Option<Process>, String> {
        let address = address.ok_or("it is not known where it is")?.to_owned();
        if self.bundle.is_in_sandbox() {
            return Err("its sandbox needs it".to_owned());
        }
        if let Some(other) = self.context.sharing(&self.task, &address) {
            return Err(format!("{other} shares it"));
        }
        if process.is_some() {
            return Ok(None);
        }
        let program = self.binary().map_err(|error| error.to_string())?.to_owned();
        let found = blocking(move || Ok(Process::listening_at(&address, &program))).await;
        match found.map_err(|error| error.to_string())? {
            Ok(Some(found)) => Ok(Some(found)),
            Ok(None) => Err("nobody is found who listens there".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Kills init, where its shim cannot be killed for a reason. One that has ended for certain is dead.
    fn kill_init(
        &self,
        process: Option<&Process>,
        address: Option<&str>,
        reason: String,
    ) -> Result<Killed, Error> {
        if self.task.told().is_some() {
            return Ok(Killed::Init);
        }
        let opened = self.killable_init(process).map(Sighting::open);
        match opened {
            Ok(Ok(init)) => {
                let (id, pid) = (self.task.id(), init.pid());
                tracing::warn!(id, pid, reason, "init is killed without its shim");
                init.kill();
                Ok(Killed::Init)
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(Killed::Init),
            Ok(Err(error)) => Err(self.unending(address, format!("{reason}; init: {error}"))),
            Err(too) => Err(self.unending(address, format!("{reason}; {too}"))),
        }
    }

    /// Init, unless others end with it: what a shim calls so may be a whole virtual machine.
    fn killable_init(&self, shim: Option<&Process>) -> Result<Sighting, String> {
        let init = self.task.init().ok_or("which process init is is not known")?;
        if let Some(other) = self.context.sharing_init(&self.task, init.pid()) {
            return Err(format!("task {} has the same process", other.id()));
        }
        if shim.is_some_and(|shim| shim.pid() == init.pid()) {
            return Err("init is the shim".to_owned());
        }
        Ok(init)
    }

    fn unending(&self, address: Option<&str>, reason: String) -> Error {
        Error::Unending {
            id: self.task.id().to_owned(),
            address: address.unwrap_or("an unknown address").to_owned(),
            reason,
        }
    }
}
