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
//! do blobs and snapshots that no root reaches; containers and sandboxes, which are roots, too, go
//! only when they are deleted. Content and images may also keep a snapshot for as long as it was
//! used at a time that fits (`containerd.io/gc.cond.snapshot`).
//!
//! # How
//!
//! [`graph`] decides, from a list of objects and nothing else; [`collector`] lists them and removes
//! the records of what goes, in one transaction, while nobody else can change anything, and then
//! the files, while everybody works again; [`scheduler`] decides when; [`inspect`] tells why.
//!
//! Files may go without haste because nothing finds them without a record, and because those of
//! which no record tells are looked for by each collection and, after a crash, at the start.
//!
//! Source: containerd, `core/metadata/gc.go`, `docs/garbage-collection.md`, `plugins/gc`.

mod cleaning;
mod collector;
mod graph;
mod inspect;
mod label;
mod object;
mod scheduler;

use std::time::SystemTime;

pub use self::{
    collector::{Collected, Collector, Snapshotters},
    inspect::{Doomed, Explanation, Inspector, Link},
    object::{Kind, Object},
    scheduler::Scheduler,
};
use crate::{
    digest::Digest,
    labels::Labels,
    metadata::{self, ContentInfo, Image},
    namespace::Namespace,
    oci::Descriptor,
};

/// The label with the time after which an object is not kept for its own sake (RFC 3339).
pub const EXPIRE: &str = "containerd.io/gc.expire";

/// The label of a lease that keeps its resources, but not what they refer to.
pub const FLAT: &str = "containerd.io/gc.flat";

/// The label of content and snapshots that are kept for their own sake.
pub const ROOT: &str = "containerd.io/gc.root";

/// Lets a collection decide about a blob, and about an image, that have the label and nothing else
/// keeps.
pub(crate) fn fuzz(key: &str, value: &str) {
    let (created, updated) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH);
    let namespace: Namespace = "default".parse().expect("is a namespace");
    let labels = Labels::from([(key.to_owned(), value.to_owned())]);
    let digest = Digest::of(b"blob");
    let plan = |object| {
        let mut graph = graph::Graph::new(SystemTime::now());
        graph.add(namespace.clone(), object);
        graph.plan()
    };

    let blob = ContentInfo { digest, size: 4, labels: labels.clone(), created, updated };
    let goes = !plan(metadata::Object::Content(blob)).content.is_empty();
    assert_eq!(goes, !key.starts_with(ROOT), "the blob with {labels:?}");

    let target = Descriptor::of("x", b"blob");
    let image = Image { name: "image".to_owned(), labels, target, created, updated };
    let plan = plan(metadata::Object::Image(image));
    assert!(plan.images.is_empty() || key == EXPIRE, "the image goes for {key}={value}");
    assert!(plan.next_expiry.is_none() || key == EXPIRE, "the image expires for {key}={value}");
}
