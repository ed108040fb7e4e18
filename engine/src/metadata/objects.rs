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
    walk(rows, content_of, visit)
}

/// [`each`], of containers only with what keeps something: labels and snapshot. Their specifications
/// are most of what there is.
pub(crate) fn each_keeper(
    rows: &impl Rows,
    visit: &mut dyn FnMut(Namespace, Object) -> Result<(), Error>,
) -> Result<(), Error> {
    let read = |table, key: &[u8], value: &[u8]| {
        if table != Table::Containers {
            return content_of(table, key, value);
        }
        let [_, id] = key::split(key)?;
        Ok(Object::Container(containers::bare(id, value)?))
    };
    walk(rows, read, visit)
}

fn walk(
    rows: &impl Rows,
    read: impl Fn(Table, &[u8], &[u8]) -> Result<Object, Error>,
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
    // Mostly that of the row before.
    let mut last: Option<Namespace> = None;
    for table in TABLES {
        rows.scan(table, b"", &mut |key, value| {
            let [name, _] = key::split(key)?;
            let namespace = match last.take() {
                Some(namespace) if namespace.as_str() == name => namespace,
                _ => name.parse()?,
            };
            last = Some(namespace.clone());
            visit(namespace, read(table, key, value)?)
        })?;
    }
    Ok(())
}

/// The object of a row of any table but that of namespaces.
pub(crate) fn object(table: Table, key: &[u8], value: &[u8]) -> Result<(Namespace, Object), Error> {
    let [namespace, _] = key::split(key)?;
    Ok((namespace.parse()?, content_of(table, key, value)?))
}

fn content_of(table: Table, key: &[u8], value: &[u8]) -> Result<Object, Error> {
    let [_, name] = key::split(key)?;
    Ok(match table {
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
            let digest = record::digest(|| "content".to_owned(), name)?;
            Object::Content(content::from_record(&digest, value)?)
        }
        Table::Namespaces => unreachable!("no object of a namespace"),
    })
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
