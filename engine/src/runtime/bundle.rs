//! The directory that a task runs from.
//!
//! ```text
//! <state>/io.containerd.runtime.v2.task/<namespace>/<id>/     0700
//!     config.json        the OCI runtime specification
//!     rootfs/            where the shim mounts the root filesystem
//!     work               link to <root>/io.containerd.runtime.v2.task/<namespace>/<id>
//!     log                fifo into which the shim logs
//!     shim-binary-path   the shim's binary
//!     bootstrap.json     how to reach the shim
//!     sandbox            the sandbox whose shim it is, if it is one's
//!     exit.recorded      the exit of init, before it is told to subscribers
//!     exit               the same file, once they were told
//!     exits.told         marks of the execs' exits that they were told of lately
//!     address, init.pid, log.json, options.json, runtime ...     the shim's own
//! ```
//!
//! The layout is containerd's, but for the exit, so that each daemon finds the other's containers.
//! `shim-binary-path` is written before the shim is started: whatever a crash leaves behind can be
//! cleaned up by that binary. Nothing is synced, since the state directory does not outlive the
//! kernel.
//!
//! Everything here blocks; the state directory is in memory, so that to read a small file of a bundle
//! takes less than to have another thread do it.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, chown, symlink},
    path::{Component, Path, PathBuf},
};

use prost::Message;
use prost_types::Any;
use proto::containerd::events::TaskExit;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, mknodat, open},
    mount::{UnmountFlags, unmount},
};
use serde::Deserialize;
use sys::mount::holders::points_below;

use super::{Error, bootstrap::Bootstrap};
use crate::namespace::Namespace;

/// The folder of bundles, in the state and in the root directory.
pub(super) const FOLDER: &str = "io.containerd.runtime.v2.task";

/// The folder of the bundles of sandboxes.
pub(super) const SANDBOX_FOLDER: &str = "io.containerd.sandbox.controller.v1.shim";

/// How many mounts may lie on top of each other on one rootfs.
const MOUNT_DEPTH_MAX: usize = 64;

/// How much is read of what is kept of the exits that were told; more is not written.
const TOLD_LEN_MAX: usize = 4096;

/// The largest file of a bundle that is read, in bytes.
const FILE_LEN_MAX: u64 = 64 << 10;

/// The largest specification that is read, in bytes: no call brings a larger one.
const SPEC_LEN_MAX: u64 = 16 << 20;

/// How much room beyond a file's length the standard library wants for a read that finds its end, in
/// bytes, with some more.
const SPARE_LEN: usize = 64;

/// Whether subscribers were told.
type Told = bool;

/// The directory of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bundle {
    path: PathBuf,
}

impl Bundle {
    /// The bundle of the container `id`, which need not exist.
    pub(super) fn at(state: &Path, namespace: &Namespace, id: &str) -> Self {
        Self { path: state.join(FOLDER).join(namespace.as_str()).join(id) }
    }

