//! Mounts that show files as of other owners, as containerd's options `uidmap=` and `gidmap=` ask.
//!
//! A mount of its own gets the mapping itself. An overlay cannot have one; its lower layers can, so
//! they are looked at through a mapped, read-only copy of the mount that has them all, made once
//! for all layers. The upper directory is as it is: whoever made it gave it to the mapped root.
//!
//! The copy has no place in the tree of mounts where the kernel takes layers from such a one (about
//! 6.15). Elsewhere it has one in the tree of a thread of its own, which nobody else sees and which ends
//! with that thread, however that ends. The overlay is made there, over the copy, and then moved out.
//!
//! Source: containerd, `core/mount/mount_idmapped_linux.go`; mount_setattr(2).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    fs::CWD,
    mount::{
        MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree,
    },
    process::chdir,
    thread::UnshareFlags,
};

use super::{Mount, MountAttrFlags, Plan, Recursive, change_propagation, make, undo};
use crate::{
    mount_attributes::{Attributes, set_attributes},
    namespace::unshare,
    user_namespace::{self, IdMap},
};

/// The mappings of a mount's owners and groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) users: IdMap,
    pub(super) groups: IdMap,
}

impl Ids {
    pub(super) fn namespace(&self) -> io::Result<OwnedFd> {
        user_namespace::create(&self.users, &self.groups)
    }
}

/// Whether mounts of what is at `path` can be mapped, and overlays be made of them.
pub fn can_map_ids(path: &Path) -> bool {
    let map = || -> io::Result<()> {
        let map: IdMap = "0:65534:1".parse().map_err(io::Error::other)?;
        let namespace = user_namespace::create(&map, &map)?;
        copy(path, false, namespace.as_fd(), MountAttrFlags::empty()).map(drop)
    };
    // Overlays take mapped layers since 5.19.
    kernel_version() >= (5, 19) && map().is_ok()
}

fn kernel_version() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or_default());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
}

/// Gives `tree`, which has no place yet, the mapping.
pub(super) fn map(
    tree: BorrowedFd<'_>,
    recursive: Recursive,
    namespace: BorrowedFd<'_>,
    attributes: MountAttrFlags,
) -> io::Result<()> {
    let attributes = Attributes {
        set: u64::from((attributes | MountAttrFlags::MOUNT_ATTR_IDMAP).bits()),
        propagation: libc::MS_PRIVATE,
        user_namespace: Some(namespace),
        ..Attributes::default()
    };
    set_attributes(tree, recursive, &attributes)
}

/// A mapped copy of the mount at `path`, without a place.
fn copy(
    path: &Path,
    recursive: Recursive,
    namespace: BorrowedFd<'_>,
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let tree = open_tree(CWD, path, flags)?;
    map(tree.as_fd(), recursive, namespace, attributes)?;
    Ok(tree)
}

/// Mounts the directory `source` mapped.
pub(super) fn bind(
    source: &str,
    target: &Path,
    recursive: Recursive,
    plan: &Plan,
    namespace: BorrowedFd<'_>,
) -> io::Result<()> {
    let tree = copy(Path::new(source), recursive, namespace, plan.attributes())?;
    attach(&tree, target)
}

fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    Ok(move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Where the copy of the layers is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copy {
    /// Nowhere in a tree of mounts.
    Detached,
    /// In a tree of its own.
    Apart,
}

/// Mounts an overlay whose lower layers are mapped.
pub(super) fn overlay(
    one: &Mount,
    target: &Path,
    plan: &Plan,
    namespace: BorrowedFd<'_>,
) -> io::Result<()> {
    match overlay_on(Copy::Detached, one, target, plan, namespace) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            overlay_on(Copy::Apart, one, target, plan, namespace)
        }
        result => result,
    }
}

fn overlay_on(
    how: Copy,
    one: &Mount,
    target: &Path,
    plan: &Plan,
    namespace: BorrowedFd<'_>,
) -> io::Result<()> {
    let layers = Layers::new(plan)?;
    match how {
        Copy::Detached => {
            let tree = layers.copy(namespace)?;
            let above = PathBuf::from(format!("/proc/self/fd/{}", tree.as_raw_fd()));
            make(one, target, &layers.below(&above, plan), None)
        }
        Copy::Apart => {
            // A path of the program's, whatever the thread's directory is.
            let target = std::path::absolute(target)?;
            let work = || make_apart(&layers, one, &target, plan, namespace);
            let made = thread::scope(|scope| {
                Ok::<_, io::Error>(thread::Builder::new().spawn_scoped(scope, work)?.join())
            })?;
            let made =
                made.map_err(|_panic| io::Error::other("the thread that mounts has panicked"))?;
            attach(&made?, &target)?;
            change_propagation(&target, plan).inspect_err(|_| undo(&target))
        }
    }
}

/// Makes the overlay in a tree of mounts that is this thread's alone from now on.
fn make_apart(
    layers: &Layers<'_>,
    one: &Mount,
    target: &Path,
    plan: &Plan,
    namespace: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    unshare(UnshareFlags::NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    attach(&layers.copy(namespace)?, target)?;
    // Over it, with layers that are looked up before. Their paths are short, as mount(2) has one page for all,
    // and start in the copy: with the tree of mounts this thread has got a working directory of its own.
    chdir(target)?;
    make(one, target, &layers.below(Path::new(""), plan), None)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, target, flags)?)
}

