//! `Exec` and `Start`: init runs, a checkpoint runs again, or an exec is made and runs.
//!
//! An exec's streams are opened when it starts, not when it is added; what it runs reaches the
//! runtime in a memory file, through `/proc/<shim>/fd`, so that nothing is left on disk when
//! either of them is killed.

use std::{os::fd::AsRawFd, path::PathBuf};

use proto::containerd::{
    events::{TaskExecAdded, TaskExecStarted, TaskStart},
    task::v3 as api,
};
use rustix::process::{Signal, kill_process};
use serde_json::{Map, Value};

use crate::{
    error::Error,
    reaper::{Exit, Reaper},
    runtime::Command,
    server::Call,
    shim::Shim,
    stdio::{self, Io, Owner, Prepared, Streams},
    task::{
        container::{Container, Exec, Process, check_id},
        create::{AfterLogger, LoggerWait},
        job::{self, Job, Then, memory_file},
        state::{Event, State},
    },
};

/// What an exec that could not be started counts as.
const NOT_STARTED: u32 = 255;

impl Shim {
    /// Serves `Exec`.
    pub(crate) fn exec(&mut self, request: api::ExecProcessRequest) -> Result<(), Error> {
        let container = self.container_mut(&request.id)?;
        check_id(&request.exec_id)?;
        if container.execs.contains_key(&request.exec_id) {
            return Err(Error::AlreadyExists(format!("id {}", request.exec_id)));
        }
        match container.init.state {
            State::Created if container.checkpoint.is_some() => Err("created"),
            State::Created | State::Starting | State::Running | State::Resuming => Ok(()),
            State::Pausing | State::Paused => Err("paused"),
            State::Stopped(_) | State::Deleting(_) => Err("stopped"),
        }
        .map_err(|state| Error::FailedPrecondition(format!("cannot exec in a {state} state")))?;
        let spec = request.spec.as_ref().map(|spec| spec.value.as_slice()).unwrap_or_default();
        let spec = with_terminal(spec, request.terminal)?;
        let streams = Streams {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let exec = Exec { process: Process::new(streams, Io::default()), spec };
        container.execs.insert(request.exec_id.clone(), exec);
        let event = TaskExecAdded { container_id: request.id, exec_id: request.exec_id };
        self.publisher.publish("/tasks/exec-added", &event, &self.poller);
        Ok(())
    }

    /// Serves `Start`.
    pub(crate) fn start(&mut self, call: Call, request: &api::StartRequest) -> Result<(), Error> {
        if !request.exec_id.is_empty() {
            return self.start_exec(call, request);
        }
        self.sandbox.check_open()?;
        let container = self.container_mut(&request.id)?;
        container.init.apply(Event::Start)?;
        match container.checkpoint.take() {
            Some(checkpoint) => self.restore(call, &request.id, checkpoint),
            None => {
                let runtime = container.runtime.clone();
                let then = Then::Start { id: request.id.clone(), call };
                let command = Command::Start { id: &request.id };
                let started = Job::start(&runtime, &command, job::Streams::Captured, then);
                if let Err(error) = self.take_job(started) {
                    self.start_failed(&request.id);
                    return Err(Error::unknown("OCI runtime start failed", &error));
                }
            }
        }
        Ok(())
    }

    fn restore(&mut self, call: Call, id: &str, checkpoint: super::container::Checkpoint) {
        let Some(container) = self.containers.get(id) else { return };
        let (runtime, options) = (container.runtime.clone(), container.options.clone());
        let bundle = container.bundle.clone();
        let mut prepared = checkpoint.prepared;
        let console = prepared.console.as_ref().map(|socket| socket.path().to_owned());
        let streams = match console {
            Some(_) => job::Streams::Captured,
            None => job::Streams::Container(std::mem::take(&mut prepared.child)),
        };
        let work = match options.criu_work_path.as_str() {
            "" => bundle.file("work"),
            path => PathBuf::from(path),
        };
        let command = Command::Restore {
            id,
            bundle: bundle.path(),
            pid_file: &bundle.pid_file(None),
            console: console.as_deref(),
            options: &options,
            image: &checkpoint.image,
            parent: &checkpoint.parent,
            work: &work,
        };
        let then = Then::Restore { id: id.to_owned(), call, prepared };
        match Job::start(&runtime, &command, streams, then) {
            Ok((pid, job)) => {
                self.reaper.hold();
                self.jobs.insert(pid, job);
            }
            Err((error, then)) => {
                if let Then::Restore { prepared, .. } = *then {
                    self.close_streams(prepared.io);
                }
                let error = Error::unknown("OCI runtime restore failed", &error);
                self.restore_failed(id, call, error);
            }
        }
    }

    /// Goes on when the runtime's `start` has ended.
    pub(super) fn start_ended(&mut self, id: &str, call: Call, result: Result<(), String>) {
        match result {
            Ok(()) => self.started(id, call),
            Err(message) => {
                self.start_failed(id);
                let error = Error::Unknown(format!("OCI runtime start failed: {message}"));
                self.reply(call, Err::<api::StartResponse, _>(error));
            }
        }
        self.tell_init_exit(id);
    }

    /// Goes on when the runtime's `restore` has ended.
    pub(super) fn restore_ended(
        &mut self,
        id: &str,
        call: Call,
        mut prepared: Prepared,
        (result, was_killed): (Result<(), String>, bool),
    ) {
        // A runtime that fails takes back what it did, unless it was killed.
        let leaves_something = was_killed || result.is_ok();
        let attached = result
            .map_err(|message| Error::Unknown(format!("OCI runtime restore failed: {message}")));
        self.settle_logger(&mut prepared.io);
        let Some(container) = self.containers.get_mut(id) else {
            self.close_streams(prepared.io);
            return self.reaper.release();
        };
        let attached = attached.and_then(|()| {
            prepared
                .attach(&mut self.copies, &mut self.poller)
                .map_err(|error| Error::unknown("failed to retrieve console master", &error))?;
            container.bundle.read_pid(None).map_err(|error| {
                Error::unknown("failed to retrieve OCI runtime container pid", &error)
            })
        });
        container.init.io = prepared.io;
        match attached {
            Ok(pid) => {
                container.init.pid = Some(pid);
                self.started(id, call);
                self.watch_oom(id);
                if let Some(exit) = self.reaper.claim(pid) {
                    self.init_exited(id, exit);
                }
            }
            Err(error) if leaves_something => self.unrestore(id, call, error),
            Err(error) => self.restore_failed(id, call, error),
        }
        self.reaper.release();
    }

    /// Has the runtime remove what its `restore` has left: cgroups, records, perhaps processes.
    fn unrestore(&mut self, id: &str, call: Call, error: Error) {
        let then = Then::Unrestore { id: id.to_owned(), call, error: error.clone() };
        let command = Command::Delete { id, force: true };
        if let Err(failure) = self.run_runtime(id, &command, job::Streams::Captured, then) {
            self.log.error(&format!("remove what a restore has left: {failure}"));
            self.restore_failed(id, call, error);
        }
    }

    /// Goes on when what a `restore` has left is removed.
    pub(super) fn unrestored(
        &mut self,
        id: &str,
        call: Call,
        error: Error,
        result: Result<(), String>,
    ) {
        match result {
            Err(message) => {
                self.log.error(&format!("remove what a restore has left: {message}"));
            }
            Ok(()) => {
                if let Some(container) = self.containers.get_mut(id) {
                    container.runtime_deleted = true;
                }
            }
        }
        self.restore_failed(id, call, error);
    }

    fn restore_failed(&mut self, id: &str, call: Call, error: Error) {
        self.start_failed(id);
        self.reply(call, Err::<api::StartResponse, _>(error));
    }

    fn started(&mut self, id: &str, call: Call) {
        let Some(container) = self.containers.get_mut(id) else { return };
        // Only a start that is at work gets here, and its result always fits.
        let _ = container.init.apply(Event::Started);
        if let Err(error) = container.init.io.open_input(&mut self.copies, &mut self.poller) {
            self.log.error(&format!("open stdin of {id}: {error}"));
        }
        let pid = container.init.raw_pid();
        let event = TaskStart { container_id: id.to_owned(), pid };
        self.publisher.publish("/tasks/start", &event, &self.poller);
        self.reply(call, Ok(api::StartResponse { pid }));
    }

    fn start_failed(&mut self, id: &str) {
        if let Some(container) = self.containers.get_mut(id) {
            let _ = container.init.apply(Event::StartFailed);
        }
    }

    fn start_exec(&mut self, call: Call, request: &api::StartRequest) -> Result<(), Error> {
        let container = self.container_mut(&request.id)?;
        if container.held_exit.is_some() || container.init.state.exit().is_some() {
            let id = &container.id;
            let text = format!("container {id} init process is not running");
            return Err(Error::FailedPrecondition(text));
        }
        let process = container.process_mut(&request.exec_id)?;
        process.apply(Event::Start)?;
        let streams = process.streams.clone();
        let options = &container.options;
        let owner = Owner {
            id: &request.exec_id,
            ids: (options.io_uid, options.io_gid),
            namespace: &self.config.namespace,
            socket: &self.config.socket,
        };
        let prepared = stdio::prepare(&streams, owner, &mut self.copies, &mut self.poller);
        let (id, exec) = (request.id.clone(), request.exec_id.clone());
        let mut prepared = match prepared {
            Ok(prepared) => Box::new(prepared),
            Err(error) => {
                let error = Error::unknown("failed to create init process I/O", &error);
                self.exec_failed((&id, &exec), call, Prepared::default(), error);
                return Ok(());
            }
        };
        match self.take_starting_logger(&mut prepared) {
            Some((number, logger)) => {
                let then = AfterLogger::Exec { id, exec, call, prepared };
                self.loggers_starting.insert(number, LoggerWait::new(logger, then));
            }
            None => self.exec_by_runtime(id, exec, call, prepared),
        }
        Ok(())
    }

    pub(super) fn exec_by_runtime(
        &mut self,
        id: String,
        exec: String,
        call: Call,
        mut prepared: Box<Prepared>,
    ) {
        let found = self.containers.get(&id).and_then(|container| {
            let spec = &container.execs.get(&exec)?.spec;
            Some((container, memory_file("process.json", spec)))
        });
        let (container, spec) = match found {
            Some((container, Ok(spec))) => (container, spec),
            Some((_, Err(error))) => {
                let error = Error::unknown("OCI runtime exec failed", &error);
                return self.exec_failed((&id, &exec), call, *prepared, error);
            }
            None => {
                let error = Error::NotFound(format!("process does not exist {exec}"));
                return self.exec_failed((&id, &exec), call, *prepared, error);
            }
        };
        let runtime = container.runtime.clone();
        let pid_file = container.bundle.pid_file(Some(&exec));
        // One of an exec that is gone, whose number may be anyone's by now.
        let _ = std::fs::remove_file(&pid_file);
        let process = format!("/proc/{}/fd/{}", std::process::id(), spec.as_raw_fd());
        let console = prepared.console.as_ref().map(|socket| socket.path().to_owned());
        let child = std::mem::take(&mut prepared.child);
        let streams = match console {
            Some(_) => job::Streams::Captured,
            None => job::Streams::Container(child),
        };
        let command = Command::Exec {
            id: &id.clone(),
            process: process.as_ref(),
            pid_file: &pid_file,
            console: console.as_deref(),
        };
        let then = Then::Exec { id, exec, call, prepared, _spec: spec };
        match Job::start(&runtime, &command, streams, then) {
            Ok((pid, job)) => {
                self.reaper.hold();
                self.jobs.insert(pid, job);
            }
            Err((error, then)) => {
                if let Then::Exec { id, exec, call, prepared, .. } = *then {
                    let error = Error::unknown("OCI runtime exec failed", &error);
                    self.exec_failed((&id, &exec), call, *prepared, error);
                }
            }
        }
    }

    /// Goes on when the runtime's `exec` has ended.
    pub(super) fn exec_ended(
        &mut self,
        (id, exec): (&str, &str),
        call: Call,
        mut prepared: Prepared,
        result: Result<(), String>,
    ) {
        self.settle_logger(&mut prepared.io);
        match self.attach_exec((id, exec), &mut prepared, result) {
            Ok((process, exit)) => {
                process.io = prepared.io;
                // As for init, its result always fits.
                let _ = process.apply(Event::Started);
                let pid = process.raw_pid();
                let (container_id, exec_id) = (id.to_owned(), exec.to_owned());
                let event = TaskExecStarted { container_id, exec_id, pid };
                self.publisher.publish("/tasks/exec-started", &event, &self.poller);
                self.reply(call, Ok(api::StartResponse { pid }));
                if let Some(exit) = exit {
                    self.exec_exited(id, exec, exit);
                }
            }
            Err(error) => {
                self.end_unknown(id, exec);
                self.exec_failed((id, exec), call, prepared, error);
            }
        }
        self.reaper.release();
    }

    /// Ends the process of an exec that could not be started after all: its runtime was killed when it
    /// had said which it is, or there is no terminal for it.
    fn end_unknown(&mut self, id: &str, exec: &str) {
        let Some(container) = self.containers.get(id) else { return };
        let Ok(pid) = container.bundle.read_pid(Some(exec)) else { return };
        let _ = std::fs::remove_file(container.bundle.pid_file(Some(exec)));
        // A child's number is its own until it is reaped, and then its exit was kept. What is no child has
        // been reaped by the runtime, and the number may be anyone's; so may that of a child that is
        // known by another name.
        let is_known = self.jobs.contains_key(&pid)
            || self.loggers.contains_key(&pid)
            || self.containers.values().any(|container| container.find(pid).is_some());
        if self.reaper.claim(pid).is_none() && Reaper::is_child(pid) && !is_known {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    fn attach_exec(
        &mut self,
        (id, exec): (&str, &str),
        prepared: &mut Prepared,
        result: Result<(), String>,
    ) -> Result<(&mut Process, Option<Exit>), Error> {
        result.map_err(|message| Error::Unknown(format!("OCI runtime exec failed: {message}")))?;
        let container = self
            .containers
            .get_mut(id)
            .ok_or_else(|| Error::NotFound(format!("container {id}")))?;
        let pid_file = container.bundle.pid_file(Some(exec));
        let pid = container
            .bundle
            .read_pid(Some(exec))
            .map_err(|error| Error::unknown("failed to retrieve OCI runtime exec pid", &error))?;
        let process = container.process_mut(exec)?;
        prepared
            .attach(&mut self.copies, &mut self.poller)
            .map_err(|error| Error::unknown("failed to retrieve console master", &error))?;
        prepared
            .io
            .open_input(&mut self.copies, &mut self.poller)
            .map_err(|error| Error::unknown("open stdin", &error))?;
        // It has served; a later exec of that name must not find it.
        let _ = std::fs::remove_file(pid_file);
        process.pid = Some(pid);
        Ok((process, self.reaper.claim(pid)))
    }

    /// Gives up an exec that could not be started: whoever waits for it learns that.
    pub(super) fn exec_failed(
        &mut self,
        (id, exec): (&str, &str),
        call: Call,
        prepared: Prepared,
        error: Error,
    ) {
        self.close_streams(prepared.io);
        if let Some(process) =
            self.containers.get_mut(id).and_then(|container| container.process_mut(exec).ok())
        {
            let exit = Exit::now(NOT_STARTED);
            // Every state takes an exit.
            let _ = process.apply(Event::Exit(exit));
            for waiter in std::mem::take(&mut process.waiters) {
                let response = super::exit::wait_response(exit);
                self.reply(waiter, Ok(response));
            }
        }
        self.reply(call, Err::<api::StartResponse, _>(error));
        self.tell_init_exit(id);
    }

    /// The container `id`.
    pub(super) fn container(&self, id: &str) -> Result<&Container, Error> {
        self.containers.get(id).ok_or_else(not_created)
    }

    /// The container `id`, to change it.
    pub(super) fn container_mut(&mut self, id: &str) -> Result<&mut Container, Error> {
        self.containers.get_mut(id).ok_or_else(not_created)
    }

    /// Keeps a job that was started.
    pub(super) fn take_job(
        &mut self,
        started: Result<(rustix::process::Pid, Job), (std::io::Error, Box<Then>)>,
    ) -> Result<(), std::io::Error> {
        let (pid, job) = started.map_err(|(error, _)| error)?;
        self.jobs.insert(pid, job);
        Ok(())
    }
}

fn not_created() -> Error {
    Error::NotFound("container not created".to_owned())
}

/// The process to run, with a terminal as the request says, whatever the process says.
fn with_terminal(spec: &[u8], terminal: bool) -> Result<Vec<u8>, Error> {
    let invalid = |error: serde_json::Error| Error::InvalidArgument(format!("process: {error}"));
    let mut process: Map<String, Value> = serde_json::from_slice(spec).map_err(invalid)?;
    process.insert("terminal".to_owned(), Value::Bool(terminal));
    serde_json::to_vec(&process).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_is_the_requests() {
        let cases = [
            (
                r#"{"args":["a"],"terminal":true}"#,
                false,
                Some(r#"{"args":["a"],"terminal":false}"#),
            ),
            (r#"{"args":["a"]}"#, true, Some(r#"{"args":["a"],"terminal":true}"#)),
            ("", false, None),
            ("[]", false, None),
        ];
        for (spec, terminal, want) in cases {
            let got = with_terminal(spec.as_bytes(), terminal).ok();
            assert_eq!(got.as_deref(), want.map(str::as_bytes), "{spec}");
        }
    }
}
