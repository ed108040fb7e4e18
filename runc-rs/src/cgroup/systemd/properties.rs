//! Which properties a container's unit has.
//!
//! systemd knows of some limits only; all of them are also written to the group's files, after
//! systemd has. What it knows it must be told, or it would set its own value again with the next
//! change or reload.
//!
//! Sources: `systemd.resource-control(5)`; the conversions are runc's (opencontainers/cgroups,
//! `systemd`).

use std::collections::BTreeMap;

use super::{text, wire::Value};
use crate::{
    cgroup::{devices::DeviceSet, limits},
    spec::resources::{LinuxCpu, LinuxMemory, LinuxResources},
};

/// A property's name and value.
pub(super) type Property = (String, Value);

/// What the machine's systemd can do, by version.
const CPU_IDLE: u32 = 252;
const OOM_POLICY: u32 = 253;
const CPUSET: u32 = 244;
const CPU_PERIOD: u32 = 242;

/// The kernel's own period, in microseconds.
const PERIOD_DEFAULT: u64 = 100_000;

/// The step in which systemd keeps a quota, in microseconds a second: a hundredth of a CPU.
const QUOTA_STEP: u64 = 10_000;

const MICROSECONDS: u64 = 1_000_000;

/// "No limit".
const INFINITY: u64 = u64::MAX;

/// What a unit is to be told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) properties: Vec<Property>,
    /// The quota that fits the properties, where it is not the wanted one.
    pub(super) quota: Option<i64>,
    pub(super) warnings: Vec<String>,
}

impl Plan {
    fn add(&mut self, name: &str, value: Value) {
        self.properties.push((name.to_owned(), value));
    }
}

/// Whether the plan for `resources` depends on systemd's version.
pub(super) fn needs_version(resources: &LinuxResources) -> bool {
    let cpu = resources.cpu.as_ref().is_some_and(|cpu| *cpu != LinuxCpu::default());
    cpu || !resources.unified.is_empty()
}

/// The properties of resources on v2.
pub(super) fn v2(resources: &LinuxResources, version: u32) -> Result<Plan, String> {
    let mut plan = Plan::default();
    if let Some(memory) = &resources.memory {
        self::memory(memory, &mut plan)?;
    }
    if let Some(cpu) = &resources.cpu {
        let idle = cpu.idle == Some(1) && version >= CPU_IDLE;
        let weight = cpu.shares.filter(|shares| *shares != 0).map(limits::weight);
        cpu_weight(idle, weight, "CPUWeight", &mut plan);
        plan.quota = quota(cpu.quota.unwrap_or(0), cpu.period.unwrap_or(0), version, &mut plan);
    }
    tasks(resources, &mut plan);
    cpuset(resources, version, &mut plan)?;
    unified(&resources.unified, version, &mut plan)?;
    Ok(plan)
}

/// The properties of resources on v1.
pub(super) fn v1(resources: &LinuxResources, version: u32) -> Result<Plan, String> {
    let mut plan = Plan::default();
    if let Some(limit) = resources.memory.as_ref().and_then(|memory| limits::set(memory.limit)) {
        plan.add("MemoryLimit", Value::Uint64(limit.cast_unsigned()));
    }
    if let Some(cpu) = &resources.cpu {
        if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
            plan.add("CPUShares", Value::Uint64(shares));
        }
        plan.quota = quota(cpu.quota.unwrap_or(0), cpu.period.unwrap_or(0), version, &mut plan);
    }
    let io = resources.block_io.as_ref();
    if let Some(weight) = io.and_then(|io| io.weight).filter(|weight| *weight != 0) {
        plan.add("BlockIOWeight", Value::Uint64(weight.into()));
    }
    tasks(resources, &mut plan);
    cpuset(resources, version, &mut plan)?;
    Ok(plan)
}