/// The lower directories of an overlay.
struct Layers<'p> {
    text: &'p str,
    /// The directory that has all of them.
    shared: PathBuf,
}

impl<'p> Layers<'p> {
    fn new(plan: &'p Plan) -> io::Result<Self> {
        let text = plan.data.iter().find_map(|option| option.strip_prefix("lowerdir="));
        let text = text.filter(|text| !text.contains('\\'));
        let (Some(text), Some(shared)) = (text, text.and_then(shared)) else {
            let text = "the lower directories are in no directory that could be mapped";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        };
        Ok(Self { text, shared })
    }

    /// A mapped copy of what has them all. Only the overlay says whether programs and devices in it work.
    fn copy(&self, namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV;
        copy(&self.shared, true, namespace, attributes)
    }

    /// The plan of an overlay of the same directories below `above`, where the copy is. The empty path is the
    /// working directory.
    fn below(&self, above: &Path, plan: &Plan) -> Plan {
        let mapped = self.text.split(':').map(|layer| {
            let below = Path::new(layer).strip_prefix(&self.shared).unwrap_or(Path::new(layer));
            above.join(below).display().to_string()
        });
        let mapped = format!("lowerdir={}", mapped.collect::<Vec<_>>().join(":"));
        let replace = |option: &String| {
            if option.starts_with("lowerdir=") { mapped.clone() } else { option.clone() }
        };
        let data = plan.data.iter().map(replace).collect();
        Plan { data, ids: None, ..plan.clone() }
    }
}

