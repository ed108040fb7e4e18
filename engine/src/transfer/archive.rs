//! Image archives: OCI layouts, and what `docker save` writes.
//!
//! An archive is read once, from its start to its end, and may have its parts in any order. What
//! is not a document of the archive itself is a blob and goes to the content store as it comes.
//! Afterwards the archive is a list of images, each with names.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
};

use serde::{Deserialize, Serialize};

use crate::{
    diff::{
        Compression, DiffError,
        tar::{Entry, Kind, Reader, Stream},
    },
    oci::{
        ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, DOCUMENT_LEN_MAX, Descriptor, Index, Manifest,
        media_type,
    },
    reference::{ParseReferenceError, Reference},
};

/// The most files of an archive.
const FILES_MAX: usize = 1 << 16;

/// The most bytes of an archive: 1 TiB.
const BYTES_MAX: u64 = 1 << 40;

/// The version of OCI layouts that there is.
const LAYOUT_VERSION: &str = "1.0.0";

/// Where the blobs of an archive go.
pub(super) trait Sink {
    /// Why a blob could not be kept.
    type Error: From<ArchiveError>;

    /// Keeps the blob whose bytes `data` gives part by part, and describes it.
    fn blob(
        &mut self,
        size: u64,
        data: &mut dyn FnMut() -> Result<Option<Vec<u8>>, ArchiveError>,
    ) -> Result<Descriptor, Self::Error>;

    /// How a kept blob starts; at most `len` bytes of it.
    fn head(&mut self, blob: &Descriptor, len: usize) -> Result<Vec<u8>, Self::Error>;
}

/// What an archive has: an index of images whose annotations name them, and documents that were
/// made for it and are in no file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) index: Index,
    pub(super) made: Vec<(Descriptor, Vec<u8>)>,
}

/// An entry of Docker's `manifest.json`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerImage {
    pub(super) config: String,
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(super) layers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

/// What was found so far.
#[derive(Default)]
struct Found {
    layout: Option<Vec<u8>>,
    index: Option<Vec<u8>>,
    docker: Option<Vec<u8>>,
    blobs: HashMap<String, Descriptor>,
    links: BTreeMap<String, String>,
}

/// Reads an archive.
///
/// # Errors
///
/// Those of `sink`, and [`ArchiveError`].
pub(super) fn read<S: Sink>(source: impl Read, sink: &mut S) -> Result<Contents, S::Error> {
    let mut reader = Reader::new(Stream::new(source, BYTES_MAX));
    let mut found = Found::default();
    let mut files = 0;
    while let Some(entry) = reader.next().map_err(ArchiveError::Tar)? {
        files += 1;
        if files > FILES_MAX {
            return Err(ArchiveError::TooManyFiles.into());
        }
        let name = clean(&entry.path);
        match entry.kind {
            Kind::Symlink => {
                found.links.insert(name.clone(), target(&name, &entry));
            }
            Kind::HardLink => {
                found.links.insert(name, clean(&entry.link));
            }
            Kind::Regular => match name.as_str() {
                "oci-layout" => found.layout = Some(document(&mut reader, &entry)?),
                "index.json" => found.index = Some(document(&mut reader, &entry)?),
                "manifest.json" => found.docker = Some(document(&mut reader, &entry)?),
                _ => {
                    let mut data = || {
                        let part = reader.data(u64::MAX).map_err(ArchiveError::Tar)?;
                        Ok((!part.is_empty()).then(|| part.to_vec()))
                    };
                    let blob = sink.blob(entry.stored, &mut data)?;
                    found.blobs.insert(name, blob);
                }
            },
            _ => {}
        }
    }
    reader.into_stream().finish().map_err(ArchiveError::Tar)?;
    found.contents(sink)
}

impl Found {
    fn contents<S: Sink>(mut self, sink: &mut S) -> Result<Contents, S::Error> {
        if let Some(layout) = &self.layout {
            let layout: Layout = parse("oci-layout", layout)?;
            if layout.image_layout_version != LAYOUT_VERSION {
                let version = layout.image_layout_version;
                return Err(ArchiveError::LayoutVersion { version }.into());
            }
            let index = self.index.as_deref().ok_or(ArchiveError::Missing("index.json"))?;
            return Ok(Contents { index: parse("index.json", index)?, made: Vec::new() });
        }
        let Some(docker) = &self.docker else { return Err(ArchiveError::Unknown.into()) };
        let images: Vec<DockerImage> = parse("manifest.json", docker)?;
        self.follow_links();
        let mut contents = Contents {
            index: Index {
                schema_version: 2,
                media_type: media_type::OCI_INDEX.to_owned(),
                manifests: Vec::new(),
            },
            made: Vec::new(),
        };
        for image in images {
            let (manifest, bytes) = self.manifest(&image, sink)?;
            contents.index.manifests.extend(named(&manifest, image.repo_tags.unwrap_or_default())?);
            contents.made.push((manifest, bytes));
        }
        Ok(contents)
    }

