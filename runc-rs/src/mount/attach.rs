//! Makes mounts: a detached tree each, put on a target that was opened before.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, OFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags,
        fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount,
        fsopen, fspick, move_mount, open_tree,
    },
};
use sys::mount_attributes::{Attributes, set_attributes};

use super::{MountPlan, Source, bind, cgroupfs, copy_up, options::Change, target};
use crate::error::Error;

/// Makes the container's mounts below a root.
pub(crate) struct Mounter<'a> {
    /// The root, an `O_PATH` descriptor on its own mount.
    pub(crate) root: BorrowedFd<'a>,
    /// The root's path, as the kernel tells it to the runtime, to tell where inside it a target ended up.
    pub(crate) root_path: &'a Path,
    /// What relative sources of bind mounts are relative to.
    pub(crate) bundle: &'a Path,
    /// The SELinux label of files in new filesystems; may be empty.
    pub(crate) label: &'a str,
    /// Whether the container is in a user namespace, whose root may not change what the host's has
    /// set for a mount.
    pub(crate) user_namespace: bool,
    /// Whether the container has a cgroup namespace of its own.
    pub(crate) cgroup_namespace: bool,
}

/// `SYSFS_MAGIC`.
const SYSFS_MAGIC: i64 = 0x6265_6572;

/// Files of /proc that may be mounted over: what lxcfs shows in its own way.
const PROC_FILES: [&str; 10] = [
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/meminfo",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
    "proc/loadavg",
    "proc/slabinfo",
    "proc/sys/kernel/ns_last_pid",
    "proc/sys/crypto/fips_enabled",
];

