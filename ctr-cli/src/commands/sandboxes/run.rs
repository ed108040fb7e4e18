//! `ctr sandboxes run`

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use prost_types::Any;
use proto::containerd::{
    services::sandbox::v1::{
        ControllerCreateRequest, ControllerStartRequest, StoreCreateRequest, StoreDeleteRequest,
    },
    types::{Sandbox, sandbox::Runtime},
};

use super::default_sandboxer;
use crate::{cli::Global, client::Client, error, output::outln};

/// Run a new sandbox
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// File with the OCI specification of the sandbox, as JSON
    config: PathBuf,
    id: String,
    /// Name of the runtime
    #[arg(long, default_value = "io.containerd.runc.v2")]
    runtime: String,
}

impl Run {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let path = self.config.display();
        let spec = fs::read(&self.config).with_context(|| format!("read {path}"))?;
        serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&spec)
            .with_context(|| format!("parse {path}"))?;
        let client = global.connect().await?;
        let sandboxer = default_sandboxer(&client).await?;
        let sandbox = Sandbox {
            sandbox_id: self.id.clone(),
            runtime: Some(Runtime { name: self.runtime, options: None }),
            spec: Some(Any { type_url: proto::any::RUNTIME_SPEC.to_owned(), value: spec }),
            sandboxer: sandboxer.clone(),
            ..Default::default()
        };
        let request = StoreCreateRequest { sandbox: Some(sandbox.clone()) };
        client.sandboxes().create(request).await.context("create the sandbox's record")?;
        let made = make(&client, &sandboxer, sandbox).await;
        if made.is_err() {
            // Nobody could use the record.
            let request = StoreDeleteRequest { sandbox_id: self.id.clone() };
            if let Err(status) = client.sandboxes().delete(request).await {
                error::warn(&error::status_text(&status));
            }
        }
        made?;
        let request = ControllerStartRequest { sandbox_id: self.id.clone(), sandboxer };
        let started = client.sandbox_controllers().start(request).await;
        started.with_context(|| format!("start sandbox {}", self.id))?;
        Ok(outln!("{}", self.id)?)
    }
}

async fn make(client: &Client, sandboxer: &str, sandbox: Sandbox) -> anyhow::Result<()> {
    let id = sandbox.sandbox_id.clone();
    let request = ControllerCreateRequest {
        sandbox_id: id.clone(),
        sandbox: Some(sandbox),
        sandboxer: sandboxer.to_owned(),
        ..Default::default()
    };
    let created = client.sandbox_controllers().create(request).await;
    created.with_context(|| format!("create sandbox {id}")).map(drop)
}
