//! `ctr sandboxes`

mod info;
mod list;
mod remove;
mod run;

use anyhow::Context as _;
use proto::containerd::{
    services::{namespaces::v1::GetNamespaceRequest, sandbox::v1::StoreGetRequest},
    types::Sandbox,
};

use crate::{client::Client, error::has_code};

/// The controller that is used where a namespace does not name one.
const DEFAULT_SANDBOXER: &str = "shim";

/// The label by which a namespace names one.
const SANDBOXER_LABEL: &str = "containerd.io/defaults/sandboxer";

super::group! {
    /// Run a new sandbox
    #[command(visible_aliases = ["create", "c", "r"])]
    Run(run::Run),
    /// List sandboxes
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Remove sandboxes
    #[command(visible_alias = "rm")]
    Remove(remove::Remove),
    /// Get info about a sandbox
    #[command(visible_alias = "i")]
    Info(info::Info),
}

/// The record of a sandbox.
async fn load(client: &Client, id: &str) -> anyhow::Result<Sandbox> {
    let request = StoreGetRequest { sandbox_id: id.to_owned() };
    let answer = client.sandboxes().get(request).await;
    let answer = answer.with_context(|| format!("load sandbox {id}"))?;
    answer.into_inner().sandbox.context("daemon returned no sandbox")
}

/// The controller for new sandboxes of the client's namespace.
async fn default_sandboxer(client: &Client) -> anyhow::Result<String> {
    let request = GetNamespaceRequest { name: client.namespace().to_owned() };
    let namespace = match client.namespaces().get(request).await {
        Ok(answer) => answer.into_inner().namespace.unwrap_or_default(),
        Err(status) => {
            let error = anyhow::Error::from(status);
            if has_code(&error, tonic::Code::NotFound) {
                return Ok(DEFAULT_SANDBOXER.to_owned());
            }
            return Err(error);
        }
    };
    let named = namespace.labels.get(SANDBOXER_LABEL).filter(|name| !name.is_empty());
    Ok(named.cloned().unwrap_or_else(|| DEFAULT_SANDBOXER.to_owned()))
}
