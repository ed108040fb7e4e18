//! `ctr content get`

use std::io::Write as _;

use clap::Args;

use crate::{
    cli::Global,
    image::{Digest, stream_blob},
};

/// Print a blob
#[derive(Args, Debug)]
pub(crate) struct Get {
    digest: Digest,
}

impl Get {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let mut out = std::io::stdout().lock();
        stream_blob(&client, self.digest.as_str(), |chunk| Ok(out.write_all(chunk)?)).await?;
        Ok(out.flush()?)
    }
}
