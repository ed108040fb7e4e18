//! `ctr containers restore`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::{
    services::containers::v1::{Container, container::Runtime},
    types::Descriptor,
};

use crate::{
    cli::Global,
    client::Client,
    commands::{
        run::{TaskFlags, Undo, recreate, start},
        tasks::created,
    },
    error::exit_with,
    image::{Checkpoint, checkpoint_part as part, find_image, read_any, to_api},
    task::Signals,
};

/// Make a container of its checkpoint, and start its task
#[derive(Args, Debug)]
pub(crate) struct Restore {
    container: String,
    /// The image that the checkpoint is
    #[arg(value_name = "REF")]
    reference: String,
    /// Restore what the container had changed of its image
    #[arg(long)]
    rw: bool,
    /// Go on with the processes of its task, instead of starting it anew
    #[arg(long)]
    live: bool,
}

/// What a checkpoint has for a container.
struct Found {
    record: Container,
    changes: Option<Descriptor>,
    processes: Option<Descriptor>,
}

impl Restore {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let mut signals = Signals::take()?;
        let found = signals.step(self.find(&client)).await?;
        let undo = Undo::default();
        let result = self.restore(&client, &mut signals, found, &undo).await;
        if result.is_err() {
            undo.run(&client, &self.container).await;
        }
        exit_with(result?)
    }

    async fn restore(
        &self,
        client: &Client,
        signals: &mut Signals,
        found: Found,
        undo: &Undo,
    ) -> anyhow::Result<u32> {
        let Found { record, changes, processes } = found;
        signals.step(recreate(client, &record, changes, undo)).await?;
        let mut created = created(client, record).await?;
        created.checkpoint = processes;
        // Without a terminal there is nobody to stay for, as with containerd's ctr.
        let flags = TaskFlags { detach: !created.terminal, ..TaskFlags::default() };
        let started = start(client, &created, &flags, signals);
        let (status, ()) = tokio::join!(started, undo.end_lease());
        status
    }

    /// Finds all that is asked for, before anything is made.
    async fn find(&self, client: &Client) -> anyhow::Result<Found> {
        let image = find_image(client, &self.reference).await?;
        let target = image.target.context("the image has no target")?;
        let index = Checkpoint::read(client, &target.into()).await?;
        let origin = index.origin()?;
        let spec = index.needed(part::CONFIG, "a container")?;
        let spec = read_any(client, spec).await?;
        let options = match index.part(part::RUNTIME_OPTIONS) {
            Some(options) => Some(read_any(client, options).await?),
            None => None,
        };
        let changes = self.rw.then(|| index.needed(part::CHANGES, "--rw")).transpose()?;
        let processes = self.live.then(|| index.needed(part::CRIU, "--live")).transpose()?;
        let record = Container {
            id: self.container.clone(),
            image: origin.image,
            snapshotter: origin.snapshotter,
            snapshot_key: self.container.clone(),
            runtime: Some(Runtime { name: origin.runtime, options }),
            spec: Some(spec),
            ..Default::default()
        };
        let (changes, processes) = (changes.map(to_api), processes.map(to_api));
        Ok(Found { record, changes, processes })
    }
}
