//! Unpacks again what a machine that stopped without warning may have lost.

use std::{collections::HashSet, io};

use snapshotter::{Info, Key, Snapshotter};

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
    /// Snapshots that stay suspect, because the program that keeps blobs is away, or did not answer.
    pub waiting: usize,
}

/// Unpacks suspects again from their blobs, and removes those for which there is none. Where the program that keeps blobs
/// is away it is not asked again, and what is left is to be tried later.
///
/// Before anything is mounted; suspects refuse to be. After a clean stop, or a crash of the daemon alone, there are none;
/// otherwise those of the last moments, so that this takes seconds.
///
/// # Errors
///
/// `Database`, `Damaged`, `File`: of the stores as such. What goes wrong with one snapshot is
/// logged.
pub fn recover(content: &content::Store, snapshotters: &Snapshotters) -> Result<Recovered, Error> {
    let mut recovered = Recovered::default();
    let mut is_away = false;
    for (name, snapshotter) in snapshotters {
        let mut waiting = HashSet::new();
        for suspect in snapshotter.suspects()? {
            let Some((namespace, diff_id, blob)) = find_layer(content, &suspect)? else { continue };
            if is_away {
                waiting.insert(suspect.key);
                continue;
            }
            match unpack(content, snapshotter.as_ref(), &suspect, (&namespace, &diff_id, &blob)) {
                Ok(()) => {
                    recovered.renewed += 1;
                    tracing::info!(snapshotter = name, snapshot = %suspect.key, "unpacked again");
                }
                Err(error) => {
                    let text = sys::error::Chain(&error).to_string();
                    let snapshot = suspect.key.to_string();
                    tracing::warn!(
                        snapshotter = name,
                        snapshot,
                        error = text,
                        "cannot be unpacked again"
                    );
                    if tells_that_it_is_away(&error) {
                        is_away = true;
                        waiting.insert(suspect.key);
                    }
                }
            }
        }
        recovered.waiting += waiting.len();
        remove_lost(name, snapshotter.as_ref(), &waiting, &mut recovered)?;
    }
    Ok(recovered)
}

/// Removes the suspects that are left, but for those that are waited for.
fn remove_lost(
    name: &str,
    snapshotter: &dyn Snapshotter,
    waiting: &HashSet<Key>,
    recovered: &mut Recovered,
) -> Result<(), Error> {
    // From the top, so that those below are free when it is their turn.
    for suspect in snapshotter.suspects()?.iter().rev() {
        if waiting.contains(&suspect.key) {
            continue;
        }
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
    Ok(())
}

/// Whether it went wrong because another program does not answer, wherever in the chain that is said.
fn tells_that_it_is_away(error: &snapshotter::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let said = inner.and_then(|inner| inner.downcast_ref::<Error>());
        if matches!(said.or_else(|| error.downcast_ref()), Some(Error::Unavailable(_))) {
            return true;
        }
        next = error.source();
    }
    false
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
) -> Result<(), snapshotter::Error> {
    let fill = &mut |mounts: &[snapshotter::Mount]| {
        let layer = content.blob(namespace, blob)?.into_reader();
        let applied = diff::apply(layer, mounts, &Limits::default())?;
        if applied.diff_id != *diff_id {
            return Err(format!("{blob} is not the layer {diff_id}").into());
        }
        Ok(())
    };
    snapshotter.renew(&suspect.key, fill)
}
