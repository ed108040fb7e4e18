//! Makes snapshots of an image's layers, through the daemon's services.
//!
//! Each layer is applied to an active snapshot on top of the layers below it, which is then
//! committed under the chain ID. Someone else may be at the same image: a chain ID that appears
//! meanwhile is as good as one's own, since its name says what it holds.
//!
//! Source: containerd, `pkg/rootfs/apply.go` and `client/image.go`.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use proto::containerd::services::{
    content::v1::{Info, UpdateRequest},
    diff::v1::ApplyRequest,
    snapshots::v1::{
        CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
    },
};
use tonic::Code;

use super::{
    digest::{Digest, chain_id},
    document::{Descriptor, to_api},
    resolve::Resolved,
};
use crate::{client::Client, names};

/// The label of a layer that says its diff ID.
const UNCOMPRESSED_LABEL: &str = "containerd.io/uncompressed";

/// The prefix of the label of a configuration that keeps the image's snapshot.
const SNAPSHOT_REF_LABEL: &str = "containerd.io/gc.ref.snapshot";

/// Makes the snapshot of an image's layers unless it is there, and returns its name.
///
/// `client` works under a lease, which keeps the layers until the last refers to them.
pub(crate) async fn unpack(
    client: &Client,
    image: &Resolved,
    snapshotter: &str,
) -> anyhow::Result<Option<Digest>> {
    let layers = &image.manifest.layers;
    ensure!(
        layers.len() == image.diff_ids.len(),
        "manifest has {} layers and the configuration {} diff IDs",
        layers.len(),
        image.diff_ids.len()
    );
    let Some(top) = image.chain_id() else { return Ok(None) };
    if !exists(client, snapshotter, &top).await? {
        for (index, layer) in layers.iter().enumerate() {
            let stack = &image.diff_ids[..=index];
            unpack_layer(client, snapshotter, layer, stack)
                .await
                .with_context(|| format!("unpack layer {}", layer.digest))?;
        }
    }
    let label = (format!("{SNAPSHOT_REF_LABEL}.{snapshotter}"), top.to_string());
    set_label(client, &image.manifest.config.digest, label).await?;
    Ok(Some(top))
}

/// Whether there is a snapshot of this name.
pub(crate) async fn exists(
    client: &Client,
    snapshotter: &str,
    name: &Digest,
) -> anyhow::Result<bool> {
    let request =
        StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: name.to_string() };
    match client.snapshots().stat(request).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::NotFound => Ok(false),
        Err(status) => Err(status.into()),
    }
}

/// Unpacks the layer whose diff ID is the last of `stack` on top of the others.
async fn unpack_layer(
    client: &Client,
    snapshotter: &str,
    layer: &Descriptor,
    stack: &[Digest],
) -> anyhow::Result<()> {
    let (Some(name), Some((diff_id, below))) = (chain_id(stack), stack.split_last()) else {
        return Ok(());
    };
    if exists(client, snapshotter, &name).await? {
        return Ok(());
    }
    let key = format!("{} {name}", names::unique("extract"));
    let prepare = PrepareSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.clone(),
        parent: chain_id(below).map_or_else(String::new, |parent| parent.to_string()),
        ..Default::default()
    };
    let mounts = client.snapshots().prepare(prepare).await?.into_inner().mounts;
    let filled = fill(client, layer, diff_id, mounts).await;
    let committed = match filled {
        Ok(()) => commit(client, snapshotter, &key, &name).await,
        Err(error) => Err(error),
    };
    if !matches!(committed, Ok(true)) {
        // What is left of a failed layer would only take room; the failure itself says more.
        let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key };
        let _ = client.snapshots().remove(request).await;
    }
    committed?;
    let label = (UNCOMPRESSED_LABEL.to_owned(), diff_id.to_string());
    set_label(client, &layer.digest, label).await
}

async fn fill(
    client: &Client,
    layer: &Descriptor,
    diff_id: &Digest,
    mounts: Vec<proto::containerd::types::Mount>,
) -> anyhow::Result<()> {
    let request = ApplyRequest { diff: Some(to_api(layer)), mounts, ..Default::default() };
    let applied = client.diff().apply(request).await?.into_inner().applied.unwrap_or_default();
    ensure!(
        applied.digest == diff_id.as_str(),
        "its content is {} and not {diff_id}, as the image says",
        applied.digest
    );
    Ok(())
}

/// Commits a snapshot; `false` means that somebody else has committed the same.
async fn commit(
    client: &Client,
    snapshotter: &str,
    key: &str,
    name: &Digest,
) -> anyhow::Result<bool> {
    let request = CommitSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        name: name.to_string(),
        key: key.to_owned(),
        ..Default::default()
    };
    match client.snapshots().commit(request).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::AlreadyExists => Ok(false),
        Err(status) => Err(status.into()),
    }
}

/// Sets a label of a blob.
async fn set_label(
    client: &Client,
    digest: &str,
    (key, value): (String, String),
) -> anyhow::Result<()> {
    let paths = vec![format!("labels.{key}")];
    let info = Info {
        digest: digest.to_owned(),
        labels: BTreeMap::from([(key, value)]),
        ..Default::default()
    };
    let mask = prost_types::FieldMask { paths };
    client.content().update(UpdateRequest { info: Some(info), update_mask: Some(mask) }).await?;
    Ok(())
}