    /// Links stand for what they lead to; one step is what Docker writes.
    fn follow_links(&mut self) {
        for (name, target) in std::mem::take(&mut self.links) {
            if let Some(blob) = self.blobs.get(&target).cloned() {
                self.blobs.insert(name, blob);
            }
        }
    }

    /// Makes the manifest that Docker's archive leaves out.
    fn manifest<S: Sink>(
        &self,
        image: &DockerImage,
        sink: &mut S,
    ) -> Result<(Descriptor, Vec<u8>), S::Error> {
        let blob = |name: &String| {
            let blob = self.blobs.get(&clean(name.as_bytes())).cloned();
            blob.ok_or_else(|| ArchiveError::NoSuchFile { name: name.clone() })
        };
        let config =
            Descriptor { media_type: media_type::DOCKER_CONFIG.to_owned(), ..blob(&image.config)? };
        let mut layers = Vec::new();
        for name in &image.layers {
            let mut layer = blob(name)?;
            let head = sink.head(&layer, crate::diff::HEAD_LEN)?;
            layer.media_type = match Compression::detect(&head) {
                Compression::Uncompressed => media_type::DOCKER_LAYER,
                Compression::Gzip => media_type::DOCKER_LAYER_GZIP,
                Compression::Zstd => media_type::DOCKER_LAYER_ZSTD,
            }
            .to_owned();
            layers.push(layer);
        }
        let media_type = media_type::DOCKER_MANIFEST;
        let manifest =
            Manifest { schema_version: 2, media_type: media_type.to_owned(), config, layers };
        let bytes = serde_json::to_vec(&manifest).expect("plain data");
        Ok((Descriptor::of(media_type, &bytes), bytes))
    }
}

/// The image once for each name, or once without.
fn named(manifest: &Descriptor, names: Vec<String>) -> Result<Vec<Descriptor>, ArchiveError> {
    if names.is_empty() {
        return Ok(vec![manifest.clone()]);
    }
    let entry = |name: String| {
        let bad = |source| ArchiveError::Name { name: name.clone(), source: Box::new(source) };
        let reference = Reference::parse_short(&name).map_err(bad)?;
        let mut named = manifest.clone();
        let tag = reference.tag().map_or_else(|| reference.to_string(), str::to_owned);
        named.annotations.insert(ANNOTATION_IMAGE_NAME.to_owned(), reference.to_string());
        named.annotations.insert(ANNOTATION_REF_NAME.to_owned(), tag);
        Ok(named)
    };
    names.into_iter().map(entry).collect()
}

fn document<R: Read>(reader: &mut Reader<R>, entry: &Entry) -> Result<Vec<u8>, ArchiveError> {
    if entry.stored > DOCUMENT_LEN_MAX {
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        return Err(ArchiveError::DocumentTooLarge { name, size: entry.stored });
    }
    let mut bytes = Vec::new();
    loop {
        let part = reader.data(u64::MAX).map_err(ArchiveError::Tar)?;
        if part.is_empty() {
            return Ok(bytes);
        }
        bytes.extend_from_slice(part);
    }
}

fn parse<T: serde::de::DeserializeOwned>(
    name: &'static str,
    bytes: &[u8],
) -> Result<T, ArchiveError> {
    serde_json::from_slice(bytes).map_err(|source| ArchiveError::Json { name, source })
}

/// A path of the archive as a key: without `.` and `..`, which lead nowhere here.
fn clean(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What a symbolic link leads to.
fn target(name: &str, entry: &Entry) -> String {
    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
    clean(format!("{directory}/{}", String::from_utf8_lossy(&entry.link)).as_bytes())
}

/// Why an archive is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("read")]
    Tar(#[source] DiffError),
    #[error("unrecognized image format: neither an OCI layout nor made by docker save")]
    Unknown,
    #[error("missing {0} in OCI layout")]
    Missing(&'static str),
    #[error("unsupported OCI layout version {version:?}")]
    LayoutVersion { version: String },
    #[error("{name} is no valid document")]
    Json { name: &'static str, source: serde_json::Error },
    #[error("{name:?} of {size} bytes is over the limit of {DOCUMENT_LEN_MAX}")]
    DocumentTooLarge { name: String, size: u64 },
    #[error("manifest.json names {name:?}, which is not in the archive")]
    NoSuchFile { name: String },
    #[error("manifest.json gives the name {name:?}")]
    Name { name: String, source: Box<ParseReferenceError> },
    #[error("has more than {FILES_MAX} files")]
    TooManyFiles,
}
