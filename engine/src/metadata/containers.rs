//! The containers' records: how to make a task, not the task.

use std::{borrow::Cow, collections::BTreeMap, time::SystemTime};

use prost::Message;
use prost_types::Any;

use super::{
    key, namespaces,
    record::{self, Page, checked, decode},
    rows::{Changes, Rows, Table, View},
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

/// What a task is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// Its name, an [identifier].
    pub id: String,
    /// Its labels.
    pub labels: Labels,
    /// The name of the image that it was made from; only a note.
    pub image: String,
    /// What runs it.
    pub runtime: Runtime,
    /// The OCI runtime specification.
    pub spec: Option<Any>,
    /// The snapshotter of its root filesystem, or empty.
    pub snapshotter: String,
    /// The key of its root filesystem, or empty.
    pub snapshot_key: String,
    /// When it was made.
    pub created: SystemTime,
    /// When it was last changed.
    pub updated: SystemTime,
    /// What clients keep with it.
    pub extensions: BTreeMap<String, Any>,
    /// The sandbox that it belongs to, or empty.
    pub sandbox: String,
}

/// What runs a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Runtime {
    /// Such as `io.containerd.runc.v2`.
    pub name: String,
    /// The runtime's own options.
    pub options: Option<Any>,
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
    image: String,
    #[prost(string, tag = "5")]
    runtime: String,
    #[prost(message, optional, tag = "6")]
    runtime_options: Option<Any>,
    #[prost(message, optional, tag = "7")]
    spec: Option<Any>,
    #[prost(string, tag = "8")]
    snapshotter: String,
    #[prost(string, tag = "9")]
    snapshot_key: String,
    #[prost(btree_map = "string, message", tag = "10")]
    extensions: BTreeMap<String, Any>,
    #[prost(string, tag = "11")]
    sandbox: String,
}

/// What a [`Record`] has for collections of garbage; the rest of it, most of all the specification,
/// is passed over.
#[derive(Clone, PartialEq, Message)]
struct References {
    #[prost(btree_map = "string, string", tag = "1")]
    labels: Labels,
    #[prost(string, tag = "8")]
    snapshotter: String,
    #[prost(string, tag = "9")]
    snapshot_key: String,
}

/// What a [`Record`] has for filters; the rest of it is passed over.
#[derive(Clone, PartialEq, Message)]
struct Asked {
    #[prost(btree_map = "string, string", tag = "1")]
    labels: Labels,
    #[prost(string, tag = "4")]
    image: String,
    #[prost(string, tag = "5")]
    runtime: String,
}

/// A container as filters see it.
struct Shown<'r> {
    id: &'r str,
    record: Asked,
}

impl View {
    /// The container `id`.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn container(&self, namespace: &Namespace, id: &str) -> Result<Container, Error> {
        let not_found =
            || Error::NotFound(format!("container {id:?} in namespace \"{namespace}\""));
        load(self, namespace, id)?.ok_or_else(not_found)
    }
}

