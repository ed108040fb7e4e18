//! The sandbox API, for engines that run a pod's sandbox through it.
//!
//! A shim that holds several containers needs nothing of its own to be their sandbox: no pause
//! process, no state but whether it was started. So the calls only keep the life cycle; `Wait`
//! ends when the sandbox is stopped.
//!
//! Source: containerd `api/runtime/sandbox/v1`, `core/sandbox/controller.go`.

use proto::containerd::{runtime::sandbox::v1 as api, types::Platform};

use crate::{
    error::Error,
    reaper::Exit,
    server::Call,
    shim::{Answer, Shim, decode, later, now},
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
    Ready(Exit),
    Stopped(Exit),
}

/// The sandbox of a shim.
#[derive(Debug, Default)]
pub(crate) struct Sandbox {
    state: State,
    waiters: Vec<Call>,
}

impl Shim {
    pub(crate) fn sandbox_call(
        &mut self,
        call: Call,
        method: &str,
        payload: &[u8],
    ) -> Result<Answer, Error> {
        match method {
            "CreateSandbox" => now(self.create_sandbox()),
            "StartSandbox" => now(self.start_sandbox()),
            "Platform" => now(platform()),
            "StopSandbox" => now(self.stop_sandbox()),
            "UpdateSandbox" => now(Ok(api::UpdateSandboxResponse {})),
            "WaitSandbox" => later(self.wait_sandbox(call)),
            "SandboxStatus" => now(self.sandbox_status(decode(payload)?)),
            "PingSandbox" => now(Ok(api::PingResponse {})),
            "ShutdownSandbox" => now(self.shutdown_sandbox()),
            _ => Err(Error::NotImplemented(format!("method {method}"))),
        }
    }

    fn create_sandbox(&mut self) -> Result<api::CreateSandboxResponse, Error> {
        if self.sandbox.state != State::Absent {
            return Err(Error::AlreadyExists("sandbox".to_owned()));
        }
        self.sandbox.state = State::Created;
        Ok(api::CreateSandboxResponse {})
    }

    fn start_sandbox(&mut self) -> Result<api::StartSandboxResponse, Error> {
        if self.sandbox.state != State::Created {
            return Err(Error::FailedPrecondition("sandbox is not created".to_owned()));
        }
        let started = Exit::now(0);
        self.sandbox.state = State::Ready(started);
        Ok(api::StartSandboxResponse {
            pid: std::process::id(),
            created_at: Some(started.at),
            spec: None,
        })
    }

    fn stop_sandbox(&mut self) -> Result<api::StopSandboxResponse, Error> {
        if !matches!(self.sandbox.state, State::Stopped(_)) {
            let exit = Exit::now(0);
            self.sandbox.state = State::Stopped(exit);
            for call in std::mem::take(&mut self.sandbox.waiters) {
                self.reply(call, Ok(wait_response(exit)));
            }
        }
        Ok(api::StopSandboxResponse {})
    }

    fn wait_sandbox(&mut self, call: Call) -> Result<(), Error> {
        match self.sandbox.state {
            State::Stopped(exit) => self.reply(call, Ok(wait_response(exit))),
            _ => self.sandbox.waiters.push(call),
        }
        Ok(())
    }

    fn sandbox_status(
        &self,
        request: api::SandboxStatusRequest,
    ) -> Result<api::SandboxStatusResponse, Error> {
        let ready = matches!(self.sandbox.state, State::Ready(_));
        Ok(api::SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: std::process::id(),
            state: if ready { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" }.to_owned(),
            created_at: match self.sandbox.state {
                State::Ready(started) => Some(started.at),
                _ => None,
            },
            exited_at: match self.sandbox.state {
                State::Stopped(exit) => Some(exit.at),
                _ => None,
            },
            ..api::SandboxStatusResponse::default()
        })
    }

    fn shutdown_sandbox(&mut self) -> Result<api::ShutdownSandboxResponse, Error> {
        self.stop_sandbox()?;
        if self.containers.is_empty() && self.creating.is_empty() {
            self.end();
        }
        Ok(api::ShutdownSandboxResponse {})
    }
}

fn platform() -> Result<api::PlatformResponse, Error> {
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

fn wait_response(exit: Exit) -> api::WaitSandboxResponse {
    api::WaitSandboxResponse { exit_status: exit.status, exited_at: Some(exit.at) }
}
