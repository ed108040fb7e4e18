//! Imports an archive of images through the daemon's content and image services, for daemons
//! without a Transfer service.
//!
//! The archive is read once, from front to back. All but the few files that say what it holds go
//! to the content store as they come, under whatever digest they have; afterwards the documents
//! are read back from there. So the order of the entries does not matter and nothing large is
//! held in memory. What no image refers to in the end is collected with the lease.
//!
//! Source: containerd, `core/images/archive/importer.go`; OCI image-spec, "Image Layout";
//! docker's image specification v1.2 for `manifest.json`.

mod collect;
mod docker;
mod gc_labels;
mod naming;

use anyhow::{Context as _, bail};
use proto::containerd::services::images::v1::{CreateImageRequest, Image, UpdateImageRequest};
use serde::Deserialize;
use tokio::io::AsyncRead;
use tonic::Code;

use super::{
    blobs::write_blob,
    document::{Descriptor, media, to_api},
    leased::Lease,
    resolve::resolve,
    unpack::unpack,
};
use crate::{client::Client, names, output::outln, platform::Platform};

/// How an archive is imported.
pub(crate) struct ImportOptions {
    pub(crate) naming: naming::Naming,
    /// Name under which the archive's index is kept as an image too.
    pub(crate) index_name: Option<String>,
    pub(crate) labels: Vec<String>,
    pub(crate) platform: Platform,
    /// Unpack for this snapshotter.
    pub(crate) snapshotter: Option<String>,
}

pub(crate) use naming::Naming;

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// Imports the images of an archive.
pub(crate) async fn import(
    client: &Client,
    reader: impl AsyncRead + Unpin,
    options: &ImportOptions,
) -> anyhow::Result<()> {
    let lease = Lease::create(client).await?;
    let result = import_leased(lease.client(), reader, options).await;
    let deleted = lease.delete().await;
    result.and(deleted)
}

async fn import_leased(
    client: &Client,
    reader: impl AsyncRead + Unpin,
    options: &ImportOptions,
) -> anyhow::Result<()> {
    let collected = collect::collect(client, reader).await?;
    let (manifests, index) = match (&collected.index, &collected.manifest) {
        (Some(bytes), _) => {
            let index: Index = serde_json::from_slice(bytes).context("index.json")?;
            (index.manifests, Some(bytes))
        }
        (None, Some(bytes)) => (docker::manifests(client, bytes, &collected).await?, None),
        (None, None) => bail!("the archive has neither index.json nor manifest.json"),
    };
    for manifest in &manifests {
        gc_labels::set(client, manifest).await?;
    }
    let mut images = Vec::new();
    for manifest in &manifests {
        images.extend(options.naming.names(manifest).into_iter().map(|name| (name, manifest)));
    }
    anyhow::ensure!(
        !images.is_empty(),
        "the archive names no images; --digests names them by digest"
    );
    for (name, manifest) in &images {
        create_image(client, name, manifest, &options.labels).await?;
    }
    if let (Some(name), Some(bytes)) = (&options.index_name, index) {
        let digest = write_blob(client, bytes, gc_labels::of_index(&manifests)).await?;
        let size = i64::try_from(bytes.len())?;
        let target = Descriptor {
            media_type: media::INDEX.to_owned(),
            digest: digest.to_string(),
            size,
            annotations: Default::default(),
            platform: None,
        };
        create_image(client, name, &target, &options.labels).await?;
    }
    if let Some(snapshotter) = &options.snapshotter {
        for (name, manifest) in images {
            let image = resolve(client, manifest, &options.platform)
                .await
                .with_context(|| format!("unpack {name}"))?;
            unpack(client, &image, snapshotter).await.with_context(|| format!("unpack {name}"))?;
            outln!("unpacking {name} ({})...done", manifest.digest)?;
        }
    }
    Ok(())
}

/// Makes an image's record point at a manifest, whether there is one already or not.
async fn create_image(
    client: &Client,
    name: &str,
    target: &Descriptor,
    labels: &[String],
) -> anyhow::Result<()> {
    let image = Image {
        name: name.to_owned(),
        target: Some(to_api(target)),
        labels: names::labels(labels),
        ..Default::default()
    };
    let request = CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
    match client.images().create(request).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => {
            let mut paths = vec!["target".to_owned()];
            paths.extend(names::label_paths(&image.labels));
            let update_mask = Some(prost_types::FieldMask { paths });
            let request =
                UpdateImageRequest { image: Some(image), update_mask, source_date_epoch: None };
            client.images().update(request).await?;
            Ok(())
        }
        Err(status) => Err(status).with_context(|| format!("image {name}")),
    }
}
