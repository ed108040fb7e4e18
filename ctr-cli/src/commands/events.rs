//! `ctr events`

use clap::Args;
use proto::containerd::services::events::v1::SubscribeRequest;

use crate::{
    cli::Global,
    output::{Format, json_line, outln, timestamp},
};

/// Display events as they happen
#[derive(Args, Debug)]
pub(crate) struct Events {
    /// Show only events that match one of these, as in topic=="/tasks/exit"
    filters: Vec<String>,
    /// Print lines for people, or JSON for programs
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

impl Events {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let request = SubscribeRequest { filters: self.filters };
        let mut events = client.events().subscribe(request).await?.into_inner();
        while let Some(envelope) = events.message().await? {
            let event = envelope.event.as_ref().map(crate::dynamic::decode).transpose()?;
            let time = timestamp(envelope.timestamp.as_ref()).unwrap_or_default();
            match self.format {
                Format::Table => {
                    let text = event.map_or_else(String::new, |event| event.to_string());
                    outln!("{time} {} {} {text}", envelope.namespace, envelope.topic)?;
                }
                Format::Json => json_line(&serde_json::json!({
                    "timestamp": time,
                    "namespace": envelope.namespace,
                    "topic": envelope.topic,
                    "event": event,
                }))?,
            }
        }
        Ok(())
    }
}
