//! `ctr tasks start`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::{
    runc::v1::Options,
    services::{containers::v1::Container, snapshots::v1::MountsRequest},
};

use super::{load, spec_of};
use crate::{
    cli::Global,
    client::Client,
    commands::run::{Created, TaskFlags, start},
    error::exit_with,
    task::Signals,
};

/// Start the task of a container
#[derive(Args, Debug)]
pub(crate) struct Start {
    container: String,
    #[command(flatten)]
    task: TaskFlags,
}

impl Start {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let mut signals = Signals::take()?;
        let container = load(&client, &self.container).await?;
        let created = created(&client, container).await?;
        exit_with(start(&client, &created, &self.task, &mut signals).await?)
    }
}

/// What the task of a container needs, from its record.
pub(crate) async fn created(client: &Client, container: Container) -> anyhow::Result<Created> {
    let spec = spec_of(&container)?;
    let rootfs = if container.snapshot_key.is_empty() {
        Vec::new()
    } else {
        let request =
            MountsRequest { snapshotter: container.snapshotter, key: container.snapshot_key };
        client.snapshots().mounts(request).await?.into_inner().mounts
    };
    let any = container.runtime.and_then(|runtime| runtime.options);
    let options = any.as_ref().map(proto::any::unpack::<Options>).transpose();
    let options = options.context("the container's runtime options")?.flatten();
    let terminal = spec.process.terminal;
    Ok(Created { id: container.id, terminal, spec, rootfs, options, checkpoint: None })
}
