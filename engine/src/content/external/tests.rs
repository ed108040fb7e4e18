//! Against a program that forgets nothing and does no more than it must.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex},
};

use super::*;
use crate::{
    content::{NewWrite, Writer, tests::other},
    labels::Labels,
    metadata,
    namespace::Scope,
};

/// What the program has, by namespace if it goes by those.
#[derive(Debug, Default, PartialEq)]
struct Kept {
    blobs: BTreeMap<(String, Digest), Vec<u8>>,
    writes: BTreeMap<(String, String), Vec<u8>>,
    is_away: bool,
    insists: bool,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Kept>>);

struct Open {
    fake: Fake,
    name: (String, String),
    offset: u64,
}

fn refused(reason: Reason) -> Refused {
    Refused { reason, message: "the fake says no".to_owned() }
}

impl Fake {
    fn with<T>(&self, act: impl FnOnce(&mut Kept) -> Result<T, Refused>) -> Result<T, Refused> {
        let mut kept = self.0.lock().expect("no panic");
        if kept.is_away {
            return Err(refused(Reason::Unavailable));
        }
        act(&mut kept)
    }

    fn change(&self, act: impl FnOnce(&mut Kept)) {
        act(&mut self.0.lock().expect("no panic"));
    }

    fn count(&self) -> (usize, usize) {
        let kept = self.0.lock().expect("no panic");
        (kept.blobs.len(), kept.writes.len())
    }
}

impl Kept {
    /// The part of a key that is a namespace.
    fn place(&self, namespace: Option<&Namespace>) -> Result<String, Refused> {
        match (self.insists, namespace) {
            (false, _) => Ok(String::new()),
            (true, Some(namespace)) => Ok(namespace.to_string()),
            (true, None) => Err(refused(Reason::FailedPrecondition)),
        }
    }
}

impl Backend for Fake {
    fn size(&self, namespace: &Namespace, digest: &Digest) -> Result<Option<u64>, Refused> {
        self.with(|kept| {
            let place = kept.place(Some(namespace))?;
            Ok(kept.blobs.get(&(place, digest.clone())).map(|bytes| bytes.len() as u64))
        })
    }

    fn read(
        &self,
        namespace: &Namespace,
        digest: &Digest,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, Refused> {
        self.with(|kept| {
            let place = kept.place(Some(namespace))?;
            let bytes = kept.blobs.get(&(place, digest.clone()));
            let bytes = bytes.ok_or_else(|| refused(Reason::NotFound))?;
            Ok(bytes.iter().skip(offset as usize).take(len).copied().collect())
        })
    }

    fn write(
        &self,
        namespace: &Namespace,
        reference: &str,
        _total: u64,
    ) -> Result<Box<dyn Session>, Refused> {
        let (name, offset) = self.with(|kept| {
            let name = (kept.place(Some(namespace))?, reference.to_owned());
            let bytes = kept.writes.entry(name.clone()).or_default();
            Ok((name, bytes.len() as u64))
        })?;
        Ok(Box::new(Open { fake: self.clone(), name, offset }))
    }

    fn progress(
        &self,
        namespace: &Namespace,
        reference: &str,
    ) -> Result<Option<Progress>, Refused> {
        self.with(|kept| {
            let name = (kept.place(Some(namespace))?, reference.to_owned());
            let progress = |bytes: &Vec<u8>| Progress {
                offset: bytes.len() as u64,
                updated: SystemTime::UNIX_EPOCH,
            };
            Ok(kept.writes.get(&name).map(progress))
        })
    }

    fn abort(&self, namespace: Option<&Namespace>, reference: &str) -> Result<(), Refused> {
        self.with(|kept| {
            let name = (kept.place(namespace)?, reference.to_owned());
            kept.writes.remove(&name);
            Ok(())
        })
    }

    fn remove(&self, namespace: Option<&Namespace>, digest: &Digest) -> Result<(), Refused> {
        self.with(|kept| {
            let place = kept.place(namespace)?;
            kept.blobs.remove(&(place, digest.clone()));
            Ok(())
        })
    }

    fn blobs(&self, namespace: Option<&Namespace>) -> Result<Vec<Digest>, Refused> {
        self.with(|kept| {
            let place = kept.place(namespace)?;
            let names = kept.blobs.keys().filter(|(there, _)| *there == place);
            Ok(names.map(|(_, digest)| digest.clone()).collect())
        })
    }

    fn references(&self, namespace: Option<&Namespace>) -> Result<Vec<String>, Refused> {
        self.with(|kept| {
            let place = kept.place(namespace)?;
            let names = kept.writes.keys().filter(|(there, _)| *there == place);
            Ok(names.map(|(_, reference)| reference.clone()).collect())
        })
    }
}

impl Session for Open {
    fn offset(&self) -> u64 {
        self.offset
    }

