//! From an image's name to the documents of one platform.

use anyhow::{Context as _, bail};
use proto::containerd::services::{
    images::v1::{GetImageRequest, Image},
    namespaces::v1::GetNamespaceRequest,
};
use tonic::Code;

use super::{
    blobs::read_blob,
    digest::{Digest, chain_id},
    document::{Configuration, Descriptor, Document, Manifest},
};
use crate::{client::Client, names, platform::Platform};

/// The snapshotter of namespaces that do not say theirs.
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";

/// The namespace label that names the snapshotter.
const SNAPSHOTTER_LABEL: &str = "containerd.io/defaults/snapshotter";

/// How many indexes may be nested.
const INDEX_DEPTH_MAX: usize = 4;

/// An image for one platform.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    pub(crate) manifest: Manifest,
    pub(crate) manifest_bytes: Vec<u8>,
    pub(crate) config: Configuration,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) diff_ids: Vec<Digest>,
}

impl Resolved {
    /// The name of the snapshot that has all layers; an image without layers has none.
    pub(crate) fn chain_id(&self) -> Option<Digest> {
        chain_id(&self.diff_ids)
    }
}

/// Finds an image by the name as given, or else by what that is short for.
pub(crate) async fn find_image(client: &Client, name: &str) -> anyhow::Result<Image> {
    let get =
        async |name: &str| client.images().get(GetImageRequest { name: name.to_owned() }).await;
    let full = names::normalise(name);
    let response = match get(name).await {
        // The error names what was meant, so that a typing error shows.
        Err(status) if status.code() == Code::NotFound && full != name => get(&full).await?,
        response => response?,
    };
    response.into_inner().image.with_context(|| format!("daemon returned no image for {name}"))
}

/// Reads manifest and configuration of the image below `target` that `platform` runs.
pub(crate) async fn resolve(
    client: &Client,
    target: &Descriptor,
    platform: &Platform,
) -> anyhow::Result<Resolved> {
    let mut current = target.clone();
    for _ in 0..INDEX_DEPTH_MAX {
        let bytes = read_blob(client, &current.address()?).await?;
        match Document::parse(&bytes).with_context(|| current.digest.clone())? {
            Document::Index(manifests) => current = choose(&manifests, platform)?.clone(),
            Document::Manifest(manifest) => {
                let config_bytes = read_blob(client, &manifest.config.address()?).await?;
                let config = Configuration::parse(&config_bytes)
                    .with_context(|| manifest.config.digest.clone())?;
                let diff_ids = config.diff_ids()?;
                return Ok(Resolved {
                    manifest,
                    manifest_bytes: bytes,
                    config,
                    config_bytes,
                    diff_ids,
                });
            }
        }
    }
    bail!("{} nests more than {INDEX_DEPTH_MAX} indexes", target.digest)
}

/// The first manifest that `platform` runs, an exact match before others. One that does not say
/// its platform is taken when nothing else fits.
pub(super) fn choose<'a>(
    manifests: &'a [Descriptor],
    platform: &Platform,
) -> anyhow::Result<&'a Descriptor> {
    let exact = |own: &&Descriptor| own.platform.as_ref() == Some(platform);
    let fits = |own: &&Descriptor| own.platform.as_ref().is_some_and(|own| platform.runs(own));
    let silent = |own: &&Descriptor| own.platform.is_none();
    let found = manifests.iter().find(exact).or_else(|| manifests.iter().find(fits));
    found
        .or_else(|| manifests.iter().find(silent))
        .with_context(|| format!("no image for platform {platform} in the index: not found"))
}

/// The snapshotter that a flag names, or else the namespace's.
pub(crate) async fn resolve_snapshotter(
    client: &Client,
    flag: Option<&str>,
) -> anyhow::Result<String> {
    if let Some(name) = flag.filter(|name| !name.is_empty()) {
        return Ok(name.to_owned());
    }
    let request = GetNamespaceRequest { name: client.namespace().to_owned() };
    let labels = match client.namespaces().get(request).await {
        Ok(response) => response.into_inner().namespace.map(|namespace| namespace.labels),
        Err(status) if status.code() == Code::NotFound => None,
        Err(status) => return Err(status.into()),
    };
    let label = labels.and_then(|labels| labels.get(SNAPSHOTTER_LABEL).cloned());
    Ok(label.unwrap_or_else(|| DEFAULT_SNAPSHOTTER.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(digest: &str, platform: Option<&str>) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: digest.to_owned(),
            size: 0,
            annotations: Default::default(),
            platform: platform.map(|text| text.parse().expect("a platform")),
        }
    }

    #[test]
    fn choice() {
        let index = [
            descriptor("arm", Some("linux/arm64")),
            descriptor("v3", Some("linux/amd64/v3")),
            descriptor("amd", Some("linux/amd64")),
            descriptor("armv6", Some("linux/arm/v6")),
        ];
        let cases = [
            ("linux/amd64", Some("amd")),
            ("linux/amd64/v3", Some("v3")),
            ("linux/arm64", Some("arm")),
            ("linux/arm/v7", Some("armv6")),
            ("linux/s390x", None),
        ];
        for (platform, want) in cases {
            let platform: Platform = platform.parse().expect("a platform");
            let got = choose(&index, &platform).ok().map(|found| found.digest.as_str());
            assert_eq!(got, want, "{platform}");
        }
        let silent = [descriptor("any", None)];
        let platform: Platform = "linux/s390x".parse().expect("a platform");
        assert_eq!(choose(&silent, &platform).ok(), Some(&silent[0]));
    }
}
