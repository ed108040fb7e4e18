//! `ctr tasks ls`

use clap::Args;
use proto::containerd::{services::tasks::v1::ListTasksRequest, v1::types::Process};
use serde_json::json;

use crate::{
    cli::Global,
    output::{self, Format, ListFormat, Table, outln, timestamp},
};

/// List tasks
#[derive(Args, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    format: ListFormat,
}

impl List {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let request = ListTasksRequest::default();
        let tasks = client.tasks().list(request).await?.into_inner().tasks;
        if self.format.quiet {
            return Ok(tasks.iter().try_for_each(|task| outln!("{}", task.id))?);
        }
        if self.format.format == Format::Json {
            return output::json(&tasks.iter().map(document).collect::<Vec<_>>());
        }
        let mut table = Table::wide(&["TASK", "PID", "STATUS"]).ragged();
        for task in &tasks {
            let status = task.status().as_str_name().to_owned();
            table.row([task.id.clone(), task.pid.to_string(), status]);
        }
        Ok(table.print()?)
    }
}

fn document(task: &Process) -> serde_json::Value {
    json!({
        "id": task.id,
        "pid": task.pid,
        "status": task.status().as_str_name(),
        "exit_status": task.exit_status,
        "exited_at": timestamp(task.exited_at.as_ref()),
        "terminal": task.terminal,
        "stdin": task.stdin,
        "stdout": task.stdout,
        "stderr": task.stderr,
    })
}
