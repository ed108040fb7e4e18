//! What the program does, one command each. All but serving are over in a moment, print their
//! answer, and may wait for their children in the ordinary way: they have no reaper.

mod delete;
mod info;
mod serve;
mod start;

use std::io;

use crate::args::ArgsError;

pub use delete::delete;
pub use info::{info, version};
pub use serve::serve;
pub use start::start;

/// The name of the runtime.
pub const NAME: &str = "io.containerd.runc-rs.v2";

/// Where containerd takes events, in the environment.
const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum CommandError {
    /// The command line makes no sense.
    #[error(transparent)]
    Args(#[from] ArgsError),
    /// A flag that the command needs is not there.
    #[error("shim {flag} cannot be empty")]
    Missing { flag: &'static str },
    /// A system call failed; `what` is its verb.
    #[error("{what}")]
    Io { what: &'static str, source: io::Error },
}

impl CommandError {
    /// Names what was tried when an error came.
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
