//! `exec`: another process in a container that runs.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::readlink;

use crate::{
    cgroup::Cgroup,
    container::{Container, Status},
    create::{proceed, set_oom_score},
    error::Error,
    init::{
        self, ExecPlan, ProcessPlan,
        channel::{Channel, Message},
        clone::Child,
        rlimit,
        scheduling::Affinity,
    },
    log,
    process::{self, Started},
    seccomp,
    settings::Settings,
    spawn::{Destination, Join, spawn},
    spec::{self, NamespaceKind, Spec},
};

/// What `exec` is told on the command line.
#[derive(Debug, Default)]
pub struct Options {
    /// The options that every process has.
    pub process: process::Options,
    /// Run in a container whose processes are frozen.
    pub ignore_paused: bool,
    /// The cgroups below the container's in which to run.
    pub cgroups: Vec<SubCgroup>,
}

/// Starts `described` in the container; it runs when this returns.
///
/// # Errors
///
/// Any [`Error`]; the process is gone then.
pub fn exec(
    settings: &Settings,
    container: &Container,
    described: spec::Process,
    options: &Options,
) -> Result<Started, Error> {
    let refuse = |text: &str| Err(Error::Status(text.to_owned()));
    match container.status()? {
        Status::Stopped => return refuse("cannot exec in a stopped container"),
        Status::Paused if !options.ignore_paused => {
            return refuse("cannot exec in a paused container (use --ignore-paused to override)");
        }
        _ => {}
    }
    options.process.check(described.terminal)?;
    let Some(init) = container.init()? else {
        return refuse("cannot exec in a stopped container");
    };
    let spec = Spec::load(Path::new(container.state.bundle()))?;
    let (seccomp, listener) = filter(&spec)?;
    let (join, kinds) = namespaces_of(init, container.state.init_process_pid)?;
    process::check_labels(&described)?;
    let affinity = affinity(&described, &spec)?;
    let has_user = kinds & NamespaceKind::User.flag() != 0;
    process::warn_of_missing_capabilities(&described, has_user);
    let (terminal, console) = options.process.console(&described)?;
    let (oom_score, limits) = (described.oom_score_adj, described.rlimits.clone());
    let pid = container.state.init_process_pid;
    let of_init = || container.cgroup.directory_of(pid.cast_unsigned());
    let moved = if is_left(&container.cgroup) { of_init() } else { None };
    let (unified, mut entrances) = match &moved {
        Some(directory) => (Some(directory.as_fd()), Vec::new()),
        None => container.cgroup.entrances()?,
    };
    if !options.cgroups.is_empty() {
        // Else the process would come in by itself after it was put where it is to be.
        entrances.clear();
    }
    let plan = ExecPlan {
        process: ProcessPlan {
            process: described,
            seccomp,
            personality: spec.linux.personality.clone(),
            memory_policy: spec.linux.memory_policy.clone(),
            console,
            relayed: terminal.is_some(),
            preserved: options.process.preserved(),
            keyring: keyring(container)?,
            entrances,
            listen_fds: options.process.listen_fds,
        },
        affinity,
        user_namespace: has_user,
    };
    let body = move |channel| init::exec(plan, channel);
    let destination = Destination { directory: unified, otherwise: Some(&of_init) };
    let (child, channel) = spawn(&join, 0, &destination, body)?;
    log::debug(&format!("nsexec container setup: exec is process {}", child.pid));
    let guard = Ending(Some(child));
    let child = guard.process();
    let pid = child.pid.cast_unsigned();
    if container.cgroup.moves_by_systemd() && options.cgroups.is_empty() {
        container.cgroup.attach("", pid)?;
    }
    join_cgroups(&container.cgroup, &options.cgroups, pid)?;
    if let Some(group) = container.resctrl_group() {
        group.add_process(child.pid)?;
    }
    if kinds & NamespaceKind::User.flag() != 0 {
        rlimit::raise(child.pid, &limits)?;
    }
    set_oom_score(child.pid, oom_score, settings.rootless)?;
    proceed(&channel)?;
    log::debug("child process in init()");
    attend(&channel, container, listener.as_ref(), child)?;
    begin(&channel, &options.process, child).inspect_err(|_| options.process.withdraw())?;
    Ok(Started { child: guard.disarm(), terminal })
}

/// Whether the container has moved out of its v2 group, and that was removed.
fn is_left(cgroup: &Cgroup) -> bool {
    cgroup.is_unified() && !cgroup.exists()
}

