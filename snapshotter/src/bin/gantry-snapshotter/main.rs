//! `gantry-snapshotter`: this crate's snapshots for any engine that has proxy plugins.
//!
//! It serves containerd's snapshots service on a socket, and nothing else. Whoever calls has one key
//! space, whatever namespaces its own clients have: engines put these into the names. A committed
//! snapshot is on disk when the call returns, because nobody could unpack it again here.

mod service;

use std::{
    fs,
    io::{self, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use proto::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use snapshotter::{
    Btrfs, Copies, Erofs, Images, Native, Overlay, OverlayOptions, Remap, Snapshotter, Subvolumes,
    Transactions,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use service::Service;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// How long calls that are under way may take to end when the program stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How many threads work on connections; the rest blocks on others.
const WORKERS: usize = 2;

/// How many calls may wait for the disk at once.
const BLOCKING_THREADS_MAX: usize = 32;

/// Serves snapshots over gRPC, for the proxy plugins of gantryd and of containerd.
#[derive(Parser)]
#[command(name = "gantry-snapshotter", version)]
struct Args {
    /// The directory with everything that is kept
    #[arg(long, default_value = "/var/lib/gantry-snapshotter")]
    root: PathBuf,
    /// The socket to serve on; only its owner may connect
    #[arg(long, default_value = "/run/gantry-snapshotter/snapshotter.sock")]
    address: PathBuf,
    /// What a snapshot is
    #[arg(long, value_enum, default_value_t = Layout::Overlayfs)]
    snapshotter: Layout,
    /// Leave the data of removed snapshots to Cleanup, which the engine calls after collections
    #[arg(long)]
    async_remove: bool,
    /// Show the path of an overlay's upper directory as a label
    #[arg(long)]
    upperdir_label: bool,
    /// Have the kernel check the images of erofs when they are read; the filesystem has to do fs-verity
    #[arg(long)]
    enable_fsverity: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Layout {
    /// Layers of overlayfs
    Overlayfs,
    /// Layers of overlayfs, each an image of EROFS, which the kernel must have
    Erofs,
    /// Copies
    Native,
    /// Subvolumes of btrfs, which the root has to be on
    Btrfs,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("{}", sys::error::Chain(&*error)));
            ExitCode::FAILURE
        }
    }
}

fn say(text: std::fmt::Arguments<'_>) {
    // Nobody is left to tell when even this fails.
    let _ = writeln!(io::stderr(), "gantry-snapshotter: {text}");
}

fn run(args: Args) -> Result<(), Error> {
    let snapshotter = open(&args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(&args.address, snapshotter));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn open(args: &Args) -> Result<Arc<dyn Snapshotter>, Error> {
    fs::create_dir_all(&args.root).map_err(about("create", &args.root))?;
    fs::set_permissions(&args.root, fs::Permissions::from_mode(0o700))
        .map_err(about("set permissions of", &args.root))?;
    // It locks its file, so two programs cannot share a root.
    let path = args.root.join("metadata.redb");
    let database = redb::Database::create(&path)
        .map_err(|error| format!("open {}: {error}", path.display()))?;
    let database: Arc<dyn Transactions> = Arc::new(database);
    let options = OverlayOptions {
        async_remove: args.async_remove,
        upperdir_label: args.upperdir_label,
        remap: Remap::on(&args.root),
        ..OverlayOptions::default()
    };
    let snapshotter: Arc<dyn Snapshotter> = match args.snapshotter {
        Layout::Overlayfs => {
            Arc::new(Overlay::open(&args.root.join("overlayfs"), database, options)?)
        }
        Layout::Erofs => {
            let images = Images::new(options).with_verity(args.enable_fsverity);
            let mut erofs = Erofs::open(&args.root.join("erofs"), database, images)?;
            for (key, error) in erofs.take_unshown() {
                let error = sys::error::Chain(&error);
                say(format_args!("snapshot {key}: layers are not mounted: {error}"));
            }
            Arc::new(erofs)
        }
        Layout::Btrfs => Arc::new(Btrfs::open(&args.root.join("btrfs"), database, Subvolumes)?),
        Layout::Native => Arc::new(Native::open(&args.root.join("native"), database, Copies)?),
    };
    // Of a commit that was cut short by the machine, which nobody was told had happened.
    for suspect in snapshotter.suspects()?.iter().rev() {
        snapshotter.remove(&suspect.key)?;
    }
    Ok(snapshotter)
}

async fn serve(address: &Path, snapshotter: Arc<dyn Snapshotter>) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = tokio::net::UnixListener::from_std(bind(address)?)?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder().serve_with_incoming_shutdown(
        SnapshotsServer::new(Service::new(snapshotter)),
        UnixListenerStream::new(listener),
        async {
            let _ = stopped.await;
        },
    );
    let mut server = std::pin::pin!(server);
    tokio::select! {
        result = &mut server => return Ok(result?),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let _ = stop.send(());
    // What takes longer is cut off.
    tokio::time::timeout(DRAIN_TIMEOUT, server).await.unwrap_or(Ok(()))?;
    Ok(())
}

/// Listens on `path`. A socket that nobody listens on any more is replaced, by one that had its mode
/// before it had its name.
fn bind(path: &Path) -> Result<UnixListener, Error> {
    if UnixStream::connect(path).is_ok() {
        return Err(format!("somebody serves {}", path.display()).into());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(about("create", folder))?;
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = Path::new(&fresh);
    // What an earlier program may have left when it was killed here.
    let _ = fs::remove_file(fresh);
    let listener = UnixListener::bind(fresh).map_err(about("bind", fresh))?;
    fs::set_permissions(fresh, fs::Permissions::from_mode(0o600))
        .map_err(about("set permissions of", fresh))?;
    fs::rename(fresh, path).map_err(about("rename", path))?;
    listener.set_nonblocking(true).map_err(about("set up", path))?;
    Ok(listener)
}

fn about(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> String {
    let path = path.display().to_string();
    move |error| format!("{operation} {path}: {error}")
}
