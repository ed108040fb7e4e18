//! `ctr sandboxes rm`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::sandbox::v1::{
    ControllerShutdownRequest, ControllerStopRequest, StoreDeleteRequest,
};
use tonic::Code;

use super::load;
use crate::{cli::Global, client::Client, commands::each, error, output::outln};

/// Remove sandboxes
#[derive(Args, Debug)]
pub(crate) struct Remove {
    #[arg(required = true)]
    ids: Vec<String>,
    /// Go on when a sandbox cannot be stopped
    #[arg(long, short)]
    force: bool,
}

impl Remove {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        each(&self.ids, async |id| {
            remove(&client, id, self.force).await?;
            Ok(outln!("{id}")?)
        })
        .await
    }
}

async fn remove(client: &Client, id: &str, force: bool) -> anyhow::Result<()> {
    let sandboxer = load(client, id).await?.sandboxer;
    let request = ControllerStopRequest {
        sandbox_id: id.to_owned(),
        timeout_secs: 0,
        sandboxer: sandboxer.clone(),
    };
    let stopped = client.sandbox_controllers().stop(request).await;
    let stopped = stopped.with_context(|| format!("stop sandbox {id}"));
    match stopped {
        Err(stopped) if force => error::warn(&error::text(&stopped)),
        stopped => drop(stopped?),
    }
    let request = ControllerShutdownRequest { sandbox_id: id.to_owned(), sandboxer };
    match client.sandbox_controllers().shutdown(request).await {
        Err(status) if status.code() == Code::NotFound => {}
        shut => drop(shut.with_context(|| format!("shut down sandbox {id}"))?),
    }
    let request = StoreDeleteRequest { sandbox_id: id.to_owned() };
    let deleted = client.sandboxes().delete(request).await;
    deleted.with_context(|| format!("delete the record of sandbox {id}")).map(drop)
}
