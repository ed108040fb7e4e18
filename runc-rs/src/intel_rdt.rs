//! Shares of caches and of memory bandwidth: a container's group in the resctrl filesystem.
//!
//! A group is a directory. Who is in it is written to its `tasks`, what they may use to its
//! `schemata`; the hardware has room for few of them, so one that was made for a container goes with
//! it, and one that has a name of its own is shared and stays. A refused write has its reason in
//! `info/last_cmd_status`, which goes into the error.
//!
//! Sources: the kernel's `filesystems/resctrl.rst`; runtime-spec `config-linux.md`, "IntelRdt".

mod figures;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, statfs};

use crate::{
    error::{Cause, Error},
    id::ContainerId,
    proc,
    spec::IntelRdt,
};

pub(crate) use self::figures::Figures;

const MOUNT_POINT: &str = "/sys/fs/resctrl";
const RDTGROUP_SUPER_MAGIC: u64 = 0x0765_5821;

/// The resctrl filesystem.
#[derive(Clone, Debug)]
pub(crate) struct Resctrl {
    root: PathBuf,
}

/// A container's group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    root: PathBuf,
    pub(crate) path: PathBuf,
    /// Where this container alone is measured.
    pub(crate) monitoring: Option<PathBuf>,
    /// Whether the group was made for this container, and goes with it.
    pub(crate) owned: bool,
    /// Whether the configuration names it, so that others may use it, too.
    shared: bool,
    /// Whether the group must be there, for nothing says what it should be.
    must_exist: bool,
}

impl Resctrl {
    /// Finds where it is mounted, if it is.
    pub(crate) fn find() -> Option<Self> {
        let found = statfs(MOUNT_POINT).ok()?;
        if u64::try_from(found.f_type) == Ok(RDTGROUP_SUPER_MAGIC) {
            return Some(Self { root: PathBuf::from(MOUNT_POINT) });
        }
        let text = proc::read(CWD, "/proc/self/mountinfo").ok()?;
        mount_point(&text).map(|root| Self { root })
    }

    /// Checks that the machine has what `rdt` is about.
    ///
    /// # Errors
    ///
    /// [`Error::Resctrl`] in runc's words.
    pub(crate) fn check(rdt: &IntelRdt) -> Result<Self, Error> {
        let refuse = |text: &str| Err(Error::Resctrl(text.to_owned()));
        let Some(resctrl) = Self::find() else {
            return refuse("intelRdt is specified in config, but Intel RDT is not enabled");
        };
        if !rdt.l3_cache_schema.is_empty() && !resctrl.has_cache_allocation() {
            return refuse(
                "intelRdt.l3CacheSchema is specified in config, but Intel RDT/CAT is not enabled",
            );
        }
        if !rdt.mem_bw_schema.is_empty() && !resctrl.has_bandwidth_allocation() {
            return refuse(
                "intelRdt.memBwSchema is specified in config, but Intel RDT/MBA is not enabled",
            );
        }
        Ok(resctrl)
    }

    /// Whether shares of the last level cache can be set.
    pub(crate) fn has_cache_allocation(&self) -> bool {
        self.root.join("info/L3").is_dir()
    }

    /// Whether shares of memory bandwidth can be set.
    pub(crate) fn has_bandwidth_allocation(&self) -> bool {
        self.root.join("info/MB").is_dir()
    }

    /// The group of a container, which need not exist yet.
    pub(crate) fn group(&self, rdt: &IntelRdt, id: &ContainerId) -> Group {
        let path = match rdt.clos_id.as_str() {
            "" => self.root.join(id),
            // The group of all who have no other.
            "/" => self.root.clone(),
            name => self.root.join(name),
        };
        let monitoring = rdt.enable_monitoring.then(|| path.join("mon_groups").join(id));
        let shared = !rdt.clos_id.is_empty();
        let must_exist = shared && schemata(rdt).is_empty();
        Group { root: self.root.clone(), path, monitoring, owned: false, shared, must_exist }
    }

    /// The group that was recorded.
    pub(crate) fn recorded(&self, path: &Path, monitoring: Option<&Path>, owned: bool) -> Group {
        let monitoring = monitoring.map(Path::to_owned);
        Group {
            root: self.root.clone(),
            path: path.to_owned(),
            monitoring,
            owned,
            shared: !owned,
            must_exist: true,
        }
    }
}