/// What can only be set when the unit is started.
pub(super) fn at_start(resources: &LinuxResources, version: u32) -> Result<Vec<Property>, String> {
    let Some(value) = resources.unified.get("memory.oom.group") else { return Ok(Vec::new()) };
    let number = unsigned("memory.oom.group", value)?;
    let policy = match number {
        0 => "continue",
        1 => "kill",
        _ => return Ok(Vec::new()),
    };
    if version < OOM_POLICY {
        return Ok(Vec::new());
    }
    Ok(vec![("OOMPolicy".to_owned(), Value::text(policy))])
}

/// The properties for device rules.
///
/// systemd knows no exceptions from "everything": where there are some, it allows everything, and
/// the rules hold by what the group itself gets. An empty list comes first, because a list is
/// added to the one that is there.
pub(super) fn devices(set: &DeviceSet) -> Vec<Property> {
    let entries = |list: Vec<Value>| Value::Array("(ss)".to_owned(), list);
    let none = ("DeviceAllow".to_owned(), entries(Vec::new()));
    let policy = |name: &str| ("DevicePolicy".to_owned(), Value::text(name));
    let Some(allowed) = set.allowed() else { return vec![none, policy("auto")] };
    let allowed: Vec<Value> = allowed
        .into_iter()
        .map(|(path, access)| Value::Struct(vec![Value::text(path), Value::text(access)]))
        .collect();
    let list = ("DeviceAllow".to_owned(), entries(allowed));
    vec![none, policy("strict"), list]
}

/// The properties that annotations `org.systemd.property.<name>` give.
///
/// # Errors
///
/// The annotation, and what is wrong with it.
pub(super) fn annotations(all: &BTreeMap<String, String>) -> Result<Vec<Property>, String> {
    let mut properties = Vec::new();
    for (key, value) in all {
        let Some(name) = key.strip_prefix("org.systemd.property.") else { continue };
        let wrong_name = |what| format!("annotation {key} name incorrect: {what}");
        let wrong = |what: &str| format!("annotation {key}={value} value parse error: {what}");
        if name.len() < 3 {
            return Err(wrong_name("too short"));
        }
        if !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(wrong_name("contains non-alphabetic character"));
        }
        let parsed = text::parse(value).map_err(|what| wrong(&what))?;
        // Documented as seconds, and taken in microseconds.
        match name.strip_suffix("Sec").filter(|it| it.ends_with(|c: char| c.is_ascii_lowercase())) {
            Some(stem) => {
                let value = microseconds(&parsed).ok_or_else(|| wrong("not a number"))?;
                properties.push((format!("{stem}USec"), value));
            }
            None => properties.push((name.to_owned(), parsed)),
        }
    }
    Ok(properties)
}

fn microseconds(value: &Value) -> Option<Value> {
    let seconds = match value {
        Value::Byte(number) => u64::from(*number),
        Value::Uint16(number) => u64::from(*number),
        Value::Uint32(number) => u64::from(*number),
        Value::Uint64(number) => *number,
        Value::Int16(number) => u64::try_from(*number).ok()?,
        Value::Int32(number) => u64::try_from(*number).ok()?,
        Value::Int64(number) => u64::try_from(*number).ok()?,
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        Value::Double(number) => {
            return Some(Value::Uint64((number * MICROSECONDS as f64) as u64));
        }
        _ => return None,
    };
    Some(Value::Uint64(seconds.saturating_mul(MICROSECONDS)))
}

fn memory(memory: &LinuxMemory, plan: &mut Plan) -> Result<(), String> {
    if let Some(limit) = limits::set(memory.limit) {
        plan.add("MemoryMax", Value::Uint64(limit.cast_unsigned()));
    }
    if let Some(reservation) = limits::set(memory.reservation) {
        plan.add("MemoryLow", Value::Uint64(reservation.cast_unsigned()));
    }
    if let Some(swap) = limits::swap(memory.swap.unwrap_or(0), memory.limit.unwrap_or(0))? {
        plan.add("MemorySwapMax", Value::Uint64(swap.cast_unsigned()));
    }
    Ok(())
}

