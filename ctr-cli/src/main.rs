//! `ctr`, the command-line client.
//!
//! Takes the commands and flags of containerd's `ctr`, prints the same tables, and talks to any
//! daemon that serves containerd's API. It is one thread with one request in flight at a time,
//! except where requests do not depend on each other (`run`), where waiting for each in turn
//! would be most of what a start costs.
//!
//! ```text
//!  cli ──> commands/<group>/<command> ──> client (gRPC)
//!               │
//!               ├── spec    what an OCI runtime is told       (pure, but for the image's users)
//!               ├── image   manifests, chain IDs, unpacking   (through the daemon's services)
//!               ├── task    fifos, terminal, signals
//!               └── output  tables, JSON, progress
//! ```

mod cli;
mod client;
mod commands;
mod dynamic;
mod error;
mod image;
mod mounts;
mod names;
mod output;
mod platform;
mod spec;
mod task;
mod transfer;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

/// The allocator of static programs asks the kernel for each larger object, and gives it back at once.
/// The description of all commands is many of them: it was a third of what a short command takes.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let matches = match cli::Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(usage) => {
            let _ = usage.print();
            return ExitCode::from(u8::from(usage.use_stderr()));
        }
    };
    let cli = match cli::Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(usage) => usage.exit(),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return error::report(&error.into()),
    };
    let result = runtime.block_on(cli.run());
    // Reads of a terminal cannot be cancelled, so nothing is waited for.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error::report(&error),
    }
}
