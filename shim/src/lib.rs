//! containerd's shim for OCI runtimes: holds the io, the exit status and the process tree of a
//! container, or of the containers of a pod, and outlives the engine.
//!
//! # Map
//!
//! | module | what |
//! |---|---|
//! | [`args`], `bootstrap`, `bundle`, `runtime`, `socket` | words: command lines, files, names; nothing that waits |
//! | `poller`, `server`, `publisher`, `reaper`, `stdio` | mechanisms under the loop, one each |
//! | `shim`, `task`, `sandbox`, `streaming` | what is served: the loop, and the operations as steps between events |
//! | [`commands`] | `start`, `delete`, `-info`, `-v`, and serving |
//!
//! # Invariants
//!
//! - One thread, and one place that waits, `Poller::wait`. What takes time is a process
//!   or a descriptor. Two things are done in place although a broken disk can make them slow:
//!   mounting and unmounting the container's root, and writing to log files.
//! - No runtime (tokio), no gRPC: memory is the budget, one shim runs per container or pod.
//! - Every descriptor is close-on-exec; a child gets what it is given.
//!
//! The contract is containerd's: `core/runtime/v2/README.md`, `api/runtime/task`, and, where they
//! are silent, what `cmd/containerd-shim-runc-v2` does.

pub mod args;
mod bootstrap;
mod bundle;
pub mod commands;
mod error;
mod log;
mod metrics;
mod poller;
mod publisher;
mod reaper;
mod runtime;
mod sandbox;
mod server;
mod sha256;
mod shim;
mod socket;
mod stdio;
mod streaming;
mod task;
