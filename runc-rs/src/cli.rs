//! The command line, runc's: global flags, then a command and its own.
//!
//! Commands return the status with which the program ends; an error is logged here, once, and
//! the status is then 1, or 255 for `exec`, as runc's.

mod checkpoint;
mod create;
mod delete;
mod events;
mod exec;
mod flags;
mod help;
mod kill;
mod list;
mod pause;
mod ps;
mod restore;
mod run;
mod spec;
mod state;
mod update;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use sys::error::Chain;

use self::flags::{Flag, Parsed, switch, value};
use crate::{
    container::Container,
    error::Error,
    features::Features,
    id::ContainerId,
    log, process,
    settings::{Settings, default_root},
    state::Root,
};

const GLOBAL: [Flag; 8] = [
    switch("debug", ""),
    value("log", ""),
    value("log-format", ""),
    value("root", ""),
    switch("systemd-cgroup", ""),
    value("rootless", ""),
    switch("version", "v"),
    switch("help", "h"),
];

/// The status for a command that there is not.
const NO_SUCH_COMMAND: i32 = 3;

/// Runs the command in this process's arguments, and returns its exit status.
pub fn main() -> i32 {
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let global = match Parsed::new(&words, &GLOBAL, 1) {
        Ok(global) => global,
        Err(error) => return explain(&error, ""),
    };
    let command = global.arguments.first().map_or("", String::as_str);
    match dispatch(&global) {
        Ok(status) => status,
        Err(error) => match error.downcast_ref::<Error>() {
            Some(error @ (Error::Help | Error::CommandLine(_))) => explain(error, command),
            Some(error @ Error::NoSuchCommand(_)) => fail(error, NO_SUCH_COMMAND),
            _ => fail(error.as_ref(), if command == "exec" { 255 } else { 1 }),
        },
    }
}

/// Shows how a command is written, to somebody who asked or who got it wrong.
fn explain(error: &Error, command: &str) -> i32 {
    let name = program_name();
    let text = help::command(&name, command).unwrap_or_else(|| help::program(&name));
    if matches!(error, Error::Help) {
        return write_out(&text).map_or_else(|error| fail(&error, 1), |()| 0);
    }
    // The error is told in any case.
    let _ = write_out(&format!("Incorrect Usage: {error}\n\n{text}"));
    fail(error, 1)
}

