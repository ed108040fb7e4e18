use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::{
    metadata::{Container, ContentInfo, Image, Lease, Runtime, Sandbox},
    oci::Descriptor,
};

const NOW: SystemTime = UNIX_EPOCH;

fn namespace() -> Namespace {
    "default".parse().expect("a namespace")
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn content(name: &str, pairs: &[(&str, &str)]) -> Object {
    let (digest, labels) = (digest(name), labels(pairs));
    Object::Content(ContentInfo { digest, size: 1, labels, created: NOW, updated: NOW })
}

fn image(name: &str, target: &str, pairs: &[(&str, &str)]) -> Object {
    let target = Descriptor { digest: digest(target), ..Descriptor::of("x", b"x") };
    let name = name.to_owned();
    Object::Image(Image { name, labels: labels(pairs), target, created: NOW, updated: NOW })
}

fn lease(id: &str, pairs: &[(&str, &str)]) -> Object {
    Object::Lease(Lease { id: id.to_owned(), labels: labels(pairs), created: NOW })
}

fn leased(lease: &str, resource: Resource) -> Object {
    Object::Leased { lease: lease.to_owned(), resource }
}

fn container(id: &str, snapshot: &str, pairs: &[(&str, &str)]) -> Object {
    Object::Container(Container {
        id: id.to_owned(),
        labels: labels(pairs),
        image: String::new(),
        runtime: Runtime::default(),
        spec: None,
        snapshotter: "s".to_owned(),
        snapshot_key: snapshot.to_owned(),
        created: NOW,
        updated: NOW,
        extensions: std::collections::BTreeMap::new(),
        sandbox: String::new(),
    })
}

fn sandbox(id: &str, pairs: &[(&str, &str)]) -> Object {
    Object::Sandbox(Sandbox {
        id: id.to_owned(),
        labels: labels(pairs),
        runtime: Runtime::default(),
        spec: None,
        sandboxer: String::new(),
        created: NOW,
        updated: NOW,
        extensions: std::collections::BTreeMap::new(),
    })
}

fn snapshot(name: &str, parent: &str, pairs: &[(&str, &str)]) -> Info {
    let key = |name| Key::new("default", name).expect("a key");
    Info {
        key: key(name),
        kind: snapshotter::Kind::Committed,
        parent: (!parent.is_empty()).then(|| key(parent)),
        labels: labels(pairs),
        created: NOW,
        updated: NOW,
    }
}

/// The names of what goes: content by its text, the rest by name.
fn gone(objects: Vec<Object>, snapshots: Vec<Info>) -> Vec<String> {
    let mut graph = Graph::new(NOW + Duration::from_secs(100));
    let mut texts = HashMap::new();
    for name in ["index", "manifest", "layer", "other"] {
        texts.insert(digest(name), name);
    }
    objects.into_iter().for_each(|object| graph.add(namespace(), object));
    snapshots.into_iter().for_each(|info| graph.add_snapshot("s", info));
    let plan = graph.plan();
    let mut gone: Vec<String> = Vec::new();
    gone.extend(plan.leases.into_iter().map(|(_, id)| id));
    gone.extend(plan.images.into_iter().map(|(_, name)| name));
    gone.extend(plan.content.into_iter().map(|(_, digest)| texts[&digest].to_owned()));
    gone.extend(plan.snapshots.into_iter().map(|(_, key)| key.name().to_owned()));
    gone
}

const PAST: &str = "1970-01-01T00:00:01Z";
const FUTURE: &str = "1970-01-01T01:00:00+00:00";

#[test]
fn content_and_images() {
    let to = |name| digest(name).to_string();
    let (manifest, layer, index) = (to("manifest"), to("layer"), to("index"));
    let refs = [("containerd.io/gc.ref.content.m.0", manifest.as_str())];
    let cases = [
        ("nothing keeps it", vec![content("layer", &[])], vec!["layer"]),
        ("root label", vec![content("layer", &[("containerd.io/gc.root", "x")])], vec![]),
        (
            "an image keeps what its target refers to",
            vec![
                image("i", "index", &[]),
                content("index", &refs),
                content("manifest", &[("containerd.io/gc.ref.content/l", &layer)]),
                content("layer", &[]),
                content("other", &[]),
            ],
            vec!["other"],
        ),
        (
            "other labels do not refer",
            vec![
                image("i", "index", &[("containerd.io/gc.ref.contents", &layer)]),
                content("index", &[("containerd.io/gc.ref", &layer)]),
                content("layer", &[]),
            ],
            vec!["layer"],
        ),
        (
            "an expired image goes with its content",
            vec![image("i", "index", &[(EXPIRE, PAST)]), content("index", &[])],
            vec!["i", "index"],
        ),
        ("it stays until then", vec![image("i", "index", &[(EXPIRE, FUTURE)])], vec![]),
        ("no time never comes", vec![image("i", "index", &[(EXPIRE, "soon")])], vec![]),
        (
            "an expired image stays when another refers to it",
            vec![
                image("i", "index", &[(EXPIRE, PAST)]),
                image("j", "other", &[("containerd.io/gc.ref.image", "i")]),
                content("index", &[]),
            ],
            vec![],
        ),
        (
            "back reference",
            vec![
                image("i", "index", &[]),
                content("index", &[]),
                content("layer", &[("containerd.io/gc.bref.content.x", &index)]),
                content("other", &[("containerd.io/gc.bref.image", "i")]),
                content("manifest", &[("containerd.io/gc.bref.image", "j")]),
            ],
            vec!["manifest"],
        ),
    ];
    for (case, objects, want) in cases {
        assert_eq!(gone(objects, vec![]), want, "{case}");
    }
}

#[test]
fn leases() {
    let layer = digest("layer").to_string();
    let refs = [("containerd.io/gc.ref.content", layer.as_str())];
    let tree = || vec![content("manifest", &refs), content("layer", &[])];
    let manifest = || leased("l", Resource::content(&digest("manifest")));
    let cases = [
        ("a lease keeps the tree", vec![lease("l", &[]), manifest()], vec![]),
        (
            "a flat one only its resource",
            vec![lease("l", &[(FLAT, "x")]), manifest()],
            vec!["layer"],
        ),
        (
            "an expired one nothing",
            vec![lease("l", &[(EXPIRE, PAST)]), manifest()],
            vec!["l", "manifest", "layer"],
        ),
        (
            "flat and full",
            vec![
                lease("l", &[]),
                lease("m", &[(FLAT, "x")]),
                manifest(),
                leased("m", Resource::content(&digest("manifest"))),
            ],
            vec![],
        ),
    ];
    for (case, mut objects, want) in cases {
        objects.extend(tree());
        assert_eq!(gone(objects, vec![]), want, "{case}");
    }
}

#[test]
fn snapshots() {
    let chain = || vec![snapshot("1", "", &[]), snapshot("2", "1", &[]), snapshot("3", "2", &[])];
    let cases = [
        ("children go first", vec![], chain(), vec!["3", "2", "1"]),
        (
            "a sandbox refers to a snapshot",
            vec![sandbox("b", &[("containerd.io/gc.ref.snapshot.s", "2")])],
            chain(),
            vec!["3"],
        ),
        ("a container keeps its chain", vec![container("c", "2", &[])], chain(), vec!["3"]),
        (
            "a blob refers to a snapshot",
            vec![content("other", &[(ROOT, "x"), ("containerd.io/gc.ref.snapshot.s", "2")])],
            chain(),
            vec!["3"],
        ),
        (
            "of another snapshotter",
            vec![content("other", &[(ROOT, "x"), ("containerd.io/gc.ref.snapshot.t/x", "2")])],
            chain(),
            vec!["3", "2", "1"],
        ),
        (
            "a flat lease keeps parents",
            vec![lease("l", &[(FLAT, "x")]), leased("l", Resource::snapshot("s", "2"))],
            chain(),
            vec!["3"],
        ),
        (
            "back reference to a container",
            vec![container("c", "none", &[])],
            vec![snapshot("1", "", &[("containerd.io/gc.bref.container.x", "c")])],
            vec![],
        ),
    ];
    for (case, objects, snapshots, want) in cases {
        assert_eq!(gone(objects, snapshots), want, "{case}");
    }
}
