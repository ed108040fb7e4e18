//! The sandboxes' records: how to make a sandbox, not what runs it.

use std::{borrow::Cow, collections::BTreeMap, time::SystemTime};

use prost::Message;
use prost_types::Any;

use super::{
    containers::Runtime,
    key, namespaces,
    record::{self, checked, decode},
    rows::{Changes, Rows, Table},
    store::Store,
};
use crate::{
    error::Error,
    field_mask::{Path, replace, set_entry},
    filter::{self, Fields, Filter},
    identifier,
    labels::Labels,
    namespace::Namespace,
};

/// What containers share that run under one shim: a pod, in Kubernetes.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    /// Its name, an [identifier].
    pub id: String,
    /// Its labels.
    pub labels: Labels,
    /// What runs it.
    pub runtime: Runtime,
    /// What the runtime makes it from.
    pub spec: Option<Any>,
    /// The controller that runs it, such as `shim`; only a note.
    pub sandboxer: String,
    /// When it was made.
    pub created: SystemTime,
    /// When it was last changed.
    pub updated: SystemTime,
    /// What clients keep with it.
    pub extensions: BTreeMap<String, Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(btree_map = "string, string", tag = "1")]
    labels: Labels,
    #[prost(sint64, tag = "2")]
    created: i64,
    #[prost(sint64, tag = "3")]
    updated: i64,
    #[prost(string, tag = "4")]
    runtime: String,
    #[prost(message, optional, tag = "5")]
    runtime_options: Option<Any>,
    #[prost(message, optional, tag = "6")]
    spec: Option<Any>,
    #[prost(btree_map = "string, message", tag = "7")]
    extensions: BTreeMap<String, Any>,
    #[prost(string, tag = "8")]
    sandboxer: String,
}

impl Store {
    /// The sandbox `id`.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn sandbox(&self, namespace: &Namespace, id: &str) -> Result<Sandbox, Error> {
        self.read(|view| load(view, namespace, id)?.ok_or_else(|| not_found(id)))
    }

    /// The sandboxes that `filter` selects, by ID.
    ///
    /// # Errors
    ///
    /// `Database`, `Damaged`.
    pub fn sandboxes(&self, namespace: &Namespace, filter: &Filter) -> Result<Vec<Sandbox>, Error> {
        self.read(|view| record::select(view, Table::Sandboxes, namespace, filter, from_record))
    }

    /// Makes a sandbox's record; its times are those of the call.
    ///
    /// # Errors
    ///
    /// - `InvalidArgument`: something in it is no good.
    /// - `AlreadyExists`.
    pub fn create_sandbox(
        &self,
        namespace: &Namespace,
        mut sandbox: Sandbox,
    ) -> Result<Sandbox, Error> {
        sandbox.labels.retain(|_, value| !value.is_empty());
        check(&sandbox)?;
        sandbox.created = SystemTime::now();
        sandbox.updated = sandbox.created;
        self.write(|changes| {
            namespaces::ensure(changes, namespace)?;
            if load(changes, namespace, &sandbox.id)?.is_some() {
                return Err(Error::AlreadyExists(format!("sandbox {:?}", sandbox.id)));
            }
            put(changes, namespace, &sandbox);
            Ok(sandbox)
        })
    }

    /// Changes what `mask` names of the sandbox that `new` names; without a mask everything that
    /// may change.
    ///
    /// # Errors
    ///
    /// - `NotFound`.
    /// - `InvalidArgument`: a path cannot be updated, something immutable differs, or the result
    ///   is no good.
    pub fn update_sandbox(
        &self,
        namespace: &Namespace,
        new: &Sandbox,
        mask: &[String],
    ) -> Result<Sandbox, Error> {
        const MUTABLE: [&str; 4] = ["labels", "extensions", "spec", "runtime"];
        self.write(|changes| {
            let old = load(changes, namespace, &new.id)?;
            let mut sandbox = old.ok_or_else(|| not_found(&new.id))?;
            if mask.is_empty() {
                if sandbox.runtime.name != new.runtime.name {
                    let message = "sandbox.Runtime.Name field is immutable".to_owned();
                    return Err(Error::InvalidArgument(message));
                }
                for path in MUTABLE {
                    apply(path, &mut sandbox, new)?;
                }
            }
            for path in mask {
                apply(path, &mut sandbox, new)?;
            }
            check(&sandbox)?;
            sandbox.updated = SystemTime::now();
            put(changes, namespace, &sandbox);
            Ok(sandbox)
        })
    }

    /// Deletes a sandbox's record.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn delete_sandbox(&self, namespace: &Namespace, id: &str) -> Result<(), Error> {
        self.write(|changes| {
            let key = key::of(namespace, id);
            if changes.get(Table::Sandboxes, &key)?.is_none() {
                return Err(not_found(id));
            }
            changes.remove(Table::Sandboxes, &key);
            Ok(())
        })
    }
}

