//! The daemon over its socket, with generated clients.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use engine::{
    config::{Config, Layout, Paths},
    daemon::Daemon,
    db::DATABASE,
    diff::{Processor, Processors},
    digest::Digest,
    metadata,
};
use prost_types::Any;
use proto::containerd::services::{
    containers::v1::{
        Container, CreateContainerRequest, ListContainersRequest, container::Runtime,
        containers_client::ContainersClient,
    },
    content::v1::{
        InfoRequest, ReadContentRequest, StatusRequest, WriteAction, WriteContentRequest,
        WriteContentResponse, content_client::ContentClient,
    },
    diff::v1::{ApplyRequest, diff_client::DiffClient},
    images::v1::{GetImageRequest, images_client::ImagesClient},
    introspection::v1::{PluginInfoRequest, introspection_client::IntrospectionClient},
    leases::v1::{CreateRequest, DeleteRequest, leases_client::LeasesClient},
    namespaces::v1::{DeleteNamespaceRequest, namespaces_client::NamespacesClient},
    snapshots::v1::{
        PrepareSnapshotRequest, StatSnapshotRequest, snapshots_client::SnapshotsClient,
    },
    streaming::v1::{StreamInit, streaming_client::StreamingClient},
    version::v1::version_client::VersionClient,
};
use proto::containerd::types::{Descriptor, Mount, RuntimeInfo, RuntimeRequest};
use proto::gantry::services::gc::v1::{ExplainRequest, RunRequest, gc_client::GcClient};
use snapshotter::{
    Change, Kind, Labels, Transactions,
    records::{Record, SNAPSHOTS},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

/// A daemon in a folder of its own, and a connection to it.
struct Fixture {
    _folder: tempfile::TempDir,
    channel: Channel,
    content: PathBuf,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Fixture {
    async fn start() -> Self {
        Self::start_with(Config::default()).await
    }

    async fn start_with(config: Config) -> Self {
        Self::start_on(config, |_| ()).await
    }

    /// Starts on what `prepare` has put into the root.
    async fn start_on(config: Config, prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let config = Config {
            root: Some(folder.path().join("root")),
            state: Some(folder.path().join("state")),
            ..config
        };
        let paths: Paths = config.paths(Layout::Gantry);
        prepare(&paths.root);
        let daemon = Daemon::build(config, &paths).expect("builds");
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            daemon.serve(stopped).await.expect("serves");
        });
        let address = format!("unix://{}", paths.address.display());
        let channel = Endpoint::from_shared(address).expect("an address").connect().await;
        let channel = channel.expect("connects");
        Self { _folder: folder, channel, content: paths.root.join("content"), stop, serving }
    }

    async fn stop(self) {
        let Self { channel, stop, serving, .. } = self;
        drop(channel);
        stop.send(()).expect("still serves");
        serving.await.expect("ends");
    }
}

/// A request in namespace `default`.
fn scoped<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let namespace = "default".parse().expect("a header");
    request.metadata_mut().insert("containerd-namespace", namespace);
    request
}

fn leased<T>(message: T, lease: &str) -> Request<T> {
    let mut request = scoped(message);
    request.metadata_mut().insert("containerd-lease", lease.parse().expect("a header"));
    request
}