    /// The bundle of the sandbox `id`, which need not exist.
    pub(super) fn of_sandbox(state: &Path, namespace: &Namespace, id: &str) -> Self {
        Self { path: state.join(SANDBOX_FOLDER).join(namespace.as_str()).join(id) }
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory and what does not depend on the shim's answer. What a failure leaves is
    /// removed.
    pub(super) fn make(&self, work: &Path, spec: Option<&Any>, binary: &Path) -> Result<(), Error> {
        let spec = spec.map(|spec| spec.value.as_slice());
        let made = self.make_inner(work, spec, binary);
        if let Err(error) = &made
            && !matches!(error, Error::Bundle { operation: "create", source, .. }
                if source.kind() == io::ErrorKind::AlreadyExists)
            && let Err(left) = self.remove()
        {
            tracing::warn!(error = %sys::error::Chain(&left), "half-made bundle stays");
        }
        made
    }

    fn make_inner(&self, work: &Path, spec: Option<&[u8]>, binary: &Path) -> Result<(), Error> {
        for path in [&self.path, work] {
            let parent = path.parent().unwrap_or(path);
            folder(0o711).recursive(true).create(parent).map_err(Error::bundle("make", parent))?;
        }
        folder(0o700).create(&self.path).map_err(Error::bundle("create", &self.path))?;
        if let Some(gid) = spec.and_then(remapped_gid) {
            chown(&self.path, None, Some(gid)).map_err(Error::bundle("chown", &self.path))?;
            fs::set_permissions(&self.path, Permissions::from_mode(0o710))
                .map_err(Error::bundle("chmod", &self.path))?;
        }
        let rootfs = self.rootfs();
        folder(0o711).create(&rootfs).map_err(Error::bundle("make", &rootfs))?;
        match folder(0o711).create(work) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_dir_all(work).map_err(Error::bundle("remove", work))?;
                folder(0o711).create(work)
            }
            made => made,
        }
        .map_err(Error::bundle("make", work))?;
        let link = self.path.join("work");
        symlink(work, &link).map_err(Error::bundle("link", link))?;
        if let Some(spec) = spec {
            self.write("config.json", spec)?;
        }
        self.write("shim-binary-path", binary.as_os_str().as_encoded_bytes())?;
        let log = self.log();
        mknodat(CWD, &log, FileType::Fifo, Mode::from_raw_mode(0o700), 0)
            .map_err(|error| Error::bundle("make", log)(error.into()))
    }

    /// Where the root filesystem is mounted.
    fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// The fifo into which the shim logs.
    pub(super) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Keeps how to reach the shim.
    pub(super) fn keep_bootstrap(&self, bootstrap: &Bootstrap) -> Result<(), Error> {
        self.write("bootstrap.json", &bootstrap.to_json())
    }

    /// Keeps that the shim is that of a sandbox.
    pub(super) fn keep_sandbox(&self, sandbox: &str) -> Result<(), Error> {
        self.write("sandbox", sandbox.as_bytes())
    }

    /// Whether the shim is that of a sandbox, which stays when the task goes.
    pub(super) fn is_in_sandbox(&self) -> bool {
        self.path.join("sandbox").exists()
    }

    /// Whether the task is known to be of this sandbox.
    pub(super) fn is_of_sandbox(&self, sandbox: &str) -> bool {
        let kept = self.try_read("sandbox").ok().flatten();
        kept.is_some_and(|kept| kept == sandbox.as_bytes())
    }

    /// How to reach the shim; `None` when it was never told.
    pub(super) fn bootstrap(&self) -> Option<Bootstrap> {
        self.find_bootstrap().ok().flatten()
    }

    /// As [`bootstrap`](Self::bootstrap), for those who would take it for the shim's end that there is none.
    ///
    /// # Errors
    ///
    /// `Bundle`: there is too little of something to read it now.
    pub(super) fn find_bootstrap(&self) -> Result<Option<Bootstrap>, Error> {
        for name in ["bootstrap.json", "address"] {
            let bytes = self.try_read(name)?;
            if let Some(found) = bytes.and_then(|bytes| Bootstrap::parse(&bytes).ok()) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The binary of the shim, as it was when the task was made.
    ///
    /// # Errors
    ///
    /// `Bundle`: there is too little of something to read it now.
    pub(super) fn find_binary(&self) -> Result<Option<PathBuf>, Error> {
        let bytes = self.try_read("shim-binary-path")?;
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        Ok(text.filter(|text| !text.is_empty()).map(PathBuf::from))
    }

    /// The number of the shim's process, as shims keep it. Containers that share a shim have none, but
    /// for the first.
    pub(super) fn shim_pid(&self) -> Option<u32> {
        self.read_text("shim.pid")?.trim().parse().ok()
    }

    /// The number of init on the host, as shims keep it.
    pub(super) fn init_pid(&self) -> Option<u32> {
        self.read_text("init.pid")?.trim().parse().ok()
    }

    /// Whether a runtime has made a container from the bundle. Shims that fail to clean up before
    /// they made one have nothing to clean up.
    pub(super) fn has_container(&self) -> bool {
        self.init_pid().is_some()
    }

    /// The cgroup that the specification asks for.
    pub(super) fn cgroup(&self) -> Option<String> {
        let spec = read_small(&self.path.join("config.json"), SPEC_LEN_MAX).ok().flatten()?;
        linux(&spec)?.cgroups_path
    }

    /// Keeps init's exit, of which subscribers are told next.
    pub(super) fn record_exit(&self, exit: &TaskExit) -> Result<(), Error> {
        self.write("exit.recorded", &exit.encode_to_vec())
    }

    /// Notes that subscribers were told of the exit that was recorded. One that was not, because the
    /// bundle is gone, is none.
    pub(super) fn note_told(&self) -> Result<(), Error> {
        let recorded = self.path.join("exit.recorded");
        match fs::rename(&recorded, self.path.join("exit")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed.map_err(Error::bundle("rename", recorded)),
        }
    }

    /// The exit that was recorded, and whether subscribers were told of it. What a daemon was killed
    /// in the middle of writing does not count.
    pub(super) fn exit(&self) -> Option<(TaskExit, Told)> {
        let read = |name: &str| {
            let bytes = self.read(name)?;
            // All of a message is there when its last field is.
            TaskExit::decode(bytes.as_slice()).ok().filter(|exit| exit.exited_at.is_some())
        };
        let told = read("exit").map(|exit| (exit, true));
        told.or_else(|| read("exit.recorded").map(|exit| (exit, false)))
    }

    /// Keeps which exits of execs subscribers were told of, in place of what was kept. A bundle that
    /// is gone has no use for it.
    pub(super) fn keep_told(&self, marks: &[u8]) -> Result<(), Error> {
        let path = self.path.join("exits.told");
        let mut options = fs::OpenOptions::new();
        // In one call and without truncating it: whoever is killed leaves all of the old or of the new.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.custom_flags(flags.bits().cast_signed());
        match options.write(true).create(true).truncate(false).mode(0o600).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            opened => opened
                .and_then(|file| file.write_all_at(marks, 0))
                .map_err(Error::bundle("write", path)),
        }
    }

    /// What was kept last by [`keep_told`](Self::keep_told), of whatever length.
    pub(super) fn told(&self) -> Vec<u8> {
        let mut marks = self.read("exits.told").unwrap_or_default();
        marks.truncate(TOLD_LEN_MAX);
        marks
    }

    /// Unmounts the root filesystem, if it is mounted, and removes the directory and its work
    /// directory. Goes on after an error; a bundle that does not exist is none.
    pub(super) fn remove(&self) -> Result<(), Error> {
        let rootfs = self.rootfs();
        // What is mounted belongs to somebody, and must not be removed with the bundle.
        detach_tree(&rootfs).map_err(Error::bundle("unmount", &rootfs))?;
        // First, since it is found by the bundle when this is done again.
        let work_removed = match fs::read_link(self.path.join("work")) {
            Ok(work) if self.may_be_work(&work) => remove_hidden(&work),
            _ => Ok(()),
        };
        if work_removed.as_ref().is_err_and(Error::is_shortage) {
            return work_removed;
        }
        remove_hidden(&self.path).and(work_removed)
    }

    /// Whether that may be the working directory, which is named as the bundle is below another
    /// directory. What anything else is, is not known, and it is not removed.
    fn may_be_work(&self, work: &Path) -> bool {
        let names = |path: &Path| {
            let mut names = path.components().rev();
            [names.next(), names.next(), names.next()]
                .map(|it| it.map(|it| it.as_os_str().to_owned()))
        };
        let is_plain = |component| !matches!(component, Component::ParentDir);
        work.is_absolute() && names(work) == names(&self.path) && work.components().all(is_plain)
    }

    /// Reads a small file, if that is what there is: not what a link leads to, no fifo, in which
    /// nothing may ever be, and nothing that is too large to have been written by a daemon or a shim.
    fn read(&self, name: &str) -> Option<Vec<u8>> {
        self.try_read(name).ok().flatten()
    }

    /// The bytes of a file; nothing when it is not there, or no good. Only a shortage is an error.
    fn try_read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.path.join(name);
        read_small(&path, FILE_LEN_MAX).or_else(|error| {
            let error = Error::bundle("read", path)(error);
            if error.is_shortage() { Err(error) } else { Ok(None) }
        })
    }

    fn read_text(&self, name: &str) -> Option<String> {
        String::from_utf8(self.read(name)?).ok()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path.join(name);
        fs::write(&path, bytes).map_err(Error::bundle("write", path))
    }
}

