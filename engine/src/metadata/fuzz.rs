//! The store against a naive model of it, on a disk that fails and a machine that stops.
//!
//! Bytes are read as operations. Each is done to the [model] and to the store, which must agree on
//! how it ends; now and then the disk refuses to write or to sync, or everything stops in the middle
//! of an operation and of that only some of what was not synced is on [disk]. Afterwards
//! the store must be as the model was before that operation, or as after it: whatever was
//! acknowledged is there, and nothing is there by half.
//!
//! Called by `fuzz/`, and by this crate's tests with bytes of their own.

mod disk;
mod model;

use std::{path::Path, time::UNIX_EPOCH};

use prost_types::Any;
use redb::Database;

use self::{
    disk::Disk,
    model::{Action, Ending, Kind, Model, Operation},
};
use super::{
    Container, DeleteImage, Image, Object, Resource, Runtime, Sandbox, Store, each, store::Opener,
};
use crate::{
    digest::Digest,
    error::Error,
    filter::Filter,
    labels::Labels,
    namespace::{Namespace, Scope},
    oci::Descriptor,
};

/// How many operations are done at most.
const OPERATIONS_MAX: usize = 400;

/// The label that objects have or have not.
const LABEL: &str = "k";

/// Bytes to make choices by; zeros when there are no more.
pub(crate) struct Choices<'a> {
    data: &'a [u8],
}

impl Choices<'_> {
    fn below(&mut self, end: u8) -> u8 {
        let Some((first, rest)) = self.data.split_first() else { return 0 };
        self.data = rest;
        first % end
    }

    fn is_empty(&self) -> bool {
        self.data.is_empty()
    }
}

/// Does what `data` says.
///
/// # Panics
///
/// When store and model differ.
pub fn run(data: &[u8]) {
    let mut choices = Choices { data };
    let disk = Disk::default();
    let mut store = Some(open(&disk));
    let mut model = Model::default();
    let mut suspicious = false;
    for _ in 0..OPERATIONS_MAX {
        if choices.is_empty() {
            break;
        }
        let operation = Operation::choose(&mut choices);
        match choices.below(12) {
            0 => disk.fail_after(u32::from(choices.below(40))),
            1 => disk.stop_after(u32::from(choices.below(40))),
            _ => {}
        }
        let now = store.as_ref().expect("is open");
        let mut after = model.clone();
        let wanted = after.perform(&operation);
        let got = perform(now, &operation);
        let was_hit = disk.was_hit();
        if disk.is_stopped() {
            drop(store.take());
            disk.restart(&mut |end| choices.below(end));
            store = Some(open(&disk));
        }
        // Also a fault that the operation did not come to.
        disk.mend();
        match got {
            Ok(got) => {
                assert_eq!(got, wanted, "{operation:?}");
                model = after;
            }
            Err(error) => {
                assert!(was_hit || suspicious, "{operation:?} without a fault: {error}");
                if show(store.as_ref().expect("is open")) == after.show() {
                    model = after;
                }
            }
        }
        // What redb does after a commit may fail without failing the call, but the next one.
        suspicious = was_hit;
        if choices.below(4) == 0 {
            compare(store.as_ref().expect("is open"), &model, &operation);
        }
    }
    compare(store.as_ref().expect("is open"), &model, &"the end");
    drop(store);
    compare(&open(&disk), &model, &"closing");
}

fn open(disk: &Disk) -> Store {
    let disk = disk.clone();
    let opener: Opener = Box::new(move |_: &Path| {
        Database::builder().set_cache_size(1 << 20).create_with_backend(disk.clone())
    });
    Store::open_with(Path::new("metadata.redb"), opener).expect("a good disk has a good store")
}

fn compare(store: &Store, model: &Model, after: &dyn std::fmt::Debug) {
    assert_eq!(show(store), model.show(), "after {after:?}");
    for namespace in model::NAMESPACES {
        let filter = Filter::parse_all(&[format!("labels.{LABEL}==v1")]).expect("a filter");
        let name: Namespace = namespace.parse().expect("a name");
        let images = store.images(&name, &filter).expect("lists");
        let images: Vec<_> = images.into_iter().map(|image| image.name).collect();
        assert_eq!(images, model.labelled(Kind::Image, namespace, 1), "after {after:?}");
        let containers = store.containers(&name, &filter).expect("lists");
        let containers: Vec<_> = containers.into_iter().map(|container| container.id).collect();
        assert_eq!(containers, model.labelled(Kind::Container, namespace, 1), "after {after:?}");
    }
}

/// All that is in the store, a line each, in order.
fn show(store: &Store) -> Vec<String> {
    let mut lines = Vec::new();
    let value = |labels: &Labels| labels.get(LABEL).map_or("-", String::as_str).to_owned();
    for namespace in store.namespaces().expect("reads") {
        lines.push(format!(
            "{:?} {} {}",
            Kind::Namespace,
            namespace.name,
            value(&namespace.labels)
        ));
    }
    let read = store.read(|view| {
        each(view, &mut |namespace, object| {
            lines.push(match object {
                Object::Lease(it) => {
                    format!("{:?} {namespace} {} {}", Kind::Lease, it.id, value(&it.labels))
                }
                Object::Leased { lease, resource } => {
                    format!("{:?} {namespace} {lease} {}", Kind::Leased, resource.id)
                }
                Object::Image(it) => {
                    format!("{:?} {namespace} {} {}", Kind::Image, it.name, value(&it.labels))
                }
                Object::Container(it) => {
                    format!("{:?} {namespace} {} {}", Kind::Container, it.id, value(&it.labels))
                }
                Object::Sandbox(it) => {
                    format!("{:?} {namespace} {} {}", Kind::Sandbox, it.id, value(&it.labels))
                }
                Object::Content(it) => {
                    format!("{:?} {namespace} {} {}", Kind::Content, it.digest, value(&it.labels))
                }
            });
            Ok(())
        })
    });
    read.expect("reads");
    lines.sort();
    lines
}

