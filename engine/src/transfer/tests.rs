//! Transfers between archives and stores, without a daemon.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use snapshotter::{Copies, Key, Native, Overlay, OverlayOptions, Snapshotter};
use tokio::sync::mpsc;

use super::*;
use crate::{
    diff::{
        CompareOptions, Processor,
        tar::{Entry, Kind, Time, Writer},
    },
    gc::Collector,
    metadata::Store,
    oci::{ANNOTATION_REF_NAME, Index, Manifest, media_type},
    streaming::{ByteReceiver, ByteSender, Stream},
};

/// The type of layers with a word before them, which a processor takes away.
const STAMPED: &str = "application/vnd.oci.image.layer.v1.tar+stamped";

/// The type of layers with another word before them, which nothing here takes away.
const FOREIGN: &str = "application/vnd.oci.image.layer.v1.tar+foreign";

fn file(path: &str, bytes: &[u8]) -> (Entry, Vec<u8>) {
    let size = bytes.len() as u64;
    let kind = if path.ends_with('/') { Kind::Directory } else { Kind::Regular };
    let entry = Entry {
        path: path.into(),
        link: Vec::new(),
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        size,
        stored: size,
        mtime: Time::default(),
        device: (0, 0),
        xattrs: Vec::new(),
        pieces: None,
    };
    (entry, bytes.to_vec())
}

fn tar(files: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut tar = Writer::new(Vec::new());
    for (entry, bytes) in files {
        tar.entry(entry).unwrap();
        tar.data(bytes).unwrap();
    }
    tar.finish().unwrap()
}

/// An OCI layout with an image of these layers, called `name`.
fn layout(name: &str, layers: &[Vec<u8>], diff_ids: &[Digest]) -> Vec<u8> {
    layout_of(&[(name, layers, diff_ids)])
}

/// An image: its name, its layers and their diff IDs.
type Parts<'a> = (&'a str, &'a [Vec<u8>], &'a [Digest]);

/// An OCI layout with these images.
fn layout_of(images: &[Parts<'_>]) -> Vec<u8> {
    let mut blobs: Vec<Vec<u8>> = Vec::new();
    let mut manifests = Vec::new();
    for (name, layers, diff_ids) in images {
        let texts: Vec<String> = diff_ids.iter().map(Digest::to_string).collect();
        let config = serde_json::json!({
            "os": "linux", "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": texts},
        });
        let config = config.to_string().into_bytes();
        let describe = |layer: &Vec<u8>| {
            let is_stamped = layer.starts_with(b"stamped");
            let is_foreign = layer.starts_with(b"foreign");
            let kind = if is_foreign { FOREIGN } else { media_type::OCI_LAYER };
            Descriptor::of(if is_stamped { STAMPED } else { kind }, layer)
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST.to_owned(),
            config: Descriptor::of(media_type::OCI_CONFIG, &config),
            layers: layers.iter().map(describe).collect(),
        };
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let mut entry = Descriptor::of(media_type::OCI_MANIFEST, &manifest);
        entry.annotations.insert(ANNOTATION_REF_NAME.to_owned(), (*name).to_owned());
        manifests.push(entry);
        blobs.extend([config, manifest]);
        blobs.extend(layers.iter().cloned());
    }
    let index = Index { schema_version: 2, media_type: String::new(), manifests };
    let mut files = vec![
        file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        file("index.json", &serde_json::to_vec(&index).unwrap()),
    ];
    for blob in &blobs {
        files.push(file(&format!("blobs/sha256/{}", Digest::of(blob).hex()), blob));
    }
    tar(&files)
}

struct Kit {
    folder: tempfile::TempDir,
    content: content::Store,
    overlay: Arc<dyn Snapshotter>,
    native: Arc<dyn Snapshotter>,
    transfer: Transfer,
    /// How often garbage collection was told that there may be some.
    released: Arc<AtomicU64>,
}

impl Kit {
    fn new() -> Self {
        Self::with(|_| vec![Differ::Own])
    }

