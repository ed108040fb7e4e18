//! The sandbox API, for engines that run a pod's sandbox through it.
//!
//! A shim that holds several containers needs nothing of its own to be their sandbox: no pause
//! process and no root filesystem. The sandbox is the shim; its process ID is the shim's, and it
//! ends when someone stops it.
//!
//! ```text
//!  Create ──> Created ──Start──> Ready ──Stop──> Stopping ──> Stopped
//!                │                                  │            ^
//!                └────────────────Stop──────────────┼────────────┘
//!                                    containers are killed
//! ```
//!
//! - A shim has one sandbox at most. Calls for another are told that it is not there.
//! - While there is one that has not been shut down, the shim stays, whatever becomes of its
//!   containers.
//! - `StopSandbox` kills every container, whatever patience it was called with, and is answered
//!   when all are gone; after it no task can be created. Containers that have ended stay until they
//!   are deleted, since their exits belong to others.
//! - `ShutdownSandbox` ends the shim. It is refused while there are containers: the shim is the only
//!   one that knows how to delete them.
//! - The metrics of a sandbox are those of the control group that its specification names, below
//!   which an engine puts the containers.
//!
//! Source: containerd `api/runtime/sandbox/v1`, `plugins/sandbox/controller.go`.

use std::time::SystemTime;

use prost_types::Timestamp;
use proto::containerd::{
    runtime::sandbox::v1 as api,
    types::{Metric, Platform},
};
use runc_rs::cgroup::Cgroup;

use crate::{
    bundle::Bundle,
    error::Error,
    metrics,
    reaper::Exit,
    server::Call,
    shim::{Answer, Shim, decode, later, now},
    task::check_id,
};

/// The service's name.
pub(crate) const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";

/// Where the sandbox is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// No one has asked for one.
    #[default]
    Absent,
    Created,
    Ready(Timestamp),
    Stopping(Timestamp),
    /// With when it was started, if it was.
    Stopped(Option<Timestamp>, Exit),
}

/// The sandbox of a shim.
#[derive(Debug, Default)]
pub(crate) struct Sandbox {
    state: State,
    id: String,
    bundle: String,
    /// Calls that are answered when it has stopped.
    waiters: Vec<Call>,
    stoppers: Vec<Call>,
}

impl Sandbox {
    /// Whether the shim must stay for it.
    pub(crate) fn is_live(&self) -> bool {
        self.state != State::Absent
    }

    /// Refuses a new task in a sandbox that is stopped, or is about to be.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition`.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        match self.state {
            State::Stopping(_) | State::Stopped(..) => {
                Err(Error::FailedPrecondition(format!("sandbox {} is stopped", self.id)))
            }
            _ => Ok(()),
        }
    }

    fn check(&self, id: &str) -> Result<(), Error> {
        if self.state == State::Absent || self.id != id {
            return Err(Error::NotFound(format!("sandbox {id}")));
        }
        Ok(())
    }

    fn started(&self) -> Option<Timestamp> {
        match self.state {
            State::Ready(at) | State::Stopping(at) => Some(at),
            State::Stopped(at, _) => at,
            State::Absent | State::Created => None,
        }
    }
}

impl Shim {
    pub(crate) fn sandbox_call(
        &mut self,
        call: Call,
        method: &str,
        payload: &[u8],
    ) -> Result<Answer, Error> {
        match method {
            "CreateSandbox" => now(self.create_sandbox(decode(payload)?)),
            "StartSandbox" => now(self.start_sandbox(&decode(payload)?)),
            "Platform" => now(self.sandbox_platform(&decode(payload)?)),
            "StopSandbox" => later(self.stop_sandbox(call, &decode(payload)?)),
            "WaitSandbox" => later(self.wait_sandbox(call, &decode(payload)?)),
            "SandboxStatus" => now(self.sandbox_status(decode(payload)?)),
            "PingSandbox" => now(self.ping_sandbox(&decode(payload)?)),
            "ShutdownSandbox" => now(self.shutdown_sandbox(&decode(payload)?)),
            "SandboxMetrics" => now(self.sandbox_metrics(&decode(payload)?)),
            _ => Err(Error::NotImplemented(format!("method {method}"))),
        }
    }

    fn create_sandbox(
        &mut self,
        request: api::CreateSandboxRequest,
    ) -> Result<api::CreateSandboxResponse, Error> {
        check_id(&request.sandbox_id)?;
        if self.sandbox.state != State::Absent {
            return Err(Error::AlreadyExists(format!("sandbox {}", self.sandbox.id)));
        }
        if !request.rootfs.is_empty() {
            let text = "a sandbox has no root filesystem of its own".to_owned();
            return Err(Error::InvalidArgument(text));
        }
        self.sandbox.state = State::Created;
        self.sandbox.id = request.sandbox_id;
        self.sandbox.bundle = request.bundle_path;
        Ok(api::CreateSandboxResponse {})
    }

    fn start_sandbox(
        &mut self,
        request: &api::StartSandboxRequest,
    ) -> Result<api::StartSandboxResponse, Error> {
        self.sandbox.check(&request.sandbox_id)?;
        if self.sandbox.state != State::Created {
            let text = format!("sandbox {} was started before", self.sandbox.id);
            return Err(Error::FailedPrecondition(text));
        }
        let started = SystemTime::now().into();
        self.sandbox.state = State::Ready(started);
        Ok(api::StartSandboxResponse {
            pid: std::process::id(),
            created_at: Some(started),
            spec: None,
        })
    }

