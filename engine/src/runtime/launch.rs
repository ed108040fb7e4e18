//! Runs a shim's binary: `start` makes a shim, `delete` cleans up after one that died, and `-info`
//! says what the shim is and what the OCI runtime below it can do.
//!
//! The binary's input and outputs are files in memory. So nothing has to be pumped, an output
//! cannot block the binary, and it does not matter whether the shim that stays behind holds on to
//! them: what the binary printed is all there when it exits, and its exit is a descriptor's event.
//!
//! Environment and arguments are containerd's: `pkg/shim/util.go`, `Command`. On the standard input
//! shims since containerd 2.3 want their parameters, and older ones the container's options; either
//! refuses the other. An older one has already started its server when it finds out, so options
//! are tried first, and parameters when the shim asks for them. What a binary wanted last is
//! remembered. This project's own shim is known to want parameters.
//!
//! containerd's shim takes anything that can be decoded for parameters, and options can be: their
//! type would be the container's name, and all containers would get one shim. So options are marked
//! by what no parameters have ([`NO_PARAMETERS`]); then that shim takes them for what they are.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::File,
    io::{self, Seek, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prost::Message;
use prost_types::Any;
use proto::containerd::{
    runtime::bootstrap::v1::{BootstrapParams, Extension, LogLevel},
    task::v3::DeleteResponse,
    types::RuntimeInfo,
};
use rustix::fs::{MemfdFlags, memfd_create};
use sys::spawn::{CommandChild, name_shortage};
use tokio::process::Command;

use super::{Error, bootstrap::Bootstrap, bundle::Bundle, resolve::OWN_SHIM};
use crate::namespace::Namespace;

/// How long `start` may take.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long `delete` may take, which kills what is left of the container.
const DELETE_LIMIT: Duration = Duration::from_secs(30);

/// How long `-info` may take, for which the shim asks the OCI runtime.
const INFO_LIMIT: Duration = Duration::from_secs(10);

/// How much of what a binary prints is read, in bytes.
const OUTPUT_LEN_MAX: usize = 64 << 10;

/// What all shims are told about this daemon.
#[derive(Clone, Debug)]
pub(super) struct Daemon {
    pub(super) address: PathBuf,
    pub(super) ttrpc_address: PathBuf,
    pub(super) version: &'static str,
    pub(super) debug: bool,
    /// The soft limit of open files that shims, and so containers, get; `None` for this daemon's.
    pub(super) open_files_limit: Option<u64>,
}

/// What a shim is given when it says that it does not want options (`pkg/shim/compat.go`).
const WANTS_PARAMETERS: &str = "deprecated";

/// A text of parameters (`socket_dir`, 9) that is none: they cannot be decoded with it. To options it
/// is a field that they do not know, and which is left out.
const NO_PARAMETERS: [u8; 3] = [9 << 3 | 2, 1, 0xff];

/// The binaries that wanted parameters.
#[derive(Debug, Default)]
pub(super) struct Dialects(Mutex<HashSet<PathBuf>>);

impl Dialects {
    fn wants_parameters(&self, binary: &Path) -> bool {
        binary.file_name().is_some_and(|name| name == OWN_SHIM) || self.lock().contains(binary)
    }

    fn remember(&self, binary: &Path, wants_parameters: bool) {
        if wants_parameters {
            self.lock().insert(binary.to_owned());
        } else {
            self.lock().remove(binary);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A shim's binary and the task that it is for.
pub(super) struct Launch<'a> {
    pub(super) daemon: &'a Daemon,
    pub(super) dialects: &'a Dialects,
    pub(super) binary: &'a Path,
    pub(super) namespace: &'a Namespace,
    pub(super) id: &'a str,
    pub(super) bundle: &'a Bundle,
}

impl Launch<'_> {
    /// Starts a shim, or finds the one that the container shares.
    ///
    /// # Errors
    ///
    /// `Spawn`, `Start`, `Cut`, `Unsupported`.
    pub(super) async fn start(&self, options: Option<&Any>) -> Result<Bootstrap, Error> {
        let parameters = || self.parameters(options).encode_to_vec();
        let given = || options.map(marked).unwrap_or_default();
        let wants_parameters = self.dialects.wants_parameters(self.binary);
        let input = if wants_parameters { parameters() } else { given() };
        let output = match self.run(&["start"], &input, START_LIMIT).await {
            Err(Error::Start { text }) if !wants_parameters && text.contains(WANTS_PARAMETERS) => {
                self.dialects.remember(self.binary, true);
                self.run(&["start"], &parameters(), START_LIMIT).await?
            }
            Err(error) => {
                // The binary may have been replaced by an older one: the next start tries options.
                self.dialects.remember(self.binary, false);
                return Err(error);
            }
            Ok(output) => output,
        };
        Bootstrap::parse(&output)
    }

    /// Cleans up after a shim that died, and tells how init ended.
    ///
    /// # Errors
    ///
    /// `Spawn`, `Start`, `Cut`.
    pub(super) async fn delete(&self) -> Result<DeleteResponse, Error> {
        let bundle = self.bundle.path().as_os_str();
        let args = [OsString::from("-bundle"), bundle.to_owned(), OsString::from("delete")];
        let output = self.run(&args, &[], DELETE_LIMIT).await?;
        DeleteResponse::decode(output.as_slice())
            .map_err(|error| Error::Start { text: format!("malformed answer: {error}") })
    }

    fn parameters(&self, options: Option<&Any>) -> BootstrapParams {
        let level = if self.daemon.debug { LogLevel::Debug } else { LogLevel::Info };
        BootstrapParams {
            instance_id: self.id.to_owned(),
            namespace: self.namespace.to_string(),
            log_level: level.into(),
            containerd_version: self.daemon.version.to_owned(),
            containerd_ttrpc_address: self.daemon.ttrpc_address.display().to_string(),
            containerd_grpc_address: self.daemon.address.display().to_string(),
            containerd_binary: own_path().display().to_string(),
            extensions: options
                .cloned()
                .map(|value| Extension { value: Some(value) })
                .into_iter()
                .collect(),
            socket_dir: None,
        }
    }

    async fn run<A: AsRef<std::ffi::OsStr>>(
        &self,
        action: &[A],
        input: &[u8],
        limit: Duration,
    ) -> Result<Vec<u8>, Error> {
        let printed = run(self.binary, self.command(action), input, limit).await?;
        if !printed.stderr.is_empty() {
            tracing::debug!(id = self.id, "shim's binary: {}", printed.stderr);
        }
        Ok(printed.stdout)
    }

    fn command<A: AsRef<std::ffi::OsStr>>(&self, action: &[A]) -> Command {
        let mut command = Command::new(self.binary);
        command
            .args(["-namespace", self.namespace.as_str(), "-address"])
            .arg(&self.daemon.address)
            .arg("-publish-binary")
            .arg(own_path())
            .args(["-id", self.id])
            .args(self.daemon.debug.then_some("-debug"))
            .args(action)
            .current_dir(self.bundle.path())
            .env("GOMAXPROCS", "2")
            .env("MAX_SHIM_VERSION", "2")
            .env("TTRPC_ADDRESS", &self.daemon.ttrpc_address)
            .env("GRPC_ADDRESS", &self.daemon.address)
            .env("NAMESPACE", self.namespace.as_str());
        if let Some(soft) = self.daemon.open_files_limit {
            command.as_std_mut().open_files_limit(soft);
        }
        command
    }
}

/// What the shim `binary` says about itself, and about the OCI runtime that `options` name.
///
/// # Errors
///
/// `Info`, `Spawn`.
pub(super) async fn info(binary: &Path, options: Option<&Any>) -> Result<RuntimeInfo, Error> {
    let fail = |text| Error::Info { binary: binary.to_owned(), text };
    let mut command = Command::new(binary);
    command.arg("-info");
    let input = options.map(Message::encode_to_vec).unwrap_or_default();
    let printed = run(binary, command, &input, INFO_LIMIT).await.map_err(|error| match error {
        Error::Start { text } | Error::Cut { text } => fail(text),
        error => error,
    })?;
    RuntimeInfo::decode(printed.stdout.as_slice())
        .map_err(|error| fail(format!("malformed answer: {error}")))
}

/// What a binary that has ended well has printed.
struct Printed {
    stdout: Vec<u8>,
    stderr: String,
}

/// Runs `command`, which is the shim `binary` with its arguments, to its end.
///
/// # Errors
///
/// `Spawn`, `Start`, `Cut`.
async fn run(
    binary: &Path,
    mut command: Command,
    input: &[u8],
    limit: Duration,
) -> Result<Printed, Error> {
    let io = |source: io::Error| Error::Spawn { binary: binary.to_owned(), source };
    let (stdout, stderr) = (memory("stdout").map_err(io)?, memory("stderr").map_err(io)?);
    command
        .env_remove("NOTIFY_SOCKET")
        .process_group(0)
        .kill_on_drop(true)
        .stdin(stdin(input).map_err(io)?)
        .stdout(stdout.try_clone().map_err(io)?)
        .stderr(stderr.try_clone().map_err(io)?);
    let mut child = command.spawn().map_err(name_shortage).map_err(io)?;
    let status = match tokio::time::timeout(limit, child.wait()).await {
        Ok(status) => status.map_err(io)?,
        // The child is killed and reaped as it is dropped.
        Err(_) => {
            let text = format!("{} took longer than {limit:?}, and was killed", binary.display());
            return Err(Error::Cut { text });
        }
    };
    if status.success() {
        return Ok(Printed { stdout: read(&stdout).map_err(io)?, stderr: text(&stderr) });
    }
    let said = [text(&stdout), text(&stderr)].concat();
    let text = format!("{said}: {}", exit_text(status));
    Err(if status.code().is_some() { Error::Start { text } } else { Error::Cut { text } })
}

fn stdin(input: &[u8]) -> io::Result<Stdio> {
    if input.is_empty() {
        return Ok(Stdio::null());
    }
    let mut stdin = memory("stdin")?;
    stdin.write_all(input)?;
    stdin.rewind()?;
    Ok(stdin.into())
}

/// Options, such that nobody takes them for parameters.
fn marked(options: &Any) -> Vec<u8> {
    [options.encode_to_vec(), NO_PARAMETERS.to_vec()].concat()
}

fn own_path() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("gantryd"))
}

