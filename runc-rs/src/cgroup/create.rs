//! Makes groups and sets their limits.

use std::{
    borrow::Cow,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, chownat},
    io::Errno,
    process::Uid,
};

use super::{
    Cgroup, Error, Group,
    devices::{DeviceSet, program::program},
    directory::{self, Directory},
    is_not_allowed,
    limits::{self, OnError, Write},
    path::ROOT,
};
use crate::spec::resources::LinuxResources;

impl Cgroup {
    /// Makes the groups, with the limits of `resources`. Those that systemd makes begin with a
    /// process: of them this only finds out what can be found out before; see [`start`](Self::start).
    ///
    /// Devices are restricted even without resources: to those that every container may use. On
    /// an error the groups that were made are removed again.
    ///
    /// # Errors
    ///
    /// - `NotEmpty`, `Frozen`: the group exists and is in use.
    /// - `Resources`, `Devices`: a limit makes no sense.
    /// - `NoController`: a limit is set for what the machine, or the caller, has not.
    /// - `File`, `Write`: the kernel refuses something.
    pub fn create(&self, resources: Option<&LinuxResources>) -> Result<(), Error> {
        let default = LinuxResources::default();
        let resources = resources.unwrap_or(&default);
        // Decided before anything is made.
        let set = DeviceSet::of_container(&resources.devices)?;
        if self.unit.is_some() {
            return self.check(resources);
        }
        let made = Made::default();
        if self.unified {
            self.create_unified(resources, &set, made)
        } else {
            self.create_legacy(resources, &set, made)
        }
    }

    /// Has systemd make the groups for the process `pid`, which is in them then, with the limits of
    /// `resources`; nothing where [`create`](Self::create) has made them.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create), and `Systemd` and `Unit`, after which there is no unit that is
    /// this container's.
    pub fn start(&self, pid: u32, resources: Option<&LinuxResources>) -> Result<(), Error> {
        let Some(unit) = &self.unit else { return Ok(()) };
        let default = LinuxResources::default();
        let resources = resources.unwrap_or(&default);
        let set = DeviceSet::of_container(&resources.devices)?;
        let limits = unit.start(pid, resources, &set, self.unified)?;
        // What systemd has made, systemd removes.
        let mut made = Made::default();
        if self.unified {
            let group = &self.groups[0];
            let fail = |source: io::Error| Error::File {
                operation: "make",
                path: group.path.clone(),
                source: source.into(),
            };
            make_unified(&group.path, &mut made).map_err(fail)?;
            self.limit_unified(&limits)?;
            self.restrict_unified(resources, &set)?;
        } else {
            for group in &self.groups {
                make_legacy(group, &mut made)?;
            }
            self.join_where_systemd_does_not(pid)?;
            self.limit_legacy(&limits)?;
            self.set_devices(&set, false)?;
        }
        made.keep();
        Ok(())
    }

    /// Gives the v2 group to a user, who may make groups in it then: the directory, and the files
    /// that the kernel says are safe to give, cgroups(7).
    ///
    /// # Errors
    ///
    /// - `File`: the kernel refuses.
    pub fn give_to(&self, owner: Option<u32>) -> Result<(), Error> {
        let (Some(owner), true) = (owner, self.unified) else { return Ok(()) };
        let group = &self.groups[0];
        if group.left_out.get() || owner == rustix::process::geteuid().as_raw() {
            return Ok(());
        }
        let directory = group.must_open()?;
        let owner = Some(Uid::from_raw(owner));
        let fail = |name: &str, error: Errno| directory.error("chown", name, error.into());
        chownat(directory, "", owner, None, AtFlags::EMPTY_PATH)
            .map_err(|error| fail("", error))?;
        let files = std::fs::read_to_string("/sys/kernel/cgroup/delegate");
        let files = files.as_deref().unwrap_or(DELEGATE_DEFAULT);
        for file in files.lines() {
            match chownat(directory, file, owner, None, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(fail(file, error)),
            }
        }
        Ok(())
    }

    /// Finds out what would go wrong before systemd makes the groups.
    fn check(&self, resources: &LinuxResources) -> Result<(), Error> {
        if self.exists() {
            self.check_unused()?;
        }
        if self.unified {
            limits::v2(resources).and(limits::unified(resources)).map_err(Error::Resources)?;
        } else {
            refuse_unified_keys(resources)?;
            for controller in CONTROLLERS {
                limits::v1(controller, resources).map_err(Error::Resources)?;
            }
        }
        Ok(())
    }

