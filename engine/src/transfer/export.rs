//! Images out of the stores, as an archive that `docker load` and OCI tools read.
//!
//! The archive is an OCI layout with Docker's `manifest.json` beside it. The same images give the
//! same bytes: files are in the order of their names, with fixed times and owners.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    Error, InvalidImage, Platforms, Progress, Transfer, Work,
    archive::DockerImage,
    blocking,
    documents::{DEPTH_MAX, DOCUMENTS_MAX},
};
use crate::{
    diff::tar::{Entry, Kind, Time, Writer},
    namespace::Scope,
    oci::{
        ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, Descriptor, Document, Index, Manifest, Role,
        media_type,
    },
    reference::Reference,
    streaming::{ByteSender, StreamError},
};

/// The bytes that are sent at once.
const PART_LEN: usize = 1 << 20;

/// How many parts wait for the client.
const FEED_LEN: usize = 4;

/// What an archive holds.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// The images by name.
    pub names: Vec<String>,
    /// For which platforms.
    pub platforms: Platforms,
    /// Whether Docker's `manifest.json` is left out.
    pub skip_docker_manifest: bool,
    /// Whether layers that may not be passed on are left out.
    pub skip_non_distributable: bool,
}

impl Transfer {
    /// Exports images over `stream`.
    ///
    /// # Errors
    ///
    /// As of [`Error`].
    pub async fn export(
        &self,
        scope: Scope,
        options: ExportOptions,
        stream: ByteSender,
        progress: Progress,
    ) -> Result<(), Error> {
        let lease = self.lease(scope).await?;
        let work = self.work(&lease, None, progress);
        work.progress.say("Exporting", "", None).await;
        let (parts, mut feed) = mpsc::channel::<Bytes>(FEED_LEN);
        let writer = std::sync::Arc::clone(&work);
        let writing = blocking(move || writer.write_archive(&options, parts));
        let sending = async move {
            let mut stream = stream;
            while let Some(part) = feed.recv().await {
                stream.send(part).await?;
            }
            Ok::<_, StreamError>(())
        };
        let (written, sent) = tokio::join!(writing, sending);
        // A client that went away is why nothing more could be written.
        sent.map_err(Error::Stream)?;
        written?;
        work.progress.say("Completed export", "", None).await;
        lease.end().await
    }
}

/// The parts of an archive, in the making.
#[derive(Default)]
struct Plan {
    index: Vec<Descriptor>,
    blobs: BTreeMap<String, Descriptor>,
    docker: BTreeMap<String, DockerImage>,
    /// How many documents of the image were looked at.
    seen: usize,
}

impl Work {
    fn write_archive(
        &self,
        options: &ExportOptions,
        parts: mpsc::Sender<Bytes>,
    ) -> Result<(), Error> {
        let mut plan = Plan::default();
        for name in &options.names {
            self.plan_image(name, options, &mut plan)?;
        }
        let sink = Parts { parts, buffer: Vec::with_capacity(PART_LEN) };
        let mut tar = Writer::new(sink);
        self.write_files(&plan, options, &mut tar)?;
        let mut sink = tar.finish().map_err(Error::Write)?;
        sink.flush().map_err(Error::Write)
    }

    fn plan_image(
        &self,
        name: &str,
        options: &ExportOptions,
        plan: &mut Plan,
    ) -> Result<(), Error> {
        let image = self.content.metadata().image(&self.scope.namespace, name)?;
        let mut root = Descriptor {
            media_type: image.target.media_type,
            digest: image.target.digest,
            size: image.target.size,
            platform: None,
            annotations: image.target.annotations,
            urls: Vec::new(),
        };
        let reference: Option<Reference> = name.parse().ok();
        let tag = reference.as_ref().and_then(Reference::tag).unwrap_or(name);
        root.annotations.insert(ANNOTATION_REF_NAME.to_owned(), tag.to_owned());
        root.annotations.insert(ANNOTATION_IMAGE_NAME.to_owned(), name.to_owned());
        let mut images = Vec::new();
        plan.seen = 0;
        self.collect(&root, options, plan, (&mut images, 0))?;
        let Some((manifest, config)) = images.into_iter().next() else {
            return Err(Error::NothingSelected { root: root.digest });
        };
        if config.role() == Role::Config {
            let key = manifest.config.digest.to_string();
            let image = plan.docker.entry(key).or_insert_with(|| DockerImage {
                config: path(&config),
                repo_tags: Some(Vec::new()),
                layers: manifest.layers.iter().map(path).collect(),
            });
            image.repo_tags.get_or_insert_default().push(familiar(reference.as_ref(), name));
        }
        plan.index.push(root);
        Ok(())
    }

