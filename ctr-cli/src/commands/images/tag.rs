//! `ctr images tag`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::images::v1::{CreateImageRequest, Image, UpdateImageRequest};
use tonic::Code;

use crate::{cli::Global, client::Client, image::find_image, output::outln};

/// Give an image another name
#[derive(Args, Debug)]
pub(crate) struct Tag {
    source: String,
    #[arg(required = true)]
    targets: Vec<String>,
    /// Take the name from another image if need be
    #[arg(long)]
    force: bool,
    /// Accepted because stock ctr has it
    #[arg(long, hide = true)]
    local: bool,
    /// Accepted because stock ctr has it; names are kept as given
    #[arg(long, hide = true)]
    skip_reference_check: bool,
}

impl Tag {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let image = find_image(&client, &self.source).await?;
        for target in &self.targets {
            let copy =
                Image { name: target.clone(), created_at: None, updated_at: None, ..image.clone() };
            create(&client, copy, self.force).await.with_context(|| format!("tag {target}"))?;
            outln!("{target}")?;
        }
        Ok(())
    }
}

async fn create(client: &Client, image: Image, force: bool) -> anyhow::Result<()> {
    let request = CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
    match client.images().create(request).await {
        Ok(_) => Ok(()),
        Err(status) if force && status.code() == Code::AlreadyExists => {
            let request = UpdateImageRequest {
                image: Some(image),
                update_mask: None,
                source_date_epoch: None,
            };
            client.images().update(request).await?;
            Ok(())
        }
        Err(status) => Err(status.into()),
    }
}