/// A weight of 0 is systemd's way to say `cpu.idle`.
fn cpu_weight(idle: bool, weight: Option<u64>, name: &str, plan: &mut Plan) {
    match (idle, weight) {
        (true, weight) => {
            if weight.is_some() {
                plan.warnings.push(format!(
                    "unable to apply both {name} and cpu.idle to systemd, ignoring {name}"
                ));
            }
            plan.add("CPUWeight", Value::Uint64(0));
        }
        (false, Some(weight)) => plan.add("CPUWeight", Value::Uint64(weight)),
        (false, None) => {}
    }
}

/// Adds quota and period; returns the quota that systemd will make of it.
fn quota(quota: i64, period: u64, version: u32, plan: &mut Plan) -> Option<i64> {
    if period != 0 && version >= CPU_PERIOD {
        plan.add("CPUQuotaPeriodUSec", Value::Uint64(period));
    }
    if quota == 0 && period == 0 {
        return None;
    }
    let Some(wanted) = u64::try_from(quota).ok().filter(|quota| *quota > 0) else {
        plan.add("CPUQuotaPerSecUSec", Value::Uint64(INFINITY));
        return None;
    };
    let period = u128::from(if period == 0 { PERIOD_DEFAULT } else { period });
    let exact = u128::from(wanted) * u128::from(MICROSECONDS) / period;
    let rounded = exact.next_multiple_of(QUOTA_STEP.into());
    plan.add("CPUQuotaPerSecUSec", Value::Uint64(u64::try_from(rounded).unwrap_or(INFINITY)));
    if rounded == exact {
        return None;
    }
    i64::try_from(rounded * period / u128::from(MICROSECONDS)).ok()
}

fn tasks(resources: &LinuxResources, plan: &mut Plan) {
    let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) else { return };
    let limit = match limit {
        ..0 => INFINITY,
        0 => 1,
        _ => limit.cast_unsigned(),
    };
    plan.add("TasksMax", Value::Uint64(limit));
}

fn cpuset(resources: &LinuxResources, version: u32, plan: &mut Plan) -> Result<(), String> {
    let Some(cpu) = &resources.cpu else { return Ok(()) };
    for (field, property, list) in
        [("Cpus", "AllowedCPUs", &cpu.cpus), ("Mems", "AllowedMemoryNodes", &cpu.mems)]
    {
        if list.is_empty() {
            continue;
        }
        let bits = bits(list)
            .map_err(|what| format!("resources.CPU.{field}={list:?} conversion error: {what}"))?;
        if version >= CPUSET {
            plan.add(property, bits);
        }
    }
    Ok(())
}

/// The most CPUs or memory nodes that a list may name.
const LIST_MAX: usize = 1 << 16;

/// A list such as `0,2-3` as bits, the lowest first.
fn bits(list: &str) -> Result<Value, String> {
    let number = |text: &str| {
        let number: usize = text.parse().map_err(|_| format!("invalid number {text:?}"))?;
        if number < LIST_MAX { Ok(number) } else { Err(format!("{number} is too large")) }
    };
    let mut bytes: Vec<u8> = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("invalid range: {range}"));
        }
        for at in first..=last {
            if bytes.len() <= at / 8 {
                bytes.resize(at / 8 + 1, 0);
            }
            bytes[at / 8] |= 1 << (at % 8);
        }
    }
    if bytes.is_empty() {
        return Err("empty value".to_owned());
    }
    Ok(Value::Array("y".to_owned(), bytes.into_iter().map(Value::Byte).collect()))
}

fn unsigned(key: &str, text: &str) -> Result<u64, String> {
    let text = text.trim();
    text.parse().map_err(|_| {
        format!("unified resource {key:?} value conversion error: invalid number {text:?}")
    })
}

