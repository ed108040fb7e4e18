//! What happens in a container's processes before their program runs: its init, and execs.
//!
//! Everything is decided before the process exists and handed over as a plan ([`InitPlan`],
//! [`ExecPlan`]); here it is done, in an order in which each step still has the rights and the
//! view that it needs. The process is a copy of the runtime with one thread, so it may use the
//! same code. Its memory is not readable for the container (`PR_SET_DUMPABLE` 0 until the program
//! runs), it has no descriptors but its plan's, none of which the program keeps, and it opens nothing by a path that the
//! container could have bent.
//!
//! # Handshake
//!
//! | runtime                                   | init or exec                                  |
//! |-------------------------------------------|-----------------------------------------------|
//! | clone3; with paths to join, by a helper   |                                               |
//! | <- `Created` (helper only)                | helper: setns, clone3 with CLONE_PARENT, exit |
//! | uid_map, gid_map, oom_score_adj           | v1 cgroups; waits                             |
//! | `Proceed` ->                              |                                               |
//! |                                           | Linux namespaces, keyring, mounts, /dev       |
//! | <- `WantTree` (some bind mounts)          | waits                                         |
//! | has a helper clone it; `Tree` ->          | goes on with the mounts                       |
//! | <- `Hooks` (when there are any)           | waits                                         |
//! | prestart, createRuntime hooks             |                                               |
//! | `Proceed` ->                              |                                               |
//! |                                           | createContainer hooks, console, root, user    |
//! | <- `ListenerAt` (seccomp notify)          | waits                                         |
//! | copies it, tells the agent; `Proceed` ->  |                                               |
//! | (or `WantListener` ->, <- `Listener`)     |                                               |
//! | <- `Ready` or `Failed`, or the end        | init: reads a byte from `exec.fifo`           |
//! | `start` writes that byte                  | startContainer hooks, execve                  |
//! | exec: says which process it is; `Proceed` | exec: waits; then execve                      |
//! | <- the end, or `Failed`                   |                                               |
//!
//! When either side goes away, the other one sees the end of the channel and gives up.

pub(crate) mod capability;
pub(crate) mod channel;
pub(crate) mod clone;
mod console;
pub(crate) mod devices;
mod identity;
mod process;
pub(crate) mod program;
mod restrict;
pub(crate) mod rlimit;
pub(crate) mod rootfs;
pub(crate) mod scheduling;
pub(crate) mod sysctl;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::{
    process::{Gid, Uid},
    thread::{UnshareFlags, set_thread_res_gid, set_thread_res_uid},
};
use sys::error::Chain;

use self::{
    channel::{Channel, Message},
    console::Console,
    process::Gate,
    rootfs::Entry,
};
use crate::{
    error::Error,
    hooks,
    mount::{MountPlan, attach::Mounter, options::Propagation, target},
    proc::Procfs,
    spec,
};

pub(crate) use self::process::{ProcessPlan, enter_cgroups};

/// Everything that a container's init does.
pub(crate) struct InitPlan {
    pub(crate) process: ProcessPlan,
    /// The root filesystem, absolute and without symlinks.
    pub(crate) rootfs: PathBuf,
    pub(crate) bundle: PathBuf,
    pub(crate) entry: Entry,
    pub(crate) propagation: Option<Propagation>,
    pub(crate) mounts: Vec<MountPlan>,
    /// The trees of the mounts at the same place in `mounts`.
    pub(crate) trees: Vec<Tree>,
    /// The device nodes, unless /dev is the host's.
    pub(crate) devices: Option<Vec<devices::Node>>,
    pub(crate) readonly: bool,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) mount_label: String,
    pub(crate) sysctl: BTreeMap<String, String>,
    pub(crate) hostname: String,
    pub(crate) domainname: String,
    /// Namespaces that are new.
    pub(crate) created: Created,
    pub(crate) time_offsets: BTreeMap<String, spec::TimeOffset>,
    pub(crate) hooks: spec::Hooks,
    pub(crate) state: hooks::State,
    pub(crate) fifo: OwnedFd,
    /// Whether it may be long until the container is started.
    pub(crate) waits: bool,
}

