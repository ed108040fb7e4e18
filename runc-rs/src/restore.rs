//! `restore`: has criu make a container of the files that `checkpoint` has left.
//!
//! The container is made as `create` makes one, but for its processes: directory and cgroup are
//! there first, criu is started in the cgroup, and its notifications are answered. criu makes the
//! init as a child of this process. A cgroup of systemd's is made with criu as its first process.
//!
//! | criu says            | done here                                              |
//! |----------------------|--------------------------------------------------------|
//! | `setup-namespaces`   | prestart, createRuntime hooks                          |
//! | `orphan-pts-master`  | the terminal's master goes to the console socket       |
//! | `post-restore`       | the container is recorded, with its new init           |
//!
//! criu wants the root to be a mount, and the targets of all mounts to exist in it. Both are seen
//! to in a mount namespace that only criu has ([`mountpoints`]), so there is nothing to take back.
//!
//! Source: runc's `libcontainer/criu_linux.go`.

mod mountpoints;
mod plan;

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{
    checkpoint::{DESCRIPTORS, Directories, Shared, external},
    container::{self, Container},
    create::{self, New, Undo},
    criu::{
        Criu, Version,
        message::{self, Kind, Request, Response},
        session::{Place, Session},
    },
    error::Error,
    hooks,
    id::ContainerId,
    init::{channel, clone::Child, enter_cgroups},
    mount, process,
    settings::Settings,
    spawn::Destination,
    spec::{NamespaceKind, Spec, resources::LinuxResources},
    state::{self, State, record},
    time,
};

/// What `restore` is told on the command line.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "criu(8) describes the options")]
pub struct Options {
    pub shared: Shared,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The options that every process has.
    pub process: process::Options,
    pub lsm_profile: Option<String>,
    pub lsm_mount_context: Option<String>,
}

/// The name of criu's log.
const LOG: &str = "restore.log";

/// What is known before anything is made.
struct Known {
    spec: Spec,
    bundle: PathBuf,
    rootfs: PathBuf,
    directories: Directories,
    /// What the standard streams were.
    streams: Vec<String>,
    /// Namespaces that the container joins and criu is given by descriptor.
    namespaces: Vec<(NamespaceKind, OwnedFd)>,
    criu: Criu,
}

impl Known {
    fn resources(&self) -> Option<&LinuxResources> {
        self.spec.linux.resources.as_ref()
    }
}

/// Restores a container.
///
/// # Errors
///
/// Any [`Error`]; nothing is left of the container then.
pub fn restore(settings: &Settings, id: &ContainerId, options: Options) -> Result<New, Error> {
    let known = look(&options)?;
    let cgroup = create::plan_cgroup(settings, id, &known.spec)?;
    let entry = settings.root.entry(id);
    entry.create()?;
    let mut undo = Undo::new(entry.clone(), cgroup);
    undo.make_cgroup(known.resources(), create::cgroup_owner(&known.spec))?;
    let (terminal, console) =
        options.process.console(&known.spec.process.clone().unwrap_or_default())?;
    let paths = (known.bundle.as_path(), known.rootfs.as_path());
    let mut state = create::first_state(settings, id, &known.spec, paths, false);
    state.cgroup_paths = undo.cgroup().paths();
    let result = run(&known, &options, &mut undo, (&entry, &mut state, console));
    if result.is_err() {
        known.directories.quote_log(LOG);
    }
    result?;
    if let Some(child) = undo.process() {
        options.process.announce(child)?;
    }
    let (cgroup, child) = undo.disarm().ok_or_else(no_process)?;
    let container = Container { entry, state, cgroup };
    Ok(New { container, init: process::Started { child, terminal } })
}

/// Finds out all that can make a restore impossible.
fn look(options: &Options) -> Result<Known, Error> {
    let spec = Spec::load(&options.bundle)?;
    options.process.check(spec.process.as_ref().is_some_and(|process| process.terminal))?;
    options.shared.check()?;
    let bundle = std::path::absolute(&options.bundle)
        .map_err(|error| Error::file("resolve", &options.bundle, error))?;
    let rootfs = create::find_rootfs(&bundle, &spec)?;
    let criu = Criu::find()?;
    plan::check_lsm(options, criu.version)?;
    let streams = read_streams(&options.shared.image_path)?;
    let directories = Directories::open(&options.shared)?;
    let namespaces = open_namespaces(&spec, criu.version)?;
    Ok(Known { spec, bundle, rootfs, directories, streams, namespaces, criu })
}

fn read_streams(images: &Path) -> Result<Vec<String>, Error> {
    let path = images.join(DESCRIPTORS);
    let text = fs::read(&path).map_err(|error| Error::file("open", &path, error))?;
    let streams: Option<Vec<String>> = serde_json::from_slice(&text)
        .map_err(|error| Error::file("parse", &path, std::io::Error::other(error)))?;
    Ok(streams.unwrap_or_default())
}

fn open_namespaces(spec: &Spec, version: Version) -> Result<Vec<(NamespaceKind, OwnedFd)>, Error> {
    let mut found = Vec::new();
    for namespace in plan::external_namespaces(spec, version)? {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(CWD, &namespace.path, flags, Mode::empty()).map_err(|error| {
            let what = format!("Requested {} namespace", namespace.kind.name());
            Error::system("open", format!("{what} {}", namespace.path), error)
        })?;
        found.push((namespace.kind, file));
    }
    Ok(found)
}

