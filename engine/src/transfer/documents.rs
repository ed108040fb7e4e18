//! Walks from an image's root document to the images in it, and stores the documents on the way.

use std::sync::Arc;

use super::{
    Error, InvalidImage, Work,
    plan::{self, Platforms},
    progress::{State, ingest_ref},
};
use crate::{
    labels::Labels,
    oci::{Config, DOCUMENT_LEN_MAX, Descriptor, Document, Role},
    platform::Platform,
};

/// The most documents of one transfer.
pub(super) const DOCUMENTS_MAX: usize = 2048;

/// How deep indexes may be nested.
pub(super) const DEPTH_MAX: usize = 8;

/// An image for one platform: a manifest with all that it refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// The manifest.
    pub(super) manifest: Descriptor,
    /// The configuration, or an artifact's.
    pub(super) config: Descriptor,
    /// What is in the configuration of an image; artifacts have something else there.
    pub(super) parsed: Option<Config>,
    /// The layers, the lowest first.
    pub(super) layers: Vec<Descriptor>,
    /// Whether the layers are wanted too.
    pub(super) whole: bool,
}

impl Image {
    /// What the image is for: what the index says, or else what the configuration says.
    pub(super) fn platform(&self) -> Option<&Platform> {
        let config = self.parsed.as_ref().map(|config| &config.platform);
        self.manifest.platform.as_ref().or(config)
    }
}

/// What to take of an index.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    /// The platforms whose layers are wanted.
    pub(super) platforms: Platforms,
    /// Whether the manifests and configurations of the others are wanted.
    pub(super) all_metadata: bool,
    /// The most images of an index; 0 for all.
    pub(super) limit: usize,
}

impl Selection {
    /// The children of `document` to go on with, and whether each is wanted whole.
    fn children(&self, document: &Document) -> Vec<(Descriptor, bool)> {
        let mut chosen = self.platforms.select(document);
        if self.limit > 0 && matches!(document, Document::Index(_)) {
            chosen.truncate(self.limit);
        }
        let whole = |child: &Descriptor| chosen.iter().any(|one| one.digest == child.digest);
        if self.all_metadata {
            document.children().into_iter().map(|child| (child.clone(), whole(&child))).collect()
        } else {
            chosen.into_iter().map(|child| (child, true)).collect()
        }
    }
}

impl Work {
    /// Stores `root` and the documents below it that `selection` chooses, and gives the images.
    ///
    /// `bytes` is the root document, if it is at hand. Of what an archive does not have, nothing
    /// is made, as long as it has something.
    ///
    /// # Errors
    ///
    /// A document cannot be had or is not valid; nothing is left for the selection.
    pub(super) async fn documents(
        self: &Arc<Self>,
        root: &Descriptor,
        bytes: Option<bytes::Bytes>,
        selection: &Selection,
    ) -> Result<Vec<Image>, Error> {
        let mut images = Vec::new();
        let mut pending = vec![(root.clone(), bytes, true, 0, String::new())];
        let mut seen = 0;
        while let Some((descriptor, bytes, whole, depth, parent)) = pending.pop() {
            seen += 1;
            if seen > DOCUMENTS_MAX || depth > DEPTH_MAX {
                let (root, max) = (root.digest.clone(), DOCUMENTS_MAX);
                return Err(InvalidImage::TooManyDocuments { root, max }.into());
            }
            let item = self.progress.item(&descriptor, &parent);
            item.set(State::Downloading);
            let bytes = match bytes {
                Some(bytes) => bytes,
                None => match self.document(&descriptor).await {
                    Err(Error::Missing { .. }) if depth > 0 => continue,
                    result => result?,
                },
            };
            let document = Document::parse(&descriptor, &bytes)?;
            let labels = plan::child_labels(&document.children());
            self.store_document(&descriptor, bytes, labels).await?;
            item.set(State::Complete);
            match document {
                Document::Index(_) => {
                    let name = ingest_ref(&descriptor);
                    let children = selection.children(&document);
                    // The last pushed is the next popped: the best match comes first.
                    for (child, chosen) in children.into_iter().rev() {
                        if matches!(child.role(), Role::Index | Role::Manifest) {
                            pending.push((child, None, whole && chosen, depth + 1, name.clone()));
                        }
                    }
                }
                Document::Manifest(manifest) => {
                    let (config, layers) = (manifest.config, manifest.layers);
                    let Some(parsed) = self.config(&descriptor, &config, depth).await? else {
                        continue;
                    };
                    images.push(Image { manifest: descriptor, config, parsed, layers, whole });
                }
            }
        }
        if images.iter().any(|image| image.whole) {
            Ok(images)
        } else {
            Err(Error::NothingSelected { root: root.digest.clone() })
        }
    }

    /// Stores and parses a configuration. The outer `None`: an archive does not have it.
    async fn config(
        self: &Arc<Self>,
        manifest: &Descriptor,
        config: &Descriptor,
        depth: usize,
    ) -> Result<Option<Option<Config>>, Error> {
        let item = self.progress.item(config, &ingest_ref(manifest));
        item.set(State::Downloading);
        let bytes = match self.document(config).await {
            Err(Error::Missing { .. }) if depth > 0 => return Ok(None),
            result => result?,
        };
        let parsed = match config.role() {
            Role::Config => Some(Config::parse(config, &bytes)?),
            _ => None,
        };
        self.store_document(config, bytes, Labels::new()).await?;
        item.set(State::Complete);
        Ok(Some(parsed))
    }

    /// The bytes of a document, from the content store or else from the source.
    async fn document(self: &Arc<Self>, descriptor: &Descriptor) -> Result<bytes::Bytes, Error> {
        if descriptor.size > DOCUMENT_LEN_MAX {
            let (digest, size) = (descriptor.digest.clone(), descriptor.size);
            return Err(InvalidImage::DocumentTooLarge { digest, size }.into());
        }
        let (work, wanted) = (Arc::clone(self), descriptor.clone());
        if let Some(bytes) = super::blocking(move || work.local_document(&wanted)).await? {
            return Ok(bytes);
        }
        match &self.source {
            Some(client) => Ok(client.fetch(descriptor).await?),
            None => Err(Error::Missing { digest: descriptor.digest.clone() }),
        }
    }
}