    fn sandbox_platform(
        &self,
        request: &api::PlatformRequest,
    ) -> Result<api::PlatformResponse, Error> {
        self.sandbox.check(&request.sandbox_id)?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform = Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            ..Platform::default()
        };
        Ok(api::PlatformResponse { platform: Some(platform) })
    }

    fn stop_sandbox(&mut self, call: Call, request: &api::StopSandboxRequest) -> Result<(), Error> {
        self.sandbox.check(&request.sandbox_id)?;
        self.sandbox.stoppers.push(call);
        match self.sandbox.state {
            State::Ready(started) => {
                self.sandbox.state = State::Stopping(started);
                let ids: Vec<String> = self.containers.keys().cloned().collect();
                ids.iter().for_each(|id| self.kill_for_sandbox(id));
            }
            State::Created => self.sandbox.state = State::Stopped(None, Exit::now(0)),
            State::Absent | State::Stopping(_) | State::Stopped(..) => {}
        }
        self.sandbox_may_have_stopped();
        Ok(())
    }

    /// Kills a container whose creation was at work when its sandbox was stopped.
    pub(crate) fn created_in_sandbox(&mut self, id: &str) {
        if matches!(self.sandbox.state, State::Stopping(_)) {
            self.kill_for_sandbox(id);
        }
    }

    fn kill_for_sandbox(&mut self, id: &str) {
        if self.containers.get(id).is_some_and(|container| container.is_live()) {
            self.kill_all(id);
        }
    }

    /// Tells of the sandbox's end, if it is being stopped and no container lives any more.
    pub(crate) fn sandbox_may_have_stopped(&mut self) {
        if let State::Stopping(started) = self.sandbox.state
            && self.creating.is_empty()
            && !self.containers.values().any(|container| container.is_live())
        {
            self.sandbox.state = State::Stopped(Some(started), Exit::now(0));
        }
        let State::Stopped(_, exit) = self.sandbox.state else { return };
        for call in std::mem::take(&mut self.sandbox.stoppers) {
            self.reply(call, Ok(api::StopSandboxResponse {}));
        }
        for call in std::mem::take(&mut self.sandbox.waiters) {
            let response =
                api::WaitSandboxResponse { exit_status: exit.status, exited_at: Some(exit.at) };
            self.reply(call, Ok(response));
        }
    }

    fn wait_sandbox(&mut self, call: Call, request: &api::WaitSandboxRequest) -> Result<(), Error> {
        self.sandbox.check(&request.sandbox_id)?;
        self.sandbox.waiters.push(call);
        self.sandbox_may_have_stopped();
        Ok(())
    }

    fn sandbox_status(
        &self,
        request: api::SandboxStatusRequest,
    ) -> Result<api::SandboxStatusResponse, Error> {
        self.sandbox.check(&request.sandbox_id)?;
        let state = match self.sandbox.state {
            State::Ready(_) => "SANDBOX_READY",
            _ => "SANDBOX_NOTREADY",
        };
        let exited_at = match self.sandbox.state {
            State::Stopped(_, exit) => Some(exit.at),
            _ => None,
        };
        let mut info = std::collections::BTreeMap::new();
        if request.verbose {
            let containers: Vec<&String> = self.containers.keys().collect();
            let json = serde_json::to_string(&containers).expect("texts always serialise");
            info.insert("containers".to_owned(), json);
        }
        Ok(api::SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: std::process::id(),
            state: state.to_owned(),
            info,
            created_at: self.sandbox.started(),
            exited_at,
            extra: None,
        })
    }

    fn ping_sandbox(&self, request: &api::PingRequest) -> Result<api::PingResponse, Error> {
        self.sandbox.check(&request.sandbox_id)?;
        Ok(api::PingResponse {})
    }

    fn shutdown_sandbox(
        &mut self,
        request: &api::ShutdownSandboxRequest,
    ) -> Result<api::ShutdownSandboxResponse, Error> {
        self.sandbox.check(&request.sandbox_id)?;
        if let Some(id) = self.containers.keys().chain(&self.creating).next() {
            let text = format!("sandbox {} still has container {id}", self.sandbox.id);
            return Err(Error::FailedPrecondition(text));
        }
        if !matches!(self.sandbox.state, State::Stopped(..)) {
            self.sandbox.state = State::Stopped(self.sandbox.started(), Exit::now(0));
            self.sandbox_may_have_stopped();
        }
        self.end();
        Ok(api::ShutdownSandboxResponse {})
    }

    fn sandbox_metrics(
        &self,
        request: &api::SandboxMetricsRequest,
    ) -> Result<api::SandboxMetricsResponse, Error> {
        self.sandbox.check(&request.sandbox_id)?;
        let config = Bundle::new(&self.sandbox.bundle).config();
        let config = config.map_err(|error| Error::unknown("read config.json", &error))?;
        let paths = config.cgroups_path().map(metrics::paths_below).unwrap_or_default();
        if paths.is_empty() {
            return Err(Error::NotFound("cgroup does not exist".to_owned()));
        }
        let cgroup = Cgroup::load(paths);
        let stats = cgroup.stats().map_err(|error| Error::unknown("cgroup stats", &error))?;
        let metric = Metric {
            timestamp: Some(SystemTime::now().into()),
            id: request.sandbox_id.clone(),
            data: Some(metrics::pack(&cgroup, &stats)),
        };
        Ok(api::SandboxMetricsResponse { metrics: Some(metric) })
    }
}
