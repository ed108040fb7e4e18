//! `create`: from a bundle to a container whose init waits for `start`.
//!
//! Everything is decided first; then directory, cgroup and process are made, in this
//! order, and [`Undo`] takes them away again, in the other one, when a step fails.

mod ignored;
mod join;
mod mapping;
mod net_devices;
mod trees;
mod undo;

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::SystemTime,
};

use sys::error::Chain;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat};

use crate::{
    cgroup::Cgroup,
    container::{self, Container},
    error::Error,
    hooks,
    id::ContainerId,
    init::{
        self, Created, InitPlan, ProcessPlan, Tree,
        channel::{Channel, Message},
        clone::Child,
        devices, rlimit,
        rootfs::Entry,
    },
    intel_rdt::{Group, Resctrl},
    log,
    mount::{self, Source, left, options},
    notify, proc, process, seccomp,
    settings::Settings,
    spawn::{Destination, spawn},
    spec::{NamespaceKind, Spec},
    state::{self, Config, State, record},
    time,
};

pub(crate) use self::{ignored::warn_of_kernel_memory, undo::Undo};

/// What `create` and `run` are told on the command line.
#[derive(Debug, Default)]
pub struct Options {
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The options that every process has.
    pub process: process::Options,
    /// Move the root instead of exchanging it.
    pub no_pivot: bool,
    /// Give the container a socket to say that it is ready, sd_notify(3).
    pub notify: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// Whether somebody else starts the container, at some time.
    pub waits: bool,
}

/// A container that was just created, and its init, a child of this process.
#[derive(Debug)]
pub struct New {
    /// The container.
    pub container: Container,
    /// Its init.
    pub init: process::Started,
}

/// Creates a container.
///
/// # Errors
///
/// Any [`Error`]; nothing is left of the container then.
pub fn create(settings: &Settings, id: &ContainerId, options: Options) -> Result<New, Error> {
    let mut spec = Spec::load(&options.bundle)?;
    let entry = settings.root.entry(id);
    if options.notify {
        notify::add_to(&mut spec, &entry);
    }
    options.process.check(spec.process.as_ref().is_some_and(|process| process.terminal))?;
    let bundle = std::path::absolute(&options.bundle)
        .map_err(|error| Error::file("resolve", &options.bundle, error))?;
    let rootfs = find_rootfs(&bundle, &spec)?;
    let seccomp = process::filter(&spec)?;
    let listener = seccomp.as_ref().and_then(|program| program.listener.clone());
    let cgroup = plan_cgroup(settings, id, &spec)?;
    if settings.rootless && !spec.linux.net_devices.is_empty() {
        let text = "network devices for rootless containers";
        return Err(Error::Unsupported(text.to_owned()));
    }
    let has_user = spec.linux.namespace(NamespaceKind::User).is_some();
    process::warn_of_missing_capabilities(&spec_process(&spec), has_user);
    process::check_labels(&spec_process(&spec))?;
    ignored::warn(&spec);
    let join = join::open(&spec)?;
    let group = resctrl_group(&spec, id)?;
    entry.create()?;
    let mut undo = Undo::new(entry.clone(), cgroup);
    let owner = cgroup_owner(&spec);
    undo.make_cgroup(spec.linux.resources.as_ref(), owner)?;
    undo.watch_mounts(left::Before::of(&spec, &rootfs));
    if options.notify {
        notify::make_directory(&entry)?;
    }
    let fifo = make_fifo(&entry.fifo())?;
    let trees = trees::prepare(settings, &spec, (&bundle, &rootfs))?;
    let (terminal, console) = options.process.console(&spec_process(&spec))?;
    let mut state = first_state(settings, id, &spec, (&bundle, &rootfs), options.no_new_keyring);
    state.cgroup_paths = undo.cgroup().paths();
    let (unified, entrances) = undo.cgroup().entrances()?;
    let process = ProcessPlan {
        process: spec_process(&spec),
        seccomp,
        personality: spec.linux.personality.clone(),
        memory_policy: spec.linux.memory_policy.clone(),
        console,
        relayed: terminal.is_some(),
        preserved: options.process.preserved(),
        keyring: (!options.no_new_keyring).then(|| keyring(id)).transpose()?,
        entrances,
        listen_fds: options.process.listen_fds,
    };
    let hook_state = state_for_hooks(&state);
    let plan = init_plan(&spec, process, &options, (bundle, rootfs), (trees, fifo, hook_state));
    let body = move |channel| init::init(plan, channel);
    let namespaces = namespaces_of_clone(&spec);
    let destination = Destination { directory: unified, otherwise: None };
    let (child, channel) = spawn(&join, namespaces, &destination, body)?;
    log::debug(&format!("nsexec container setup: init is process {}", child.pid));
    let pid = child.pid;
    undo.add_process(child);
    undo.start_cgroup(pid, spec.linux.resources.as_ref(), owner)?;
    if let Some(group) = group {
        join_resctrl_group(&mut undo, group, &mut state)?;
    }
    finish(settings, &spec, &mut state, (&undo, &entry), (&channel, listener.as_ref()))?;
    if let Some(child) = undo.process() {
        options.process.announce(child)?;
    }
    let (cgroup, child) = undo.disarm().ok_or(Error::NoSuchContainer)?;
    let container = Container { entry, state, cgroup };
    Ok(New { container, init: process::Started { child, terminal } })
}

