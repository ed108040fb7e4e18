//! `ctr tasks`

mod attach;
mod checkpoint;
mod exec;
mod kill;
mod list;
mod metrics;
mod pause;
mod ps;
mod remove;
mod start;

super::group! {
    /// Attach to the streams of a running task
    Attach(attach::Attach),
    /// Checkpoint a task
    #[command(visible_alias = "c")]
    Checkpoint(checkpoint::Checkpoint),
    /// Delete tasks
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete(remove::Remove),
    /// Run another process in a task
    Exec(exec::Exec),
    /// List tasks
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Send a signal to a task
    Kill(kill::Kill),
    /// Pause a task
    Pause(pause::Pause),
    /// Resume a paused task
    Resume(pause::Resume),
    /// List the processes of a task
    Ps(ps::Ps),
    /// Start the task of a container
    Start(start::Start),
    /// Print a task's resource usage
    #[command(visible_alias = "metric")]
    Metrics(metrics::Metrics),
}

pub(crate) use start::created;

use anyhow::Context as _;
use proto::containerd::services::containers::v1::{Container, GetContainerRequest};

use crate::{client::Client, spec::Spec};

/// Loads a container's record.
pub(crate) async fn load(client: &Client, id: &str) -> anyhow::Result<Container> {
    let request = GetContainerRequest { id: id.to_owned() };
    let container = client.containers().get(request).await?.into_inner().container;
    container.context("daemon returned no container")
}

/// The specification in a container's record.
fn spec_of(container: &Container) -> anyhow::Result<Spec> {
    let any = container.spec.as_ref().context("the container has no specification")?;
    serde_json::from_slice(&any.value).context("the container's specification")
}