    /// Sets the limits of `resources`, and leaves everything else as it is.
    ///
    /// Device rules are not looked at: a running container keeps the devices that it has, as
    /// with runc.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create). Limits that came before the refused one stay set.
    pub fn apply(&self, resources: &LinuxResources) -> Result<(), Error> {
        let resources = &self.complete(resources);
        if self.unified {
            self.refuse_below_usage(resources)?;
        } else {
            refuse_unified_keys(resources)?;
        }
        let limits = match &self.unit {
            Some(unit) if self.unified => Cow::Owned(unit.set(resources, true)?),
            Some(unit) => Cow::Owned(self.while_frozen(|| unit.set(resources, false))?),
            None => Cow::Borrowed(resources),
        };
        if self.unified { self.limit_unified(&limits) } else { self.limit_legacy(&limits) }
    }

    /// Runs `change` while no process of the container does: systemd takes all devices away and
    /// gives them back, on v1, whatever it is that changes.
    fn while_frozen<T>(&self, change: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        if self.is_frozen().unwrap_or(true) {
            return change();
        }
        self.freeze()?;
        let result = change();
        self.thaw()?;
        result
    }

    /// Adds the quota that the group has to a period, and the period to a quota: on v2 and with
    /// systemd there is no setting one without the other.
    fn complete(&self, resources: &LinuxResources) -> LinuxResources {
        let mut resources = resources.clone();
        let Some(cpu) = &mut resources.cpu else { return resources };
        let quota = limits::set(cpu.quota);
        let period = cpu.period.filter(|period| *period != 0);
        if quota.is_some() == period.is_some() || !self.unified && self.unit.is_none() {
            return resources;
        }
        let Ok(directory) = self.controller("cpu") else { return resources };
        let number = |text: &str| text.trim_end().parse::<i64>().ok();
        let (old_quota, old_period) = if self.unified {
            let text = directory.read("cpu.max").unwrap_or_default();
            let mut words = text.split_whitespace();
            (words.next().and_then(number), words.next().and_then(number))
        } else {
            let read = |name| directory.read(name).ok().and_then(|text| number(&text));
            (read("cpu.cfs_quota_us"), read("cpu.cfs_period_us"))
        };
        if quota.is_none() {
            cpu.quota = old_quota.filter(|quota| *quota > 0);
        }
        if period.is_none() {
            cpu.period = old_period.and_then(|period| u64::try_from(period).ok());
        }
        resources
    }

    fn create_unified(
        &self,
        resources: &LinuxResources,
        set: &DeviceSet,
        mut made: Made,
    ) -> Result<(), Error> {
        let group = &self.groups[0];
        match make_unified(&group.path, &mut made) {
            Ok(true) => {}
            Ok(false) => self.check_unused()?,
            Err(source) if self.optional && is_not_allowed(&source) => {
                group.left_out.set(true);
                return if *resources == LinuxResources::default() || only_devices(resources) {
                    Ok(())
                } else {
                    Err(Error::File {
                        operation: "rootless needs no limits + no cgrouppath when no permission is \
                                    granted for cgroups: make",
                        path: group.path.clone(),
                        source: source.into(),
                    })
                };
            }
            Err(source) => {
                return Err(Error::File {
                    operation: "make",
                    path: group.path.clone(),
                    source: source.into(),
                });
            }
        }
        check_type(group.must_open()?, resources)?;
        self.limit_unified(resources)?;
        self.restrict_unified(resources, set)?;
        made.keep();
        Ok(())
    }

    fn restrict_unified(&self, resources: &LinuxResources, set: &DeviceSet) -> Result<(), Error> {
        let group = &self.groups[0];
        match restrict(group.must_open()?, set) {
            Err(source) if !self.rootless && !DeviceSet::may_be_skipped(&resources.devices) => {
                let operation = "attach device program to";
                Err(Error::File { operation, path: group.path.clone(), source: source.into() })
            }
            _ => Ok(()),
        }
    }

