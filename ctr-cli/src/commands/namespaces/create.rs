//! `ctr namespaces create`

use clap::Args;
use proto::containerd::services::namespaces::v1::{CreateNamespaceRequest, Namespace};

use crate::{cli::Global, names};

/// Create a namespace
#[derive(Args, Debug)]
pub(crate) struct Create {
    name: String,
    /// Labels, as key=value
    labels: Vec<String>,
}

impl Create {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let namespace = Namespace { name: self.name, labels: names::labels(&self.labels) };
        let request = CreateNamespaceRequest { namespace: Some(namespace) };
        client.namespaces().create(request).await?;
        Ok(())
    }
}
