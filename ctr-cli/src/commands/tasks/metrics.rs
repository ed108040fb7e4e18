//! `ctr tasks metrics`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::tasks::v1::MetricsRequest;
use serde_json::Value;

use crate::{
    cli::Global,
    dynamic,
    output::{self, Format, Table, timestamp},
};

/// Print a task's resource usage
#[derive(Args, Debug)]
pub(crate) struct Metrics {
    container: String,
    /// Print a table of the most telling, or JSON of all
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Names in the table and where they are in the metrics of cgroup v1.
const V1: [(&str, &str); 7] = [
    ("memory.usage_in_bytes", "/memory/usage/usage"),
    ("memory.limit_in_bytes", "/memory/usage/limit"),
    ("memory.stat.cache", "/memory/total_cache"),
    ("cpuacct.usage", "/cpu/usage/total"),
    ("cpuacct.usage_percpu", "/cpu/usage/per_cpu"),
    ("pids.current", "/pids/current"),
    ("pids.limit", "/pids/limit"),
];

/// The same for cgroup v2.
const V2: [(&str, &str); 12] = [
    ("pids.current", "/pids/current"),
    ("pids.limit", "/pids/limit"),
    ("cpu.usage_usec", "/cpu/usage_usec"),
    ("cpu.user_usec", "/cpu/user_usec"),
    ("cpu.system_usec", "/cpu/system_usec"),
    ("cpu.nr_periods", "/cpu/nr_periods"),
    ("cpu.nr_throttled", "/cpu/nr_throttled"),
    ("cpu.throttled_usec", "/cpu/throttled_usec"),
    ("memory.usage", "/memory/usage"),
    ("memory.usage_limit", "/memory/usage_limit"),
    ("memory.swap_usage", "/memory/swap_usage"),
    ("memory.swap_limit", "/memory/swap_limit"),
];

impl Metrics {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let request = MetricsRequest { filters: vec![format!("id=={}", self.container)] };
        let metrics = client.tasks().metrics(request).await?.into_inner().metrics;
        let metric = metrics
            .into_iter()
            .next()
            .with_context(|| format!("task {}: no metrics: not found", self.container))?;
        let any = metric.data.as_ref().context("the task has no metrics")?;
        let data = dynamic::decode(any)?;
        if self.format == Format::Json {
            return output::json(&data);
        }
        let mut head = Table::wide(&["ID", "TIMESTAMP"]);
        head.row([metric.id, timestamp(metric.timestamp.as_ref()).unwrap_or_default()]);
        head.print()?;
        output::outln!("")?;
        let is_v1 = proto::any::type_name(any).contains(".v1.");
        let rows: &[(&str, &str)] = if is_v1 { &V1 } else { &V2 };
        Ok(table(&data, rows).print()?)
    }
}

/// The rows whose group of metrics is there. What is zero is left out of a message.
fn table(data: &Value, rows: &[(&str, &str)]) -> Table {
    let mut table = Table::wide(&["METRIC", "VALUE"]);
    for (name, pointer) in rows {
        let group = pointer.split('/').nth(1).unwrap_or_default();
        if data.get(group).is_none() {
            continue;
        }
        let value = match data.pointer(pointer) {
            None => "0".to_owned(),
            Some(Value::Array(list)) => {
                let numbers: Vec<String> = list.iter().map(Value::to_string).collect();
                format!("[{}]", numbers.join(" "))
            }
            Some(value) => value.to_string(),
        };
        table.row([(*name).to_owned(), value]);
    }
    table
}