impl Group {
    /// Makes the group where it is not there, and moves the process `pid` to it.
    ///
    /// # Errors
    ///
    /// [`Error::Resctrl`]; what was made until then is for [`Self::remove`].
    pub(crate) fn join(&mut self, pid: i32) -> Result<(), Error> {
        if self.must_exist
            && let Err(error) = self.path.metadata()
        {
            let what = "clos dir not accessible (must be pre-created when schemata, l3CacheSchema \
                        and memBwSchema are empty)";
            return Err(self.fail(&what, error));
        }
        match fs::create_dir(&self.path) {
            Ok(()) => self.owned = !self.shared,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(self.fail(&format!("mkdir {}", self.path.display()), error)),
        }
        self.add(&self.path, pid)?;
        let Some(monitoring) = &self.monitoring else { return Ok(()) };
        match fs::create_dir(monitoring) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(self.fail(&format!("mkdir {}", monitoring.display()), error))
            }
            _ => self.add(monitoring, pid),
        }
    }

    /// Moves another process of the container to the group.
    ///
    /// # Errors
    ///
    /// [`Error::Resctrl`] when the kernel refuses.
    pub(crate) fn add_process(&self, pid: i32) -> Result<(), Error> {
        self.add(&self.path, pid)?;
        self.monitoring.as_ref().map_or(Ok(()), |monitoring| self.add(monitoring, pid))
    }

    fn add(&self, directory: &Path, pid: i32) -> Result<(), Error> {
        fs::write(directory.join("tasks"), pid.to_string())
            .map_err(|error| self.fail(&format!("unable to add pid {pid}"), error))
    }

    /// Sets what the group may use.
    ///
    /// # Errors
    ///
    /// [`Error::Resctrl`] with the kernel's reason.
    pub(crate) fn set(&self, rdt: &IntelRdt) -> Result<(), Error> {
        let text = schemata(rdt);
        if text.is_empty() {
            return Ok(());
        }
        fs::write(self.path.join("schemata"), &text)
            .map_err(|error| self.fail(&format!("unable to write {text:?}"), error))
    }

    /// Takes away what was made for the container.
    ///
    /// # Errors
    ///
    /// [`Error::Resctrl`] when it stays.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        // The groups below a group go with it.
        let path = if self.owned { Some(&self.path) } else { self.monitoring.as_ref() };
        let Some(path) = path else { return Ok(()) };
        match fs::remove_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.fail(&format!("remove {}", path.display()), error))
            }
            _ => Ok(()),
        }
    }

    fn fail(&self, what: &dyn fmt::Display, error: io::Error) -> Error {
        let status = fs::read_to_string(self.root.join("info/last_cmd_status"));
        let status =
            status.map_or(String::new(), |status| format!(", last_cmd_status: {}", status.trim()));
        Error::Resctrl(format!("intelrdt: {what}: {}{status}", Cause(error)))
    }
}

/// What is written to `schemata`: later lines override earlier ones.
fn schemata(rdt: &IntelRdt) -> String {
    let lines = [&rdt.l3_cache_schema, &rdt.mem_bw_schema].into_iter().chain(&rdt.schemata);
    lines.filter(|line| !line.is_empty()).map(|line| format!("{line}\n")).collect()
}

