//! Makes groups and sets their limits.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
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
    /// Makes the groups, with the limits of `resources`.
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
        let made = Made::default();
        if self.unified {
            self.create_unified(resources, &set, made)
        } else {
            self.create_legacy(resources, &set, made)
        }
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
        if self.unified { self.limit_unified(resources) } else { self.limit_legacy(resources) }
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
                        source,
                    })
                };
            }
            Err(source) => {
                return Err(Error::File { operation: "make", path: group.path.clone(), source });
            }
        }
        check_type(group.must_open()?, resources)?;
        self.limit_unified(resources)?;
        let result = restrict(group.must_open()?, set);
        if let Err(source) = result
            && !self.rootless
            && !DeviceSet::may_be_skipped(&resources.devices)
        {
            return Err(Error::File {
                operation: "attach device program to",
                path: group.path.clone(),
                source,
            });
        }
        made.keep();
        Ok(())
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
        let directory = self.controller("")?;
        if let Some(memory) = &resources.memory
            && let Some(usage) = directory.read("memory.current").ok().and_then(parse_number)
        {
            limits::refuse_below_usage(memory, usage).map_err(Error::Resources)?;
        }
        write_all(directory, &writes)?;
        for write in &unified {
            directory
                .must_write(&write.file, &write.value)
                .map_err(|error| explain(error, write, directory))?;
        }
        Ok(())
    }

    fn limit_legacy(&self, resources: &LinuxResources) -> Result<(), Error> {
        if !resources.unified.is_empty() {
            let text = "invalid configuration: cannot use unified on cgroup v1";
            return Err(Error::Resources(text.to_owned()));
        }
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
        for line in set.lines(current.as_ref()) {
            directory.must_write(line.file, &line.text)?;
        }
        Ok(())
    }
}

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
    let error = |operation, source| Error::File { operation, path: group.path.clone(), source };
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
                    source,
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
