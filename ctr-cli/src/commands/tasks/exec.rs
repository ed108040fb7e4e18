//! `ctr tasks exec`

use std::{cell::Cell, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::{
    containers::v1::Container, snapshots::v1::MountsRequest, tasks::v1::ExecProcessRequest,
};

use super::{load, spec_of};
use crate::{
    cli::Global,
    client::Client,
    commands::run::attend,
    error::{exit_with, text, warn},
    image::{directory_accounts, snapshot_accounts},
    names,
    spec::{Process as ProcessSpec, Spec, User, UserSpec, set_env},
    task::{Console, IoKind, Process, Pump, Signals, Stdio},
};

/// Run another process in a task
#[derive(Args, Debug)]
pub(crate) struct Exec {
    container: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
    /// Name of the process, made up by default
    #[arg(long)]
    exec_id: Option<String>,
    /// Working directory
    #[arg(long)]
    cwd: Option<String>,
    /// Additional environment variables, as NAME=value
    #[arg(long)]
    env: Vec<String>,
    /// User, as name or id, with or without :group
    #[arg(long, short)]
    user: Option<String>,
    /// Allocate a terminal
    #[arg(long, short)]
    tty: bool,
    /// Leave the process to itself once it runs
    #[arg(long, short)]
    detach: bool,
    /// Directory in which the fifos of the streams are made
    #[arg(long, conflicts_with = "log_uri")]
    fifo_dir: Option<PathBuf>,
    /// Let the shim write the output here
    #[arg(long, conflicts_with = "tty")]
    log_uri: Option<String>,
}

impl Exec {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let mut signals = Signals::take()?;
        let spec = signals.step(self.process_spec(&client)).await?;
        let exec_id = self.exec_id.clone().unwrap_or_else(|| names::unique("exec"));
        let console = (self.tty && !self.detach).then(Console::raw).transpose()?;
        let io = match &self.log_uri {
            Some(uri) => IoKind::Log(uri.clone()),
            None => IoKind::Fifos { terminal: self.tty },
        };
        let mut stdio = Stdio::create(&io, self.fifo_dir.as_deref(), &exec_id)?;
        let pump = Pump::open(&stdio)?;
        let request = ExecProcessRequest {
            container_id: self.container.clone(),
            exec_id: exec_id.clone(),
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: self.tty,
            spec: Some(prost_types::Any {
                type_url: proto::any::RUNTIME_PROCESS.to_owned(),
                value: serde_json::to_vec(&spec).context("process")?,
            }),
        };
        let process = Process::exec(&client, &self.container, &exec_id);
        let may_exist = Cell::new(true);
        let made = signals.step(async {
            let response = client.tasks().exec(request).await;
            // A call that was not answered may have made it; one that was refused has not.
            may_exist.set(response.is_ok());
            Ok(response?)
        });
        let result = match made.await {
            Err(error) => Err(error),
            Ok(_) if self.detach => process.start().await.map(|_| {
                stdio.keep();
                0
            }),
            Ok(_) => attend(&process, pump, &mut signals, console.as_ref()).await,
        };
        drop(console);
        match result {
            Ok(status) => exit_with(status),
            Err(error) => {
                if may_exist.get()
                    && let Err(second) = process.destroy().await
                {
                    warn(&format!("remove process {exec_id}: {}", text(&second)));
                }
                Err(error)
            }
        }
    }

    /// The container's process with what the flags change.
    async fn process_spec(&self, client: &Client) -> anyhow::Result<ProcessSpec> {
        let container = load(client, &self.container).await?;
        let spec = spec_of(&container)?;
        let mut process = spec.process.clone();
        if let Some(user) = &self.user {
            process.user = resolve_user(client, &container, &spec, user).await?;
        }
        process.args.clone_from(&self.command);
        process.terminal = self.tty;
        set_env(&mut process.env, &self.env);
        if let Some(cwd) = &self.cwd {
            process.cwd.clone_from(cwd);
        }
        Ok(process)
    }
}

async fn resolve_user(
    client: &Client,
    container: &Container,
    spec: &Spec,
    user: &str,
) -> anyhow::Result<User> {
    let user: UserSpec = user.parse()?;
    let accounts = if container.snapshot_key.is_empty() {
        directory_accounts(spec.root.path.as_ref())?
    } else {
        let request = MountsRequest {
            snapshotter: container.snapshotter.clone(),
            key: container.snapshot_key.clone(),
        };
        snapshot_accounts(&client.snapshots().mounts(request).await?.into_inner().mounts)?
    };
    Ok(user.resolve(&accounts)?)
}
