//! `ctr tasks attach`

use clap::Args;
use proto::containerd::services::tasks::v1::GetRequest;

use crate::{
    cli::Global,
    error::exit_with,
    task::{Console, Process, Pump, Signals, Stdio, supervise},
};

/// Attach to the streams of a running task
#[derive(Args, Debug)]
pub(crate) struct Attach {
    container: String,
}

impl Attach {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let request = GetRequest { container_id: self.container.clone(), exec_id: String::new() };
        let task = client.tasks().get(request).await?.into_inner().process.unwrap_or_default();
        let mut signals = Signals::take()?;
        let mut stdio = Stdio::of(&task);
        let console = task.terminal.then(Console::raw).transpose()?;
        let mut pump = Pump::open(&stdio)?;
        let process = Process::init(&client, &self.container);
        let wait = process.wait();
        let ended = async {
            let console = console.as_ref();
            let status = supervise(&process, &mut pump, &mut signals, console, wait).await?;
            process.delete().await?;
            anyhow::Ok(status)
        };
        let ended = ended.await.inspect_err(|_| stdio.keep());
        pump.drain().await?;
        drop(console);
        exit_with(ended?)
    }
}
