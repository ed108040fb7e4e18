//! The leases' records, and what each of them holds.

use std::{borrow::Cow, fmt, str::FromStr, sync::RwLockReadGuard, time::SystemTime};

use prost::Message;

use super::{
    key, namespaces,
    record::{self, checked, decode},
    rows::{Changes, Rows, Table, View},
    store::Store,
};
use crate::{
    digest::Digest,
    error::Error,
    filter::{self, Fields, Filter},
    labels::Labels,
    namespace::{Namespace, Scope},
};

/// Keeps resources from garbage collection for as long as it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: String,
    /// Its labels; `containerd.io/gc.expire` ends it.
    pub labels: Labels,
    /// When it was made.
    pub created: SystemTime,
}

/// Something that a lease can hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    /// Of what kind it is.
    pub kind: ResourceKind,
    /// Its name among its kind.
    pub id: String,
}

/// The kinds of things that a lease can hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceKind {
    /// A blob, by its digest.
    Content,
    /// An image, by its name.
    Image,
    /// An unfinished write, by its ref.
    Ingest,
    /// A snapshot of this snapshotter, by its key or name.
    Snapshot(String),
}

impl Resource {
    /// A blob.
    pub fn content(digest: &Digest) -> Self {
        Self { kind: ResourceKind::Content, id: digest.to_string() }
    }

    /// An image.
    pub fn image(name: &str) -> Self {
        Self { kind: ResourceKind::Image, id: name.to_owned() }
    }

    /// A snapshot.
    pub fn snapshot(snapshotter: &str, key: &str) -> Self {
        Self { kind: ResourceKind::Snapshot(snapshotter.to_owned()), id: key.to_owned() }
    }

    /// Checks a resource as a client names it.
    ///
    /// # Errors
    ///
    /// - `InvalidArgument`: the type has the wrong parts, or the ID is none of its kind.
    /// - `NotImplemented`: the type is not known.
    pub fn parse(kind: &str, id: &str) -> Result<Self, Error> {
        let kind: ResourceKind = kind.parse()?;
        if kind == ResourceKind::Content {
            let parsed: Result<Digest, _> = id.parse();
            parsed.map_err(|error| {
                Error::InvalidArgument(format!("invalid content resource id {id}: {error}"))
            })?;
        }
        Ok(Self { kind, id: id.to_owned() })
    }
}

impl FromStr for ResourceKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.split('/').collect();
        match *parts.as_slice() {
            ["content"] => Ok(Self::Content),
            ["images"] => Ok(Self::Image),
            ["ingests"] => Ok(Self::Ingest),
            ["snapshots", name] => Ok(Self::Snapshot(key::part(name)?.to_owned())),
            ["snapshots", ..] => {
                Err(Error::InvalidArgument(format!("invalid snapshot resource type {text}")))
            }
            ["content" | "images" | "ingests", ..] => {
                Err(Error::InvalidArgument(format!("invalid resource type {text}")))
            }
            _ => Err(Error::NotImplemented(format!("resource type {text} not supported yet"))),
        }
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Content => f.write_str("content"),
            Self::Image => f.write_str("images"),
            Self::Ingest => f.write_str("ingests"),
            Self::Snapshot(snapshotter) => write!(f, "snapshots/{snapshotter}"),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(btree_map = "string, string", tag = "1")]
    labels: Labels,
    #[prost(sint64, tag = "2")]
    created: i64,
}

impl Store {
    /// Makes a lease.
    ///
    /// # Errors
    ///
    /// - `InvalidArgument`: the name or a label is no good.
    /// - `AlreadyExists`.
    pub fn create_lease(
        &self,
        namespace: &Namespace,
        id: &str,
        labels: Labels,
    ) -> Result<Lease, Error> {
        if id.is_empty() {
            return Err(Error::InvalidArgument("lease id must be provided".to_owned()));
        }
        let lease = Lease {
            id: key::part(id)?.to_owned(),
            labels: checked("lease.Labels", labels)?,
            created: SystemTime::now(),
        };
        self.write(|changes| {
            namespaces::ensure(changes, namespace)?;
            if load(changes, namespace, id)?.is_some() {
                return Err(Error::AlreadyExists(format!("lease {id:?}")));
            }
            let record = Record {
                labels: lease.labels.clone(),
                created: record::nanoseconds(lease.created),
            };
            changes.put(Table::Leases, &key::of(namespace, id), record.encode_to_vec());
            Ok(lease)
        })
    }

