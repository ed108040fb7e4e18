//! A container's control groups: limits, accounting, freezing, and finding all its processes.
//!
//! # Layouts
//!
//! | machine | groups of a container                                                        |
//! |---------|------------------------------------------------------------------------------|
//! | v2      | one, in which the init is started (`CLONE_INTO_CGROUP`)                       |
//! | v1      | one for each hierarchy, which the init is moved to                            |
//! | hybrid  | v1's, and one in the v2 hierarchy, which has no controllers but tracks processes |
//!
//! # Life
//!
//! ```text
//!  plan ──> create: make groups, set limits ──> join: init is in before it runs anything
//!  plan_unit ──> create: check ──> start: systemd makes the groups with the init in them
//!  load ──> apply, freeze, thaw, pids, kill_all, stats, oom_watch ──> destroy
//! ```
//!
//! Limits are set before anybody joins. The memory that a process has used before it joins is
//! not moved with it, so that even a limit smaller than the runtime itself lets a container
//! start. What a limit needs is decided by [`limits`] and [`devices`], without a look at the
//! machine; this module and its files only act.
//!
//! A `Cgroup` keeps its directories open, once used, and goes through them: the path is walked
//! once, and a directory that is replaced behind our back is not followed.
//!
//! Sources: the kernel's `admin-guide/cgroup-v2.rst` and `cgroup-v1/`; runc's `libcontainer`
//! with opencontainers/cgroups for what is not specified.

mod create;
mod devices;
mod directory;
mod error;
mod freezer;
pub(crate) mod fuzz;
mod limits;
mod oom;
mod path;
mod processes;
mod remove;
pub mod stats;
mod systemd;

pub use devices::DeviceError;
pub use error::Error;
pub use oom::OomWatch;
pub use stats::Stats;
pub use systemd::Error as SystemdError;

use std::{
    cell::{Cell, OnceCell},
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use directory::Directory;
use path::{Inner, Layout};

/// The control groups of one container.
#[derive(Debug)]
pub struct Cgroup {
    /// Whether there is one v2 group with controllers, and nothing else.
    unified: bool,
    groups: Vec<Group>,
    /// Whether the caller is not privileged, so that devices cannot be filtered.
    rootless: bool,
    /// Whether groups that may not be made are done without: nobody has asked for them.
    optional: bool,
    /// The unit whose groups they are, when systemd makes them.
    unit: Option<systemd::Unit>,
}

/// One directory.
#[derive(Debug)]
struct Group {
    /// The controllers, or an empty one for v2.
    controllers: Vec<String>,
    path: PathBuf,
    directory: OnceCell<Directory>,
    /// Whether the group was not allowed to be made, and is done without.
    left_out: Cell<bool>,
}

impl Group {
    fn new(controllers: Vec<String>, path: PathBuf) -> Self {
        Self { controllers, path, directory: OnceCell::new(), left_out: Cell::new(false) }
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|own| own == controller)
    }

    /// The open directory.
    fn directory(&self) -> io::Result<&Directory> {
        if let Some(directory) = self.directory.get() {
            return Ok(directory);
        }
        let directory = Directory::open(&self.path)?;
        Ok(self.directory.get_or_init(|| directory))
    }

    fn must_open(&self) -> Result<&Directory, Error> {
        self.directory().map_err(|source| Error::File {
            operation: "open",
            path: self.path.clone(),
            source: source.into(),
        })
    }
}

impl Cgroup {
    /// Decides where the groups of the container `id` are, without making them.
    ///
    /// `cgroups_path` is the spec's `linux.cgroupsPath`; `rootless` tells that the caller is not
    /// privileged.
    ///
    /// # Errors
    ///
    /// - `Layout`: the machine has no control groups that a container could use.
    pub fn plan(cgroups_path: Option<&str>, id: &str, rootless: bool) -> Result<Self, Error> {
        let mut cgroup = Self::at(&Inner::of(cgroups_path, id), rootless)?;
        cgroup.optional = rootless && cgroups_path.is_none_or(str::is_empty);
        Ok(cgroup)
    }

    fn at(inner: &Inner, rootless: bool) -> Result<Self, Error> {
        let mut groups = Vec::new();
        let layout = Layout::detect()?;
        let (unified, hierarchies) = match layout {
            Layout::Unified(hierarchy) => (true, vec![hierarchy]),
            Layout::Legacy(hierarchies) => (false, hierarchies),
        };
        for hierarchy in hierarchies {
            let path = hierarchy.directory(inner, unified)?;
            groups.push(Group::new(hierarchy.controllers, path));
        }
        Ok(Self { unified, groups, rootless, optional: false, unit: None })
    }

    /// The groups that [`paths`](Self::paths) gave once.
    pub fn load(paths: BTreeMap<String, PathBuf>) -> Self {
        let unified = paths.len() == 1 && paths.contains_key("");
        let mut groups: Vec<Group> = Vec::with_capacity(paths.len());
        for (controller, path) in paths {
            match groups.iter_mut().find(|group| group.path == path) {
                Some(group) => group.controllers.push(controller),
                None => groups.push(Group::new(vec![controller], path)),
            }
        }
        Self { unified, groups, rootless: false, optional: false, unit: None }
    }

    /// The directory of each controller; that of v2 has an empty name.
    ///
    /// These are the names and paths of `cgroup_paths` in runc's `state.json`.
    pub fn paths(&self) -> BTreeMap<String, PathBuf> {
        let groups = self.groups.iter().filter(|group| !group.left_out.get());
        groups
            .flat_map(|group| {
                group.controllers.iter().map(|controller| (controller.clone(), group.path.clone()))
            })
            .collect()
    }

    /// Whether there is one v2 group with controllers, rather than groups of v1.
    pub fn is_unified(&self) -> bool {
        self.unified
    }

    /// The v2 group's directory, for `CLONE_INTO_CGROUP`; nothing on v1 and hybrid machines.
    pub fn directory_fd(&self) -> Option<BorrowedFd<'_>> {
        let group = self.groups.first().filter(|_| self.unified)?;
        if group.left_out.get() {
            return None;
        }
        group.directory().ok().map(AsFd::as_fd)
    }

    /// Whether any of the groups exists.
    pub fn exists(&self) -> bool {
        self.groups.iter().any(|group| group.directory().is_ok())
    }

    /// The group with the controller `name`; on v2 this is the only one.
    fn group(&self, name: &str) -> Option<&Group> {
        let mut groups = self.groups.iter().filter(|group| !group.left_out.get());
        if self.unified { groups.next() } else { groups.find(|group| group.has(name)) }
    }

    /// The open directory of the controller `name`.
    fn controller(&self, name: &str) -> Result<&Directory, Error> {
        let group =
            self.group(name).ok_or_else(|| Error::NoController { controller: name.to_owned() })?;
        group.must_open()
    }

    /// The group that says which processes there are.
    fn tracking(&self) -> Result<&Directory, Error> {
        let group =
            ["devices", "pids", "freezer", ""].into_iter().find_map(|name| self.group(name));
        match group.or(self.groups.first()) {
            Some(group) => group.must_open(),
            None => Err(Error::NoController { controller: "devices".to_owned() }),
        }
    }
}

/// Whether `error` says that the caller may not do this here.
fn is_not_allowed(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem)
}
