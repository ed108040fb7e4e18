use std::{collections::BTreeMap, time::Duration};

use super::*;
use crate::{content::NewWrite, gc::EXPIRE, labels::Labels, metadata::Resource, namespace::Scope};

struct Fixture {
    _folder: tempfile::TempDir,
    content: content::Store,
    scope: Scope,
    inspector: Inspector,
}

fn fixture() -> Fixture {
    let content::tests::Fixture { folder, store: content, scope } = content::tests::fixture();
    let inspector = Inspector::new(content.clone(), Arc::new(BTreeMap::new()));
    Fixture { _folder: folder, content, scope, inspector }
}

impl Fixture {
    fn put(&self, bytes: &[u8]) -> Digest {
        self.content.put(&self.scope, bytes, Labels::new()).expect("writes")
    }

    fn lease(&self, id: &str, expiry: Option<SystemTime>) {
        let labels = expiry.map(|time| (EXPIRE.to_owned(), text(time)));
        let metadata = self.content.metadata();
        metadata
            .create_lease(&self.scope.namespace, id, labels.into_iter().collect())
            .expect("creates");
    }

    fn reasons(&self, object: &str) -> Vec<(String, bool, String)> {
        let found = self.inspector.explain(&self.scope.namespace, object).expect(object);
        let short = |found: Explanation| {
            let chain = found.chain.iter().map(|link| format!("{} ({})", link.object, link.by));
            let chain: Vec<String> = chain.collect();
            (
                found.object.to_string(),
                found.kept,
                format!("{}{}", chain.join(" -> "), found.reason),
            )
        };
        found.into_iter().map(short).collect()
    }
}

#[test]
fn objects_are_explained_by_their_names() {
    let f = fixture();
    let (held, free) = (f.put(b"held"), f.put(b"free"));
    f.lease("l", None);
    let resource = Resource::content(&held);
    f.content.metadata().add_lease_resource(&f.scope.namespace, "l", &resource).expect("adds");
    f.lease("past", Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1)));
    let writer = f.content.writer(&f.scope, NewWrite::new("l")).expect("opens");
    let leased = format!("content/{held} (lease l)");
    let cases = [
        (held.to_string(), vec![(format!("content/{held}"), true, leased.clone())]),
        (format!("content/{held}"), vec![(format!("content/{held}"), true, leased)]),
        (
            free.to_string(),
            vec![(format!("content/{free}"), false, "nothing refers to it".to_owned())],
        ),
        (
            "l".to_owned(),
            vec![
                ("lease/l".to_owned(), true, "it does not expire".to_owned()),
                ("ingest/l".to_owned(), true, "somebody is writing it".to_owned()),
            ],
        ),
        (
            "lease/past".to_owned(),
            vec![("lease/past".to_owned(), false, "it expired at 1970-01-01T00:00:01Z".to_owned())],
        ),
    ];
    for (object, want) in cases {
        assert_eq!(f.reasons(&object), want, "{object}");
    }
    drop(writer);
    assert!(f.reasons("ingest/l")[0].2.starts_with("until "), "a write without a writer");
    for (object, want) in [
        ("", "object must not be empty: invalid argument"),
        ("image/x", "object \"image/x\" in namespace \"default\": not found"),
    ] {
        let error = f.inspector.explain(&f.scope.namespace, object).expect_err("there is none");
        assert_eq!(error.to_string(), want);
    }
}

#[test]
fn what_would_go_takes_space_once() {
    let f = fixture();
    let other = Scope::new("other".parse().expect("a namespace"));
    let (shared, kept) = (f.put(b"shared"), f.put(b"kept"));
    f.content.put(&other, b"shared", Labels::new()).expect("writes");
    let root = Labels::from([("containerd.io/gc.root".to_owned(), "1".to_owned())]);
    f.content.put(&other, b"kept", root).expect("writes");
    f.lease("past", Some(SystemTime::UNIX_EPOCH));
    let doomed = f.inspector.doomed().expect("lists");
    let doomed: Vec<_> = doomed
        .iter()
        .map(|doomed| (doomed.object.namespace.as_str(), doomed.object.to_string(), doomed.bytes))
        .collect();
    let mut content = vec![
        ("default", format!("content/{shared}"), 0),
        ("default", format!("content/{kept}"), 0),
    ];
    content.sort_by(|a, b| a.1.cmp(&b.1));
    let mut want = vec![("default", "lease/past".to_owned(), 0)];
    want.extend(content);
    want.push(("other", format!("content/{shared}"), 6));
    assert_eq!(doomed, want);
    assert!(f.content.blob(&f.scope.namespace, &shared).is_ok(), "nothing is removed");
}
