//! Flags about registries.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use prost_types::Any;
use proto::containerd::types::transfer::{HttpDebug, OciRegistry, RegistryResolver};

use super::{Credentials, Stream};
use crate::client::Client;

/// How a registry is reached.
#[derive(Args, Debug)]
pub(crate) struct RegistryFlags {
    /// Use plain HTTP
    #[arg(long)]
    plain_http: bool,
    /// User for the registry, as `name[:password]`
    #[arg(long, short)]
    user: Option<String>,
    /// Refresh token for the registry
    #[arg(long, conflicts_with = "user")]
    refresh: Option<String>,
    /// Directory with the configuration of registries (hosts.toml), on the daemon's side
    #[arg(long, default_value = "")]
    hosts_dir: String,
    /// Do not verify the registry's certificate
    #[arg(long, short = 'k')]
    skip_verify: bool,
    /// File with the root certificates to trust
    #[arg(long)]
    tlscacert: Option<PathBuf>,
    /// File with the client's certificate
    #[arg(long)]
    tlscert: Option<PathBuf>,
    /// File with the client's key
    #[arg(long)]
    tlskey: Option<PathBuf>,
    /// Log requests and responses, in the daemon
    #[arg(long)]
    http_dump: bool,
    /// Log connections, in the daemon
    #[arg(long)]
    http_trace: bool,
    /// Accepted because stock ctr has it; the daemon does the work always
    #[arg(long, hide = true)]
    local: bool,
}

/// The registry's end of a transfer.
pub(crate) struct Registry {
    /// What the call names.
    pub(crate) end: Any,
    credentials: Option<(Credentials, Stream)>,
}

impl Registry {
    /// Answers the daemon's questions for credentials.
    pub(crate) async fn serve(&mut self) -> anyhow::Result<()> {
        match &mut self.credentials {
            Some((credentials, stream)) => credentials.serve(stream).await,
            None => Ok(()),
        }
    }
}

impl RegistryFlags {
    /// Opens the registry's end of a transfer of `reference`.
    pub(crate) async fn open(&self, client: &Client, reference: &str) -> anyhow::Result<Registry> {
        let unsupported = [
            ("--skip-verify", self.skip_verify),
            ("--tlscacert", self.tlscacert.is_some()),
            ("--tlscert", self.tlscert.is_some()),
            ("--tlskey", self.tlskey.is_some()),
        ];
        if let Some((flag, _)) = unsupported.iter().find(|(_, given)| *given) {
            bail!("{flag}: the daemon reads this from the hosts.toml of a --hosts-dir");
        }
        let user = self.user.as_deref();
        let credentials = Credentials::new(user, self.refresh.as_deref(), reference)?;
        let credentials = match credentials {
            Some(credentials) => Some((credentials, Stream::open(client, "creds").await?)),
            None => None,
        };
        let stream = credentials.as_ref().map(|(_, stream)| stream.id().to_owned());
        let debug = match (self.http_dump, self.http_trace) {
            (false, false) => HttpDebug::Disabled,
            (true, false) => HttpDebug::Debug,
            (false, true) => HttpDebug::Trace,
            (true, true) => HttpDebug::Both,
        };
        let resolver = RegistryResolver {
            auth_stream: stream.unwrap_or_default(),
            host_dir: self.hosts_dir.clone(),
            default_scheme: if self.plain_http { "http".to_owned() } else { String::new() },
            http_debug: debug.into(),
            ..Default::default()
        };
        let registry = OciRegistry { reference: reference.to_owned(), resolver: Some(resolver) };
        Ok(Registry { end: proto::any::pack(&registry), credentials })
    }
}
