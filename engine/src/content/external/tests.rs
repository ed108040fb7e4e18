//! Against a program that forgets nothing and does no more than it must.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, mpsc},
    thread,
};

use super::*;
use crate::{
    content::{NewWrite, Writer, tests::other},
    gc::Collector,
    labels::Labels,
    metadata,
    namespace::Scope,
};

/// What the program has, by namespace if it goes by those.
#[derive(Default)]
struct Kept {
    blobs: BTreeMap<(String, Digest), Vec<u8>>,
    writes: BTreeMap<(String, String), Vec<u8>>,
    is_away: bool,
    insists: bool,
    /// Does not answer commits, which it does.
    is_mute: bool,
    stall: Option<Arc<Stall>>,
}

/// Holds removals up: says that one has begun, and waits until it is told to go on.
struct Stall {
    begun: mpsc::Sender<Digest>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

/// How long something may take that nobody is to hold up.
const DEADLINE: Duration = Duration::from_secs(60);

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
    fn name(&self) -> &str {
        "fake"
    }

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

    fn abort(&self, namespace: &Namespace, reference: &str) -> Result<(), Refused> {
        self.with(|kept| {
            let name = (kept.place(Some(namespace))?, reference.to_owned());
            kept.writes.remove(&name);
            Ok(())
        })
    }

