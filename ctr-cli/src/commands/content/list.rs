//! `ctr content ls`

use clap::Args;
use proto::containerd::services::content::v1::{Info, ListContentRequest};
use serde_json::json;

use crate::{
    cli::Global,
    names,
    output::{self, Format, ListFormat, Table, age, decimal_size, outln, timestamp},
};

/// List blobs
#[derive(Args, Debug)]
pub(crate) struct List {
    /// Show only blobs that match one of these, as in labels.foo==bar
    filters: Vec<String>,
    #[command(flatten)]
    format: ListFormat,
}

impl List {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let request = ListContentRequest { filters: self.filters };
        let mut parts = client.content().list(request).await?.into_inner();
        let mut blobs = Vec::new();
        while let Some(part) = parts.message().await? {
            blobs.extend(part.info);
        }
        if self.format.quiet {
            return Ok(blobs.iter().try_for_each(|blob| outln!("{}", blob.digest))?);
        }
        if self.format.format == Format::Json {
            return output::json(&blobs.iter().map(document).collect::<Vec<_>>());
        }
        let mut table = Table::tabbed(&["DIGEST", "SIZE", "AGE", "LABELS"]);
        for blob in blobs {
            let age = age(blob.created_at.as_ref());
            table.row([blob.digest, decimal_size(blob.size), age, names::label_cell(&blob.labels)]);
        }
        Ok(table.print()?)
    }
}

fn document(blob: &Info) -> serde_json::Value {
    json!({
        "digest": blob.digest,
        "size": blob.size,
        "created_at": timestamp(blob.created_at.as_ref()),
        "updated_at": timestamp(blob.updated_at.as_ref()),
        "labels": blob.labels,
    })
}
