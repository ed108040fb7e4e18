//! `ctr images`

mod check;
mod delete;
mod export;
mod import;
mod inspect;
mod label;
mod list;
mod mount;
mod prune;
mod pull;
mod push;
mod tag;
mod unmount;
mod usage;

super::group! {
    /// Check whether images are complete and unpacked
    Check(check::Check),
    /// Export images to an archive
    Export(export::Export),
    /// Import images from an archive
    Import(import::Import),
    /// Print what an image is made of
    Inspect(inspect::Inspect),
    /// List images
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Mount an image
    Mount(mount::Mount),
    /// Unmount an image
    Unmount(unmount::Unmount),
    /// Pull an image from a registry
    Pull(pull::Pull),
    /// Push an image to a registry
    Push(push::Push),
    /// Remove images that no container uses
    Prune(prune::Prune),
    /// Remove images
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete(delete::Delete),
    /// Give an image another name
    Tag(tag::Tag),
    /// Set and clear labels of an image
    Label(label::Label),
    /// Print the disk usage of an image's snapshots
    Usage(usage::Usage),
}

use proto::containerd::services::images::v1::{Image, ListImagesRequest};

use crate::client::Client;

/// All images that match one of the filters. A filter without an operator is a name.
async fn list_images(client: &Client, filters: Vec<String>) -> anyhow::Result<Vec<Image>> {
    let filters = filters.into_iter().map(|filter| match filter.contains(['=', '!', '~']) {
        true => filter,
        false => format!("name=={filter:?}"),
    });
    let request = ListImagesRequest { filters: filters.collect() };
    Ok(client.images().list(request).await?.into_inner().images)
}
