//! One pass over a layer, on a blocking thread.

use std::{
    collections::BTreeMap,
    io::{self, BufReader, Read},
    sync::Arc,
};

use bytes::{Buf, Bytes};
use snapshotter::{Key, Mount, Snapshotter};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::mpsc,
};

use super::{Error, InvalidImage, Work, progress::ingest_ref};
use crate::{
    content,
    diff::{self, Applied, Chain, Limits},
    digest::Digest,
    labels::{LABEL_UNCOMPRESSED, Labels},
    oci::Descriptor,
    registry,
};

/// Where the bytes of a layer come from.
pub(super) enum Feed {
    /// From the source; they are stored on the way.
    Fetched(mpsc::Receiver<Result<Bytes, registry::Error>>),
    /// From the content store.
    Stored,
}

/// An active snapshot that a layer is extracted into; removed unless it is committed.
pub(super) struct Extraction {
    snapshotter: Arc<dyn Snapshotter>,
    key: Key,
    mounts: Vec<Mount>,
    /// Directories that are to be made like those below, once it is known what is below.
    invented: Vec<Vec<u8>>,
    committed: bool,
}

impl Extraction {
    pub(super) fn new(snapshotter: Arc<dyn Snapshotter>, key: Key, mounts: Vec<Mount>) -> Self {
        Self { snapshotter, key, mounts, invented: Vec::new(), committed: false }
    }

    /// The name of the active snapshot.
    pub(super) fn key(&self) -> &str {
        self.key.name()
    }

