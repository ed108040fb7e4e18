//! `ctr snapshots unpack`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::images::v1::ListImagesRequest;

use super::Context;
use crate::{
    image::{Digest, Lease, resolve, unpack},
    output::outln,
    platform::Platform,
};

/// Unpack the layers of an image
#[derive(Args, Debug)]
pub(crate) struct Unpack {
    /// Name of the image, or digest of its manifest or index
    image: String,
    /// Write the files to disk before the end (the daemon decides)
    #[arg(long, hide = true)]
    sync_fs: bool,
}

impl Unpack {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = &context.client;
        let target = if self.image.parse::<Digest>().is_ok() {
            let request = ListImagesRequest::default();
            let images = client.images().list(request).await?.into_inner().images;
            let mut targets = images.into_iter().filter_map(|image| image.target);
            targets
                .find(|target| target.digest == self.image)
                .with_context(|| format!("no image has the manifest {}: not found", self.image))?
        } else {
            crate::image::find_image(client, &self.image).await?.target.unwrap_or_default()
        };
        let (digest, media_type) = (target.digest.clone(), target.media_type.clone());
        let lease = Lease::create(client).await?;
        let result = async {
            let image = resolve(lease.client(), &target.into(), &Platform::host()).await?;
            unpack(lease.client(), &image, &context.snapshotter).await
        }
        .await;
        lease.delete().await?;
        result?;
        Ok(outln!("unpacking {digest} ({media_type})...done")?)
    }
}