fn memory(name: &str) -> io::Result<File> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

fn read(file: &File) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(OUTPUT_LEN_MAX);
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn text(file: &File) -> String {
    String::from_utf8_lossy(&read(file).unwrap_or_default()).trim().to_owned()
}

/// As Go prints it, since clients show it.
fn exit_text(status: std::process::ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit status {code}"),
        None => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    /// Makes a shell script a shim's binary.
    fn shim(directory: &Path, script: &str) -> PathBuf {
        let binary = directory.join("shim");
        fs::write(&binary, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).expect("permitted");
        binary
    }

    #[tokio::test]
    async fn information() {
        let named = |name: &str, features: &[u8]| RuntimeInfo {
            name: name.to_owned(),
            features: (!features.is_empty())
                .then(|| Any { type_url: "f".to_owned(), value: features.to_vec() }),
            ..RuntimeInfo::default()
        };
        let cases: [(&str, &str, Result<RuntimeInfo, &str>); 5] = [
            ("name", r#"[ "$*" = -info ] && printf '\012\002io'"#, Ok(named("io", b""))),
            (
                "what it is given",
                // The options, whose type is `T` and whose value is `ab`, are the features' value.
                r#"printf '\012\002io\042\014\012\001f\022\007'; cat"#,
                Ok(named("io", b"\x0a\x01T\x12\x02ab")),
            ),
            ("malformed", "printf '\\012\\377'", Err("[SHIM -info]: malformed answer")),
            ("refuses", "echo no such runtime >&2; exit 3", Err("no such runtime: exit status 3")),
            ("dies", "kill -9 $$", Err("[SHIM -info]: : signal: 9")),
        ];
        let options = Any { type_url: "T".to_owned(), value: b"ab".to_vec() };
        for (case, script, want) in cases {
            let directory = tempfile::tempdir().expect("temporary directory");
            let binary = shim(directory.path(), script);
            match (info(&binary, Some(&options)).await, want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{case}"),
                (Err(error), Err(want)) => {
                    let text = error.to_string();
                    let text = text.replace(&binary.display().to_string(), "SHIM");
                    assert!(text.contains(want), "{case}: {text}");
                }
                (got, _) => panic!("{case}: {got:?}"),
            }
        }
    }

    /// Runs a shell script as a shim's binary.
    async fn start(script: &str) -> Result<Bootstrap, String> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let binary = shim(directory.path(), script);
        let namespace = "default".parse().expect("an identifier");
        let bundle = Bundle::at(directory.path(), &namespace, "c1");
        fs::create_dir_all(bundle.path()).expect("made");
        let daemon = Daemon {
            address: "/run/x.sock".into(),
            ttrpc_address: "/run/x.sock.ttrpc".into(),
            version: "2.3.0",
            debug: false,
            open_files_limit: Some(99),
        };
        let launch = Launch {
            daemon: &daemon,
            dialects: &Dialects::default(),
            binary: &binary,
            namespace: &namespace,
            id: "c1",
            bundle: &bundle,
        };
        launch.start(None).await.map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_no_parameters() {
        let options = Any { type_url: "containerd.runc.v1.Options".to_owned(), value: vec![26, 0] };
        let plain = options.encode_to_vec();
        assert!(BootstrapParams::decode(plain.as_slice()).is_ok(), "the reason for the mark");
        let marked = marked(&options);
        assert!(BootstrapParams::decode(marked.as_slice()).is_err());
        assert_eq!(Any::decode(marked.as_slice()), Ok(options));
    }

    #[tokio::test]
    async fn answers() {
        let found = |address: &str| Ok(Bootstrap::parse(address.as_bytes()).expect("an address"));
        let cases = [
            ("address", "echo unix:///s/a; echo noise >&2", found("unix:///s/a")),
            (
                "environment",
                "echo unix://$TTRPC_ADDRESS/$NAMESPACE",
                found("unix:///run/x.sock.ttrpc/default"),
            ),
            (
                "arguments",
                "echo unix:///$1/$2/$7/$8/$9",
                found("unix:///-namespace/default/-id/c1/start"),
            ),
            ("limit", "echo unix:///s/$(ulimit -Sn)", found("unix:///s/99")),
            ("directory", "echo unix:///${PWD##*/}", found("unix:///c1")),
            (
                "output stays open",
                "sleep 100 & pid=$!; echo unix:///s/a; (kill $pid) 2>/dev/null",
                found("unix:///s/a"),
            ),
            (
                "asks for parameters",
                "test $(wc -c) -gt 0 && echo unix:///s/p && exit; echo API is deprecated >&2; exit 1",
                found("unix:///s/p"),
            ),
            (
                "failure",
                "echo no luck >&2; exit 3",
                Err("failed to start shim: start failed: no luck: exit status 3".to_owned()),
            ),
            (
                "silence",
                "exit 0",
                Err("failed to start shim: start failed: shim gave no address".to_owned()),
            ),
        ];
        for (case, script, want) in cases {
            assert_eq!(start(script).await, want, "{case}");
        }
    }
}