impl InitPlan {
    /// Whether a step of the init writes to a file of /proc.
    fn writes_to_procfs(&self) -> bool {
        !self.sysctl.is_empty() || self.process.has_label()
    }
}

/// Where the detached tree of a mount comes from.
#[derive(Debug)]
pub(crate) enum Tree {
    /// The init makes it.
    Own,
    /// The runtime has made it, for it needs more rights than the init has.
    Ready(OwnedFd),
    /// So it does, but only once the mounts before it are made: the init asks for it.
    Later,
}

impl Tree {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Ready(tree) => Some(tree.as_fd()),
            Self::Own | Self::Later => None,
        }
    }

    /// The tree for the mount of this number; none is for the init to make.
    fn get(self, number: usize, channel: &Channel) -> Result<Option<OwnedFd>, Error> {
        match self {
            Self::Own => Ok(None),
            Self::Ready(tree) => Ok(Some(tree)),
            Self::Later => {
                channel
                    .send(&Message::WantTree(number))
                    .map_err(|error| Error::system("send", "request for tree", error))?;
                match channel.receive() {
                    Ok(Some(Message::Tree(tree))) => Ok(Some(tree)),
                    // The runtime says why; see `wait_for_runtime`.
                    _ => sys::execute::exit_now(1),
                }
            }
        }
    }
}

/// Which of the namespaces that need a step of their own are new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Created {
    pub(crate) user: bool,
    pub(crate) net: bool,
    pub(crate) cgroup: bool,
    pub(crate) time: bool,
}

/// Everything that an exec does, in namespaces that it is in already.
pub(crate) struct ExecPlan {
    pub(crate) process: ProcessPlan,
    /// Whether the container has a user namespace.
    pub(crate) user_namespace: bool,
    /// The CPUs on which it runs.
    pub(crate) affinity: scheduling::Affinity,
}

/// Becomes the container's init; never returns.
pub(crate) fn init(plan: InitPlan, channel: Channel) -> ! {
    let copy = channel.try_clone();
    let mut kept = plan.process.descriptors();
    kept.extend(plan.trees.iter().filter_map(Tree::descriptor));
    kept.push(plan.fifo.as_fd());
    let result = keep_only(&plan.process, kept, [Some(&channel), copy.as_ref()]);
    finish(copy, result.and_then(|()| init_steps(plan, channel)))
}

/// Becomes an exec's process; never returns.
pub(crate) fn exec(plan: ExecPlan, channel: Channel) -> ! {
    let copy = channel.try_clone();
    let kept = plan.process.descriptors();
    let result = keep_only(&plan.process, kept, [Some(&channel), copy.as_ref()]);
    finish(copy, result.and_then(|()| exec_steps(plan, channel)))
}

/// Lets go of every descriptor of the runtime's but the plan's and the channel.
fn keep_only<'fd>(
    plan: &ProcessPlan,
    mut kept: Vec<BorrowedFd<'fd>>,
    channels: [Option<&'fd Channel>; 2],
) -> Result<(), Error> {
    kept.extend(channels.into_iter().flatten().map(AsFd::as_fd));
    clone::keep_only(plan.preserved, &kept)
        .map_err(|error| Error::system("close", "descriptors of the runtime", error))
}

/// Says what went wrong, to the runtime while it listens, and to whoever reads standard error when
/// it does not any more.
fn finish(channel: Option<Channel>, result: Result<Infallible, Error>) -> ! {
    let Err(error) = result;
    let text = Chain(&error).to_string();
    let told = channel.map(|channel| channel.send(&Message::Failed(text.clone())));
    if !matches!(told, Some(Ok(()))) {
        let line = format!("{text}\n");
        let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
    }
    sys::execute::exit_now(255)
}

