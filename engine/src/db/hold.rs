//! Keeps what a repair has left from being collected.
//!
//! Records of images, containers and leases are what keeps blobs and snapshots. A repair that lost some of
//! them does not know what they kept, so it lets a lease of each namespace hold everything there
//! is. Whoever has looked at what is left deletes the lease, and the rest is collected.
//!
//! The lease is there before anything is lost: a repair that is cut short, and does not know when it
//! is run again what went at the first time, must not leave a database that a daemon collects from.

use std::collections::BTreeMap;

use redb::ReadableTable;
use snapshotter::records::SNAPSHOTS;

use super::repair;
use crate::{
    error::Error,
    labels::Labels,
    metadata::{self, Object, Resource, Rows as _, Table},
    namespace::Namespace,
};

/// Has a lease named after `suffix` hold all that each namespace has, also what it held before. Rows
/// that cannot be read are passed over.
pub(super) fn everything(
    store: &metadata::Store,
    suffix: &str,
    done: &mut Vec<String>,
) -> Result<(), Error> {
    let mut found: BTreeMap<Namespace, Vec<Resource>> = BTreeMap::new();
    store.read(|view| {
        view.scan(Table::Content, b"", &mut |key, value| {
            let object = metadata::object(Table::Content, key, value);
            if let Ok((namespace, Object::Content(info))) = object {
                found.entry(namespace).or_default().push(Resource::content(&info.digest));
            }
            Ok(())
        })
    })?;
    repair::change_snapshots(store, &mut |transaction| {
        let table = transaction.open_table(SNAPSHOTS).map_err(repair::database)?;
        for row in table.iter().map_err(repair::database)? {
            let (key, _) = row.map_err(repair::database)?;
            let (snapshotter, namespace, name) = key.value();
            if let Ok(namespace) = namespace.parse() {
                let resource = Resource::snapshot(snapshotter, name);
                found.entry(namespace).or_default().push(resource);
            }
        }
        Ok(())
    })?;
    let lease = format!("recovered-{suffix}");
    for (namespace, resources) in found {
        let made = match store.create_lease(&namespace, &lease, Labels::new()) {
            Err(Error::AlreadyExists(_)) => false,
            result => result.map(|_| true)?,
        };
        store.add_lease_resources(&namespace, &lease, &resources)?;
        if !made {
            continue;
        }
        done.push(format!(
            "made lease {lease} of namespace {:?}, which keeps all that is there until it is deleted",
            namespace.as_str()
        ));
    }
    Ok(())
}