    /// Deletes a lease; what only it held is garbage then.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn delete_lease(&self, namespace: &Namespace, id: &str) -> Result<(), Error> {
        self.write(|changes| {
            load(changes, namespace, id)?.ok_or_else(|| not_found(id))?;
            changes.remove(Table::Leases, &key::of(namespace, id));
            changes.remove_all(Table::LeaseResources, &key::prefix(&[namespace.as_str(), id]))
        })
    }

    /// The leases that `filter` selects, by name.
    ///
    /// # Errors
    ///
    /// `Database`, `Damaged`.
    pub fn leases(&self, namespace: &Namespace, filter: &Filter) -> Result<Vec<Lease>, Error> {
        self.read(|view| record::select(view, Table::Leases, namespace, filter, from_record))
    }

    /// Adds `resource`, which need not exist, to a lease.
    ///
    /// # Errors
    ///
    /// `NotFound`: there is no such lease.
    pub fn add_lease_resource(
        &self,
        namespace: &Namespace,
        id: &str,
        resource: &Resource,
    ) -> Result<(), Error> {
        self.write(|changes| {
            load(changes, namespace, id)?.ok_or_else(|| not_found(id))?;
            changes.put(Table::LeaseResources, &resource_key(namespace, id, resource), Vec::new());
            Ok(())
        })
    }

    /// Adds all of `resources` to a lease, in one transaction.
    ///
    /// # Errors
    ///
    /// `NotFound`: there is no such lease.
    pub(crate) fn add_lease_resources(
        &self,
        namespace: &Namespace,
        id: &str,
        resources: &[Resource],
    ) -> Result<(), Error> {
        self.write(|changes| {
            load(changes, namespace, id)?.ok_or_else(|| not_found(id))?;
            for resource in resources {
                let key = resource_key(namespace, id, resource);
                changes.put(Table::LeaseResources, &key, Vec::new());
            }
            Ok(())
        })
    }

    /// Takes `resource` from a lease, if that holds it.
    ///
    /// # Errors
    ///
    /// `NotFound`: there is no such lease.
    pub fn delete_lease_resource(
        &self,
        namespace: &Namespace,
        id: &str,
        resource: &Resource,
    ) -> Result<(), Error> {
        self.write(|changes| {
            load(changes, namespace, id)?.ok_or_else(|| not_found(id))?;
            changes.remove(Table::LeaseResources, &resource_key(namespace, id, resource));
            Ok(())
        })
    }

    /// What a lease holds.
    ///
    /// # Errors
    ///
    /// `NotFound`: there is no such lease.
    pub fn lease_resources(&self, namespace: &Namespace, id: &str) -> Result<Vec<Resource>, Error> {
        self.read(|view| {
            load(view, namespace, id)?.ok_or_else(|| not_found(id))?;
            let mut found = Vec::new();
            let prefix = key::prefix(&[namespace.as_str(), id]);
            view.scan(Table::LeaseResources, &prefix, &mut |key, _| {
                let [_, _, kind, id] = key::split(key)?;
                found.push(Resource { kind: kind.parse()?, id: id.to_owned() });
                Ok(())
            })?;
            Ok(found)
        })
    }

    /// Adds `resource` to the lease of `scope`, if it has one, before it is made; and makes the
    /// namespace, if this is the first object in it.
    ///
    /// # Errors
    ///
    /// `NotFound`: there is no such lease.
    pub fn lease(&self, scope: &Scope, resource: &Resource) -> Result<(), Error> {
        self.lease_seen(&self.referring(), scope, resource)
    }

    /// [`lease`](Self::lease), of a resource that was seen since the caller has
    /// [`Store::referring`].
    ///
    /// # Errors
    ///
    /// `NotFound`: there is no such lease.
    pub fn lease_seen(
        &self,
        _keep: &RwLockReadGuard<'_, ()>,
        scope: &Scope,
        resource: &Resource,
    ) -> Result<(), Error> {
        let name = scope.namespace.as_str().as_bytes();
        let exists = |view: &View| Ok(view.get(Table::Namespaces, name)?.is_some());
        if scope.lease.is_none() && self.read(exists)? {
            return Ok(());
        }
        self.write_while_collecting(|changes| {
            namespaces::ensure(changes, &scope.namespace)?;
            add(changes, scope, resource)
        })
    }

    /// Takes `resource`, which is gone, from the lease of `scope`, if it has one.
    ///
    /// # Errors
    ///
    /// `Database`.
    pub fn release(&self, scope: &Scope, resource: &Resource) -> Result<(), Error> {
        if scope.lease.is_none() {
            return Ok(());
        }
        self.write(|changes| {
            release(changes, scope, resource);
            Ok(())
        })
    }

    /// Whether there is the lease `id`.
    ///
    /// # Errors
    ///
    /// `Database`.
    pub(crate) fn has_lease(&self, namespace: &Namespace, id: &str) -> Result<bool, Error> {
        self.read(|view| Ok(view.get(Table::Leases, &key::of(namespace, id))?.is_some()))
    }

    /// The leases that hold `resource`.
    ///
    /// # Errors
    ///
    /// `Database`.
    pub(crate) fn holders(
        &self,
        namespace: &Namespace,
        resource: &Resource,
    ) -> Result<Vec<String>, Error> {
        self.read(|view| {
            let mut leases = Vec::new();
            view.scan(Table::Leases, &key::in_namespace(namespace), &mut |key, _| {
                let [_, id] = key::split(key)?;
                leases.push(id.to_owned());
                Ok(())
            })?;
            let mut holders = Vec::new();
            for id in leases {
                let held = resource_key(namespace, &id, resource);
                if view.get(Table::LeaseResources, &held)?.is_some() {
                    holders.push(id);
                }
            }
            Ok(holders)
        })
    }
}

