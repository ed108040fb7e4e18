//! `ctr plugins ls`

use std::collections::BTreeSet;

use clap::Args;
use proto::containerd::services::introspection::v1::{Plugin, PluginsRequest};
use serde_json::json;

use crate::{
    cli::Global,
    output::{self, Format, ListFormat, Table, outln},
};

/// The end of the message of a plugin that chose not to run.
const SKIP: &str = "skip plugin";

/// List the daemon's plugins
#[derive(Args, Debug)]
pub(crate) struct List {
    /// Show only plugins that match one of these, as in type==io.containerd.snapshotter.v1
    filters: Vec<String>,
    /// Print detailed information about each plugin
    #[arg(long, short)]
    detailed: bool,
    #[command(flatten)]
    format: ListFormat,
}

impl List {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let request = PluginsRequest { filters: self.filters };
        let plugins = client.introspection().plugins(request).await?.into_inner().plugins;
        if self.format.quiet {
            return Ok(plugins.iter().try_for_each(|plugin| outln!("{}", plugin.id))?);
        }
        if self.format.format == Format::Json {
            return output::json(&plugins.iter().map(document).collect::<Vec<_>>());
        }
        if self.detailed {
            return Ok(plugins.iter().try_for_each(print_detailed)?);
        }
        let mut table = Table::wide(&["TYPE", "ID", "PLATFORMS", "STATUS"]);
        for plugin in &plugins {
            let platforms = platforms(plugin).unwrap_or_else(|| "-".to_owned());
            let cells = [&plugin.r#type, &plugin.id, &platforms, status(plugin)];
            table.row(cells.map(str::to_owned));
        }
        Ok(table.print()?)
    }
}

fn status(plugin: &Plugin) -> &'static str {
    match &plugin.init_err {
        None => "ok",
        Some(error) if error.message.contains(SKIP) => "skip",
        Some(_) => "error",
    }
}

fn platforms(plugin: &Plugin) -> Option<String> {
    let spell = |platform: &proto::containerd::types::Platform| {
        let parts = [&platform.os, &platform.architecture, &platform.variant];
        parts.into_iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("/")
    };
    let all: BTreeSet<String> = plugin.platforms.iter().map(spell).collect();
    (!all.is_empty()).then(|| all.into_iter().collect::<Vec<_>>().join(","))
}

fn document(plugin: &Plugin) -> serde_json::Value {
    json!({
        "type": plugin.r#type,
        "id": plugin.id,
        "requires": plugin.requires,
        "platforms": platforms(plugin),
        "exports": plugin.exports,
        "capabilities": plugin.capabilities,
        "status": status(plugin),
        "error": plugin.init_err.as_ref().map(|error| &error.message),
    })
}

fn print_detailed(plugin: &Plugin) -> std::io::Result<()> {
    outln!("Type:          {}", plugin.r#type)?;
    outln!("ID:            {}", plugin.id)?;
    if !plugin.requires.is_empty() {
        outln!("Requires:")?;
        plugin.requires.iter().try_for_each(|required| outln!("               {required}"))?;
    }
    if let Some(platforms) = platforms(plugin) {
        outln!("Platforms:     {platforms}")?;
    }
    if !plugin.exports.is_empty() {
        outln!("Exports:")?;
        plugin
            .exports
            .iter()
            .try_for_each(|(key, value)| outln!("               {key} {value}"))?;
    }
    if !plugin.capabilities.is_empty() {
        outln!("Capabilities:  {}", plugin.capabilities.join(","))?;
    }
    if let Some(error) = &plugin.init_err {
        outln!("Error:")?;
        outln!("               Code:     {:?}", tonic::Code::from_i32(error.code))?;
        outln!("               Message:  {}", error.message)?;
    }
    outln!("")
}
