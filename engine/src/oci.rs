//! Image documents: descriptors, manifests, indexes and configurations.
//!
//! They come from registries and archives, so they are hostile: a document has a size limit, must
//! be what its media type says, and is parsed into a type that holds only what was checked.
//! Documents are never rewritten, for their bytes are their identity; what is not named here is
//! skipped when read. Sources: OCI image-spec 1.1; Docker image manifest version 2, schema 2.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{digest::Digest, platform::Platform};

/// The largest manifest, index or configuration, in bytes. Registries refuse manifests over 4 MiB.
pub const DOCUMENT_LEN_MAX: u64 = 8 << 20;

/// The most entries of an index, and the most layers of a manifest.
pub const CHILDREN_MAX: usize = 4096;

/// The annotation with an image's full name in archives that containerd and Docker write.
pub const ANNOTATION_IMAGE_NAME: &str = "io.containerd.image.name";

/// The annotation with an image's tag in an OCI layout.
pub const ANNOTATION_REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Media types.
#[expect(missing_docs, reason = "the names are the field's")]
pub mod media_type {
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
}

/// What a blob is, by its media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An index, or Docker's manifest list.
    Index,
    /// A manifest.
    Manifest,
    /// An image's configuration.
    Config,
    /// A layer of an image's filesystem, of whichever compression.
    Layer,
    /// Something else, such as the payload of an artifact: kept, never unpacked.
    Other,
}

impl Role {
    /// The role that a media type tells.
    pub fn of(media_type: &str) -> Self {
        match media_type {
            media_type::OCI_INDEX | media_type::DOCKER_LIST => Self::Index,
            media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => Self::Manifest,
            media_type::OCI_CONFIG | media_type::DOCKER_CONFIG => Self::Config,
            other if is_layer(other) => Self::Layer,
            _ => Self::Other,
        }
    }
}

fn is_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.")
}

/// Where a blob is found, how long it is and what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub media_type: String,
    /// The blob's address.
    #[serde(with = "text")]
    pub digest: Digest,
    /// The blob's length, in bytes.
    pub size: u64,
    /// What the image is for; in entries of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Other places that have the blob. Never contacted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
}

impl Descriptor {
    /// Describes `bytes`, which are of `media_type`.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
            urls: Vec::new(),
        }
    }

    /// What the blob is.
    pub fn role(&self) -> Role {
        Role::of(&self.media_type)
    }

    /// Whether `bytes` are the blob.
    ///
    /// # Errors
    ///
    /// Length or digest differ.
    pub fn check(&self, bytes: &[u8]) -> Result<(), DocumentError> {
        let same = bytes.len() as u64 == self.size && {
            let mut hasher = crate::digest::Hasher::new(self.digest.algorithm());
            hasher.update(bytes);
            hasher.finish() == self.digest
        };
        if same { Ok(()) } else { Err(DocumentError::Mismatch { digest: self.digest.clone() }) }
    }
}

/// A list of images, one for each platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// The index's own media type; absent in old ones.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The images.
    pub manifests: Vec<Descriptor>,
}

/// One image: its configuration and its layers, the lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// The manifest's own media type; absent in old ones.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// The layers.
    pub layers: Vec<Descriptor>,
}

/// What the engine needs of an image's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Config {
    /// What the image is for.
    #[serde(flatten)]
    pub platform: Platform,
    /// The filesystem.
    pub rootfs: RootFs,
}

/// The filesystem of an image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RootFs {
    /// The digests of the uncompressed layers, the lowest first.
    #[serde(with = "texts")]
    pub diff_ids: Vec<Digest>,
}

/// A parsed document that has children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// An index.
    Index(Index),
    /// A manifest.
    Manifest(Manifest),
}

