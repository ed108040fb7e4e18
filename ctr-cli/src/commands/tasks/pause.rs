//! `ctr tasks pause` and `ctr tasks resume`

use clap::Args;
use proto::containerd::services::tasks::v1::{PauseTaskRequest, ResumeTaskRequest};

use crate::cli::Global;

/// Pause a task
#[derive(Args, Debug)]
pub(crate) struct Pause {
    container: String,
}

impl Pause {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        client.tasks().pause(PauseTaskRequest { container_id: self.container }).await?;
        Ok(())
    }
}

/// Resume a paused task
#[derive(Args, Debug)]
pub(crate) struct Resume {
    container: String,
}

impl Resume {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        client.tasks().resume(ResumeTaskRequest { container_id: self.container }).await?;
        Ok(())
    }
}
