//! `ctr content ingest`

use std::collections::BTreeMap;

use clap::Args;

use crate::{
    cli::Global,
    image::{Digest, write_stream},
};

/// Write standard input as a blob
#[derive(Args, Debug)]
pub(crate) struct Ingest {
    /// Name of the write
    key: String,
    /// Size that it must have, in bytes (0: not known)
    #[arg(long, default_value_t = 0)]
    expected_size: i64,
    /// Digest that it must have
    #[arg(long)]
    expected_digest: Option<Digest>,
    /// Lease that is to keep it; what nothing keeps is removed sooner or later
    #[arg(long)]
    lease: Option<String>,
}

impl Ingest {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let mut client = global.connect().await?;
        if let Some(lease) = &self.lease {
            client = client.with_lease(lease)?;
        }
        let expected = self.expected_digest.as_ref();
        let labels = BTreeMap::new();
        let input = tokio::io::stdin();
        write_stream(&client, &self.key, input, self.expected_size, expected, labels).await
    }
}