impl Store {
    /// The container `id`.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn container(&self, namespace: &Namespace, id: &str) -> Result<Container, Error> {
        self.read(|view| view.container(namespace, id))
    }

    /// The containers that `filter` selects, by ID.
    ///
    /// # Errors
    ///
    /// `Database`, `Damaged`.
    pub fn containers(
        &self,
        namespace: &Namespace,
        filter: &Filter,
    ) -> Result<Vec<Container>, Error> {
        let page = self.containers_after(namespace, filter, "", usize::MAX)?;
        Ok(page.objects)
    }

    /// [`containers`](Self::containers) that come after the ID `after` (the empty one comes before
    /// all), until their records are `len_max` bytes or more: a piece of a list that need not be in
    /// memory as a whole.
    ///
    /// Each piece is of the last commit, so a list shows every container that is there all the while,
    /// and what is made or deleted meanwhile or not.
    ///
    /// # Errors
    ///
    /// `Database`, `Damaged`.
    pub fn containers_after(
        &self,
        namespace: &Namespace,
        filter: &Filter,
        after: &str,
        len_max: usize,
    ) -> Result<Page<Container>, Error> {
        let read = |id: &str, value: &[u8]| selected(filter, id, value);
        self.read(|view| {
            record::select_after(view, Table::Containers, namespace, after, len_max, read)
        })
    }

    /// Makes a container; its times are those of the call.
    ///
    /// # Errors
    ///
    /// - `InvalidArgument`: something in it is no good.
    /// - `AlreadyExists`.
    pub fn create_container(
        &self,
        namespace: &Namespace,
        mut container: Container,
    ) -> Result<Container, Error> {
        container.labels.retain(|_, value| !value.is_empty());
        check(&container).map_err(prefixed("create container failed validation"))?;
        container.created = SystemTime::now();
        container.updated = container.created;
        self.write(|changes| {
            namespaces::ensure(changes, namespace)?;
            if load(changes, namespace, &container.id)?.is_some() {
                return Err(Error::AlreadyExists(format!("container {:?}", container.id)));
            }
            put(changes, namespace, &container);
            Ok(container)
        })
    }

    /// Changes what `mask` names of the container that `new` names; without a mask everything that
    /// may change.
    ///
    /// # Errors
    ///
    /// - `NotFound`.
    /// - `InvalidArgument`: a path cannot be updated, something immutable differs, or the result
    ///   is no good.
    pub fn update_container(
        &self,
        namespace: &Namespace,
        new: &Container,
        mask: &[String],
    ) -> Result<Container, Error> {
        const MUTABLE: [&str; 5] = ["labels", "spec", "extensions", "image", "snapshotkey"];
        if new.id.is_empty() {
            return Err(Error::InvalidArgument("must specify a container id".to_owned()));
        }
        self.write(|changes| {
            let old = load(changes, namespace, &new.id)?;
            let mut container =
                old.ok_or_else(|| Error::NotFound(format!("container {:?}", new.id)))?;
            if mask.is_empty() {
                immutable("Snapshotter", &container.snapshotter, &new.snapshotter)?;
                immutable("Runtime.Name", &container.runtime.name, &new.runtime.name)?;
                for path in MUTABLE {
                    apply(path, &mut container, new)?;
                }
            }
            for path in mask {
                apply(path, &mut container, new)?;
            }
            check(&container).map_err(prefixed("update failed validation"))?;
            container.updated = SystemTime::now();
            put(changes, namespace, &container);
            Ok(container)
        })
    }

    /// Deletes a container's record.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn delete_container(&self, namespace: &Namespace, id: &str) -> Result<(), Error> {
        self.write(|changes| {
            let key = key::of(namespace, id);
            if changes.get(Table::Containers, &key)?.is_none() {
                return Err(Error::NotFound(format!("container {id}")));
            }
            changes.remove(Table::Containers, &key);
            Ok(())
        })
    }
}

impl Fields for Shown<'_> {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        let (first, rest) = path.split_first()?;
        match (first.as_str(), rest) {
            ("id", _) => filter::value(self.id),
            ("runtime", [field, ..]) if field == "name" => filter::value(&self.record.runtime),
            ("image", _) => filter::value(&self.record.image),
            ("labels", key) => filter::entry(&self.record.labels, key),
            _ => None,
        }
    }
}

/// The container of a record, if `filter` selects it; of others only what filters ask for is read.
fn selected(filter: &Filter, id: &str, value: &[u8]) -> Result<Option<Container>, Error> {
    let is_selected = filter.selects_all() || {
        let record = decode(|| format!("container {id:?}"), value)?;
        filter.matches(&Shown { id, record })
    };
    is_selected.then(|| from_record(id, value)).transpose()
}

fn immutable(field: &str, old: &str, new: &str) -> Result<(), Error> {
    if old == new {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("container.{field} field is immutable")))
}