    fn digest(&self) -> Option<Digest> {
        let kept = self.fake.0.lock().expect("no panic");
        kept.writes.get(&self.name).map(|bytes| Digest::of(bytes))
    }

    fn rewind(&mut self) {
        self.offset = 0;
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let (name, offset) = (&self.name, &mut self.offset);
        self.fake.with(|kept| {
            let written = kept.writes.get_mut(name).ok_or_else(|| refused(Reason::NotFound))?;
            written.truncate(*offset as usize);
            written.extend_from_slice(bytes);
            *offset = written.len() as u64;
            Ok(())
        })
    }

    fn commit(&mut self, expected: Option<&Digest>) -> Result<Digest, Refused> {
        let (name, offset) = (&self.name, self.offset);
        self.fake.with(|kept| {
            let written = kept.writes.get_mut(name).ok_or_else(|| refused(Reason::NotFound))?;
            written.truncate(offset as usize);
            let digest = Digest::of(written);
            if expected.is_some_and(|expected| *expected != digest) {
                return Err(refused(Reason::FailedPrecondition));
            }
            let bytes = kept.writes.remove(name).expect("just found");
            kept.blobs.insert((name.0.clone(), digest.clone()), bytes);
            Ok(digest)
        })
    }
}

struct Fixture {
    folder: tempfile::TempDir,
    fake: Fake,
    store: Store,
    scope: Scope,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let metadata = metadata::Store::open(&folder.path().join("m.redb")).expect("opens");
    let fake = Fake::default();
    let root = folder.path().join("content");
    let store = Store::open_external(&root, metadata, fake.clone()).expect("opens");
    let scope = Scope::new("default".parse().expect("a namespace"));
    Fixture { folder, fake, store, scope }
}

impl Fixture {
    fn write(&self, reference: &str, bytes: &[u8]) -> Writer {
        let mut writer = self.store.writer(&self.scope, NewWrite::new(reference)).expect("opens");
        writer.write(bytes).expect("writes");
        writer
    }

    fn put(&self, bytes: &[u8]) -> Digest {
        self.store.put(&self.scope, bytes, Labels::new()).expect("writes")
    }

    fn collect(&self) -> Result<Vec<Digest>, Error> {
        self.store.sweep(&HashSet::new())?;
        self.store.sweep_external()
    }

    fn forget(&self, digest: &Digest) {
        self.store.delete(&self.scope, digest).expect("deletes");
    }

