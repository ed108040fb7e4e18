//! Images made on the spot, so that no test needs the internet.

mod archive;
mod layer;
mod samples;

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use std::io::Write;

pub use archive::{docker_archive, oci_archive};
pub use layer::Layer;
pub use samples::{busybox, busybox_layers, layered, multi_platform, probe};

/// The family of media types in which an image is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Those of the OCI image-spec.
    Oci,
    /// Those of Docker's manifest v2, schema 2.
    Docker,
}

impl Flavour {
    fn of(self, oci: &'static str, docker: &'static str) -> &'static str {
        match self {
            Self::Oci => oci,
            Self::Docker => docker,
        }
    }

    fn index(self) -> &'static str {
        self.of(
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.docker.distribution.manifest.list.v2+json",
        )
    }

    fn manifest(self) -> &'static str {
        self.of(
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.v2+json",
        )
    }

    fn config(self) -> &'static str {
        self.of(
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.docker.container.image.v1+json",
        )
    }

    fn layer(self) -> &'static str {
        self.of(
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        )
    }
}

/// A piece of content with its address.
#[derive(Clone, Debug)]
pub struct Blob {
    /// What the bytes are.
    pub media_type: &'static str,
    /// `sha256:` and the hash of the bytes.
    pub digest: String,
    /// The content.
    pub bytes: Vec<u8>,
}

impl Blob {
    /// Computes the address of `bytes`.
    pub fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { media_type, digest: digest(&bytes), bytes }
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// An image: everything that is reached from its top, the top last.
#[derive(Clone, Debug)]
pub struct Image {
    /// Layers, configs, manifests, and the index if there is one; each after what it names.
    pub blobs: Vec<Blob>,
}

impl Image {
    /// Makes an image of one platform; `config` is the image config's member of that name.
    pub fn new(flavour: Flavour, architecture: &str, layers: &[Layer], config: &Value) -> Self {
        let tars: Vec<Vec<u8>> = layers.iter().map(Layer::tar).collect();
        let diff_ids: Vec<String> = tars.iter().map(|tar| digest(tar)).collect();
        let mut blobs: Vec<Blob> =
            tars.iter().map(|tar| Blob::new(flavour.layer(), gzip(tar))).collect();
        let descriptors: Vec<Value> = blobs.iter().map(Blob::descriptor).collect();
        let config = Blob::new(
            flavour.config(),
            bytes(&json!({
                "architecture": architecture, "os": "linux", "config": config,
                "created": "2026-01-01T00:00:00Z",
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
                "history": diff_ids.iter().map(|_| json!({"created_by": "test"})).collect::<Vec<_>>(),
            })),
        );
        let manifest = Blob::new(
            flavour.manifest(),
            bytes(&json!({
                "schemaVersion": 2, "mediaType": flavour.manifest(),
                "config": config.descriptor(), "layers": descriptors,
            })),
        );
        blobs.extend([config, manifest]);
        Self { blobs }
    }

    /// Makes an index over images of one platform each.
    pub fn index(flavour: Flavour, images: &[(&str, Image)]) -> Self {
        let mut blobs = Vec::new();
        let mut manifests = Vec::new();
        for (architecture, image) in images {
            let mut descriptor = image.top().descriptor();
            descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
            manifests.push(descriptor);
            blobs.extend(image.blobs.iter().cloned());
        }
        let index =
            json!({"schemaVersion": 2, "mediaType": flavour.index(), "manifests": manifests});
        blobs.push(Blob::new(flavour.index(), bytes(&index)));
        Self { blobs }
    }

    /// The blob that an image's name points at.
    ///
    /// # Panics
    ///
    /// The image is empty, which no constructor gives.
    pub fn top(&self) -> &Blob {
        self.blobs.last().expect("an image has a manifest")
    }

    /// The layers, lowest first; those of all platforms for an index.
    pub fn layers(&self) -> Vec<&Blob> {
        self.blobs.iter().filter(|blob| is_layer(blob.media_type)).collect()
    }

    /// The layers, to be spoilt.
    pub fn layers_mut(&mut self) -> impl Iterator<Item = &mut Blob> {
        self.blobs.iter_mut().filter(|blob| is_layer(blob.media_type))
    }

    /// The image config.
    ///
    /// # Panics
    ///
    /// The image is empty, which no constructor gives.
    pub fn config(&self) -> &Blob {
        let found = self.blobs.iter().find(|blob| {
            [Flavour::Oci, Flavour::Docker].iter().any(|it| it.config() == blob.media_type)
        });
        found.expect("an image has a config")
    }

    /// Whether a blob is a manifest or an index, which a registry keeps apart from the others.
    pub fn is_manifest(blob: &Blob) -> bool {
        [Flavour::Oci, Flavour::Docker]
            .iter()
            .any(|it| it.index() == blob.media_type || it.manifest() == blob.media_type)
    }
}

/// Gives `sha256:` and the hash of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Compresses `bytes`, quickly rather than well.
///
/// # Panics
///
/// Memory cannot be written to.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("a vector takes all bytes")
}

fn is_layer(media_type: &str) -> bool {
    [Flavour::Oci, Flavour::Docker].iter().any(|it| it.layer() == media_type)
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}
