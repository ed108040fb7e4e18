//! `ctr info`

use clap::Args;
use serde_json::json;

use crate::{
    cli::Global,
    output::{self, timestamp},
};

/// Print information about the daemon
#[derive(Args, Debug)]
pub(crate) struct Info {}

impl Info {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let server = client.introspection().server(()).await?.into_inner();
        let mut document = json!({"uuid": server.uuid});
        if server.pid != 0 {
            document["pid"] = server.pid.into();
            document["pidns"] = server.pidns.into();
        }
        let deprecations = server.deprecations.iter().map(|deprecation| {
            json!({
                "id": deprecation.id,
                "message": deprecation.message,
                "last_occurrence": timestamp(deprecation.last_occurrence.as_ref()),
            })
        });
        let deprecations: Vec<_> = deprecations.collect();
        if !deprecations.is_empty() {
            document["deprecations"] = deprecations.into();
        }
        output::json(&json!({"server": document}))
    }
}
