//! `ctr containers ls`

use clap::Args;
use proto::containerd::services::containers::v1::ListContainersRequest;

use super::document::Document;
use crate::{
    cli::Global,
    output::{self, Format, ListFormat, Table, outln},
};

/// List containers
#[derive(Args, Debug)]
pub(crate) struct List {
    /// Show only containers that match one of these, as in id~=^web or labels.app==web
    filters: Vec<String>,
    #[command(flatten)]
    format: ListFormat,
}

impl List {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let request = ListContainersRequest { filters: self.filters };
        let containers = client.containers().list(request).await?.into_inner().containers;
        if self.format.quiet {
            return Ok(containers.iter().try_for_each(|own| outln!("{}", own.id))?);
        }
        if self.format.format == Format::Json {
            let documents = containers.into_iter().map(Document::new);
            return output::json(&documents.collect::<anyhow::Result<Vec<_>>>()?);
        }
        let mut table = Table::wide(&["CONTAINER", "IMAGE", "RUNTIME"]);
        for container in containers {
            let image = if container.image.is_empty() { "-".to_owned() } else { container.image };
            let runtime = container.runtime.unwrap_or_default();
            table.row([container.id, image, runtime.name]);
        }
        Ok(table.print()?)
    }
}
