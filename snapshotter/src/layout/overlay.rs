//! Snapshots as the layers of overlayfs.
//!
//! ```text
//!   <root>/snapshots/<n>/fs      upper directory while active, lower directory when committed
//!   <root>/snapshots/<n>/work    for overlayfs, of active snapshots only
//! ```
//!
//! The mounts are those of containerd's overlayfs snapshotter, since clients pick them apart: a
//! bind mount where there is one directory, `overlay` with `workdir`, `upperdir`, `lowerdir`
//! where there are more. Paths are short because the kernel takes one page of options: whoever
//! mounts more than fit must use fsconfig(2) or relative paths.
//!
//! An upper directory becomes a lower one of others, for ever after. So what the kernel may be set to
//! do by default that only works where layers stay what they were is switched off: an index of
//! files, and copies of metadata alone. In a user namespace attributes of the kernel's are of the
//! kind that users may set (`userxattr`). Options that the operator gives win.
//!
//! # Volatile
//!
//! With the option `volatile` nothing that is written through an overlay is synced. The kernel then
//! leaves a mark in the work directory, and refuses to mount it again: if the machine stopped
//! meanwhile, files may be empty or missing, and nobody could tell. As its documentation says, the
//! mark may be removed by who knows that there was no such stop. This program knows: the snapshot's
//! record has the boot in which it was given out ([`Store`]). In the same boot every write is
//! where it belongs, at least in memory, so the mark goes; in another, the snapshot is refused.
//! A view has nowhere to write to, and does not get the option.
//!
//! # Other owners
//!
//! Labels ask that a snapshot shows a mapping of the owners of its layers, for a container with a
//! user namespace. Layers are not copied for that: the mounts have the mapping as `uidmap=` and
//! `gidmap=`, and whoever mounts maps the lower directories ([`sys::mount`]). The upper directory is
//! the mapped root's.
//!
//! Source: containerd, `plugins/snapshots/overlay/overlay.go`;
//! kernel, `Documentation/filesystems/overlayfs.rst`.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use sys::user_namespace::IdMap;

use crate::{
    Error, Key, Kind, Labels, Mount, Store,
    layout::{Layout, text},
};

/// Snapshots as the layers of overlayfs.
pub type Overlay = Store<OverlayOptions>;

/// The label that [`OverlayOptions::upperdir_label`] adds.
pub const UPPERDIR_LABEL: &str = "containerd.io/snapshot/overlay.upperdir";

/// The labels that ask for other owners, and the options of mounts that they become.
const MAPPINGS: [(&str, &str); 2] = [
    ("containerd.io/snapshot/uidmapping", "uidmap"),
    ("containerd.io/snapshot/gidmapping", "gidmap"),
];

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct OverlayOptions {
    /// Options for every overlay mount, but not for bind mounts.
    pub mount_options: Vec<String>,
    /// Leaves the data of removed snapshots to `cleanup`.
    pub async_remove: bool,
    /// Adds the label [`UPPERDIR_LABEL`] with the path of the upper directory to what is shown.
    pub upperdir_label: bool,
    /// Whether the kernel can show other owners of what is in the snapshotter's root.
    pub remap: Remap,
}

/// Whether the kernel can show other owners of what is on a filesystem
/// ([`sys::mount::can_map_ids`]).
///
/// To find out takes a process and a mount, which are some milliseconds of a start, for what few
/// ever ask: so it is found out when it is asked first. A clone shares the answer.
#[derive(Clone, Debug)]
pub struct Remap {
    answer: Arc<OnceLock<bool>>,
    root: PathBuf,
}

impl Remap {
    /// On the filesystem of `root`, or of the nearest directory above it that there is.
    pub fn on(root: &Path) -> Self {
        Self { answer: Arc::default(), root: root.to_owned() }
    }

    /// Without a look at any filesystem.
    pub fn known(answer: bool) -> Self {
        Self { answer: Arc::new(answer.into()), root: PathBuf::new() }
    }

    /// The answer. Blocks the first time.
    pub fn is_possible(&self) -> bool {
        let look = || {
            let there = self.root.ancestors().find(|path| path.exists());
            there.is_some_and(sys::mount::can_map_ids)
        };
        *self.answer.get_or_init(look)
    }
}

