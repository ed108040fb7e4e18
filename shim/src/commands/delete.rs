//! `delete`: cleans up after a shim that is gone.
//!
//! containerd calls it when a shim's socket does not answer. Whatever the shim was doing, the
//! container is killed and forgotten by its runtime, its root filesystem is unmounted, and what the
//! shim had in the socket directory is removed. Every step is tried whatever became of the others;
//! what failed is printed as a warning, which containerd logs.
//!
//! But for one: when the runtime fails and init lives still, nothing else is touched and the
//! command fails, so that whoever called it keeps the bundle, without which nobody finds the
//! container again.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command as Program, Stdio},
    time::Duration,
};

use prost::Message;
use proto::containerd::task::v3::DeleteResponse;
use rustix::process::Pid;
use sys::mount::unmount_all;

use crate::{
    args::Args,
    bundle::Bundle,
    commands::CommandError,
    reaper::Exit,
    runtime::{Command, Runtime},
    socket,
};

/// What a container that was killed counts as.
const KILLED: u32 = 128 + libc::SIGKILL.unsigned_abs();

/// How long a shim that was found dead may take until the kernel has closed all that it had.
const SHIM_END_MAX: Duration = Duration::from_millis(500);

/// Cleans up after the shim of the container, and returns an encoded `DeleteResponse`.
///
/// # Errors
///
/// The bundle says nothing about the runtime that can be read.
pub fn delete(args: &Args) -> Result<Vec<u8>, CommandError> {
    if args.namespace.is_empty() {
        return Err(CommandError::Missing { flag: "namespace" });
    }
    if args.id.is_empty() {
        return Err(CommandError::Missing { flag: "id" });
    }
    let bundle = Bundle::new(bundle_path(args)?);
    let (program, options) =
        bundle.read_runtime().map_err(CommandError::io("read the runtime's name"))?;
    let mut runtime = Runtime::new(&options, &args.namespace, &bundle);
    if let Some(program) = program {
        runtime = runtime.with_program(program);
    }
    let pid = bundle.read_pid(None);
    if let Err(error) = delete_by_runtime(&runtime, &args.id) {
        if pid.as_ref().is_ok_and(|&pid| lives(pid)) {
            return Err(CommandError::io("delete the container")(error));
        }
        warn(&error);
    }
    if let Err(error) = unmount_all(&bundle.rootfs()) {
        warn(&error);
    }
    if let Err(error) = remove_sockets(&bundle) {
        warn(&error);
    }
    let exit = Exit::now(KILLED);
    let response = DeleteResponse {
        pid: pid.map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs()),
        exit_status: exit.status,
        exited_at: Some(exit.at),
    };
    Ok(response.encode_to_vec())
}

fn bundle_path(args: &Args) -> Result<PathBuf, CommandError> {
    if let Some(bundle) = &args.bundle {
        return Ok(bundle.clone());
    }
    let here = std::env::current_dir().map_err(CommandError::io("find the bundle"))?;
    Ok(here.with_file_name(&args.id))
}

fn delete_by_runtime(runtime: &Runtime, id: &str) -> io::Result<()> {
    let program = runtime.program();
    let output = Program::new(program)
        .args(runtime.arguments(&Command::Delete { id, force: true }))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("delete {id}: {}", text.trim())))
}

/// Whether there is a process of this number that has not ended. After a failure of the runtime
/// that is taken for the container's init: to be wrong costs another try, the opposite a container.
fn lives(pid: Pid) -> bool {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let stat = fs::read_to_string(path).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// Removes the sockets of the shim that wrote `address`, unless it is alive: the container of a
/// pod may be cleaned up while its shim serves others.
fn remove_sockets(bundle: &Bundle) -> io::Result<()> {
    let Ok(address) = fs::read_to_string(bundle.file("address")) else { return Ok(()) };
    let path = Path::new(address.trim().trim_start_matches("unix://"));
    if !socket::remove_dead(path, SHIM_END_MAX)? {
        return Ok(());
    }
    let pid = fs::read_to_string(bundle.file("shim.pid")).unwrap_or_default();
    let prefix = format!("pty-{}-", pid.trim());
    let Some(directory) = path.parent().filter(|_| !pid.is_empty()) else { return Ok(()) };
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn warn(error: &(dyn std::error::Error + 'static)) {
    // There is nowhere to report that to.
    let _ = writeln!(io::stderr(), "{}", sys::error::Chain(error));
}
