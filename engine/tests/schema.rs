//! Opens a database of each schema that there was, as the program of its time has written it.
//!
//! `data/schema-<n>.redb.zst` never changes once a release has that schema. For a new one, run this
//! with `GANTRY_WRITE_FIXTURE=1`, and commit the file that it makes.

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use engine::{
    db::Root,
    digest::Digest,
    filter::Filter,
    labels::Labels,
    metadata::{self, Container, Image, Resource, Runtime, Sandbox},
    namespace::Namespace,
    oci::Descriptor,
};
use prost_types::Any;
use snapshotter::{Info, Key, Kind, Overlay, OverlayOptions, Snapshotter, Transactions};

/// The newest schema.
const SCHEMA: u64 = 1;

fn namespace() -> Namespace {
    "default".parse().expect("a namespace")
}

fn key(name: &str) -> Key {
    Key::new("default", name).expect("test names are short")
}

fn labels() -> Labels {
    Labels::from([("key".to_owned(), "value".to_owned())])
}

fn any(text: &str) -> Any {
    Any { type_url: "test/type".to_owned(), value: text.as_bytes().to_owned() }
}

/// No time: those that a store sets are not compared.
fn unset() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1)
}

fn image() -> Image {
    Image {
        name: "docker.io/library/image:1".to_owned(),
        labels: labels(),
        target: Descriptor {
            media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
            digest: Digest::of(b"index"),
            size: 12345,
            platform: None,
            annotations: Labels::from([("note".to_owned(), "text".to_owned())]),
            urls: Vec::new(),
        },
        created: unset(),
        updated: unset(),
    }
}

fn container() -> Container {
    Container {
        id: "container".to_owned(),
        labels: labels(),
        image: image().name,
        runtime: Runtime {
            name: "io.containerd.runc.v2".to_owned(),
            options: Some(any("options")),
        },
        spec: Some(any(r#"{"ociVersion":"1.1.0"}"#)),
        snapshotter: "overlayfs".to_owned(),
        snapshot_key: "active".to_owned(),
        created: unset(),
        updated: unset(),
        extensions: BTreeMap::from([("extension".to_owned(), any("e"))]),
        sandbox: "sandbox".to_owned(),
    }
}

fn sandbox() -> Sandbox {
    Sandbox {
        id: "sandbox".to_owned(),
        labels: labels(),
        runtime: Runtime { name: "io.containerd.runc.v2".to_owned(), options: Some(any("o")) },
        spec: Some(any("{}")),
        sandboxer: "shim".to_owned(),
        created: unset(),
        updated: unset(),
        extensions: BTreeMap::from([("extension".to_owned(), any("e"))]),
    }
}

fn file(schema: u64) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/schema-{schema}.redb.zst"))
}

/// Writes the fixture of the present schema.
fn write() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("metadata.redb");
    let metadata = metadata::Store::open(&path).expect("opens");
    metadata.create_namespace(&namespace(), labels()).expect("makes");
    metadata.create_image(&engine::namespace::Scope::new(namespace()), image()).expect("makes");
    metadata.create_container(&namespace(), container()).expect("makes");
    metadata.create_sandbox(&namespace(), sandbox()).expect("makes");
    metadata.create_lease(&namespace(), "lease", labels()).expect("makes");
    let blob = Digest::of(b"blob");
    let content = engine::content::Store::open(&folder.path().join("content"), metadata.clone());
    let mut scope = engine::namespace::Scope::new(namespace());
    scope.lease = Some("lease".to_owned());
    assert_eq!(content.expect("opens").put(&scope, b"blob", labels()).expect("puts"), blob);
    let held = Resource::snapshot("overlayfs", "active");
    metadata.add_lease_resource(&namespace(), "lease", &held).expect("adds");
    let records: Arc<dyn Transactions> = Arc::new(metadata);
    let overlay =
        Overlay::open_in_boot(&folder.path().join("s"), records, OverlayOptions::default(), "boot");
    let overlay = overlay.expect("opens");
    overlay.prepare(&key("new"), None, Labels::new()).expect("prepares");
    overlay.commit(&key("layer"), &key("new"), labels()).expect("commits");
    overlay.prepare(&key("active"), Some(&key("layer")), labels()).expect("prepares");
    overlay.view(&key("view"), Some(&key("layer")), Labels::new()).expect("views");
    drop(overlay);
    let bytes = fs::read(&path).expect("reads");
    let packed = zstd::encode_all(&*bytes, 19).expect("packs");
    fs::create_dir_all(file(SCHEMA).parent().expect("has one")).expect("makes");
    fs::write(file(SCHEMA), packed).expect("writes");
}

