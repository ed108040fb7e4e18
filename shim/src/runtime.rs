//! The OCI runtime: its command lines, and what it says when it fails.
//!
//! The command line is runc's, which every OCI runtime that containerd can use understands:
//! `--root <root>/<namespace> --log <bundle>/log.json --log-format json <command> ...`. The
//! functions here only build argument vectors; `crate::task::jobs` runs them.
//!
//! A runtime reports a failure in its log, one JSON object per line. The last one of level `error`
//! that was written since the command started is the reason that callers get.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use proto::containerd::runc::v1::{CheckpointOptions, Options};
use serde::Deserialize;

use crate::bundle::Bundle;

/// Where runtimes keep their state when [`Options`] do not say.
pub(crate) const DEFAULT_ROOT: &str = "/run/containerd/runc";

/// The runtime that is used when [`Options`] name none.
pub(crate) const DEFAULT_PROGRAM: &str = "runc-rs";

/// The end of a runtime's log that is searched for an error, in bytes.
const LOG_LEN_MAX: u64 = 64 << 10;

/// How to call the runtime of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Runtime {
    program: String,
    root: PathBuf,
    log: PathBuf,
    systemd_cgroup: bool,
}

impl Runtime {
    /// The runtime for the container in `bundle`, as `options` describe it.
    pub(crate) fn new(options: &Options, namespace: &str, bundle: &Bundle) -> Self {
        let root = if options.root.is_empty() { DEFAULT_ROOT } else { &options.root };
        let program = match options.binary_name.as_str() {
            "" => default_program(),
            name => name.to_owned(),
        };
        Self {
            program,
            root: Path::new(root).join(namespace),
            log: bundle.file("log.json"),
            systemd_cgroup: options.systemd_cgroup,
        }
    }

    /// The same with another program.
    pub(crate) fn with_program(self, program: String) -> Self {
        Self { program, ..self }
    }

    /// The program, a path or a name that is looked for in `PATH`.
    pub(crate) fn program(&self) -> &str {
        &self.program
    }

    /// Where the runtime writes its log.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// The arguments of a command of the runtime.
    pub(crate) fn arguments(&self, command: &Command<'_>) -> Vec<String> {
        let mut arguments = vec![
            "--root".to_owned(),
            text(&self.root),
            "--log".to_owned(),
            text(&self.log),
            "--log-format".to_owned(),
            "json".to_owned(),
        ];
        if self.systemd_cgroup {
            arguments.push("--systemd-cgroup".to_owned());
        }
        command.append_to(&mut arguments);
        arguments
    }
}

/// Finds [`DEFAULT_PROGRAM`]: in `PATH`, else next to this program.
fn default_program() -> String {
    let in_path = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(DEFAULT_PROGRAM).is_file())
    });
    if !in_path {
        let beside = std::env::current_exe().map(|own| own.with_file_name(DEFAULT_PROGRAM));
        if let Ok(beside) = beside
            && beside.is_file()
        {
            return text(&beside);
        }
    }
    DEFAULT_PROGRAM.to_owned()
}

/// One command of the runtime, on the container `id`.
#[derive(Clone, Debug)]
pub(crate) enum Command<'a> {
    Create {
        id: &'a str,
        bundle: &'a Path,
        pid_file: &'a Path,
        console: Option<&'a Path>,
        options: &'a Options,
    },
    Restore {
        id: &'a str,
        bundle: &'a Path,
        pid_file: &'a Path,
        console: Option<&'a Path>,
        options: &'a Options,
        image: &'a str,
        parent: &'a str,
        work: &'a Path,
    },
    Start {
        id: &'a str,
    },
    Exec {
        id: &'a str,
        process: &'a Path,
        pid_file: &'a Path,
        console: Option<&'a Path>,
    },
    Kill {
        id: &'a str,
        signal: u32,
        all: bool,
    },
    Delete {
        id: &'a str,
        force: bool,
    },
    Pause {
        id: &'a str,
    },
    Resume {
        id: &'a str,
    },
    Ps {
        id: &'a str,
    },
    /// The resources come on standard input, as JSON.
    Update {
        id: &'a str,
    },
    Checkpoint {
        id: &'a str,
        image: &'a str,
        work: &'a Path,
        options: &'a CheckpointOptions,
    },
}

