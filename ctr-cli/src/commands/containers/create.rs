//! `ctr containers create`

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use clap::Args;

use crate::{
    cli::Global,
    commands::run::{ContainerFlags, Undo, create},
    task::Signals,
};

/// Create a container
#[derive(Args, Debug)]
pub(crate) struct Create {
    #[command(flatten)]
    container: ContainerFlags,
    /// Accepted because stock ctr has it; there is no process yet
    #[arg(long, hide = true)]
    pid_file: Option<PathBuf>,
    /// Accepted because stock ctr has it; `tasks start` decides
    #[arg(long, hide = true)]
    no_pivot: bool,
    /// Write the specification to this file
    #[arg(long)]
    dump_config: Option<PathBuf>,
}

impl Create {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let id = self.container.container_id()?.to_owned();
        let client = global.connect().await?;
        let mut signals = Signals::take()?;
        let undo = Undo::default();
        let created = match signals.step(create(&client, &self.container, &undo)).await {
            Ok(created) => created,
            Err(error) => {
                undo.run(&client, &id).await;
                return Err(error);
            }
        };
        undo.end_lease().await;
        if let Some(path) = self.dump_config {
            fs::write(&path, serde_json::to_vec_pretty(&created.spec)?)
                .with_context(|| format!("--dump-config {}", path.display()))?;
        }
        Ok(())
    }
}