    /// With differs that may look into the content store.
    fn with(differs: impl FnOnce(content::Store) -> Vec<Differ>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("metadata.redb")).unwrap();
        let content = content::Store::open(&folder.path().join("content"), store.clone()).unwrap();
        let records = || Arc::new(store.clone());
        let at = |name: &str| folder.path().join(name);
        let options = OverlayOptions::default();
        let overlay: Arc<dyn Snapshotter> =
            Arc::new(Overlay::open(&at("overlay"), records(), options).unwrap());
        let native: Arc<dyn Snapshotter> =
            Arc::new(Native::open(&at("native"), records(), Copies).unwrap());
        let snapshotters = Arc::new(Snapshotters::from([
            ("overlayfs".to_owned(), Arc::clone(&overlay)),
            ("native".to_owned(), Arc::clone(&native)),
        ]));
        let released = Arc::<AtomicU64>::default();
        let count = Arc::clone(&released);
        let on_release = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let strip = Processor {
            accepts: vec![STAMPED.to_owned()],
            returns: media_type::OCI_LAYER.to_owned(),
            path: "tail".to_owned(),
            args: vec!["--bytes=+8".to_owned()],
            env: Vec::new(),
        };
        let processors = [("strip".to_owned(), strip)].into();
        let events = Exchange::default();
        let (content, differs) = (content.clone(), differs(content));
        let transfer =
            Transfer::new(content.clone(), snapshotters, events, processors, differs, on_release);
        Self { folder, content, overlay, native, transfer, released }
    }

    fn scope() -> Scope {
        Scope::new("test".parse().unwrap())
    }

    async fn import(&self, archive: Vec<u8>, snapshotter: &str) -> Result<(), Error> {
        let to = Destination {
            name: String::new(),
            labels: Labels::new(),
            platforms: Platforms::All,
            all_metadata: false,
            limit: 0,
            rules: vec![NameRule {
                name: "import".to_owned(),
                is_prefix: true,
                allow_overwrite: true,
                ..NameRule::default()
            }],
            unpack: vec![UnpackTarget {
                platform: Platform::parse("linux/amd64").unwrap(),
                snapshotter: snapshotter.to_owned(),
            }],
        };
        self.import_to(archive, to).await
    }

    async fn import_to(&self, archive: Vec<u8>, to: Destination) -> Result<(), Error> {
        let (to_client, mut from_engine) = mpsc::channel(16);
        let (to_engine, incoming) = mpsc::channel(16);
        let stream = Stream { incoming, outgoing: to_client };
        let client = tokio::spawn(async move {
            let (outgoing, incoming) = (to_engine, {
                let (forward, incoming) = mpsc::channel(16);
                tokio::spawn(async move {
                    while let Some(message) = from_engine.recv().await {
                        if forward.send(message).await.is_err() {
                            return;
                        }
                    }
                });
                incoming
            });
            ByteSender::new(Stream { incoming, outgoing }).send(archive.into()).await
        });
        let stream = ByteReceiver::new(stream);
        let result = self.transfer.import(Self::scope(), stream, to, Progress::none()).await;
        drop(client);
        result
    }

    /// What a snapshot shows, by path: the contents of its files.
    fn show(&self, snapshotter: &dyn Snapshotter, name: &str) -> BTreeMap<String, String> {
        let view = Key::new("test", "view").unwrap();
        let parent = Key::new("test", name).unwrap();
        let mounts = snapshotter.view(&view, Some(&parent), Labels::new()).unwrap();
        let mut layer = Vec::new();
        let options =
            CompareOptions { compression: crate::diff::Compression::Uncompressed, mtime_max: None };
        crate::diff::compare(&[], &mounts, &options, &mut layer).unwrap();
        snapshotter.remove(&view).unwrap();
        let mut reader = crate::diff::tar::Reader::new(crate::diff::tar::Stream::new(
            crate::diff::Decoder::new(layer.as_slice()).unwrap(),
            1 << 20,
        ));
        let mut files = BTreeMap::new();
        while let Some(entry) = reader.next().unwrap() {
            let bytes = reader.data(1 << 20).unwrap().to_vec();
            let path = String::from_utf8(entry.path).unwrap();
            files.insert(path, String::from_utf8(bytes).unwrap());
        }
        files
    }

    fn left_over(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (name, snapshotter) in [("overlayfs", &self.overlay), ("native", &self.native)] {
            snapshotter
                .walk(None, &mut |info| {
                    left.push(format!("{name} {}", info.key));
                    std::ops::ControlFlow::Continue(())
                })
                .unwrap();
        }
        let everything = crate::filter::Filter::parse_all::<&str>(&[]).unwrap();
        let scope = Self::scope();
        let metadata = self.content.metadata();
        let leases = metadata.leases(&scope.namespace, &everything).unwrap();
        left.extend(leases.into_iter().map(|lease| lease.id));
        let images = metadata.images(&scope.namespace, &everything).unwrap();
        left.extend(images.into_iter().map(|image| image.name));
        left
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_that_no_layer_tells_of_are_like_those_below() {
    use std::os::unix::fs::PermissionsExt;

    let mut secret = file("secret/", b"");
    secret.0.mode = 0o700;
    let layers = vec![tar(&[secret]), tar(&[file("secret/a", b"1")])];
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let top = crate::oci::chain_ids(&diff_ids).pop().unwrap().to_string();
    for snapshotter in ["overlayfs", "native"] {
        let kit = Kit::new();
        kit.import(layout("v1", &layers, &diff_ids), snapshotter).await.unwrap();
        let of = if snapshotter == "native" { &kit.native } else { &kit.overlay };
        let (view, parent) = (Key::new("test", "view").unwrap(), Key::new("test", &top).unwrap());
        let mounts = of.view(&view, Some(&parent), Labels::new()).unwrap();
        let lower = mounts[0].option("lowerdir").unwrap_or(&mounts[0].source);
        let upper = lower.split(':').next().unwrap();
        let mode = std::fs::metadata(format!("{upper}/secret")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700, "{snapshotter}");
    }
}

fn layers() -> (Vec<Vec<u8>>, Vec<Digest>) {
    let layers = vec![
        tar(&[file("etc/", b""), file("etc/a", b"1"), file("etc/b", b"1"), file("gone", b"1")]),
        tar(&[file("etc/", b""), file("etc/a", b"2"), file(".wh.gone", b"")]),
        tar(&[file("etc/", b""), file("etc/.wh..wh..opq", b""), file("etc/c", b"3")]),
    ];
    let diff_ids = layers.iter().map(|layer| Digest::of(layer)).collect();
    (layers, diff_ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_go_through_processors() {
    let (mut layers, diff_ids) = layers();
    for layer in &mut layers[1..] {
        *layer = [b"stamped", layer.as_slice()].concat();
    }
    let top = crate::oci::chain_ids(&diff_ids).pop().unwrap();
    for snapshotter in ["overlayfs", "native"] {
        let kit = Kit::new();
        kit.import(layout("v1", &layers, &diff_ids), snapshotter).await.unwrap();
        let of = if snapshotter == "native" { &kit.native } else { &kit.overlay };
        let shown = kit.show(of.as_ref(), &top.to_string());
        let want = [("etc/", ""), ("etc/c", "3")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(shown, want.into(), "{snapshotter}");
        let labels = kit.content.info(&Kit::scope().namespace, &Digest::of(&layers[1])).unwrap();
        let noted = labels.labels.get(crate::labels::LABEL_UNCOMPRESSED).cloned();
        assert_eq!(noted, Some(diff_ids[1].to_string()), "{snapshotter}");
    }
    // What a processor makes of another layer is not what the image says.
    layers[2] = [b"stamped", layers[0].as_slice()].concat();
    let kit = Kit::new();
    let error = kit.import(layout("v1", &layers, &diff_ids), "overlayfs").await.unwrap_err();
    assert!(matches!(error, Error::Invalid(InvalidImage::DiffId { .. })), "{error:?}");
}

/// Applies layers as another program would: from the content store, to what is mounted. It writes down each.
fn applier(content: content::Store, applied: Arc<Mutex<Vec<Digest>>>) -> Differ {
    Differ::Other(Arc::new(move |scope, layer, mounts| {
        let (content, applied) = (content.clone(), Arc::clone(&applied));
        Box::pin(async move {
            if layer.media_type == STAMPED {
                return Err(crate::error::Error::NotImplemented("not these".to_owned()));
            }
            let reader = content.blob(&scope.namespace, &layer.digest)?.into_reader();
            let done = crate::diff::apply(reader, &mounts, &Default::default())?;
            applied.lock().unwrap().push(layer.digest);
            Ok(done.diff_id)
        })
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_differs_apply_what_they_know() {
    let (mut layers, diff_ids) = layers();
    layers[1] = [b"stamped", layers[1].as_slice()].concat();
    let top = crate::oci::chain_ids(&diff_ids).pop().unwrap();
    for snapshotter in ["overlayfs", "native"] {
        let applied = Arc::<Mutex<Vec<Digest>>>::default();
        let differs = |content| vec![applier(content, Arc::clone(&applied)), Differ::Own];
        let kit = Kit::with(differs);
        kit.import(layout("v1", &layers, &diff_ids), snapshotter).await.unwrap();
        let of = if snapshotter == "native" { &kit.native } else { &kit.overlay };
        let shown = kit.show(of.as_ref(), &top.to_string());
        let want = [("etc/", ""), ("etc/c", "3")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(shown, want.into(), "{snapshotter}");
        let by_it = [0, 2].map(|number: usize| Digest::of(&layers[number]));
        assert_eq!(*applied.lock().unwrap(), by_it, "{snapshotter}: in their order");
    }
    // Where nobody knows it, nothing is left behind.
    let kit = Kit::with(|content| vec![applier(content, Arc::default())]);
    let error = kit.import(layout("v1", &layers, &diff_ids), "overlayfs").await.unwrap_err();
    assert!(matches!(error, Error::State(crate::error::Error::NotImplemented(_))), "{error:?}");
    // What it has applied is not what the image says.
    let liar: Differ = Differ::Other(Arc::new(|_, _, _| Box::pin(async { Ok(Digest::of(b"")) })));
    let kit = Kit::with(|_| vec![liar, Differ::Own]);
    let error = kit.import(layout("v1", &layers, &diff_ids), "overlayfs").await.unwrap_err();
    assert!(matches!(error, Error::Invalid(InvalidImage::DiffId { .. })), "{error:?}");
}

/// Applies layers of the type that nothing else knows.
fn foreigner(content: content::Store) -> Differ {
    Differ::Other(Arc::new(move |scope, layer, mounts| {
        let content = content.clone();
        Box::pin(async move {
            if layer.media_type != FOREIGN {
                return Err(crate::error::Error::NotImplemented("not these".to_owned()));
            }
            let bytes = content.blob(&scope.namespace, &layer.digest)?.read_all(1 << 20)?;
            Ok(crate::diff::apply(&bytes[b"foreign".len()..], &mounts, &Default::default())?
                .diff_id)
        })
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn differs_are_asked_in_their_order_by_the_kind_of_layer() {
    let (mut layers, diff_ids) = layers();
    layers[1] = [b"stamped", layers[1].as_slice()].concat();
    layers[2] = [b"foreign", layers[2].as_slice()].concat();
    let top = crate::oci::chain_ids(&diff_ids).pop().unwrap();
    let nobody = || -> Differ {
        Differ::Other(Arc::new(|_, _, _| {
            let refused = crate::error::Error::NotImplemented("nothing".to_owned());
            Box::pin(async { Err(refused) })
        }))
    };
    type Order = fn(Differ, Differ) -> Vec<Differ>;
    let cases: [(&str, Order, bool); 6] = [
        ("own, other", |other, _| vec![Differ::Own, other], true),
        ("none, own, other", |other, none| vec![none, Differ::Own, other], true),
        ("other, own", |other, _| vec![other, Differ::Own], true),
        ("own, none", |_, none| vec![Differ::Own, none], false),
        ("none, own", |_, none| vec![none, Differ::Own], false),
        ("nobody", |_, _| Vec::new(), false),
    ];
    for (case, order, applies) in cases {
        for snapshotter in ["overlayfs", "native"] {
            let kit = Kit::with(|content| order(foreigner(content), nobody()));
            let imported = kit.import(layout("v1", &layers, &diff_ids), snapshotter).await;
            if !applies {
                let error = imported.unwrap_err();
                let is_refused =
                    matches!(error, Error::State(crate::error::Error::NotImplemented(_)));
                assert!(is_refused, "{case}, {snapshotter}: {error:?}");
                continue;
            }
            imported.unwrap_or_else(|error| panic!("{case}, {snapshotter}: {error:?}"));
            let of = if snapshotter == "native" { &kit.native } else { &kit.overlay };
            let shown = kit.show(of.as_ref(), &top.to_string());
            let want = [("etc/", ""), ("etc/c", "3")].map(|(a, b)| (a.to_owned(), b.to_owned()));
            assert_eq!(shown, want.into(), "{case}, {snapshotter}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn import_unpacks_in_order() {
    let (layers, diff_ids) = layers();
    let chain = crate::oci::chain_ids(&diff_ids);
    for snapshotter in ["overlayfs", "native"] {
        let kit = Kit::new();
        kit.import(layout("v1", &layers, &diff_ids), snapshotter).await.unwrap();
        let of = if snapshotter == "native" { &kit.native } else { &kit.overlay };
        let text = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        let second = kit.show(of.as_ref(), &chain[1].to_string());
        assert_eq!(second, text(&[("etc/", ""), ("etc/a", "2"), ("etc/b", "1")]), "{snapshotter}");
        let third = kit.show(of.as_ref(), &chain[2].to_string());
        assert_eq!(third, text(&[("etc/", ""), ("etc/c", "3")]), "{snapshotter}");
        let image = kit.content.metadata().image(&Kit::scope().namespace, "import:v1").unwrap();
        assert_eq!(image.target.media_type, media_type::OCI_MANIFEST);
        drop(kit.folder);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn import_notes_what_layers_inflate_to() {
    let (layers, diff_ids) = layers();
    let packed: Vec<Vec<u8>> =
        layers.iter().map(|layer| zstd::encode_all(&layer[..], 1).unwrap()).collect();
    let kit = Kit::new();
    kit.import(layout("v1", &packed, &diff_ids), "overlayfs").await.unwrap();
    for (blob, diff_id) in packed.iter().zip(&diff_ids) {
        let info = kit.content.info(&Kit::scope().namespace, &Digest::of(blob)).unwrap();
        assert_eq!(info.labels.get(LABEL_UNCOMPRESSED), Some(&diff_id.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn import_of_several_images() {
    let (layers, diff_ids) = layers();
    let kit = Kit::new();
    let images = [
        ("v1", &layers[..1], &diff_ids[..1]),
        ("v2", &layers[1..], &diff_ids[1..]),
        ("v3", &layers[..2], &diff_ids[..2]),
    ];
    kit.import(layout_of(&images), "overlayfs").await.unwrap();
    for (name, _, diff_ids) in images {
        kit.content.metadata().image(&Kit::scope().namespace, &format!("import:{name}")).unwrap();
        let top = crate::oci::chain_ids(diff_ids).pop().unwrap().to_string();
        kit.overlay.stat(&Key::new("test", &top).unwrap()).unwrap();
    }
}

/// Further names are kept by the image's own, and expire, so that they go when that one is removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn further_names_hang_on_the_first() {
    let (layers, diff_ids) = layers();
    let rule = NameRule {
        name: "pre".to_owned(),
        is_prefix: true,
        add_digest: true,
        ..NameRule::default()
    };
    let labels = Labels::from([("a".to_owned(), "b".to_owned())]);
    let to = |name: &str, rule| Destination {
        name: name.to_owned(),
        labels: labels.clone(),
        platforms: Platforms::All,
        all_metadata: false,
        limit: 0,
        rules: vec![rule],
        unpack: Vec::new(),
    };
    let image_of = |kit: &Kit, name: &str| {
        kit.content.metadata().image(&Kit::scope().namespace, name).unwrap()
    };
    // One that is the image's own does not hang on itself.
    let whole = NameRule { name: "own".to_owned(), ..NameRule::default() };
    for (name, rule) in [("pre:v1", rule.clone()), ("own", whole)] {
        let kit = Kit::new();
        let to = to(name, rule);
        kit.import_to(layout("v1", &layers, &diff_ids), to).await.unwrap();
        assert_eq!(image_of(&kit, name).labels, labels, "{name}");
        let snapshotters = Arc::default();
        Collector::new(kit.content.clone(), snapshotters, |_| {}).collect(true).unwrap();
        let target = image_of(&kit, name).target;
        kit.content.info(&Kit::scope().namespace, &target.digest).expect("is kept");
    }
    let kit = Kit::new();
    kit.import_to(layout("v1", &layers, &diff_ids), to("own", rule)).await.unwrap();
    let image = |name: &str| image_of(&kit, name);
    let own = image("own");
    assert_eq!(own.labels, labels);
    let tagged = image("pre:v1");
    let by_digest = image(&format!("pre@{}", tagged.target.digest));
    let of_all = image(&format!("pre@{}", own.target.digest));
    for (case, further) in [("tag", tagged), ("digest", by_digest), ("index", of_all)] {
        let label = |key: &str| further.labels.get(key).map(String::as_str);
        assert_eq!(label("containerd.io/gc.bref.image"), Some("own"), "{case}");
        assert_eq!(label("a"), Some("b"), "{case}");
        let expires: jiff::Timestamp = label(EXPIRE).unwrap().parse().expect("a time");
        assert!(expires <= jiff::Timestamp::now(), "{case}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn imports_of_one_image_at_once() {
    let (layers, diff_ids) = layers();
    let kit = Kit::new();
    let archive = layout("v1", &layers, &diff_ids);
    let imports = (0..16).map(|_| kit.import(archive.clone(), "overlayfs"));
    for result in futures::future::join_all(imports).await {
        result.unwrap();
    }
    assert_eq!(kit.released.load(Ordering::Relaxed), 16);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_document_from_several_transfers() {
    let kit = Kit::new();
    let work = Arc::new(Work::new(&kit.transfer, Kit::scope(), None, Progress::none()));
    for round in 0..8 {
        let bytes = bytes::Bytes::from(format!("document {round}"));
        let descriptor = Descriptor::of(media_type::OCI_CONFIG, &bytes);
        let stores = (0..8).map(|_| work.store_document(&descriptor, bytes.clone(), Labels::new()));
        for result in futures::future::join_all(stores).await {
            result.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn export_of_indexes_without_end() {
    for (case, children, depth) in [("deep", 1, 400), ("wide", 4, 7)] {
        let kit = Kit::new();
        let scope = Kit::scope();
        let mut target = Descriptor::of(media_type::OCI_MANIFEST, b"never fetched");
        for _ in 0..depth {
            let manifests = vec![target; children];
            let index = Index { schema_version: 2, media_type: String::new(), manifests };
            let bytes = serde_json::to_vec(&index).unwrap();
            kit.content.put(&scope, &bytes, Labels::new()).unwrap();
            target = Descriptor::of(media_type::OCI_INDEX, &bytes);
        }
        let transfer = &kit.transfer;
        let work = Arc::new(Work::new(transfer, scope.clone(), None, Progress::none()));
        work.record_target("h/i:1", target, Labels::new()).await.unwrap();
        let (to_client, _from_engine) = mpsc::channel(16);
        let (_to_engine, incoming) = mpsc::channel(16);
        let stream = ByteSender::new(Stream { incoming, outgoing: to_client });
        let options = ExportOptions {
            names: vec!["h/i:1".to_owned()],
            platforms: Platforms::All,
            skip_docker_manifest: false,
            skip_non_distributable: false,
        };
        let error = transfer.export(scope, options, stream, Progress::none()).await;
        let error = error.expect_err(case);
        assert!(
            matches!(error, Error::Invalid(InvalidImage::TooManyDocuments { .. })),
            "{case}: {error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_leave_nothing() {
    let (layers, diff_ids) = layers();
    let mut cut = layout("v1", &layers, &diff_ids);
    cut.truncate(cut.len() / 2);
    let mut swapped = diff_ids.clone();
    swapped.swap(1, 2);
    let broken = {
        let mut layers = layers.clone();
        layers[1][0] ^= 1;
        layers
    };
    let digests: Vec<Digest> = broken.iter().map(|layer| Digest::of(layer)).collect();
    let cases = [
        ("cut short", cut, "archive: read"),
        ("no archive", tar(&[file("x", b"y")]), "archive: unrecognized image format"),
        ("other diff IDs", layout("v1", &layers, &swapped), "invalid image: layer"),
        ("too few diff IDs", layout("v1", &layers, &diff_ids[..2]), "invalid image: manifest"),
        ("broken layer", layout("v1", &broken, &digests), "unpack layer"),
    ];
    for (case, archive, want) in cases {
        let kit = Kit::new();
        let error = kit.import(archive, "overlayfs").await.expect_err(case);
        let got = sys::error::Chain(&error).to_string();
        assert!(got.starts_with(want), "{case}: {got}");
        let left = kit.left_over();
        // What was committed before the failure is whole, and garbage.
        let unfinished: Vec<_> = left.iter().filter(|name| !name.contains("\"sha256:")).collect();
        assert_eq!(unfinished, Vec::<&String>::new(), "{case}");
        assert_eq!(kit.released.load(Ordering::Relaxed), 1, "{case}: garbage is collected");
    }
}
