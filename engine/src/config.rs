//! What the daemon is told: a file, and flags that win over it.
//!
//! Every key is typed and has a default; a key that is unknown is an error with its line, so that
//! a typing error cannot silently leave a default in force. `gantryd config default` prints the
//! text of `config/default.toml`, and a test holds that text to the defaults here.

mod proxy_plugins;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use crate::{diff::Processors, error::Error, runtime::RuntimeTable};

pub use self::proxy_plugins::{ProxyKind, ProxyPlugin};

/// The commented default configuration.
pub const DEFAULT: &str = include_str!("config/default.toml");

/// Whose paths are the defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// `/var/lib/gantry`, `/run/gantry`, `/etc/gantry`.
    #[default]
    Gantry,
    /// `/var/lib/containerd`, `/run/containerd`, `/etc/containerd`: clients find this daemon
    /// where they look for containerd.
    Containerd,
}

impl Layout {
    fn name(self) -> &'static str {
        match self {
            Self::Gantry => "gantry",
            Self::Containerd => "containerd",
        }
    }

    /// The configuration file that is read when no other is named.
    ///
    /// It is Gantry's for both layouts: containerd's own file is for containerd.
    pub fn config_path() -> &'static Path {
        Path::new("/etc/gantry/config.toml")
    }
}

/// What flags say; they win over the file.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "named after the keys of the file")]
pub struct Flags {
    pub address: Option<PathBuf>,
    pub root: Option<PathBuf>,
    pub state: Option<PathBuf>,
    pub log_level: Option<Level>,
    pub log_format: Option<Format>,
}

/// The configuration file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where everything that survives a reboot is kept.
    pub root: Option<PathBuf>,
    /// Where everything else is kept.
    pub state: Option<PathBuf>,
    /// The gRPC socket.
    pub grpc: Grpc,
    /// What is logged.
    pub log: Log,
    /// When garbage is collected.
    pub gc: Gc,
    /// When containers are started again.
    pub restart: Restart,
    /// What turns layers of other media types into ones that are understood.
    pub stream_processors: Processors,
    /// What runtimes' names mean.
    pub runtimes: RuntimeTable,
    /// Parts that are other programs, by name.
    pub proxy_plugins: BTreeMap<String, ProxyPlugin>,
    /// Who has which blobs.
    pub content: Content,
    /// Who applies and makes layers for clients.
    pub diff: Diff,
    /// How the snapshotters `overlayfs` and `erofs` mount.
    pub overlayfs: Overlayfs,
    /// How the snapshotter `erofs` keeps layers.
    pub erofs: Erofs,
}

/// The `[overlayfs]` section.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overlayfs {
    /// Options of every overlay mount, beside those that the kernel needs, which give way to them.
    pub mount_options: Vec<String>,
    /// Whether snapshots show the path of their upper directory as a label.
    pub upperdir_label: bool,
}

/// The `[erofs]` section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Erofs {
    /// Whether the kernel checks images when they are read.
    pub enable_fsverity: bool,
}

/// The `[content]` section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Content {
    /// Whether a namespace may have a blob of another one without sending it.
    pub sharing_policy: SharingPolicy,
}

/// containerd's `content_sharing_policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SharingPolicy {
    /// Who names a blob's digest may have it.
    #[default]
    Shared,
    /// It has to be sent, unless a namespace that is labelled as shareable has it.
    Isolated,
}

/// The `[diff]` section.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Diff {
    /// Names of differs. Each is asked until one knows how to do what is asked for.
    pub order: Vec<String>,
}

impl Default for Diff {
    /// Only what is built in.
    fn default() -> Self {
        Self { order: vec![OWN_DIFFER.to_owned()] }
    }
}

/// The name of the differ that is built in, as of containerd's.
pub const OWN_DIFFER: &str = "walking";

