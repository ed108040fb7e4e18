use super::*;
use crate::{
    digest::Algorithm,
    labels::Labels,
    metadata::{Resource, ResourceKind},
};

/// A store with nothing in it.
pub(crate) struct Fixture {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) scope: Scope,
}

pub(crate) fn fixture() -> Fixture {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let metadata = metadata::Store::open(&folder.path().join("m.redb")).expect("opens");
    let store = Store::open(&folder.path().join("content"), metadata).expect("opens");
    let scope = Scope::new("default".parse().expect("a namespace"));
    Fixture { folder, store, scope }
}

pub(super) fn other() -> Scope {
    Scope::new("other".parse().expect("a namespace"))
}

impl Fixture {
    fn write(&self, reference: &str, bytes: &[u8]) -> Writer {
        let mut writer = self.store.writer(&self.scope, NewWrite::new(reference)).expect("opens");
        writer.write(bytes).expect("writes");
        writer
    }
}

#[test]
fn a_blob_is_what_was_written() {
    let f = fixture();
    let labels = Labels::from([("a".to_owned(), "b".to_owned())]);
    let committed = f.write("r", b"hello").commit(5, None, labels.clone()).expect("commits");
    assert_eq!(committed.digest, Digest::of(b"hello"));
    let info = f.store.info(&f.scope.namespace, &committed.digest).expect("is there");
    assert_eq!((info.size, info.labels), (5, labels));
    let blob = f.store.blob(&f.scope.namespace, &committed.digest).expect("opens");
    assert_eq!(blob.read_all(5).expect("reads"), b"hello");
    let mut middle = [0; 8];
    assert_eq!(blob.read_at(&mut middle, 3).expect("reads"), 2);
    assert!(f.store.statuses(&f.scope.namespace, &Filter::default()).expect("lists").is_empty());
    assert!(f.store.info(&other().namespace, &committed.digest).is_err(), "other namespace");
}

#[test]
fn a_write_goes_on_where_it_stopped() {
    let f = fixture();
    drop(f.write("r", b"hel"));
    let status = f.store.status(&f.scope.namespace, "r").expect("is there");
    assert_eq!((status.reference.as_str(), status.offset), ("r", 3));
    let mut writer = f.store.writer(&f.scope, NewWrite::new("r")).expect("opens");
    assert_eq!(writer.offset(), 3);
    writer.write(b"lo").expect("writes");
    let expected = Digest::of(b"hello");
    assert_eq!(writer.digest(), Some(expected.clone()));
    writer.commit(0, Some(&expected), Labels::new()).expect("commits");
}

#[test]
fn a_ref_has_one_writer() {
    let f = fixture();
    let writer = f.write("r", b"x");
    let error = f.store.writer(&f.scope, NewWrite::new("r")).err().expect("is locked");
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    f.store.writer(&other(), NewWrite::new("r")).expect("another namespace's ref is another");
    drop(writer);
    f.store.writer(&f.scope, NewWrite::new("r")).expect("is free again");
}

#[test]
fn a_wrong_commit_keeps_the_write() {
    let f = fixture();
    let error = f.write("r", b"x").commit(2, None, Labels::new()).expect_err("wrong size");
    assert!(matches!(error, Error::FailedPrecondition(_)), "{error}");
    let writer = f.store.writer(&f.scope, NewWrite::new("r")).expect("opens");
    assert_eq!(writer.offset(), 1);
    let wrong = Digest::of(b"y");
    let error = writer.commit(1, Some(&wrong), Labels::new()).expect_err("wrong digest");
    assert!(error.to_string().contains("unexpected commit digest"), "{error}");
    assert_eq!(f.store.status(&f.scope.namespace, "r").expect("stays").offset, 1);
    assert!(!f.store.path(&wrong).exists());
}

#[test]
fn blobs_are_shared() {
    let f = fixture();
    let digest = f.store.put(&f.scope, b"hello", Labels::new()).expect("writes");
    let mut new = NewWrite::new("r");
    new.expected = Some(digest.clone());
    let error = f.store.writer(&f.scope, new.clone()).err().expect("is there");
    assert!(matches!(error, Error::AlreadyExists(_)), "{error}");
    let writer = f.store.writer(&other(), new.clone()).expect("opens");
    assert_eq!((writer.is_shared(), writer.offset()), (true, 5));
    writer.commit(5, Some(&digest), Labels::new()).expect("commits without bytes");
    assert_eq!(f.store.info(&other().namespace, &digest).expect("is there").size, 5);
}

#[test]
fn isolated_blobs_are_shared_by_namespaces_that_want_it() {
    let Fixture { folder: _folder, store, scope } = fixture();
    let store = store.isolated();
    let digest = store.put(&scope, b"hello", Labels::new()).expect("writes");
    let new = NewWrite { expected: Some(digest.clone()), ..NewWrite::new("r") };
    let mut writer = store.writer(&other(), new.clone()).expect("opens");
    assert_eq!((writer.is_shared(), writer.offset()), (false, 0));
    writer.write(b"hello").expect("writes");
    writer.commit(5, Some(&digest), Labels::new()).expect("commits");
    let labels = [("containerd.io/namespace.shareable".to_owned(), "true".to_owned())].into();
    let mask = ["labels.containerd.io/namespace.shareable".to_owned()];
    store.metadata().update_namespace(&scope.namespace, &labels, &mask).expect("updates");
    let third = Scope::new("third".parse().expect("a namespace"));
    assert!(store.writer(&third, new).expect("opens").is_shared());
}

