//! `ctr tasks checkpoint`

use std::path::PathBuf;

use clap::Args;
use proto::containerd::{
    runc::v1::CheckpointOptions,
    services::{
        images::v1::{CreateImageRequest, Image},
        tasks::v1::CheckpointTaskRequest,
    },
    types::Descriptor,
};

use crate::{
    cli::Global,
    client::Client,
    image::{Checkpoint as Index, Lease},
    output::outln,
};

/// Checkpoint a task
#[derive(Args, Debug)]
pub(crate) struct Checkpoint {
    container: String,
    /// Stop the container after the checkpoint
    #[arg(long)]
    exit: bool,
    /// Directory for criu's images, instead of an image in the store
    #[arg(long)]
    image_path: Option<PathBuf>,
    /// Directory for criu's work files and logs
    #[arg(long)]
    work_path: Option<PathBuf>,
}

impl Checkpoint {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let path = |path: &Option<PathBuf>| {
            path.as_ref().map_or_else(String::new, |path| path.display().to_string())
        };
        let options = CheckpointOptions {
            exit: self.exit,
            image_path: path(&self.image_path),
            work_path: path(&self.work_path),
            ..Default::default()
        };
        let lease = Lease::create(&client).await?;
        let request = CheckpointTaskRequest {
            container_id: self.container.clone(),
            options: Some(proto::any::pack(&options)),
            ..Default::default()
        };
        let parts = lease.client().tasks().checkpoint(request).await;
        let result = match parts {
            Ok(response) if self.image_path.is_none() => {
                record(lease.client(), &self.container, &response.into_inner().descriptors).await
            }
            Ok(_) => Ok(()),
            Err(status) => Err(status.into()),
        };
        lease.delete().await?;
        result
    }
}

/// Keeps the parts of a checkpoint as an image, and prints its name.
async fn record(client: &Client, id: &str, parts: &[Descriptor]) -> anyhow::Result<()> {
    let mut index = Index::of(None);
    index.parts.extend(parts.iter().cloned().map(Into::into));
    let target = index.write(client).await?;
    let now = jiff::Timestamp::now().strftime("%m-%d-%Y-%H:%M:%S");
    let name = format!("containerd.io/checkpoint/{id}:{now}");
    let image = Image { name: name.clone(), target: Some(target), ..Default::default() };
    let request = CreateImageRequest { image: Some(image), source_date_epoch: None };
    client.images().create(request).await?;
    Ok(outln!("{name}")?)
}
