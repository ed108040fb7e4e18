//! `ctr namespaces label`

use clap::Args;
use proto::containerd::services::namespaces::v1::{Namespace, UpdateNamespaceRequest};

use crate::{cli::Global, names};

/// Set and clear labels of a namespace
#[derive(Args, Debug)]
pub(crate) struct Label {
    name: String,
    /// Labels, as key=value; an empty value clears the label
    #[arg(required = true)]
    labels: Vec<String>,
}

impl Label {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let labels = names::labels(&self.labels);
        let paths = names::label_paths(&labels);
        let request = UpdateNamespaceRequest {
            namespace: Some(Namespace { name: self.name, labels }),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        client.namespaces().update(request).await?;
        Ok(())
    }
}
