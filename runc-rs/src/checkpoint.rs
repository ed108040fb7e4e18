//! `checkpoint`: has criu take the processes of a container apart into files.
//!
//! What criu is told is decided in [`plan`]. Mounts and namespaces that are not the container's
//! own are left out of the files and named instead ([`external`]), and `restore`, which gives
//! criu the same names, puts what is there then in their place.
//!
//! Source: runc's `libcontainer/criu_linux.go`, so that images of the one can be restored by the
//! other.

pub(crate) mod external;
mod plan;
mod status;

use std::{
    fs,
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags, openat};

use self::{plan::Facts, status::StatusPipe};
use crate::{
    container::{Container, Status},
    criu::{
        Criu,
        message::{self, CgroupMode, Features, Kind, Request},
        session::{Place, Session},
    },
    error::Error,
    mount::target,
};

/// The file in the image directory with what the standard streams were.
pub(crate) const DESCRIPTORS: &str = "descriptors.json";

/// The modes of directories that are made. In that of the images the restored processes look for
/// files, as the root of their user namespace; the files themselves are opened for them.
const IMAGES_MODE: u32 = 0o711;
const WORK_MODE: u32 = 0o700;

/// What `checkpoint` and `restore` are both told on the command line.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "they are flags")]
#[expect(missing_docs, reason = "criu(8) describes the options")]
pub struct Shared {
    pub image_path: PathBuf,
    pub work_path: Option<PathBuf>,
    pub tcp_established: bool,
    pub ext_unix_sk: bool,
    pub shell_job: bool,
    pub file_locks: bool,
    pub auto_dedup: bool,
    pub lazy_pages: bool,
    /// Runc's `--manage-cgroups-mode`.
    pub cgroup_mode: String,
    /// Kinds of namespaces that are made, but not filled.
    pub empty_namespaces: Vec<String>,
}

/// What `checkpoint` is told on the command line.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "they are flags")]
#[expect(missing_docs, reason = "criu(8) describes the options")]
pub struct Options {
    pub shared: Shared,
    /// Relative to the image path.
    pub parent_path: Option<String>,
    pub leave_running: bool,
    pub tcp_skip_in_flight: bool,
    pub link_remap: bool,
    pub pre_dump: bool,
    /// A descriptor that gets a zero byte when pages can be had.
    pub status_fd: Option<i32>,
    /// Address and port.
    pub page_server: Option<(String, i32)>,
}

/// The directories that criu works with, open.
pub(crate) struct Directories {
    images: OwnedFd,
    work: Option<OwnedFd>,
    /// Where its log is.
    log: PathBuf,
}

impl Directories {
    /// Opens them, and makes the working directory where it is missing.
    pub(crate) fn open(shared: &Shared) -> Result<Self, Error> {
        let images = open_directory(&shared.image_path)?;
        let Some(path) = &shared.work_path else {
            return Ok(Self { images, work: None, log: shared.image_path.clone() });
        };
        make_directory(path, WORK_MODE)?;
        Ok(Self { images, work: Some(open_directory(path)?), log: path.clone() })
    }

    /// Opens them once more, in the mount namespace of the process `pid`: only there can it mount
    /// something in them, as criu does.
    pub(crate) fn seen_by(&self, pid: i32, shared: &Shared) -> Result<Self, Error> {
        let root = external::open_root(&format!("/proc/{pid}/root"))?;
        let open = |path: &Path| {
            // Symlinks in it begin at the root of that namespace, too.
            let below = path.to_string_lossy();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            target::open(root.as_fd(), below.trim_start_matches('/'), flags)
                .map_err(|error| Error::file("open", path, error))
        };
        let work = shared.work_path.as_deref().map(open).transpose()?;
        Ok(Self { images: open(&shared.image_path)?, work, log: self.log.clone() })
    }

    /// Says what went wrong in criu's own words, which are in its log.
    pub(crate) fn quote_log(&self, name: &str) {
        crate::criu::log::quote(&self.log.join(name));
    }
}