/// What this program was called by.
fn program_name() -> String {
    let path = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    path.file_name()
        .map_or_else(|| "runc-rs".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// What is fuzzed; see [`crate::fuzz`].
pub(crate) fn fuzz(words: &[String]) {
    let _ = Parsed::new(words, &GLOBAL, 1);
    exec::fuzz(words);
}

fn fail(error: &(dyn std::error::Error + 'static), status: i32) -> i32 {
    log::error(&Chain(error).to_string());
    status
}

/// What a failed command's error begins with, where runc has something there.
#[derive(Debug, thiserror::Error)]
#[error("{prefix}")]
struct Failed {
    prefix: &'static str,
    source: Error,
}

type Outcome = Result<i32, Box<dyn std::error::Error>>;

fn dispatch(global: &Parsed) -> Result<i32, Box<dyn std::error::Error>> {
    if global.is_on("version")? {
        return print(&version());
    }
    open_log(global)?;
    let settings = settings(global)?;
    let Some((command, words)) = global.arguments.split_first() else {
        return Err(Error::Help.into());
    };
    if global.is_on("help")? || words.first().is_some_and(|word| word == "--help" || word == "-h") {
        return help_for(if global.is_on("help")? { None } else { Some(command) });
    }
    let prefixed = |prefix| {
        move |source| -> Box<dyn std::error::Error> {
            match source {
                Error::Help | Error::CommandLine(_) => source.into(),
                source => Failed { prefix, source }.into(),
            }
        }
    };
    match command.as_str() {
        "create" => Ok(create::run(&settings, words).map_err(prefixed("runc create failed"))?),
        "run" => Ok(run::run(&settings, words).map_err(prefixed("runc run failed"))?),
        "exec" => Ok(exec::run(&settings, words).map_err(prefixed("exec failed"))?),
        "start" => Ok(run::start(&settings, words)?),
        "delete" => Ok(delete::run(&settings, words)?),
        "checkpoint" => Ok(checkpoint::run(&settings, words)?),
        "restore" => Ok(restore::run(&settings, words)?),
        "features" => {
            Parsed::new(words, &[], flags::ANYWHERE)?.expect("features", 0, 0)?;
            print(&Features::detect().to_json())
        }
        "events" => Ok(events::run(&settings, words)?),
        "kill" => Ok(kill::run(&settings, words)?),
        "list" => Ok(list::run(&settings, words)?),
        "pause" => Ok(pause::pause(&settings, words)?),
        "resume" => Ok(pause::resume(&settings, words)?),
        "ps" => Ok(ps::run(&settings, words)?),
        "spec" => Ok(spec::run(words)?),
        "state" => Ok(state::run(&settings, words)?),
        "update" => Ok(update::run(&settings, words)?),
        "help" | "h" => help_for(words.first()),
        _ => Err(Error::NoSuchCommand(command.clone()).into()),
    }
}

/// Prints help for a command, or for all of them.
fn help_for(command: Option<&String>) -> Outcome {
    let name = program_name();
    match command {
        None => print(&help::program(&name)),
        Some(command) => match help::command(&name, command) {
            Some(text) => print(&text),
            None => Err(Error::NoSuchCommand(command.clone()).into()),
        },
    }
}

fn print(text: &str) -> Outcome {
    write_out(text)?;
    Ok(0)
}

/// Writes to standard output, all of it.
fn write_out(text: &str) -> Result<(), Error> {
    std::io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .map_err(|error| Error::system("write", "standard output", error))
}

/// In runc's form, with the name by which this program was called: what reads it, looks for the
/// name of the runtime that it thinks it has.
fn version() -> String {
    let called = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let called = called.file_name().unwrap_or_default() == "runc";
    let name = if called { "runc" } else { "runc-rs" };
    let commit = option_env!("GANTRY_COMMIT").unwrap_or("unknown");
    let version = env!("CARGO_PKG_VERSION");
    let spec = crate::spec::VERSION;
    format!("{name} version {version}\ncommit: {commit}\nspec: {spec}\n")
}

fn open_log(global: &Parsed) -> Result<(), Error> {
    let format = match global.value("log-format") {
        None | Some("text" | "") => log::Format::Text,
        Some("json") => log::Format::Json,
        Some(other) => {
            return Err(Error::Usage(format!("invalid log-format: {other}")));
        }
    };
    let path = global.value("log").filter(|path| !path.is_empty()).map(Path::new);
    log::open(path, format, global.is_on("debug")?)
}

fn settings(global: &Parsed) -> Result<Settings, Error> {
    let is_root = rustix::process::geteuid().is_root();
    let rootless = match global.value("rootless") {
        None | Some("auto" | "") => !is_root,
        Some(_) => global.is_on("rootless")?,
    };
    let root = match global.value("root") {
        Some(root) if !root.is_empty() => {
            std::path::absolute(root).map_err(|error| Error::file("resolve", root, error))?
        }
        _ => default_root(is_root, std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)),
    };
    Ok(Settings {
        root: Root::new(root),
        root_is_named: global.value("root").is_some_and(|root| !root.is_empty()),
        systemd_cgroup: global.is_on("systemd-cgroup")?,
        rootless,
    })
}

/// The container that the first argument names.
fn container(settings: &Settings, parsed: &Parsed) -> Result<Container, Error> {
    Container::load(&settings.root, &id(parsed)?)
}

fn id(parsed: &Parsed) -> Result<ContainerId, Error> {
    let text = parsed.arguments.first().map_or("", String::as_str);
    text.parse().map_err(Error::InvalidId)
}

/// The flags that every process has.
fn process_options(parsed: &Parsed, detach: bool) -> Result<process::Options, Error> {
    let path = |name| parsed.value(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let variable = |name| std::env::var(name).ok();
    // As sd_listen_fds(3): the descriptors are for the process whose pid is in the variable.
    let own = variable("LISTEN_PID").is_none_or(|pid| pid == std::process::id().to_string());
    let listen_fds = variable("LISTEN_FDS").and_then(|count| count.parse().ok());
    Ok(process::Options {
        console_socket: path("console-socket"),
        pidfd_socket: path("pidfd-socket"),
        pid_file: path("pid-file"),
        preserve_fds: parsed.number("preserve-fds")?.unwrap_or(0),
        listen_fds: listen_fds.filter(|&count: &i32| own && count > 0),
        detach,
    })
}
