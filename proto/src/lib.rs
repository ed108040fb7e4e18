//! The wire: containerd's API, the shim's, CRI, and ttrpc.
//!
//! The types are generated from `proto/protos` by `cargo xtask codegen` and committed. Their
//! packages, names, numbers and types are those of containerd 2.3 and CRI v1; a test compares
//! them with two crates that were not written here.

use std::time::Duration;

/// How long a shim that ends waits until its events and replies have arrived. Whoever kills shims that
/// do not end gives them longer.
pub const SHIM_FAREWELL_MAX: Duration = Duration::from_secs(5);

pub mod any;
pub mod time;
pub mod ttrpc;

#[expect(missing_docs, clippy::all, reason = "generated")]
#[allow(
    clippy::too_many_lines,
    unreachable_pub,
    unused_imports,
    reason = "generated; depends on the features"
)]
mod generated {
    include!("gen/all.rs");
}

pub use generated::*;

/// The descriptors of everything in `proto/protos`, an encoded
/// `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!("gen/descriptors.bin");
