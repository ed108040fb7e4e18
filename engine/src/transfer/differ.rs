//! Layers that other programs apply: differs that the configuration names before this program's own.
//!
//! Such a differ reads blobs where it has them, and writes to what the mounts show. So a layer is stored first, and
//! applied once the one below is committed.

use std::{fmt, pin::Pin, sync::Arc};

use snapshotter::Mount;

use super::{
    Error, InvalidImage, Work, blocking,
    extract::{Extraction, Feed, Worker},
    layers::{Unpack, stopped},
};
use crate::{diff::Chain, digest::Digest, error, namespace::Scope, oci::Descriptor};

/// What comes of a layer that another program applies: the digest of what it inflates to.
pub type Applying = Pin<Box<dyn Future<Output = Result<Digest, error::Error>> + Send>>;

/// Who applies layers.
#[derive(Clone)]
pub enum Differ {
    /// This program.
    Own,
    /// Another one. `NotImplemented` says that it does not know this kind of layer.
    Other(Arc<dyn Fn(Scope, Descriptor, Vec<Mount>) -> Applying + Send + Sync>),
}

impl fmt::Debug for Differ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Own) { "Own" } else { "Other" })
    }
}

impl Work {
    /// Whether somebody else than this program is the first to be asked who may know that kind of layer.
    pub(super) fn asks_others(&self, layer: &Descriptor) -> bool {
        match self.differs.first() {
            Some(Differ::Own) => self.leaves_to_others(layer),
            Some(Differ::Other(_)) | None => true,
        }
    }

    /// Whether this program does not know that kind of layer while there are others who may. Alone it goes by the
    /// layer's first bytes.
    fn leaves_to_others(&self, layer: &Descriptor) -> bool {
        self.differs.len() > 1 && Chain::find(&self.processors, &layer.media_type).is_none()
    }

    /// Has a stored layer applied on top of the one below, by the first that knows how to do it.
    pub(super) async fn have_applied(
        self: &Arc<Self>,
        layer: &Descriptor,
        unpack: &Unpack,
    ) -> Result<Extraction, Error> {
        let _slot = self.slots.acquire().await.expect("never closed");
        let extraction = self.extraction(layer, unpack).await?;
        let want = &unpack.diff_id;
        let mut refused = error::Error::NotImplemented("no differ is configured".to_owned());
        for differ in &self.differs {
            let Differ::Other(apply) = differ else {
                if self.leaves_to_others(layer) {
                    refused = unknown(layer);
                    continue;
                }
                let worker = Worker {
                    work: Arc::clone(self),
                    layer: layer.clone(),
                    feed: Feed::Stored,
                    extraction: Some(extraction),
                    diff_id: Some(want.clone()),
                };
                let applied = blocking(move || worker.run()).await?;
                return Ok(applied.expect("asked to unpack"));
            };
            let asked = apply(self.scope.clone(), layer.clone(), extraction.mounts().to_vec());
            let answer = tokio::select! {
                answer = asked => answer,
                () = self.stop.cancelled() => return self.give_up(extraction, stopped()).await,
            };
            match answer {
                Err(error @ error::Error::NotImplemented(_)) => refused = error,
                Err(error) => return self.give_up(extraction, error.into()).await,
                Ok(got) if got != *want => {
                    let (layer, want) = (layer.digest.clone(), want.clone());
                    let wrong = InvalidImage::DiffId { layer, want, got };
                    return self.give_up(extraction, wrong.into()).await;
                }
                Ok(_) => {
                    let (work, layer, want) =
                        (Arc::clone(self), layer.digest.clone(), want.clone());
                    return blocking(move || {
                        work.note_diff_id(&layer, &want)?;
                        Ok(extraction)
                    })
                    .await;
                }
            }
        }
        self.give_up(extraction, refused.into()).await
    }

    /// Removes what was extracted into, which blocks.
    async fn give_up(
        self: &Arc<Self>,
        extraction: Extraction,
        error: Error,
    ) -> Result<Extraction, Error> {
        blocking(move || {
            drop(extraction);
            Err(error)
        })
        .await
    }
}

/// What this program says of a layer that it leaves to others, as to clients.
fn unknown(layer: &Descriptor) -> error::Error {
    let kind = &layer.media_type;
    error::Error::NotImplemented(format!(
        "failed to get stream processor for {kind}: no processor for media-type"
    ))
}
