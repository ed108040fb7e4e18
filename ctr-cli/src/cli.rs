//! The command line: global flags and the table of commands.

use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::{client::Client, commands};

/// Manages containers, images and snapshots through a daemon that serves containerd's API.
#[derive(Debug, Parser)]
#[command(name = "ctr", version, propagate_version = false, disable_help_subcommand = false)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags that come before the command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Enable debug output
    #[arg(long)]
    pub(crate) debug: bool,
    /// Address of the daemon's socket (default: /run/gantry/gantry.sock or
    /// /run/containerd/containerd.sock, whichever is there)
    #[arg(long, short, env = "CONTAINERD_ADDRESS")]
    pub(crate) address: Option<String>,
    /// Total timeout for the command, as in 30s (0: none)
    #[arg(long, value_parser = parse_duration, default_value = "0s")]
    pub(crate) timeout: Duration,
    /// Timeout for connecting to the daemon (0: none)
    #[arg(long, value_parser = parse_duration, default_value = "0s")]
    pub(crate) connect_timeout: Duration,
    /// Namespace to use with commands
    #[arg(long, short, global = true, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    pub(crate) namespace: String,
}

impl Global {
    /// Connects to the daemon that the flags name.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let address = self.address.as_deref().filter(|address| !address.is_empty());
        let timeout = (!self.connect_timeout.is_zero()).then_some(self.connect_timeout);
        Client::connect(address, &self.namespace, timeout).await
    }
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, and it is consumed")]
enum Command {
    /// Provide information about the daemon's plugins
    #[command(subcommand, visible_alias = "plugin")]
    Plugins(commands::plugins::Command),
    /// Print the client and server versions
    Version(commands::version::Version),
    /// Manage containers
    #[command(subcommand, visible_aliases = ["c", "container"])]
    Containers(commands::containers::Command),
    /// Manage content
    #[command(subcommand)]
    Content(commands::content::Command),
    /// Display events
    #[command(visible_alias = "event")]
    Events(commands::events::Events),
    /// Explain or run garbage collection
    #[command(subcommand)]
    Gc(commands::gc::Command),
    /// Manage images
    #[command(subcommand, visible_aliases = ["image", "i"])]
    Images(commands::images::Command),
    /// Print information about the daemon
    Info(commands::info::Info),
    /// Manage leases
    #[command(subcommand, visible_alias = "lease")]
    Leases(commands::leases::Command),
    /// Manage namespaces
    #[command(subcommand, visible_aliases = ["namespace", "ns"])]
    Namespaces(commands::namespaces::Command),
    /// Run a container
    Run(Box<commands::run::Run>),
    /// Manage sandboxes
    #[command(subcommand, visible_aliases = ["sandbox", "sb", "s"])]
    Sandboxes(commands::sandboxes::Command),
    /// Interact with shims directly
    Shim(commands::shim::Shim),
    /// Manage snapshots
    #[command(visible_alias = "snapshot")]
    Snapshots(commands::snapshots::Snapshots),
    /// Manage tasks
    #[command(subcommand, visible_aliases = ["t", "task"])]
    Tasks(commands::tasks::Command),
    /// OCI tools
    #[command(subcommand)]
    Oci(commands::oci::Command),
}

impl Cli {
    /// Runs the command within its timeout.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let timeout = self.global.timeout;
        let work = self.dispatch();
        if timeout.is_zero() {
            return work.await;
        }
        tokio::time::timeout(timeout, work).await.context("deadline exceeded")?
    }

    async fn dispatch(self) -> anyhow::Result<()> {
        let global = &self.global;
        match self.command {
            Command::Plugins(command) => command.run(global).await,
            Command::Version(command) => command.run(global).await,
            Command::Containers(command) => command.run(global).await,
            Command::Content(command) => command.run(global).await,
            Command::Events(command) => command.run(global).await,
            Command::Images(command) => command.run(global).await,
            Command::Info(command) => command.run(global).await,
            Command::Gc(command) => command.run(global).await,
            Command::Leases(command) => command.run(global).await,
            Command::Namespaces(command) => command.run(global).await,
            Command::Run(command) => command.run(global).await,
            Command::Sandboxes(command) => command.run(global).await,
            Command::Shim(command) => command.run(global).await,
            Command::Snapshots(command) => command.run(global).await,
            Command::Tasks(command) => command.run(global).await,
            Command::Oci(command) => command.run(global).await,
        }
    }
}

/// Parses a duration as Go writes it: numbers with units, as in `1h30m` or `1.5s`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let parsed = sys::go_duration::parse_positive(text);
    parsed.ok_or_else(|| format!("{text:?} is not a duration such as 30s or 1h30m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let cases = [
            ("zero", "0", Some(0)),
            ("seconds", "30s", Some(30_000)),
            ("mixed", "1h1m1.5s", Some(3_661_500)),
            ("milliseconds", "250ms", Some(250)),
            ("no unit", "5", None),
            ("negative", "-5s", None),
            ("empty", "", None),
            ("huge", "1e400s", None),
            ("unit only", "s", None),
        ];
        for (case, text, want) in cases {
            let got = parse_duration(text).ok();
            assert_eq!(got, want.map(Duration::from_millis), "{case}");
        }
    }

    #[test]
    fn command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