impl Mounter<'_> {
    /// Makes one mount. `prepared` is its detached tree, where somebody with more rights made it.
    pub(crate) fn mount(&self, plan: &MountPlan, prepared: Option<OwnedFd>) -> Result<(), Error> {
        match &plan.source {
            Source::Bind { .. } | Source::Filesystem { .. } if plan.options.remount => {
                self.remount(plan)
            }
            Source::Bind { path, recursive, .. } => {
                let tree = match prepared {
                    Some(tree) => tree,
                    None => clone_tree(&self.bundle.join(path), *recursive)?,
                };
                self.attach_bind(plan, tree)
            }
            Source::Cgroup => cgroupfs::mount(self, plan),
            Source::Filesystem { kind, name } => self.attach_filesystem(plan, kind, name),
        }
    }

    fn attach_bind(&self, plan: &MountPlan, tree: OwnedFd) -> Result<(), Error> {
        let fail = |error: Errno| self.fail(plan, error);
        let directory = target::is_directory(tree.as_fd()).map_err(fail)?;
        let target = self.target(plan, directory)?;
        self.check(plan, target.as_fd(), Some(tree.as_fd()))?;
        put(tree.as_fd(), target.as_fd()).map_err(fail)?;
        self.set_bind_attributes(plan, tree.as_fd())?;
        self.finish(plan, tree.as_fd())
    }

    /// Gives a bind mount its attributes, see [`bind`].
    fn set_bind_attributes(&self, plan: &MountPlan, tree: BorrowedFd<'_>) -> Result<(), Error> {
        let fail =
            |error: io::Error| self.fail(plan, Errno::from_io_error(&error).unwrap_or(Errno::IO));
        let Some(exact) = bind::exact(&plan.options) else { return Ok(()) };
        // The kernel does not know it of trees that the runtime has cloned, so it is not asked.
        let refused = self.user_namespace
            || match set_attributes(tree, false, &exact) {
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => true,
                result => result.map(|()| false).map_err(fail)?,
            };
        if refused {
            let found = rustix::fs::fstatvfs(tree).map_err(|error| self.fail(plan, error))?;
            let kept = bind::with_locked(&plan.options, found.f_flag);
            let kept = kept.ok_or_else(|| self.fail(plan, Errno::PERM))?;
            set_attributes(tree, false, &kept).map_err(fail)?;
        }
        self.close_sysfs(plan, tree)
    }

    /// Makes read-only what is mounted in a sysfs that is bound read-only. What a container without
    /// rights gets as /sys is the host's, with the host's cgroups in it, and "ro" is for its top
    /// alone (CVE-2023-25809).
    fn close_sysfs(&self, plan: &MountPlan, tree: BorrowedFd<'_>) -> Result<(), Error> {
        let recursive = matches!(plan.source, Source::Bind { recursive: true, .. });
        if !(recursive && plan.options.attributes.is_readonly()) {
            return Ok(());
        }
        let found = rustix::fs::fstatfs(tree).map_err(|error| self.fail(plan, error))?;
        if found.f_type != SYSFS_MAGIC {
            return Ok(());
        }
        let attributes = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
        set_attributes(tree, true, &attributes)
            .map_err(|error| Error::file("make read-only", &plan.destination, error))
    }

    fn attach_filesystem(&self, plan: &MountPlan, kind: &str, name: &str) -> Result<(), Error> {
        let strict = matches!(kind, "proc" | "sysfs");
        let mode = self.mode_of_tmpfs(plan, kind);
        let target = if strict { self.plain_directory(plan)? } else { self.target(plan, true)? };
        self.check(plan, target.as_fd(), None)?;
        let mut data = plan.options.data.clone();
        data.extend(mode);
        if !self.label.is_empty() && !strict && kind != "mqueue" {
            data.push(format!("context={}", self.label));
        }
        // The device nodes are made in /dev, and the copy in a tmpfs, so these become read-only
        // afterwards.
        let late = plan.options.copy_up || plan.destination == "dev";
        let mut attributes = plan.options.attributes;
        if late {
            attributes.set &= !libc::MOUNT_ATTR_RDONLY;
        }
        let tree = new_filesystem(kind, name, &plan.options.superblock, &data, attributes)
            .map_err(|error| self.fail(plan, error))?;
        if plan.options.copy_up && kind == "tmpfs" {
            copy_up::copy(target.as_fd(), tree.as_fd())?;
            self.make_readonly(plan, tree.as_fd())?;
        }
        put(tree.as_fd(), target.as_fd()).map_err(|error| self.fail(plan, error))?;
        self.finish(plan, tree.as_fd())
    }

    /// The option that gives a tmpfs the mode of the directory that it hides, where there is one and
    /// no mode is asked for. Elsewhere it gets the kernel's default, 1777.
    fn mode_of_tmpfs(&self, plan: &MountPlan, kind: &str) -> Option<String> {
        let asked = || plan.options.data.iter().any(|option| option.starts_with("mode="));
        if kind != "tmpfs" || asked() {
            return None;
        }
        let hidden = target::open(self.root, &plan.destination, OFlags::PATH).ok()?;
        let mode = rustix::fs::fstat(hidden).ok()?.st_mode & 0o7777;
        Some(format!("mode={mode:04o}"))
    }

    /// Changes a mount that is there already: its attributes and, unless it is called a bind mount,
    /// its filesystem's options.
    fn remount(&self, plan: &MountPlan) -> Result<(), Error> {
        let fail = |error: Errno| self.fail(plan, error);
        let mounted = target::open(self.root, &plan.destination, OFlags::PATH).map_err(fail)?;
        let options = &plan.options;
        let own = matches!(plan.source, Source::Filesystem { .. });
        if own && !(options.superblock.is_empty() && options.data.is_empty()) {
            let flags = FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC;
            let context = fspick(mounted.as_fd(), "", flags).map_err(fail)?;
            configure(context.as_fd(), &options.superblock, &options.data).map_err(fail)?;
            fsconfig_reconfigure(context.as_fd()).map_err(fail)?;
        }
        self.set_bind_attributes(plan, mounted.as_fd())?;
        self.finish(plan, mounted.as_fd())
    }

    /// Applies what comes after a mount is in place: propagation and recursive attributes.
    pub(super) fn finish(&self, plan: &MountPlan, tree: BorrowedFd<'_>) -> Result<(), Error> {
        let fail = |error| Error::file("set mount attributes of", &plan.destination, error);
        for change in &plan.options.propagation {
            let attributes = Attributes { propagation: change.kind, ..Attributes::default() };
            set_attributes(tree, change.recursive, &attributes).map_err(fail)?;
        }
        let Change { set, clear } = plan.options.recursive;
        if plan.options.recursive.is_empty() {
            return Ok(());
        }
        let attributes = Attributes { set, clear, ..Attributes::default() };
        set_attributes(tree, true, &attributes).map_err(fail)
    }

    /// Makes read-only what could not be so before it was filled; see [`Self::mount`].
    pub(crate) fn finish_dev(&self, plan: &MountPlan) -> Result<(), Error> {
        if plan.destination != "dev" || matches!(plan.source, Source::Bind { .. }) {
            return Ok(());
        }
        let dev = target::open(self.root, "dev", OFlags::PATH)
            .map_err(|error| Error::file("open", "/dev", error))?;
        self.make_readonly(plan, dev.as_fd())
    }

    fn make_readonly(&self, plan: &MountPlan, tree: BorrowedFd<'_>) -> Result<(), Error> {
        if !plan.options.attributes.is_readonly() {
            return Ok(());
        }
        let attributes = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
        set_attributes(tree, false, &attributes)
            .map_err(|error| Error::file("make read-only", &plan.destination, error))
    }

    /// Opens the target, and makes it where it is missing.
    pub(crate) fn target(&self, plan: &MountPlan, directory: bool) -> Result<OwnedFd, Error> {
        let target = if directory {
            match target::open(self.root, &plan.destination, OFlags::PATH) {
                Err(Errno::NOENT) => target::make_missing(self.root, &plan.destination),
                result => result.map_err(|error| self.fail(plan, error)),
            }
        } else {
            target::make_file(self.root, &plan.destination)
        }?;
        if target::is_same(target.as_fd(), self.root).map_err(|error| self.fail(plan, error))? {
            return Err(Error::Process(format!(
                "mountpoint {:?} is on the top of rootfs {:?}",
                plan.destination, self.root_path
            )));
        }
        Ok(target)
    }

    /// Opens the target of a filesystem that must be where its name says, so that nothing is
    /// passed off as /proc or /sys: no symlinks, only a directory.
    fn plain_directory(&self, plan: &MountPlan) -> Result<OwnedFd, Error> {
        let ordinary = || {
            Error::Process(format!(
                "filesystem {:?} must be mounted on ordinary directory",
                plan.destination
            ))
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let found = match target::open_plain(self.root, &plan.destination, flags) {
            Err(Errno::NOENT) => {
                drop(target::make_missing(self.root, &plan.destination)?);
                target::open_plain(self.root, &plan.destination, flags)
            }
            result => result,
        };
        let target = found.map_err(|error| match error {
            Errno::LOOP => ordinary(),
            error => self.fail(plan, error),
        })?;
        match target::is_directory(target.as_fd()) {
            Ok(true) => Ok(target),
            _ => Err(ordinary()),
        }
    }

    /// Refuses to put something that is no procfs where procfs belongs, which would let the
    /// container's programs (and this one) be lied to about processes.
    fn check(
        &self,
        plan: &MountPlan,
        target: BorrowedFd<'_>,
        source: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let inside = self.path_of(target).map_err(|error| self.fail(plan, error))?;
        let refuse = |why| {
            Err(Error::Process(format!("{:?} cannot be mounted because it is {why}", inside)))
        };
        if inside == Path::new("proc") {
            let is_proc = match (&plan.source, source) {
                (Source::Filesystem { kind, .. }, _) => kind == "proc",
                (_, Some(tree)) => is_procfs(tree).map_err(|error| self.fail(plan, error))?,
                _ => false,
            };
            return if is_proc { Ok(()) } else { refuse("not of type proc") };
        }
        let allowed = PROC_FILES.iter().any(|file| inside == Path::new(file));
        if inside.starts_with("proc") && !allowed { refuse("inside /proc") } else { Ok(()) }
    }

    /// Where below the root a descriptor is.
    fn path_of(&self, fd: BorrowedFd<'_>) -> Result<PathBuf, Errno> {
        use std::os::{fd::AsRawFd as _, unix::ffi::OsStringExt as _};
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let text = rustix::fs::readlink(link, Vec::new())?.into_bytes();
        let path = PathBuf::from(std::ffi::OsString::from_vec(text));
        path.strip_prefix(self.root_path).map(Path::to_owned).map_err(|_| Errno::XDEV)
    }

    pub(super) fn fail(&self, plan: &MountPlan, error: Errno) -> Error {
        let source = match &plan.source {
            Source::Bind { path, .. } => path,
            Source::Cgroup => "cgroup",
            Source::Filesystem { name, .. } => name,
        };
        let at = &plan.destination;
        Error::system(
            "error during container init: error mounting",
            format!("{source:?} to rootfs at \"/{at}\""),
            error,
        )
    }
}