#[test]
fn every_older_form_is_read() {
    if std::env::var_os("GANTRY_WRITE_FIXTURE").is_some() {
        write();
    }
    for schema in 1..=SCHEMA {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let packed = fs::read(file(schema)).expect("each schema has a fixture");
        let bytes = zstd::decode_all(&*packed).expect("unpacks");
        fs::write(folder.path().join("metadata.redb"), bytes).expect("writes");
        compare(folder.path(), schema);
    }
}

fn compare(root: &Path, schema: u64) {
    let metadata = metadata::Store::open(&root.join("metadata.redb")).expect("opens");
    let (namespace, all) = (namespace(), Filter::default());
    let found = metadata.namespaces().expect("reads");
    let found: Vec<_> = found.iter().map(|it| (it.name.as_str(), it.labels.clone())).collect();
    assert_eq!(found, [("default", labels())], "{schema}");

    let mut got = metadata.image(&namespace, &image().name).expect("is there");
    assert!(got.created > UNIX_EPOCH && got.updated >= got.created, "{schema}: {got:?}");
    (got.created, got.updated) = (unset(), unset());
    assert_eq!(got, image(), "{schema}");

    let mut got = metadata.container(&namespace, "container").expect("is there");
    (got.created, got.updated) = (unset(), unset());
    assert_eq!(got, container(), "{schema}");

    let mut got = metadata.sandbox(&namespace, "sandbox").expect("is there");
    (got.created, got.updated) = (unset(), unset());
    assert_eq!(got, sandbox(), "{schema}");

    let leases = metadata.leases(&namespace, &all).expect("reads");
    let leases: Vec<_> = leases.iter().map(|it| (it.id.as_str(), it.labels.clone())).collect();
    assert_eq!(leases, [("lease", labels())], "{schema}");
    let blob = Digest::of(b"blob");
    let held = metadata.lease_resources(&namespace, "lease").expect("reads");
    let want = [Resource::content(&blob), Resource::snapshot("overlayfs", "active")];
    assert_eq!(held, want, "{schema}");
    let info = metadata.content(&namespace, &blob).expect("is there");
    assert_eq!((info.size, info.labels), (4, labels()), "{schema}");

    let records: Arc<dyn Transactions> = Arc::new(metadata);
    let options = OverlayOptions::default();
    let overlay = Overlay::open_in_boot(&root.join("s"), records, options, "another");
    let overlay = overlay.expect("opens");
    let mut got: Vec<(String, Kind, Option<Key>, Labels)> = Vec::new();
    let mut visit = |it: Info| {
        got.push((it.key.name().to_owned(), it.kind, it.parent, it.labels));
        ControlFlow::Continue(())
    };
    overlay.walk(None, &mut visit).expect("walks");
    let layer = Some(key("layer"));
    let want = [
        ("active".to_owned(), Kind::Active, layer.clone(), labels()),
        ("layer".to_owned(), Kind::Committed, None, labels()),
        ("view".to_owned(), Kind::View, layer, Labels::new()),
    ];
    assert_eq!(got, want, "{schema}");
    let suspects = overlay.suspects().expect("reads");
    assert_eq!(suspects.len(), 1, "{schema}: it was not synced: {suspects:?}");
    drop(overlay);
    // Of records, only what has no file is amiss.
    let report = Root::open(root).expect("is free").check(false).expect("checks");
    let missing: Vec<_> = report.problems.iter().map(|it| it.table.as_str()).collect();
    assert!(missing.iter().all(|table| ["content", "snapshots"].contains(table)), "{report:?}");
}
