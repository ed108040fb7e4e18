//! `ctr shim exec`
//!
//! containerd's `ctr` has it with one ID for container and process, which no shim takes any more.
//! Here `--id` names the container, as for the other commands, and the argument the process.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Args;
use proto::containerd::task::v3;

use super::connection::Connection;
use crate::{
    error::exit_with,
    output::outln,
    spec::{Process as ProcessSpec, set_env},
    task::{Console, IoKind, Pump, Stdio},
};

/// The largest specification that is read, in bytes.
const SPEC_LEN_MAX: u64 = 4 << 20;

/// Run another process in a container, behind the daemon's back
#[derive(Args, Debug)]
pub(super) struct Exec {
    exec_id: String,
    /// File with the process, as in a runtime specification
    #[arg(long)]
    spec: PathBuf,
    /// Where standard input comes from: a fifo, or a URI that the shim knows
    #[arg(long, default_value = "")]
    stdin: String,
    /// Where standard output goes
    #[arg(long, default_value = "")]
    stdout: String,
    /// Where standard error goes
    #[arg(long, default_value = "")]
    stderr: String,
    /// Allocate a terminal
    #[arg(long, short)]
    tty: bool,
    /// Stay with the process until its end, with fifos of this program's own if none are named
    #[arg(long, short)]
    attach: bool,
    /// Additional environment variables, as NAME=value
    #[arg(long, short)]
    env: Vec<String>,
    /// Working directory
    #[arg(long)]
    cwd: Option<String>,
}

impl Exec {
    /// Runs the process in the container `id`.
    pub(super) async fn run(&self, connection: &Connection, id: String) -> anyhow::Result<()> {
        let spec = self.process_spec()?;
        let named = !self.stdin.is_empty() || !self.stdout.is_empty() || !self.stderr.is_empty();
        let stdio = if self.attach && !named {
            Stdio::create(&IoKind::Fifos { terminal: self.tty }, None, &self.exec_id)?
        } else {
            Stdio::paths(&self.stdin, &self.stdout, &self.stderr, self.tty)
        };
        let console = (self.tty && self.attach).then(Console::raw).transpose()?;
        let pump = self.attach.then(|| Pump::open(&stdio)).transpose()?;
        let request = v3::ExecProcessRequest {
            id: id.clone(),
            exec_id: self.exec_id.clone(),
            terminal: self.tty,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            spec: Some(spec),
        };
        let () = connection.call("Exec", &request).await?;
        let request = v3::StartRequest { id: id.clone(), exec_id: self.exec_id.clone() };
        let started: anyhow::Result<v3::StartResponse> = connection.call("Start", &request).await;
        let started = match started {
            Ok(started) => started,
            Err(error) => {
                // What could not be started is of no use to anyone.
                let _ = self.delete(connection, &id).await;
                return Err(error);
            }
        };
        let Some(pump) = pump else {
            return Ok(outln!("exec running with pid {}", started.pid)?);
        };
        let status = self.attend(connection, &id, pump, console.as_ref()).await;
        drop(console);
        exit_with(status?)
    }

    /// Copies the streams until the process has ended, and removes it.
    async fn attend(
        &self,
        connection: &Connection,
        id: &str,
        mut pump: Pump,
        console: Option<&Console>,
    ) -> anyhow::Result<u32> {
        if let Some(console) = console {
            let (width, height) = console.size()?;
            let request = v3::ResizePtyRequest {
                id: id.to_owned(),
                exec_id: self.exec_id.clone(),
                width: width.into(),
                height: height.into(),
            };
            let () = connection.call("ResizePty", &request).await?;
        }
        let close = async || {
            let request = v3::CloseIoRequest {
                id: id.to_owned(),
                exec_id: self.exec_id.clone(),
                stdin: true,
            };
            // The process may have ended before its input.
            let _: anyhow::Result<()> = connection.call("CloseIO", &request).await;
        };
        let request = v3::WaitRequest { id: id.to_owned(), exec_id: self.exec_id.clone() };
        let exit: v3::WaitResponse = tokio::select! {
            exit = connection.wait(&request) => exit?,
            copied = pump.run(close) => {
                copied?;
                connection.wait(&request).await?
            }
        };
        self.delete(connection, id).await?;
        pump.drain().await?;
        Ok(exit.exit_status)
    }

    async fn delete(&self, connection: &Connection, id: &str) -> anyhow::Result<()> {
        let request = v3::DeleteRequest { id: id.to_owned(), exec_id: self.exec_id.clone() };
        let _: v3::DeleteResponse = connection.call("Delete", &request).await?;
        Ok(())
    }

    /// The process in the file, with what the flags change.
    fn process_spec(&self) -> anyhow::Result<prost_types::Any> {
        let read = || format!("--spec {}", self.spec.display());
        let len = std::fs::metadata(&self.spec).with_context(read)?.len();
        ensure!(len <= SPEC_LEN_MAX, "{} has {len} bytes: invalid argument", read());
        let bytes = std::fs::read(&self.spec).with_context(read)?;
        let mut process: ProcessSpec = serde_json::from_slice(&bytes).with_context(read)?;
        process.terminal = self.tty;
        set_env(&mut process.env, &self.env);
        if let Some(cwd) = &self.cwd {
            process.cwd.clone_from(cwd);
        }
        Ok(prost_types::Any {
            type_url: proto::any::RUNTIME_PROCESS.to_owned(),
            value: serde_json::to_vec(&process).context("process")?,
        })
    }
}