    /// Where it is extracted to.
    pub(super) fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// Commits as `name`, which somebody else may have done.
    pub(super) fn commit(
        mut self,
        name: &Key,
        parent: Option<&Key>,
        labels: Labels,
    ) -> Result<(), Error> {
        if let Some(parent) = parent {
            self.adopt(parent)?;
        }
        let result = match parent {
            Some(parent) => self.snapshotter.rebase(name, &self.key, parent, labels),
            None => self.snapshotter.commit(name, &self.key, labels),
        };
        match result {
            Ok(()) => self.committed = true,
            Err(snapshotter::Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// The view of what is below that a commit has for a while, if it needs one. Who commits keeps it
    /// from being collected.
    pub(super) fn look(&self) -> Option<Key> {
        let name = format!("{} below", self.key.name());
        let look = || self.key.sibling(&name).expect("no longer than what is used already");
        (!self.invented.is_empty()).then(look)
    }

    fn adopt(&self, parent: &Key) -> Result<(), Error> {
        let Some(view) = self.look() else { return Ok(()) };
        let below = self.snapshotter.view(&view, Some(parent), Labels::new())?;
        let adopted = diff::adopt(&self.mounts, &below, &self.invented);
        self.snapshotter.remove(&view)?;
        Ok(adopted?)
    }
}

impl Drop for Extraction {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        let remove = || {
            if let Err(error) = self.snapshotter.remove(&self.key) {
                let error = sys::error::Chain(&error).to_string();
                tracing::warn!(key = %self.key, error, "an unfinished extraction is left behind");
            }
        };
        // A transfer that is cancelled drops it on a thread that others want to go on.
        let many = |handle: Handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread;
        match Handle::try_current().is_ok_and(many) {
            true => tokio::task::block_in_place(remove),
            false => remove(),
        }
    }
}

/// The pass.
pub(super) struct Worker {
    pub(super) work: Arc<Work>,
    pub(super) layer: Descriptor,
    pub(super) feed: Feed,
    pub(super) extraction: Option<Extraction>,
    /// What the inflated layer must hash to.
    pub(super) diff_id: Option<Digest>,
}

impl Worker {
    /// Goes over the layer.
    ///
    /// # Errors
    ///
    /// The source fails; the blob is not what its descriptor says; it cannot be extracted or is
    /// not what the image's configuration says. Then nothing of it is kept.
    pub(super) fn run(self) -> Result<Option<Extraction>, Error> {
        let Self { work, layer, feed, mut extraction, diff_id } = self;
        let applied = match feed {
            Feed::Stored => {
                let apply = |to: &Extraction| apply_stored(&work, &layer, &to.mounts);
                let applied = extraction.as_ref().map(apply).transpose()?;
                if let (Some(got), Some(want)) = (&applied, &diff_id)
                    && got.diff_id == *want
                {
                    work.note_diff_id(&layer.digest, want)?;
                }
                applied
            }
            Feed::Fetched(parts) => {
                let mut tee = Tee { parts, part: Bytes::new(), ingest: work.ingest(&layer)? };
                let applied = extraction.as_ref().map(|to| apply(&mut tee, &to.mounts));
                // What the archive does not need belongs to the blob all the same. A blob that is
                // not what it should be explains why it could not be extracted.
                let rest = tee.drain();
                let mut labels = work.source_labels();
                if let (Some(Ok(got)), Some(want)) = (&applied, &diff_id)
                    && got.diff_id == *want
                {
                    labels.insert(LABEL_UNCOMPRESSED.to_owned(), want.to_string());
                }
                rest.map_err(|source| Error::Fetch { what: ingest_ref(&layer), source })?;
                match tee.ingest.commit(layer.size, Some(&layer.digest), labels) {
                    // Somebody else was faster; it is held by the transfer's lease all the same.
                    Ok(_) | Err(crate::error::Error::AlreadyExists(_)) => {}
                    Err(error) => return Err(error.into()),
                }
                applied.transpose()?
            }
        };
        if let (Some(applied), Some(want), Some(to)) = (applied, diff_id, &mut extraction) {
            let got = applied.diff_id;
            if got != want {
                return Err(InvalidImage::DiffId { layer: layer.digest, want, got }.into());
            }
            to.invented = applied.invented;
        }
        Ok(extraction)
    }
}

impl Work {
    /// Whether the layer goes through other programs before it is one.
    pub(super) fn has_processor(&self, layer: &Descriptor) -> bool {
        Chain::find(&self.processors, &layer.media_type).is_some_and(|chain| !chain.is_empty())
    }
}

/// Applies a layer from the content store.
fn apply_stored(work: &Work, layer: &Descriptor, mounts: &[Mount]) -> Result<Applied, Error> {
    let blob = work.blob(&layer.digest)?;
    match Chain::find(&work.processors, &layer.media_type) {
        Some(chain) if !chain.is_empty() => {
            // Clients have no way to give a payload along.
            let mut running = chain.start(blob.into_file()?, &BTreeMap::new())?;
            let source = Stored { source: BufReader::new(&mut running), work };
            let applied = diff::apply(source, mounts, &Limits::default());
            Ok(running.finish(applied)?)
        }
        // What it is, its first bytes tell.
        _ => apply(Stored { source: blob.into_reader(), work }, mounts),
    }
}

fn apply(source: impl Read, mounts: &[Mount]) -> Result<Applied, Error> {
    Ok(diff::apply(source, mounts, &Limits::default())?)
}

/// Reads a stored layer, unless the transfer stops.
struct Stored<'w, R> {
    source: R,
    work: &'w Work,
}

impl<R: Read> Read for Stored<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.work.stop.is_cancelled() {
            return Err(io::Error::other("the transfer has failed"));
        }
        self.source.read(buffer)
    }
}

/// Reads what is fetched, and stores it on the way.
struct Tee {
    parts: mpsc::Receiver<Result<Bytes, registry::Error>>,
    part: Bytes,
    ingest: content::Writer,
}

impl Tee {
    /// Makes sure that `part` is not empty, unless the blob has ended.
    fn fill(&mut self) -> io::Result<()> {
        while self.part.is_empty() {
            match self.parts.blocking_recv() {
                None => return Ok(()),
                Some(Err(error)) => return Err(io::Error::other(error)),
                Some(Ok(part)) => {
                    self.ingest.write(&part).map_err(io::Error::other)?;
                    self.part = part;
                }
            }
        }
        Ok(())
    }

    /// Stores the rest.
    fn drain(&mut self) -> io::Result<()> {
        loop {
            self.part.clear();
            self.fill()?;
            if self.part.is_empty() {
                return Ok(());
            }
        }
    }
}

impl Read for Tee {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill()?;
        let len = buffer.len().min(self.part.len());
        self.part.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}
