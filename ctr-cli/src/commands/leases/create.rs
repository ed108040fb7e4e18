//! `ctr leases create`

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::leases::v1::CreateRequest;

use crate::{
    cli::{Global, parse_duration},
    image::{EXPIRE_LABEL, expiry},
    names,
    output::outln,
};

/// Create a lease
#[derive(Args, Debug)]
pub(crate) struct Create {
    /// Labels, as key=value
    labels: Vec<String>,
    /// Name of the lease, made up by default
    #[arg(long)]
    id: Option<String>,
    /// How long the lease lives (0: until it is deleted)
    #[arg(long, short = 'x', value_parser = parse_duration, default_value = "24h")]
    expires: Duration,
}

impl Create {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let mut labels = names::labels(&self.labels);
        if !self.expires.is_zero() {
            let seconds = i64::try_from(self.expires.as_secs()).context("--expires")?;
            labels.insert(EXPIRE_LABEL.to_owned(), expiry(seconds)?);
        }
        let id = self.id.unwrap_or_else(|| names::unique("ctr"));
        let request = CreateRequest { id: id.clone(), labels };
        let lease = client.leases().create(request).await?.into_inner().lease;
        Ok(outln!("{}", lease.map_or(id, |lease| lease.id))?)
    }
}