/// Brings a process that was created to where it waits for `start`, and records the container.
fn finish(
    settings: &Settings,
    spec: &Spec,
    state: &mut State,
    (undo, entry): (&Undo, &state::Entry),
    (channel, listener): (&Channel, Option<&seccomp::Listener>),
) -> Result<(), Error> {
    let child = undo.process().ok_or(Error::NoSuchContainer)?;
    set_up_process(settings, spec, child)?;
    state.init_process_pid = child.pid;
    state.init_process_start = container::start_time(child.pid).map_or(0, |(start, _)| start);
    state.namespace_paths = namespace_paths(child.pid);
    entry.store(state)?;
    proceed(channel)?;
    log::debug("child process in init()");
    attend(channel, spec, state, listener, child)?;
    state.host_mount = undo.host_mount();
    if state.host_mount.is_some() { entry.store(state) } else { Ok(()) }
}

/// The resctrl group that the configuration asks for.
fn resctrl_group(spec: &Spec, id: &ContainerId) -> Result<Option<Group>, Error> {
    let Some(rdt) = &spec.linux.intel_rdt else { return Ok(None) };
    Ok(Some(Resctrl::check(rdt)?.group(rdt, id)))
}

fn join_resctrl_group(undo: &mut Undo, group: Group, state: &mut State) -> Result<(), Error> {
    let group = undo.join_group(group)?;
    if let Some(rdt) = &state.config.intel_rdt {
        group.set(rdt)?;
    }
    state.intel_rdt_path = Some(group.path.clone());
    state.intel_rdt_mon_path.clone_from(&group.monitoring);
    state.intel_rdt_owned = group.owned;
    Ok(())
}

fn spec_process(spec: &Spec) -> crate::spec::Process {
    spec.process.clone().unwrap_or_default()
}

pub(crate) fn plan_cgroup(
    settings: &Settings,
    id: &ContainerId,
    spec: &Spec,
) -> Result<Cgroup, Error> {
    let path = spec.linux.cgroups_path.as_deref();
    let (id, rootless) = (id.as_str(), settings.rootless);
    Ok(if settings.systemd_cgroup {
        Cgroup::plan_unit(path, id, rootless, &spec.annotations)?
    } else {
        Cgroup::plan(path, id, rootless)?
    })
}

/// Who is to own the container's v2 cgroup, so that it can make groups of its own: its user as the
/// host knows it, where a cgroup namespace hides everything above, and the mount is writable.
pub(crate) fn cgroup_owner(spec: &Spec) -> Option<u32> {
    let is_writable = |mount: &crate::spec::Mount| {
        mount.source == "cgroup"
            && mount.destination.trim_end_matches('/') == "/sys/fs/cgroup"
            && !mount.options.iter().any(|option| option == "ro")
    };
    if !spec.linux.creates(NamespaceKind::Cgroup) || !spec.mounts.iter().any(is_writable) {
        return None;
    }
    let user = spec.process.as_ref().map_or(0, |process| process.user.uid);
    if spec.linux.namespace(NamespaceKind::User).is_none() {
        return Some(user);
    }
    spec.linux.uid_mappings.iter().find_map(|mapping| {
        let offset = user.checked_sub(mapping.container_id)?;
        (offset < mapping.size).then(|| mapping.host_id.checked_add(offset))?
    })
}

