//! Cases about keys, kinds, parents, labels and times.

use std::{ops::ControlFlow, thread, time::SystemTime};

use super::{
    Case,
    bench::{Bench, key, labels},
};
use crate::{Error, Info, Key, Kind, Labels};

pub(super) const CASES: &[Case] = &[
    ("life", life),
    ("keys are unique", unique),
    ("nothing of a missing snapshot", missing),
    ("parents are committed", parents),
    ("only active snapshots are committed", commit_kinds),
    ("committed snapshots have no mounts", no_mounts),
    ("remove", remove),
    ("update", update),
    ("labels are not inherited", inheritance),
    ("walk", walk),
    ("namespaces", namespaces),
    ("opened again", reopened),
    ("races for a key", key_races),
    ("races with a parent", parent_races),
];

/// Asserts that a result is an error of some kind.
macro_rules! refused {
    ($result:expr, $error:pat) => {{
        let result = $result;
        assert!(matches!(result, Err($error)), "{}: {result:?}", stringify!($error));
    }};
}

/// `c1 <- c2`, active `a1` and view `v1` on top, active `a2` and view `v2` on nothing.
const BASE: [(&str, Kind, &str); 6] = [
    ("c1", Kind::Committed, ""),
    ("c2", Kind::Committed, "c1"),
    ("a1", Kind::Active, "c2"),
    ("a2", Kind::Active, ""),
    ("v1", Kind::View, "c2"),
    ("v2", Kind::View, ""),
];

fn base(bench: &Bench<'_>) {
    for (name, kind, parent) in BASE {
        match kind {
            Kind::Committed => {
                bench.prepare("temporary", parent);
                bench.commit(name, "temporary");
            }
            Kind::Active => drop(bench.prepare(name, parent)),
            Kind::View => drop(bench.view(name, parent)),
        }
    }
}

fn all(bench: &Bench<'_>, namespace: Option<&str>) -> Vec<Info> {
    let mut all = Vec::new();
    let result = bench.snapshotter().walk(namespace, &mut |info| {
        all.push(info);
        ControlFlow::Continue(())
    });
    bench.ok("walk", "all", result);
    all
}

fn life(bench: &mut Bench<'_>) {
    let before = SystemTime::now();
    base(bench);
    let after = SystemTime::now();
    for (name, kind, parent) in BASE {
        let info = bench.stat(name);
        let parent = (!parent.is_empty()).then(|| key(parent));
        assert!((before..=after).contains(&info.created), "{name}: {info:?}");
        let created = info.created;
        let want =
            Info { key: key(name), kind, parent, labels: labels(), created, updated: created };
        assert_eq!(info, want, "{name}");
    }
    refused!(bench.snapshotter().stat(&key("temporary")), Error::NotFound { .. });
}

fn unique(bench: &mut Bench<'_>) {
    base(bench);
    let count = all(bench, None).len();
    for (name, ..) in BASE {
        let snapshotter = bench.snapshotter();
        let parent = Some(key("c1"));
        refused!(
            snapshotter.prepare(&key(name), parent.as_ref(), labels()),
            Error::AlreadyExists { .. }
        );
        refused!(
            snapshotter.view(&key(name), parent.as_ref(), labels()),
            Error::AlreadyExists { .. }
        );
        refused!(snapshotter.commit(&key(name), &key("a2"), labels()), Error::AlreadyExists { .. });
    }
    assert_eq!(all(bench, None).len(), count, "failed calls have changed something");
    assert_eq!(bench.stat("a2").kind, Kind::Active);
}

fn missing(bench: &mut Bench<'_>) {
    let (snapshotter, none) = (bench.snapshotter(), key("none"));
    refused!(snapshotter.stat(&none), Error::NotFound { .. });
    refused!(snapshotter.mounts(&none), Error::NotFound { .. });
    refused!(snapshotter.usage(&none), Error::NotFound { .. });
    refused!(snapshotter.remove(&none), Error::NotFound { .. });
    refused!(snapshotter.update(&none, &mut |_| {}), Error::NotFound { .. });
    refused!(snapshotter.commit(&key("x"), &none, labels()), Error::NotFound { .. });
    refused!(snapshotter.prepare(&key("x"), Some(&none), labels()), Error::NotFound { .. });
}

fn parents(bench: &mut Bench<'_>) {
    base(bench);
    for parent in ["a1", "a2", "v1", "v2"] {
        let result = bench.snapshotter().prepare(&key("x"), Some(&key(parent)), labels());
        refused!(result, Error::WrongKind { needed: Kind::Committed, .. });
        let result = bench.snapshotter().view(&key("x"), Some(&key(parent)), labels());
        refused!(result, Error::WrongKind { needed: Kind::Committed, .. });
    }
}

fn commit_kinds(bench: &mut Bench<'_>) {
    base(bench);
    for from in ["c1", "c2", "v1", "v2"] {
        let result = bench.snapshotter().commit(&key("x"), &key(from), labels());
        refused!(result, Error::WrongKind { needed: Kind::Active, .. });
    }
}

fn no_mounts(bench: &mut Bench<'_>) {
    base(bench);
    refused!(bench.snapshotter().mounts(&key("c1")), Error::NotMountable { .. });
}

fn remove(bench: &mut Bench<'_>) {
    base(bench);
    refused!(bench.snapshotter().remove(&key("c1")), Error::HasChildren { .. });
    refused!(bench.snapshotter().remove(&key("c2")), Error::HasChildren { .. });
    bench.remove("a1");
    bench.view("a1", "c2");
    bench.remove("a1");
    refused!(bench.snapshotter().remove(&key("c2")), Error::HasChildren { .. });
    bench.remove("v1");
    bench.remove("c2");
    bench.remove("c1");
    bench.prepare("c2", "");
    bench.commit("c1", "c2");
    bench.ok("cleanup", "", bench.snapshotter().cleanup());
    let left: Vec<_> = all(bench, None).into_iter().map(|info| info.key).collect();
    assert_eq!(left, ["a2", "c1", "v2"].map(key));
}

