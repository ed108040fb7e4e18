//! Archives that `docker save` makes.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Deserialize;

use super::{
    super::{
        blobs::write_blob,
        document::{Descriptor, Manifest, media},
    },
    collect::{Collected, Stored},
    gc_labels,
    naming::IMAGE_NAME,
};
use crate::{client::Client, names};

/// An image in `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Makes a manifest for each image and returns their descriptors, one for each name.
pub(super) async fn manifests(
    client: &Client,
    bytes: &[u8],
    collected: &Collected,
) -> anyhow::Result<Vec<Descriptor>> {
    let saved: Vec<Saved> = serde_json::from_slice(bytes).context("manifest.json")?;
    let mut descriptors = Vec::new();
    for image in saved {
        let layers = image.layers.iter().map(|path| Ok(layer(collected.file(path)?)));
        let manifest = Manifest {
            schema_version: 2,
            media_type: media::DOCKER_MANIFEST.to_owned(),
            config: descriptor(media::DOCKER_CONFIG, collected.file(&image.config)?),
            layers: layers.collect::<anyhow::Result<_>>()?,
        };
        let bytes = serde_json::to_vec(&manifest)?;
        let digest = write_blob(client, &bytes, gc_labels::of_manifest(&manifest)).await?;
        let base = Descriptor {
            media_type: media::DOCKER_MANIFEST.to_owned(),
            digest: digest.to_string(),
            size: i64::try_from(bytes.len())?,
            annotations: BTreeMap::new(),
            platform: None,
        };
        let tags = image.repo_tags.unwrap_or_default();
        if tags.is_empty() {
            descriptors.push(base.clone());
        }
        for tag in tags {
            let mut named = base.clone();
            named.annotations.insert(IMAGE_NAME.to_owned(), names::normalise(&tag));
            descriptors.push(named);
        }
    }
    Ok(descriptors)
}

fn layer(stored: &Stored) -> Descriptor {
    let media_type = match stored.magic {
        [0x1f, 0x8b, ..] => media::DOCKER_LAYER_GZIP,
        [0x28, 0xb5, 0x2f, 0xfd] => media::LAYER_ZSTD,
        _ => media::DOCKER_LAYER,
    };
    descriptor(media_type, stored)
}

fn descriptor(media_type: &str, stored: &Stored) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: stored.digest.to_string(),
        size: stored.size,
        annotations: BTreeMap::new(),
        platform: None,
    }
}
