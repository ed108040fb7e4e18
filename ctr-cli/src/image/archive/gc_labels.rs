//! Labels by which documents keep what they refer to.
//!
//! Source: containerd, `core/images/mediatypes.go`, `ChildGCLabels`.

use std::collections::BTreeMap;

use proto::containerd::services::content::v1::{Info, UpdateRequest};

use super::super::{
    blobs::{blob_exists, read_blob},
    document::{Descriptor, Document, Manifest},
};
use crate::{client::Client, names};

const PREFIX: &str = "containerd.io/gc.ref.content";

/// How many documents are visited, in an archive of whatever make.
const DOCUMENTS_MAX: usize = 4096;

/// The labels of a manifest.
pub(super) fn of_manifest(manifest: &Manifest) -> BTreeMap<String, String> {
    let layers = manifest.layers.iter().enumerate();
    let mut labels: BTreeMap<_, _> =
        layers.map(|(at, layer)| (format!("{PREFIX}.l.{at}"), layer.digest.clone())).collect();
    labels.insert(format!("{PREFIX}.config"), manifest.config.digest.clone());
    labels
}

/// The labels of an index.
pub(super) fn of_index(manifests: &[Descriptor]) -> BTreeMap<String, String> {
    let numbered = manifests.iter().enumerate();
    numbered.map(|(at, own)| (format!("{PREFIX}.m.{at}"), own.digest.clone())).collect()
}

/// Sets the labels of a document and of those below it, as far as they are in the store.
pub(super) async fn set(client: &Client, root: &Descriptor) -> anyhow::Result<()> {
    let mut open = vec![root.clone()];
    for _ in 0..DOCUMENTS_MAX {
        let Some(current) = open.pop() else { break };
        if !blob_exists(client, &current.digest).await? {
            // An archive may hold some of the platforms only.
            continue;
        }
        let labels = match Document::parse(&read_blob(client, &current.address()?).await?)? {
            Document::Index(manifests) => {
                let labels = of_index(&manifests);
                open.extend(manifests);
                labels
            }
            Document::Manifest(manifest) => of_manifest(&manifest),
        };
        let paths = names::label_paths(&labels);
        let info = Info { digest: current.digest, labels, ..Default::default() };
        let update_mask = Some(prost_types::FieldMask { paths });
        client.content().update(UpdateRequest { info: Some(info), update_mask }).await?;
    }
    Ok(())
}
