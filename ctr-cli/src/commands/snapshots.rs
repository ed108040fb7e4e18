//! `ctr snapshots`

mod commit;
mod diff;
mod info;
mod label;
mod list;
mod mounts;
mod prepare;
mod remove;
mod tree;
mod unpack;
mod usage;

pub(crate) use diff::Views;

use clap::{Args, Subcommand};
use proto::containerd::{
    services::snapshots::v1::{Info, ListSnapshotsRequest},
    types::Mount,
};
use serde_json::{Value, json};

use crate::{
    cli::Global,
    client::Client,
    image::resolve_snapshotter,
    output::{outln, timestamp},
};

/// Manage snapshots
#[derive(Args, Debug)]
pub(crate) struct Snapshots {
    /// Snapshotter (empty: the namespace's default)
    #[arg(long, global = true, env = "CONTAINERD_SNAPSHOTTER")]
    snapshotter: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Commit an active snapshot under a name
    Commit(commit::Commit),
    /// Print the difference of two snapshots, the second being the first's parent by default
    Diff(diff::Diff),
    /// Print a snapshot's record
    Info(info::Info),
    /// List snapshots
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Print the mount commands of a snapshot
    #[command(visible_aliases = ["m", "mount"])]
    Mounts(mounts::Mounts),
    /// Prepare an active snapshot on a committed one
    Prepare(prepare::Prepare),
    /// Make a read-only snapshot of a committed one
    View(prepare::View),
    /// Remove snapshots
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete(remove::Remove),
    /// Set and clear labels of a snapshot
    Label(label::Label),
    /// Print snapshots as trees
    Tree(tree::Tree),
    /// Unpack the layers of an image
    Unpack(unpack::Unpack),
    /// Print the disk usage of snapshots
    Usage(usage::Usage),
}

/// The service and the snapshotter that a command works with.
struct Context {
    client: Client,
    snapshotter: String,
}

impl Snapshots {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let snapshotter = resolve_snapshotter(&client, self.snapshotter.as_deref()).await?;
        let context = Context { client, snapshotter };
        match self.command {
            Command::Commit(command) => command.run(&context).await,
            Command::Diff(command) => command.run(&context).await,
            Command::Info(command) => command.run(&context).await,
            Command::List(command) => command.run(&context).await,
            Command::Mounts(command) => command.run(&context).await,
            Command::Prepare(command) => command.run(&context).await,
            Command::View(command) => command.run(&context).await,
            Command::Delete(command) => command.run(&context).await,
            Command::Label(command) => command.run(&context).await,
            Command::Tree(command) => command.run(&context).await,
            Command::Unpack(command) => command.run(&context).await,
            Command::Usage(command) => command.run(&context).await,
        }
    }
}

impl Context {
    /// All snapshots that match one of the filters.
    async fn list(&self, filters: Vec<String>) -> anyhow::Result<Vec<Info>> {
        let request = ListSnapshotsRequest { snapshotter: self.snapshotter.clone(), filters };
        let mut parts = self.client.snapshots().list(request).await?.into_inner();
        let mut snapshots = Vec::new();
        while let Some(part) = parts.message().await? {
            snapshots.extend(part.info);
        }
        Ok(snapshots)
    }
}

/// The word for a snapshot's kind.
fn kind(info: &Info) -> &'static str {
    use proto::containerd::services::snapshots::v1::Kind;
    match info.kind() {
        Kind::Unknown => "Unknown",
        Kind::View => "View",
        Kind::Active => "Active",
        Kind::Committed => "Committed",
    }
}

/// A snapshot's record as stock `ctr` prints it.
fn document(info: &Info) -> Value {
    let mut document = json!({"Kind": kind(info), "Name": info.name});
    if !info.parent.is_empty() {
        document["Parent"] = info.parent.clone().into();
    }
    if !info.labels.is_empty() {
        document["Labels"] = json!(info.labels);
    }
    document["Created"] = timestamp(info.created_at.as_ref()).into();
    document["Updated"] = timestamp(info.updated_at.as_ref()).into();
    document
}

/// Prints the commands that would mount a snapshot.
fn print_mounts(target: &str, mounts: &[Mount]) -> anyhow::Result<()> {
    for mount in mounts {
        let target = if mount.target.is_empty() {
            target.to_owned()
        } else {
            format!("{}/{}", target.trim_end_matches('/'), mount.target)
        };
        let options = if mount.options.is_empty() {
            String::new()
        } else {
            format!(" -o {}", mount.options.join(","))
        };
        outln!("mount -t {} {} {target}{options}", mount.r#type, mount.source)?;
    }
    Ok(())
}

/// Mounts as stock `ctr` prints them in JSON.
fn mount_documents(mounts: &[Mount]) -> Vec<Value> {
    let document = |mount: &Mount| {
        json!({"Type": mount.r#type, "Source": mount.source, "Target": mount.target,
            "Options": mount.options})
    };
    mounts.iter().map(document).collect()
}

/// The label that keeps what a person made by hand from being collected.
fn root_label() -> (String, String) {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
    ("containerd.io/gc.root".to_owned(), now.to_string())
}
