//! Plugins that are away, stuck or strangers: nobody waits for them, and who asks hears which it is.

use std::{
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::Path,
    time::{Duration, Instant},
};

use engine::{
    config::{Config, Layout, ProxyKind, ProxyPlugin},
    content::external::Backend as _,
    daemon::Daemon,
    proxy::{Deadlines, Plugin, Remote, RemoteContent},
};
use proto::containerd::services::{
    introspection::v1::{PluginsRequest, introspection_client::IntrospectionClient},
    leases::v1::{CreateRequest, DeleteRequest, leases_client::LeasesClient},
    snapshots::v1::{
        ListSnapshotsRequest, PrepareSnapshotRequest, snapshots_client::SnapshotsClient,
    },
};
use snapshotter::external::{Backend, Reason};
use tonic::{Code, Request, transport::Endpoint};

/// Short, so that a plugin that is stuck does not take a test's time; long enough for one that is not.
const SHORT: Deadlines = Deadlines {
    short: Duration::from_secs(1),
    long: Duration::from_secs(1),
    layer: Duration::from_secs(1),
};

/// A socket that is accepted from, and then treated so.
fn serve(path: &Path, treat: fn(std::os::unix::net::UnixStream)) {
    let listener = UnixListener::bind(path).expect("binds");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || treat(stream));
        }
    });
}

/// Takes all, and never says anything.
fn silence(mut stream: std::os::unix::net::UnixStream) {
    let mut buffer = [0; 1024];
    while stream.read(&mut buffer).is_ok_and(|len| len > 0) {}
}

/// Answers with what is no HTTP/2.
fn garbage(mut stream: std::os::unix::net::UnixStream) {
    let _ = stream.write_all(&b"220 mail ready\r\n".repeat(100));
    silence(stream);
}