fn keyring(id: &ContainerId) -> Result<CString, Error> {
    CString::new(format!("_ses.{id}"))
        .map_err(|error| Error::system("name", "keyring", io::Error::other(error)))
}

/// The root filesystem's absolute path, without symlinks.
pub(crate) fn find_rootfs(bundle: &Path, spec: &Spec) -> Result<PathBuf, Error> {
    let named = spec.root.as_ref().map_or("", |root| root.path.as_str());
    let path = bundle.join(named);
    let fail = |error| Error::file("invalid rootfs: stat", &path, error);
    let found = path.metadata().map_err(fail)?;
    if !found.is_dir() {
        return Err(fail(io::Error::from_raw_os_error(libc::ENOTDIR)));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let real = |path: &Path| {
        use std::os::fd::AsRawFd as _;
        let opened = openat(CWD, path, flags, Mode::empty()).map_err(|error| fail(error.into()))?;
        std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).map_err(fail)
    };
    // The bundle may be behind a link, but what it says may not lead elsewhere.
    let said = real(bundle)?.join(named);
    let real = real(&path)?;
    if real != Path::new("/").join(mount::target::clean(&said.to_string_lossy())) {
        return Err(Error::Usage("invalid rootfs: not an absolute path, or a symlink".to_owned()));
    }
    if real == Path::new("/") {
        return Err(Error::Process("invalid rootfs: cannot be the root of the host".to_owned()));
    }
    Ok(real)
}

/// The `CLONE_NEW*` bits for the process's creation; see [`init`] for those that come later.
fn namespaces_of_clone(spec: &Spec) -> u32 {
    NamespaceKind::ALL
        .into_iter()
        .filter(|kind| !matches!(kind, NamespaceKind::Cgroup | NamespaceKind::Time))
        .filter(|&kind| spec.linux.creates(kind))
        .fold(0, |bits, kind| bits | kind.flag())
}

/// Makes the FIFO, and opens it for both directions, so that the open does not wait.
fn make_fifo(path: &Path) -> Result<OwnedFd, Error> {
    let fail = |error| Error::file("make", path, error);
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, path, FileType::Fifo, mode, 0).map_err(fail)?;
    openat(CWD, path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
        .map_err(fail)
}

fn init_plan(
    spec: &Spec,
    process: ProcessPlan,
    options: &Options,
    (bundle, rootfs): (PathBuf, PathBuf),
    (trees, fifo, state): (Vec<Tree>, OwnedFd, hooks::State),
) -> InitPlan {
    let linux = &spec.linux;
    let mounts = trees::plans(spec, &rootfs);
    let foreign_dev = mounts
        .iter()
        .any(|mount| mount.destination == "dev" && matches!(mount.source, Source::Bind { .. }));
    let entry = match linux.creates(NamespaceKind::Mnt) {
        false => Entry::Chroot,
        true if options.no_pivot => Entry::Move,
        true => Entry::Pivot,
    };
    InitPlan {
        process,
        rootfs,
        bundle,
        entry,
        propagation: options::root_propagation(&linux.rootfs_propagation),
        mounts,
        trees,
        devices: (!foreign_dev).then(|| devices::plan(&linux.devices)),
        readonly: spec.root.as_ref().is_some_and(|root| root.readonly),
        masked_paths: linux.masked_paths.clone(),
        readonly_paths: linux.readonly_paths.clone(),
        mount_label: linux.mount_label.clone(),
        sysctl: linux.sysctl.clone(),
        hostname: spec.hostname.clone(),
        domainname: spec.domainname.clone(),
        created: Created {
            user: linux.namespace(NamespaceKind::User).is_some(),
            net: linux.creates(NamespaceKind::Net),
            cgroup: linux.creates(NamespaceKind::Cgroup),
            time: linux.creates(NamespaceKind::Time),
        },
        time_offsets: linux.time_offsets.clone(),
        hooks: spec.hooks.clone(),
        state,
        fifo,
        waits: options.waits,
    }
}

