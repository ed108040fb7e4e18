//! `ctr oci spec`

use clap::Args;

use crate::{cli::Global, output, spec::Spec};

/// Print the default OCI specification
#[derive(Args, Debug)]
pub(crate) struct Print {}

impl Print {
    #[expect(clippy::unused_async, reason = "called as all commands are")]
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        output::json(&Spec::new(&global.namespace, ""))
    }
}
