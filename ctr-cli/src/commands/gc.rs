//! `ctr gc`: what garbage collection does, and why. Only `gantryd` can say.

mod explain;
mod run;

use anyhow::Context as _;
use proto::gantry::services::gc::v1::Object;

super::group! {
    /// Say what keeps an object, or why it goes
    Explain(explain::Explain),
    /// Collect garbage, or list what would go
    Run(run::Run),
}

/// The object as it may be given to `ctr gc explain`.
fn name(object: &Object) -> String {
    let Object { kind, snapshotter, name, .. } = object;
    if snapshotter.is_empty() {
        format!("{kind}/{name}")
    } else {
        format!("{kind}/{snapshotter}/{name}")
    }
}

/// The result of a call to a daemon that may not be ours.
fn answer<T>(result: Result<T, tonic::Status>) -> anyhow::Result<T> {
    match result {
        Err(error) if error.code() == tonic::Code::Unimplemented => {
            Err(error).context("this daemon does not explain its garbage collection")
        }
        result => Ok(result?),
    }
}