/// The directory that has all `layers`. `None`: there is none but `/`.
fn shared(layers: &str) -> Option<PathBuf> {
    let mut paths = layers.split(':').map(Path::new);
    let mut shared = paths.next()?.parent()?;
    for path in paths {
        while !path.parent().is_some_and(|parent| parent.starts_with(shared)) {
            shared = shared.parent()?;
        }
    }
    let is_usable = shared.is_absolute() && shared != Path::new("/");
    is_usable.then(|| shared.to_owned())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, chown},
        process::Command,
    };

    use rustix::mount::{MountFlags, mount_bind, mount_remount};

    use super::*;
    use crate::mount::unmount_all;

    #[test]
    fn shared_directories() {
        let cases = [
            ("one", "/r/1/fs", Some("/r/1")),
            ("side by side", "/r/1/fs:/r/12/fs", Some("/r")),
            ("one in the other", "/r/a/b:/r/a", Some("/r")),
            ("nothing shared", "/a/1:/b/1", None),
            ("relative", "a/1:a/2", None),
        ];
        for (case, layers, want) in cases {
            assert_eq!(shared(layers), want.map(PathBuf::from), "{case}");
        }
    }

    /// The owner of `path` as seen, and of what a writer leaves there.
    fn owner(path: &Path) -> (u32, u32) {
        let found = fs::symlink_metadata(path).expect("is there");
        (found.uid(), found.gid())
    }

    struct Tree(tempfile::TempDir);

    impl Tree {
        /// Two layers with files of 0:0 and 5:6, and directories for an overlay and its mount.
        fn new() -> Self {
            let scratch = tempfile::tempdir().expect("scratch");
            for name in ["1", "2", "upper", "work", "at"] {
                fs::create_dir(scratch.path().join(name)).expect("made");
            }
            for (path, uid, gid) in [("1/low", 5, 6), ("2/high", 0, 0)] {
                let path = scratch.path().join(path);
                fs::write(&path, "").expect("written");
                chown(path, Some(uid), Some(gid)).expect("owned");
            }
            Self(scratch)
        }

        fn path(&self, name: &str) -> String {
            self.0.path().join(name).display().to_string()
        }

        fn look(&self, name: &str) -> (u32, u32) {
            owner(&self.0.path().join(name))
        }

        fn overlay(&self) -> Mount {
            let path = |name| self.path(name);
            Mount {
                kind: "overlay".to_owned(),
                source: "overlay".to_owned(),
                target: String::new(),
                options: vec![
                    "uidmap=0:100000:1000".to_owned(),
                    "gidmap=0:200000:1000".to_owned(),
                    format!("workdir={}", path("work")),
                    format!("upperdir={}", path("upper")),
                    format!("lowerdir={}:{}", path("2"), path("1")),
                    "index=off".to_owned(),
                ],
            }
        }
    }

    #[test]
    fn overlays_with_mapped_layers() {
        for how in [Copy::Detached, Copy::Apart] {
            let tree = Tree::new();
            let (one, at) = (tree.overlay(), tree.0.path().join("at"));
            let plan = Plan::new(&one).expect("supported");
            let ids = plan.ids.clone().expect("are mapped").namespace().expect("a namespace");
            overlay_on(how, &one, &at, &plan, ids.as_fd()).expect("mounts");
            let seen = [tree.look("at/low"), tree.look("at/high")];
            fs::write(at.join("low"), "changed").expect("written");
            unmount_all(&at).expect("unmounted");
            assert_eq!(seen, [(100_005, 200_006), (100_000, 200_000)], "{how:?}");
            let below = [tree.look("1/low"), tree.look("2/high"), tree.look("upper/low")];
            assert_eq!(
                below,
                [(5, 6), (0, 0), (100_005, 200_006)],
                "{how:?}: copied up, untouched"
            );
        }
    }

    /// More layers than a page has room for, with their paths or with that of the mount.
    #[test]
    fn many_layers_by_one_page_of_options() {
        const LAYERS: usize = 60;
        let tree = Tree::new();
        let long = |name: &str| tree.path(&format!("{name}{}", "-".repeat(100)));
        for number in 0..LAYERS {
            let layer = Path::new(&long("layers")).join(number.to_string());
            fs::create_dir_all(&layer).expect("made");
            fs::write(layer.join(number.to_string()), "").expect("written");
        }
        let at = PathBuf::from(long("at"));
        fs::create_dir(&at).expect("made");
        let layers: Vec<_> =
            (0..LAYERS).map(|number| format!("{}/{number}", long("layers"))).collect();
        let mut one = tree.overlay();
        one.options.retain(|option| !option.starts_with("lowerdir="));
        one.options.push(format!("lowerdir={}", layers.join(":")));
        if kernel_version() >= (6, 5) {
            // fsconfig(2) refuses this, and mount(2) skips it. Before, all of an overlay goes by mount(2).
            one.options.push("=nothing".to_owned());
        }
        let plan = Plan::new(&one).expect("supported");
        let ids = plan.ids.clone().expect("are mapped").namespace().expect("a namespace");
        let before = std::env::current_dir().expect("there is one");
        overlay_on(Copy::Apart, &one, &at, &plan, ids.as_fd()).expect("mounts");
        let files = fs::read_dir(&at).expect("lists").count();
        let seen = owner(&at.join((LAYERS - 1).to_string()));
        fs::write(at.join("new"), "").expect("is writable");
        unmount_all(&at).expect("unmounted");
        assert_eq!((files, seen), (LAYERS, (100_000, 200_000)));
        assert!(Path::new(&tree.path("upper/new")).exists(), "in the upper directory");
        assert_eq!(std::env::current_dir().expect("there is one"), before, "of the program");
    }

    /// Nothing is made where others see it, nor in a directory for temporary files, and a program that
    /// changes its user works, which a layer alone would not let it.
    #[test]
    fn overlays_without_another_place() {
        let tree = Tree::new();
        let at = tree.0.path().join("at");
        let program = tree.0.path().join("2/id");
        fs::copy("/usr/bin/id", &program).expect("copied");
        chown(&program, Some(7), Some(0)).expect("owned");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("set");
        let table =
            || fs::read_to_string("/proc/thread-self/mountinfo").expect("proc").lines().count();
        let work = || {
            unshare(UnshareFlags::NEWNS).expect("a tree of mounts");
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).expect("private");
            // All of the directory for temporary files but what is in use is read-only.
            let flags = [
                (std::env::temp_dir(), MountFlags::BIND | MountFlags::RDONLY),
                (tree.0.path().to_owned(), MountFlags::BIND),
            ];
            for (path, flags) in flags {
                mount_bind(&path, &path).expect("bound");
                mount_remount(&path, flags, c"").expect("set");
            }
            let one = tree.overlay();
            let plan = Plan::new(&one).expect("supported");
            let ids = plan.ids.clone().expect("are mapped").namespace().expect("a namespace");
            let before = table();
            overlay_on(Copy::Apart, &one, &at, &plan, ids.as_fd()).expect("mounts");
            let mounts = table() - before;
            let said = Command::new(at.join("id")).arg("-u").output().expect("runs");
            (mounts, tree.look("at/low"), String::from_utf8_lossy(&said.stdout).into_owned())
        };
        let seen = thread::scope(|scope| scope.spawn(work).join().expect("no panic"));
        assert_eq!(seen, (1, (100_005, 200_006), "100007\n".to_owned()));
    }

    #[test]
    fn mapped_directories() {
        for (access, writable) in [("rw", true), ("ro", false)] {
            let tree = Tree::new();
            let at = tree.0.path().join("at");
            let mut one = tree.overlay();
            one.kind = "bind".to_owned();
            one.source = tree.path("1");
            one.options.retain(|option| option.contains("map="));
            one.options.extend([access.to_owned(), "rbind".to_owned()]);
            one.mount(&at).expect("mounts");
            let (seen, written) = (tree.look("at/low"), fs::write(at.join("low"), "new").is_ok());
            unmount_all(&at).expect("unmounted");
            assert_eq!((seen, written), ((100_005, 200_006), writable), "{access}");
            assert_eq!(tree.look("1/low"), (5, 6), "{access}");
        }
    }

    #[test]
    fn what_can_be_mapped() {
        assert!(can_map_ids(&std::env::temp_dir()), "a usual filesystem");
        assert!(!can_map_ids(Path::new("/proc")), "proc cannot");
        assert!(!can_map_ids(Path::new("/nonexistent")));
    }
}
