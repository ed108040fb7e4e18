//! The image of a checkpoint: an index whose parts are what a container is made of again.
//!
//! The media types and annotations are containerd's, so either client restores what the other has
//! kept (containerd, `client/container_checkpoint_opts.go`, `core/images/mediatypes.go`).

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use proto::containerd::types;
use serde::Deserialize;
use serde_json::json;

use super::{
    blobs::{read_blob, write_blob},
    document::{Descriptor, media},
};
use crate::client::Client;

/// The media types of a checkpoint's parts.
pub(crate) mod part {
    /// criu's images, as an archive.
    pub(crate) const CRIU: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
    /// The specification, an encoded `Any`.
    pub(crate) const CONFIG: &str =
        "application/vnd.containerd.container.checkpoint.config.v1+proto";
    /// How it was checkpointed, an encoded `Any`.
    pub(crate) const OPTIONS: &str =
        "application/vnd.containerd.container.checkpoint.options.v1+proto";
    /// The runtime's options, an encoded `Any`.
    pub(crate) const RUNTIME_OPTIONS: &str =
        "application/vnd.containerd.container.checkpoint.runtime.options+proto";
    /// What the container has changed of its image.
    pub(crate) const CHANGES: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
}

/// The annotation with the name of the container's image.
const IMAGE: &str = "org.opencontainers.image.ref.name";

/// The annotation with the name of its runtime.
const RUNTIME: &str = "io.containerd.checkpoint.runtime";

/// The annotation with the name of its snapshotter.
const SNAPSHOTTER: &str = "io.containerd.checkpoint.snapshotter";

/// Of what the parts are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) image: String,
    pub(crate) runtime: String,
    pub(crate) snapshotter: String,
}

/// The index of a checkpoint.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Checkpoint {
    #[serde(rename = "manifests")]
    pub(crate) parts: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Checkpoint {
    /// One of a container, with no parts yet; without an origin it is of a task only.
    pub(crate) fn of(origin: Option<Origin>) -> Self {
        let annotations = origin.map(|Origin { image, runtime, snapshotter }| {
            [(IMAGE, image), (RUNTIME, runtime), (SNAPSHOTTER, snapshotter)]
        });
        let annotations = annotations.into_iter().flatten();
        let annotations = annotations.map(|(name, value)| (name.to_owned(), value)).collect();
        Self { parts: Vec::new(), annotations }
    }

    /// Reads the one that an image is.
    ///
    /// # Errors
    ///
    /// It is not there, or is no index.
    pub(crate) async fn read(client: &Client, target: &Descriptor) -> anyhow::Result<Self> {
        let bytes = read_blob(client, &target.address()?).await?;
        serde_json::from_slice(&bytes).with_context(|| format!("checkpoint {}", target.digest))
    }

    /// Adds a document, which is written to the store.
    pub(crate) async fn add(
        &mut self,
        client: &Client,
        media_type: &str,
        bytes: &[u8],
    ) -> anyhow::Result<()> {
        let digest = write_blob(client, bytes, BTreeMap::new()).await;
        let digest = digest.with_context(|| format!("write the checkpoint's {media_type}"))?;
        self.parts.push(Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_string(),
            size: i64::try_from(bytes.len())?,
            annotations: BTreeMap::new(),
            platform: None,
        });
        Ok(())
    }

    /// Writes the index, which keeps the parts.
    pub(crate) async fn write(&self, client: &Client) -> anyhow::Result<types::Descriptor> {
        let bytes = self.encode()?;
        let labels = self.parts.iter().enumerate();
        let labels = labels
            .map(|(at, part)| (format!("containerd.io/gc.ref.content.{at}"), part.digest.clone()))
            .collect();
        let digest = write_blob(client, &bytes, labels).await.context("write the checkpoint")?;
        Ok(types::Descriptor {
            media_type: media::INDEX.to_owned(),
            digest: digest.to_string(),
            size: i64::try_from(bytes.len())?,
            ..Default::default()
        })
    }

    fn encode(&self) -> anyhow::Result<Vec<u8>> {
        let architecture = crate::platform::Platform::host().architecture;
        let parts = self.parts.iter().map(|part| {
            let mut json = json!({"mediaType": part.media_type, "digest": part.digest,
                "size": part.size});
            // An image has its own platforms.
            if part.media_type.starts_with("application/vnd.containerd.container.")
                || part.media_type == self::part::CHANGES
            {
                json["platform"] = json!({"os": "linux", "architecture": architecture});
            }
            json
        });
        let mut index = json!({"schemaVersion": 2, "mediaType": media::INDEX,
            "manifests": parts.collect::<Vec<_>>()});
        if !self.annotations.is_empty() {
            index["annotations"] = json!(self.annotations);
        }
        Ok(serde_json::to_vec(&index)?)
    }

    /// The first part of a kind.
    pub(crate) fn part(&self, media_type: &str) -> Option<&Descriptor> {
        self.parts.iter().find(|part| part.media_type == media_type)
    }

    /// The first part of a kind, which must be there for what `why` says.
    pub(crate) fn needed(&self, media_type: &str, why: &str) -> anyhow::Result<&Descriptor> {
        self.part(media_type).with_context(|| {
            format!("the checkpoint has no {media_type}, which {why} needs: not found")
        })
    }

    /// Of what it is.
    ///
    /// # Errors
    ///
    /// It does not say, as that of a task.
    pub(crate) fn origin(&self) -> anyhow::Result<Origin> {
        let value = |name: &str| {
            let value = self.annotations.get(name).filter(|value| !value.is_empty());
            value.cloned().with_context(|| format!("the checkpoint's index has no {name}"))
        };
        Ok(Origin {
            image: value(IMAGE)?,
            runtime: value(RUNTIME)?,
            snapshotter: value(SNAPSHOTTER)?,
        })
    }
}

