//! `ctr images inspect`

use clap::Args;
use serde_json::{Value, json};

use crate::{
    cli::Global,
    image::{find_image, resolve},
    output,
    platform::Platform,
};

/// Print what an image is made of
#[derive(Args, Debug)]
pub(crate) struct Inspect {
    name: String,
    /// Platform of the manifest (default: this host's)
    #[arg(long)]
    platform: Option<Platform>,
}

impl Inspect {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let image = find_image(&client, &self.name).await?;
        let target = image.target.clone().unwrap_or_default();
        let platform = self.platform.unwrap_or_else(Platform::host);
        let resolved = resolve(&client, &target.clone().into(), &platform).await?;
        let manifest: Value = serde_json::from_slice(&resolved.manifest_bytes)?;
        let config: Value = serde_json::from_slice(&resolved.config_bytes)?;
        output::json(&json!({
            "name": image.name,
            "labels": image.labels,
            "target": {"mediaType": target.media_type, "digest": target.digest, "size": target.size},
            "chain_id": resolved.chain_id().map(|id| id.to_string()),
            "manifest": manifest,
            "config": config,
        }))
    }
}
