//! The calls that take one runtime process: kill, pause, resume, update, checkpoint, process IDs.

use std::{fs, path::Path};

use proto::{
    any,
    containerd::{
        events::{TaskCheckpointed, TaskPaused, TaskResumed},
        runc::v1::ProcessDetails,
        task::v3 as api,
        v1::types::ProcessInfo,
    },
};

use crate::{
    error::Error,
    runtime::Command,
    server::Call,
    shim::Shim,
    task::{
        job::{Job, Scratch, Streams, Then, checkpoint_options, kill_error, memory_file},
        state::{Event, State},
    },
};

impl Shim {
    /// Serves `Kill`.
    pub(crate) fn kill(&mut self, call: Call, request: &api::KillRequest) -> Result<(), Error> {
        let container = self.container(&request.id)?;
        if !request.exec_id.is_empty() {
            let process = container.process(&request.exec_id)?;
            let finished = || Error::NotFound("process already finished".to_owned());
            if process.state.exit().is_some() {
                return Err(finished());
            }
            let pid = process
                .pid
                .ok_or_else(|| Error::FailedPrecondition("process not created".to_owned()))?;
            // Its exit was not reaped, so the pid is still its own.
            sys::signal::send(pid, request.signal).map_err(|error| match error {
                rustix::io::Errno::SRCH => finished(),
                rustix::io::Errno::INVAL => {
                    Error::InvalidArgument(format!("signal {}", request.signal))
                }
                error => Error::unknown("exec kill error", &error),
            })?;
            self.reply(call, Ok(()));
            return Ok(());
        }
        let command = Command::Kill { id: &request.id, signal: request.signal, all: request.all };
        let then = Then::Kill { id: request.id.clone(), call };
        self.run_runtime(&request.id, &command, Streams::Captured, then)
            .map_err(|error| Error::unknown("unknown error after kill", &error))
    }

    pub(super) fn kill_ended(&mut self, id: &str, call: Call, result: Result<(), String>) {
        let has_exited =
            self.container(id).is_ok_and(|container| container.init.state.exit().is_some());
        let result = result.map_err(|message| match has_exited {
            // Whatever a runtime says of a container without processes.
            true => Error::NotFound("process already finished".to_owned()),
            false => kill_error(&message),
        });
        self.reply(call, result);
    }

    /// Serves `Pause`.
    pub(crate) fn pause(&mut self, call: Call, request: &api::PauseRequest) -> Result<(), Error> {
        self.container_mut(&request.id)?.init.apply(Event::Pause)?;
        let then = Then::Pause { id: request.id.clone(), call };
        let command = Command::Pause { id: &request.id };
        if let Err(error) = self.run_runtime(&request.id, &command, Streams::Captured, then) {
            let error = Error::unknown("OCI runtime pause failed", &error);
            self.pause_ended(&request.id, call, Err(error));
        }
        Ok(())
    }

    pub(super) fn pause_ended(&mut self, id: &str, call: Call, result: Result<(), Error>) {
        let event = if result.is_ok() { Event::Paused } else { Event::PauseFailed };
        if let Ok(container) = self.container_mut(id) {
            // The result of what is at work always fits.
            let _ = container.init.apply(event);
        }
        if result.is_ok() {
            let event = TaskPaused { container_id: id.to_owned() };
            self.publisher.publish("/tasks/paused", &event, &self.poller);
        }
        self.reply(call, result);
    }

    /// Lets a task go on that may be frozen, since the runtime was killed in the middle of a pause.
    /// One that is not frozen is none to resume, which is no error here.
    pub(super) fn undo_pause(&mut self, id: &str, call: Call, error: Error) {
        let then = Then::Unpause { id: id.to_owned(), call, error: error.clone() };
        let command = Command::Resume { id };
        if let Err(failure) = self.run_runtime(id, &command, Streams::Captured, then) {
            self.log.error(&format!("resume {id} after a pause that failed: {failure}"));
            self.pause_ended(id, call, Err(error));
        }
    }

    /// Freezes a task that may go on already, since the runtime was killed in the middle of a resume.
    pub(super) fn undo_resume(&mut self, id: &str, call: Call, error: Error) {
        let then = Then::Unresume { id: id.to_owned(), call, error: error.clone() };
        let command = Command::Pause { id };
        if let Err(failure) = self.run_runtime(id, &command, Streams::Captured, then) {
            self.log.error(&format!("pause {id} after a resume that failed: {failure}"));
            self.resume_ended(id, Some(call), Err(error));
        }
    }

    /// Serves `Resume`.
    pub(crate) fn resume(&mut self, call: Call, request: &api::ResumeRequest) -> Result<(), Error> {
        self.container_mut(&request.id)?.init.apply(Event::Resume)?;
        let then = Then::Resume { id: request.id.clone(), call: Some(call) };
        let command = Command::Resume { id: &request.id };
        if let Err(error) = self.run_runtime(&request.id, &command, Streams::Captured, then) {
            let error = Error::unknown("OCI runtime resume failed", &error);
            self.resume_ended(&request.id, Some(call), Err(error));
        }
        Ok(())
    }

    /// Thaws what is left of a task whose init was killed while it was frozen.
    pub(super) fn thaw_dead(&mut self, id: &str) {
        let then = Then::Resume { id: id.to_owned(), call: None };
        let command = Command::Resume { id };
        if let Err(error) = self.run_runtime(id, &command, Streams::Captured, then) {
            self.log.warn(&format!("resume {id} after its exit: {error}"));
        }
    }

