//! The last steps of an init or an exec: from this program, as root, to the container's, as its
//! user.

use std::{
    convert::Infallible,
    ffi::{CStr, CString},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use sys::execute::{Strings, execve};

use super::{
    capability::Sets,
    channel::{Channel, Message},
    identity, program, rlimit, scheduling,
};
use crate::{error::Error, hooks, proc::Procfs, seccomp, spec};

/// What an init and an exec have in common, decided before the process exists.
pub(crate) struct ProcessPlan {
    /// The program and who runs it, with all that a command line may have changed.
    pub(crate) process: spec::Process,
    /// The filter to load.
    pub(crate) seccomp: Option<seccomp::Program>,
    /// The execution domain.
    pub(crate) personality: Option<spec::Personality>,
    /// From which nodes memory comes.
    pub(crate) memory_policy: Option<spec::MemoryPolicy>,
    /// Where to send the terminal's master; with it, there is a terminal.
    pub(crate) console: Option<OwnedFd>,
    /// Whether the runtime passes what the terminal shows on.
    pub(crate) relayed: bool,
    /// How many descriptors, from 3 on, the program gets.
    pub(crate) preserved: i32,
    /// The name of the session keyring; none keeps the runtime's.
    pub(crate) keyring: Option<CString>,
    /// The files by which the process comes into its v1 cgroups.
    pub(crate) entrances: Vec<OwnedFd>,
    /// How many of the preserved descriptors are listening sockets, sd_listen_fds(3).
    pub(crate) listen_fds: Option<i32>,
}

impl ProcessPlan {
    /// Whether the program gets a label of a security module.
    pub(super) fn has_label(&self) -> bool {
        !(self.process.apparmor_profile.is_empty() && self.process.selinux_label.is_empty())
    }

    /// The descriptors that it has.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.entrances.iter().chain(&self.console).map(AsFd::as_fd).collect()
    }
}

/// What waits between being ready and the program.
pub(super) struct Gate<'a> {
    /// Read from before the program starts.
    pub(super) fifo: OwnedFd,
    /// Whether that may be long from now.
    pub(super) waits: bool,
    /// Run before the program starts.
    pub(super) hooks: &'a [spec::Hook],
    /// What those hooks are told.
    pub(super) state: &'a hooks::State,
}

impl Gate<'_> {
    /// Waits, and runs the hooks.
    fn pass(self, environment: &[String], cwd: &str) -> Result<(), Error> {
        wait_for_start(&self.fifo)?;
        drop(self.fifo);
        let environment = hooks::Environment::Only(environment);
        hooks::run_all("startContainer", self.hooks, self.state, environment, Path::new(cwd))?;
        Ok(())
    }
}

/// Labels in /proc/thread-self/attr apply to the next program.
fn set_labels(process: &spec::Process, procfs: &Procfs) -> Result<(), Error> {
    if !process.apparmor_profile.is_empty() {
        let text = format!("exec {}", process.apparmor_profile);
        procfs
            .write("thread-self/attr/apparmor/exec", &text)
            .or_else(|_| procfs.write("thread-self/attr/exec", &text))
            .map_err(|error| {
                let text = sys::error::Chain(&error).to_string();
                Error::Process(format!("unable to apply apparmor profile: {text}"))
            })?;
    }
    if process.selinux_label.is_empty() {
        return Ok(());
    }
    procfs.write("thread-self/attr/exec", &process.selinux_label)
}

/// Comes into the container's v1 cgroups; see `Cgroup::entrances`.
pub(crate) fn enter_cgroups(entrances: Vec<OwnedFd>) -> Result<(), Error> {
    for entrance in entrances {
        rustix::io::write(&entrance, b"0")
            .map_err(|error| Error::system("join", "cgroup", error))?;
    }
    Ok(())
}

/// Joins a session keyring of the container's own.
pub(super) fn join_keyring(name: &CStr, user_namespace: bool) -> Result<(), Error> {
    // Searchable for others in a user namespace, else for the user.
    let permissions = if user_namespace { 0x8 } else { 0x8_0000 };
    let fail = |error| Error::system("unable to join", "session keyring", error);
    match sys::keyring::join_session(name) {
        Ok(key) => sys::keyring::add_permissions(key, permissions).map_err(fail),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        Err(error) => Err(fail(error)),
    }
}

