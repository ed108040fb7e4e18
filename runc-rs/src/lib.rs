//! An OCI runtime: makes Linux containers from bundles, as runc does, and with its command line.
//!
//! # Map
//!
//! In the order in which `create` comes by: [`cli`] reads the command line, [`spec`] the bundle's
//! configuration. [`create`] decides what to do, makes the container's directory ([`state`]) and
//! [`cgroup`], and starts the init, which does the rest ([`init`], [`mount`], [`seccomp`]) and
//! waits. [`container`] is what there is from then on: `start`, `kill`, `delete` and the others
//! work on it, [`exec`] adds a process, [`checkpoint`] and [`mod@restore`] have criu take it apart and make
//! it again.
//!
//! # Invariants
//!
//! - One thread. Namespaces, credentials and fork are per thread, so nothing here starts one.
//! - Plan, then act. What is decided (mounts, devices, limits, filters) is a value, made and tested
//!   without rights; what acts on it is short.
//! - Below a container's root nothing is reached by path, only by descriptors resolved inside it.
//! - What fails leaves nothing behind.

pub mod cgroup;
pub mod checkpoint;
pub mod cli;
pub mod container;
pub mod create;
mod criu;
pub mod error;
pub mod exec;
pub mod features;
pub mod fuzz;
mod hooks;
pub mod id;
mod init;
mod intel_rdt;
mod log;
mod mount;
mod notify;
mod proc;
pub mod process;
pub mod restore;
pub mod seal;
pub mod seccomp;
pub mod settings;
mod spawn;
pub mod spec;
pub mod state;
mod time;
pub mod usage;
