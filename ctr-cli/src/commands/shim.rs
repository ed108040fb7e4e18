//! `ctr shim`: past the daemon, to the shims themselves.
//!
//! Shims are found in the daemon's state directory, where containerd and this project's daemon keep
//! the same files (`io.containerd.runtime.v2.task/<namespace>/<id>`). So the commands work beside
//! either, and while no daemon runs. The directory is the one that the daemon's socket is in, unless
//! `--state` names another.
//!
//! A shim that is asked to delete or to shut down something does so without the daemon's knowledge:
//! these commands are for repairs.

mod connection;
mod exec;
mod found;
mod list;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use proto::{
    containerd::{task::v3, v1::types::Status},
    time::known,
};
use serde_json::json;

use self::{
    connection::Connection,
    found::{Found, state_directory},
};
use crate::{cli::Global, client::socket_path, output};

/// Interact with shims directly
#[derive(Args, Debug)]
pub(crate) struct Shim {
    /// The container whose shim it is
    #[arg(long, global = true)]
    id: Option<String>,
    /// The shim's socket (default: the one that its bundle names)
    #[arg(long, global = true)]
    shim_address: Option<String>,
    /// The daemon's state directory (default: the directory of its socket)
    #[arg(long, global = true)]
    state: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the shims of the namespace, or of all
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Print the state of a task's init as its shim knows it
    State(StateOf),
    /// Start the task of a container, or the exec that is named
    Start(Process),
    /// Run another process in a container
    Exec(exec::Exec),
    /// Delete an ended task, or the exec that is named, behind the daemon's back
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete(Process),
    /// Ask a shim to exit, which it does if it has no task
    Shutdown,
}

/// Of which task.
#[derive(Args, Debug)]
struct StateOf {
    /// Another task of the same shim
    #[arg(long, short)]
    task_id: Option<String>,
}

/// Of which process.
#[derive(Args, Debug)]
struct Process {
    /// The exec; init if absent
    exec_id: Option<String>,
}

impl Shim {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        match &self.command {
            Command::List(list) => list.run(global, &self.folder(global)?).await,
            Command::State(of) => {
                let connection = self.connect(global).await?;
                let id = of.task_id.clone().map_or_else(|| self.id(), Ok)?;
                let request = v3::StateRequest { id, exec_id: String::new() };
                let state: v3::StateResponse = connection.call("State", &request).await?;
                print(&state)
            }
            Command::Start(Process { exec_id }) => {
                let exec_id = exec_id.clone().unwrap_or_default();
                let request = v3::StartRequest { id: self.id()?, exec_id };
                let connection = self.connect(global).await?;
                let _: v3::StartResponse = connection.call("Start", &request).await?;
                Ok(())
            }
            Command::Delete(Process { exec_id }) => {
                let exec_id = exec_id.clone().unwrap_or_default();
                let request = v3::DeleteRequest { id: self.id()?, exec_id };
                let connection = self.connect(global).await?;
                let answer: v3::DeleteResponse = connection.call("Delete", &request).await?;
                let status = answer.exit_status;
                Ok(output::outln!("container deleted and returned exit status {status}")?)
            }
            Command::Exec(exec) => exec.run(&self.connect(global).await?, self.id()?).await,
            Command::Shutdown => {
                let id = self.id.clone().unwrap_or_default();
                let connection = self.connect(global).await?;
                connection.shutdown(&v3::ShutdownRequest { id, now: false }).await
            }
        }
    }

    fn id(&self) -> anyhow::Result<String> {
        self.id.clone().context("--id must name the container")
    }

    fn folder(&self, global: &Global) -> anyhow::Result<PathBuf> {
        if let Some(state) = &self.state {
            return Ok(state.clone());
        }
        let address = global.address.as_deref().filter(|address| !address.is_empty());
        Ok(state_directory(&socket_path(address)?))
    }

    async fn connect(&self, global: &Global) -> anyhow::Result<Connection> {
        if let Some(address) = &self.shim_address {
            return Connection::open(&global.namespace, address, 3).await;
        }
        let found = Found::read(&self.folder(global)?, &global.namespace, &self.id()?)?;
        Connection::open(&global.namespace, &found.address, found.version).await
    }
}

fn print(state: &v3::StateResponse) -> anyhow::Result<()> {
    let status = Status::try_from(state.status).map_or("UNKNOWN", |status| status.as_str_name());
    output::json(&json!({
        "id": state.id,
        "bundle": state.bundle,
        "pid": state.pid,
        "status": status,
        "stdin": state.stdin,
        "stdout": state.stdout,
        "stderr": state.stderr,
        "terminal": state.terminal,
        "exit_status": state.exit_status,
        "exited_at": known(state.exited_at).as_ref().map(ToString::to_string),
        "exec_id": state.exec_id,
    }))
}
