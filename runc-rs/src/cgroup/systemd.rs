//! The systemd driver: a container's groups are those of a unit, which systemd makes.
//!
//! # Order
//!
//! A scope begins with a process, so the container's init is started before the unit and waits
//! meanwhile:
//!
//! ```text
//!  check: the groups are not in use, and all values make sense
//!  start: StartTransientUnit with the init, slice, delegation, limits; wait for the job
//!         controllers that systemd does not know; all limits, by files; devices; owner
//!  apply: SetUnitProperties, then all limits by files
//!  stop:  StopUnit, ResetFailedUnit; then what is left of the groups is removed by hand
//! ```
//!
//! The unit is delegated, so systemd changes nothing in it but what are properties of the unit. It
//! gets the limits with its start: thus they hold before the container runs anything, and are
//! there again after `systemctl daemon-reload`.

mod bus;
mod message;
mod name;
mod properties;
mod text;
mod wire;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use self::{
    bus::Bus,
    name::Place,
    properties::{Plan, Property},
    wire::Value,
};
use super::{Cgroup, Error as CgroupError, devices::DeviceSet};
use crate::{log, spec::resources::LinuxResources};

/// What systemd says of a unit that is not there.
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// What systemd says of a unit whose name is taken.
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

/// Where there is a directory if the machine runs systemd, sd_booted(3).
const BOOTED: &str = "/run/systemd/system";

/// Why systemd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum Error {
    /// The machine's first process is another one.
    #[error("systemd not running on this host, cannot use systemd cgroups manager")]
    NotBooted,
    /// A user's systemd cannot make groups of v1.
    #[error("cannot use rootless systemd cgroups manager on cgroup v1")]
    Rootless,
    /// The environment does not say where the user's bus is.
    #[error(
        "failed to connect to dbus (hint: for rootless containers, maybe you need to install \
         dbus-user-session package): could not detect DBUS_SESSION_BUS_ADDRESS from the \
         environment"
    )]
    NoUserBus,
    /// There is no bus where one should be.
    #[error("failed to connect to dbus: {address}")]
    Connect { address: String, source: io::Error },
    /// The connection broke.
    #[error("talk to systemd: {member}")]
    Talk { member: String, source: io::Error },
    /// An answer is not what systemd documents.
    #[error("unexpected answer to {0}")]
    Answer(String),
    /// systemd refused.
    #[error("{text}")]
    Refused { name: String, text: String },
    /// systemd did not answer in time.
    #[error("timeout waiting for systemd: {0}")]
    Timeout(String),
    /// systemd could not start the unit.
    #[error("error creating systemd unit `{unit}`: got `{result}`")]
    Job { unit: String, result: String },
    /// A slice or unit has a name that cannot be.
    #[error("invalid {kind} name: {name}")]
    Name { kind: &'static str, name: String },
}

/// A container's unit.
#[derive(Debug)]
pub(super) struct Unit {
    name: String,
    slice: String,
    /// Whether it is one of a user's systemd.
    user: bool,
    description: String,
    /// What annotations have it be.
    properties: Vec<Property>,
}

impl Unit {
    /// Decides which unit a container has, and where its group is below a hierarchy.
    pub(super) fn plan(
        cgroups_path: &str,
        id: &str,
        user: bool,
        annotations: &BTreeMap<String, String>,
    ) -> Result<(Self, PathBuf), CgroupError> {
        let place = Place::of(cgroups_path, id)
            .ok_or_else(|| CgroupError::SystemdPath(cgroups_path.to_owned()))?;
        let properties = properties::annotations(annotations).map_err(CgroupError::Resources)?;
        if !Path::new(BOOTED).is_dir() {
            return Err(Error::NotBooted.into());
        }
        let default = if user { "user.slice" } else { "system.slice" };
        let slice = place.slice.unwrap_or_else(|| default.to_owned());
        if !name::is_valid(&place.unit) {
            return Err(Error::Name { kind: "unit", name: place.unit }.into());
        }
        let Some(below) = name::slice_path(&slice) else {
            return Err(Error::Name { kind: "slice", name: slice }.into());
        };
        let mut path = PathBuf::from(below);
        if user {
            let own = Bus::connect(true)?.property("ControlGroup")?;
            path = Path::new(own.trim_start_matches('/')).join(path);
        }
        path.push(&place.unit);
        let description = format!("libcontainer container {id}");
        Ok((Self { name: place.unit, slice, user, description, properties }, path))
    }

