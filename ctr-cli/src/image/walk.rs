//! What an image consists of.

use anyhow::bail;

use super::{
    blobs::read_blob,
    document::{Configuration, Descriptor, Document},
};
use crate::{client::Client, platform::Platform};

/// How many documents are visited.
const DOCUMENTS_MAX: usize = 4096;

/// All blobs of an image that `platform` needs: the indexes, the manifest, the configuration,
/// the layers.
pub(crate) async fn contents(
    client: &Client,
    target: &Descriptor,
    platform: &Platform,
) -> anyhow::Result<Vec<Descriptor>> {
    let mut found = Vec::new();
    let mut current = target.clone();
    while found.len() < DOCUMENTS_MAX {
        found.push(current.clone());
        match Document::parse(&read_blob(client, &current.address()?).await?)? {
            Document::Index(manifests) => {
                current = super::resolve::choose(&manifests, platform)?.clone();
            }
            Document::Manifest(manifest) => {
                found.push(manifest.config);
                found.extend(manifest.layers);
                return Ok(found);
            }
        }
    }
    bail!("{} nests too many indexes", target.digest)
}

/// The platforms that an image is for, of which the documents are in the store.
pub(crate) async fn platforms(
    client: &Client,
    target: &Descriptor,
) -> anyhow::Result<Vec<Platform>> {
    let mut found = Vec::new();
    let mut open = vec![target.clone()];
    for _ in 0..DOCUMENTS_MAX {
        let Some(current) = open.pop() else { break };
        if let Some(platform) = &current.platform {
            found.push(platform.clone());
            continue;
        }
        match Document::parse(&read_blob(client, &current.address()?).await?)? {
            Document::Index(manifests) => open.extend(manifests),
            Document::Manifest(manifest) => {
                let bytes = read_blob(client, &manifest.config.address()?).await?;
                found.push(Configuration::parse(&bytes)?.platform);
            }
        }
    }
    Ok(found)
}