/// The properties of those `unified` keys that systemd has some for; the others are only written.
fn unified(all: &BTreeMap<String, String>, version: u32, plan: &mut Plan) -> Result<(), String> {
    let idle = |value: Option<&String>| {
        value.is_some_and(|value| value.trim() == "1") && version >= CPU_IDLE
    };
    let weight = all.get("cpu.weight").map(|text| unsigned("cpu.weight", text)).transpose()?;
    cpu_weight(idle(all.get("cpu.idle")), weight, "cpu.weight", plan);
    for (key, value) in all {
        let value = value.trim();
        let limit = || if value == "max" { Ok(INFINITY) } else { unsigned(key, value) };
        let set = || {
            bits(value).map_err(|what| {
                format!("unified resource {key:?}={value:?} conversion error: {what}")
            })
        };
        match key.as_str() {
            "cpu.max" => {
                let (quota, period) = cpu_max(key, value)?;
                self::quota(quota, period, version, plan);
            }
            "cpuset.cpus" if version >= CPUSET => plan.add("AllowedCPUs", set()?),
            "cpuset.mems" if version >= CPUSET => plan.add("AllowedMemoryNodes", set()?),
            "memory.high" => plan.add("MemoryHigh", Value::Uint64(limit()?)),
            "memory.low" => plan.add("MemoryLow", Value::Uint64(limit()?)),
            "memory.min" => plan.add("MemoryMin", Value::Uint64(limit()?)),
            "memory.max" => plan.add("MemoryMax", Value::Uint64(limit()?)),
            "memory.swap.max" => plan.add("MemorySwapMax", Value::Uint64(limit()?)),
            "pids.max" => plan.add("TasksMax", Value::Uint64(limit()?.max(1))),
            _ => {}
        }
    }
    Ok(())
}