pub(crate) fn first_state(
    settings: &Settings,
    id: &ContainerId,
    spec: &Spec,
    (bundle, rootfs): (&Path, &Path),
    no_new_keyring: bool,
) -> State {
    let mut labels: Vec<String> =
        spec.annotations.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.push(format!("bundle={}", bundle.display()));
    State {
        id: id.to_string(),
        init_process_pid: 0,
        init_process_start: 0,
        created: time::rfc3339_nanoseconds(SystemTime::now()),
        config: Config {
            version: spec.oci_version.clone(),
            rootfs: rootfs.display().to_string(),
            labels,
            hooks: spec.hooks.clone(),
            no_new_keyring,
            systemd: settings.systemd_cgroup,
            intel_rdt: spec.linux.intel_rdt.clone(),
            namespaces: record::namespaces(spec),
            mounts: record::mounts(spec),
            devices: record::devices(spec),
            mask_paths: spec.linux.masked_paths.clone(),
        },
        rootless: settings.rootless,
        cgroup_paths: BTreeMap::new(),
        namespace_paths: BTreeMap::new(),
        external_descriptors: record::streams(),
        ..State::default()
    }
}

pub(crate) fn state_for_hooks(state: &State) -> hooks::State {
    hooks::State {
        oci_version: state.config.version.clone(),
        id: state.id.clone(),
        status: "creating",
        pid: state.init_process_pid,
        bundle: state.bundle().to_owned(),
        annotations: state.annotations(),
    }
}

pub(crate) fn namespace_paths(pid: i32) -> BTreeMap<String, String> {
    NamespaceKind::ALL
        .into_iter()
        .map(|kind| (kind.state_name().to_owned(), format!("/proc/{pid}/ns/{}", kind.name())))
        .collect()
}

/// What only somebody outside can do to the new process.
fn set_up_process(settings: &Settings, spec: &Spec, child: &Child) -> Result<(), Error> {
    if spec.linux.creates(NamespaceKind::User) {
        mapping::write(child.pid, &spec.linux, settings.rootless)?;
    }
    if spec.linux.namespace(NamespaceKind::User).is_some() {
        rlimit::raise(child.pid, &spec_process(spec).rlimits)?;
    }
    net_devices::move_all(child.pid, &spec.linux.net_devices)?;
    let score = spec.process.as_ref().and_then(|process| process.oom_score_adj);
    set_oom_score(child.pid, score, settings.rootless)
}

/// Sets how much the kernel likes to kill the process when memory runs out.
pub(crate) fn set_oom_score(pid: i32, score: Option<i32>, rootless: bool) -> Result<(), Error> {
    let Some(score) = score else { return Ok(()) };
    let path = format!("/proc/{pid}/oom_score_adj");
    match proc::write(CWD, &path, &score.to_string()) {
        // Without rights it cannot be lowered.
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) if rootless => Ok(()),
        result => result.map_err(|error| Error::file("write", path, error)),
    }
}

/// Lets the process go on. One that does not listen any more has said why, which is read next.
pub(crate) fn proceed(channel: &Channel) -> Result<(), Error> {
    tell(channel, &Message::Proceed)
}

fn tell(channel: &Channel, message: &Message) -> Result<(), Error> {
    match channel.send(message) {
        Err(rustix::io::Errno::PIPE) => Ok(()),
        result => result.map_err(|error| Error::system("talk to", "init", error)),
    }
}

/// Does what the init asks for, until it is ready.
fn attend(
    channel: &Channel,
    spec: &Spec,
    state: &State,
    listener: Option<&seccomp::Listener>,
    child: &Child,
) -> Result<(), Error> {
    loop {
        match process::next(channel, child)? {
            Message::Ready => {
                log::debug("init: closing the pipe to signal completion");
                return Ok(());
            }
            Message::Hooks => {
                let hooks_state = state_for_hooks(state);
                let directory = PathBuf::from(state.bundle());
                let hooks = &spec.hooks;
                let environment = hooks::Environment::Inherited;
                let run = |point, hooks| {
                    hooks::run_all(point, hooks, &hooks_state, environment, &directory)
                        .map_err(|error| Error::Process(Chain(&error).to_string()))
                };
                run("prestart", &hooks.prestart)?;
                run("createRuntime", &hooks.create_runtime)?;
                proceed(channel)?;
            }
            Message::ListenerAt(number) => {
                let fd = process::take_listener(channel, child, number)?;
                process::send_listener(listener, &fd, (state, "creating"), child.pid)?;
                proceed(channel)?;
            }
            Message::WantTree(number) => {
                let paths = (Path::new(state.bundle()), Path::new(&state.config.rootfs));
                let tree = trees::make_later(spec, paths, number, child)?;
                tell(channel, &Message::Tree(tree))?;
            }
            message => return Err(process::unexpected(&message)),
        }
    }
}