impl Document {
    /// Parses `bytes` as what `descriptor` says they are.
    ///
    /// # Errors
    ///
    /// The bytes are not what the descriptor says, are not such a document, or could be read as
    /// both an index and a manifest (GHSA-5j5w-g665-5m35).
    pub fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Self, DocumentError> {
        descriptor.check(bytes)?;
        let digest = || descriptor.digest.clone();
        let json = |source| DocumentError::Json { digest: digest(), source };
        let shape: Shape = serde_json::from_slice(bytes).map_err(json)?;
        if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
            return Err(DocumentError::Ambiguous { digest: digest() });
        }
        if !shape.media_type.is_empty() && Role::of(&shape.media_type) != descriptor.role() {
            return Err(DocumentError::MediaType {
                digest: digest(),
                want: descriptor.media_type.clone(),
                got: shape.media_type,
            });
        }
        let (document, children) = match descriptor.role() {
            Role::Index => {
                let index: Index = serde_json::from_slice(bytes).map_err(json)?;
                let children = index.manifests.len();
                (Self::Index(index), children)
            }
            Role::Manifest => {
                let manifest: Manifest = serde_json::from_slice(bytes).map_err(json)?;
                let children = manifest.layers.len();
                (Self::Manifest(manifest), children)
            }
            Role::Config | Role::Layer | Role::Other => {
                return Err(DocumentError::NoDocument {
                    digest: digest(),
                    media_type: descriptor.media_type.clone(),
                });
            }
        };
        if children > CHILDREN_MAX {
            return Err(DocumentError::TooManyChildren { digest: digest(), children });
        }
        Ok(document)
    }

    /// What the document refers to: the entries of an index, or a manifest's configuration and
    /// layers, in that order.
    pub fn children(&self) -> Vec<Descriptor> {
        match self {
            Self::Index(index) => index.manifests.clone(),
            Self::Manifest(manifest) => {
                std::iter::once(&manifest.config).chain(&manifest.layers).cloned().collect()
            }
        }
    }
}

/// Which members a document has, without their contents.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    media_type: String,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
}

impl Config {
    /// Parses the configuration that `descriptor` names.
    ///
    /// # Errors
    ///
    /// The bytes are not what the descriptor says, or not a configuration.
    pub fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Self, DocumentError> {
        descriptor.check(bytes)?;
        let json = |source| DocumentError::Json { digest: descriptor.digest.clone(), source };
        serde_json::from_slice(bytes).map_err(json)
    }
}

/// The digests of the layer stacks up to and including each of the layers (OCI image-spec,
/// "Layer ChainID").
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// Why bytes are not the document that a descriptor promises.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum DocumentError {
    #[error("{digest}: the bytes have another length or digest")]
    Mismatch { digest: Digest },
    #[error("{digest}: no valid document")]
    Json { digest: Digest, source: serde_json::Error },
    #[error("{digest}: has the members of both an index and a manifest")]
    Ambiguous { digest: Digest },
    #[error("{digest}: says that it is {got:?} where {want:?} is referred to")]
    MediaType { digest: Digest, want: String, got: String },
    #[error("{digest}: {media_type:?} is neither an index nor a manifest")]
    NoDocument { digest: Digest, media_type: String },
    #[error("{digest}: {children} entries are over the limit of {CHILDREN_MAX}")]
    TooManyChildren { digest: Digest, children: usize },
}

/// Digests as text.
mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::digest::Digest;

    pub(super) fn serialize<S: Serializer>(digest: &Digest, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(digest)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Lists of digests as text.
mod texts {
    use serde::{Deserialize, Deserializer, de::Error};

    use crate::digest::Digest;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Digest>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(media_type: &str, json: &str) -> Result<Document, String> {
        let descriptor = Descriptor::of(media_type, json.as_bytes());
        Document::parse(&descriptor, json.as_bytes()).map_err(|error| {
            let text = sys::error::Chain(&error).to_string();
            text.replace(&descriptor.digest.to_string(), "D")
        })
    }

    #[test]
    fn documents() {
        let digest = Digest::of(b"");
        let entry = format!(r#"{{"mediaType":"t","digest":"{digest}","size":0}}"#);
        let manifest = format!(r#"{{"schemaVersion":2,"config":{entry},"layers":[{entry}]}}"#);
        let document = parse(media_type::OCI_MANIFEST, &manifest).expect("well formed");
        assert_eq!(document.children(), vec![Descriptor::of("t", b""), Descriptor::of("t", b"")]);

        let cases = [
            (
                "both",
                media_type::OCI_INDEX,
                r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.to_owned(),
                "D: has the members of both an index and a manifest",
            ),
            (
                "another media type",
                media_type::OCI_INDEX,
                format!(r#"{{"mediaType":"{}","manifests":[]}}"#, media_type::OCI_MANIFEST),
                "D: says that it is \"application/vnd.oci.image.manifest.v1+json\" where \
                 \"application/vnd.oci.image.index.v1+json\" is referred to",
            ),
            (
                "negative size",
                media_type::OCI_MANIFEST,
                manifest.replace("\"size\":0", "\"size\":-1"),
                "D: no valid document: invalid value: integer `-1`, expected u64 at line 1 column 137",
            ),
            (
                "a layer",
                media_type::OCI_LAYER,
                "{}".to_owned(),
                "D: \"application/vnd.oci.image.layer.v1.tar\" is neither an index nor a manifest",
            ),
        ];
        for (case, media_type, json, want) in cases {
            assert_eq!(parse(media_type, &json), Err(want.to_owned()), "{case}");
        }
    }

    #[test]
    fn chains() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let ab = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(chain_ids(&[a.clone(), b]), vec![a, ab]);
    }
}
