//! The bench that cases work at: short names for calls, and real mounts.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::CWD,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_bind,
        mount_remount, move_mount, unmount,
    },
};

use super::Open;
use crate::{Error, Info, Key, Labels, Mount, Snapshotter};

pub(super) struct Bench<'a> {
    case: &'static str,
    open: &'a Open<'a>,
    directory: PathBuf,
    /// `None` only while it is opened again.
    snapshotter: Option<Box<dyn Snapshotter>>,
    mounts: u32,
}

/// A change to a tree, below the given root.
pub(super) type Step = fn(&Path);

impl<'a> Bench<'a> {
    pub(super) fn new(case: &'static str, directory: &Path, open: &'a Open<'a>) -> Self {
        let root = directory.join("root");
        fs::create_dir_all(&root).expect("scratch can be written");
        let directory = directory.to_owned();
        Self { case, open, directory, snapshotter: Some(open(&root)), mounts: 0 }
    }

    pub(super) fn case(&self) -> &'static str {
        self.case
    }

    pub(super) fn snapshotter(&self) -> &dyn Snapshotter {
        self.snapshotter.as_deref().expect("is open between calls")
    }

    /// Closes the snapshotter and opens it again.
    pub(super) fn reopen(&mut self) {
        self.snapshotter = None;
        self.snapshotter = Some((self.open)(&self.directory.join("root")));
    }

    /// An empty directory.
    pub(super) fn directory(&mut self) -> PathBuf {
        self.mounts += 1;
        let path = self.directory.join(format!("work-{}", self.mounts));
        fs::create_dir(&path).expect("scratch can be written");
        path
    }

    pub(super) fn prepare(&self, name: &str, parent: &str) -> Vec<Mount> {
        let result = self.snapshotter().prepare(&key(name), parent_key(parent).as_ref(), labels());
        self.ok("prepare", name, result)
    }

    pub(super) fn view(&self, name: &str, parent: &str) -> Vec<Mount> {
        let result = self.snapshotter().view(&key(name), parent_key(parent).as_ref(), labels());
        self.ok("view", name, result)
    }

    pub(super) fn commit(&self, name: &str, from: &str) {
        self.ok("commit", name, self.snapshotter().commit(&key(name), &key(from), labels()));
    }

    pub(super) fn remove(&self, name: &str) {
        self.ok("remove", name, self.snapshotter().remove(&key(name)));
    }

    pub(super) fn stat(&self, name: &str) -> Info {
        self.ok("stat", name, self.snapshotter().stat(&key(name)))
    }

    /// Prepares, lets `step` work in the mounted snapshot, and commits.
    pub(super) fn layer(&mut self, name: &str, parent: &str, step: Step) {
        let active = format!("{name} active");
        let mounts = self.prepare(&active, parent);
        self.mounted(&mounts, step);
        self.commit(name, &active);
    }

    /// What `look` sees where `mounts` are mounted.
    pub(super) fn mounted<T>(&mut self, mounts: &[Mount], look: impl FnOnce(&Path) -> T) -> T {
        let mounted = Mounted::new(mounts, self.directory());
        look(&mounted.0)
    }

    pub(super) fn ok<T>(&self, call: &str, name: &str, result: Result<T, Error>) -> T {
        result.unwrap_or_else(|error| {
            panic!("{}: {call} {name}: {}", self.case, sys::error::Chain(&error))
        })
    }
}

pub(super) fn key(name: &str) -> Key {
    Key::new("testsuite", name).expect("test names are short")
}

fn parent_key(name: &str) -> Option<Key> {
    (!name.is_empty()).then(|| key(name))
}

pub(super) fn labels() -> Labels {
    Labels::from([("containerd.io/gc.root".to_owned(), "testsuite".to_owned())])
}

/// A mounted directory, unmounted on drop.
struct Mounted(PathBuf);

impl Mounted {
    fn new(mounts: &[Mount], at: PathBuf) -> Self {
        let [mount] = mounts else { panic!("one mount expected: {mounts:?}") };
        match mount.kind.as_str() {
            "bind" => bind(mount, &at),
            "overlay" => overlay(mount, &at),
            other => panic!("unknown type of mount {other:?}"),
        }
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn bind(mount: &Mount, at: &Path) {
    mount_bind(&mount.source, at).expect("source can be bound");
    if mount.has("ro") {
        mount_remount(at, MountFlags::BIND | MountFlags::RDONLY, c"").expect("remount");
    }
}

/// By fsconfig(2), because many layers do not fit the one page of mount(2).
fn overlay(mount: &Mount, at: &Path) {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).expect("overlayfs");
    for option in &mount.options {
        match option.split_once('=') {
            None => fsconfig_set_flag(&context, option.as_str()).expect("flag"),
            Some(("lowerdir", all)) => {
                for lower in all.split(':') {
                    fsconfig_set_string(&context, "lowerdir+", lower).expect("lower");
                }
            }
            Some((name, value)) => fsconfig_set_string(&context, name, value).expect("option"),
        }
    }
    fsconfig_create(&context).expect("overlay can be mounted");
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let mount = fsmount(&context, flags, MountAttrFlags::empty()).expect("fsmount");
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&mount, "", CWD, at, empty).expect("move_mount");
}

/// What a file is, as far as snapshots must keep it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    content: Vec<u8>,
}

/// All files below `root` and itself, by path.
pub(super) fn tree(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        let stat = fs::symlink_metadata(&path).expect("stat");
        let content = if stat.is_dir() {
            paths.extend(fs::read_dir(&path).expect("list").map(|e| e.expect("list").path()));
            Vec::new()
        } else if stat.is_symlink() {
            fs::read_link(&path).expect("readlink").into_os_string().into_encoded_bytes()
        } else if stat.file_type().is_char_device() || stat.file_type().is_fifo() {
            Vec::new()
        } else {
            fs::read(&path).expect("read")
        };
        let relative = path.strip_prefix(root).expect("below the root").to_owned();
        let owner = (stat.uid(), stat.gid());
        entries.insert(relative, Entry { mode: stat.mode(), owner, device: stat.rdev(), content });
    }
    entries
}