#[test]
fn a_shared_blob_stays_while_its_writer_is_open() {
    let f = fixture();
    let digest = f.write("r", b"hello").commit(0, None, Labels::new()).expect("commits").digest;
    let new = NewWrite { expected: Some(digest.clone()), ..NewWrite::new("r") };
    let writer = f.store.writer(&other(), new.clone()).expect("opens");
    f.store.metadata().delete_content(&f.scope, &digest).expect("deletes");
    assert_eq!(f.store.sweep(&HashSet::new()).expect("sweeps"), []);
    writer.commit(0, None, Labels::new()).expect("commits");
    assert_eq!(f.store.sweep(&HashSet::new()).expect("sweeps"), [], "it has a record");
    drop(f.store.writer(&f.scope, new).expect("opens"));
    f.store.metadata().delete_content(&other(), &digest).expect("deletes");
    assert_eq!(f.store.sweep(&HashSet::new()).expect("sweeps"), [digest]);
}

#[test]
fn a_shared_blob_that_is_lost_is_not_committed() {
    let f = fixture();
    let digest = f.write("r", b"hello").commit(0, None, Labels::new()).expect("commits").digest;
    let new = NewWrite { expected: Some(digest.clone()), ..NewWrite::new("r") };
    let writer = f.store.writer(&other(), new).expect("opens");
    assert!(writer.is_shared());
    f.store.metadata().delete_content(&f.scope, &digest).expect("deletes");
    fs::remove_file(f.store.path(&digest)).expect("removes");
    let error = writer.commit(0, None, Labels::new()).expect_err("is gone");
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    let info = f.store.info(&other().namespace, &digest);
    assert!(matches!(info, Err(Error::NotFound(_))), "{info:?}");
}

#[test]
fn a_shared_blob_is_copied_when_written_to() {
    let f = fixture();
    let digest = f.store.put(&f.scope, b"hello", Labels::new()).expect("writes");
    let mut new = NewWrite::new("r");
    new.expected = Some(digest);
    let mut writer = f.store.writer(&other(), new).expect("opens");
    writer.write(b"!").expect("writes");
    let committed = writer.commit(6, None, Labels::new()).expect("commits");
    assert_eq!(committed.digest, Digest::of(b"hello!"));
}

#[test]
fn the_algorithm_is_found_out_at_the_commit() {
    let f = fixture();
    for algorithm in Algorithm::ALL {
        let name = algorithm.name();
        let mut hasher = crate::digest::Hasher::new(algorithm);
        hasher.update(b"hello");
        let expected = hasher.finish();
        f.write(name, b"hello").commit(5, Some(&expected), Labels::new()).expect(name);
        f.store.blob(&f.scope.namespace, &expected).expect(name);
    }
}

#[test]
fn a_caller_may_hash() {
    let f = fixture();
    let mut new = NewWrite::new("r");
    new.hashing = Hashing::Caller;
    let mut writer = f.store.writer(&f.scope, new.clone()).expect("opens");
    writer.write(b"hello").expect("writes");
    let digest = Digest::of(b"hello");
    writer.commit(5, Some(&digest), Labels::new()).expect("commits");
    let writer = f.store.writer(&f.scope, new).expect("opens");
    let error = writer.commit(0, None, Labels::new()).expect_err("nobody has hashed");
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
}

#[test]
fn sweep_removes_what_nobody_keeps() {
    let f = fixture();
    let kept = f.store.put(&f.scope, b"kept", Labels::new()).expect("writes");
    let gone = f.store.put(&f.scope, b"gone", Labels::new()).expect("writes");
    let _open = f.write("open", b"x");
    drop(f.write("recent", b"x"));
    let leased = Scope { lease: Some("l".to_owned()), ..f.scope.clone() };
    drop(f.store.writer(&leased, NewWrite::new("leased by nobody")).expect("opens"));
    let live = Scope { lease: Some("m".to_owned()), ..f.scope.clone() };
    f.store.metadata().create_lease(&f.scope.namespace, "m", Labels::new()).expect("creates");
    drop(f.store.writer(&leased, NewWrite::new("leased")).expect("opens"));
    drop(f.store.writer(&live, NewWrite::new("leased")).expect("opens"));
    drop(f.store.writer(&leased, NewWrite::new("held")).expect("opens"));
    let held = Resource { kind: ResourceKind::Ingest, id: "held".to_owned() };
    f.store.metadata().add_lease_resource(&f.scope.namespace, "m", &held).expect("adds");
    let cut_short = f.store.inner.root.join("ingest/0123");
    fs::create_dir(&cut_short).expect("creates");
    f.store.metadata().delete_content(&f.scope, &gone).expect("deletes");
    let removed = f.store.sweep(&HashSet::from([kept.clone()])).expect("sweeps");
    assert_eq!(removed, [gone]);
    assert!(!cut_short.exists(), "a write without a ref");
    assert_eq!(names(&f.store.inner.root.join("gone")).expect("lists"), Vec::<String>::new());
    assert!(f.store.path(&kept).exists());
    let left = f.store.statuses(&f.scope.namespace, &Filter::default()).expect("lists");
    let mut left: Vec<_> = left.into_iter().map(|status| status.reference).collect();
    left.sort();
    assert_eq!(left, ["held", "leased", "open", "recent"]);
}
