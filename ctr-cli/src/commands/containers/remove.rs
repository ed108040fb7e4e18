//! `ctr containers rm`

use anyhow::{Context as _, bail};
use clap::Args;
use proto::containerd::{
    services::{
        containers::v1::{DeleteContainerRequest, GetContainerRequest},
        snapshots::v1::RemoveSnapshotRequest,
        tasks::v1::GetRequest,
    },
    v1::types::Status,
};
use tonic::Code;

use crate::{
    cli::Global,
    client::Client,
    commands::each,
    task::{Process, Stdio},
};

/// Delete containers
#[derive(Args, Debug)]
pub(crate) struct Remove {
    #[arg(required = true)]
    containers: Vec<String>,
    /// Keep the containers' snapshots
    #[arg(long)]
    keep_snapshot: bool,
}

impl Remove {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        each(&self.containers, async |id| {
            remove(&client, id, self.keep_snapshot)
                .await
                .with_context(|| format!("delete container {id}"))
        })
        .await
    }
}

async fn remove(client: &Client, id: &str, keep_snapshot: bool) -> anyhow::Result<()> {
    let request = GetContainerRequest { id: id.to_owned() };
    let container = client.containers().get(request).await?.into_inner().container;
    let container = container.context("daemon returned no container")?;
    let request = GetRequest { container_id: id.to_owned(), exec_id: String::new() };
    match client.tasks().get(request).await {
        Ok(response) => {
            let process = response.into_inner().process.unwrap_or_default();
            match process.status() {
                Status::Stopped | Status::Created => {
                    let mut stdio = Stdio::of(&process);
                    let deleted = Process::init(client, id).delete().await;
                    deleted.inspect_err(|_| stdio.keep())?;
                }
                status => bail!(
                    "its task is {}, not stopped: failed precondition",
                    status.as_str_name().to_ascii_lowercase()
                ),
            }
        }
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => return Err(status.into()),
    }
    if !keep_snapshot && !container.snapshot_key.is_empty() {
        let request = RemoveSnapshotRequest {
            snapshotter: container.snapshotter,
            key: container.snapshot_key,
        };
        match client.snapshots().remove(request).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status.into()),
        }
    }
    client.containers().delete(DeleteContainerRequest { id: id.to_owned() }).await?;
    Ok(())
}