    /// The unit of a container that exists, by the path of its group.
    pub(super) fn load(path: &Path, user: bool) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_owned();
        let (slice, description) = (String::new(), String::new());
        Some(Self { name, slice, user, description, properties: Vec::new() })
    }

    /// Whether it is one of a user's systemd, which may move processes where the user may not.
    pub(super) fn is_users(&self) -> bool {
        self.user
    }

    /// Starts the unit with the process `pid` in it and these limits.
    ///
    /// Returns the limits that are to be written to the group's files.
    pub(super) fn start(
        &self,
        pid: u32,
        resources: &LinuxResources,
        set: &DeviceSet,
        unified: bool,
    ) -> Result<LinuxResources, CgroupError> {
        let mut bus = Bus::connect(self.user)?;
        let version = version(&mut bus, resources);
        let plan = plan(resources, unified, version)?;
        let mut properties = self.basics(pid, unified);
        properties.extend(self.properties.iter().cloned());
        let more = properties::at_start(resources, version).map_err(CgroupError::Resources)?;
        properties.extend(more);
        properties.extend(properties::devices(set));
        let adjusted = announce(&plan, resources);
        properties.extend(plan.properties);
        self.start_with(&mut bus, &properties)?;
        Ok(adjusted)
    }

    fn start_with(&self, bus: &mut Bus, properties: &[Property]) -> Result<(), CgroupError> {
        let body = [
            Value::text(&self.name),
            Value::text("replace"),
            list(properties),
            Value::Array("(sa(sv))".to_owned(), Vec::new()),
        ];
        let mut result = bus.job("StartTransientUnit", &body);
        if let Err(Error::Refused { name, .. }) = &result
            && name == UNIT_EXISTS
        {
            // What a failed one has left, perhaps; then the second time works.
            self.reset(bus);
            result = bus.job("StartTransientUnit", &body);
        }
        let fail = |source| CgroupError::Unit { unit: self.name.clone(), source };
        match result.map_err(fail)? {
            done if done == "done" => Ok(()),
            result => {
                self.reset(bus);
                Err(fail(Error::Job { unit: self.name.clone(), result }))
            }
        }
    }

    /// The properties that every container's unit has.
    fn basics(&self, pid: u32, unified: bool) -> Vec<Property> {
        let property = |name: &str, value| (name.to_owned(), value);
        let mut all = vec![property("Description", Value::text(&self.description))];
        if name::is_slice(&self.name) {
            let wants = Value::Array("s".to_owned(), vec![Value::text(&self.slice)]);
            all.push(property("Wants", wants));
        } else {
            all.push(property("Slice", Value::text(&self.slice)));
            all.push(property("Delegate", Value::Bool(true)));
            let pids = Value::Array("u".to_owned(), vec![Value::Uint32(pid)]);
            all.push(property("PIDs", pids));
        }
        let io = if unified { "IOAccounting" } else { "BlockIOAccounting" };
        for accounting in ["MemoryAccounting", "CPUAccounting", io, "TasksAccounting"] {
            all.push(property(accounting, Value::Bool(true)));
        }
        all.push(property("DefaultDependencies", Value::Bool(false)));
        all
    }

    /// Changes the unit's limits; returns those that are to be written to the group's files.
    pub(super) fn set(
        &self,
        resources: &LinuxResources,
        unified: bool,
    ) -> Result<LinuxResources, CgroupError> {
        let mut bus = Bus::connect(self.user)?;
        let version = version(&mut bus, resources);
        let plan = plan(resources, unified, version)?;
        let adjusted = announce(&plan, resources);
        if !plan.properties.is_empty() {
            let body = [Value::text(&self.name), Value::Bool(true), list(&plan.properties)];
            bus.manager("SetUnitProperties", &body)
                .map_err(|source| CgroupError::UnitProperties { source })?;
        }
        Ok(adjusted)
    }

    /// Moves the process `pid` into the unit, or a group `below` it.
    pub(super) fn attach(&self, below: &str, pid: u32) -> Result<(), Error> {
        let body = [
            Value::text(&self.name),
            Value::text(format!("/{}", below.trim_matches('/'))),
            Value::Array("u".to_owned(), vec![Value::Uint32(pid)]),
        ];
        Bus::connect(self.user)?.manager("AttachProcessesToUnit", &body).map(drop)
    }

    /// Stops the unit, and has systemd forget that it failed.
    ///
    /// That there is none is no error: systemd drops a scope with its last process.
    pub(super) fn stop(&self) -> Result<(), Error> {
        let mut bus = Bus::connect(self.user)?;
        let body = [Value::text(&self.name), Value::text("replace")];
        let result = match bus.job("StopUnit", &body) {
            Err(Error::Refused { name, .. }) if name == NO_SUCH_UNIT => Ok(()),
            Ok(result) if result != "done" => {
                log::warn(&format!("error removing unit `{}`: got `{result}`", self.name));
                Ok(())
            }
            result => result.map(drop),
        };
        self.reset(&mut bus);
        result
    }

    fn reset(&self, bus: &mut Bus) {
        // A unit that has not failed has nothing to reset, which is an error that says nothing.
        let _ = bus.manager("ResetFailedUnit", &[Value::text(&self.name)]);
    }
}