fn cpu_max(key: &str, value: &str) -> Result<(i64, u64), String> {
    let words: Vec<&str> = value.split_whitespace().collect();
    let (quota, period) = match words.as_slice() {
        [quota] => (*quota, None),
        [quota, period] => (*quota, Some(*period)),
        _ => return Err(format!("unified resource {key:?} value invalid: {value:?}")),
    };
    let period = period.map(|period| unsigned(key, period)).transpose()?;
    let quota = if quota == "max" { 0 } else { unsigned(key, quota)? };
    let quota =
        i64::try_from(quota).map_err(|_| format!("unified resource {key:?} is too large"))?;
    Ok((quota, period.unwrap_or(PERIOD_DEFAULT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).expect("is valid")
    }

    fn show(properties: &[Property]) -> Vec<String> {
        let show = |(name, value): &Property| match value {
            Value::Uint64(INFINITY) => format!("{name}=infinity"),
            Value::Uint64(number) => format!("{name}={number}"),
            Value::Text(text) => format!("{name}={text}"),
            Value::Array(_, values) => {
                let each = values.iter().map(|value| match value {
                    Value::Byte(byte) => format!("{byte}"),
                    Value::Struct(fields) => format!("{fields:?}"),
                    other => format!("{other:?}"),
                });
                format!("{name}=[{}]", each.collect::<Vec<_>>().join(" "))
            }
            other => format!("{name}={other:?}"),
        };
        properties.iter().map(show).collect()
    }

    #[test]
    fn many_cpus() {
        let Ok(Value::Array(kind, bytes)) = bits("0,1024-1025,8191") else { panic!("no bits") };
        let set = |&(_, byte): &(usize, &Value)| *byte != Value::Byte(0);
        let found: Vec<_> = bytes.iter().enumerate().filter(set).collect();
        let want = [(0, &Value::Byte(1)), (128, &Value::Byte(3)), (1023, &Value::Byte(128))];
        assert_eq!((kind.as_str(), bytes.len(), found), ("y", 1024, want.to_vec()));
    }

    #[test]
    fn limits_on_v2() {
        let cases: [(&str, &[&str]); 12] = [
            (
                r#"{"memory":{"limit":100,"swap":300,"reservation":50}}"#,
                &["MemoryMax=100", "MemoryLow=50", "MemorySwapMax=200"],
            ),
            (r#"{"memory":{"limit":-1}}"#, &["MemoryMax=infinity", "MemorySwapMax=infinity"]),
            (r#"{"cpu":{"shares":1024}}"#, &["CPUWeight=100"]),
            (r#"{"cpu":{"idle":1}}"#, &["CPUWeight=0"]),
            (r#"{"cpu":{"quota":5000}}"#, &["CPUQuotaPerSecUSec=50000"]),
            (
                r#"{"cpu":{"quota":-1,"period":50000}}"#,
                &["CPUQuotaPeriodUSec=50000", "CPUQuotaPerSecUSec=infinity"],
            ),
            (r#"{"pids":{"limit":0}}"#, &["TasksMax=1"]),
            (r#"{"pids":{"limit":-1}}"#, &["TasksMax=infinity"]),
            (
                r#"{"cpu":{"cpus":"0,8-9","mems":"1"}}"#,
                &["AllowedCPUs=[1 3]", "AllowedMemoryNodes=[2]"],
            ),
            (
                r#"{"unified":{"cpu.max":"max 50000","cpu.weight":"42","memory.high":"max",
                    "pids.max":"0","cpuset.cpus":"1","io.max":"8:0 rbps=1"}}"#,
                &[
                    "CPUWeight=42",
                    "CPUQuotaPeriodUSec=50000",
                    "CPUQuotaPerSecUSec=infinity",
                    "AllowedCPUs=[2]",
                    "MemoryHigh=infinity",
                    "TasksMax=1",
                ],
            ),
            (
                r#"{"unified":{"cpu.max":"10000 100000"}}"#,
                &["CPUQuotaPeriodUSec=100000", "CPUQuotaPerSecUSec=100000"],
            ),
            (r#"{"blockIO":{"weight":100},"hugepageLimits":[{"pageSize":"2MB","limit":1}]}"#, &[]),
        ];
        for (json, want) in cases {
            let plan = v2(&resources(json), 252).expect(json);
            assert_eq!(show(&plan.properties), want, "{json}");
            assert_eq!((plan.quota, plan.warnings), (None, Vec::new()), "{json}");
        }
    }

    #[test]
    fn limits_on_v1() {
        let json = r#"{"memory":{"limit":100,"swap":300},"cpu":{"shares":7,"quota":1000},
            "blockIO":{"weight":500},"pids":{"limit":5}}"#;
        let plan = v1(&resources(json), 252).expect(json);
        let want =
            ["MemoryLimit=100", "CPUShares=7", "CPUQuotaPerSecUSec=10000", "BlockIOWeight=500"];
        assert_eq!(show(&plan.properties)[..4], want);
        assert_eq!(show(&plan.properties)[4..], ["TasksMax=5"]);
    }

    /// systemd rounds up, and the group's file must say the same.
    #[test]
    fn a_quota_is_rounded() {
        let plan = v2(&resources(r#"{"cpu":{"quota":3001,"period":100000}}"#), 252);
        let plan = plan.expect("is valid");
        let want = ["CPUQuotaPeriodUSec=100000", "CPUQuotaPerSecUSec=40000"];
        assert_eq!(show(&plan.properties), want);
        assert_eq!(plan.quota, Some(4000));
    }

    #[test]
    fn idle_beats_a_weight() {
        let cases = [
            (r#"{"cpu":{"idle":1,"shares":200}}"#, "CPUWeight"),
            (r#"{"unified":{"cpu.idle":"1","cpu.weight":"8"}}"#, "cpu.weight"),
        ];
        for (json, name) in cases {
            let plan = v2(&resources(json), 252).expect(json);
            assert_eq!(show(&plan.properties), ["CPUWeight=0"], "{json}");
            assert_eq!(plan.warnings.len(), 1, "{json}");
            assert!(plan.warnings[0].starts_with("unable to apply both"), "{:?}", plan.warnings);
            assert!(plan.warnings[0].ends_with(&format!("ignoring {name}")), "{:?}", plan.warnings);
            let old = v2(&resources(json), 251).expect(json);
            assert_ne!(show(&old.properties), ["CPUWeight=0"], "{json}: too old");
        }
    }

    #[test]
    fn refuses() {
        let cases = [
            (r#"{"cpu":{"cpus":"x"}}"#, "resources.CPU.Cpus=\"x\" conversion error"),
            (r#"{"cpu":{"mems":"3-1"}}"#, "invalid range: 3-1"),
            (r#"{"cpu":{"cpus":"0-99999999"}}"#, "is too large"),
            (r#"{"unified":{"cpuset.cpus":","}}"#, "empty value"),
            (r#"{"unified":{"cpu.max":"1 2 3"}}"#, "unified resource \"cpu.max\" value invalid"),
            (r#"{"unified":{"memory.max":"many"}}"#, "\"memory.max\" value conversion error"),
            (r#"{"memory":{"swap":5}}"#, "unable to set swap limit without memory limit"),
        ];
        for (json, want) in cases {
            let refusal = v2(&resources(json), 252).expect_err(json);
            assert!(refusal.contains(want), "{json}: {refusal}");
        }
    }

    #[test]
    fn from_annotations() {
        let of = |key: &str, value: &str| {
            annotations(&BTreeMap::from([(key.to_owned(), value.to_owned())]))
        };
        let property = |name: &str, value| Ok(vec![(name.to_owned(), value)]);
        let cases = [
            (
                "org.systemd.property.CollectMode",
                "'inactive'",
                property("CollectMode", Value::text("inactive")),
            ),
            (
                "org.systemd.property.TimeoutStopUSec",
                "uint64 5",
                property("TimeoutStopUSec", Value::Uint64(5)),
            ),
            (
                "org.systemd.property.TimeoutStopSec",
                "7",
                property("TimeoutStopUSec", Value::Uint64(7_000_000)),
            ),
            (
                "org.systemd.property.RuntimeMaxSec",
                "0.5",
                property("RuntimeMaxUSec", Value::Uint64(500_000)),
            ),
            ("org.example", "x", Ok(Vec::new())),
        ];
        for (key, value, want) in cases {
            assert_eq!(of(key, value), want, "{key}={value}");
        }
        let refusals = [
            ("org.systemd.property.X", "1", "name incorrect: too short"),
            ("org.systemd.property.A-B", "1", "name incorrect: contains non-alphabetic character"),
            ("org.systemd.property.Abc", "'", "value parse error: text does not end"),
            ("org.systemd.property.WaitSec", "'x'", "value parse error: not a number"),
        ];
        for (key, value, want) in refusals {
            let refusal = of(key, value).expect_err(key);
            assert!(refusal.contains(want), "{key}={value}: {refusal}");
        }
    }

    #[test]
    fn device_rules() {
        let of = |rules: &str| {
            let resources = resources(&format!(r#"{{"devices":{rules}}}"#));
            show(&devices(&DeviceSet::of_container(&resources.devices).expect(rules)))
        };
        let all = of(r#"[{"allow":true,"access":"rwm"}]"#);
        assert_eq!(all, ["DeviceAllow=[]", "DevicePolicy=auto"]);
        let entry = |path: &str, access: &str| {
            format!("{:?}", vec![Value::text(path), Value::text(access)])
        };
        let got = of(r#"[{"allow":false,"access":"rwm"},
            {"allow":true,"type":"c","major":1,"minor":4,"access":"rw"},
            {"allow":true,"type":"c","major":136,"access":"rwm"},
            {"allow":true,"type":"b","access":"m"},
            {"allow":true,"type":"c","minor":7,"access":"r"}]"#);
        let want = [entry("block-*", "m"), entry("/dev/char/1:4", "rw"), entry("char-136", "rwm")];
        assert_eq!(got[..2], ["DeviceAllow=[]", "DevicePolicy=strict"]);
        for entry in &want {
            assert!(got[2].contains(entry), "{entry} in {}", got[2]);
        }
        assert!(!got[2].contains("Text(\"r\")"), "systemd cannot have any major: {}", got[2]);
    }
}
