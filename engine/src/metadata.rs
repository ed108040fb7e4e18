//! The records of everything, in one transactional database.
//!
//! # Why one
//!
//! A snapshot's record, the label that keeps it and the lease that a client took on it have to
//! tell the same story after a crash. They do, because they are in one database and change in one
//! transaction. Records of snapshots are the snapshotter's own: the engine hands it this store to
//! keep them in.
//!
//! # Rules
//!
//! - **Durable.** A call that returned success is on disk.
//! - **Atomic.** A call that returned an error has changed nothing: changes are gathered in memory
//!   and enter the transaction only when the whole call succeeded.
//! - **Group commit.** Calls that come while a commit is under way share the next one; see
//!   [`store`].
//! - **Readers never wait.** They see the last commit.
//! - **Blocking.** Calls wait for the disk. Async callers use a blocking thread.
//!
//! The tables and the encoding are documented in `docs/formats.md`.

mod containers;
mod content;
pub mod fuzz;
mod images;
mod key;
mod leases;
mod namespaces;
mod objects;
mod record;
mod rows;
mod sandboxes;
mod schema;
mod store;

pub use self::{
    containers::{Container, Runtime},
    content::ContentInfo,
    images::{DeleteImage, Image},
    leases::{Lease, Resource, ResourceKind},
    namespaces::NamespaceInfo,
    record::Page,
    rows::{Changes, Rows, Table, View, Visit},
    sandboxes::Sandbox,
    store::Store,
};
pub(crate) use self::{
    content::already_exists,
    namespaces::{ensure as ensure_namespace, from_row as namespace_of},
    objects::{Object, each, each_keeper, object, remove_content, remove_image, remove_lease},
    schema::{META, SCHEMA},
    store::is_damage,
};