impl Default for OverlayOptions {
    /// What this machine's kernel needs; removal at once; no label, no other owners.
    fn default() -> Self {
        Self {
            mount_options: kernel_options(&Kernel::look()),
            async_remove: false,
            upperdir_label: false,
            remap: Remap::known(false),
        }
    }
}

impl OverlayOptions {
    /// Adds options of the operator's, before which those of the same name give way.
    #[must_use]
    pub fn with_mount_options(mut self, options: &[String]) -> Self {
        let name = |option: &str| option.split('=').next().unwrap_or_default().to_owned();
        let given: Vec<_> = options.iter().map(|option| name(option)).collect();
        self.mount_options.retain(|option| !given.contains(&name(option)));
        self.mount_options.extend_from_slice(options);
        self
    }
}

/// What decides about options.
struct Kernel {
    /// The mapping of user IDs that this process lives in.
    uid_map: String,
    /// Whether files are indexed by default; `None`: the kernel cannot.
    index: Option<bool>,
    /// Whether metadata is copied without data by default; `None`: the kernel cannot.
    metacopy: Option<bool>,
}

impl Kernel {
    /// Looks at what runs. What cannot be read is taken for absent.
    fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).ok();
        let parameter = |name| {
            let value = read(&format!("/sys/module/overlay/parameters/{name}"))?;
            Some(value.trim() == "Y")
        };
        Self {
            uid_map: read("/proc/self/uid_map").unwrap_or_default(),
            index: parameter("index"),
            metacopy: parameter("metacopy"),
        }
    }
}

fn kernel_options(kernel: &Kernel) -> Vec<String> {
    let map: Vec<_> = kernel.uid_map.split_whitespace().collect();
    let is_initial = map.is_empty() || map == ["0", "0", "4294967295"];
    let wanted = [
        // As containerd: always, where the kernel knows it.
        ("index=off", kernel.index.is_some()),
        ("metacopy=off", kernel.metacopy == Some(true)),
        ("userxattr", !is_initial),
    ];
    wanted.iter().filter(|(_, is)| *is).map(|(option, _)| (*option).to_owned()).collect()
}

/// Ask the kernel not to sync what is written. Newer kernels show the first as the second.
const VOLATILE: [&str; 2] = ["volatile", "fsync=volatile"];

/// The kernel's mark, in a work directory, that it was mounted so.
const VOLATILE_MARK: &str = "work/incompat/volatile";

impl Layout for OverlayOptions {
    const NAME: &'static str = "overlayfs";
    const REBASE: bool = true;

    fn check(&self, key: &Key, labels: &Labels) -> Result<(), Error> {
        match mapping(labels) {
            Ok(Some(_)) if !self.remap.is_possible() => {
                Err(Error::Unsupported { key: key.clone(), feature: "an id mapping" })
            }
            Ok(_) => Ok(()),
            Err((label, problem)) => Err(Error::Label { key: key.clone(), label, problem }),
        }
    }

    fn fill(
        &self,
        directory: &Path,
        kind: Kind,
        parent: Option<&Path>,
        labels: &Labels,
    ) -> Result<(), Error> {
        // Users in the container must be able to pass; who may pass from outside is decided by
        // the directory above all snapshots.
        set_mode(directory, 0o755)?;
        let upper = directory.join("fs");
        fs::create_dir(&upper).map_err(Error::file("create directory", &upper))?;
        match parent {
            None => set_mode(&upper, 0o755)?,
            Some(parent) => self.adopt(directory, parent)?,
        }
        if let Ok(Some(mapping)) = mapping(labels) {
            mapping.own(&upper)?;
        }
        if kind == Kind::Active {
            let work = directory.join("work");
            fs::create_dir(&work).map_err(Error::file("create directory", &work))?;
            set_mode(&work, 0o711)?;
        }
        Ok(())
    }

    fn adopt(&self, directory: &Path, parent: &Path) -> Result<(), Error> {
        let (upper, below) = (self.content(directory), self.content(parent));
        let below = fs::metadata(&below).map_err(Error::file("stat", below))?;
        let owner = (below.uid(), below.gid());
        if owner != (0, 0) {
            std::os::unix::fs::chown(&upper, Some(owner.0), Some(owner.1))
                .map_err(Error::file("change the owner of", &upper))?;
        }
        set_mode(&upper, below.mode() & 0o7777)
    }

