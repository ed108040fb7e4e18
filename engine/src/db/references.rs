//! What records say of each other.

use std::collections::{BTreeMap, BTreeSet};

use super::{Problem, Remedy, Report, show_key};
use crate::{
    digest::Digest,
    metadata::{Object, Table},
    namespace::Namespace,
};

/// What the records that can be read refer to.
#[derive(Default)]
pub(super) struct Facts {
    namespaces: BTreeSet<Namespace>,
    /// The first object of each namespace.
    inhabited: BTreeMap<Namespace, (Table, Vec<u8>)>,
    leases: BTreeSet<(Namespace, String)>,
    leased: Vec<(Namespace, String, Vec<u8>)>,
    /// The records of each blob, by its digest as text.
    blobs: BTreeMap<String, (Digest, Vec<Holder>)>,
}

/// The key of a blob's record, and the size that is in it.
pub(super) type Holder = (Vec<u8>, u64);

impl Facts {
    pub(super) fn add_namespace(&mut self, name: Namespace) {
        self.namespaces.insert(name);
    }

    pub(super) fn add(&mut self, table: Table, key: &[u8], namespace: Namespace, object: Object) {
        self.inhabited.entry(namespace.clone()).or_insert_with(|| (table, key.to_owned()));
        match object {
            Object::Lease(lease) => {
                self.leases.insert((namespace, lease.id));
            }
            Object::Leased { lease, .. } => self.leased.push((namespace, lease, key.to_owned())),
            Object::Content(info) => {
                let blob = self.blobs.entry(info.digest.to_string());
                let (_, holders) = blob.or_insert_with(|| (info.digest, Vec::new()));
                holders.push((key.to_owned(), info.size));
            }
            Object::Image(_) | Object::Container(_) | Object::Sandbox(_) => {}
        }
    }

    pub(super) fn namespaces(&self) -> &BTreeSet<Namespace> {
        &self.namespaces
    }

    /// The blobs, and the keys and sizes of their records.
    pub(super) fn blobs(&self) -> impl Iterator<Item = (&Digest, &[Holder])> {
        self.blobs.values().map(|(digest, holders)| (digest, holders.as_slice()))
    }

    /// Notes what does not hold between records.
    pub(super) fn check(&self, report: &mut Report) {
        for (namespace, (table, key)) in &self.inhabited {
            if !self.namespaces.contains(namespace) {
                report.problems.push(Problem::new(
                    table.name(),
                    &show_key(key),
                    "namespace",
                    format!("namespace {:?} has no record", namespace.as_str()),
                    Remedy::MakeNamespace(namespace.clone()),
                ));
            }
        }
        for (namespace, lease, key) in &self.leased {
            if !self.leases.contains(&(namespace.clone(), lease.clone())) {
                let table = Table::LeaseResources;
                report.problems.push(Problem::new(
                    table.name(),
                    &show_key(key),
                    "lease",
                    format!("lease {lease:?} has no record"),
                    Remedy::Remove(table, key.clone()),
                ));
            }
        }
    }
}
