//! What follows when a process below the shim has ended.
//!
//! The exit of a container's init is told last: after the start that may still be at work has
//! been answered, and after the exits of the execs. Where the container has no pid namespace of
//! its own, the kernel does not kill what init leaves behind, so the runtime does.
//!
//! ```text
//!  init exits ──> held ──> start over? ──> execs gone? ──> TaskExit, waiters answered
//!                   └──> kill --all, without an own pid namespace
//! ```

use proto::containerd::{events::TaskExit, task::v3 as api};
use rustix::process::Pid;

use crate::{
    error::Error,
    reaper::Exit,
    runtime::Command,
    shim::Shim,
    task::{
        job::{self, Job, Then},
        state::{Event, State},
    },
};

/// What the number of the signal that ended a process is added to.
const SIGNAL_BASE: u32 = 128;

impl Shim {
    /// Finds out who has ended, and goes on.
    pub(crate) fn process_ended(&mut self, pid: Pid, exit: Exit) {
        if let Some(job) = self.jobs.remove(&pid) {
            return self.job_ended(job, exit);
        }
        if self.loggers.remove(&pid).is_some() {
            return self.logger_ended(pid);
        }
        let owner = self
            .containers
            .iter()
            .find_map(|(id, container)| Some((id.clone(), container.find(pid)?)));
        match owner {
            Some((id, exec)) if exec.is_empty() => self.init_exited(&id, exit),
            Some((id, exec)) => self.exec_exited(&id, &exec, exit),
            None => self.reaper.orphan(pid, exit),
        }
    }

    /// Goes on with the operation of a runtime that has ended.
    fn job_ended(&mut self, mut job: Job, exit: Exit) {
        let result = job.result(exit);
        let was_killed = exit.status > SIGNAL_BASE;
        if let Err(message) = &result {
            self.log.debug(message);
        }
        let output = match job.then {
            Then::Pids { .. } => job.output().unwrap_or_default(),
            _ => Vec::new(),
        };
        let ok = |what: &str| {
            result.clone().map_err(|message| Error::Unknown(format!("{what}: {message}")))
        };
        match job.then {
            Then::Create(creation) => self.create_ended(*creation, result, was_killed),
            Then::Uncreate(creation, error) => {
                if let Err(message) = result {
                    self.log.error(&format!("remove what a create has left: {message}"));
                }
                self.create_failed(*creation, error);
            }
            Then::Start { id, call } => self.start_ended(&id, call, result),
            Then::Restore { id, call, prepared } => {
                self.restore_ended(&id, call, *prepared, (result, was_killed));
            }
            Then::Unrestore { id, call, error } => self.unrestored(&id, call, error, result),
            Then::Exec { id, exec, call, prepared, .. } => {
                self.exec_ended((&id, &exec), call, *prepared, result);
            }
            Then::Kill { id, call } => self.kill_ended(&id, call, result),
            Then::KillAll { id } => {
                if let Err(message) = result {
                    self.log.warn(&format!("kill the processes of {id}: {message}"));
                }
            }
            Then::Delete { id } => self.runtime_delete_ended(&id, result),
            Then::Pause { id, call } => match ok("OCI runtime pause failed") {
                Err(error) if was_killed => self.undo_pause(&id, call, error),
                result => self.pause_ended(&id, call, result),
            },
            Then::Resume { id, call } => match (call, ok("OCI runtime resume failed")) {
                (Some(call), Err(error)) if was_killed => self.undo_resume(&id, call, error),
                (call, result) => self.resume_ended(&id, call, result),
            },
            Then::Unpause { id, call, error } => self.pause_ended(&id, call, Err(error)),
            Then::Unresume { id, call, error } => self.resume_ended(&id, Some(call), Err(error)),
            Then::Pids { id, call } => self.pids_ended(&id, call, result, &output),
            Then::Update(call) => {
                let result = ok("OCI runtime update failed");
                self.reply(call, result);
            }
            Then::Checkpoint { call, request, work, dump_log } => {
                self.checkpoint_ended(call, &request, &work, (&dump_log, result));
            }
        }
    }

    /// Takes note of the exit of a container's init, which is told when it may be.
    pub(super) fn init_exited(&mut self, id: &str, exit: Exit) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.held_exit = Some(exit);
        if !container.has_own_pid_namespace {
            self.kill_all(id);
        }
        self.tell_init_exit(id);
    }

    /// Has the runtime kill all processes of a container.
    pub(crate) fn kill_all(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else { return };
        let runtime = container.runtime.clone();
        let command = Command::Kill { id, signal: libc::SIGKILL.unsigned_abs(), all: true };
        let then = Then::KillAll { id: id.to_owned() };
        let started = Job::start(&runtime, &command, job::Streams::Captured, then);
        if let Err(error) = self.take_job(started) {
            self.log.warn(&format!("kill the processes of {id}: {error}"));
        }
    }

    /// Tells the exit of init, if there is one and its time has come.
    pub(super) fn tell_init_exit(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.init.state == State::Starting || container.has_live_execs() {
            return;
        }
        let Some(exit) = container.held_exit.take() else { return };
        let was_frozen = matches!(container.init.state, State::Pausing | State::Paused);
        self.unwatch_oom(id);
        self.process_exited(id, "", exit);
        if was_frozen {
            self.thaw_dead(id);
        }
    }

    /// Takes note of the exit of an exec.
    pub(super) fn exec_exited(&mut self, id: &str, exec: &str, exit: Exit) {
        self.process_exited(id, exec, exit);
        self.tell_init_exit(id);
    }

    fn process_exited(&mut self, id: &str, exec: &str, exit: Exit) {
        let Some(process) =
            self.containers.get_mut(id).and_then(|container| container.process_mut(exec).ok())
        else {
            return;
        };
        // Every state takes an exit.
        let _ = process.apply(Event::Exit(exit));
        process.io.exited(&mut self.copies, &self.poller);
        let waiters = std::mem::take(&mut process.waiters);
        let event = TaskExit {
            container_id: id.to_owned(),
            id: if exec.is_empty() { id } else { exec }.to_owned(),
            pid: process.raw_pid(),
            exit_status: exit.status,
            exited_at: Some(exit.at),
        };
        self.publisher.publish("/tasks/exit", &event, &self.poller);
        for call in waiters {
            self.reply(call, Ok(wait_response(exit)));
        }
        self.output_ended();
        self.sandbox_may_have_stopped();
    }

    fn logger_ended(&mut self, pid: Pid) {
        for container in self.containers.values_mut() {
            let execs = container.execs.values_mut().map(|exec| &mut exec.process);
            let mut processes = execs.chain([&mut container.init]);
            if processes.any(|process| process.io.logger_exited(pid)) {
                break;
            }
        }
        self.output_ended();
    }
}

/// The answer to `Wait`.
pub(super) fn wait_response(exit: Exit) -> api::WaitResponse {
    api::WaitResponse { exit_status: exit.status, exited_at: Some(exit.at) }
}
