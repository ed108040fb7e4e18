//! `ctr run`

mod create;
mod flags;
mod specify;

pub(crate) use create::{Created, Undo, create, recreate};
pub(crate) use flags::ContainerFlags;

use std::{cell::Cell, fs, path::PathBuf};

use anyhow::{Context as _, ensure};
use clap::Args;
use proto::containerd::{runc::v1::Options, services::tasks::v1::CreateTaskRequest};

use crate::{
    cli::Global,
    client::Client,
    error::exit_with,
    task::{Console, IoKind, Process, Pump, Signals, Stdio, supervise},
};

/// Run a container
#[derive(Args, Debug)]
pub(crate) struct Run {
    #[command(flatten)]
    container: ContainerFlags,
    #[command(flatten)]
    task: TaskFlags,
    /// Remove the container after its end
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    /// Write the specification to this file
    #[arg(long)]
    dump_config: Option<PathBuf>,
    /// Write the unpacked image to disk before it is used (the daemon decides)
    #[arg(long, hide = true)]
    sync_fs: bool,
}

/// How a task is started.
#[derive(Args, Debug, Default)]
pub(crate) struct TaskFlags {
    /// Leave the task to itself once it runs
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// Connect all streams to /dev/null
    #[arg(long)]
    pub(crate) null_io: bool,
    /// Let the shim write the output here, as file:///var/log/c or binary:///usr/bin/logger
    #[arg(long, conflicts_with = "null_io")]
    pub(crate) log_uri: Option<String>,
    /// Directory in which the fifos of the streams are made
    #[arg(long)]
    pub(crate) fifo_dir: Option<PathBuf>,
    /// File to which the task's process ID is written
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// Do not use pivot_root
    #[arg(long)]
    pub(crate) no_pivot: bool,
}

impl TaskFlags {
    /// What becomes of the streams of a process with or without a terminal.
    pub(crate) fn io(&self, terminal: bool) -> anyhow::Result<IoKind> {
        match (&self.log_uri, self.null_io) {
            _ if terminal && self.null_io => {
                anyhow::bail!("--tty and --null-io cannot be used together")
            }
            (_, true) => Ok(IoKind::Null),
            (Some(uri), false) => Ok(IoKind::Log(uri.clone())),
            (None, false) => Ok(IoKind::Fifos { terminal }),
        }
    }
}

impl Run {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let id = self.container.container_id()?.to_owned();
        let client = global.connect().await?;
        let mut signals = Signals::take()?;
        let undo = Undo::default();
        let result = self.run_with(&client, &mut signals, &undo).await;
        let started = result.is_ok();
        if self.rm || !started {
            undo.run(&client, &id).await;
        }
        exit_with(result?)
    }

    /// Runs the container. An error means that it never ran, or that its end is not known, in
    /// which case it was killed.
    async fn run_with(
        &self,
        client: &Client,
        signals: &mut Signals,
        undo: &Undo,
    ) -> anyhow::Result<u32> {
        let created = signals.step(create(client, &self.container, undo)).await?;
        if let Some(path) = &self.dump_config {
            fs::write(path, serde_json::to_vec_pretty(&created.spec)?)
                .with_context(|| format!("--dump-config {}", path.display()))?;
        }
        let task = start(client, &created, &self.task, signals);
        let (status, ()) = tokio::join!(task, undo.end_lease());
        status
    }
}

/// Starts the task of a container and, unless it is detached, stays with it until its end.
pub(crate) async fn start(
    client: &Client,
    container: &Created,
    flags: &TaskFlags,
    signals: &mut Signals,
) -> anyhow::Result<u32> {
    let console = (container.terminal && !flags.detach).then(Console::raw).transpose()?;
    let mut stdio =
        Stdio::create(&flags.io(container.terminal)?, flags.fifo_dir.as_deref(), &container.id)?;
    // Shims want to see the other side of the fifos open, even if nobody copies.
    let pump = Pump::open(&stdio)?;
    let process = Process::init(client, &container.id);
    let may_exist = Cell::new(true);
    let attended = async {
        let pid = signals.step(create_task(client, container, &stdio, flags, &may_exist)).await?;
        if let Some(path) = &flags.pid_file {
            fs::write(path, pid.to_string())
                .with_context(|| format!("--pid-file {}", path.display()))?;
        }
        if flags.detach {
            signals.step(process.start()).await?;
            return Ok(None);
        }
        attend(&process, pump, signals, console.as_ref()).await.map(Some)
    };
    match attended.await {
        Ok(Some(status)) => Ok(status),
        Ok(None) => {
            stdio.keep();
            Ok(0)
        }
        Err(error) => {
            if may_exist.get()
                && let Err(second) = process.destroy().await
            {
                let what = crate::error::text(&second);
                crate::error::warn(&format!("remove task {}: {what}", container.id));
            }
            Err(error)
        }
    }
}

/// Starts a process that was created, stays with it, and removes it.
pub(crate) async fn attend(
    process: &Process,
    mut pump: Pump,
    signals: &mut Signals,
    console: Option<&Console>,
) -> anyhow::Result<u32> {
    // The wait is on its way before the start is answered; it lasts until the end.
    let waiting = process.clone();
    let mut wait = tokio::task::JoinSet::new();
    wait.spawn(async move { waiting.wait().await });
    let started = signals.step(async {
        tokio::select! {
            result = process.start() => result.map(drop),
            result = pump.run_outputs() => result,
        }
    });
    started.await?;
    let status = supervise(process, &mut pump, signals, console, async {
        let status = wait.join_next().await.context("nothing waits for the process")?;
        status.context("wait for the process")?
    })
    .await?;
    process.delete().await?;
    pump.drain().await?;
    Ok(status)
}

/// Makes the task. `may_exist` tells then whether there is one to remove.
async fn create_task(
    client: &Client,
    container: &Created,
    stdio: &Stdio,
    flags: &TaskFlags,
    may_exist: &Cell<bool>,
) -> anyhow::Result<u32> {
    let options = match (&container.options, flags.no_pivot) {
        (Some(options), true) => Some(Options { no_pivot_root: true, ..options.clone() }),
        (None, true) => {
            ensure!(false, "--no-pivot is for runc's runtimes");
            None
        }
        // The daemon takes those of the container.
        (_, false) => None,
    };
    let request = CreateTaskRequest {
        container_id: container.id.clone(),
        rootfs: container.rootfs.clone(),
        stdin: stdio.stdin.clone(),
        stdout: stdio.stdout.clone(),
        stderr: stdio.stderr.clone(),
        terminal: stdio.terminal,
        checkpoint: container.checkpoint.clone(),
        options: options.map(|options| proto::any::pack(&options)),
        ..Default::default()
    };
    let response = client.tasks().create(request).await;
    // A call that was not answered may have made the task; one that was refused has not.
    may_exist.set(response.is_ok());
    Ok(response?.into_inner().pid)
}