/// The first mount of a resctrl in mountinfo.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo
        .lines()
        .find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            (right.split(' ').next() == Some("resctrl")).then(|| left.split(' ').nth(4))?
        })
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like the filesystem.
    fn fake() -> (tempfile::TempDir, Resctrl) {
        let directory = tempfile::tempdir().expect("temporary directory");
        fs::create_dir_all(directory.path().join("info/L3")).expect("make info");
        let root = directory.path().to_owned();
        (directory, Resctrl { root })
    }

    fn rdt(clos_id: &str, schema: &str, enable_monitoring: bool) -> IntelRdt {
        let schema = schema.to_owned();
        let clos_id = clos_id.to_owned();
        IntelRdt { clos_id, l3_cache_schema: schema, enable_monitoring, ..IntelRdt::default() }
    }

    fn id() -> ContainerId {
        "box".parse().expect("an id")
    }

    #[test]
    fn groups() {
        let (_directory, resctrl) = fake();
        let root = resctrl.root.clone();
        let cases = [
            ("own", rdt("", "", false), root.join("box"), None, false),
            ("named", rdt("gold", "L3:0=f", false), root.join("gold"), None, false),
            ("named, without limits", rdt("gold", "", false), root.join("gold"), None, true),
            ("root", rdt("/", "", true), root.clone(), Some(root.join("mon_groups/box")), true),
        ];
        for (case, rdt, path, monitoring, must_exist) in cases {
            let group = resctrl.group(&rdt, &id());
            let got = (group.path, group.monitoring, group.must_exist);
            assert_eq!(got, (path, monitoring, must_exist), "{case}");
        }
    }

    #[test]
    fn what_is_written() {
        let both = IntelRdt {
            l3_cache_schema: "L3:0=f".to_owned(),
            mem_bw_schema: "MB:0=20".to_owned(),
            schemata: vec!["L3:0=ff".to_owned(), String::new(), "L2:0=f".to_owned()],
            ..IntelRdt::default()
        };
        assert_eq!(schemata(&both), "L3:0=f\nMB:0=20\nL3:0=ff\nL2:0=f\n");
        assert_eq!(schemata(&IntelRdt::default()), "");
    }

    #[test]
    fn own_group_comes_and_goes() {
        let (_directory, resctrl) = fake();
        let rdt = rdt("", "L3:0=f", false);
        let mut group = resctrl.group(&rdt, &id());
        group.join(7).expect("join");
        group.set(&rdt).expect("set");
        let read = |name: &str| fs::read_to_string(group.path.join(name)).expect(name);
        assert_eq!((read("tasks"), read("schemata")), ("7".to_owned(), "L3:0=f\n".to_owned()));
        group.add_process(8).expect("add");
        assert_eq!(read("tasks"), "8");
        // The real filesystem's files go with their directory.
        for name in ["tasks", "schemata"] {
            fs::remove_file(group.path.join(name)).expect(name);
        }
        group.remove().expect("remove");
        assert!(!group.path.exists());
        group.remove().expect("nothing to remove");
    }

    #[test]
    fn shared_group_stays() {
        let (_directory, resctrl) = fake();
        let described = rdt("gold", "", true);
        let mut group = resctrl.group(&described, &id());
        let error = group.join(7).expect_err("no group").to_string();
        assert!(error.contains("clos dir not accessible (must be pre-created when"), "{error}");
        assert!(error.ends_with("no such file or directory"), "{error}");
        fs::create_dir_all(resctrl.root.join("gold/mon_groups")).expect("make group");
        group.join(7).expect("join");
        let monitoring = resctrl.root.join("gold/mon_groups/box");
        assert_eq!(fs::read_to_string(monitoring.join("tasks")).expect("tasks"), "7");
        fs::remove_file(monitoring.join("tasks")).expect("remove tasks");
        group.remove().expect("remove");
        assert!(!monitoring.exists());
        assert!(group.path.exists(), "others use it");
    }

    #[test]
    fn errors_have_the_kernel_s_reason() {
        let (_directory, resctrl) = fake();
        let status = resctrl.root.join("info/last_cmd_status");
        fs::write(status, "Mask 0x0 not in range\n").expect("write status");
        let rdt = rdt("", "L3:0=0", false);
        let group = resctrl.group(&rdt, &id());
        let error = group.set(&rdt).expect_err("no group").to_string();
        assert_eq!(
            error,
            "intelrdt: unable to write \"L3:0=0\\n\": no such file or directory, \
             last_cmd_status: Mask 0x0 not in range"
        );
    }

    #[test]
    fn where_it_is_mounted() {
        let text = "30 25 0:26 / /sys rw - sysfs sysfs rw\n31 30 0:27 / /mnt/r rw - resctrl r rw\n";
        assert_eq!(mount_point(text), Some(PathBuf::from("/mnt/r")));
        assert_eq!(mount_point("30 25 0:26 / /sys rw - sysfs sysfs rw\n"), None);
    }
}