/// Which program filters the process's system calls, and who is told of them.
fn filter(spec: &Spec) -> Result<(Option<seccomp::Program>, Option<seccomp::Listener>), Error> {
    let program = process::filter(spec)?;
    let listener = program.as_ref().and_then(|program| program.listener.clone());
    Ok((program, listener))
}

/// On which CPUs the process runs: what it says itself, or else the container's configuration.
fn affinity(described: &spec::Process, spec: &Spec) -> Result<Affinity, Error> {
    let config = spec.process.as_ref().and_then(|process| process.exec_cpu_affinity.as_ref());
    let affinity =
        Affinity::parse(described.exec_cpu_affinity.as_ref().or(config)).map_err(Error::Process)?;
    if let Some(cpus) = affinity.initial_bits() {
        log::debug(&format!("nsexec: affinity: {cpus:#x}"));
    }
    Ok(affinity)
}

/// A cgroup below the container's: of one controller, or without one of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubCgroup {
    /// The controller.
    pub controller: Option<String>,
    /// The path from the container's own.
    pub path: PathBuf,
}

fn join_cgroups(cgroup: &Cgroup, below: &[SubCgroup], pid: u32) -> Result<(), Error> {
    if below.is_empty() {
        return Ok(());
    }
    let join = || {
        if !cgroup.is_unified() {
            cgroup.join(pid)?;
        }
        below.iter().try_for_each(|SubCgroup { controller, path }| match controller {
            None if cgroup.moves_by_systemd() => cgroup.attach(&path.to_string_lossy(), pid),
            None => cgroup.join_below(path, pid),
            Some(controller) => cgroup.join_controller_below(controller, path, pid),
        })
    };
    join().map_err(|source| Error::Join { pid, source })
}

fn keyring(container: &Container) -> Result<Option<CString>, Error> {
    if container.state.config.no_new_keyring {
        return Ok(None);
    }
    CString::new(format!("_ses.{}", container.state.id))
        .map(Some)
        .map_err(|error| Error::system("name", "keyring", io::Error::other(error)))
}

/// Those namespaces of the container's init that are not this process's, and their kinds.
fn namespaces_of(init: OwnedFd, pid: i32) -> Result<(Join, u32), Error> {
    let mut kinds = 0;
    for kind in NamespaceKind::ALL {
        let own = readlink(format!("/proc/self/ns/{}", kind.name()), Vec::new());
        // The kernel may lack one.
        let Ok(own) = own else { continue };
        let path = format!("/proc/{pid}/ns/{}", kind.name());
        let other =
            readlink(&path, Vec::new()).map_err(|error| Error::file("read", &path, error))?;
        if own != other {
            kinds |= kind.flag();
        }
    }
    Ok((if kinds == 0 { Join::Nothing } else { Join::Process(init, kinds) }, kinds))
}

fn attend(
    channel: &Channel,
    container: &Container,
    listener: Option<&seccomp::Listener>,
    child: &Child,
) -> Result<(), Error> {
    loop {
        match process::next(channel, child)? {
            Message::ListenerAt(number) => {
                let fd = process::take_listener(channel, child, number)?;
                process::send_listener(listener, &fd, (&container.state, "running"), child.pid)?;
                proceed(channel)?;
            }
            Message::Ready => {
                log::debug("setns_init: about to exec");
                return Ok(());
            }
            message => return Err(process::unexpected(&message)),
        }
    }
}

/// Lets a process go on to its program when all who are to know of it do: one that nobody knows would
/// stay in the container if this runtime were killed.
fn begin(channel: &Channel, options: &process::Options, child: &Child) -> Result<(), Error> {
    options.announce(child)?;
    proceed(channel)?;
    // Nothing holds it back any more, so its program either runs now, which closes the channel, or
    // could not be run.
    match channel.receive() {
        Ok(None) => Ok(()),
        Ok(Some(Message::Failed(text))) => Err(Error::Process(text)),
        Ok(Some(message)) => Err(process::unexpected(&message)),
        Err(error) => Err(Error::system("talk to", "exec", error)),
    }
}

/// Kills a process when dropped.
struct Ending(Option<Child>);

impl Ending {
    fn process(&self) -> &Child {
        self.0.as_ref().expect("only disarm, which consumes the guard, takes it")
    }

    fn disarm(mut self) -> Child {
        self.0.take().expect("only this takes it")
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        use rustix::process::{Pid, WaitOptions, waitpid};
        let Some(child) = self.0.take() else { return };
        let _ = sys::pidfd::send_signal(child.pidfd.as_fd(), libc::SIGKILL);
        if let Some(pid) = Pid::from_raw(child.pid) {
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}