    fn create_legacy(
        &self,
        resources: &LinuxResources,
        set: &DeviceSet,
        mut made: Made,
    ) -> Result<(), Error> {
        let (mut devices_are_new, mut some_are_old) = (false, false);
        for group in &self.groups {
            match make_legacy(group, &mut made) {
                Ok(new) => {
                    some_are_old |= !new;
                    devices_are_new |= new && group.has("devices");
                }
                Err(error) => match error {
                    Error::File { source, .. } | Error::Write { source, .. }
                        if self.optional && is_not_allowed(&source) =>
                    {
                        group.left_out.set(true);
                    }
                    error => return Err(error),
                },
            }
        }
        if some_are_old {
            self.check_unused()?;
        }
        self.limit_legacy(resources)?;
        match self.set_devices(set, devices_are_new) {
            Err(_) if self.rootless => {}
            result => result?,
        }
        made.keep();
        Ok(())
    }

    /// Another container, or a frozen remainder of one, may not be joined.
    fn check_unused(&self) -> Result<(), Error> {
        let processes = self.pids(true)?.len();
        if processes > 0 {
            return Err(Error::NotEmpty { processes });
        }
        if self.is_frozen().unwrap_or(false) {
            return Err(Error::Frozen);
        }
        Ok(())
    }

    fn limit_unified(&self, resources: &LinuxResources) -> Result<(), Error> {
        let writes = limits::v2(resources).map_err(Error::Resources)?;
        let unified = limits::unified(resources).map_err(Error::Resources)?;
        if writes.is_empty() && unified.is_empty() {
            return Ok(());
        }
        self.refuse_below_usage(resources)?;
        let directory = self.controller("")?;
        write_all(directory, &writes)?;
        for write in &unified {
            directory
                .must_write(&write.file, &write.value)
                .map_err(|error| explain(error, write, directory))?;
        }
        Ok(())
    }

    fn refuse_below_usage(&self, resources: &LinuxResources) -> Result<(), Error> {
        let Some(memory) = &resources.memory else { return Ok(()) };
        match self.controller("")?.read("memory.current").ok().and_then(parse_number) {
            Some(usage) => limits::refuse_below_usage(memory, usage).map_err(Error::Resources),
            None => Ok(()),
        }
    }

    fn limit_legacy(&self, resources: &LinuxResources) -> Result<(), Error> {
        refuse_unified_keys(resources)?;
        for controller in CONTROLLERS {
            let writes = limits::v1(controller, resources).map_err(Error::Resources)?;
            if writes.is_empty() {
                continue;
            }
            let directory = self.controller(controller)?;
            write_all(directory, &writes).map_err(|error| in_use(error, directory))?;
        }
        Ok(())
    }

    fn set_devices(&self, set: &DeviceSet, new: bool) -> Result<(), Error> {
        let directory = self.controller("devices")?;
        let current = if new {
            None
        } else {
            let list = directory.must_read("devices.list")?;
            DeviceSet::parse(&list)
        };
        // A run of lines for one file is written through one descriptor.
        let mut file: Option<(&str, OwnedFd)> = None;
        for line in set.lines(current.as_ref()) {
            let open = match file.take() {
                Some(open) if open.0 == line.file => open,
                _ => (line.file, directory.must_open_to_write(line.file, &line.text)?),
            };
            directory.must_write_to(&open.1, line.file, &line.text)?;
            file = Some(open);
        }
        Ok(())
    }
}

fn refuse_unified_keys(resources: &LinuxResources) -> Result<(), Error> {
    if resources.unified.is_empty() {
        return Ok(());
    }
    let text = "invalid configuration: cannot use unified on cgroup v1";
    Err(Error::Resources(text.to_owned()))
}

/// What may be given away where the kernel does not say.
const DELEGATE_DEFAULT: &str = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads";

/// The v1 controllers with limits, in the order in which they are set.
const CONTROLLERS: [&str; 9] =
    ["cpuset", "memory", "cpu", "pids", "blkio", "hugetlb", "net_cls", "net_prio", "rdma"];

/// Directories that were made; removed again unless kept.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn add(&mut self, path: &Path) {
        self.0.push(path.to_owned());
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // Who reports the failure that brought us here cannot do more about this one.
            let _ = rustix::fs::rmdir(path);
        }
    }
}