impl Fields for Sandbox {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "id" => filter::value(&self.id),
            "labels" => filter::entry(&self.labels, rest),
            _ => None,
        }
    }
}

fn not_found(id: &str) -> Error {
    Error::NotFound(format!("sandbox {id:?}"))
}

fn apply(path: &str, sandbox: &mut Sandbox, new: &Sandbox) -> Result<(), Error> {
    match Path::parse(path) {
        Path::Entry("labels", key) => set_entry(&mut sandbox.labels, key, &new.labels),
        Path::Entry("extensions", key) => {
            let extension = new.extensions.get(key).cloned().unwrap_or_default();
            sandbox.extensions.insert(key.to_owned(), extension);
        }
        Path::Field("labels") => {
            replace(&mut sandbox.labels, &new.labels);
        }
        Path::Field("extensions") => sandbox.extensions.clone_from(&new.extensions),
        Path::Field("spec") => sandbox.spec.clone_from(&new.spec),
        Path::Field("runtime") => sandbox.runtime.clone_from(&new.runtime),
        _ => {
            let id = &sandbox.id;
            let message = format!("cannot update {path:?} field on sandbox {id:?}");
            return Err(Error::InvalidArgument(message));
        }
    }
    Ok(())
}

fn check(sandbox: &Sandbox) -> Result<(), Error> {
    identifier::check(&sandbox.id)
        .map_err(|error| Error::InvalidArgument(format!("invalid sandbox ID: {error}")))?;
    if sandbox.extensions.contains_key("") {
        let message = "sandbox.Extension keys must not be zero-length".to_owned();
        return Err(Error::InvalidArgument(message));
    }
    checked("sandbox.Labels", sandbox.labels.clone())?;
    Ok(())
}

fn load(rows: &impl Rows, namespace: &Namespace, id: &str) -> Result<Option<Sandbox>, Error> {
    let value = rows.get(Table::Sandboxes, &key::of(namespace, id))?;
    value.map(|value| from_record(id, &value)).transpose()
}

pub(super) fn from_record(id: &str, value: &[u8]) -> Result<Sandbox, Error> {
    let record: Record = decode(|| format!("sandbox {id:?}"), value)?;
    Ok(Sandbox {
        id: id.to_owned(),
        labels: record.labels,
        runtime: Runtime { name: record.runtime, options: record.runtime_options },
        spec: record.spec,
        sandboxer: record.sandboxer,
        created: record::time(record.created),
        updated: record::time(record.updated),
        extensions: record.extensions,
    })
}

