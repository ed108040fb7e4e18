//! Unpacks again what a machine that stopped without warning may have lost.

use snapshotter::{Info, Snapshotter};

use crate::{
    content,
    diff::{self, Limits},
    digest::Digest,
    error::Error,
    filter::Filter,
    gc::Snapshotters,
    labels::LABEL_UNCOMPRESSED,
    namespace::Namespace,
    oci::chain_ids,
};

/// What became of the suspects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Snapshots that were unpacked again.
    pub renewed: usize,
    /// Snapshots that were removed, for want of what to unpack.
    pub removed: usize,
    /// Snapshots that could be neither, because others are on top of them.
    pub refused: usize,
}

/// Unpacks suspects again from their blobs, and removes those for which there is none.
///
/// Before anything is mounted. After a clean stop, or a crash of the daemon alone, there are none;
/// otherwise those of the last moments, so that this takes seconds.
///
/// # Errors
///
/// `Database`, `Damaged`, `File`: of the stores as such. What goes wrong with one snapshot is
/// logged.
pub fn recover(content: &content::Store, snapshotters: &Snapshotters) -> Result<Recovered, Error> {
    let mut recovered = Recovered::default();
    for (name, snapshotter) in snapshotters {
        for suspect in snapshotter.suspects()? {
            let Some((namespace, diff_id, blob)) = find_layer(content, &suspect)? else { continue };
            match unpack(content, snapshotter.as_ref(), &suspect, (&namespace, &diff_id, &blob)) {
                Ok(()) => {
                    recovered.renewed += 1;
                    tracing::info!(snapshotter = name, snapshot = %suspect.key, "unpacked again");
                }
                Err(error) => {
                    let error = sys::error::Chain(&error).to_string();
                    let snapshot = suspect.key.to_string();
                    tracing::warn!(snapshotter = name, snapshot, error, "cannot be unpacked again");
                }
            }
        }
        // From the top, so that those below are free when it is their turn.
        for suspect in snapshotter.suspects()?.iter().rev() {
            let snapshot = suspect.key.to_string();
            match snapshotter.remove(&suspect.key) {
                Ok(()) => {
                    recovered.removed += 1;
                    tracing::warn!(snapshotter = name, snapshot, "lost with the machine: removed");
                }
                Err(error) => {
                    recovered.refused += 1;
                    let error = sys::error::Chain(&error).to_string();
                    tracing::error!(snapshotter = name, snapshot, error, "lost with the machine");
                }
            }
        }
    }
    Ok(recovered)
}

/// The layer that a snapshot was unpacked from: its diff ID and its blob.
///
/// Snapshots of layers are named by their chain ID, a hash of the parent's and the diff ID, and
/// blobs are labelled with the diff ID when they are unpacked. So no document of an image is
/// needed, and no wrong layer can be found.
fn find_layer(
    content: &content::Store,
    suspect: &Info,
) -> Result<Option<(Namespace, Digest, Digest)>, Error> {
    let Ok(namespace) = suspect.key.namespace().parse::<Namespace>() else { return Ok(None) };
    let Ok(chain_id) = suspect.key.name().parse::<Digest>() else { return Ok(None) };
    let parent = match &suspect.parent {
        None => None,
        Some(parent) => match parent.name().parse::<Digest>() {
            Ok(parent) => Some(parent),
            Err(_) => return Ok(None),
        },
    };
    let is_wanted = |diff_id: &Digest| {
        let ids: Vec<_> = parent.iter().chain([diff_id]).cloned().collect();
        chain_ids(&ids).last() == Some(&chain_id)
    };
    for blob in content.metadata().contents(&namespace, &Filter::default())? {
        let labelled = blob.labels.get(LABEL_UNCOMPRESSED).and_then(|label| label.parse().ok());
        // An uncompressed layer is its own diff ID.
        for diff_id in labelled.into_iter().chain([blob.digest.clone()]) {
            if is_wanted(&diff_id) {
                return Ok(Some((namespace, diff_id, blob.digest)));
            }
        }
    }
    Ok(None)
}

fn unpack(
    content: &content::Store,
    snapshotter: &dyn Snapshotter,
    suspect: &Info,
    (namespace, diff_id, blob): (&Namespace, &Digest, &Digest),
) -> Result<(), Error> {
    let fill = &mut |mounts: &[snapshotter::Mount]| {
        let layer = content.blob(namespace, blob)?.into_reader();
        let applied = diff::apply(layer, mounts, &Limits::default())?;
        if applied.diff_id != *diff_id {
            return Err(format!("{blob} is not the layer {diff_id}").into());
        }
        Ok(())
    };
    Ok(snapshotter.renew(&suspect.key, fill)?)
}
