//! The gRPC surface: one file per service, translation only.
//!
//! A service turns a request into the engine's words, calls the part that does the work, and turns
//! the result back. The state is blocking code and is called through [`blocking`]; dropping an RPC
//! cancels between two such calls, never inside one.

mod checkpoint;
mod containers;
mod content;
mod diff;
mod events;
mod gc;
mod health;
mod images;
mod introspection;
mod leases;
mod namespaces;
mod sandboxes;
mod snapshots;
mod status;
mod streaming;
mod tasks;
mod transfer;
mod version;
mod wire;

use std::time::SystemTime;

use prost_types::Timestamp;
use tonic::{Request, Status};

use crate::{
    error::Error,
    metadata::{Store, View},
    namespace::Scope,
};

use self::status::refused;
pub(crate) use self::wire::mounts_from_wire;
pub use self::{
    containers::Containers,
    content::Content,
    diff::{Diff, Differ},
    events::Events,
    gc::Gc,
    health::Health,
    images::Images,
    introspection::{Introspection, Plugin, TASKS, server_uuid},
    leases::Leases,
    namespaces::Namespaces,
    sandboxes::{SandboxController, SandboxStore},
    snapshots::Snapshots,
    status::status,
    streaming::Streaming,
    tasks::Tasks,
    transfer::Transfer,
    version::{REVISION, VERSION, Version},
};

/// The header that names the namespace of a call.
pub const NAMESPACE_HEADER: &str = "containerd-namespace";

/// The header that names the lease of a call.
pub const LEASE_HEADER: &str = "containerd-lease";

/// In whose name a call is made.
///
/// # Errors
///
/// There is no namespace, or what is given is none.
pub fn scope<T>(request: &Request<T>) -> Result<Scope, Status> {
    let header = |name| {
        let values = request.metadata().get_all(name).iter();
        // Of several, containerd takes the first.
        values.map(|value| value.to_str().map_err(|_| not_text(name))).next().transpose()
    };
    let namespace = header(NAMESPACE_HEADER)?
        .filter(|namespace| !namespace.is_empty())
        .ok_or_else(|| status(Error::FailedPrecondition("namespace is required".to_owned())))?;
    let namespace = namespace.parse().map_err(|error| {
        status(Error::InvalidArgument(format!("namespace validation: {error}")))
    })?;
    let lease = header(LEASE_HEADER)?.filter(|lease| !lease.is_empty()).map(str::to_owned);
    Ok(Scope { namespace, lease })
}

fn not_text(name: &str) -> Status {
    status(Error::InvalidArgument(format!("header {name} is not text")))
}

/// Runs blocking code on a thread of its own, and gives its error the code that clients expect.
///
/// The code runs to its end even when the call is cancelled meanwhile.
///
/// # Errors
///
/// Those of `work`.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(status),
        Err(error) => Err(Status::internal(format!("blocking work: {error}"))),
    }
}

/// Looks at a few rows: at once where that needs no waiting, which is nearly always, as [`blocking`]
/// otherwise. To hand so little work to another thread and to hear of it takes longer than the work.
///
/// # Errors
///
/// Those of `look`.
async fn glance<T: Send + 'static>(
    store: &Store,
    look: impl Fn(&View) -> Result<T, Error> + Send + 'static,
) -> Result<T, Status> {
    if let Some(seen) = store.glance(&look) {
        return seen.map_err(status);
    }
    let store = store.clone();
    blocking(move || store.read(look)).await
}

/// Lets garbage be collected after a removal; the client of a synchronous call waits for that.
async fn after_removal(gc: &crate::gc::Scheduler, sync: bool) -> Result<(), Status> {
    if sync {
        let gc = gc.clone();
        return blocking(move || gc.collect().map(drop)).await;
    }
    gc.note_removal();
    Ok(())
}

/// A time as the wire has it.
fn timestamp(time: SystemTime) -> Option<Timestamp> {
    Some(Timestamp::from(time))
}

/// The message `field` of a request, which clients always send.
fn required<T>(field: &'static str, message: Option<T>) -> Result<T, Status> {
    message.ok_or_else(|| status(Error::InvalidArgument(format!("{field} is required"))))
}

/// The paths of an update mask.
fn paths(mask: Option<prost_types::FieldMask>) -> Vec<String> {
    mask.unwrap_or_default().paths
}