fn read_small(path: &Path, len_max: u64) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > len_max {
        tracing::warn!(file = %path.display(), "no file of a bundle; it is not read");
        return Ok(None);
    }
    // Without room to spare, the end of a file is looked for in small reads.
    let len = usize::try_from(metadata.len()).unwrap_or_default();
    let mut bytes = Vec::with_capacity(len + SPARE_LEN);
    file.take(len_max).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Removes a directory under another name, so that nobody ever finds half of it.
fn remove_hidden(path: &Path) -> Result<(), Error> {
    let Some(name) = path.file_name() else { return Ok(()) };
    let mut hidden = OsString::from(".");
    hidden.push(name);
    let hidden = path.with_file_name(hidden);
    // An earlier removal may have been cut short.
    match fs::remove_dir_all(&hidden) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        removed => removed.map_err(Error::bundle("remove", &hidden))?,
    }
    match fs::rename(path, &hidden) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(Error::bundle("rename", path))?,
    }
    fs::remove_dir_all(&hidden).map_err(Error::bundle("remove", hidden))
}

fn folder(mode: u32) -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(mode);
    builder
}

/// Unmounts everything on `path`. Lazily: a process that still looks at it keeps it, and blocks
/// nobody.
fn detach(path: &Path) -> io::Result<()> {
    for _ in 0..MOUNT_DEPTH_MAX {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            // Without the right to unmount nothing was mounted either.
            Err(rustix::io::Errno::PERM) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    // The files below belong to whoever is mounted there.
    Err(io::ErrorKind::ResourceBusy.into())
}

/// Unmounts everything on `path` and below.
fn detach_tree(path: &Path) -> io::Result<()> {
    detach(path)?;
    // A root filesystem may have mounts below without being one itself; not if it is empty.
    let mut entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    if entries.next().is_none() {
        return Ok(());
    }
    let path = path.canonicalize()?;
    let mut below = points_below(&path)?;
    below.retain(|mount| *mount != path);
    // What was mounted last lies on top.
    below.iter().rev().try_for_each(|mount| detach(mount))
}

/// What of a specification's `linux` matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    #[serde(default)]
    gid_mappings: Vec<Mapping>,
    cgroups_path: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    #[serde(rename = "containerID")]
    container_id: u32,
    #[serde(rename = "hostID")]
    host_id: u32,
}