fn apply(path: &str, container: &mut Container, new: &Container) -> Result<(), Error> {
    match Path::parse(path) {
        Path::Entry("labels", key) => set_entry(&mut container.labels, key, &new.labels),
        Path::Entry("extensions", key) => {
            let extension = new.extensions.get(key).cloned().unwrap_or_default();
            container.extensions.insert(key.to_owned(), extension);
        }
        Path::Field("labels") => {
            replace(&mut container.labels, &new.labels);
        }
        Path::Field("spec") => container.spec.clone_from(&new.spec),
        Path::Field("extensions") => container.extensions.clone_from(&new.extensions),
        Path::Field("image") => container.image.clone_from(&new.image),
        Path::Field("snapshotkey") => container.snapshot_key.clone_from(&new.snapshot_key),
        _ => {
            let id = &container.id;
            let message = format!("cannot update {path:?} field on {id:?}");
            return Err(Error::InvalidArgument(message));
        }
    }
    Ok(())
}

fn check(container: &Container) -> Result<(), Error> {
    let invalid = |message: &str| Err(Error::InvalidArgument(message.to_owned()));
    identifier::check(&container.id)
        .map_err(|error| Error::InvalidArgument(format!("container.ID: {error}")))?;
    if container.extensions.contains_key("") {
        return invalid("container.Extension keys must not be zero-length");
    }
    checked("containers.Labels", container.labels.clone())?;
    if container.runtime.name.is_empty() {
        return invalid("container.Runtime.Name must be set");
    }
    if container.spec.is_none() {
        return invalid("container.Spec must be set");
    }
    if !container.snapshot_key.is_empty() && container.snapshotter.is_empty() {
        return invalid("container.Snapshotter must be set if container.SnapshotKey is set");
    }
    Ok(())
}

fn prefixed(prefix: &'static str) -> impl FnOnce(Error) -> Error {
    move |error| match error {
        Error::InvalidArgument(message) => Error::InvalidArgument(format!("{prefix}: {message}")),
        other => other,
    }
}

fn load(rows: &impl Rows, namespace: &Namespace, id: &str) -> Result<Option<Container>, Error> {
    let value = rows.get(Table::Containers, &key::of(namespace, id))?;
    value.map(|value| from_record(id, &value)).transpose()
}

pub(super) fn from_record(id: &str, value: &[u8]) -> Result<Container, Error> {
    let record: Record = decode(|| format!("container {id:?}"), value)?;
    Ok(Container {
        id: id.to_owned(),
        labels: record.labels,
        image: record.image,
        runtime: Runtime { name: record.runtime, options: record.runtime_options },
        spec: record.spec,
        snapshotter: record.snapshotter,
        snapshot_key: record.snapshot_key,
        created: record::time(record.created),
        updated: record::time(record.updated),
        extensions: record.extensions,
        sandbox: record.sandbox,
    })
}

/// The container of a record with what collections of garbage ask for, and nothing else of it.
pub(super) fn bare(id: &str, value: &[u8]) -> Result<Container, Error> {
    let record: References = decode(|| format!("container {id:?}"), value)?;
    Ok(Container {
        id: id.to_owned(),
        labels: record.labels,
        image: String::new(),
        runtime: Runtime::default(),
        spec: None,
        snapshotter: record.snapshotter,
        snapshot_key: record.snapshot_key,
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
        extensions: BTreeMap::new(),
        sandbox: String::new(),
    })
}

