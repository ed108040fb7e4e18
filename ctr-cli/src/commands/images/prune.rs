//! `ctr images prune`

use std::collections::HashSet;

use anyhow::{Context as _, bail};
use clap::Args;
use proto::containerd::services::{
    containers::v1::ListContainersRequest, images::v1::DeleteImageRequest,
};

use super::list_images;
use crate::{cli::Global, commands::each, output::outln};

/// Remove images that no container uses
#[derive(Args, Debug)]
pub(crate) struct Prune {
    /// Remove only images that match one of these, as in name~=^docker.io/test
    filters: Vec<String>,
    /// Remove all that no container uses
    #[arg(long)]
    all: bool,
}

impl Prune {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        if !self.all && self.filters.is_empty() {
            bail!("either --all or a filter must be given");
        }
        let client = global.connect().await?;
        // Containers first: an image that gets one meanwhile stays unpacked under its snapshot.
        let request = ListContainersRequest::default();
        let containers = client.containers().list(request).await?.into_inner().containers;
        let used: HashSet<String> = containers.into_iter().map(|own| own.image).collect();
        let images = list_images(&client, self.filters).await?;
        let unused = images.into_iter().map(|image| image.name).filter(|name| !used.contains(name));
        let unused: Vec<String> = unused.collect();
        let last = unused.last().cloned();
        each(&unused, async |name| {
            let sync = Some(name) == last.as_ref();
            let request = DeleteImageRequest { name: name.clone(), sync, ..Default::default() };
            client.images().delete(request).await.with_context(|| format!("delete {name}"))?;
            Ok(outln!("{name}")?)
        })
        .await
    }
}