impl Cgroup {
    /// Decides as [`plan`](Self::plan) does, for groups that systemd is to make.
    ///
    /// # Errors
    ///
    /// - `Layout`: the machine has no control groups that a container could use.
    /// - `SystemdPath`, `Resources`: the path or an annotation is not of the form that is needed.
    /// - `Systemd`: there is no systemd.
    pub fn plan_unit(
        cgroups_path: Option<&str>,
        id: &str,
        rootless: bool,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Self, CgroupError> {
        let path = cgroups_path.unwrap_or_default();
        let (unit, below) = Unit::plan(path, id, rootless, annotations)?;
        let mut cgroup = Self::at(&super::path::Inner::Absolute(below), rootless)?;
        if rootless && !cgroup.unified {
            return Err(Error::Rootless.into());
        }
        cgroup.unit = Some(unit);
        Ok(cgroup)
    }

    /// Makes the groups what they were for [`plan_unit`](Self::plan_unit): those of a unit.
    pub fn of_unit(mut self, rootless: bool) -> Self {
        let tracking = ["", "name=systemd"].into_iter().find_map(|name| self.group(name));
        self.unit = tracking.and_then(|group| Unit::load(&group.path, rootless));
        self
    }

    /// Whether systemd makes the groups, with the container's first process.
    pub fn begins_with_process(&self) -> bool {
        self.unit.is_some()
    }
}

/// The version of a systemd, if it matters; 0 if it does not say.
fn version(bus: &mut Bus, resources: &LinuxResources) -> u32 {
    if !properties::needs_version(resources) {
        return 0;
    }
    bus.property("Version").ok().and_then(|text| parse_version(&text)).unwrap_or(0)
}

/// Reads `252.39-1~deb12u2`, `v245.4-1.fc32` and the like.
fn parse_version(text: &str) -> Option<u32> {
    let text = text.trim_start_matches(['"', 'v']);
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

fn plan(resources: &LinuxResources, unified: bool, version: u32) -> Result<Plan, CgroupError> {
    let plan = if unified { properties::v2 } else { properties::v1 };
    plan(resources, version).map_err(CgroupError::Resources)
}

/// Says what a plan leaves out, and gives the limits with what it changes.
fn announce(plan: &Plan, resources: &LinuxResources) -> LinuxResources {
    for warning in &plan.warnings {
        log::warn(warning);
    }
    let mut adjusted = resources.clone();
    if let (Some(quota), Some(cpu)) = (plan.quota, &mut adjusted.cpu) {
        cpu.quota = Some(quota);
    }
    if plan.warnings.is_empty() {
        return adjusted;
    }
    // An idle group has no weight, and the kernel refuses to give it one.
    if let Some(cpu) = &mut adjusted.cpu {
        cpu.shares = None;
    }
    adjusted.unified.remove("cpu.weight");
    adjusted
}

fn list(properties: &[Property]) -> Value {
    let pair = |(name, value): &Property| {
        Value::Struct(vec![Value::text(name), Value::variant(value.clone())])
    };
    Value::Array("(sv)".to_owned(), properties.iter().map(pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let cases = [
            ("252.39-1~deb12u2", Some(252)),
            ("v245.4-1.fc32", Some(245)),
            ("\"249\"", Some(249)),
            ("", None),
            ("x", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse_version(text), want, "{text}");
        }
    }
}
