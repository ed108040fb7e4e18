//! The calls that are answered at once, or, as `Wait`, when something happens by itself.

use proto::{containerd::task::v3 as api, time::NO_TIME};

use runc_rs::cgroup::Cgroup;

use crate::{
    error::Error,
    metrics,
    server::Call,
    shim::Shim,
    task::{exit::wait_response, state::State},
};

impl Shim {
    /// Serves `State`.
    pub(crate) fn state(&self, request: &api::StateRequest) -> Result<api::StateResponse, Error> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        // An exec is frozen with its container.
        let frozen = matches!(container.init.state, State::Pausing | State::Paused);
        let state = if frozen { container.init.state } else { process.state };
        let exit = process.state.exit();
        let streams = process.streams.clone();
        let is_init = request.exec_id.is_empty();
        Ok(api::StateResponse {
            id: if is_init { &request.id } else { &request.exec_id }.clone(),
            bundle: container.bundle.path().to_string_lossy().into_owned(),
            pid: process.raw_pid(),
            status: state.status() as i32,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            terminal: streams.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: Some(exit.map_or(NO_TIME, |exit| exit.at)),
            exec_id: request.exec_id.clone(),
        })
    }

    /// Serves `Wait`.
    pub(crate) fn wait_task(
        &mut self,
        call: Call,
        request: &api::WaitRequest,
    ) -> Result<(), Error> {
        let process = self.container_mut(&request.id)?.process_mut(&request.exec_id)?;
        match process.state.exit() {
            Some(exit) => self.reply(call, Ok(wait_response(exit))),
            None => process.waiters.push(call),
        }
        Ok(())
    }

    /// Serves `ResizePty`.
    pub(crate) fn resize_pty(&self, request: &api::ResizePtyRequest) -> Result<(), Error> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        let resized = process.io.resize(request.width, request.height);
        resized.map_err(|error| Error::unknown("resize pty", &error))
    }

    /// Serves `CloseIO`.
    pub(crate) fn close_io(&mut self, request: &api::CloseIoRequest) -> Result<(), Error> {
        let process = self.container_mut(&request.id)?.process_mut(&request.exec_id)?;
        if let Some(stream) = process.io.close_stdin() {
            self.copies.relays.close_input(stream, &self.poller);
        }
        Ok(())
    }

    /// Serves `Connect`.
    pub(crate) fn connect(
        &self,
        request: &api::ConnectRequest,
    ) -> Result<api::ConnectResponse, Error> {
        let container = self.containers.get(&request.id);
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: container.map_or(0, |container| container.init.raw_pid()),
            version: String::new(),
        })
    }

    /// Serves `Shutdown`: a shim that still has containers, or is a sandbox, stays.
    pub(crate) fn shutdown(&mut self, _request: &api::ShutdownRequest) -> Result<(), Error> {
        let unused = self.containers.is_empty() && self.creating.is_empty();
        if unused && !self.sandbox.is_live() {
            self.end();
        }
        Ok(())
    }

    /// Serves `Stats`.
    pub(crate) fn stats(&self, request: &api::StatsRequest) -> Result<api::StatsResponse, Error> {
        let container = self.container(&request.id)?;
        if container.cgroups.is_empty() {
            return Err(Error::NotFound("cgroup does not exist".to_owned()));
        }
        // Opened for this call only: a shim at rest keeps no directories open.
        let cgroup = Cgroup::load(container.cgroups.clone());
        let stats = cgroup.stats().map_err(|error| Error::unknown("cgroup stats", &error))?;
        Ok(api::StatsResponse { stats: Some(metrics::pack(&cgroup, &stats)) })
    }
}