impl Fields for Lease {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "id" => filter::value(&self.id),
            "labels" => filter::entry(&self.labels, rest),
            _ => None,
        }
    }
}

/// Adds `resource` to the scope's lease, if it has one.
pub(super) fn add(
    changes: &mut Changes<'_>,
    scope: &Scope,
    resource: &Resource,
) -> Result<(), Error> {
    let Some(id) = &scope.lease else { return Ok(()) };
    if load(changes, &scope.namespace, id)?.is_none() {
        return Err(Error::NotFound("lease does not exist".to_owned()));
    }
    changes.put(Table::LeaseResources, &resource_key(&scope.namespace, id, resource), Vec::new());
    Ok(())
}

/// Takes `resource` from the scope's lease, if it has one.
pub(super) fn release(changes: &mut Changes<'_>, scope: &Scope, resource: &Resource) {
    if let Some(id) = &scope.lease {
        changes.remove(Table::LeaseResources, &resource_key(&scope.namespace, id, resource));
    }
}

fn resource_key(namespace: &Namespace, lease: &str, resource: &Resource) -> Vec<u8> {
    key::join(&[namespace.as_str(), lease, &resource.kind.to_string(), &resource.id])
}

fn load(rows: &impl Rows, namespace: &Namespace, id: &str) -> Result<Option<Lease>, Error> {
    let value = rows.get(Table::Leases, &key::of(namespace, id))?;
    value.map(|value| from_record(id, &value)).transpose()
}

pub(super) fn from_record(id: &str, value: &[u8]) -> Result<Lease, Error> {
    let record: Record = decode(|| format!("lease {id:?}"), value)?;
    let created = record::time(record.created);
    Ok(Lease { id: id.to_owned(), labels: record.labels, created })
}

fn not_found(id: &str) -> Error {
    Error::NotFound(format!("lease {id:?}"))
}
