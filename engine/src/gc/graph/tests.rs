use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::{
    metadata::{Container, ContentInfo, Image, Lease, Runtime, Sandbox},
    oci::Descriptor,
};
use metadata::Object as O;

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

fn content(name: &str, pairs: &[(&str, &str)]) -> O {
    let (digest, labels) = (digest(name), labels(pairs));
    O::Content(ContentInfo { digest, size: 1, labels, created: NOW, updated: NOW })
}

fn image(name: &str, target: &str, pairs: &[(&str, &str)]) -> O {
    let target = Descriptor { digest: digest(target), ..Descriptor::of("x", b"x") };
    let name = name.to_owned();
    O::Image(Image { name, labels: labels(pairs), target, created: NOW, updated: NOW })
}

fn lease(id: &str, pairs: &[(&str, &str)]) -> O {
    O::Lease(Lease { id: id.to_owned(), labels: labels(pairs), created: NOW })
}

fn leased(lease: &str, resource: Resource) -> O {
    O::Leased { lease: lease.to_owned(), resource }
}

fn container(id: &str, snapshot: &str, pairs: &[(&str, &str)]) -> O {
    O::Container(Container {
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

fn sandbox(id: &str, pairs: &[(&str, &str)]) -> O {
    O::Sandbox(Sandbox {
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
fn gone(objects: Vec<O>, snapshots: Vec<Info>) -> Vec<String> {
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
    gone.extend(plan.content.into_iter().map(|(_, digest, _)| texts[&digest].to_owned()));
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
        (
            "an image keeps what was used lately",
            vec![
                image(
                    "i",
                    "index",
                    &[("containerd.io/gc.cond.snapshot.s", "usedat<1m,usedat>1h|1")],
                ),
                content("index", &[("containerd.io/gc.cond.snapshot.s/x", "usedat>1m|2")]),
            ],
            vec![
                snapshot(
                    "1",
                    "",
                    &[("containerd.io/gc.cond.value-usedat", "1970-01-01T00:01:00Z")],
                ),
                snapshot(
                    "2",
                    "",
                    &[("containerd.io/gc.cond.value-usedat", "1970-01-01T00:01:00Z")],
                ),
                snapshot("3", "", &[]),
            ],
            vec!["2", "3"],
        ),
    ];
    for (case, objects, snapshots, want) in cases {
        assert_eq!(gone(objects, snapshots), want, "{case}");
    }
}

#[test]
fn chains() {
    let to = |name| digest(name).to_string();
    let (manifest, layer) = (to("manifest"), to("layer"));
    let objects = vec![
        lease("l", &[]),
        leased("l", Resource::image("gone by time")),
        image("gone by time", "manifest", &[(EXPIRE, PAST)]),
        content("manifest", &[("containerd.io/gc.ref.content.l.0", &layer)]),
        content("layer", &[]),
        content("index", &[("containerd.io/gc.ref.content", &to("other"))]),
        content("other", &[]),
        container("c", "2", &[]),
    ];
    let snapshots = vec![
        snapshot("1", "", &[]),
        snapshot("2", "1", &[]),
        snapshot("3", "", &[("containerd.io/gc.bref.content.x", &manifest)]),
        snapshot("4", "", &[(ROOT, "x")]),
    ];
    let mut graph = Graph::new(NOW + Duration::from_secs(100));
    objects.into_iter().for_each(|object| graph.add(namespace(), object));
    snapshots.into_iter().for_each(|info| graph.add_snapshot("s", info));
    let object =
        |kind: Kind, name: &str| Object { namespace: namespace(), kind, name: name.to_owned() };
    let snapshot = |name| object(Kind::Snapshot("s".to_owned()), name);
    let mut shown = |object: Object| {
        let chain = graph.chain(&object)?;
        let short =
            |object: &Object| object.to_string().replace(&manifest, "m").replace(&layer, "l");
        Some(
            chain
                .iter()
                .map(|(object, by)| format!("{} {by:?}", short(object)))
                .collect::<Vec<_>>(),
        )
    };
    let cases = [
        (
            object(Kind::Content, &layer),
            Some(vec![
                "image/gone by time Lease(\"l\")",
                "content/m Target",
                "content/l Label(\"containerd.io/gc.ref.content.l.0\")",
            ]),
        ),
        (object(Kind::Content, &to("other")), None),
        (object(Kind::Content, "no such"), None),
        (
            snapshot("1"),
            Some(vec!["container/c Itself", "snapshot/s/2 Rootfs", "snapshot/s/1 Parent"]),
        ),
        (
            snapshot("3"),
            Some(vec![
                "image/gone by time Lease(\"l\")",
                "content/m Target",
                "snapshot/s/3 Back(\"containerd.io/gc.bref.content.x\")",
            ]),
        ),
        (snapshot("4"), Some(vec!["snapshot/s/4 Label(\"containerd.io/gc.root\")"])),
    ];
    for (object, want) in cases {
        let case = object.to_string();
        let want = want.map(|want| want.into_iter().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(shown(object), want, "{case}");
    }
    let other = object(Kind::Content, &to("other"));
    let index = object(Kind::Content, &to("index"));
    let label = By::Label("containerd.io/gc.ref.content".into());
    assert_eq!(graph.referrers(&other), [(index, label)]);
}
