//! `Delete`: the runtime forgets the container while its output drains; then mounts and records go.
//!
//! ```text
//!  Delete ──┬──> runtime delete ──────┐
//!           └──> output has ended, or └─┬──> unmount ──> TaskDelete, callers answered
//!                its time is up ────────┘
//! ```
//!
//! A second `Delete` while the first is at work waits for the same end. When the runtime fails,
//! callers learn why, the container stays, and `Delete` can be tried again.

use std::time::Instant;

use proto::{
    containerd::{events::TaskDelete, task::v3 as api},
    time::NO_TIME,
};
use sys::mount::unmount_all;

use crate::{
    error::Error,
    runtime::Command,
    server::Call,
    shim::Shim,
    task::{
        container::Process,
        job::{self, Job, Then},
        state::{Event, State},
    },
};

impl Shim {
    /// Serves `Delete`.
    pub(crate) fn delete(&mut self, call: Call, request: &api::DeleteRequest) -> Result<(), Error> {
        let (id, exec) = (request.id.as_str(), request.exec_id.as_str());
        let container = self.container_mut(id)?;
        let runtime = container.runtime.clone();
        let runtime_deleted = container.runtime_deleted;
        let process = container.process_mut(exec)?;
        if matches!(process.state, State::Deleting(_)) {
            process.deleters.push(call);
            return Ok(());
        }
        process.apply(Event::Delete)?;
        process.deleters.push(call);
        process.drain_until = Some(match process.state.exit() {
            Some(_) => process.drain_deadline(),
            // What never ran has nothing to say.
            None => Instant::now(),
        });
        if exec.is_empty() && !runtime_deleted {
            let command = Command::Delete { id, force: false };
            let then = Then::Delete { id: id.to_owned() };
            let started = Job::start(&runtime, &command, job::Streams::Captured, then);
            if let Err(error) = self.take_job(started) {
                self.delete_failed(id, &Error::unknown("failed to delete task", &error));
            }
        }
        self.finish_delete(id, exec);
        Ok(())
    }

    /// Goes on when the runtime's `delete` has ended.
    pub(super) fn runtime_delete_ended(&mut self, id: &str, result: Result<(), String>) {
        match result {
            Err(message) if !message.contains("does not exist") => {
                let error = Error::Unknown(format!("failed to delete task: {message}"));
                self.delete_failed(id, &error);
            }
            // A runtime forgets a container by itself when a checkpoint ends it.
            _ => {
                if let Some(container) = self.containers.get_mut(id) {
                    container.runtime_deleted = true;
                }
                self.finish_delete(id, "");
            }
        }
    }

    fn delete_failed(&mut self, id: &str, error: &Error) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let init = &mut container.init;
        // Only what is being deleted gets here.
        let _ = init.apply(Event::DeleteFailed);
        init.drain_until = None;
        for call in std::mem::take(&mut init.deleters) {
            self.reply(call, Err::<api::DeleteResponse, _>(error.clone()));
        }
    }

    /// Ends what waits for output that has now ended.
    pub(crate) fn output_ended(&mut self) {
        for (id, exec) in self.deleting(|_| true) {
            self.finish_delete(&id, &exec);
        }
    }

    /// Ends what has waited for output long enough.
    pub(crate) fn give_up_output(&mut self, now: Instant) {
        let late = |process: &Process| process.drain_until.is_some_and(|until| until <= now);
        for (id, exec) in self.deleting(late) {
            if let Some(process) =
                self.containers.get_mut(&id).and_then(|container| container.process_mut(&exec).ok())
            {
                process.drain_until = None;
                let io = std::mem::take(&mut process.io);
                if !io.is_drained(&self.copies) {
                    self.log.debug(&format!("output of {id} {exec} goes on after its exit"));
                }
                self.close_streams(io);
            }
            self.finish_delete(&id, &exec);
        }
    }

    fn deleting(&self, wanted: impl Fn(&Process) -> bool) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for (id, container) in &self.containers {
            let execs = container.execs.iter().map(|(exec, entry)| (exec.as_str(), &entry.process));
            for (exec, process) in execs.chain([("", &container.init)]) {
                if matches!(process.state, State::Deleting(_)) && wanted(process) {
                    found.push((id.clone(), exec.to_owned()));
                }
            }
        }
        found
    }

    /// Removes what is being deleted, if nothing stands against it any more.
    fn finish_delete(&mut self, id: &str, exec: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Ok(process) = container.process(exec) else { return };
        if !matches!(process.state, State::Deleting(_)) || !process.io.is_drained(&self.copies) {
            return;
        }
        if exec.is_empty() {
            // What never ran is killed by its deletion, and its exit is told first.
            let is_told = process.state.exit().is_some() || process.pid.is_none();
            if container.runtime_deleted && is_told {
                self.remove_container(id);
            }
        } else if let Some(entry) = container.execs.remove(exec) {
            self.close_streams(entry.process.io);
            let response = response(&entry.process.state, entry.process.pid);
            for call in entry.process.deleters {
                self.reply(call, Ok(response));
            }
            self.end_waits(entry.process.waiters, "process was deleted");
        }
    }

    fn remove_container(&mut self, id: &str) {
        let Some(mut container) = self.containers.remove(id) else { return };
        self.unwatch_oom(id);
        if let Some(checkpoint) = container.checkpoint.take() {
            self.close_streams(checkpoint.prepared.io);
        }
        for exec in std::mem::take(&mut container.execs).into_values() {
            self.close_streams(exec.process.io);
            self.end_waits(exec.process.waiters, "process was deleted");
        }
        self.close_streams(container.init.io);
        if let Err(error) = unmount_all(&container.bundle.rootfs()) {
            self.log.error(&sys::error::Chain(&error).to_string());
        }
        let response = response(&container.init.state, container.init.pid);
        let event = TaskDelete {
            container_id: id.to_owned(),
            pid: response.pid,
            exit_status: response.exit_status,
            exited_at: response.exited_at,
            id: String::new(),
        };
        self.publisher.publish("/tasks/delete", &event, &self.poller);
        for call in container.init.deleters {
            self.reply(call, Ok(response));
        }
        self.end_waits(container.init.waiters, "task was deleted");
    }

    /// Answers those who wait for what never ran and is gone now.
    fn end_waits(&mut self, waiters: Vec<Call>, why: &str) {
        for call in waiters {
            self.reply(call, Err::<api::WaitResponse, _>(Error::NotFound(why.to_owned())));
        }
    }
}

fn response(state: &State, pid: Option<rustix::process::Pid>) -> api::DeleteResponse {
    let exit = state.exit();
    api::DeleteResponse {
        pid: pid.map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs()),
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: Some(exit.map_or(NO_TIME, |exit| exit.at)),
    }
}
