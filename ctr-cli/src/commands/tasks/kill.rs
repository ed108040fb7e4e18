//! `ctr tasks kill`

use clap::Args;
use tonic::Code;

use super::load;
use crate::{
    cli::Global,
    client::Client,
    error::has_code,
    spec::STOP_SIGNAL_LABEL,
    task::{Process, parse_signal},
};

const SIGTERM: u32 = 15;

/// Send a signal to a task
#[derive(Args, Debug)]
pub(crate) struct Kill {
    container: String,
    /// Signal, as number or name (default: the image's stop signal, or SIGTERM)
    #[arg(long, short, value_parser = parse_signal)]
    signal: Option<u32>,
    /// Process to send it to, instead of init
    #[arg(long, conflicts_with = "all")]
    exec_id: Option<String>,
    /// Send it to all processes of the container
    #[arg(long, short)]
    all: bool,
}

impl Kill {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let signal = match self.signal {
            Some(signal) => signal,
            None => stop_signal(&client, &self.container).await?,
        };
        let exec_id = self.exec_id.unwrap_or_default();
        Process::exec(&client, &self.container, &exec_id).kill(signal, self.all).await
    }
}

/// The signal that the container's image wants to be stopped with.
async fn stop_signal(client: &Client, id: &str) -> anyhow::Result<u32> {
    let container = match load(client, id).await {
        Ok(container) => container,
        // A task whose container is gone can still be killed.
        Err(error) if has_code(&error, Code::NotFound) => return Ok(SIGTERM),
        Err(error) => return Err(error),
    };
    let label = container.labels.get(STOP_SIGNAL_LABEL);
    Ok(label.and_then(|name| parse_signal(name).ok()).unwrap_or(SIGTERM))
}
