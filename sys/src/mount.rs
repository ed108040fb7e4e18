//! Mounts as containerd describes them: a type, a source and options in `mount(8)`'s words.
//!
//! A filesystem is made with `fsopen(2)`, one option at a time, so that their total length has no
//! limit; an overlay gets its layers through `lowerdir+`. Where the kernel has no `lowerdir+`
//! (before 6.7) or no `fsopen` for a filesystem, `mount(2)` does it, which takes one page of
//! options: for an overlay of many layers, paths are relative to where all layers are. Bind mounts go through `mount(2)`. The option `loop` makes a block device of a file;
//! `uidmap=` and `gidmap=`, which come together, show files as of other owners.
//!
//! Targets are paths that only the host names; nothing here may be used on a path that a
//! container can change.
//!
//! Source: containerd `core/mount`, mount(8), fsopen(2), kernel `filesystems/overlayfs.rst`.

pub mod holders;
mod id_mapped;
mod relative;

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::CWD,
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags,
        MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
        fsmount, fsopen, mount, mount_bind, mount_bind_recursive, mount_change, mount_remount,
        move_mount, unmount,
    },
};

use crate::loop_device::LoopDevice;
use id_mapped::Ids;

pub use id_mapped::can_map_ids;

/// The longest value of one option that `fsconfig(2)` takes, in bytes.
const OPTION_LEN_MAX: usize = 255;

/// The longest option text that `mount(2)` takes, in bytes.
const DATA_LEN_MAX: usize = 4095;

/// One mount, as a snapshotter hands it out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// The filesystem type, such as `overlay` or `bind`.
    pub kind: String,
    /// The device or directory, where the type has one.
    pub source: String,
    /// Where below the root the mount goes; empty for the root itself.
    pub target: String,
    /// Options in mount(8)'s words: flags, propagation and what the filesystem defines.
    pub options: Vec<String>,
}

impl Mount {
    /// Mounts it on the directory `root`, or below at its own target.
    ///
    /// # Errors
    ///
    /// An option is unsupported, or the kernel refuses. Nothing is mounted then.
    pub fn mount(&self, root: &Path) -> Result<(), MountError> {
        let target = match self.target.trim_start_matches('/') {
            "" => root.to_owned(),
            below => root.join(below),
        };
        let plan = Plan::new(self)?;
        self.mount_by(&plan, &target).map_err(|source| MountError::Kernel {
            kind: self.kind.clone(),
            target: target.clone(),
            source,
        })
    }

    fn mount_by(&self, plan: &Plan, target: &Path) -> io::Result<()> {
        let namespace = plan.ids.as_ref().map(Ids::namespace).transpose()?;
        let namespace = namespace.as_ref().map(AsFd::as_fd);
        match (plan.bind, namespace) {
            (Some(recursive), None) => bind(&self.source, target, recursive, plan),
            (Some(recursive), Some(namespace)) => {
                id_mapped::bind(&self.source, target, recursive, plan, namespace)?;
                change_propagation(target, plan).inspect_err(|_| undo(target))
            }
            (None, Some(namespace)) if self.kind == "overlay" => {
                id_mapped::overlay(self, target, plan, namespace)
            }
            (None, namespace) if plan.on_loop_device => self.mount_file(target, plan, namespace),
            (None, namespace) => make(self, target, plan, namespace),
        }
    }