/// Closes at once.
fn refuse(stream: std::os::unix::net::UnixStream) {
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_ends_and_names_plugin_and_address() {
    let folder = tempfile::tempdir().expect("scratch");
    let path = |name: &str| folder.path().join(name);
    serve(&path("silent"), silence);
    serve(&path("garbage"), garbage);
    serve(&path("closes"), refuse);
    std::fs::write(path("file"), "").expect("writes");
    for name in ["silent", "garbage", "closes", "file", "absent"] {
        let address = path(name).display().to_string();
        let plugin = Plugin::new("remote", &address, SHORT).expect("is a path");
        let (remote, content) = (Remote::new(plugin.clone()), RemoteContent::new(plugin));
        let refused = tokio::task::spawn_blocking(move || {
            let namespace = "default".parse().expect("a namespace");
            [
                remote.list().expect_err("says nothing"),
                content.blobs(None).expect_err("says nothing"),
                content.write(&namespace, "r", 0).map(drop).expect_err("says nothing"),
            ]
        });
        for refused in refused.await.expect("no panic") {
            assert_eq!(refused.reason, Reason::Unavailable, "{name}: {refused}");
            let start = format!("proxy plugin \"remote\" at {address}: ");
            assert!(refused.message.starts_with(&start), "{name}: {refused}");
            assert!(refused.message.len() > start.len(), "{name}: {refused}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses() {
    let cases = [
        ("path", "/run/x.sock", true),
        ("uri", "unix:///run/x.sock", true),
        ("relative", "x.sock", false),
        ("tcp", "tcp://localhost:1", false),
        ("nothing", "", false),
    ];
    for (case, address, good) in cases {
        let result = Plugin::new("remote", address, SHORT);
        assert_eq!(result.is_ok(), good, "{case}: {result:?}");
    }
}

fn proxy(kind: ProxyKind, address: &Path) -> ProxyPlugin {
    ProxyPlugin {
        kind,
        address: address.display().to_string(),
        platform: None,
        exports: [("root".to_owned(), "/var/lib/remote".to_owned())].into(),
        capabilities: vec!["rebase".to_owned()],
    }
}

fn configuration(folder: &Path, name: &str, address: &Path) -> Config {
    Config {
        root: Some(folder.join("root")),
        state: Some(folder.join("state")),
        proxy_plugins: [(name.to_owned(), proxy(ProxyKind::Snapshot, address))].into(),
        ..Config::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_is_refused_at_the_start() {
    let folder = tempfile::tempdir().expect("scratch");
    let config = configuration(folder.path(), "overlayfs", Path::new("/run/x.sock"));
    let paths = config.paths(Layout::Gantry);
    let error = Daemon::build(config, &paths).map(drop).expect_err("is refused").to_string();
    assert!(error.contains("\"overlayfs\""), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_plugin_keeps_blobs() {
    let folder = tempfile::tempdir().expect("scratch");
    let mut config = configuration(folder.path(), "remote", Path::new("/run/x.sock"));
    for name in ["one", "other"] {
        let content = proxy(ProxyKind::Content, Path::new("/run/x.sock"));
        config.proxy_plugins.insert(name.to_owned(), content);
    }
    let paths = config.paths(Layout::Gantry);
    let error = Daemon::build(config, &paths).map(drop).expect_err("is refused").to_string();
    assert!(error.contains("\"one\" and \"other\""), "{error}");
}

/// With a plugin that takes every call and never answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_starts_serves_and_collects_without_its_plugin() {
    let folder = tempfile::tempdir().expect("scratch");
    let socket = folder.path().join("plugin.sock");
    serve(&socket, silence);
    let mut config = configuration(folder.path(), "remote", &socket);
    let absent = folder.path().join("absent.sock");
    config.proxy_plugins.insert("blobs".to_owned(), proxy(ProxyKind::Content, &absent));
    let paths = config.paths(Layout::Gantry);
    let started = Instant::now();
    let daemon = Daemon::build(config, &paths).expect("builds");
    let built = started.elapsed();
    assert!(built < Deadlines::default().short, "the start has waited {built:?} for the plugin");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(daemon.serve(async {
        let _ = stopped.await;
    }));
    let endpoint = Endpoint::from_shared(format!("unix://{}", paths.address.display()));
    let channel = endpoint.expect("a path").connect().await.expect("connects");

    let mut introspection = IntrospectionClient::new(channel.clone());
    let filters = vec!["type==io.containerd.snapshotter.v1,id==remote".to_owned()];
    let shown = introspection.plugins(PluginsRequest { filters }).await.expect("answers");
    let [plugin] = &shown.into_inner().plugins[..] else { panic!("one plugin") };
    assert_eq!(plugin.capabilities, ["rebase"]);
    assert_eq!(plugin.exports["root"], "/var/lib/remote");
    assert_eq!(plugin.exports["address"], socket.display().to_string());
    assert_eq!(plugin.platforms.len(), 1);

    let filters = vec!["type==io.containerd.content.v1".to_owned()];
    let shown = introspection.plugins(PluginsRequest { filters }).await.expect("answers");
    let [plugin] = &shown.into_inner().plugins[..] else { panic!("one plugin") };
    assert_eq!(plugin.id, "blobs");

    // Collections go on while a call waits for the plugin.
    let mut snapshots = SnapshotsClient::new(channel.clone());
    let prepare = tokio::spawn(async move {
        let snapshotter = "remote".to_owned();
        let message =
            PrepareSnapshotRequest { snapshotter, key: "k".to_owned(), ..Default::default() };
        snapshots.prepare(scoped(message)).await
    });
    let mut leases = LeasesClient::new(channel.clone());
    let message = CreateRequest { id: "l".to_owned(), ..Default::default() };
    leases.create(scoped(message)).await.expect("makes a lease");
    let message = DeleteRequest { id: "l".to_owned(), sync: true };
    leases.delete(scoped(message)).await.expect("collects");

    let mut snapshots = SnapshotsClient::new(channel);
    let message = ListSnapshotsRequest { snapshotter: "remote".to_owned(), ..Default::default() };
    let status = snapshots.list(scoped(message)).await.map(drop).expect_err("is refused");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let named = format!("proxy plugin \"remote\" at {}: no answer within", socket.display());
    assert!(status.message().contains(&named), "{status}");
    prepare.abort();
    drop(stop);
    serving.await.expect("no panic").expect("serves");
}

fn scoped<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "test".parse().expect("ascii"));
    request
}
