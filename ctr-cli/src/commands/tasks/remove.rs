//! `ctr tasks rm`

use anyhow::Context as _;
use clap::Args;

use crate::{
    cli::Global,
    commands::each,
    error::{exit_with, warn},
    task::Process,
};

/// Delete tasks
#[derive(Args, Debug)]
pub(crate) struct Remove {
    #[arg(required = true)]
    containers: Vec<String>,
    /// Kill what still runs
    #[arg(long, short)]
    force: bool,
    /// Delete this process of the first container, instead of its task
    #[arg(long)]
    exec_id: Option<String>,
}

impl Remove {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        if let (Some(exec_id), Some(container)) = (&self.exec_id, self.containers.first()) {
            let process = Process::exec(&client, container, exec_id);
            if self.force {
                return process.destroy().await;
            }
            return exit_with(process.delete().await?);
        }
        each(&self.containers, async |id| {
            let process = Process::init(&client, id);
            let context = || format!("delete task {id}");
            let mut stdio = process.stdio().await?;
            let removed = match self.force {
                true => process.destroy().await.map(|()| 0),
                false => process.delete().await,
            };
            let status = removed.inspect_err(|_| stdio.keep()).with_context(context)?;
            if status != 0 {
                warn(&format!("task {id} exited with status {status}"));
            }
            Ok(())
        })
        .await
    }
}