/// The `[grpc]` section.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grpc {
    /// The socket's path; the ttrpc socket's is the same with `.ttrpc` behind it.
    pub address: Option<PathBuf>,
    /// The socket's owner.
    pub uid: u32,
    /// The socket's group; it may connect when it is not 0.
    pub gid: u32,
    /// The largest message that is read, in bytes.
    pub max_recv_message_size: usize,
    /// The largest message that is sent, in bytes.
    pub max_send_message_size: usize,
    /// How many calls one connection may have open.
    pub max_concurrent_streams: u32,
}

impl Default for Grpc {
    fn default() -> Self {
        Self {
            address: None,
            uid: 0,
            gid: 0,
            max_recv_message_size: 16 << 20,
            max_send_message_size: 16 << 20,
            max_concurrent_streams: 1024,
        }
    }
}

/// The `[log]` section.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The least severe that is logged.
    pub level: Level,
    /// How it is written.
    pub format: Format,
}

/// How severe a line of the log is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the usual levels")]
pub enum Level {
    Trace,
    Debug,
    #[default]
    Info,
    #[serde(alias = "warning")]
    #[value(alias = "warning")]
    Warn,
    #[serde(alias = "fatal", alias = "panic")]
    #[value(alias = "fatal", alias = "panic")]
    Error,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The `[gc]` section; see the scheduler for how the numbers work together.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gc {
    /// How much of the time collection may stop changes for, at most 0.5.
    pub pause_threshold: f64,
    /// After how many removals a collection starts without waiting for the next that is due; 0
    /// for never.
    pub deletion_threshold: u64,
    /// After how many changes of any kind the next collection takes place though nothing was
    /// removed; 0 for never.
    pub mutation_threshold: u64,
    /// How long after it was asked for, or a threshold was reached, a collection starts.
    #[serde(deserialize_with = "duration")]
    pub schedule_delay: Duration,
    /// How long after the start of the daemon the first collection starts; 0 for not before there
    /// is a reason.
    #[serde(deserialize_with = "duration")]
    pub startup_delay: Duration,
}

/// Reads a duration as containerd writes it, `"100ms"`.
fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    sys::go_duration::parse_positive(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("{text:?} is not a duration like \"100ms\" or \"1.5s\""))
    })
}

impl Default for Gc {
    fn default() -> Self {
        Self {
            pause_threshold: 0.02,
            deletion_threshold: 0,
            mutation_threshold: 100,
            schedule_delay: Duration::ZERO,
            startup_delay: Duration::from_millis(100),
        }
    }
}

/// The `[restart]` section.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Restart {
    /// How long a container may be otherwise than its labels ask, when its task did not just exit,
    /// in milliseconds.
    pub interval_ms: u64,
}

impl Restart {
    /// [`interval_ms`](Self::interval_ms); 0 is the default, as with containerd.
    pub fn interval(&self) -> Duration {
        let default = Self::default().interval_ms;
        Duration::from_millis(if self.interval_ms == 0 { default } else { self.interval_ms })
    }
}

impl Default for Restart {
    fn default() -> Self {
        Self { interval_ms: 10_000 }
    }
}

/// Where things are, decided from layout, file and flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Where everything that survives a reboot is kept.
    pub root: PathBuf,
    /// Where everything else is kept.
    pub state: PathBuf,
    /// The gRPC socket.
    pub address: PathBuf,
    /// The ttrpc socket, over which shims publish events.
    pub ttrpc_address: PathBuf,
    /// The folder of `hosts.toml` files for registries.
    pub hosts: PathBuf,
}

