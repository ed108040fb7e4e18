//! The blobs' records: which namespace sees which, under which labels.
//!
//! The bytes are the [content store](crate::content)'s; it calls what is here.

use std::{borrow::Cow, time::SystemTime};

use prost::Message;

use super::{
    key,
    leases::{self, Resource},
    namespaces,
    record::{self, checked, decode},
    rows::{Changes, Rows, Table},
    store::Store,
};
use crate::{
    digest::Digest,
    error::Error,
    field_mask::{Path, set_entry},
    filter::{self, Fields, Filter},
    labels::Labels,
    namespace::{Namespace, Scope},
};

/// The label of a namespace whose blobs others may have without sending them.
const SHAREABLE: &str = "containerd.io/namespace.shareable";

/// A blob as one namespace sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentInfo {
    /// The blob's address.
    pub digest: Digest,
    /// Its size, in bytes.
    pub size: u64,
    /// Its labels in this namespace.
    pub labels: Labels,
    /// When it came into this namespace.
    pub created: SystemTime,
    /// When its labels were last changed.
    pub updated: SystemTime,
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(btree_map = "string, string", tag = "1")]
    labels: Labels,
    #[prost(sint64, tag = "2")]
    created: i64,
    #[prost(sint64, tag = "3")]
    updated: i64,
    #[prost(uint64, tag = "4")]
    size: u64,
}

impl Store {
    /// The blob `digest`.
    ///
    /// # Errors
    ///
    /// `NotFound`: the namespace does not have it.
    pub fn content(&self, namespace: &Namespace, digest: &Digest) -> Result<ContentInfo, Error> {
        self.read(|view| load(view, namespace, digest)?.ok_or_else(|| not_found(digest)))
    }

    /// The blobs that `filter` selects, by digest.
    ///
    /// # Errors
    ///
    /// `Database`, `Damaged`.
    pub fn contents(
        &self,
        namespace: &Namespace,
        filter: &Filter,
    ) -> Result<Vec<ContentInfo>, Error> {
        self.read(|view| {
            let mut found = Vec::new();
            view.scan(Table::Content, &key::in_namespace(namespace), &mut |key, value| {
                let [_, digest] = key::split(key)?;
                let info = from_record(&record::digest(|| "content".to_owned(), digest)?, value)?;
                if filter.matches(&info) {
                    found.push(info);
                }
                Ok(())
            })?;
            Ok(found)
        })
    }

