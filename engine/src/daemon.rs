//! The only place that wires concrete parts: `Config -> Daemon::build -> serve -> drain`.
//!
//! Parts are made in the order in which they need each other, and handed on as arguments. The
//! sockets are bound last in [`build`](Daemon::build), so that a client that gets through finds
//! everything in place.

mod authority;
mod limits;
mod plugins;
mod routes;
mod socket;
mod state;

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::Path,
    sync::Arc,
    time::Duration,
};

use proto::{
    containerd::services::{
        containers::v1::containers_server::ContainersServer,
        content::v1::content_server::ContentServer,
        diff::v1::diff_server::DiffServer,
        events::v1::events_server::EventsServer,
        images::v1::images_server::ImagesServer,
        introspection::v1::introspection_server::IntrospectionServer,
        leases::v1::leases_server::LeasesServer,
        namespaces::v1::namespaces_server::NamespacesServer,
        sandbox::v1::{controller_server::ControllerServer, store_server::StoreServer},
        snapshots::v1::snapshots_server::SnapshotsServer,
        streaming::v1::streaming_server::StreamingServer,
        tasks::v1::tasks_server::TasksServer,
        transfer::v1::transfer_server::TransferServer,
        version::v1::version_server::VersionServer,
    },
    gantry::services::gc::v1::gc_server::GcServer,
    grpc::health::v1::health_server::HealthServer,
};
use tokio::net::UnixListener;
use tokio_stream::{StreamExt as _, wrappers::UnixListenerStream};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::transport::Server;

use crate::{
    config::{Config, Level, Paths},
    durability::Syncer,
    error::Error,
    events::{Exchange, Subscription},
    gc::{Inspector, Scheduler},
    lock::lock,
    metadata,
    namespace::Namespace,
    restart::{self, Monitor},
    runtime::{Runtime, Settings},
    services,
    streaming::Streams,
    transfer::Transfer,
};

use self::{routes::Routes, state::State};

/// How many bytes a client may send ahead of what is taken, in a call and in all calls of a
/// connection. HTTP/2's own 64 KiB would make blobs wait.
const STREAM_WINDOW_LEN: u32 = 4 << 20;
const CONNECTION_WINDOW_LEN: u32 = 8 << 20;

/// How long calls that are under way may take to end when the daemon stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The engine, ready to serve.
pub struct Daemon {
    config: Config,
    listener: UnixListener,
    /// Where shims tell of events.
    ttrpc_listener: UnixListener,
    events: services::Events,
    runtime: Arc<Runtime>,
    records: metadata::Store,
    routes: Routes,
    monitor: Monitor,
    gc: Scheduler,
    syncer: Syncer,
    stop: CancellationToken,
    /// Held for as long as the daemon lives; see [`lock`](mod@crate::lock).
    _locks: [File; 2],
}

/// Serves `$service` with the limits of messages that the configuration sets.
macro_rules! server {
    ($limit:expr, $server:ident, $service:expr) => {
        $server::new($service)
            .max_decoding_message_size($limit.0)
            .max_encoding_message_size($limit.1)
    };
}