fn new_container(id: String) -> CreateContainerRequest {
    let runtime = Runtime { name: "io.containerd.runc.v2".to_owned(), options: None };
    let container = Container {
        id,
        runtime: Some(runtime),
        spec: Some(Any::default()),
        ..Container::default()
    };
    CreateContainerRequest { container: Some(container) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_required() {
    let fixture = Fixture::start().await;
    let mut images = ImagesClient::new(fixture.channel.clone());
    let get = || GetImageRequest { name: "x".to_owned() };
    let error = images.get(get()).await.expect_err("no namespace");
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert_eq!(error.message(), "namespace is required: failed precondition");
    let mut request = Request::new(get());
    request.metadata_mut().insert("containerd-namespace", "a/b".parse().expect("a header"));
    let error = images.get(request).await.expect_err("no namespace");
    assert_eq!(error.code(), Code::InvalidArgument);
    let error = images.get(scoped(get())).await.expect_err("no image");
    assert_eq!((error.code(), error.message()), (Code::NotFound, "image \"x\": not found"));
    VersionClient::new(fixture.channel.clone()).version(()).await.expect("needs no namespace");
    fixture.stop().await;
}

/// Clients ask so what a runtime can do (containerd's client, `RuntimeInfo`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtimes_say_what_they_can() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let shim = folder.path().join("shim");
    fs::write(&shim, "#!/bin/sh\nprintf '\\012\\004mine'\n").expect("written");
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).expect("permitted");
    let runtime = |path: &str| {
        proto::any::pack(&RuntimeRequest { runtime_path: path.to_owned(), options: None })
    };
    let mine = RuntimeInfo { name: "mine".to_owned(), ..RuntimeInfo::default() };
    let tasks = ("io.containerd.runtime.v2", "task");
    let cases = [
        ("a shim", tasks, Some(runtime(&shim.display().to_string())), Ok(Some(mine))),
        ("no question", tasks, None, Ok(None)),
        ("no shim", tasks, Some(runtime("/no/shim")), Err(Code::NotFound)),
        ("not one that says", tasks, Some(runtime("/bin/false")), Err(Code::Unknown)),
        (
            "another question",
            tasks,
            Some(proto::any::pack(&Mount::default())),
            Err(Code::Unimplemented),
        ),
        (
            "another part",
            ("io.containerd.gc.v1", "scheduler"),
            Some(runtime("/no/shim")),
            Err(Code::Unimplemented),
        ),
    ];
    let fixture = Fixture::start().await;
    let mut client = IntrospectionClient::new(fixture.channel.clone());
    for (case, (kind, id), options, want) in cases {
        let request = PluginInfoRequest { r#type: kind.to_owned(), id: id.to_owned(), options };
        let got = client.plugin_info(request).await.map_err(|error| error.code()).map(|answer| {
            let extra = answer.into_inner().extra;
            extra.and_then(|extra| proto::any::unpack(&extra).expect("a message"))
        });
        assert_eq!(got, want, "{case}");
    }
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_creates() {
    const COUNT: usize = 200;
    let fixture = Fixture::start().await;
    let begun = Instant::now();
    let creates = (0..COUNT).map(|number| {
        let mut client = ContainersClient::new(fixture.channel.clone());
        // Every second one has the name of the one before.
        tokio::spawn(async move {
            client.create(scoped(new_container(format!("c{}", number / 2)))).await
        })
    });
    let creates: Vec<_> = creates.collect();
    let mut codes = Vec::new();
    for create in creates {
        codes.push(create.await.expect("ends").map_or_else(|error| error.code(), |_| Code::Ok));
    }
    println!("{COUNT} creates: {:?}", begun.elapsed());
    let count = |code| codes.iter().filter(|&&found| found == code).count();
    assert_eq!((count(Code::Ok), count(Code::AlreadyExists)), (COUNT / 2, COUNT / 2));
    let mut client = ContainersClient::new(fixture.channel.clone());
    let all = || scoped(ListContainersRequest::default());
    let listed = client.list(all()).await.expect("lists").into_inner().containers;
    assert_eq!(listed.len(), COUNT / 2);
    let mut stream = client.list_stream(all()).await.expect("lists").into_inner();
    let mut streamed = 0;
    while stream.message().await.expect("lists").is_some() {
        streamed += 1;
    }
    assert_eq!(streamed, COUNT / 2);
    fixture.stop().await;
}

/// A list is sent in pieces; see that none is missing and none comes twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_many_pieces_is_whole() {
    const COUNT: usize = 20;
    let fixture = Fixture::start().await;
    let mut client = ContainersClient::new(fixture.channel.clone());
    for number in 0..COUNT {
        let mut request = new_container(format!("c{number:02}"));
        let container = request.container.as_mut().expect("just made");
        container.spec = Some(Any { type_url: "types/x".to_owned(), value: vec![1; 100_000] });
        client.create(scoped(request)).await.expect("creates");
    }
    let list = |filters: &[&str]| {
        let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
        scoped(ListContainersRequest { filters })
    };
    let cases: [(&str, &[&str], Vec<usize>); 3] = [
        ("all", &[], (0..COUNT).collect()),
        ("some", &["id~=/[05]$/"], vec![0, 5, 10, 15]),
        ("none", &["id==x"], vec![]),
    ];
    for (case, filters, want) in cases {
        let mut stream = client.list_stream(list(filters)).await.expect("lists").into_inner();
        let mut found = Vec::new();
        while let Some(message) = stream.message().await.expect("lists") {
            let container = message.container.expect("a container");
            assert_eq!(container.spec.map_or(0, |spec| spec.value.len()), 100_000, "{case}");
            found.push(container.id);
        }
        let want: Vec<_> = want.iter().map(|number| format!("c{number:02}")).collect();
        assert_eq!(found, want, "{case}");
    }
    let error = client.list_stream(list(&["id=="])).await.expect_err("no filter");
    assert_eq!(error.code(), Code::InvalidArgument);
    fixture.stop().await;
}

async fn write(
    client: &mut ContentClient<Channel>,
    messages: Vec<WriteContentRequest>,
) -> Result<Vec<WriteContentResponse>, Status> {
    let request = scoped(tokio_stream::iter(messages));
    let mut stream = client.write(request).await?.into_inner();
    let mut answers = Vec::new();
    while let Some(answer) = stream.message().await? {
        answers.push(answer);
    }
    Ok(answers)
}

fn message(action: WriteAction, offset: i64, data: &'static [u8]) -> WriteContentRequest {
    WriteContentRequest {
        action: action.into(),
        r#ref: "r".to_owned(),
        offset,
        data: data.into(),
        ..WriteContentRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_a_conversation() {
    let fixture = Fixture::start().await;
    let mut client = ContentClient::new(fixture.channel.clone());
    let stat = || message(WriteAction::Stat, 0, b"");
    let answers = write(&mut client, vec![stat(), message(WriteAction::Write, 0, b"hel")]).await;
    let offsets: Vec<_> = answers.expect("writes").iter().map(|answer| answer.offset).collect();
    assert_eq!(offsets, [0, 3]);
    let request = scoped(StatusRequest { r#ref: "r".to_owned() });
    let status = client.status(request).await.expect("is there").into_inner().status;
    assert_eq!(status.expect("a status").offset, 3);

    let wrong = write(&mut client, vec![message(WriteAction::Write, 2, b"x")]).await;
    let error = wrong.expect_err("wrong offset");
    assert_eq!(error.code(), Code::OutOfRange);
    assert_eq!(error.message(), "write @2 must occur at current offset 3");

    let digest = Digest::of(b"hello").to_string();
    let mut commit = message(WriteAction::Commit, 3, b"lo");
    commit.total = 5;
    commit.expected.clone_from(&digest);
    // A blob that nothing keeps may be collected at any time.
    commit.labels.insert("containerd.io/gc.root".to_owned(), "test".to_owned());
    let answers = write(&mut client, vec![stat(), commit.clone()]).await.expect("commits");
    let last = answers.last().expect("an answer");
    assert_eq!((last.offset, last.digest.as_str()), (5, digest.as_str()));

    let error = write(&mut client, vec![commit]).await.expect_err("exists");
    assert_eq!(error.code(), Code::AlreadyExists);

    let request = scoped(ReadContentRequest { digest, offset: 1, size: 3 });
    let mut stream = client.read(request).await.expect("reads").into_inner();
    let part = stream.message().await.expect("reads").expect("a part");
    assert_eq!((part.offset, &part.data[..]), (0, &b"ell"[..]));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_keeps_what_is_written_under_it() {
    let fixture = Fixture::start().await;
    let mut leases = LeasesClient::new(fixture.channel.clone());
    let create = CreateRequest { id: "l".to_owned(), ..CreateRequest::default() };
    leases.create(scoped(create)).await.expect("creates");
    let mut client = ContentClient::new(fixture.channel.clone());
    let messages = vec![message(WriteAction::Commit, 0, b"hello")];
    let request = leased(tokio_stream::iter(messages), "l");
    let mut stream = client.write(request).await.expect("writes").into_inner();
    while stream.message().await.expect("writes").is_some() {}

    let digest = Digest::of(b"hello");
    let file = fixture.content.join("blobs/sha256").join(digest.hex());
    assert!(file.exists());
    let info = || scoped(InfoRequest { digest: digest.to_string() });
    client.info(info()).await.expect("is there");
    let delete = DeleteRequest { id: "l".to_owned(), sync: true };
    leases.delete(scoped(delete)).await.expect("deletes");
    let error = client.info(info()).await.expect_err("is collected");
    assert_eq!(error.code(), Code::NotFound);
    assert!(!file.exists());
    fixture.stop().await;
}

/// A layer that is understood only after programs have read it. Needs root, for owners and devices.
/// Between a snapshot and the container on top of it there is always time for a collection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_keeps_the_snapshot_that_is_made_under_it() {
    let fixture = Fixture::start().await;
    let mut leases = LeasesClient::new(fixture.channel.clone());
    for id in ["l", "other"] {
        let create = CreateRequest { id: id.to_owned(), ..CreateRequest::default() };
        leases.create(scoped(create)).await.expect("creates");
    }
    let mut snapshots = SnapshotsClient::new(fixture.channel.clone());
    let (snapshotter, key) = ("native".to_owned(), "k".to_owned());
    let prepare = PrepareSnapshotRequest {
        snapshotter: snapshotter.clone(),
        key: key.clone(),
        ..PrepareSnapshotRequest::default()
    };
    snapshots.prepare(leased(prepare, "l")).await.expect("prepares");
    let stat =
        || scoped(StatSnapshotRequest { snapshotter: snapshotter.clone(), key: key.clone() });
    let collect = |id: &str| scoped(DeleteRequest { id: id.to_owned(), sync: true });
    leases.delete(collect("other")).await.expect("deletes");
    snapshots.stat(stat()).await.expect("is leased");
    leases.delete(collect("l")).await.expect("deletes");
    let error = snapshots.stat(stat()).await.expect_err("is collected");
    assert_eq!(error.code(), Code::NotFound);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_go_through_stream_processors() {
    let decode = |accepts: &str, script: &str| Processor {
        accepts: vec![accepts.to_owned()],
        returns: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        path: "sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        env: Vec::new(),
    };
    let processors = Processors::from([
        (
            "good".to_owned(),
            decode("x/base64", "{ read tag; read key; } <&3; [ \"$key\" = sesame ] && base64 -d"),
        ),
        ("bad".to_owned(), decode("x/bad", "echo no such key >&2; exit 3")),
    ]);
    let config = Config { stream_processors: processors, ..Config::default() };
    let fixture = Fixture::start_with(config).await;
    let layer = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/layer/gzip");
    let encoded = Command::new("base64").arg(layer).output().expect("encodes").stdout;
    let digest = Digest::of(&encoded).to_string();
    let mut commit = message(WriteAction::Commit, 0, b"");
    commit.data = encoded.into();
    commit.labels.insert("containerd.io/gc.root".to_owned(), "test".to_owned());
    let mut client = ContentClient::new(fixture.channel.clone());
    write(&mut client, vec![commit]).await.expect("writes");

    let target = tempfile::tempdir().expect("a temporary directory");
    let mount = Mount {
        r#type: "bind".to_owned(),
        source: target.path().to_str().expect("text").to_owned(),
        options: vec!["rbind".to_owned(), "rw".to_owned()],
        ..Mount::default()
    };
    let request = |media_type: &str, key: &str| {
        let diff = Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.clone(),
            ..Descriptor::default()
        };
        // What is in an Any comes as the message that it is, of which this is the last line.
        let key = Any { type_url: String::new(), value: format!("\n{key}\n").into_bytes() };
        scoped(ApplyRequest {
            diff: Some(diff),
            mounts: vec![mount.clone()],
            payloads: [("good".to_owned(), key)].into(),
            sync_fs: false,
        })
    };
    let mut differ = DiffClient::new(fixture.channel.clone());
    let cases = [
        ("x/bad", "sesame", "layer: stream processor \"bad\": exit status: 3: no such key"),
        (
            "x/none",
            "sesame",
            "failed to get stream processor for x/none: no processor for media-type: not implemented",
        ),
    ];
    for (media_type, key, want) in cases {
        let error = differ.apply(request(media_type, key)).await.expect_err(media_type);
        assert_eq!(error.message(), want);
    }
    let applied = differ.apply(request("x/base64", "sesame")).await.expect("applies").into_inner();
    let usual = std::fs::read(layer.replace("gzip", "usual")).expect("reads");
    assert_eq!(applied.applied.expect("a layer").digest, Digest::of(&usual).to_string());
    assert!(target.path().join("d/h").exists());
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_with_snapshots_of_a_snapshotter_that_is_not_loaded_stays() {
    let fixture = Fixture::start_on(Config::default(), |root| {
        fs::create_dir(root).expect("creates");
        let store = metadata::Store::open(&root.join(DATABASE)).expect("opens");
        let namespace = "default".parse().expect("a namespace");
        store.create_namespace(&namespace, Labels::new()).expect("creates");
        let record = Record {
            id: 1,
            kind: Kind::Active,
            parent: None,
            labels: Labels::new(),
            created: 0,
            updated: 0,
            usage: None,
            unsynced: None,
            external: Some("default/1/key".to_owned()),
        };
        let record = record.encode().expect("encodes");
        let put: &mut Change<'_> = &mut |transaction| {
            let table = transaction.open_table(SNAPSHOTS).map_err(snapshotter::Error::database);
            let put = table?.insert(("gone", "default", "key"), record.as_slice()).map(drop);
            put.map_err(snapshotter::Error::database)
        };
        Transactions::write(&store, put).expect("writes");
    });
    let fixture = fixture.await;
    let mut namespaces = NamespacesClient::new(fixture.channel.clone());
    let request = DeleteNamespaceRequest { name: "default".to_owned() };
    let error = namespaces.delete(Request::new(request)).await.expect_err("is not empty");
    assert_eq!(error.code(), Code::FailedPrecondition);
    let want = "namespace \"default\" must be empty, but it still has snapshots on \"gone\" \
                snapshotter: failed precondition";
    assert_eq!(error.message(), want);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_explained() {
    let fixture = Fixture::start().await;
    let mut leases = LeasesClient::new(fixture.channel.clone());
    let create = CreateRequest { id: "l".to_owned(), ..CreateRequest::default() };
    leases.create(scoped(create)).await.expect("creates");
    let mut client = ContentClient::new(fixture.channel.clone());
    let request = leased(tokio_stream::iter([message(WriteAction::Commit, 0, b"hello")]), "l");
    let mut stream = client.write(request).await.expect("writes").into_inner();
    while stream.message().await.expect("writes").is_some() {}

    let mut gc = GcClient::new(fixture.channel.clone());
    let digest = Digest::of(b"hello").to_string();
    let object = || ExplainRequest { object: digest.clone() };
    let found = gc.explain(scoped(object())).await.expect("explains").into_inner().explanations;
    let [found] = found.as_slice() else { panic!("{found:?}") };
    let chain: Vec<_> = found.chain.iter().map(|link| link.by.as_str()).collect();
    assert_eq!((found.kept, chain), (true, vec!["lease l"]));
    let wanted = ExplainRequest { object: "image/none".to_owned() };
    let error = gc.explain(scoped(wanted)).await.expect_err("there is none");
    assert_eq!(error.code(), Code::NotFound);

    let mut run = async |dry_run| {
        let mut parts = gc.run(Request::new(RunRequest { dry_run })).await?.into_inner();
        let mut names = Vec::new();
        while let Some(part) = parts.message().await? {
            names.extend(part.garbage.into_iter().map(|one| one.object.expect("an object").name));
        }
        Ok::<_, Status>(names)
    };
    assert_eq!(run(true).await.expect("plans"), Vec::<String>::new());
    assert_eq!(run(false).await.expect("collects"), Vec::<String>::new());
    client.info(scoped(InfoRequest { digest })).await.expect("is still there");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_waits_for_no_stream_that_nobody_has_taken() {
    let f = Fixture::start().await;
    let (sender, messages) = mpsc::channel(1);
    let init = StreamInit { id: "s1".to_owned() };
    sender.send(proto::any::pack(&init)).await.expect("open");
    let mut client = StreamingClient::new(f.channel.clone());
    let answer = client.stream(scoped(ReceiverStream::new(messages))).await.expect("opens");
    let mut answers = answer.into_inner();
    answers.message().await.expect("open").expect("an answer");
    let began = Instant::now();
    f.stop().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    drop(sender);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_has_one_daemon() {
    let fixture = Fixture::start().await;
    let root = fixture.content.parent().expect("the root").to_owned();
    let config = Config { state: Some(root.join("other")), root: Some(root), ..Config::default() };
    let paths = config.paths(Layout::Gantry);
    let error = Daemon::build(config, &paths).err().expect("is refused");
    assert!(error.to_string().contains("another gantryd uses"), "{error}");
    fixture.stop().await;
}