    pub(super) fn resume_ended(&mut self, id: &str, call: Option<Call>, result: Result<(), Error>) {
        let Some(call) = call else {
            if let Err(error) = result {
                self.log.debug(&format!("resume {id} after its exit: {error}"));
            }
            return;
        };
        let event = if result.is_ok() { Event::Resumed } else { Event::ResumeFailed };
        if let Ok(container) = self.container_mut(id) {
            // The result of what is at work always fits.
            let _ = container.init.apply(event);
        }
        if result.is_ok() {
            let event = TaskResumed { container_id: id.to_owned() };
            self.publisher.publish("/tasks/resumed", &event, &self.poller);
        }
        self.reply(call, result);
    }

    /// Serves `Update`.
    pub(crate) fn update(
        &mut self,
        call: Call,
        request: &api::UpdateTaskRequest,
    ) -> Result<(), Error> {
        let state = self.container(&request.id)?.init.state;
        if matches!(state, State::Stopped(_) | State::Deleting(_)) {
            return Err(Error::FailedPrecondition("cannot update a stopped container".to_owned()));
        }
        let json = request.resources.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
        serde_json::from_slice::<serde_json::Map<_, serde_json::Value>>(json)
            .map_err(|error| Error::InvalidArgument(format!("resources: {error}")))?;
        let failed = |error: &std::io::Error| Error::unknown("OCI runtime update failed", error);
        let input = memory_file("resources.json", json).map_err(|error| failed(&error))?;
        let command = Command::Update { id: &request.id };
        self.run_runtime(&request.id, &command, Streams::Input(input), Then::Update(call))
            .map_err(|error| failed(&error))
    }

    /// Serves `Checkpoint`.
    pub(crate) fn checkpoint(
        &mut self,
        call: Call,
        request: api::CheckpointTaskRequest,
    ) -> Result<(), Error> {
        let container = self.container(&request.id)?;
        let refused = |text: &str| Err(Error::FailedPrecondition(text.to_owned()));
        match container.init.state {
            State::Running | State::Paused => {}
            State::Created | State::Starting => {
                return refused("cannot checkpoint a task in created state");
            }
            State::Stopped(_) | State::Deleting(_) => {
                return refused("cannot checkpoint a stopped container");
            }
            State::Pausing | State::Resuming => {
                return refused("cannot checkpoint a task that is being paused or resumed");
            }
        }
        let options = checkpoint_options(&request)?;
        let work = Scratch {
            temporary: options.work_path.is_empty(),
            path: match options.work_path.as_str() {
                "" => container.bundle.file("work").join("criu-work"),
                path => path.into(),
            },
        };
        let dump_log = container.bundle.file("criu-dump.log");
        let (id, path) = (request.id.clone(), work.path.clone());
        let image = request.path.clone();
        let command =
            Command::Checkpoint { id: &id, image: &image, work: &path, options: &options };
        let request = Box::new(request);
        let then = Then::Checkpoint { call, request, work, dump_log };
        self.run_runtime(&id, &command, Streams::Captured, then)
            .map_err(|error| Error::unknown("checkpoint", &error))
    }

    pub(super) fn checkpoint_ended(
        &mut self,
        call: Call,
        request: &api::CheckpointTaskRequest,
        work: &Scratch,
        (dump_log, result): (&Path, Result<(), String>),
    ) {
        if result.is_err()
            && let Err(error) = fs::copy(work.path.join("dump.log"), dump_log)
        {
            self.log.warn(&format!("keep criu's log: {error}"));
        }
        if work.temporary {
            // criu may not have got so far as to make it.
            let _ = fs::remove_dir_all(&work.path);
        }
        let result = result.map_err(|message| {
            let line = message.lines().next().unwrap_or_default();
            Error::Unknown(format!("{line} path= {}", dump_log.display()))
        });
        if result.is_ok() {
            let event = TaskCheckpointed {
                container_id: request.id.clone(),
                checkpoint: request.path.clone(),
            };
            self.publisher.publish("/tasks/checkpointed", &event, &self.poller);
        }
        self.reply(call, result);
    }

    /// Serves `Pids`.
    pub(crate) fn pids(&mut self, call: Call, request: &api::PidsRequest) -> Result<(), Error> {
        self.container(&request.id)?;
        let then = Then::Pids { id: request.id.clone(), call };
        self.run_runtime(&request.id, &Command::Ps { id: &request.id }, Streams::Captured, then)
            .map_err(|error| Error::unknown("list processes", &error))
    }

    pub(super) fn pids_ended(
        &mut self,
        id: &str,
        call: Call,
        result: Result<(), String>,
        output: &[u8],
    ) {
        let pids = result.map_err(Error::Unknown).and_then(|()| {
            serde_json::from_slice::<Option<Vec<u32>>>(output)
                .map_err(|error| Error::unknown("list processes", &error))
        });
        let processes = pids.map(|pids| {
            let pids = pids.unwrap_or_default();
            pids.into_iter().map(|pid| self.process_info(id, pid)).collect()
        });
        self.reply(call, processes.map(|processes| api::PidsResponse { processes }));
    }

    fn process_info(&self, id: &str, pid: u32) -> ProcessInfo {
        let execs = self.containers.get(id).map(|container| &container.execs);
        let exec = execs.into_iter().flatten().find(|(_, exec)| exec.process.raw_pid() == pid);
        let details = exec.map(|(exec, _)| ProcessDetails { exec_id: exec.clone() });
        ProcessInfo { pid, info: details.as_ref().map(any::pack) }
    }

    /// Starts the runtime of a container with a command.
    pub(super) fn run_runtime(
        &mut self,
        id: &str,
        command: &Command<'_>,
        streams: Streams,
        then: Then,
    ) -> Result<(), std::io::Error> {
        let Some(container) = self.containers.get(id) else {
            return Err(std::io::ErrorKind::NotFound.into());
        };
        let started = Job::start(&container.runtime, command, streams, then);
        self.take_job(started)
    }
}