fn put(changes: &mut Changes<'_>, namespace: &Namespace, sandbox: &Sandbox) {
    let key = key::of(namespace, &sandbox.id);
    let sandbox = sandbox.clone();
    let record = Record {
        labels: sandbox.labels,
        created: record::nanoseconds(sandbox.created),
        updated: record::nanoseconds(sandbox.updated),
        runtime: sandbox.runtime.name,
        runtime_options: sandbox.runtime.options,
        spec: sandbox.spec,
        extensions: sandbox.extensions,
        sandboxer: sandbox.sandboxer,
    };
    changes.put(Table::Sandboxes, &key, record.encode_to_vec());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str) -> Sandbox {
        Sandbox {
            id: id.to_owned(),
            labels: Labels::from([("a".to_owned(), "1".to_owned())]),
            runtime: Runtime { name: "r".to_owned(), options: None },
            spec: Some(Any { type_url: "s".to_owned(), value: vec![1] }),
            sandboxer: "shim".to_owned(),
            created: SystemTime::UNIX_EPOCH,
            updated: SystemTime::UNIX_EPOCH,
            extensions: BTreeMap::from([("e".to_owned(), Any::default())]),
        }
    }

    #[test]
    fn kept_found_and_deleted() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("m.redb");
        let namespace: Namespace = "default".parse().expect("a namespace");
        let store = Store::open(&path).expect("opens");
        let made = store.create_sandbox(&namespace, sandbox("s1")).expect("made");
        store.create_sandbox(&namespace, sandbox("s2")).expect("made");
        let again = store.create_sandbox(&namespace, sandbox("s1"));
        assert!(matches!(again, Err(Error::AlreadyExists(_))), "{again:?}");
        let invalid = store.create_sandbox(&namespace, sandbox("../s"));
        assert!(matches!(invalid, Err(Error::InvalidArgument(_))), "{invalid:?}");
        drop(store);
        let store = Store::open(&path).expect("opens again");
        assert_eq!(store.sandbox(&namespace, "s1").expect("kept"), made);
        let filters = [
            ("all", vec![], 2),
            ("id", vec!["id==s2".to_owned()], 1),
            ("label", vec!["labels.a==1".to_owned()], 2),
            ("other label", vec!["labels.a==2".to_owned()], 0),
            ("no such field", vec!["runtime==r".to_owned()], 0),
        ];
        for (case, filters, want) in filters {
            let filter = Filter::parse_all(&filters).expect("a filter");
            let found = store.sandboxes(&namespace, &filter).expect("read");
            assert_eq!(found.len(), want, "{case}");
        }
        let other = "other".parse().expect("a namespace");
        assert!(matches!(store.sandbox(&other, "s1"), Err(Error::NotFound(_))));
        let full = store.delete_namespace("default", &[]);
        assert!(matches!(full, Err(Error::FailedPrecondition(_))), "{full:?}");
        for id in ["s1", "s2"] {
            store.delete_sandbox(&namespace, id).expect("deleted");
        }
        assert!(matches!(store.delete_sandbox(&namespace, "s1"), Err(Error::NotFound(_))));
        store.delete_namespace("default", &[]).expect("empty");
    }

    #[test]
    fn masks() {
        let new = Sandbox {
            labels: Labels::from([("b".to_owned(), "2".to_owned())]),
            spec: None,
            extensions: BTreeMap::new(),
            ..sandbox("s1")
        };
        let kept = sandbox("s1");
        let cases: [(&str, &[&str], Option<Sandbox>); 6] = [
            ("none", &[], Some(new.clone())),
            ("labels", &["labels"], Some(Sandbox { labels: new.labels.clone(), ..kept.clone() })),
            (
                "one label",
                &["labels.b"],
                Some(Sandbox {
                    labels: kept.labels.clone().into_iter().chain(new.labels.clone()).collect(),
                    ..kept.clone()
                }),
            ),
            (
                "a label that new lacks",
                &["labels.a"],
                Some(Sandbox { labels: Labels::new(), ..kept.clone() }),
            ),
            ("spec", &["spec"], Some(Sandbox { spec: None, ..kept.clone() })),
            ("immutable", &["sandboxer"], None),
        ];
        let namespace: Namespace = "default".parse().expect("a namespace");
        for (case, mask, want) in cases {
            let folder = tempfile::tempdir().expect("a temporary directory");
            let store = Store::open(&folder.path().join("m.redb")).expect("opens");
            let made = store.create_sandbox(&namespace, kept.clone()).expect("made");
            let mask: Vec<_> = mask.iter().map(|&path| path.to_owned()).collect();
            let got = store.update_sandbox(&namespace, &new, &mask).ok();
            if let Some(got) = &got {
                assert_eq!(got.created, made.created, "{case}");
                assert!(got.updated >= made.updated, "{case}");
            }
            let times = |sandbox: Sandbox| Sandbox {
                created: made.created,
                updated: made.updated,
                ..sandbox
            };
            assert_eq!(got.map(times), want.map(times), "{case}");
        }
    }
}