/// Makes a directory and those above it; says whether it is new.
fn make_all(path: &Path, made: &mut Made) -> io::Result<bool> {
    let new = match directory::make(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().ok_or(error)?;
            make_all(parent, made)?;
            directory::make(path)?
        }
        result => result?,
    };
    if new {
        made.add(path);
    }
    Ok(new)
}

fn make_legacy(group: &Group, made: &mut Made) -> Result<bool, Error> {
    let error = |operation, source: io::Error| Error::File {
        operation,
        path: group.path.clone(),
        source: source.into(),
    };
    if !group.has("cpuset") {
        let new = make_all(&group.path, made).map_err(|source| error("make", source))?;
        group.must_open()?;
        return Ok(new);
    }
    let mut missing = Vec::new();
    let mut path = group.path.as_path();
    // The deepest group that is there.
    let mut parent = loop {
        match Directory::open(path) {
            Ok(directory) => break directory,
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                let (above, name) =
                    path.parent().zip(path.file_name()).ok_or_else(|| error("make", source))?;
                missing.push(name);
                path = above;
            }
            Err(source) => return Err(error("open", source)),
        }
    };
    let new = !missing.is_empty();
    fill_cpuset(&parent)?;
    for name in missing.into_iter().rev() {
        if parent.make_child(name).map_err(|source| error("make", source))? {
            made.add(&parent.path().join(name));
        }
        let child = parent.open_child(name).map_err(|source| error("open", source))?;
        inherit_cpuset(&parent, &child)?;
        parent = child;
    }
    let _ = group.directory.set(parent);
    Ok(new)
}

/// Gives a cpuset that somebody made and left empty what those above it have.
fn fill_cpuset(group: &Directory) -> Result<(), Error> {
    if !group.must_read("cpuset.cpus")?.trim_end().is_empty() {
        return Ok(());
    }
    // The topmost one is never empty, so this ends.
    let Some(above) = group.path().parent() else { return Ok(()) };
    let parent = Directory::open(above).map_err(|source| Error::File {
        operation: "open",
        path: above.to_owned(),
        source: source.into(),
    })?;
    fill_cpuset(&parent)?;
    inherit_cpuset(&parent, group)
}

/// Gives a new cpuset its parent's CPUs and memory nodes: without any it cannot be joined.
fn inherit_cpuset(parent: &Directory, child: &Directory) -> Result<(), Error> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let list = parent.must_read(file)?;
        child.must_write(file, list.trim_end())?;
    }
    Ok(())
}

/// Makes a v2 group, in groups whose controllers are all switched on; says whether it is new.
fn make_unified(path: &Path, made: &mut Made) -> io::Result<bool> {
    let root = Directory::open(Path::new(ROOT))?;
    let available = root.read("cgroup.controllers")?;
    let parent = path.parent().unwrap_or(path);
    let ready = Directory::open(parent).and_then(|parent| has_all(&parent, &available));
    if !ready.unwrap_or(false) {
        enable(root, path, &available, made)?;
    }
    let new = directory::make(path)?;
    if new {
        made.add(path);
    }
    Ok(new)
}

fn has_all(group: &Directory, available: &str) -> io::Result<bool> {
    let enabled = group.read("cgroup.subtree_control")?;
    let enabled: Vec<&str> = enabled.split_whitespace().collect();
    Ok(available.split_whitespace().all(|controller| enabled.contains(&controller)))
}

/// Switches the controllers on in every group from the root to `path`'s parent, and makes those
/// that are missing.
fn enable(root: Directory, path: &Path, available: &str, made: &mut Made) -> io::Result<()> {
    let below = path.strip_prefix(root.path()).unwrap_or(Path::new("")).to_owned();
    let names: Vec<_> = below.iter().collect();
    let all: Vec<String> = available.split_whitespace().map(|name| format!("+{name}")).collect();
    let mut group = root;
    for (depth, name) in names.iter().enumerate() {
        if group.write("cgroup.subtree_control", &all.join(" ")).is_err() {
            // One of them may be refused, which shall not cost the others. Whoever needs it
            // will miss its files.
            for controller in &all {
                let _ = group.write("cgroup.subtree_control", controller);
            }
        }
        if depth + 1 == names.len() {
            break;
        }
        if group.make_child(name)? {
            made.add(&group.path().join(name));
        }
        group = group.open_child(name)?;
    }
    Ok(())
}