/// Takes the last steps; returns only when one of them is not possible.
pub(super) fn run(
    plan: &ProcessPlan,
    procfs: Procfs,
    channel: Channel,
    gate: Option<Gate<'_>>,
) -> Result<Infallible, Error> {
    let process = &plan.process;
    rlimit::apply(&process.rlimits)?;
    set_labels(process, &procfs)?;
    drop(procfs);
    // A program begins with nothing of its caller's, nor of this one's: Rust ignores SIGPIPE, and
    // `run` blocks signals to read them.
    sys::signal::set_all_default();
    sys::signal::unblock_all();
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true)
            .map_err(|error| Error::system("set", "no_new_privs", error))?;
    }
    scheduling::apply(process, plan.personality.as_ref(), plan.memory_policy.as_ref())?;
    if gate.is_some() {
        // Whoever wants to be rid of a container that was never started may ask kindly, as soon as
        // it is created.
        sys::signal::end_on(&[libc::SIGHUP, libc::SIGINT, libc::SIGTERM]);
        sys::signal::unblock_all();
    }
    // Before the filter, which need not allow this and may be older than close_range(2).
    sys::descriptors::close_on_exec_from(3 + plan.preserved)
        .map_err(|error| Error::system("close", "descriptors", error))?;
    // Without no_new_privs a filter needs a capability that is about to go; with it, the filter
    // comes as late as possible, so that it need not allow what is done before.
    let late = process.no_new_privileges;
    let waits = gate.as_ref().is_some_and(|gate| gate.waits);
    if !late {
        become_small(waits && plan.seccomp.is_some());
        load_filter(plan, &channel)?;
    }
    identity::assume(process, Sets::new(process.capabilities.as_ref()))?;
    let mut environment = program::environment(&process.env, || program::home_of(process.user.uid));
    if let Some(count) = plan.listen_fds {
        environment.push(format!("LISTEN_FDS={count}"));
        environment.push("LISTEN_PID=1".to_owned());
    }
    let path = program::find(&process.args[0], &environment)?;
    let arguments = Strings::new(c_strings(&process.args)?);
    let strings = Strings::new(c_strings(&environment)?);
    if late || plan.seccomp.is_none() {
        become_small(waits);
    }
    if late {
        load_filter(plan, &channel)?;
    }
    channel.send(&Message::Ready).map_err(|error| Error::system("send", "readiness", error))?;
    match gate {
        Some(gate) => {
            drop(channel);
            gate.pass(&environment, &process.cwd)?;
        }
        None => wait_until_known(&channel)?,
    }
    let error = execve(&path, &arguments, &strings);
    Err(Error::file("exec", path.to_string_lossy().as_ref(), error))
}

/// Lets go of the program's pages before a long wait: few of them are used again, and those come
/// back from the page cache. Before the filter, which need not allow this.
fn become_small(waits: bool) {
    if waits {
        // What cannot be let go is kept.
        let _ = sys::residency::forget_program();
    }
}

fn c_strings(strings: &[String]) -> Result<Vec<CString>, Error> {
    strings
        .iter()
        .map(|string| CString::new(string.as_str()))
        .collect::<Result<_, _>>()
        .map_err(|_| Error::Process("argument or variable contains a null byte".to_owned()))
}

fn load_filter(plan: &ProcessPlan, channel: &Channel) -> Result<(), Error> {
    let Some(program) = &plan.seccomp else { return Ok(()) };
    let listener = sys::seccomp::load(&program.instructions, program.flags)
        .map_err(|error| Error::system("unable to init", "seccomp", error))?;
    listener.map_or(Ok(()), |listener| hand_over(listener, channel))
}

/// Lets the runtime take the listener. The filter is loaded by now, and need not allow sendmsg(2):
/// the runtime copies the descriptor by itself, and only where it may not does this process send it.
fn hand_over(listener: OwnedFd, channel: &Channel) -> Result<(), Error> {
    let fail = |error| Error::system("hand over", "seccomp listener", error);
    let number = listener.as_raw_fd();
    channel.send(&Message::ListenerAt(number)).map_err(fail)?;
    let mut listener = Some(listener);
    loop {
        match (channel.receive_plain().map_err(fail)?, listener.take()) {
            (Some(Message::Proceed), _) => return Ok(()),
            (Some(Message::WantListener), Some(listener)) => {
                channel.send(&Message::Listener(listener)).map_err(fail)?;
            }
            // The runtime is gone, or says why it gives up.
            _ => sys::execute::exit_now(1),
        }
    }
}

/// Waits until the runtime has told everybody which process this is; when it is gone before that,
/// nobody would ever know of this one.
fn wait_until_known(channel: &Channel) -> Result<(), Error> {
    match channel.receive_plain() {
        Ok(Some(Message::Proceed)) => Ok(()),
        Ok(_) => sys::execute::exit_now(1),
        Err(error) => Err(Error::system("wait for", "runtime", error)),
    }
}

/// Waits until `start` writes a byte. The FIFO is open for both directions here, so that this is
/// the only end that counts: when this process is gone, `start` finds no reader.
fn wait_for_start(fifo: &OwnedFd) -> Result<(), Error> {
    let mut byte = [0];
    loop {
        match rustix::io::read(fifo.as_fd(), &mut byte) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::file("read", "exec.fifo", error)),
        }
    }
}