    /// Adds the document and what is below it, as far as it is wanted, and finds the images.
    fn collect(
        &self,
        descriptor: &Descriptor,
        options: &ExportOptions,
        plan: &mut Plan,
        (images, depth): (&mut Vec<(Manifest, Descriptor)>, usize),
    ) -> Result<(), Error> {
        plan.seen += 1;
        if plan.seen > DOCUMENTS_MAX || depth > DEPTH_MAX {
            let (root, max) = (descriptor.digest.clone(), DOCUMENTS_MAX);
            return Err(InvalidImage::TooManyDocuments { root, max }.into());
        }
        let bytes = self
            .local_document(descriptor)?
            .ok_or_else(|| Error::Missing { digest: descriptor.digest.clone() })?;
        let document = Document::parse(descriptor, &bytes)?;
        let children = options.platforms.select(&document);
        match document {
            Document::Index(_) => {
                for child in children {
                    match self.collect(&child, options, plan, (images, depth + 1)) {
                        // An index may list what was never fetched.
                        Err(Error::Missing { .. }) => {}
                        result => result?,
                    }
                }
            }
            Document::Manifest(manifest) => {
                let wanted = |child: &Descriptor| {
                    !options.skip_non_distributable || !is_non_distributable(&child.media_type)
                };
                let blobs: Vec<Descriptor> = children.into_iter().filter(wanted).collect();
                for blob in &blobs {
                    if !self.has_blob(&blob.digest)? {
                        return Err(Error::Missing { digest: blob.digest.clone() });
                    }
                }
                plan.blobs.extend(blobs.into_iter().map(|blob| (path(&blob), blob)));
                let config = manifest.config.clone();
                images.push((manifest, config));
            }
        }
        plan.blobs.insert(path(descriptor), descriptor.clone());
        Ok(())
    }

    fn write_files(
        &self,
        plan: &Plan,
        options: &ExportOptions,
        tar: &mut Writer<Parts>,
    ) -> Result<(), Error> {
        let mut directories = BTreeSet::from(["blobs/".to_owned()]);
        for descriptor in plan.blobs.values() {
            directories.insert(format!("blobs/{}/", descriptor.digest.algorithm().name()));
        }
        for directory in &directories {
            tar.entry(&entry(directory, Kind::Directory, 0o755, 0)).map_err(Error::Write)?;
        }
        for (path, descriptor) in &plan.blobs {
            self.write_blob(path, descriptor, tar)?;
        }
        let index = Index {
            schema_version: 2,
            media_type: media_type::OCI_INDEX.to_owned(),
            manifests: plan.index.clone(),
        };
        let mut documents = vec![("index.json", json(&index))];
        if !options.skip_docker_manifest && !plan.docker.is_empty() {
            let images: Vec<&DockerImage> = plan.docker.values().collect();
            documents.push(("manifest.json", json(&images)));
        }
        documents.push(("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
        for (name, bytes) in documents {
            tar.entry(&entry(name, Kind::Regular, 0o444, bytes.len() as u64))
                .and_then(|()| tar.data(&bytes))
                .map_err(Error::Write)?;
        }
        Ok(())
    }

    fn write_blob(
        &self,
        path: &str,
        descriptor: &Descriptor,
        tar: &mut Writer<Parts>,
    ) -> Result<(), Error> {
        let blob = self.blob(&descriptor.digest)?;
        let size = blob.size();
        let mut blob = blob.into_reader();
        tar.entry(&entry(path, Kind::Regular, 0o444, size)).map_err(Error::Write)?;
        let mut buffer = vec![0; PART_LEN];
        let mut rest = size;
        while rest > 0 {
            let len = blob.read(&mut buffer).map_err(Error::Write)?;
            if len == 0 {
                return Err(Error::Missing { digest: descriptor.digest.clone() });
            }
            tar.data(&buffer[..len]).map_err(Error::Write)?;
            rest = rest.saturating_sub(len as u64);
        }
        Ok(())
    }
}

fn is_non_distributable(media_type: &str) -> bool {
    media_type.contains(".nondistributable.") || media_type.contains(".foreign.")
}

fn path(descriptor: &Descriptor) -> String {
    let digest = &descriptor.digest;
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// The name as Docker's users know it: without the default registry.
fn familiar(reference: Option<&Reference>, name: &str) -> String {
    let Some(reference) = reference else { return name.to_owned() };
    let text = reference.to_string();
    let text = text.strip_prefix("docker.io/").unwrap_or(&text);
    text.strip_prefix("library/").unwrap_or(text).to_owned()
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data")
}

fn entry(path: &str, kind: Kind, mode: u32, size: u64) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        link: Vec::new(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        size,
        stored: size,
        mtime: Time { seconds: 0, nanoseconds: 0 },
        device: (0, 0),
        xattrs: Vec::new(),
        pieces: None,
    }
}

/// Cuts what is written into parts, and waits while the client is slow.
struct Parts {
    parts: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PART_LEN {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let part = std::mem::replace(&mut self.buffer, Vec::with_capacity(PART_LEN));
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone");
        self.parts.blocking_send(part.into()).map_err(gone)
    }
}