/// Waits until the runtime has done its part; when it is gone, so is this process.
fn wait_for_runtime(channel: &Channel) -> Result<(), Error> {
    match channel.receive() {
        Ok(Some(Message::Proceed)) => Ok(()),
        _ => sys::execute::exit_now(1),
    }
}

fn init_steps(mut plan: InitPlan, channel: Channel) -> Result<Infallible, Error> {
    process::enter_cgroups(std::mem::take(&mut plan.process.entrances))?;
    wait_for_runtime(&channel)?;
    scheduling::reset_affinity();
    if plan.created.time {
        enter_time_namespace(&plan.time_offsets)?;
    }
    if plan.created.user {
        become_root()?;
    }
    console::new_session()?;
    if let Some(name) = &plan.process.keyring {
        process::join_keyring(name, plan.created.user)?;
    }
    let procfs = Procfs::if_needed(plan.writes_to_procfs())?;
    namespaces(&plan)?;
    let root = prepare_root(&mut plan, &channel)?;
    let console = plan.process.console.take();
    let has_console = console.is_some();
    if let Some(socket) = console {
        let terminal = Console::new(root.as_fd(), &plan.process)?;
        if plan.entry != Entry::Chroot {
            terminal.mount(root.as_fd())?;
        }
        terminal.hand_over(socket.as_fd())?;
        console::take_control()?;
    }
    sysctl::apply(&plan.sysctl, &procfs)?;
    seal_root(&plan, root.as_fd())?;
    rootfs::enter(&root, plan.entry, plan.propagation)?;
    drop(root);
    if !has_console && plan.devices.is_some() {
        devices::reopen_null()?;
    }
    let InitPlan { process, hooks, mut state, fifo, waits, .. } = plan;
    state.status = "created";
    let gate = Gate { fifo, waits, hooks: &hooks.start_container, state: &state };
    process::run(&process, procfs, channel, Some(gate))
}

/// Makes the container's root below the old one, and everything in it, and runs the hooks that
/// come then.
fn prepare_root(plan: &mut InitPlan, channel: &Channel) -> Result<OwnedFd, Error> {
    // Without a mount namespace of its own a container mounts on the host, all of it below one mount,
    // which goes when the container is deleted; see `mount::left`.
    let mounted = plan.entry != Entry::Chroot || !plan.mounts.is_empty();
    let root = match (plan.entry, mounted) {
        (Entry::Chroot, false) => rootfs::open_path(&plan.rootfs)
            .map_err(|error| Error::file("open", &plan.rootfs, error))?,
        (Entry::Chroot, true) => rootfs::mount_on_itself(&plan.rootfs)?,
        _ => rootfs::prepare(&plan.rootfs, plan.propagation)?,
    };
    let mounter = Mounter {
        root: root.as_fd(),
        root_path: &plan.rootfs,
        bundle: &plan.bundle,
        label: &plan.mount_label,
        user_namespace: plan.created.user,
        cgroup_namespace: plan.created.cgroup,
    };
    let trees = std::mem::take(&mut plan.trees);
    for (number, (mount, tree)) in plan.mounts.iter().zip(trees).enumerate() {
        mounter.mount(mount, tree.get(number, channel)?)?;
    }
    if let (true, Some(nodes)) = (mounted, &plan.devices) {
        devices::make(root.as_fd(), nodes, plan.created.user)?;
    }
    if !(plan.hooks.prestart.is_empty() && plan.hooks.create_runtime.is_empty()) {
        channel
            .send(&Message::Hooks)
            .map_err(|error| Error::system("send", "request for hooks", error))?;
        wait_for_runtime(channel)?;
    }
    plan.state.pid = rustix::process::getpid().as_raw_nonzero().get();
    let hooks = &plan.hooks.create_container;
    hooks::run_all(
        "createContainer",
        hooks,
        &plan.state,
        hooks::Environment::Only(&[]),
        &plan.rootfs,
    )?;
    target::make_directory(root.as_fd(), &target::clean(&plan.process.process.cwd))?;
    Ok(root)
}