/// Decodes the `Any` in a part of a checkpoint.
pub(crate) async fn read_any(
    client: &Client,
    part: &Descriptor,
) -> anyhow::Result<prost_types::Any> {
    /// A specification is some ten kilobytes.
    const ANY_LEN_MAX: i64 = 4 << 20;
    ensure!(part.size <= ANY_LEN_MAX, "{} has {} bytes", part.media_type, part.size);
    let bytes = read_blob(client, &part.address()?).await?;
    match prost::Message::decode(bytes.as_slice()) {
        Ok(any) => Ok(any),
        Err(error) => bail!("{} {}: {error}", part.media_type, part.digest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let origin = Origin {
            image: "registry.test/i:1".to_owned(),
            runtime: "io.containerd.runc.v2".to_owned(),
            snapshotter: "overlayfs".to_owned(),
        };
        let descriptor = |media_type: &str| Descriptor {
            media_type: media_type.to_owned(),
            digest: "sha256:0".to_owned(),
            size: 7,
            annotations: BTreeMap::new(),
            platform: None,
        };
        let kinds = [media::DOCKER_MANIFEST, part::CONFIG, part::CHANGES];
        let cases = [("container", Some(origin.clone()), true), ("task", None, false)];
        for (case, given, has_origin) in cases {
            let mut checkpoint = Checkpoint::of(given);
            checkpoint.parts.extend(kinds.map(descriptor));
            let bytes = checkpoint.encode().expect("encodes");
            let json: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
            let platforms = json["manifests"].as_array().expect("parts").iter();
            let platforms: Vec<bool> = platforms.map(|part| part["platform"].is_object()).collect();
            assert_eq!(platforms, [false, true, true], "{case}");
            let read: Checkpoint = serde_json::from_slice(&bytes).expect("reads");
            assert_eq!(read.origin().ok(), has_origin.then(|| origin.clone()), "{case}");
            assert_eq!(read.part(part::CONFIG).map(|part| part.size), Some(7), "{case}");
            let error = read.needed(part::CRIU, "--live").expect_err(case).to_string();
            assert!(error.ends_with("which --live needs: not found"), "{case}: {error}");
        }
    }
}