    fn mounts(
        &self,
        kind: Kind,
        directory: &Path,
        parents: &[PathBuf],
        labels: &Labels,
    ) -> Vec<Mount> {
        let mut options = self.mapping_options(labels);
        let bind = |directory: &Path, options: Vec<String>, read_only| {
            let mut mount = Mount::bind(text(&self.content(directory)), read_only);
            mount.options.splice(0..0, options);
            vec![mount]
        };
        match (kind, parents) {
            (Kind::Active, []) => return bind(directory, options, false),
            (_, []) => return bind(directory, options, true),
            (Kind::Active, _) => {
                options.push(format!("workdir={}", text(&directory.join("work"))));
                options.push(format!("upperdir={}", text(&self.content(directory))));
            }
            (_, [parent]) => return bind(parent, options, true),
            (_, _) => {}
        }
        let lower = parents.iter().map(|parent| text(&self.content(parent)));
        options.push(format!("lowerdir={}", lower.collect::<Vec<_>>().join(":")));
        let is_for =
            |option: &&String| kind == Kind::Active || !VOLATILE.contains(&option.as_str());
        options.extend(self.mount_options.iter().filter(is_for).cloned());
        let overlay = "overlay".to_owned();
        vec![Mount { kind: overlay.clone(), source: overlay, target: String::new(), options }]
    }

    fn is_volatile(&self, kind: Kind, parents: &[PathBuf]) -> bool {
        let asked = self.mount_options.iter().any(|option| VOLATILE.contains(&option.as_str()));
        asked && kind == Kind::Active && !parents.is_empty()
    }

    fn readmit(&self, directory: &Path) -> Result<(), Error> {
        let mark = directory.join("work").join(VOLATILE_MARK);
        sys::tree::remove(&mark).map_err(Error::file("delete", mark))
    }

    fn is_marked(&self, directory: &Path) -> bool {
        directory.join("work").join(VOLATILE_MARK).symlink_metadata().is_ok()
    }

    fn content(&self, directory: &Path) -> PathBuf {
        directory.join("fs")
    }

    fn add_labels(&self, directory: &Path, labels: &mut Labels) {
        if self.upperdir_label {
            labels.insert(UPPERDIR_LABEL.to_owned(), text(&self.content(directory)));
        }
    }

    fn defers_removal(&self) -> bool {
        self.async_remove
    }
}

impl OverlayOptions {
    fn mapping_options(&self, labels: &Labels) -> Vec<String> {
        let option = |(label, name): &(&str, &str)| {
            let map = labels.get(*label).filter(|_| self.remap.is_possible())?;
            Some(format!("{name}={map}"))
        };
        MAPPINGS.iter().filter_map(option).collect()
    }
}

/// The owners that labels ask for.
struct Mapping {
    users: IdMap,
    groups: IdMap,
}

/// What `labels` ask for: nothing, or owners and groups. Otherwise which label is wrong, and why.
fn mapping(labels: &Labels) -> Result<Option<Mapping>, (&'static str, String)> {
    let parse = |(label, _): (&'static str, &str)| match labels.get(label) {
        None => Ok((label, None)),
        Some(text) => match text.parse::<IdMap>() {
            Ok(map) if map.to_host(0).is_none() => Err((label, "has no root".to_owned())),
            Ok(map) => Ok((label, Some(map))),
            Err(error) => Err((label, error.to_string())),
        },
    };
    match (parse(MAPPINGS[0])?, parse(MAPPINGS[1])?) {
        ((_, None), (_, None)) => Ok(None),
        ((_, Some(users)), (_, Some(groups))) => Ok(Some(Mapping { users, groups })),
        ((label, None), _) | (_, (label, None)) => Err((label, "is missing".to_owned())),
    }
}

impl Mapping {
    /// Gives a directory to whom its owner is mapped to; to the mapped root if that is nobody.
    fn own(&self, directory: &Path) -> Result<(), Error> {
        let found = fs::metadata(directory).map_err(Error::file("stat", directory))?;
        let user = self.users.to_host(found.uid()).or_else(|| self.users.to_host(0));
        let group = self.groups.to_host(found.gid()).or_else(|| self.groups.to_host(0));
        std::os::unix::fs::chown(directory, user, group)
            .map_err(Error::file("change the owner of", directory))
    }
}