    /// Mounts the filesystem in the file that is the source. The mount keeps the loop device. An
    /// EROFS needs none where the kernel takes files (6.12).
    fn mount_file(
        &self,
        target: &Path,
        plan: &Plan,
        namespace: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        if self.kind == "erofs" {
            match make_by_options(self, target, plan, namespace) {
                Ok(()) => {
                    return change_propagation(target, plan).inspect_err(|_| undo(target));
                }
                Err(Errno::NOTBLK | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let read_only = plan.flags.contains(MountFlags::RDONLY);
        let device = LoopDevice::attach(Path::new(&self.source), read_only)?;
        let source = device.path().display().to_string();
        make(&Self { source, ..self.clone() }, target, plan, namespace)
    }
}

/// Mounts all of `mounts` on `root`, the first one first.
///
/// # Errors
///
/// One of them failed. Those before it were unmounted again.
pub fn mount_all(mounts: &[Mount], root: &Path) -> Result<(), MountError> {
    for (done, one) in mounts.iter().enumerate() {
        if let Err(error) = one.mount(root) {
            if done > 0 {
                // The error that stopped the work is the one to report.
                let _ = unmount_all(root);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Unmounts everything at `root`, mounts on top of each other included.
///
/// A mount that is busy is detached: it disappears from the tree now and from the kernel when its
/// last user is gone. Nothing mounted, or nothing there, is fine.
///
/// # Errors
///
/// The kernel refuses.
pub fn unmount_all(root: &Path) -> Result<(), MountError> {
    const STACKED_MAX: usize = 128;
    for _ in 0..STACKED_MAX {
        let result = unmount(root, UnmountFlags::NOFOLLOW).or_else(|error| match error {
            Errno::BUSY => unmount(root, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH),
            error => Err(error),
        });
        match result {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => {
                return Err(MountError::Unmount { target: root.to_owned(), source: error.into() });
            }
        }
    }
    Err(MountError::Unmount { target: root.to_owned(), source: Errno::BUSY.into() })
}

/// Why a mount could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum MountError {
    /// The option asks for something that this module does not do.
    #[error("mount option {option:?} is not supported")]
    Option { option: String },
    /// The kernel refused the mount.
    #[error("mount {kind} on {}", target.display())]
    Kernel { kind: String, target: PathBuf, source: io::Error },
    /// The kernel refused to unmount.
    #[error("unmount {}", target.display())]
    Unmount { target: PathBuf, source: io::Error },
}

/// A mount's options, sorted by who reads them.
#[derive(Clone, Debug, PartialEq)]
struct Plan {
    bind: Option<Recursive>,
    flags: MountFlags,
    propagation: Option<MountPropagationFlags>,
    on_loop_device: bool,
    ids: Option<Ids>,
    data: Vec<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            bind: None,
            flags: MountFlags::empty(),
            propagation: None,
            on_loop_device: false,
            ids: None,
            data: Vec::new(),
        }
    }
}

/// Whether a bind mount takes the mounts below its source along.
type Recursive = bool;

impl Plan {
    fn new(mount: &Mount) -> Result<Self, MountError> {
        let mut plan = Self { bind: (mount.kind == "bind").then_some(false), ..Self::default() };
        let (mut users, mut groups) = (None, None);
        let bad = |option: &str| MountError::Option { option: option.to_owned() };
        for option in &mount.options {
            let map = |text: &str| text.parse().map(Some).map_err(|_| bad(option));
            match option.as_str() {
                text if text.starts_with("uidmap=") => users = map(&text["uidmap=".len()..])?,
                text if text.starts_with("gidmap=") => groups = map(&text["gidmap=".len()..])?,
                "bind" => plan.bind = plan.bind.or(Some(false)),
                "rbind" => plan.bind = Some(true),
                "loop" => plan.on_loop_device = true,
                name => {
                    if let Some(propagation) = propagation(name) {
                        plan.propagation = Some(propagation);
                    } else if let Some((set, flag)) = flag(name) {
                        plan.flags.set(flag, set);
                    } else {
                        plan.data.push(option.clone());
                    }
                }
            }
        }
        plan.ids = match (users, groups) {
            (None, None) => None,
            (Some(users), Some(groups)) => Some(Ids { users, groups }),
            (Some(_), None) => return Err(bad("uidmap without gidmap")),
            (None, Some(_)) => return Err(bad("gidmap without uidmap")),
        };
        if plan.bind.is_some() && plan.on_loop_device {
            return Err(bad("loop"));
        }
        Ok(plan)
    }

    /// The flags of the mount itself, as `fsmount(2)` takes them.
    fn attributes(&self) -> MountAttrFlags {
        const SAME: [(MountFlags, MountAttrFlags); 7] = [
            (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
            (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
            (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
            (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
            (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
            (MountFlags::STRICTATIME, MountAttrFlags::MOUNT_ATTR_STRICTATIME),
            (MountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        ];
        SAME.iter()
            .filter(|(flag, _)| self.flags.contains(*flag))
            .fold(MountAttrFlags::empty(), |all, (_, attribute)| all | *attribute)
    }
}

/// The flag that an option sets (`true`) or clears.
fn flag(name: &str) -> Option<(bool, MountFlags)> {
    Some(match name {
        "defaults" => (true, MountFlags::empty()),
        "ro" => (true, MountFlags::RDONLY),
        "rw" => (false, MountFlags::RDONLY),
        "nosuid" => (true, MountFlags::NOSUID),
        "suid" => (false, MountFlags::NOSUID),
        "nodev" => (true, MountFlags::NODEV),
        "dev" => (false, MountFlags::NODEV),
        "noexec" => (true, MountFlags::NOEXEC),
        "exec" => (false, MountFlags::NOEXEC),
        "noatime" => (true, MountFlags::NOATIME),
        "atime" => (false, MountFlags::NOATIME),
        "nodiratime" => (true, MountFlags::NODIRATIME),
        "diratime" => (false, MountFlags::NODIRATIME),
        "relatime" => (true, MountFlags::RELATIME),
        "norelatime" => (false, MountFlags::RELATIME),
        "strictatime" => (true, MountFlags::STRICTATIME),
        "nostrictatime" => (false, MountFlags::STRICTATIME),
        "sync" => (true, MountFlags::SYNCHRONOUS),
        "async" => (false, MountFlags::SYNCHRONOUS),
        "dirsync" => (true, MountFlags::DIRSYNC),
        "mand" => (true, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
        "nomand" => (false, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
        _ => return None,
    })
}

fn propagation(name: &str) -> Option<MountPropagationFlags> {
    let recursive = name.strip_prefix('r');
    let flag = match recursive.unwrap_or(name) {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(if recursive.is_some() { flag | MountPropagationFlags::REC } else { flag })
}

fn bind(source: &str, target: &Path, recursive: Recursive, plan: &Plan) -> io::Result<()> {
    if recursive {
        mount_bind_recursive(source, target)?;
    } else {
        mount_bind(source, target)?;
    }
    let restrict = || -> io::Result<()> {
        if !plan.flags.is_empty() {
            mount_remount(target, plan.flags | MountFlags::BIND, c"")?;
        }
        change_propagation(target, plan)
    };
    restrict().inspect_err(|_| undo(target))
}

/// Takes back a mount that is not as it should be. The error that led here is the one to report.
fn undo(target: &Path) {
    let _ = unmount(target, UnmountFlags::DETACH);
}

fn make(
    one: &Mount,
    target: &Path,
    plan: &Plan,
    namespace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    match make_by_options(one, target, plan, namespace) {
        // What was made by mount(2) cannot be mapped.
        Err(error) if namespace.is_some() => return Err(error.into()),
        // An old kernel: no fsopen, or a filesystem that does not know an option in this form.
        Err(Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => {
            make_by_text(one, target, plan)?;
        }
        other => other?,
    }
    change_propagation(target, plan).inspect_err(|_| undo(target))
}

fn make_by_text(one: &Mount, target: &Path, plan: &Plan) -> io::Result<()> {
    let data = plan.data.join(",");
    if data.len() <= DATA_LEN_MAX {
        let data = CString::new(data)?;
        mount(one.source.as_str(), target, one.kind.as_str(), plan.flags, data.as_c_str())?;
        return Ok(());
    }
    let shortened = (one.kind == "overlay").then(|| relative::shorten(&plan.data)).flatten();
    match shortened {
        Some((below, data)) if data.len() <= DATA_LEN_MAX => {
            relative::mount_from(&below, one, target, plan.flags, &data)
        }
        _ => Err(Errno::TOOBIG.into()),
    }
}

fn make_by_options(
    one: &Mount,
    target: &Path,
    plan: &Plan,
    namespace: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let fs = fsopen(one.kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    if !one.source.is_empty() {
        fsconfig_set_string(&fs, "source", one.source.as_str())?;
    }
    for (flag, name) in [
        (MountFlags::SYNCHRONOUS, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
        (MountFlags::RDONLY, "ro"),
    ] {
        // An overlay is read-only as a mount; its superblock decides that by itself.
        if plan.flags.contains(flag) && !(name == "ro" && one.kind == "overlay") {
            fsconfig_set_flag(&fs, name)?;
        }
    }
    for (key, value) in plan.data.iter().flat_map(|option| filesystem_options(&one.kind, option)) {
        match value {
            None => fsconfig_set_flag(&fs, key)?,
            Some(value) if value.len() > OPTION_LEN_MAX => return Err(Errno::INVAL),
            Some(value) => fsconfig_set_string(&fs, key, value)?,
        }
    }
    fsconfig_create(&fs)?;
    let tree = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, plan.attributes())?;
    if let Some(namespace) = namespace {
        let result = id_mapped::map(tree.as_fd(), false, namespace, MountAttrFlags::empty());
        result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
    }
    move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// The keys and values that one option of a mount becomes: an overlay's `lowerdir` one per layer.
fn filesystem_options<'a>(kind: &str, option: &'a str) -> Vec<(&'a str, Option<&'a str>)> {
    match option.split_once('=') {
        // A path with an escaped colon needs the parser of the old form.
        Some(("lowerdir", layers)) if kind == "overlay" && !layers.contains('\\') => {
            layers.split(':').map(|layer| ("lowerdir+", Some(layer))).collect()
        }
        Some((key, value)) => vec![(key, Some(value))],
        None => vec![(option, None)],
    }
}

fn change_propagation(target: &Path, plan: &Plan) -> io::Result<()> {
    match plan.propagation {
        Some(propagation) => Ok(mount_change(target, propagation)?),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount_of(kind: &str, options: &[&str]) -> Mount {
        Mount {
            kind: kind.to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            ..Mount::default()
        }
    }

    #[test]
    fn plans() {
        let cases = [
            (
                "bind by type, read-only",
                mount_of("bind", &["ro"]),
                Plan { bind: Some(false), flags: MountFlags::RDONLY, ..Plan::default() },
            ),
            (
                "recursive by option",
                mount_of("none", &["rbind", "rw", "rslave"]),
                Plan {
                    bind: Some(true),
                    propagation: Some(
                        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
                    ),
                    ..Plan::default()
                },
            ),
            (
                "overlay",
                mount_of("overlay", &["index=off", "noatime", "lowerdir=/a:/b"]),
                Plan {
                    flags: MountFlags::NOATIME,
                    data: vec!["index=off".to_owned(), "lowerdir=/a:/b".to_owned()],
                    ..Plan::default()
                },
            ),
        ];
        for (case, mount, want) in cases {
            assert_eq!(Plan::new(&mount).expect("supported"), want, "{case}");
        }
        let refused = [
            ("a file is not bound by a device", &["loop"][..]),
            ("users alone", &["uidmap=0:1:1"]),
            ("groups alone", &["gidmap=0:1:1"]),
            ("no mapping", &["uidmap=0:1", "gidmap=0:1:1"]),
        ];
        for (case, options) in refused {
            assert!(Plan::new(&mount_of("bind", options)).is_err(), "{case}");
        }
    }

    #[test]
    fn a_filesystem_in_a_file_needs_loop() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (image, root) = (directory.path().join("image"), directory.path().join("root"));
        let file = std::fs::File::create(&image).expect("created");
        file.set_len(1 << 20).expect("sized");
        let made = std::process::Command::new("mkfs.ext4").arg("-q").arg(&image).output();
        assert!(made.expect("mkfs.ext4").status.success());
        std::fs::create_dir(&root).expect("made");
        let source = image.display().to_string();
        for (options, writable) in [(&["loop"][..], true), (&["ro", "loop"], false)] {
            let one = Mount { source: source.clone(), ..mount_of("ext4", options) };
            one.mount(&root).expect("mounted");
            assert!(root.join("lost+found").is_dir(), "{options:?}");
            assert_eq!(std::fs::write(root.join("file"), "1").is_ok(), writable, "{options:?}");
            unmount_all(&root).expect("unmounted");
        }
        let is_in_use = || {
            std::fs::read_dir("/sys/block").expect("sysfs").flatten().any(|entry| {
                let backing = std::fs::read_to_string(entry.path().join("loop/backing_file"));
                backing.is_ok_and(|file| file.trim() == source)
            })
        };
        // The kernel may free a device a moment after its last user is gone.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while is_in_use() {
            assert!(std::time::Instant::now() < deadline, "the devices are free again");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let missing = Mount { source: "/no/such/image".to_owned(), ..mount_of("ext4", &["loop"]) };
        let error = missing.mount(&root).expect_err("there is no file");
        assert!(crate::error::Chain(&error).to_string().contains("/no/such/image"), "{error}");
    }

    #[test]
    fn layers_of_an_overlay() {
        let cases = [
            (
                "layers",
                ("overlay", "lowerdir=/a:/b"),
                vec![("lowerdir+", Some("/a")), ("lowerdir+", Some("/b"))],
            ),
            ("escaped colon", ("overlay", "lowerdir=/a\\:b"), vec![("lowerdir", Some("/a\\:b"))]),
            ("not an overlay", ("ext4", "lowerdir=/a:/b"), vec![("lowerdir", Some("/a:/b"))]),
            ("other option", ("overlay", "upperdir=/u"), vec![("upperdir", Some("/u"))]),
            ("flag", ("overlay", "userxattr"), vec![("userxattr", None)]),
        ];
        for (case, (kind, option), want) in cases {
            assert_eq!(filesystem_options(kind, option), want, "{case}");
        }
    }

    #[test]
    fn nothing_to_unmount() {
        let missing = Path::new("/nonexistent/rootfs");
        assert!(unmount_all(missing).is_ok());
    }
}