impl Config {
    /// Reads the file at `path`; without a path the usual one, which need not exist.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or something in it is unknown or of the wrong type.
    pub fn load(path: Option<&Path>) -> Result<Self, LoadError> {
        let usual = Layout::config_path();
        match fs::read_to_string(path.unwrap_or(usual)) {
            Ok(text) => Self::parse(&text)
                .map_err(|source| LoadError::Parse { path: path.unwrap_or(usual).into(), source }),
            Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(source) => Err(LoadError::Read { path: path.unwrap_or(usual).into(), source }),
        }
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    ///
    /// Something in it is unknown or of the wrong type; the error says where.
    pub fn parse(text: &str) -> Result<Self, Box<toml::de::Error>> {
        toml::from_str(text).map_err(Box::new)
    }

    /// Lets the flags win.
    pub fn apply(&mut self, flags: Flags) {
        let Flags { address, root, state, log_level, log_format } = flags;
        self.grpc.address = address.or(self.grpc.address.take());
        self.root = root.or(self.root.take());
        self.state = state.or(self.state.take());
        self.log.level = log_level.unwrap_or(self.log.level);
        self.log.format = log_format.unwrap_or(self.log.format);
    }

    /// The program that keeps the bytes of blobs, with its name, unless this one does.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: there are two.
    pub fn content_plugin(&self) -> Result<Option<(&str, &ProxyPlugin)>, Error> {
        let mut found = self.proxy_plugins.iter().filter(|(_, it)| it.kind == ProxyKind::Content);
        match (found.next(), found.next()) {
            (Some((one, _)), Some((other, _))) => Err(Error::InvalidArgument(format!(
                "proxy plugins {one:?} and {other:?} are both of type \"content\", of which there can be one"
            ))),
            (one, _) => Ok(one.map(|(name, proxy)| (name.as_str(), proxy))),
        }
    }

    /// Decides where things are.
    pub fn paths(&self, layout: Layout) -> Paths {
        let name = layout.name();
        let or = |path: &Option<PathBuf>, default: String| {
            path.clone().unwrap_or_else(|| PathBuf::from(default))
        };
        let state = or(&self.state, format!("/run/{name}"));
        let address =
            self.grpc.address.clone().unwrap_or_else(|| state.join(format!("{name}.sock")));
        let mut ttrpc_address = address.clone().into_os_string();
        ttrpc_address.push(".ttrpc");
        Paths {
            root: or(&self.root, format!("/var/lib/{name}")),
            state,
            address,
            ttrpc_address: ttrpc_address.into(),
            hosts: PathBuf::from(format!("/etc/{name}/certs.d")),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum LoadError {
    /// The file cannot be read.
    #[error("read configuration {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The file has an unknown key or a value of the wrong type.
    #[error("configuration {}", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_text_says_the_defaults() {
        let uncommented: String = DEFAULT
            .lines()
            .map(|line| line.strip_prefix("#= ").unwrap_or(line))
            .fold(String::new(), |text, line| text + line + "\n");
        let address = Some("/run/gantry/gantry.sock".into());
        let want = Config {
            root: Some("/var/lib/gantry".into()),
            state: Some("/run/gantry".into()),
            grpc: Grpc { address, ..Grpc::default() },
            ..Config::default()
        };
        assert_eq!(Config::parse(&uncommented).expect("parses"), want);
        assert_eq!(Config::parse(DEFAULT).expect("parses"), Config::default());
    }

    #[test]
    fn unknown_keys_are_errors_with_a_place() {
        let cases = [
            ("top level", "rot = '/x'", "line 1, column 1"),
            ("section", "[grpc]\nadress = '/x'", "line 2, column 1"),
            ("type", "[grpc]\nuid = 'root'", "line 2, column 7"),
            ("duration", "[gc]\nschedule_delay = '1 day'", "line 2, column 18"),
            ("negative duration", "[gc]\nstartup_delay = '-1s'", "line 2, column 17"),
        ];
        for (case, text, place) in cases {
            let error = Config::parse(text).expect_err(case).to_string();
            assert!(error.contains(place), "{case}: {error}");
        }
    }

    #[test]
    fn paths() {
        let mut config = Config::default();
        let got = config.paths(Layout::Containerd);
        assert_eq!(got.address, Path::new("/run/containerd/containerd.sock"));
        assert_eq!(got.ttrpc_address, Path::new("/run/containerd/containerd.sock.ttrpc"));
        config.apply(Flags { state: Some("/s".into()), ..Flags::default() });
        let got = config.paths(Layout::Gantry);
        assert_eq!(got.address, Path::new("/s/gantry.sock"));
        assert_eq!(got.root, Path::new("/var/lib/gantry"));
    }
}