fn put(changes: &mut Changes<'_>, namespace: &Namespace, container: &Container) {
    let key = key::of(namespace, &container.id);
    let container = container.clone();
    let record = Record {
        labels: container.labels,
        created: record::nanoseconds(container.created),
        updated: record::nanoseconds(container.updated),
        image: container.image,
        runtime: container.runtime.name,
        runtime_options: container.runtime.options,
        spec: container.spec,
        snapshotter: container.snapshotter,
        snapshot_key: container.snapshot_key,
        extensions: container.extensions,
        sandbox: container.sandbox,
    };
    changes.put(Table::Containers, &key, record.encode_to_vec());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_container_has_what_it_keeps() {
        let any = Any { type_url: "types/x".to_owned(), value: vec![1] };
        let record = Record {
            labels: [("a".to_owned(), "b".to_owned())].into(),
            created: 1,
            updated: 2,
            image: "image".to_owned(),
            runtime: "runtime".to_owned(),
            runtime_options: Some(any.clone()),
            spec: Some(any.clone()),
            snapshotter: "overlayfs".to_owned(),
            snapshot_key: "key".to_owned(),
            extensions: [("x".to_owned(), any)].into(),
            sandbox: "sandbox".to_owned(),
        };
        let value = record.encode_to_vec();
        let whole = from_record("c", &value).expect("reads");
        let bare = bare("c", &value).expect("reads");
        let kept = |it: &Container| {
            (it.id.clone(), it.labels.clone(), it.snapshotter.clone(), it.snapshot_key.clone())
        };
        assert_eq!(kept(&bare), kept(&whole));
        assert_eq!((bare.spec, bare.extensions.len()), (None, 0), "the rest is passed over");
    }

    /// A store with containers of 1000 bytes and more: of a namespace, of one whose name begins with
    /// its name, and of one before it.
    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(&folder.path().join("m.redb")).expect("opens");
        for (namespace, id) in
            [("m", "z"), ("n", "a"), ("n", "b"), ("n", "b.c"), ("n", "d"), ("nn", "a")]
        {
            let namespace = namespace.parse().expect("a namespace");
            let container = Container {
                id: id.to_owned(),
                labels: [("dotted".to_owned(), id.contains('.').to_string())].into(),
                image: format!("image of {id}"),
                runtime: Runtime { name: "r".to_owned(), options: None },
                spec: Some(Any { type_url: "types/x".to_owned(), value: vec![1; 1000] }),
                snapshotter: String::new(),
                snapshot_key: String::new(),
                created: SystemTime::UNIX_EPOCH,
                updated: SystemTime::UNIX_EPOCH,
                extensions: BTreeMap::new(),
                sandbox: String::new(),
            };
            store.create_container(&namespace, container).expect("creates");
        }
        (folder, store)
    }

    #[test]
    fn a_list_in_pieces_is_the_list() {
        let (_folder, store) = store();
        let namespace: Namespace = "n".parse().expect("a namespace");
        /// The filters, how many bytes a piece has, and what is in the pieces.
        type Case = (&'static [&'static str], usize, &'static [&'static [&'static str]]);
        let cases: [(&str, Case); 7] = [
            ("one by one", (&[], 1, &[&["a"], &["b"], &["b.c"], &["d"], &[]])),
            ("two by two", (&[], 1500, &[&["a", "b"], &["b.c", "d"], &[]])),
            ("all at once", (&[], usize::MAX, &[&["a", "b", "b.c", "d"]])),
            ("some", (&["id~=/^[ab]$/"], 1, &[&["a"], &["b"], &[]])),
            ("by its image", (&["image==\"image of d\""], usize::MAX, &[&["d"]])),
            ("by a label", (&["labels.dotted==false"], usize::MAX, &[&["a", "b", "d"]])),
            ("by its runtime", (&["runtime.name!=r", "id==b.c"], 1, &[&["b.c"], &[]])),
        ];
        for (case, (filters, len_max, want)) in cases {
            let filter = Filter::parse_all(filters).expect("a filter");
            let (mut pieces, mut whole) = (Vec::new(), Vec::new());
            let mut next = Some(String::new());
            while let Some(after) = next {
                let page = store.containers_after(&namespace, &filter, &after, len_max);
                let page = page.expect("lists");
                pieces.push(page.objects.iter().map(|it| it.id.clone()).collect::<Vec<_>>());
                whole.extend(page.objects);
                next = page.next;
            }
            assert_eq!(pieces, want, "{case}");
            let listed = store.containers(&namespace, &filter).expect("lists");
            assert_eq!(whole, listed, "{case}: whole");
        }
    }
}
