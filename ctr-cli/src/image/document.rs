//! The JSON documents of images.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use proto::containerd::types;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use crate::{platform::Platform, spec::ImageConfig};

/// Media types that this client makes.
pub(crate) mod media {
    pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub(crate) const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub(crate) const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    pub(crate) const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
}

/// A reference to a blob.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: i64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing)]
    pub(crate) platform: Option<Platform>,
}

impl Descriptor {
    /// The digest, checked.
    pub(crate) fn address(&self) -> anyhow::Result<Digest> {
        Ok(self.digest.parse()?)
    }

    /// What an annotation says, if it is there.
    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }
}

impl From<types::Descriptor> for Descriptor {
    fn from(descriptor: types::Descriptor) -> Self {
        Self {
            media_type: descriptor.media_type,
            digest: descriptor.digest,
            size: descriptor.size,
            annotations: descriptor.annotations.into_iter().collect(),
            platform: None,
        }
    }
}

/// The descriptor as the API has it.
pub(crate) fn to_api(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.clone(),
        size: descriptor.size,
        annotations: descriptor.annotations.clone().into_iter().collect(),
    }
}

/// An image for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    #[serde(default)]
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// What the target of an image can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    /// Images for several platforms.
    Index(Vec<Descriptor>),
    /// An image.
    Manifest(Manifest),
}

#[derive(Deserialize)]
struct Either {
    manifests: Option<Vec<Descriptor>>,
    layers: Option<serde_json::Value>,
}

impl Document {
    /// Reads a document by what it holds. One that is an index and a manifest is refused: two
    /// readers would take it for two images (GHSA-5j5w-g665-5m35).
    pub(crate) fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let either: Either = serde_json::from_slice(bytes).context("image document")?;
        match (either.manifests, either.layers) {
            (Some(_), Some(_)) => bail!("image document is both an index and a manifest"),
            (Some(manifests), None) => Ok(Self::Index(manifests)),
            (None, Some(_)) => {
                Ok(Self::Manifest(serde_json::from_slice(bytes).context("image manifest")?))
            }
            (None, None) => bail!("image document is neither an index nor a manifest"),
        }
    }
}

/// An image configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Configuration {
    #[serde(flatten)]
    pub(crate) platform: Platform,
    #[serde(default)]
    pub(crate) config: Option<ImageConfig>,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

impl Configuration {
    /// Reads a configuration.
    pub(crate) fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        serde_json::from_slice(bytes).context("image configuration")
    }

    /// The diff IDs of the layers, from the bottom up.
    pub(crate) fn diff_ids(&self) -> anyhow::Result<Vec<Digest>> {
        self.rootfs.diff_ids.iter().map(|text| Ok(text.parse()?)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        let descriptor = r#"{"mediaType":"m","digest":"d","size":1}"#;
        let cases = [
            ("index", format!(r#"{{"manifests":[{descriptor}]}}"#), Ok("index")),
            ("manifest", format!(r#"{{"config":{descriptor},"layers":[]}}"#), Ok("manifest")),
            (
                "both",
                format!(r#"{{"config":{descriptor},"layers":[],"manifests":[]}}"#),
                Err("both"),
            ),
            ("neither", "{}".to_owned(), Err("neither")),
            ("not JSON", "<html>".to_owned(), Err("image document")),
        ];
        for (case, json, want) in cases {
            let got = match Document::parse(json.as_bytes()) {
                Ok(Document::Index(_)) => Ok("index"),
                Ok(Document::Manifest(_)) => Ok("manifest"),
                Err(error) => Err(error.to_string()),
            };
            match (got, want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{case}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{case}: {got}"),
                (got, _) => panic!("{case}: {got:?}"),
            }
        }
    }
}
