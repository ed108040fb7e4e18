//! `start`: finds or starts the shim for a container, and prints where it listens.

use std::{
    fs,
    io::{self, Read},
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
};

use sys::spawn::{CommandChild, name_shortage};

use crate::{
    args::Args,
    bootstrap::Request,
    bundle::Bundle,
    commands::{CommandError, TTRPC_ADDRESS},
    socket::{self, Bound},
};

/// The most that is read from containerd, in bytes.
const INPUT_LEN_MAX: u64 = 10 << 20;

/// The variable by which containerd says which versions it knows.
const VERSION_MAX: &str = "MAX_SHIM_VERSION";

/// The variable by which an operator has shims and containers share no core with others.
const SCHED_CORE: &str = "SCHED_CORE";

/// Starts the shim for the bundle in the working directory, unless its group has one, and returns
/// what containerd is to read.
///
/// The socket listens before the shim runs, so whoever connects early waits for it.
///
/// # Errors
///
/// The bundle cannot be read or written, or the shim not be started. Nothing runs then that did not
/// before.
pub fn start(args: &Args) -> Result<Vec<u8>, CommandError> {
    if args.namespace.is_empty() {
        return Err(CommandError::Missing { flag: "namespace" });
    }
    if args.id.is_empty() {
        return Err(CommandError::Missing { flag: "id" });
    }
    let mut input = Vec::new();
    let mut stdin = io::stdin().take(INPUT_LEN_MAX);
    stdin.read_to_end(&mut input).map_err(CommandError::io("read options"))?;
    let version_max = std::env::var(VERSION_MAX).ok();
    let request = Request::parse(&input, version_max.as_deref(), &args.id, &args.namespace);

    let bundle = Bundle::new(".");
    let config = bundle.config().map_err(CommandError::io("read config.json"))?;
    let group = config.group().unwrap_or(&args.id);
    let directory = request.socket_directory.as_deref();
    let directory = directory.unwrap_or(Path::new(socket::DEFAULT_DIRECTORY));
    let path = socket::path(directory, &args.address, &args.namespace, group);
    let address = socket::address(&path);
    let bound = socket::bind(&path).map_err(CommandError::io("create new shim socket"))?;
    match bound {
        Bound::New(listener) => {
            // First, so that there is no shim that nobody was told of when it cannot be written.
            let started = write_address(&bundle, &address)
                .and_then(|()| start_server(args, &request, listener.into()));
            started.inspect_err(|_| {
                // The error that is reported is the one that matters.
                let _ = fs::remove_file(&path);
            })?;
        }
        Bound::Served => write_address(&bundle, &address)?,
    }
    Ok(request.dialect.answer(&address))
}

/// Keeps the address in the bundle. Where it is already nothing is written: who looks for a shim
/// after the disk became full must find it.
fn write_address(bundle: &Bundle, address: &str) -> Result<(), CommandError> {
    let file = bundle.file("address");
    if fs::read(&file).is_ok_and(|there| there == address.as_bytes()) {
        return Ok(());
    }
    fs::write(file, address).map_err(CommandError::io("write address"))
}

/// Starts the process that serves.
fn start_server(args: &Args, request: &Request, listener: OwnedFd) -> Result<(), CommandError> {
    let program = std::env::current_exe().map_err(CommandError::io("find the own program"))?;
    let mut command = Command::new(program);
    command.args(["-namespace", &args.namespace, "-id", &args.id, "-address", &args.address]);
    if request.debug.unwrap_or(args.debug) {
        command.arg("-debug");
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .new_session()
        .pass_fds(vec![listener]);
    if let Some(address) = &request.events_address {
        command.env(TTRPC_ADDRESS, address);
    }
    if std::env::var_os(SCHED_CORE).is_some_and(|value| !value.is_empty()) {
        // The shim inherits it. This process is about to end, so it does not matter that it has it.
        sys::scheduling::make_core_cookie()
            .map_err(CommandError::io("enable sched core support"))?;
    }
    let spawned = command.spawn().map_err(name_shortage);
    let mut child = spawned.map_err(CommandError::io("start the shim"))?;
    let pid = child.id();
    let finish = || {
        fs::write("shim.pid", pid.to_string()).map_err(CommandError::io("write shim.pid"))?;
        if !request.options.shim_cgroup.is_empty() {
            join_cgroup(&request.options.shim_cgroup, pid)
                .map_err(CommandError::io("join the shim's cgroup"))?;
        }
        adjust_oom_score(pid);
        Ok(())
    };
    finish().inspect_err(|_| {
        // It cannot have served anyone yet.
        let _ = child.kill();
    })
}

/// Puts the shim into a cgroup, in every hierarchy that has it.
fn join_cgroup(cgroup: &str, pid: u32) -> io::Result<()> {
    let cgroup = cgroup.trim_start_matches('/');
    let root = Path::new("/sys/fs/cgroup");
    let join =
        |hierarchy: &Path| fs::write(hierarchy.join(cgroup).join("cgroup.procs"), pid.to_string());
    if root.join("cgroup.controllers").exists() {
        return join(root);
    }
    let mut joined = false;
    for hierarchy in fs::read_dir(root)? {
        let hierarchy = hierarchy?.path();
        if hierarchy.join(cgroup).join("cgroup.procs").exists() {
            join(&hierarchy)?;
            joined = true;
        }
    }
    if joined { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Makes the shim a slightly better victim than containerd when memory runs out.
///
/// A shim that may not do that runs all the same.
fn adjust_oom_score(pid: u32) {
    const SCORE_MAX: i32 = 1000;
    let Some(parent) = rustix::process::getppid() else { return };
    let path = format!("/proc/{}/oom_score_adj", parent.as_raw_nonzero());
    let score = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(score) = score {
        let score = (score + 1).min(SCORE_MAX);
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string());
    }
}
