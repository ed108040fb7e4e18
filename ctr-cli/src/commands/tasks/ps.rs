//! `ctr tasks ps`

use clap::Args;
use proto::containerd::{
    runc::v1::ProcessDetails, services::tasks::v1::ListPidsRequest, v1::types::ProcessInfo,
};

use crate::{
    cli::Global,
    output::{self, Format, Table},
};

/// List the processes of a task
#[derive(Args, Debug)]
pub(crate) struct Ps {
    container: String,
    /// Print a table, or JSON for programs
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

impl Ps {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let request = ListPidsRequest { container_id: self.container };
        let processes = client.tasks().list_pids(request).await?.into_inner().processes;
        if self.format == Format::Json {
            let document = processes.iter().map(|process| {
                let info = process.info.as_ref().map(crate::dynamic::decode).transpose()?;
                Ok(serde_json::json!({"pid": process.pid, "info": info}))
            });
            return output::json(&document.collect::<anyhow::Result<Vec<_>>>()?);
        }
        let mut table = Table::wide(&["PID", "INFO"]);
        for process in &processes {
            table.row([process.pid.to_string(), info(process)]);
        }
        Ok(table.print()?)
    }
}

fn info(process: &ProcessInfo) -> String {
    let details = process.info.as_ref().map(proto::any::unpack::<ProcessDetails>);
    match details {
        Some(Ok(Some(details))) => format!("exec_id:{:?}", details.exec_id),
        _ => "-".to_owned(),
    }
}
