//! `gantryd`: reads flags and configuration, and runs the [daemon](engine::daemon).

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};
use engine::{
    config::{self, Config, Flags, Format, Layout, Level},
    daemon::Daemon,
    db,
    import::Imported,
    namespace::Namespace,
    services::{REVISION, VERSION},
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// The C library of static programs gives memory back to the kernel as soon as a few neighbouring objects are
/// freed, and asks for it again at once: half the time of a long list went there. No process that this
/// program forks allocates before it executes another, so nothing is needed for them.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// How many threads run async code. Work that blocks has its own.
const WORKERS: usize = 2;

/// How many threads may block at once. More calls wait for one, so this bounds memory.
const BLOCKING_THREADS_MAX: usize = 128;

/// The stack of a thread, in bytes; only what is touched takes memory.
const STACK_LEN: usize = 512 << 10;

/// How long a thread for blocking work waits for more of it.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How often there is a little blocking work at least, so that one thread for it always lives.
///
/// Where no thread can be started, because a limit of processes is reached, work waits for one of
/// those that there are. Were there none, tokio would end the process.
const BLOCKING_BEAT: Duration = Duration::from_secs(3);

#[derive(Parser)]
#[command(name = "gantryd", about = "A container engine with containerd's API", version = VERSION)]
struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The socket to serve
    #[arg(short, long, value_name = "SOCKET")]
    address: Option<PathBuf>,
    /// Where everything that survives a reboot is kept
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// Where everything else is kept
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// The least severe that is logged
    #[arg(short, long, value_name = "LEVEL")]
    log_level: Option<Level>,
    /// How the log is written
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<Format>,
    /// Whose paths are the defaults
    #[arg(long, value_name = "NAME", default_value = "gantry")]
    compat: Layout,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Shows configuration
    #[command(subcommand)]
    Config(Show),
    /// Copies the containers, images and blobs of a containerd that has been stopped
    ImportContainerd {
        /// Where that containerd keeps everything that survives a reboot
        #[arg(long, value_name = "FOLDER", default_value = "/var/lib/containerd")]
        from: PathBuf,
    },
    /// Looks at the records below the root, and mends them; no daemon may run
    #[command(subcommand)]
    Db(Db),
}

#[derive(Subcommand)]
enum Db {
    /// Says what is wrong, a line each; the exit status is 1 if there is something
    Check {
        /// Also reads each blob and compares its digest
        #[arg(long)]
        deep: bool,
        /// How the result is written
        #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
        format: Format,
    },
    /// Mends what is wrong, and says what was done; what has to go is put aside
    Repair {
        /// Also reads each blob and compares its digest
        #[arg(long)]
        deep: bool,
        /// Where blobs and snapshots come to of which no record is left
        #[arg(long, value_name = "NAMESPACE", default_value = "default")]
        namespace: Namespace,
    },
    /// Prints all records, a line of JSON each
    Dump,
    /// Reads everything, for a repair to see whether that ends well
    #[command(hide = true)]
    Probe { database: PathBuf },
}

#[derive(Subcommand)]
enum Show {
    /// Prints the default configuration, with comments
    Default,
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    let result = match args.command.take() {
        Some(Command::Config(Show::Default)) => {
            io::stdout().write_all(config::DEFAULT.as_bytes()).map_err(Into::into)
        }
        Some(Command::ImportContainerd { from }) => import(args, &from),
        Some(Command::Db(command)) => match db(args, &command) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
        None => run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let chain = sys::error::Chain(&*error);
            // Nobody is left to tell when even this fails.
            let _ = writeln!(io::stderr(), "gantryd: {chain}");
            ExitCode::FAILURE
        }
    }
}

/// What file and flags say.
fn configuration(args: Args) -> Result<Config, config::LoadError> {
    let mut config = Config::load(args.config.as_deref())?;
    config.apply(Flags {
        address: args.address,
        root: args.root,
        state: args.state,
        log_level: args.log_level,
        log_format: args.log_format,
    });
    Ok(config)
}

