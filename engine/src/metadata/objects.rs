//! Every object of every namespace, for whoever looks at the whole.

use super::{
    containers::{self, Container},
    content::{self, ContentInfo},
    images::{self, Image},
    key,
    leases::{self, Lease, Resource},
    record,
    rows::{Changes, Rows, Table},
    sandboxes::{self, Sandbox},
};
use crate::{digest::Digest, error::Error, namespace::Namespace};

/// An object of a namespace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Object {
    Lease(Lease),
    Leased { lease: String, resource: Resource },
    Image(Image),
    Container(Container),
    Sandbox(Sandbox),
    Content(ContentInfo),
}

/// Calls `visit` for every object: leases first, then what they hold, then the rest.
pub(crate) fn each(
    rows: &impl Rows,
    visit: &mut dyn FnMut(Namespace, Object) -> Result<(), Error>,
) -> Result<(), Error> {
    const TABLES: [Table; 6] = [
        Table::Leases,
        Table::LeaseResources,
        Table::Images,
        Table::Containers,
        Table::Sandboxes,
        Table::Content,
    ];
    for table in TABLES {
        rows.scan(table, b"", &mut |key, value| {
            let (namespace, object) = object(table, key, value)?;
            visit(namespace, object)
        })?;
    }
    Ok(())
}

/// The object of a row of any table but that of namespaces.
pub(crate) fn object(table: Table, key: &[u8], value: &[u8]) -> Result<(Namespace, Object), Error> {
    let [namespace, name] = key::split(key)?;
    let object = match table {
        Table::Leases => Object::Lease(leases::from_record(name, value)?),
        Table::LeaseResources => {
            let [_, lease, kind, id] = key::split(key)?;
            let resource = Resource { kind: kind.parse()?, id: id.to_owned() };
            Object::Leased { lease: lease.to_owned(), resource }
        }
        Table::Images => Object::Image(images::from_record(name, value)?),
        Table::Containers => Object::Container(containers::from_record(name, value)?),
        Table::Sandboxes => Object::Sandbox(sandboxes::from_record(name, value)?),
        Table::Content => {
            let digest = record::digest("content", name)?;
            Object::Content(content::from_record(&digest, value)?)
        }
        Table::Namespaces => unreachable!("no object of a namespace"),
    };
    Ok((namespace.parse()?, object))
}

/// Removes the record of an image, whatever it stands for.
pub(crate) fn remove_image(changes: &mut Changes<'_>, namespace: &Namespace, name: &str) {
    changes.remove(Table::Images, &key::of(namespace, name));
}

/// Removes the record of a blob.
pub(crate) fn remove_content(changes: &mut Changes<'_>, namespace: &Namespace, digest: &Digest) {
    changes.remove(Table::Content, &key::of(namespace, &digest.to_string()));
}

/// Removes the record of a lease, and of what it holds.
pub(crate) fn remove_lease(
    changes: &mut Changes<'_>,
    namespace: &Namespace,
    id: &str,
) -> Result<(), Error> {
    changes.remove(Table::Leases, &key::of(namespace, id));
    changes.remove_all(Table::LeaseResources, &key::prefix(&[namespace.as_str(), id]))
}
