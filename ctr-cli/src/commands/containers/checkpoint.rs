//! `ctr containers checkpoint`

use std::cell::Cell;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use prost::Message as _;
use proto::containerd::{
    runc::v1::CheckpointOptions,
    services::{
        containers::v1::Container,
        diff::v1::DiffRequest,
        images::v1::{CreateImageRequest, GetImageRequest, Image},
        tasks::v1::{CheckpointTaskRequest, GetRequest, PauseTaskRequest, ResumeTaskRequest},
    },
    types::Descriptor,
    v1::types::Status,
};
use tonic::Code;

use crate::{
    cli::Global,
    client::Client,
    commands::{snapshots::Views, tasks::load},
    error::{text, warn},
    image::{Checkpoint as Index, CheckpointOrigin, Lease, checkpoint_part as part},
    task::Signals,
};

/// Keep a container as an image, from which it can be restored
#[derive(Args, Debug)]
pub(crate) struct Checkpoint {
    container: String,
    /// Name of the image that is made
    #[arg(value_name = "REF")]
    reference: String,
    /// Include what the container has changed of its image
    #[arg(long)]
    rw: bool,
    /// Include the container's image
    #[arg(long)]
    image: bool,
    /// Include the processes of its task, by criu
    #[arg(long)]
    task: bool,
}

impl Checkpoint {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let container = load(&client, &self.container).await?;
        ensure!(!container.image.is_empty(), "container {} is of no image", container.id);
        let taken = client.images().get(GetImageRequest { name: self.reference.clone() }).await;
        match taken {
            Ok(_) => bail!("image {:?}: already exists", self.reference),
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status.into()),
        }
        // From here on they do not end the program, which would leave the task paused.
        let mut signals = Signals::take()?;
        let paused = Cell::new(false);
        let made = self.make(&client, &container, &mut signals, &paused).await;
        if paused.get() {
            let request = ResumeTaskRequest { container_id: container.id.clone() };
            if let Err(status) = client.tasks().resume(request).await {
                warn(&format!("resume {}: {}", container.id, text(&status.into())));
            }
        }
        made
    }

    /// Makes the image. After a signal there is none: all parts are made, and have no name.
    async fn make(
        &self,
        client: &Client,
        container: &Container,
        signals: &mut Signals,
        paused: &Cell<bool>,
    ) -> anyhow::Result<()> {
        // What is kept should be of one moment.
        signals.step(pause(client, &container.id, paused)).await?;
        let lease = Lease::create(client).await?;
        let kept = signals.step(self.keep(lease.client(), container)).await;
        let named = match kept {
            Ok(target) => self.name(lease.client(), target).await,
            Err(error) => Err(error),
        };
        lease.delete().await?;
        named
    }

    /// Makes all of the image but its name.
    async fn keep(&self, client: &Client, container: &Container) -> anyhow::Result<Descriptor> {
        let runtime = container.runtime.clone().unwrap_or_default();
        let mut index = Index::of(Some(CheckpointOrigin {
            image: container.image.clone(),
            runtime: runtime.name,
            snapshotter: container.snapshotter.clone(),
        }));
        if let Some(options) = &runtime.options {
            index.add(client, part::RUNTIME_OPTIONS, &options.encode_to_vec()).await?;
        }
        if self.image {
            let request = GetImageRequest { name: container.image.clone() };
            let image = client.images().get(request).await?.into_inner().image;
            let target = image.and_then(|image| image.target).context("an image with a target")?;
            index.parts.push(target.into());
        }
        if self.rw {
            index.parts.push(changes(client, container).await?.into());
        }
        if self.task {
            add_task(client, &mut index, &container.id).await?;
        } else {
            // Otherwise the daemon adds it.
            let spec = container.spec.as_ref().context("the container has no specification")?;
            index.add(client, part::CONFIG, &spec.encode_to_vec()).await?;
        }
        index.write(client).await
    }

    async fn name(&self, client: &Client, target: Descriptor) -> anyhow::Result<()> {
        let image =
            Image { name: self.reference.clone(), target: Some(target), ..Default::default() };
        let request = CreateImageRequest { image: Some(image), source_date_epoch: None };
        client.images().create(request).await?;
        Ok(())
    }
}

/// Pauses the task if it runs, and notes whether it may be paused thereby.
async fn pause(client: &Client, id: &str, paused: &Cell<bool>) -> anyhow::Result<()> {
    let request = GetRequest { container_id: id.to_owned(), exec_id: String::new() };
    let process = match client.tasks().get(request).await {
        Ok(response) => response.into_inner().process.unwrap_or_default(),
        Err(status) if status.code() == Code::NotFound => return Ok(()),
        Err(status) => return Err(status.into()),
    };
    if process.status() == Status::Running {
        paused.set(true);
        let request = PauseTaskRequest { container_id: id.to_owned() };
        client.tasks().pause(request).await.inspect_err(|_| paused.set(false))?;
    }
    Ok(())
}

/// Has the daemon keep the task's processes.
async fn add_task(client: &Client, index: &mut Index, id: &str) -> anyhow::Result<()> {
    let options = CheckpointOptions { file_locks: true, ..Default::default() };
    let options = proto::any::pack(&options);
    let request = CheckpointTaskRequest {
        container_id: id.to_owned(),
        options: Some(options.clone()),
        ..Default::default()
    };
    let response = client.tasks().checkpoint(request).await?.into_inner();
    index.parts.extend(response.descriptors.into_iter().map(Into::into));
    index.add(client, part::OPTIONS, &options.encode_to_vec()).await
}

/// What the container has changed of its image, as a layer.
async fn changes(client: &Client, container: &Container) -> anyhow::Result<Descriptor> {
    let key = &container.snapshot_key;
    let views = Views { client, snapshotter: &container.snapshotter };
    let mut made = Vec::new();
    let compared = async {
        let left = match views.parent(key).await? {
            Some(parent) => views.mounts(&parent, &mut made).await?,
            None => Vec::new(),
        };
        let right = views.mounts(key, &mut made).await?;
        let request = DiffRequest {
            left,
            right,
            media_type: part::CHANGES.to_owned(),
            r#ref: format!("checkpoint-rw-{key}"),
            ..Default::default()
        };
        let diff = client.diff().diff(request).await?.into_inner().diff;
        diff.context("daemon returned no difference")
    };
    let compared = compared.await;
    for key in made {
        views.remove(key).await?;
    }
    compared
}