/// Makes read-only, and hides, what the container may not change or see.
fn seal_root(plan: &InitPlan, root: BorrowedFd<'_>) -> Result<(), Error> {
    if plan.entry == Entry::Chroot {
        return Ok(());
    }
    let mounter = Mounter {
        root,
        root_path: &plan.rootfs,
        bundle: &plan.bundle,
        label: &plan.mount_label,
        user_namespace: plan.created.user,
        cgroup_namespace: plan.created.cgroup,
    };
    for mount in &plan.mounts {
        mounter.finish_dev(mount)?;
    }
    if plan.readonly {
        rootfs::make_readonly(root)?;
    }
    restrict::make_readonly(root, &plan.readonly_paths)?;
    restrict::mask(root, &plan.masked_paths, &plan.mount_label)
}

fn namespaces(plan: &InitPlan) -> Result<(), Error> {
    if plan.created.cgroup {
        // Not before now: the namespace shows the cgroup in which it was made as its root.
        sys::namespace::unshare(UnshareFlags::NEWCGROUP)
            .map_err(|error| Error::system("unshare", "cgroup namespace", error))?;
    }
    if plan.created.net {
        sys::loopback::set_up().map_err(|error| Error::system("set up", "loopback", error))?;
    }
    let fail = |name| move |error| Error::system("set", name, error);
    if !plan.hostname.is_empty() {
        rustix::system::sethostname(plan.hostname.as_bytes()).map_err(fail("hostname"))?;
    }
    if !plan.domainname.is_empty() {
        rustix::system::setdomainname(plan.domainname.as_bytes()).map_err(fail("domainname"))?;
    }
    Ok(())
}

/// Makes a time namespace. Its clocks can be set until the first process is in it, and unshare(2)
/// only puts children there, so this process follows by setns(2).
///
/// This comes before the process becomes its user namespace's root: its files in /proc belong to the
/// user that the runtime is, and a procfs of the namespace's own has none of that user's.
fn enter_time_namespace(offsets: &BTreeMap<String, spec::TimeOffset>) -> Result<(), Error> {
    let fail = |error| Error::system("enter", "time namespace", error);
    sys::namespace::unshare(UnshareFlags::NEWTIME).map_err(fail)?;
    let lines: String = offsets
        .iter()
        .map(|(clock, offset)| format!("{clock} {} {}\n", offset.secs, offset.nanosecs))
        .collect();
    let procfs = Procfs::mounted()?;
    if !lines.is_empty() {
        procfs.write("self/timens_offsets", &lines)?;
    }
    let namespace = procfs.own_namespace("time_for_children")?;
    let kind = rustix::thread::LinkNameSpaceType::Time;
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind)).map_err(fail)
}

/// Becomes the user namespace's root, as whom everything that follows is made.
fn become_root() -> Result<(), Error> {
    let fail = |error| Error::system("become", "root of user namespace", error);
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).map_err(fail)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).map_err(fail)
}

fn exec_steps(mut plan: ExecPlan, channel: Channel) -> Result<Infallible, Error> {
    plan.affinity.apply_initial()?;
    process::enter_cgroups(std::mem::take(&mut plan.process.entrances))?;
    wait_for_runtime(&channel)?;
    plan.affinity.apply_final()?;
    if plan.user_namespace {
        become_root()?;
    }
    console::new_session()?;
    if let Some(name) = &plan.process.keyring {
        process::join_keyring(name, plan.user_namespace)?;
    }
    if let Some(socket) = plan.process.console.take() {
        let root = rootfs::open_path("/").map_err(|error| Error::file("open", "/", error))?;
        let terminal = Console::new(root.as_fd(), &plan.process)?;
        terminal.hand_over(socket.as_fd())?;
        console::take_control()?;
    }
    let procfs = Procfs::if_needed(plan.process.has_label())?;
    process::run(&plan.process, procfs, channel, None)
}