/// Clones the tree at `source` of the runtime's mount namespace.
pub(crate) fn clone_tree(source: &Path, recursive: bool) -> Result<OwnedFd, Error> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, source, flags).map_err(|error| Error::file("bind", source, error))
}

/// Clones the tree at an open file of this mount namespace.
pub(crate) fn clone_at(fd: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(fd, "", flags)
}

/// Puts a detached tree on a target; afterwards the tree's descriptor refers to it there.
pub(crate) fn put(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags)
}

/// Makes a filesystem and a detached mount of it.
pub(crate) fn new_filesystem(
    kind: &str,
    name: &str,
    flags: &[&str],
    data: &[String],
    attributes: Change,
) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if !name.is_empty() {
        fsconfig_set_string(context.as_fd(), "source", name)?;
    }
    configure(context.as_fd(), flags, data)?;
    fsconfig_create(context.as_fd())?;
    let bits = u32::try_from(attributes.set).map_err(|_| Errno::INVAL)?;
    let bits = MountAttrFlags::from_bits_retain(bits);
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, bits)
}

/// Tells a filesystem its flags and options.
fn configure(context: BorrowedFd<'_>, flags: &[&str], data: &[String]) -> Result<(), Errno> {
    for flag in flags {
        fsconfig_set_flag(context, *flag)?;
    }
    for option in data {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(context, key, value)?,
            None => fsconfig_set_flag(context, option.as_str())?,
        }
    }
    Ok(())
}

/// Says whether a file is in a procfs.
pub(crate) fn is_procfs(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let found = rustix::fs::fstatfs(fd)?;
    Ok(found.f_type == rustix::fs::PROC_SUPER_MAGIC)
}