/// Threaded groups, and those below groups with processes, cannot limit what is per process.
fn check_type(group: &Directory, resources: &LinuxResources) -> Result<(), Error> {
    let kind = group.read("cgroup.type").unwrap_or_default();
    let kind = kind.trim_end();
    if kind == "domain" || kind.is_empty() {
        return Ok(());
    }
    let limits_processes = resources.memory.is_some()
        || resources.block_io.is_some()
        || resources.cpu.is_some()
        || !resources.hugepage_limits.is_empty();
    if limits_processes {
        let path = group.path().display();
        let state = if kind == "domain invalid" { "an invalid state" } else { kind };
        return Err(Error::Resources(format!(
            "cannot enter cgroupv2 \"{path}\" with domain controllers -- it is in {state}"
        )));
    }
    if kind == "domain invalid" {
        // The only state in which it can have processes, though not all controllers.
        let _ = group.write("cgroup.type", "threaded");
    }
    Ok(())
}

fn only_devices(resources: &LinuxResources) -> bool {
    let without = LinuxResources { devices: Vec::new(), ..resources.clone() };
    without == LinuxResources::default()
}

/// Attaches the program for `set`, in the place of an older one.
fn restrict(group: &Directory, set: &DeviceSet) -> io::Result<()> {
    let program = sys::bpf::load_device_program(&program(set))?;
    let old = sys::bpf::device_programs(group.as_fd())?;
    let replaced = if let [only] = old.as_slice() { Some(only.as_fd()) } else { None };
    sys::bpf::attach_device_program(group.as_fd(), program.as_fd(), replaced)?;
    if replaced.is_none() {
        for old in &old {
            sys::bpf::detach_device_program(group.as_fd(), old.as_fd())?;
        }
    }
    Ok(())
}

/// Writes values in order; those that are put off come last.
fn write_all(directory: &Directory, writes: &[Write]) -> Result<(), Error> {
    let mut deferred = Vec::new();
    for write in writes {
        let Err(source) = directory.write(&write.file, &write.value) else { continue };
        let missing = source.kind() == io::ErrorKind::NotFound;
        let invalid = source.raw_os_error() == Some(libc::EINVAL);
        match &write.on_error {
            OnError::SkipMissing | OnError::DeferOrSkipMissing if missing => {}
            OnError::Defer | OnError::DeferOrSkipMissing if invalid => deferred.push(write),
            OnError::Else(other) if missing => directory.must_write(&other.file, &other.value)?,
            _ => {
                return Err(Error::Write {
                    value: write.value.clone(),
                    path: directory.path().join(&*write.file),
                    source: source.into(),
                });
            }
        }
    }
    for write in deferred {
        directory.must_write(&write.file, &write.value)?;
    }
    Ok(())
}

/// Says more about a memory limit that is less than what is in use.
fn in_use(error: Error, directory: &Directory) -> Error {
    let Error::Write { value, path, source } = &error else { return error };
    if source.raw_os_error() != Some(libc::EBUSY) || !path.ends_with("memory.limit_in_bytes") {
        return error;
    }
    let number = |file| directory.read(file).ok().and_then(parse_number);
    match (number("memory.usage_in_bytes"), number("memory.max_usage_in_bytes")) {
        (Some(usage), Some(peak)) => Error::Resources(format!(
            "unable to set memory limit to {value} (current usage: {usage}, peak usage: {peak})"
        )),
        _ => error,
    }
}

/// Says more about a `unified` key of a controller that the group has not.
fn explain(error: Error, write: &Write, directory: &Directory) -> Error {
    let Error::Write { source, .. } = &error else { return error };
    if source.kind() != io::ErrorKind::NotFound && !is_not_allowed(source) {
        return error;
    }
    let controller = write.file.split('.').next().unwrap_or_default();
    let available = directory.read("cgroup.controllers").unwrap_or_default();
    if controller == "cgroup" || available.split_whitespace().any(|name| name == controller) {
        return error;
    }
    Error::Resources(format!(
        "unified resource {:?} can't be set: controller {controller:?} not available",
        write.file
    ))
}

fn parse_number(text: String) -> Option<u64> {
    text.trim_end().parse().ok()
}