/// The digest that stands for the blob `name`.
fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn labels(value: u8) -> Labels {
    match value {
        0 => Labels::new(),
        value => Labels::from([(LABEL.to_owned(), format!("v{value}"))]),
    }
}

/// Does an operation; an error is one of the disk's.
fn perform(store: &Store, operation: &Operation) -> Result<Ending, Error> {
    let done = match operation.action {
        Action::Create => create(store, operation),
        Action::Update => update(store, operation),
        Action::Delete => delete(store, operation),
    };
    match done {
        Ok(()) => Ok(Ending::Done),
        Err(Error::NotFound(_)) => Ok(Ending::NotFound),
        Err(Error::AlreadyExists(_)) => Ok(Ending::AlreadyExists),
        Err(Error::FailedPrecondition(_)) => Ok(Ending::FailedPrecondition),
        Err(error) => Err(error),
    }
}

fn scope(operation: &Operation) -> Scope {
    let mut scope = Scope::new(operation.namespace.parse().expect("a name"));
    scope.lease = operation.lease.map(str::to_owned);
    scope
}

fn image(operation: &Operation) -> Image {
    Image {
        name: operation.name.to_owned(),
        labels: labels(operation.label),
        target: Descriptor {
            media_type: "application/x".to_owned(),
            digest: digest(operation.name),
            size: 1,
            platform: None,
            annotations: Labels::new(),
            urls: Vec::new(),
        },
        created: UNIX_EPOCH,
        updated: UNIX_EPOCH,
    }
}

fn container(operation: &Operation) -> Container {
    Container {
        id: operation.name.to_owned(),
        labels: labels(operation.label),
        image: String::new(),
        runtime: Runtime { name: "io.containerd.runc.v2".to_owned(), options: None },
        spec: Some(Any { type_url: "x".to_owned(), value: Vec::new() }),
        snapshotter: String::new(),
        snapshot_key: String::new(),
        created: UNIX_EPOCH,
        updated: UNIX_EPOCH,
        extensions: [].into(),
        sandbox: String::new(),
    }
}

fn sandbox(operation: &Operation) -> Sandbox {
    Sandbox {
        id: operation.name.to_owned(),
        labels: labels(operation.label),
        runtime: Runtime { name: "io.containerd.runc.v2".to_owned(), options: None },
        spec: None,
        sandboxer: String::new(),
        created: UNIX_EPOCH,
        updated: UNIX_EPOCH,
        extensions: [].into(),
    }
}

fn create(store: &Store, operation: &Operation) -> Result<(), Error> {
    let scope = scope(operation);
    let namespace = &scope.namespace;
    let labels = labels(operation.label);
    match operation.kind {
        Kind::Namespace => store.create_namespace(namespace, labels),
        Kind::Image => store.create_image(&scope, image(operation)).map(drop),
        Kind::Container => store.create_container(namespace, container(operation)).map(drop),
        Kind::Sandbox => store.create_sandbox(namespace, sandbox(operation)).map(drop),
        Kind::Lease => store.create_lease(namespace, operation.name, labels).map(drop),
        Kind::Leased => {
            let resource = Resource::image(operation.resource);
            store.add_lease_resource(namespace, operation.name, &resource)
        }
        Kind::Content => store.insert_content(&scope, &digest(operation.name), 1, labels),
    }
}

fn update(store: &Store, operation: &Operation) -> Result<(), Error> {
    let scope = scope(operation);
    let namespace = &scope.namespace;
    let mask = ["labels".to_owned()];
    match operation.kind {
        Kind::Namespace => {
            store.update_namespace(namespace, &labels(operation.label), &[]).map(drop)
        }
        Kind::Image => store.update_image(&scope, &image(operation), &mask).map(drop),
        Kind::Container => {
            store.update_container(namespace, &container(operation), &mask).map(drop)
        }
        Kind::Sandbox => store.update_sandbox(namespace, &sandbox(operation), &mask).map(drop),
        Kind::Content => {
            let labels = labels(operation.label);
            store.update_content(namespace, &digest(operation.name), &labels, &mask).map(drop)
        }
        // There are no such calls.
        Kind::Lease | Kind::Leased => Ok(()),
    }
}

fn delete(store: &Store, operation: &Operation) -> Result<(), Error> {
    let scope = scope(operation);
    let namespace = &scope.namespace;
    match operation.kind {
        Kind::Namespace => {
            let _collecting = store.collecting();
            store.delete_namespace(operation.namespace, &[])
        }
        Kind::Image => {
            let delete = DeleteImage { name: operation.name.to_owned(), target: None };
            store.delete_image(&scope, &delete)
        }
        Kind::Container => store.delete_container(namespace, operation.name),
        Kind::Sandbox => store.delete_sandbox(namespace, operation.name),
        Kind::Lease => store.delete_lease(namespace, operation.name),
        Kind::Leased => {
            let resource = Resource::image(operation.resource);
            store.delete_lease_resource(namespace, operation.name, &resource)
        }
        Kind::Content => store.delete_content(&scope, &digest(operation.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that look random, and are the same for the same seed (xorshift).
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32).to_le_bytes()[0]
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn the_store_is_as_its_model() {
        for seed in 1..=6 {
            println!("seed {seed}");
            run(&noise(seed, 1500));
        }
    }
}
