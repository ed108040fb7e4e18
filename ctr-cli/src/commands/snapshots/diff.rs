//! `ctr snapshots diff`

use std::io::Write as _;

use anyhow::Context as _;
use clap::Args;
use proto::containerd::{
    services::{
        diff::v1::DiffRequest,
        snapshots::v1::{
            Kind, MountsRequest, RemoveSnapshotRequest, StatSnapshotRequest, ViewSnapshotRequest,
        },
    },
    types::Mount,
};

use super::{Context, root_label};
use crate::{
    client::Client,
    image::{Lease, stream_blob},
    names,
};

/// Print the difference of two snapshots, the second being the first's parent by default
#[derive(Args, Debug)]
pub(crate) struct Diff {
    first: String,
    second: Option<String>,
    /// Media type of the difference
    #[arg(long, default_value = "application/vnd.oci.image.layer.v1.tar+gzip")]
    media_type: String,
    /// Name of the write to the content store
    #[arg(long = "ref", default_value = "")]
    reference: String,
    /// Keep the difference in the content store
    #[arg(long)]
    keep: bool,
    /// Labels of the difference in the content store, as key=value
    #[arg(long)]
    label: Vec<String>,
}

impl Diff {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let lease = Lease::create(&context.client).await?;
        let views = Views { client: lease.client(), snapshotter: &context.snapshotter };
        let result = self.print(&views).await;
        lease.delete().await?;
        result
    }

    async fn print(&self, views: &Views<'_>) -> anyhow::Result<()> {
        // Compare takes the older first; stock ctr takes the second snapshot as the newer one.
        let (left, right) = match &self.second {
            Some(second) => (Some(self.first.clone()), second.clone()),
            None => (views.parent(&self.first).await?, self.first.clone()),
        };
        let mut made = Vec::new();
        let result = async {
            let left = match left {
                Some(left) => views.mounts(&left, &mut made).await?,
                None => Vec::new(),
            };
            let right = views.mounts(&right, &mut made).await?;
            self.compare(views.client, left, right).await
        }
        .await;
        for key in made {
            views.remove(key).await?;
        }
        result
    }

    async fn compare(
        &self,
        client: &Client,
        left: Vec<Mount>,
        right: Vec<Mount>,
    ) -> anyhow::Result<()> {
        let mut labels = names::labels(&self.label);
        if self.keep {
            labels.extend([root_label()]);
        }
        let request = DiffRequest {
            left,
            right,
            media_type: self.media_type.clone(),
            r#ref: self.reference.clone(),
            labels,
            ..Default::default()
        };
        let diff = client.diff().diff(request).await?.into_inner().diff;
        let diff = diff.context("daemon returned no difference")?;
        let mut out = std::io::stdout().lock();
        stream_blob(client, &diff.digest, |chunk| Ok(out.write_all(chunk)?)).await
    }
}

/// Ways to see snapshots.
pub(crate) struct Views<'a> {
    pub(crate) client: &'a Client,
    pub(crate) snapshotter: &'a str,
}

impl Views<'_> {
    async fn stat(
        &self,
        key: &str,
    ) -> anyhow::Result<proto::containerd::services::snapshots::v1::Info> {
        let request =
            StatSnapshotRequest { snapshotter: self.snapshotter.to_owned(), key: key.to_owned() };
        let info = self.client.snapshots().stat(request).await?.into_inner().info;
        info.context("daemon returned no snapshot")
    }

    /// The snapshot below, if there is one.
    pub(crate) async fn parent(&self, key: &str) -> anyhow::Result<Option<String>> {
        let parent = self.stat(key).await?.parent;
        Ok((!parent.is_empty()).then_some(parent))
    }

    /// The mounts of a snapshot; the key of a view that was made for them is added to `made`.
    pub(crate) async fn mounts(
        &self,
        key: &str,
        made: &mut Vec<String>,
    ) -> anyhow::Result<Vec<Mount>> {
        let snapshotter = self.snapshotter.to_owned();
        let key = key.to_owned();
        if self.stat(&key).await?.kind() != Kind::Committed {
            let request = MountsRequest { snapshotter, key };
            return Ok(self.client.snapshots().mounts(request).await?.into_inner().mounts);
        }
        let view = names::unique(&format!("{key}-view"));
        let request = ViewSnapshotRequest {
            snapshotter,
            key: view.clone(),
            parent: key,
            ..Default::default()
        };
        let mounts = self.client.snapshots().view(request).await?.into_inner().mounts;
        made.push(view);
        Ok(mounts)
    }

    /// Removes a view that was made.
    pub(crate) async fn remove(&self, key: String) -> anyhow::Result<()> {
        let request = RemoveSnapshotRequest { snapshotter: self.snapshotter.to_owned(), key };
        self.client.snapshots().remove(request).await?;
        Ok(())
    }
}