    fn remove(&self, namespace: &Namespace, digest: &Digest) -> Result<(), Refused> {
        let stall = self.0.lock().expect("no panic").stall.clone();
        if let Some(stall) = stall {
            stall.begun.send(digest.clone()).expect("the test waits");
            let go_on = stall.go_on.lock().expect("no panic");
            go_on.recv_timeout(DEADLINE).expect("the test goes on");
        }
        self.with(|kept| {
            let place = kept.place(Some(namespace))?;
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

    fn commit(&mut self, expected: Option<&Digest>) -> Result<Placed, Refused> {
        let (name, offset) = (&self.name, self.offset);
        self.fake.with(|kept| {
            let written = kept.writes.get_mut(name).ok_or_else(|| refused(Reason::NotFound))?;
            written.truncate(offset as usize);
            let digest = Digest::of(written);
            if expected.is_some_and(|expected| *expected != digest) {
                return Err(refused(Reason::FailedPrecondition));
            }
            let bytes = kept.writes.remove(name).expect("just found");
            let before = kept.blobs.insert((name.0.clone(), digest.clone()), bytes);
            if kept.is_mute {
                return Err(refused(Reason::Unavailable));
            }
            Ok(Placed { digest, is_new: before.is_none() })
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

    /// Leaves an unfinished write that nothing keeps.
    fn leave_a_write(&self, reference: &str) {
        let metadata = self.store.metadata();
        metadata.create_lease(&self.scope.namespace, "l", Labels::new()).expect("creates");
        let scope = Scope { lease: Some("l".to_owned()), ..self.scope.clone() };
        drop(self.store.writer(&scope, NewWrite::new(reference)).expect("opens"));
        metadata.delete_lease(&self.scope.namespace, "l").expect("deletes");
    }

    /// The program with another database.
    fn other_database(&self) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let metadata = metadata::Store::open(&folder.path().join("m.redb")).expect("opens");
        let (fake, scope) = (self.fake.clone(), self.scope.clone());
        let root = folder.path().join("content");
        let store = Store::open_external(&root, metadata, fake.clone()).expect("opens");
        Self { folder, fake, store, scope }
    }

    /// Has removals there wait: what begins is heard of, and goes on when it is told to.
    fn stall(&self) -> (mpsc::Receiver<Digest>, mpsc::Sender<()>) {
        let (begun, begins) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel();
        let stall = Stall { begun, go_on: Mutex::new(goes_on) };
        self.fake.change(|kept| kept.stall = Some(Arc::new(stall)));
        (begins, go_on)
    }

    fn external(&self) -> &External {
        self.store.inner.external.as_ref().expect("there is one")
    }

    /// Lets the time pass for which a program is left alone.
    fn pause(&self) {
        *self.external().lock_due() = Due { since: Some(Instant::now()), ..Due::default() };
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
        f.leave_a_write("nobody's");
        f.forget(&gone);
        assert_eq!(f.fake.count(), (2, 3), "insists: {insists}");
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

#[test]
fn what_a_database_has_not_had_made_stays() {
    let f = fixture();
    let [kept, gone] = [f.put(b"kept"), f.put(b"gone")];
    drop(f.write("unfinished", b"x"));
    // In the place of one that is lost, and beside it.
    let other = f.other_database();
    assert_eq!(other.put(b"kept"), kept, "which is there already");
    let own = other.put(b"another's");
    assert_eq!(other.store.foreign().expect("lists"), BTreeSet::from([gone.clone()]));
    assert_eq!(f.store.foreign().expect("lists"), BTreeSet::from([own.clone()]));
    other.forget(&kept);
    other.forget(&own);
    assert_eq!(other.collect().expect("collects"), [own]);
    assert_eq!(f.fake.count(), (2, 1));
    f.store.blob(&f.scope.namespace, &kept).expect("is there");
    f.forget(&gone);
    assert_eq!(f.collect().expect("collects"), [gone]);
}

#[test]
fn a_crash_before_the_record_leaves_no_blob() {
    let f = fixture();
    let digest = f.put(b"hello");
    // As if it had not come to the record.
    f.store.metadata().delete_content(&f.scope, &digest).expect("deletes");
    let root = f.folder.path().join("content");
    let again = Store::open_external(&root, f.store.metadata().clone(), f.fake.clone());
    assert_eq!(again.expect("opens").sweep_external().expect("sweeps"), [digest]);
    assert_eq!(f.fake.count(), (0, 0));
}

#[test]
fn a_program_that_is_stuck_holds_up_nobody_but_who_wants_that_blob() {
    let f = fixture();
    let rooted = Labels::from([("containerd.io/gc.root".to_owned(), "kept".to_owned())]);
    let put = |bytes: &[u8]| f.store.put(&f.scope, bytes, rooted.clone()).expect("writes");
    let [going, next] = [put(b"going"), put(b"next")];
    f.forget(&going);
    let (begins, go_on) = f.stall();
    let collector = Collector::new(f.store.clone(), Arc::default(), |_| {});
    collector.collect(true).expect("does not wait for the end");
    assert_eq!(begins.recv_timeout(DEADLINE).expect("is swept"), going);
    // While it is being removed: other blobs come, and go, and are collected.
    put(b"other");
    f.forget(&next);
    let before = SystemTime::now();
    let collected = collector.collect(true).expect("has a thread already");
    let due = collected.next_expiry.expect("the sweep is looked after");
    assert!(due > before + SWEEP_PAUSE / 2, "not again and again meanwhile");
    // The blob itself is waited for, and is then sent again.
    let (store, scope, labels) = (f.store.clone(), f.scope.clone(), rooted.clone());
    let (sent, ends) = mpsc::channel();
    let sending = thread::spawn(move || {
        let digest = store.put(&scope, b"going", labels).expect("writes");
        sent.send(digest).expect("the test waits");
    });
    ends.recv_timeout(Duration::from_millis(100)).expect_err("it is being removed");
    f.fake.change(|kept| kept.stall = None);
    go_on.send(()).expect("waits");
    assert_eq!(ends.recv_timeout(DEADLINE).expect("is written"), going);
    sending.join().expect("ends");
    f.store.blob(&f.scope.namespace, &going).expect("is there").read_all(9).expect("reads");
    // The second removal is the business of the sweep that was asked for meanwhile.
    let until = Instant::now() + DEADLINE;
    while f.fake.count().0 > 2 {
        assert!(Instant::now() < until, "it is not swept");
        thread::yield_now();
    }
    f.fake.change(|kept| assert!(!kept.blobs.keys().any(|(_, it)| *it == next)));
}

#[test]
fn a_blob_that_somebody_claims_is_looked_at_later() {
    let f = fixture();
    let digest = f.put(b"gone");
    f.forget(&digest);
    let claim = f.store.claim(&digest);
    let before = SystemTime::now();
    assert_eq!(f.collect().expect("leaves it"), []);
    let next = f.store.next_sweep().expect("it is looked after");
    assert!(next > before + SWEEP_PAUSE / 2, "not again and again meanwhile");
    drop(claim);
    f.pause();
    assert_eq!(f.collect().expect("collects"), [digest]);
    assert_eq!(f.store.next_sweep(), None);
}

#[test]
fn writers_of_one_blob_share_its_note() {
    let digest = Digest::of(b"hello");
    let made = || Ok(Placed { digest: digest.clone(), is_new: true });
    let there = || Ok(Placed { digest: digest.clone(), is_new: false });
    let fails = |reason| Err(refused(reason));
    let wrong = || fails(Reason::FailedPrecondition);
    let cases = [
        ("one of them makes it", made(), there(), true),
        ("one of them fails", made(), wrong(), true),
        ("another program makes it", there(), there(), false),
        ("none of them makes it", wrong(), fails(Reason::NotFound), false),
        ("it is there, and not what is sent", there(), wrong(), false),
        ("it may be made", fails(Reason::Unavailable), wrong(), true),
        ("it may have been made before", fails(Reason::Unavailable), there(), true),
        ("nobody knows", fails(Reason::Other), fails(Reason::Unavailable), true),
    ];
    let name = made_name(&"default".parse().expect("a namespace"), &digest);
    for (case, one, other, want) in cases {
        for ends in [[&one, &other], [&other, &one]] {
            let f = fixture();
            let begin = || f.external().begin_making(&f.scope.namespace, &digest).expect("begins");
            let (first, second) = (begin(), begin());
            first.end(ends[0]).expect("ends");
            assert!(f.external().made.has(&name).expect("reads"), "{case}: the other goes on");
            second.end(ends[1]).expect("ends");
            assert_eq!(f.external().made.has(&name).expect("reads"), want, "{case}");
        }
    }
}

#[test]
fn what_goes_while_it_is_sent_again_is_noted() {
    let f = fixture();
    let digest = f.put(b"hello");
    let other = f.other_database();
    let making = other.external().begin_making(&f.scope.namespace, &digest).expect("begins");
    let name = made_name(&f.scope.namespace, &digest);
    assert!(!other.external().made.has(&name).expect("reads"), "it is there");
    making.end(&Ok(Placed { digest, is_new: true })).expect("ends");
    assert!(other.external().made.has(&name).expect("reads"), "it was gone");
}

#[test]
fn what_was_not_answered_is_ours_for_a_while_only() {
    let f = fixture();
    let digest = Digest::of(b"hello");
    let name = made_name(&f.scope.namespace, &digest);
    let is_noted = || f.external().made.has(&name).expect("reads");
    let send = || f.write("r", b"hello").commit(5, Some(&digest), Labels::new());
    let mute = |is_mute| f.fake.change(|kept| kept.is_mute = is_mute);
    mute(true);
    send().expect_err("is not answered");
    assert_eq!(f.fake.count().0, 1);
    f.pause();
    assert_eq!(f.collect().expect("collects"), [], "it may yet appear");
    assert_eq!((f.fake.count().0, is_noted()), (0, true));
    let next = f.store.next_sweep().expect("it is looked after");
    assert!(next > SystemTime::now() + SWEEP_PAUSE, "not at once");

    // It has not appeared, so what does so later is somebody else's.
    let pass = || f.external().makings.lock_late().values_mut().for_each(|it| *it = Instant::now());
    pass();
    f.pause();
    f.collect().expect("collects");
    assert!(!is_noted());
    mute(false);
    let other = f.other_database();
    other.put(b"hello");
    f.pause();
    assert_eq!(f.collect().expect("collects"), []);
    assert_eq!(f.fake.count().0, 1);
    other.forget(&digest);
    assert_eq!(other.collect().expect("collects"), std::slice::from_ref(&digest));

    // It is sent again, and is there.
    mute(true);
    send().expect_err("is not answered");
    mute(false);
    send().expect("is there");
    f.forget(&digest);
    assert_eq!(f.collect().expect("collects"), [digest]);
    assert!(!is_noted());
}

#[test]
fn what_others_have_is_told_once_the_program_answers() {
    let f = fixture();
    f.fake.change(|kept| kept.is_away = true);
    f.collect().expect_err("it is away");
    let has_told = || f.external().has_told_foreign.load(Ordering::Relaxed);
    assert!(!has_told());
    f.fake.change(|kept| kept.is_away = false);
    f.pause();
    f.collect().expect("collects");
    assert!(has_told());
}
