//! `ctr images rm`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::images::v1::DeleteImageRequest;
use tonic::Code;

use crate::{cli::Global, commands::each, error::warn, names, output::outln};

/// Remove images
#[derive(Args, Debug)]
pub(crate) struct Delete {
    #[arg(required = true)]
    names: Vec<String>,
    /// Return after what nothing else keeps has been collected
    #[arg(long)]
    sync: bool,
}

impl Delete {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let last = self.names.last().cloned();
        each(&self.names, async |name| {
            // One collection after all deletions is enough.
            let sync = self.sync && Some(name) == last.as_ref();
            let full = names::normalise(name);
            for candidate in [name, &full] {
                let request =
                    DeleteImageRequest { name: candidate.clone(), sync, ..Default::default() };
                match client.images().delete(request).await {
                    Ok(_) => return Ok(outln!("{candidate}")?),
                    Err(status) if status.code() == Code::NotFound => {}
                    Err(status) => {
                        return Err(status).with_context(|| format!("unable to delete {name}"));
                    }
                }
            }
            // As with stock ctr, what is not there counts as removed.
            warn(&format!("{name}: image not found"));
            Ok(())
        })
        .await
    }
}