    /// Lets the time pass for which a program is left alone.
    fn pause(&self) {
        let external = self.store.inner.external.as_ref().expect("there is one");
        *external.due.lock().expect("no panic") = Some(Instant::now());
    }
}

#[test]
fn bytes_are_there_and_records_here() {
    let f = fixture();
    let labels = Labels::from([("a".to_owned(), "b".to_owned())]);
    let digest = f.write("r", b"hello").commit(5, None, labels.clone()).expect("commits").digest;
    assert_eq!(digest, Digest::of(b"hello"));
    assert_eq!(f.fake.count(), (1, 0));
    let info = f.store.info(&f.scope.namespace, &digest).expect("is there");
    assert_eq!((info.size, info.labels), (5, labels));
    let blob = f.store.blob(&f.scope.namespace, &digest).expect("opens");
    assert_eq!(blob.read_all(5).expect("reads"), b"hello");
    let mut middle = [0; 8];
    assert_eq!(blob.read_at(&mut middle, 3).expect("reads"), 2);
    for way in ["in order", "as a file"] {
        let blob = f.store.blob(&f.scope.namespace, &digest).expect("opens");
        let mut bytes = Vec::new();
        let read = match way {
            "in order" => std::io::Read::read_to_end(&mut blob.into_reader(), &mut bytes),
            _ => std::io::Read::read_to_end(&mut blob.into_file().expect("copies"), &mut bytes),
        };
        assert_eq!((read.expect(way), &bytes[..]), (5, &b"hello"[..]), "{way}");
    }
    let files = std::fs::read_dir(f.folder.path().join("content/blobs/sha256")).expect("there");
    assert_eq!(files.count(), 0, "files of our own");
    assert!(f.store.blob(&other().namespace, &digest).is_err(), "other namespace");
}

#[test]
fn a_write_goes_on_where_it_stopped_and_is_given_up() {
    let f = fixture();
    drop(f.write("r", b"hel"));
    let status = f.store.status(&f.scope.namespace, "r").expect("is there");
    assert_eq!((status.reference.as_str(), status.offset), ("r", 3));
    let mut writer = f.store.writer(&f.scope, NewWrite::new("r")).expect("opens");
    assert_eq!(writer.offset(), 3);
    writer.write(b"lo").expect("writes");
    assert_eq!(writer.digest(), Some(Digest::of(b"hello")));
    let wrong = writer.commit(0, Some(&Digest::of(b"x")), Labels::new()).expect_err("is wrong");
    assert!(matches!(wrong, Error::FailedPrecondition(_)), "{wrong}");
    let mut writer = f.store.writer(&f.scope, NewWrite::new("r")).expect("opens");
    assert_eq!(writer.offset(), 5);
    writer.truncate().expect("truncates");
    writer.write(b"bye").expect("writes");
    drop(writer);
    let all = f.store.statuses(&f.scope.namespace, &crate::filter::Filter::default());
    assert_eq!(all.expect("lists").iter().map(|it| it.offset).collect::<Vec<_>>(), [3]);
    f.store.abort(&f.scope.namespace, "r").expect("gives up");
    assert_eq!(f.fake.count(), (0, 0));
    let none = f.store.abort(&f.scope.namespace, "r").expect_err("is gone");
    assert!(matches!(none, Error::NotFound(_)), "{none}");
}

#[test]
fn a_program_without_namespaces_shares_blobs() {
    let f = fixture();
    let digest = f.put(b"hello");
    let new = NewWrite { expected: Some(digest.clone()), ..NewWrite::new("r") };
    let writer = f.store.writer(&other(), new.clone()).expect("opens");
    assert!(writer.is_shared());
    writer.commit(5, Some(&digest), Labels::new()).expect("commits without bytes");
    let third = Scope::new("third".parse().expect("a namespace"));
    let mut writer = f.store.writer(&third, new).expect("opens");
    writer.write(b"!").expect("copies and writes");
    let committed = writer.commit(6, None, Labels::new()).expect("commits");
    assert_eq!(committed.digest, Digest::of(b"hello!"));
}

#[test]
fn collections_remove_what_has_no_record() {
    for insists in [false, true] {
        let f = fixture();
        f.fake.change(|kept| kept.insists = insists);
        let [kept, gone] = [f.put(b"kept"), f.put(b"gone")];
        let _open = f.write("open", b"x");
        drop(f.write("recent", b"x"));
        f.fake.change(|it| {
            let place = if insists { "default" } else { "" };
            it.writes.insert((place.to_owned(), "default/stray".to_owned()), Vec::new());
        });
        f.forget(&gone);
        assert_eq!(f.collect().expect("collects"), [gone], "insists: {insists}");
        assert_eq!(f.fake.count(), (1, 2), "insists: {insists}");
        f.store.blob(&f.scope.namespace, &kept).expect("is there");
        // Nothing was removed since: it is not asked.
        f.fake.change(|it| it.is_away = true);
        assert_eq!(f.collect().expect("collects"), [], "insists: {insists}");
    }
}

#[test]
fn a_program_that_is_away_keeps_what_it_has() {
    let f = fixture();
    let [kept, gone] = [f.put(b"kept"), f.put(b"gone")];
    f.forget(&gone);
    f.fake.change(|it| it.is_away = true);
    let away = |error: Error| assert!(matches!(error, Error::Unavailable(_)), "{error}");
    away(f.collect().expect_err("it is away"));
    away(f.store.blob(&f.scope.namespace, &kept).map(drop).expect_err("it is away"));
    away(f.store.writer(&f.scope, NewWrite::new("r")).map(drop).expect_err("it is away"));
    away(f.store.statuses(&f.scope.namespace, &Default::default()).expect_err("it is away"));
    f.store.info(&f.scope.namespace, &kept).expect("the record is here");
    f.fake.change(|it| it.is_away = false);
    assert_eq!(f.collect().expect("leaves it alone"), []);
    f.pause();
    assert_eq!(f.collect().expect("collects"), [gone]);
    f.store.writer(&f.scope, NewWrite::new("r")).expect("the ref is free");
}
