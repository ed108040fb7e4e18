//! The tenants' records.
//!
//! Whatever is made in a namespace makes the namespace, as in containerd. A namespace can be
//! deleted when nothing is left in it; leases go with it, and unfinished ingests with the
//! next collection.

use prost::Message;

use super::{
    key,
    record::{checked, decode},
    rows::{Changes, Rows, Table},
    store::Store,
};
use crate::{error::Error, field_mask::Path, labels::Labels, namespace::Namespace};

/// A namespace and what it is labelled with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Its name.
    pub name: Namespace,
    /// Its labels.
    pub labels: Labels,
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(btree_map = "string, string", tag = "1")]
    labels: Labels,
}

impl Store {
    /// The labels of a namespace; of one that does not exist, none.
    ///
    /// # Errors
    ///
    /// `Database`, `Damaged`.
    pub fn namespace_labels(&self, name: &str) -> Result<Labels, Error> {
        self.read(|view| Ok(record(view, name)?.unwrap_or_default().labels))
    }

    /// All namespaces, by name.
    ///
    /// # Errors
    ///
    /// `Database`, `Damaged`.
    pub fn namespaces(&self) -> Result<Vec<NamespaceInfo>, Error> {
        self.read(|view| {
            let mut found = Vec::new();
            view.scan(Table::Namespaces, b"", &mut |key, value| {
                found.push(from_row(key, value)?);
                Ok(())
            })?;
            Ok(found)
        })
    }

    /// Makes a namespace.
    ///
    /// # Errors
    ///
    /// - `InvalidArgument`: a label is too long.
    /// - `AlreadyExists`.
    pub fn create_namespace(&self, name: &Namespace, labels: Labels) -> Result<(), Error> {
        let labels = checked("namespace.Labels", labels)?;
        self.write(|changes| {
            if record(changes, name.as_str())?.is_some() {
                return Err(Error::AlreadyExists(format!("namespace {name:?}")));
            }
            put(changes, name, labels);
            Ok(())
        })
    }

    /// Replaces labels: those that `mask` names, or without a mask all. A namespace that does not
    /// exist is made, as containerd does it.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: a path names something else than a label; a label is too long.
    pub fn update_namespace(
        &self,
        name: &Namespace,
        new: &Labels,
        mask: &[String],
    ) -> Result<Labels, Error> {
        self.write(|changes| {
            let mut labels = record(changes, name.as_str())?.unwrap_or_default().labels;
            for path in mask {
                let Path::Entry("labels", key) = Path::parse(path) else {
                    return Err(Error::InvalidArgument(format!("cannot update {path:?} field")));
                };
                crate::field_mask::set_entry(&mut labels, key, new);
            }
            if mask.is_empty() {
                labels.clone_from(new);
            }
            let labels = checked("namespace.Labels", labels)?;
            put(changes, name, labels.clone());
            Ok(labels)
        })
    }

    /// Removes a namespace. The caller holds [`Store::collecting`], so that nobody makes something in
    /// it meanwhile.
    ///
    /// `snapshotters` are the names of those that hold snapshots of it: their records are the
    /// snapshotters' own.
    ///
    /// # Errors
    ///
    /// - `FailedPrecondition`: it is not empty.
    /// - `NotFound`.
    pub(crate) fn delete_namespace(
        &self,
        name: &str,
        snapshotters: &[String],
    ) -> Result<(), Error> {
        self.write_while_collecting(|changes| {
            let not_found = || Error::NotFound(format!("namespace {name:?}"));
            record(changes, name)?.ok_or_else(not_found)?;
            let prefix = key::prefix(&[name]);
            let mut kinds = Vec::new();
            for (table, kind) in [
                (Table::Images, "images"),
                (Table::Content, "blobs"),
                (Table::Containers, "containers"),
                (Table::Sandboxes, "sandboxes"),
            ] {
                if changes.any(table, &prefix)? {
                    kinds.push(kind.to_owned());
                }
            }
            kinds.extend(
                snapshotters.iter().map(|name| format!("snapshots on {name:?} snapshotter")),
            );
            if !kinds.is_empty() {
                let kinds = kinds.join(", ");
                return Err(Error::FailedPrecondition(format!(
                    "namespace {name:?} must be empty, but it still has {kinds}"
                )));
            }
            for table in [Table::Leases, Table::LeaseResources] {
                changes.remove_all(table, &prefix)?;
            }
            changes.remove(Table::Namespaces, name.as_bytes());
            Ok(())
        })
    }
}

/// The namespace of a row.
pub(crate) fn from_row(key: &[u8], value: &[u8]) -> Result<NamespaceInfo, Error> {
    let [name] = key::split(key)?;
    let what = || format!("namespace {name:?}");
    Ok(NamespaceInfo { name: name.parse()?, labels: decode::<Record>(what, value)?.labels })
}

/// Makes the namespace unless it is there: the first object in it does.
pub(crate) fn ensure(changes: &mut Changes<'_>, name: &Namespace) -> Result<(), Error> {
    if changes.get(Table::Namespaces, name.as_str().as_bytes())?.is_none() {
        put(changes, name, Labels::new());
    }
    Ok(())
}

fn put(changes: &mut Changes<'_>, name: &Namespace, labels: Labels) {
    let value = Record { labels }.encode_to_vec();
    changes.put(Table::Namespaces, name.as_str().as_bytes(), value);
}

fn record(rows: &impl Rows, name: &str) -> Result<Option<Record>, Error> {
    let value = rows.get(Table::Namespaces, name.as_bytes())?;
    value.map(|value| decode(|| format!("namespace {name:?}"), &value)).transpose()
}