fn import(args: Args, from: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let layout = args.compat;
    let config = configuration(args)?;
    log_to_stderr(&config.log);
    if let Some((name, _)) = config.content_plugin()? {
        return Err(
            format!("blobs are kept by proxy plugin {name:?}: they cannot be copied").into()
        );
    }
    let done = engine::import::import_into(&config.paths(layout).root, from)?;
    for left in &done.left {
        tracing::warn!("left: {left}");
    }
    let Imported { containers, images, blobs, left } = &done;
    let left = left.len();
    writeln!(
        io::stdout(),
        "{containers} containers, {images} images and {blobs} blobs are new, {left} left"
    )?;
    Ok(())
}

/// Whether all is well.
fn db(args: Args, command: &Db) -> Result<bool, Box<dyn std::error::Error>> {
    if let Db::Probe { database } = command {
        db::probe(database);
        return Ok(true);
    }
    let layout = args.compat;
    let config = configuration(args)?;
    log_to_stderr(&config.log);
    let folder = config.paths(layout).root;
    let mut root = db::Root::open(&folder)?;
    if let Some((name, _)) = config.content_plugin()? {
        tracing::warn!(name, "blobs are kept by a proxy plugin, and are not looked at");
        root = root.without_blobs();
    }
    if matches!(command, Db::Repair { .. }) {
        root = root.probed_by(std::env::current_exe()?);
    } else {
        db::end_on_damage(&folder.join(db::DATABASE));
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    let good = match command {
        Db::Check { deep, format } => {
            let report = root.check(*deep)?;
            warn(&report.notes);
            match format {
                Format::Json => writeln!(out, "{}", serde_json::to_string(&report)?)?,
                Format::Text => {
                    for problem in &report.problems {
                        writeln!(out, "{problem}")?;
                    }
                }
            }
            report.problems.is_empty()
        }
        Db::Repair { deep, namespace } => {
            let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
            let repaired = root.repair(*deep, namespace, &now)?;
            warn(&repaired.notes);
            for line in &repaired.done {
                writeln!(out, "{line}")?;
            }
            for problem in &repaired.left {
                writeln!(out, "left: {problem}")?;
            }
            repaired.left.is_empty()
        }
        Db::Dump => {
            root.dump(&mut out)?;
            true
        }
        Db::Probe { .. } => unreachable!("done before the root is taken"),
    };
    out.flush()?;
    Ok(good)
}

fn run(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    let layout = args.compat;
    let config = configuration(args)?;
    log_to_stderr(&config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_stack_size(STACK_LEN)
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .enable_all()
        .build()?;
    let paths = config.paths(layout);
    db::end_on_damage(&paths.root.join(db::DATABASE));
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let daemon = Daemon::build(config, &paths)?;
        tracing::info!(version = VERSION, revision = REVISION, address = %paths.address.display(), "serving");
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        tokio::select! {
            served = daemon.serve(stop) => served?,
            () = keep_a_thread() => {}
        }
        Ok(())
    });
    // What still blocks is waiting for a disk or for a client that went away.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Keeps a thread for blocking work alive, for as long as this is polled.
async fn keep_a_thread() {
    let mut beat = tokio::time::interval(BLOCKING_BEAT);
    loop {
        beat.tick().await;
        // It only fails when the runtime ends.
        let _ = tokio::task::spawn_blocking(|| {}).await;
    }
}

fn warn(notes: &[String]) {
    for note in notes {
        tracing::warn!("{note}");
    }
}

fn log_to_stderr(log: &config::Log) {
    let level = match log.level {
        Level::Trace => LevelFilter::TRACE,
        Level::Debug => LevelFilter::DEBUG,
        Level::Info => LevelFilter::INFO,
        Level::Warn => LevelFilter::WARN,
        Level::Error => LevelFilter::ERROR,
    };
    // The libraries' own lines are about bytes and frames: nothing below a warning, unless traced.
    let libraries = if level == LevelFilter::TRACE { level } else { level.min(LevelFilter::WARN) };
    let targets = Targets::new().with_default(libraries).with_targets([
        ("gantryd", level),
        ("engine", level),
        ("snapshotter", level),
    ]);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let registry = tracing_subscriber::registry().with(targets);
    match log.format {
        Format::Text => registry.with(lines).init(),
        Format::Json => registry.with(lines.json()).init(),
    }
}