fn update(bench: &mut Bench<'_>) {
    base(bench);
    for (name, ..) in BASE {
        let old = bench.stat(name);
        let before = SystemTime::now();
        let result = bench.snapshotter().update(&key(name), &mut |labels| {
            assert_eq!(*labels, old.labels, "{name}");
            *labels = Labels::from([("l1".to_owned(), "v1".to_owned())]);
        });
        let new = bench.ok("update", name, result);
        assert!((before..=SystemTime::now()).contains(&new.updated), "{name}: {new:?}");
        let labels = Labels::from([("l1".to_owned(), "v1".to_owned())]);
        assert_eq!(new, Info { labels, updated: new.updated, ..old }, "{name}");
        assert_eq!(bench.stat(name), new, "{name}");
    }
}

fn inheritance(bench: &mut Bench<'_>) {
    bench.prepare("a", "");
    let none = Labels::new();
    bench.ok("commit", "c", bench.snapshotter().commit(&key("c"), &key("a"), none.clone()));
    assert_eq!(bench.stat("c").labels, none);
}

fn walk(bench: &mut Bench<'_>) {
    base(bench);
    let names: Vec<_> = all(bench, None).into_iter().map(|info| info.key).collect();
    assert_eq!(names, ["a1", "a2", "c1", "c2", "v1", "v2"].map(key));
    let mut visited = 0;
    let result = bench.snapshotter().walk(None, &mut |info| {
        visited += 1;
        assert_eq!(bench.stat(info.key.name()), info, "stat during a walk");
        if visited == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bench.ok("walk", "", result);
    assert_eq!(visited, 2);
}

fn namespaces(bench: &mut Bench<'_>) {
    base(bench);
    let other = |name: &str| Key::new("testsuite2", name).expect("short");
    let snapshotter = bench.snapshotter();
    let result = snapshotter.prepare(&other("a1"), Some(&key("c1")), labels());
    assert!(matches!(result, Err(Error::OtherNamespace { .. } | Error::NotFound { .. })));
    bench.ok("prepare", "a1", snapshotter.prepare(&other("a1"), None, labels()));
    bench.ok("prepare", "b", snapshotter.prepare(&other("b"), None, labels()));
    let result = snapshotter.commit(&key("x"), &other("a1"), labels());
    assert!(matches!(result, Err(Error::OtherNamespace { .. } | Error::NotFound { .. })));
    let names =
        |namespace| all(bench, namespace).into_iter().map(|info| info.key).collect::<Vec<_>>();
    assert_eq!(names(Some("testsuite2")), ["a1", "b"].map(other));
    assert_eq!(names(Some("testsuite")).len(), BASE.len());
    assert_eq!(names(Some("tests")), []);
    assert_eq!(names(None).len(), BASE.len() + 2);
    bench.ok("remove", "a1", snapshotter.remove(&other("a1")));
    assert_eq!(bench.stat("a1").parent, Some(key("c2")));
}

fn reopened(bench: &mut Bench<'_>) {
    base(bench);
    let before = all(bench, None);
    let mounts = bench.snapshotter().mounts(&key("a1"));
    let mounts = bench.ok("mounts", "a1", mounts);
    bench.reopen();
    assert_eq!(all(bench, None), before);
    let again = bench.snapshotter().mounts(&key("a1"));
    assert_eq!(bench.ok("mounts", "a1", again), mounts);
    bench.mounted(&mounts, |root| std::fs::write(root.join("x"), "").expect("write"));
    bench.prepare("new", "c2");
}

fn key_races(bench: &mut Bench<'_>) {
    let snapshotter = bench.snapshotter();
    let won = |name: &'static str| {
        thread::scope(|scope| {
            let racers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| snapshotter.prepare(&key(name), None, labels())))
                .collect();
            let results = racers.into_iter().map(|racer| racer.join().expect("no panic"));
            results.filter(|result| result.is_ok()).count()
        })
    };
    assert_eq!(won("one"), 1, "prepares of one key that succeeded");
    bench.prepare("a", "");
    bench.prepare("b", "");
    let committed = thread::scope(|scope| {
        let commit = |from| snapshotter.commit(&key("c"), &key(from), labels());
        let racers = ["a", "b"].map(|from| scope.spawn(move || commit(from)));
        let results = racers.map(|racer| racer.join().expect("no panic"));
        results.iter().filter(|result| result.is_ok()).count()
    });
    assert_eq!(committed, 1, "commits to one name that succeeded");
}

fn parent_races(bench: &mut Bench<'_>) {
    for round in 0..20 {
        let (parent, child) = (format!("parent {round}"), format!("child {round}"));
        bench.prepare("a", "");
        bench.commit(&parent, "a");
        let snapshotter = bench.snapshotter();
        let (prepared, removed) = thread::scope(|scope| {
            let prepare =
                scope.spawn(|| snapshotter.prepare(&key(&child), Some(&key(&parent)), labels()));
            let remove = scope.spawn(|| snapshotter.remove(&key(&parent)));
            (prepare.join().expect("no panic"), remove.join().expect("no panic"))
        });
        match (prepared, removed) {
            (Ok(_), Err(Error::HasChildren { .. })) => bench.remove(&child),
            (Err(Error::NotFound { .. }), Ok(())) => continue,
            other => panic!("no order of the calls gives {other:?}"),
        }
        bench.remove(&parent);
    }
}