impl Daemon {
    /// Puts the engine together and binds its sockets.
    ///
    /// # Errors
    ///
    /// - `Unavailable`: another daemon has the root, the state folder or the socket.
    /// - `File`, `Database`, `NewerSchema`, `DamagedDatabase`, `LostDatabase`: a part cannot be made.
    pub fn build(config: Config, paths: &Paths) -> Result<Self, Error> {
        let locks = folders(paths)?;
        let stop = CancellationToken::new();
        let events = Exchange::default();
        // First: shims are asked while the database is opened, which takes as long after a crash.
        let exits = Monitor::listen(&events);
        let runtime = Arc::new(Runtime::open(settings(&config, paths), events.clone())?);
        let state = State::open(paths, &config, events.clone())?;
        let (gc, syncer) = (state.gc.clone(), state.syncer.clone());
        let uuid = services::server_uuid(&paths.root)?;
        let parts = (config.clone(), paths.clone(), state.remap.clone());
        let plugins = move || plugins::list(&parts.0, &parts.1, &parts.2);
        let introspection = services::Introspection::new(plugins, uuid, Arc::clone(&runtime));
        let streams = Arc::<Streams>::default();

        let limit = (config.grpc.max_recv_message_size, config.grpc.max_send_message_size);
        let garbage = garbage(&state);
        let differs = state::differs(&config)?;
        let transfer = transfer(&state, &events, &streams, (&config, &differs), paths);
        let monitor = monitor(&state, &runtime, &events, exits, config.restart.interval())?;
        let records = state.metadata.clone();
        let State { metadata, content, snapshotters, .. } = state;
        let tasks = services::Tasks::new(content.clone(), Arc::clone(&runtime), stop.clone());
        let containers =
            services::Containers::new(content.clone(), events.clone(), gc.clone(), monitor.clone());
        let processors = config.stream_processors.clone();
        let diff = services::Diff::new(content.clone(), differs, processors);
        let content = services::Content::new(content, events.clone(), gc.clone());
        let images = services::Images::new(metadata.clone(), events.clone(), gc.clone());
        let snapshots =
            services::Snapshots::new(snapshotters, metadata.clone(), events.clone(), gc.clone());
        let sandboxers = services::SandboxController::new(&metadata, &runtime, &events, &stop);
        let namespaces = services::Namespaces::new(metadata.clone(), events.clone());
        let events = services::Events::new(events, Arc::clone(&runtime), stop.clone());
        let routes = Routes::default()
            .with(server!(limit, VersionServer, services::Version))
            .with(server!(limit, HealthServer, services::Health::new(stop.clone())))
            .with(server!(limit, IntrospectionServer, introspection))
            .with(server!(limit, NamespacesServer, namespaces))
            .with(server!(limit, ContainersServer, containers))
            .with(server!(limit, ContentServer, content))
            .with(server!(limit, DiffServer, diff))
            .with(server!(limit, ImagesServer, images))
            .with(server!(limit, EventsServer, events.clone()))
            .with(server!(limit, LeasesServer, services::Leases::new(metadata.clone(), gc.clone())))
            .with(server!(limit, SnapshotsServer, snapshots))
            .with(server!(limit, TasksServer, tasks))
            .with(server!(limit, StoreServer, services::SandboxStore::new(metadata, gc.clone())))
            .with(server!(limit, ControllerServer, sandboxers))
            .with(server!(limit, GcServer, garbage))
            .with(server!(limit, StreamingServer, services::Streaming::new(streams, stop.clone())))
            .with(server!(limit, TransferServer, transfer));

        let listener = socket::bind(&paths.address, config.grpc.uid, config.grpc.gid)?;
        let ttrpc_listener = socket::bind(&paths.ttrpc_address, config.grpc.uid, config.grpc.gid)?;
        Ok(Self {
            config,
            listener,
            ttrpc_listener,
            events,
            runtime,
            records,
            routes,
            monitor,
            gc,
            syncer,
            stop,
            _locks: locks,
        })
    }

    /// Serves until `stop` is ready, then lets calls end that are under way, within a bound.
    /// Containers keep running.
    ///
    /// # Errors
    ///
    /// The socket fails.
    pub async fn serve(
        self,
        stop: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let token = self.stop.clone();
        let shims = AbortOnDropHandle::new(tokio::spawn(proto::ttrpc::serve(
            self.ttrpc_listener,
            Arc::new(self.events),
        )));
        let monitoring = tokio::spawn(self.monitor.run(token.clone()));
        let (found, records) = (self.runtime.all(), self.records);
        let reporting = tokio::task::spawn_blocking(move || report_orphans(&found, &records));
        let mut serving = std::pin::pin!(
            Server::builder()
                .max_concurrent_streams(self.config.grpc.max_concurrent_streams)
                .initial_stream_window_size(STREAM_WINDOW_LEN)
                .initial_connection_window_size(CONNECTION_WINDOW_LEN)
                .serve_with_incoming_shutdown(
                    self.routes,
                    UnixListenerStream::new(self.listener)
                        .map(|stream| stream.map(authority::Tolerant::new)),
                    token.clone().cancelled_owned(),
                )
        );
        tell_supervisor("READY=1");
        tokio::select! {
            result = &mut serving => return result,
            () = stop => tracing::info!("stopping"),
        }
        tell_supervisor("STOPPING=1");
        token.cancel();
        self.gc.stop();
        let drain = async {
            let result = serving.await;
            // It cannot fail, and has long ended.
            let _ = reporting.await;
            // What it is about to start is started, or gone.
            if let Err(error) = monitoring.await {
                tracing::warn!(%error, "restarts were cut off");
            }
            self.runtime.close().await;
            let synced = tokio::task::spawn_blocking(move || self.syncer.stop()).await;
            if let Err(error) = synced {
                tracing::warn!(%error, "snapshots may not be durable");
            }
            result
        };
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, drain).await;
        drop(shims);
        drained.unwrap_or_else(|_| {
            tracing::warn!("calls were under way for too long, and are cut off");
            Ok(())
        })
    }
}