impl Command<'_> {
    fn append_to(&self, out: &mut Vec<String>) {
        let mut push = |arguments: &[&str]| {
            out.extend(arguments.iter().map(|&argument| argument.to_owned()));
        };
        let show = |path: &Path| text(path);
        match *self {
            Self::Create { id, bundle, pid_file, console, options } => {
                push(&["create", "--bundle", &show(bundle), "--pid-file", &show(pid_file)]);
                if let Some(socket) = console {
                    push(&["--console-socket", &show(socket)]);
                }
                flag(&mut push, options.no_pivot_root, "--no-pivot");
                flag(&mut push, options.no_new_keyring, "--no-new-keyring");
                push(&[id]);
            }
            Self::Restore { id, bundle, pid_file, console, options, image, parent, work } => {
                push(&["restore", "--image-path", image, "--work-path", &show(work)]);
                if !parent.is_empty() {
                    push(&["--parent-path", parent]);
                }
                push(&["--detach", "--pid-file", &show(pid_file)]);
                if let Some(socket) = console {
                    push(&["--console-socket", &show(socket)]);
                }
                flag(&mut push, options.no_pivot_root, "--no-pivot");
                push(&["--no-subreaper", "--bundle", &show(bundle), id]);
            }
            Self::Exec { id, process, pid_file, console } => {
                push(&["exec", "--process", &show(process)]);
                if let Some(socket) = console {
                    push(&["--console-socket", &show(socket)]);
                }
                push(&["--detach", "--pid-file", &show(pid_file), id]);
            }
            Self::Kill { id, signal, all } => {
                push(&["kill"]);
                flag(&mut push, all, "--all");
                push(&[id, &signal.to_string()]);
            }
            Self::Delete { id, force } => {
                push(&["delete"]);
                flag(&mut push, force, "--force");
                push(&[id]);
            }
            Self::Start { id } => push(&["start", id]),
            Self::Pause { id } => push(&["pause", id]),
            Self::Resume { id } => push(&["resume", id]),
            Self::Ps { id } => push(&["ps", "--format", "json", id]),
            Self::Update { id } => push(&["update", "--resources=-", id]),
            Self::Checkpoint { id, image, work, options } => {
                push(&["checkpoint", "--image-path", image, "--work-path", &show(work)]);
                if !options.parent_path.is_empty() {
                    push(&["--parent-path", &options.parent_path]);
                }
                flag(&mut push, options.open_tcp, "--tcp-established");
                flag(&mut push, options.external_unix_sockets, "--ext-unix-sk");
                flag(&mut push, options.terminal, "--shell-job");
                flag(&mut push, options.file_locks, "--file-locks");
                if !options.cgroups_mode.is_empty() {
                    push(&["--manage-cgroups-mode", &options.cgroups_mode]);
                }
                for namespace in &options.empty_namespaces {
                    push(&["--empty-ns", namespace]);
                }
                flag(&mut push, !options.exit, "--leave-running");
                push(&[id]);
            }
        }
    }
}

fn flag(push: &mut impl FnMut(&[&str]), on: bool, name: &str) {
    if on {
        push(&[name]);
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// How long the runtime's log is now, the place where the next command's entries begin.
pub(crate) fn log_len(log: &Path) -> u64 {
    std::fs::metadata(log).map_or(0, |metadata| metadata.len())
}

/// The last error in the runtime's log that was written at or after the offset `from`.
///
/// # Errors
///
/// The log cannot be read.
pub(crate) fn last_error(log: &Path, from: u64) -> io::Result<Option<String>> {
    let mut file = File::open(log)?;
    let len = file.metadata()?.len();
    let mut entries = Vec::new();
    file.seek(SeekFrom::Start(from.max(len.saturating_sub(LOG_LEN_MAX))))?;
    file.take(LOG_LEN_MAX).read_to_end(&mut entries)?;
    Ok(last_error_in(&entries))
}

fn last_error_in(entries: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Entry {
        level: String,
        msg: String,
    }

    entries
        .rsplit(|&byte| byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Entry>(line).ok())
        .find(|entry| entry.level == "error")
        .map(|entry| entry.msg.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(options: &Options, command: &Command<'_>) -> String {
        let runtime = Runtime::new(options, "ns", &Bundle::new("/b"));
        runtime.arguments(command).join(" ")
    }

    #[test]
    fn command_lines() {
        let plain = Options { binary_name: "runc".to_owned(), ..Options::default() };
        let every = Options {
            root: "/r".to_owned(),
            systemd_cgroup: true,
            no_pivot_root: true,
            no_new_keyring: true,
            ..plain.clone()
        };
        let create = |options| Command::Create {
            id: "c",
            bundle: Path::new("/b"),
            pid_file: Path::new("/b/init.pid"),
            console: None,
            options,
        };
        let checkpoint = CheckpointOptions { open_tcp: true, ..CheckpointOptions::default() };
        let head = "--root /run/containerd/runc/ns --log /b/log.json --log-format json";
        let cases = [
            ("create", &plain, create(&plain), format!("{head} create --bundle /b --pid-file /b/init.pid c")),
            (
                "create with every option",
                &every,
                create(&every),
                "--root /r/ns --log /b/log.json --log-format json --systemd-cgroup create --bundle \
                 /b --pid-file /b/init.pid --no-pivot --no-new-keyring c"
                    .to_owned(),
            ),
            (
                "exec on a terminal",
                &plain,
                Command::Exec {
                    id: "c",
                    process: Path::new("/p"),
                    pid_file: Path::new("/b/e.pid"),
                    console: Some(Path::new("/s")),
                },
                format!("{head} exec --process /p --console-socket /s --detach --pid-file /b/e.pid c"),
            ),
            (
                "kill all",
                &plain,
                Command::Kill { id: "c", signal: 9, all: true },
                format!("{head} kill --all c 9"),
            ),
            (
                "checkpoint, running on",
                &plain,
                Command::Checkpoint {
                    id: "c",
                    image: "/i",
                    work: Path::new("/w"),
                    options: &checkpoint,
                },
                format!(
                    "{head} checkpoint --image-path /i --work-path /w --tcp-established \
                     --leave-running c"
                ),
            ),
        ];
        for (case, options, command, want) in cases {
            assert_eq!(arguments(options, &command), want, "{case}");
        }
    }

    #[test]
    fn errors_in_logs() {
        let cases = [
            ("empty", "", None),
            ("no error", r#"{"level":"info","msg":"a","time":"t"}"#, None),
            (
                "the last one",
                "{\"level\":\"error\",\"msg\":\"a\"}\n{\"level\":\"error\",\"msg\":\"b \\n\"}\n{\"level\":\"debug\",\"msg\":\"c\"}\n",
                Some("b"),
            ),
            ("half a line", "lle\":1}\n{\"level\":\"error\",\"msg\":\"a\"}\n{\"lev", Some("a")),
        ];
        for (case, log, want) in cases {
            assert_eq!(last_error_in(log.as_bytes()).as_deref(), want, "{case}");
        }
    }
}