/// Sets the mode whatever the umask of this process is.
fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(Error::file("change the mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_for_the_kernel() {
        let initial = "         0          0 4294967295\n";
        let mapped = "         0       1000          1\n";
        let cases = [
            ("usual", initial, Some(false), Some(false), &["index=off"][..]),
            ("indexes", initial, Some(true), Some(false), &["index=off"]),
            ("copies metadata", initial, Some(true), Some(true), &["index=off", "metacopy=off"]),
            ("old", initial, None, None, &[]),
            ("user namespace", mapped, Some(false), Some(false), &["index=off", "userxattr"]),
            ("no proc", "", Some(false), None, &["index=off"]),
        ];
        for (case, uid_map, index, metacopy, want) in cases {
            let kernel = Kernel { uid_map: uid_map.to_owned(), index, metacopy };
            assert_eq!(kernel_options(&kernel), want, "{case}");
        }
    }

    #[test]
    fn operators_options_win() {
        let base = |options: &[&str]| OverlayOptions {
            mount_options: options.iter().map(|it| it.to_string()).collect(),
            async_remove: false,
            upperdir_label: false,
            remap: Remap::known(false),
        };
        let cases = [
            ("none", &["index=off"][..], &[][..], &["index=off"][..]),
            ("another", &["index=off"], &["volatile"], &["index=off", "volatile"]),
            ("the same", &["index=off", "userxattr"], &["index=on"], &["userxattr", "index=on"]),
        ];
        for (case, own, given, want) in cases {
            let given: Vec<_> = given.iter().map(|it: &&str| it.to_string()).collect();
            assert_eq!(base(own).with_mount_options(&given).mount_options, want, "{case}");
        }
    }

    #[test]
    fn mappings() {
        let (users, groups) = (MAPPINGS[0].0, MAPPINGS[1].0);
        let good = "0:100000:65536";
        let cases = [
            ("none", &[][..], Ok(false)),
            ("both", &[(users, good), (groups, good)], Ok(true)),
            ("users alone", &[(users, good)], Err(groups)),
            ("groups alone", &[(groups, good)], Err(users)),
            ("no mapping", &[(users, "0:1"), (groups, good)], Err(users)),
            ("without root", &[(users, good), (groups, "1:100000:9")], Err(groups)),
        ];
        for (case, labels, want) in cases {
            let labels = labels.iter().map(|(name, map)| (name.to_string(), map.to_string()));
            let got = mapping(&Labels::from_iter(labels)).map(|found| found.is_some());
            assert_eq!(got.map_err(|(label, _)| label), want, "{case}");
        }
    }

    #[test]
    fn mounts() {
        let bind = |source: &str, access: &str| Mount {
            kind: "bind".to_owned(),
            source: source.to_owned(),
            target: String::new(),
            options: vec![access.to_owned(), "rbind".to_owned()],
        };
        let overlay = |options: &[&str]| Mount {
            kind: "overlay".to_owned(),
            source: "overlay".to_owned(),
            target: String::new(),
            options: options.iter().map(|option| option.to_string()).collect(),
        };
        let (work, upper) = ("workdir=/s/9/work", "upperdir=/s/9/fs");
        let cases = [
            ("active alone", Kind::Active, &[][..], bind("/s/9/fs", "rw")),
            ("view of nothing", Kind::View, &[], bind("/s/9/fs", "ro")),
            ("view of one", Kind::View, &[1], bind("/s/1/fs", "ro")),
            (
                "active on one",
                Kind::Active,
                &[1],
                overlay(&[work, upper, "lowerdir=/s/1/fs", "index=off", "volatile"]),
            ),
            (
                "view of two",
                Kind::View,
                &[2, 1],
                overlay(&["lowerdir=/s/2/fs:/s/1/fs", "index=off"]),
            ),
            (
                "active on two",
                Kind::Active,
                &[2, 1],
                overlay(&[work, upper, "lowerdir=/s/2/fs:/s/1/fs", "index=off", "volatile"]),
            ),
        ];
        for (case, kind, parents, want) in cases {
            let parents: Vec<_> =
                parents.iter().map(|n: &u64| Path::new("/s").join(n.to_string())).collect();
            let options = OverlayOptions {
                mount_options: vec!["index=off".to_owned(), VOLATILE[0].to_owned()],
                async_remove: false,
                upperdir_label: false,
                remap: Remap::known(false),
            };
            let got = options.mounts(kind, Path::new("/s/9"), &parents, &Labels::new());
            assert_eq!(got, [want], "{case}");
        }
    }
}
