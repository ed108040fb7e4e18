//! Garbage collection: what nothing keeps, goes.
//!
//! # What keeps what
//!
//! | object    | is a root                          | keeps                                        |
//! |-----------|------------------------------------|----------------------------------------------|
//! | lease     | until it [expires](EXPIRE)         | its resources, and what they keep unless [flat](FLAT) |
//! | image     | until it expires                   | its target, and what its labels refer to     |
//! | container | always                             | its snapshot, and what its labels refer to   |
//! | content   | with the label [`ROOT`]            | what its labels refer to                     |
//! | snapshot  | with the label [`ROOT`]            | its parent, and what its labels refer to     |
//!
//! Labels refer forward (`containerd.io/gc.ref.content[.x]`, `…ref.image[.x]`,
//! `…ref.snapshot.<snapshotter>[/x]`: this object keeps that one) or back (`…gc.bref.…`: that
//! object keeps this one). Everything is within one namespace. Expired leases and images go, and so
//! do blobs and snapshots that no root reaches; containers go only when they are deleted.
//!
//! # How
//!
//! [`graph`] decides, from a list of objects and nothing else; [`collector`] lists them and removes
//! what was decided, while nobody else can change anything; [`scheduler`] decides when.
//!
//! Source: containerd, `core/metadata/gc.go`, `docs/garbage-collection.md`, `plugins/gc`.

mod collector;
mod graph;
mod scheduler;

pub use self::{
    collector::{Collected, Collector, Snapshotters},
    scheduler::Scheduler,
};

/// The label with the time after which an object is not kept for its own sake (RFC 3339).
pub const EXPIRE: &str = "containerd.io/gc.expire";

/// The label of a lease that keeps its resources, but not what they refer to.
pub const FLAT: &str = "containerd.io/gc.flat";

/// The label of content and snapshots that are kept for their own sake.
pub const ROOT: &str = "containerd.io/gc.root";