    /// Whether a namespace has the blob that shares what it has with all others.
    pub(crate) fn shares_content(&self, digest: &Digest) -> Result<bool, Error> {
        self.read(|view| {
            let mut names = Vec::new();
            view.scan(Table::Namespaces, b"", &mut |key, value| {
                let namespace = namespaces::from_row(key, value)?;
                let shares = namespace.labels.get(SHAREABLE).is_some_and(|it| it == "true");
                names.extend(shares.then_some(namespace.name));
                Ok(())
            })?;
            for name in names {
                if view.get(Table::Content, &content_key(&name, digest))?.is_some() {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// Changes the labels that `mask` names, or without a mask all.
    ///
    /// # Errors
    ///
    /// - `NotFound`: the namespace does not have the blob.
    /// - `InvalidArgument`: a path names something else, or a label is too long.
    pub fn update_content(
        &self,
        namespace: &Namespace,
        digest: &Digest,
        new: &Labels,
        mask: &[String],
    ) -> Result<ContentInfo, Error> {
        self.write(|changes| {
            let info = load(changes, namespace, digest)?;
            let mut info = info.ok_or_else(|| not_found(digest))?;
            for path in mask {
                match Path::parse(path) {
                    Path::Entry("labels", key) => set_entry(&mut info.labels, key, new),
                    Path::Field("labels") => info.labels.clone_from(new),
                    _ => {
                        return Err(Error::InvalidArgument(format!(
                            "cannot update {path:?} field on content info \"{digest}\""
                        )));
                    }
                }
            }
            if mask.is_empty() {
                info.labels.clone_from(new);
            }
            info.labels = checked("info.Labels", info.labels)?;
            info.updated = SystemTime::now();
            put(changes, namespace, &info);
            Ok(info)
        })
    }

    /// Lets the namespace forget a blob; its bytes go when no namespace has it.
    ///
    /// # Errors
    ///
    /// `NotFound`: the namespace does not have it.
    pub fn delete_content(&self, scope: &Scope, digest: &Digest) -> Result<(), Error> {
        self.write(|changes| {
            load(changes, &scope.namespace, digest)?.ok_or_else(|| not_found(digest))?;
            leases::release(changes, scope, &Resource::content(digest));
            changes.remove(Table::Content, &content_key(&scope.namespace, digest));
            Ok(())
        })
    }

    /// Whether any namespace has the blob.
    ///
    /// # Errors
    ///
    /// `Database`.
    pub(crate) fn is_content_known(&self, digest: &Digest) -> Result<bool, Error> {
        self.read(|view| {
            let mut known = false;
            view.scan(Table::Namespaces, b"", &mut |name, _| {
                if !known {
                    let [name] = key::split(name)?;
                    let key = key::join(&[name, &digest.to_string()]);
                    known = view.get(Table::Content, &key)?.is_some();
                }
                Ok(())
            })?;
            Ok(known)
        })
    }

    /// Shows a blob to a namespace. Its bytes are on disk, and the caller keeps them from being
    /// swept away.
    ///
    /// # Errors
    ///
    /// - `AlreadyExists`: the namespace has it; it is added to the lease all the same.
    /// - `InvalidArgument`: a label is too long.
    /// - `NotFound`: there is no such lease.
    pub(crate) fn insert_content(
        &self,
        scope: &Scope,
        digest: &Digest,
        size: u64,
        labels: Labels,
    ) -> Result<(), Error> {
        let now = SystemTime::now();
        let labels = checked("info.Labels", labels)?;
        let info = ContentInfo { digest: digest.clone(), size, labels, created: now, updated: now };
        let exists = self.write(|changes| {
            namespaces::ensure(changes, &scope.namespace)?;
            leases::add(changes, scope, &Resource::content(digest))?;
            let exists = load(changes, &scope.namespace, digest)?.is_some();
            if !exists {
                put(changes, &scope.namespace, &info);
            }
            Ok(exists)
        })?;
        if exists { Err(already_exists(digest)) } else { Ok(()) }
    }
}

impl Fields for ContentInfo {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "digest" => Some(Cow::Owned(self.digest.to_string())),
            "labels" => filter::entry(&self.labels, rest),
            _ => None,
        }
    }
}

/// The error about a blob that the namespace has already.
pub(crate) fn already_exists(digest: &Digest) -> Error {
    Error::AlreadyExists(format!("content {digest}"))
}

fn content_key(namespace: &Namespace, digest: &Digest) -> Vec<u8> {
    key::of(namespace, &digest.to_string())
}

fn load(
    rows: &impl Rows,
    namespace: &Namespace,
    digest: &Digest,
) -> Result<Option<ContentInfo>, Error> {
    let value = rows.get(Table::Content, &content_key(namespace, digest))?;
    value.map(|value| from_record(digest, &value)).transpose()
}

pub(super) fn from_record(digest: &Digest, value: &[u8]) -> Result<ContentInfo, Error> {
    let record: Record = decode(|| format!("content {digest}"), value)?;
    Ok(ContentInfo {
        digest: digest.clone(),
        size: record.size,
        labels: record.labels,
        created: record::time(record.created),
        updated: record::time(record.updated),
    })
}

fn put(changes: &mut Changes<'_>, namespace: &Namespace, info: &ContentInfo) {
    let record = Record {
        labels: info.labels.clone(),
        created: record::nanoseconds(info.created),
        updated: record::nanoseconds(info.updated),
        size: info.size,
    };
    changes.put(Table::Content, &content_key(namespace, &info.digest), record.encode_to_vec());
}

fn not_found(digest: &Digest) -> Error {
    Error::NotFound(format!("content digest {digest}"))
}