fn linux(spec: &[u8]) -> Option<Linux> {
    #[derive(Deserialize)]
    struct Spec {
        linux: Option<Linux>,
    }
    serde_json::from_slice::<Spec>(spec).ok()?.linux
}

/// The host's group for the container's group 0, which must be let into the bundle.
fn remapped_gid(spec: &[u8]) -> Option<u32> {
    let mappings = linux(spec)?.gid_mappings;
    let root = mappings.into_iter().find(|mapping| mapping.container_id == 0)?;
    (root.host_id != 0).then_some(root.host_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn make_and_remove() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (state, work) = (
            directory.path().join("state"),
            directory.path().join("root").join(FOLDER).join("default/c1"),
        );
        let namespace = "default".parse().expect("an identifier");
        let bundle = Bundle::at(&state, &namespace, "c1");
        let spec = Any { type_url: String::new(), value: b"{}".to_vec() };
        bundle.make(&work, Some(&spec), Path::new("/bin/shim")).expect("made");

        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(bundle.path()), 0o700);
        assert_eq!(fs::read(bundle.path().join("config.json")).expect("there"), b"{}");
        let binary = bundle.find_binary().expect("read");
        assert_eq!(binary.as_deref(), Some(Path::new("/bin/shim")));
        assert_eq!(fs::read_link(bundle.path().join("work")).expect("there"), work);
        assert_eq!((bundle.bootstrap(), bundle.exit()), (None, None));

        // A second task of the container fails, and leaves the first alone.
        bundle.make(&work, None, Path::new("/bin/shim")).expect_err("exists");
        assert!(bundle.path().join("config.json").exists());

        bundle.note_told().expect("nothing to tell");
        let at = Some(prost_types::Timestamp { seconds: 1, nanos: 1 });
        let exit = TaskExit {
            id: "c1".to_owned(),
            exit_status: 3,
            exited_at: at,
            pid: 1,
            ..Default::default()
        };
        bundle.record_exit(&exit).expect("written");
        assert_eq!(bundle.exit(), Some((exit.clone(), false)));
        let recorded = bundle.path().join("exit.recorded");
        let whole = fs::read(&recorded).expect("there");
        for len in 0..whole.len() {
            fs::write(&recorded, &whole[..len]).expect("written");
            assert_eq!(bundle.exit(), None, "{len} of {} bytes", whole.len());
        }
        fs::write(&recorded, whole).expect("written");
        bundle.note_told().expect("noted");
        assert_eq!(bundle.exit(), Some((exit, true)));
        fs::write(bundle.path().join("address"), "unix:///s/a").expect("written");
        assert_eq!(bundle.bootstrap().map(|found| found.version), Some(2));

        assert!(bundle.told().is_empty());
        for marks in [&[1; 64][..], &[2; 512]] {
            bundle.keep_told(marks).expect("kept");
            assert_eq!(bundle.told(), marks);
        }
        bundle.remove().expect("removed");
        bundle.keep_told(&[3; 64]).expect("nothing to keep it for");
        bundle.remove().expect("removed before");
        assert!(!work.exists());
        let left = fs::read_dir(bundle.path().parent().expect("has one")).expect("there").count();
        assert_eq!(left, 0);
    }

    #[test]
    fn what_is_mounted_below_is_not_removed() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let namespace = "default".parse().expect("an identifier");
        let bundle = Bundle::at(&directory.path().join("state"), &namespace, "c1");
        bundle.make(&directory.path().join("work"), None, Path::new("/bin/shim")).expect("made");
        let (theirs, target) = (directory.path().join("theirs"), bundle.rootfs().join("a b/c"));
        for folder in [&theirs, &target] {
            fs::create_dir_all(folder).expect("made");
        }
        fs::write(theirs.join("data"), "1").expect("written");
        match rustix::mount::mount_bind(&theirs, &target) {
            Err(rustix::io::Errno::PERM) => return,
            mounted => mounted.expect("mounted"),
        }
        bundle.remove().expect("removed");
        assert!(theirs.join("data").exists());
    }

    #[test]
    fn what_is_no_file_of_a_bundle() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let namespace = "default".parse().expect("an identifier");
        let bundle = Bundle::at(&directory.path().join("state"), &namespace, "c1");
        fs::create_dir_all(bundle.path()).expect("made");
        let theirs = directory.path().join("theirs");
        fs::write(&theirs, "unix:///s/theirs").expect("written");
        let path = bundle.path().join("bootstrap.json");
        type Make<'a> = &'a dyn Fn() -> io::Result<()>;
        let cases: [(&str, Make<'_>); 5] = [
            ("link", &|| symlink(&theirs, &path)),
            ("fifo", &|| Ok(mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0)?)),
            ("directory", &|| fs::create_dir(&path)),
            ("socket", &|| std::os::unix::net::UnixListener::bind(&path).map(drop)),
            ("large", &|| fs::write(&path, " ".repeat(65 << 10) + "unix:///s/a")),
        ];
        for (case, make) in cases {
            make().expect("made");
            assert_eq!(bundle.bootstrap(), None, "{case}");
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).expect("removed");
        }
        fs::write(&path, "unix:///s/a").expect("written");
        assert!(bundle.bootstrap().is_some(), "a file");
    }

    #[test]
    fn what_may_be_work() {
        let bundle = Bundle { path: format!("/s/{FOLDER}/ns/c1").into() };
        let cases = [
            ("its own", format!("/r/{FOLDER}/ns/c1"), true),
            ("deeper", format!("/var/lib/r/{FOLDER}/ns/c1"), true),
            ("relative", format!("r/{FOLDER}/ns/c1"), false),
            ("another container's", format!("/r/{FOLDER}/ns/c2"), false),
            ("another namespace's", format!("/r/{FOLDER}/os/c1"), false),
            ("something", "/home/c1".to_owned(), false),
            ("roundabout", format!("/r/../home/{FOLDER}/ns/c1"), false),
            ("root", "/".to_owned(), false),
        ];
        for (case, work, want) in cases {
            assert_eq!(bundle.may_be_work(Path::new(&work)), want, "{case}");
        }
    }

    #[test]
    fn remapped_groups() {
        let cases = [
            ("none", "{}", None),
            ("not a specification", "[", None),
            (
                "mapped",
                r#"{"linux":{"gidMappings":[{"containerID":0,"hostID":7,"size":1}]}}"#,
                Some(7),
            ),
            (
                "to root",
                r#"{"linux":{"gidMappings":[{"containerID":0,"hostID":0,"size":1}]}}"#,
                None,
            ),
        ];
        for (case, spec, want) in cases {
            assert_eq!(remapped_gid(spec.as_bytes()), want, "{case}");
        }
    }
}