impl Shared {
    /// What criu is told alike for dump and restore.
    pub(crate) fn plan(
        &self,
        directories: &Directories,
        log_file: &str,
        labels: &[String],
    ) -> Result<message::Options, Error> {
        Ok(message::Options {
            images_dir_fd: directories.images.as_raw_fd(),
            work_dir_fd: directories.work.as_ref().map(|work| work.as_raw_fd()),
            log_file: log_file.to_owned(),
            ext_unix_sk: self.ext_unix_sk,
            tcp_established: self.tcp_established,
            shell_job: self.shell_job,
            file_locks: self.file_locks,
            auto_dedup: self.auto_dedup,
            lazy_pages: self.lazy_pages,
            cgroup_mode: plan::cgroup_mode(&self.cgroup_mode)?,
            empty_namespaces: plan::empty_namespaces(&self.empty_namespaces)?,
            config_file: plan::config_file(labels),
            ..message::Options::default()
        })
    }

    /// Checks what can be checked before anything is done.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let _: CgroupMode = plan::cgroup_mode(&self.cgroup_mode)?;
        plan::empty_namespaces(&self.empty_namespaces).map(drop)
    }
}

/// Makes a checkpoint of `container`, which ends unless it is to be left running.
///
/// # Errors
///
/// - [`Error::Status`] when it does not run.
/// - [`Error::Criu`] when criu is missing, or cannot do it; the container goes on then.
pub fn checkpoint(container: Container, options: &Options) -> Result<(), Error> {
    let status = container.status()?;
    if matches!(status, Status::Created | Status::Stopped) {
        let text = format!("Container cannot be checkpointed in {status} state");
        return Err(Error::Status(text));
    }
    options.shared.check()?;
    let mut pipe = StatusPipe::open(options)?;
    make_directory(&options.shared.image_path, IMAGES_MODE)?;
    plan::check_parent(&options.shared.image_path, options.parent_path.as_deref())?;
    let criu = Criu::find()?;
    let lazy_pages = options.shared.lazy_pages;
    if options.pre_dump || lazy_pages {
        Criu::require(Features { memory_tracking: options.pre_dump, lazy_pages })?;
    }
    dump(&container, options, criu, &mut pipe)?;
    let ends = !options.leave_running && !options.pre_dump;
    if ends && let Err(error) = container.destroy() {
        crate::log::warn(&sys::error::Chain(&error).to_string());
    }
    Ok(())
}

/// The name of criu's log.
const LOG: &str = "dump.log";

fn dump(
    container: &Container,
    options: &Options,
    criu: Criu,
    pipe: &mut StatusPipe,
) -> Result<(), Error> {
    let state = container.state();
    let directories = Directories::open(&options.shared)?;
    let base = options.shared.plan(&directories, LOG, &state.config.labels)?;
    let external_mounts = match options.pre_dump {
        true => Vec::new(),
        false => external::mounts_of(container)?,
    };
    let facts = Facts {
        version: criu.version,
        unified: container.cgroup().is_unified(),
        state,
        namespaces: external::namespaces_of(state)?,
        external_mounts,
        status_fd: pipe.number(),
    };
    let plan = plan::dump(base, options, facts)?;
    if !options.pre_dump {
        write_descriptors(&options.shared.image_path, &state.external_descriptors)?;
    }
    let kind = if options.pre_dump { Kind::PRE_DUMP } else { Kind::DUMP };
    let session = Session::start(Place::default(), || Ok(()))?;
    let result = session.ask(&Request::Do(kind, &plan), |notification, _| {
        // By now an older criu, which writes to it itself, has opened it.
        if plan.status_fd.is_some() {
            pipe.close();
        }
        if notification.script == "status-ready" {
            pipe.report();
        }
        Ok(())
    });
    let result = result.and_then(|_| session.finish(kind));
    if result.is_err() {
        directories.quote_log(LOG);
    }
    result
}

fn write_descriptors(images: &Path, descriptors: &[String]) -> Result<(), Error> {
    let path = images.join(DESCRIPTORS);
    let fail = |error| Error::file("write", &path, error);
    let text = serde_json::to_vec(descriptors).map_err(|error| fail(io::Error::other(error)))?;
    let mut file = fs::OpenOptions::new();
    let file = file.write(true).create(true).truncate(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(&text)).map_err(fail)
}

fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|error| Error::file("mkdir", path, error))
}

fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|error| Error::file("open", path, error))
}