/// The service that tells about the garbage collection.
fn garbage(state: &State) -> services::Gc {
    let inspector = Inspector::new(state.content.clone(), Arc::clone(&state.snapshotters));
    services::Gc::new(inspector, state.gc.clone())
}

/// The service of transfers, which tells the garbage collector of what they leave.
fn transfer(
    state: &State,
    events: &Exchange,
    streams: &Arc<Streams>,
    (config, differs): (&Config, &[services::Differ]),
    paths: &Paths,
) -> services::Transfer {
    let (content, snapshotters) = (state.content.clone(), Arc::clone(&state.snapshotters));
    let collector = state.gc.clone();
    let processors = config.stream_processors.clone();
    let on_release = move || collector.note_removal();
    let differs = differs.iter().map(services::Differ::for_transfers).collect();
    let events = events.clone();
    let transfer = Transfer::new(content, snapshotters, events, processors, differs, on_release);
    services::Transfer::new(transfer, Arc::clone(streams), paths.hosts.clone())
}

/// The monitor that restarts tasks, which listens since before there are any.
fn monitor(
    state: &State,
    runtime: &Arc<Runtime>,
    events: &Exchange,
    exits: Subscription,
    interval: Duration,
) -> Result<Monitor, Error> {
    let parts = restart::Parts {
        content: state.content.clone(),
        snapshotters: Arc::clone(&state.snapshotters),
        runtime: Arc::clone(runtime),
        events: events.clone(),
    };
    Monitor::open(parts, interval, exits)
}

/// Tells which of the tasks that were found have no container, because another daemon started them.
/// They go on, but clients look for the container first. Blocks.
fn report_orphans(found: &[(Namespace, String)], records: &metadata::Store) {
    for (namespace, id) in found {
        if let Err(Error::NotFound(_)) = records.container(namespace, id) {
            tracing::warn!(
                %namespace,
                id,
                "task without a container goes on; to end it, enter one of its name with \
                 `ctr containers create`"
            );
        }
    }
}

/// What the runtime has to know.
fn settings(config: &Config, paths: &Paths) -> Settings {
    Settings {
        root: paths.root.clone(),
        state: paths.state.clone(),
        address: paths.address.clone(),
        ttrpc_address: paths.ttrpc_address.clone(),
        version: services::VERSION,
        debug: config.log.level <= Level::Debug,
        open_files_limit: raise_open_files_limit(),
        runtimes: config.runtimes.clone(),
    }
}

/// Raises the soft limit of open files, and gives the former one: each container takes a few
/// descriptors, and the usual limit is one for select(2).
fn raise_open_files_limit() -> Option<u64> {
    sys::descriptors::raise_limit().unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit of open files stays as it is");
        None
    })
}

/// Makes the daemon's folders, and takes them.
fn folders(paths: &Paths) -> Result<[File; 2], Error> {
    // Records and layers are nobody else's business; sockets are in the other folder.
    make_folder(&paths.root, 0o700)?;
    make_folder(&paths.state, 0o711)?;
    Ok([lock(&paths.root)?, lock(&paths.state)?])
}

/// Makes a folder of this mode, with its parents.
fn make_folder(path: &Path, mode: u32) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(Error::file("create", path))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(Error::file("set permissions of", path))
}

/// Tells the service manager, if one waits for it (sd_notify(3)).
fn tell_supervisor(state: &str) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(address.as_encoded_bytes(), state) {
        tracing::warn!(%error, "the service manager could not be told: {state}");
    }
}

fn send(address: &[u8], state: &str) -> io::Result<()> {
    use std::os::{linux::net::SocketAddrExt, unix::net::SocketAddr};

    let address = match address.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(Path::new(
            std::str::from_utf8(address)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?,
        ))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}
