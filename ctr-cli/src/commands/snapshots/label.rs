//! `ctr snapshots label`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::snapshots::v1::{Info, UpdateSnapshotRequest};

use super::Context;
use crate::{names, output::outln};

/// Set and clear labels of a snapshot
#[derive(Args, Debug)]
pub(crate) struct Label {
    key: String,
    /// Labels, as key=value; an empty value clears the label
    #[arg(required = true)]
    labels: Vec<String>,
}

impl Label {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut labels = names::labels(&self.labels);
        let paths = names::label_paths(&labels);
        labels.retain(|_, value| !value.is_empty());
        let request = UpdateSnapshotRequest {
            snapshotter: context.snapshotter.clone(),
            info: Some(Info { name: self.key, labels, ..Default::default() }),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        let info = context.client.snapshots().update(request).await?.into_inner().info;
        let info = info.context("daemon returned no snapshot")?;
        Ok(outln!("{}", names::label_text(&info.labels))?)
    }
}