/// Has criu do it, and what is to be done meanwhile.
fn run(
    known: &Known,
    options: &Options,
    undo: &mut Undo,
    (entry, state, console): (&state::Entry, &mut State, Option<OwnedFd>),
) -> Result<(), Error> {
    let external_mounts = external_mounts(known, state)?;
    let session = start(known, undo)?;
    // A unit of systemd's begins with criu, and goes on with what criu makes in it.
    let owner = create::cgroup_owner(&known.spec);
    undo.start_cgroup(session.pid(), known.resources(), owner)?;
    let directories = known.directories.seen_by(session.pid(), &options.shared)?;
    let base = options.shared.plan(&directories, LOG, &state.config.labels)?;
    let facts = plan::Facts {
        spec: &known.spec,
        rootfs: &known.rootfs,
        streams: &known.streams,
        namespaces: known.namespaces.iter().map(|(kind, fd)| (*kind, fd.as_raw_fd())).collect(),
        // By now it is in the cgroups that the container is to be in.
        cgroups: crate::proc::read(CWD, &format!("/proc/{}/cgroup", session.pid()))?,
        external_mounts,
    };
    let plan = plan::restore(base, options, facts);
    let mut progress = Progress { known, undo, entry, state, console };
    session.ask(&Request::Do(Kind::RESTORE, &plan), |notification, descriptor| {
        progress.notified(notification, descriptor)
    })?;
    session.finish(Kind::RESTORE)?;
    if undo.process().is_some() { Ok(()) } else { Err(no_process()) }
}

fn external_mounts(known: &Known, state: &State) -> Result<Vec<message::ExternalMount>, Error> {
    let own_cgroups = state.cgroup_paths.contains_key("") && state.cgroup_paths.len() == 1
        || known.spec.linux.namespace(NamespaceKind::Cgroup).is_some();
    let mut mounts = Vec::new();
    for mount in &state.config.mounts {
        match mount.device.as_str() {
            "bind" => {
                let source = known.bundle.join(&mount.source).display().to_string();
                mounts.push(record::Mount { source, ..mount.clone() });
            }
            "cgroup" if !own_cgroups => {
                mounts.extend(external::cgroup_binds(&mount.destination, &state.cgroup_paths)?);
            }
            _ => {}
        }
    }
    let rootfs = external::open_root(&known.rootfs.display().to_string())?;
    let masks = !state.config.mask_paths.is_empty();
    external::mounts_for(rootfs.as_fd(), &mounts, &state.config.devices, masks)
}

/// Starts criu in the container's cgroup and in a mount namespace that is made ready.
fn start(known: &Known, undo: &Undo) -> Result<Session, Error> {
    let (directory, entrances) = undo.cgroup().entrances()?;
    let place = Place {
        namespaces: NamespaceKind::Mnt.flag(),
        destination: Destination { directory, otherwise: None },
        inherited: known.namespaces.iter().map(|(_, fd)| fd.as_fd()).collect(),
    };
    let mounts: Vec<mount::MountPlan> =
        known.spec.mounts.iter().filter_map(|mount| mount::plan(mount).ok()).collect();
    Session::start(place, || {
        enter_cgroups(entrances)?;
        mountpoints::prepare(&known.rootfs, &known.bundle, &mounts)
    })
}

fn no_process() -> Error {
    Error::Criu("criu has not said which process it has restored".to_owned())
}

/// What comes to be while criu works.
struct Progress<'a> {
    known: &'a Known,
    undo: &'a mut Undo,
    entry: &'a state::Entry,
    state: &'a mut State,
    console: Option<OwnedFd>,
}

impl Progress<'_> {
    fn notified(
        &mut self,
        notification: &Response,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), Error> {
        match notification.script.as_str() {
            "setup-namespaces" => self.run_hooks(notification.pid),
            "orphan-pts-master" => self.hand_over(descriptor),
            "post-restore" => self.record(notification.pid),
            _ => Ok(()),
        }
    }

    fn run_hooks(&self, pid: i32) -> Result<(), Error> {
        let hooks = &self.known.spec.hooks;
        let state = hooks::State { pid, ..create::state_for_hooks(self.state) };
        hooks::run_all(
            "prestart",
            &hooks.prestart,
            &state,
            hooks::Environment::Inherited,
            &self.known.bundle,
        )?;
        hooks::run_all(
            "createRuntime",
            &hooks.create_runtime,
            &state,
            hooks::Environment::Inherited,
            &self.known.bundle,
        )?;
        Ok(())
    }

    fn hand_over(&self, master: Option<OwnedFd>) -> Result<(), Error> {
        let fail = |error| Error::system("send", "console", error);
        let (Some(socket), Some(master)) = (&self.console, master) else {
            return Err(fail(rustix::io::Errno::BADF));
        };
        let name = b"orphan-pts-master";
        channel::send_with(socket.as_fd(), name, Some(master.as_fd())).map_err(fail)
    }

    /// Records the container. From here on it is one, and its init is killed when something fails.
    fn record(&mut self, pid: i32) -> Result<(), Error> {
        let fail = |error| Error::system("open", format!("process {pid}"), error);
        let number = Pid::from_raw(pid.max(0)).ok_or_else(no_process)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty()).map_err(fail)?;
        self.undo.add_process(Child { pid, pidfd });
        let state = &mut *self.state;
        state.init_process_pid = pid;
        state.init_process_start = container::start_time(pid).map_or(0, |(start, _)| start);
        state.created = time::rfc3339_nanoseconds(SystemTime::now());
        state.namespace_paths = create::namespace_paths(pid);
        plan::add_time_namespace(&mut state.config.namespaces, self.known.criu.version);
        self.entry.store(state)
    }
}
