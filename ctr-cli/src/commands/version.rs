//! `ctr version`

use clap::Args;

use crate::{cli::Global, output::outln};

/// Print the client and server versions
#[derive(Args, Debug)]
pub(crate) struct Version {}

impl Version {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        outln!("Client:")?;
        outln!("  Version:  {}", env!("CARGO_PKG_VERSION"))?;
        outln!("  Revision: {}", option_env!("GANTRY_REVISION").unwrap_or(""))?;
        outln!("")?;
        let client = global.connect().await?;
        let version = client.version().version(()).await?.into_inner();
        outln!("Server:")?;
        outln!("  Version:  {}", version.version)?;
        outln!("  Revision: {}", version.revision)?;
        let server = client.introspection().server(()).await?.into_inner();
        Ok(outln!("  UUID: {}", server.uuid)?)
    }
}
