//! `update`: other limits for a container that exists.

use std::{fs::File, io, io::Read as _};

use super::flags::{ANYWHERE, Flag, Parsed, value};
use crate::{
    container::{Container, Status},
    create,
    error::Error,
    intel_rdt::Resctrl,
    settings::Settings,
    spec::resources::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources},
    spec::{IntelRdt, Place},
};

const FLAGS: [Flag; 19] = [
    value("resources", "r"),
    value("blkio-weight", ""),
    value("cpu-period", ""),
    value("cpu-quota", ""),
    value("cpu-burst", ""),
    value("cpu-share", ""),
    value("cpu-rt-period", ""),
    value("cpu-rt-runtime", ""),
    value("cpuset-cpus", ""),
    value("cpuset-mems", ""),
    value("cpu-idle", ""),
    value("kernel-memory", ""),
    value("kernel-memory-tcp", ""),
    value("memory", ""),
    value("memory-reservation", ""),
    value("memory-swap", ""),
    value("pids-limit", ""),
    value("l3-cache-schema", ""),
    value("mem-bw-schema", ""),
];

/// The most bytes of a description of limits.
const SIZE_MAX: u64 = 1 << 20;

pub(super) fn run(settings: &Settings, words: &[String]) -> Result<i32, Error> {
    let parsed = Parsed::new(words, &FLAGS, ANYWHERE)?;
    parsed.expect("update", 1, 1)?;
    let mut container = super::container(settings, &parsed)?;
    let shares = shares(&parsed, &container)?;
    let mut resources = match parsed.value("resources").filter(|path| !path.is_empty()) {
        Some(path) => read(path)?,
        None => from_flags(&parsed)?,
    };
    // The device rules of a running container are not part of what can be updated.
    resources.devices.clear();
    if container.status()? == Status::Stopped {
        return Err(Error::Status("container not running".to_owned()));
    }
    create::warn_of_kernel_memory(Some(&resources));
    container.cgroup().apply(&resources)?;
    match shares {
        Some(shares) => container.set_shares(shares).map(|()| 0),
        None => Ok(0),
    }
}

/// The shares of cache and memory bandwidth that the container is to have, if they change.
fn shares(parsed: &Parsed, container: &Container) -> Result<Option<IntelRdt>, Error> {
    let flag = |name| parsed.value(name).filter(|text| !text.is_empty()).map(str::to_owned);
    let (cache, bandwidth) = (flag("l3-cache-schema"), flag("mem-bw-schema"));
    let resctrl = Resctrl::find();
    let refuse = |text: &str| Err(Error::Resctrl(text.to_owned()));
    if cache.is_some() && !resctrl.as_ref().is_some_and(Resctrl::has_cache_allocation) {
        return refuse("Intel RDT/CAT: l3 cache schema is not enabled");
    }
    if bandwidth.is_some() && !resctrl.as_ref().is_some_and(Resctrl::has_bandwidth_allocation) {
        return refuse("Intel RDT/MBA: memory bandwidth schema is not enabled");
    }
    if cache.is_none() && bandwidth.is_none() {
        return Ok(None);
    }
    let Some(mut shares) = container.state().config.intel_rdt.clone() else {
        return refuse("updating a non-existent Intel RDT configuration is not supported");
    };
    shares.l3_cache_schema = cache.unwrap_or(shares.l3_cache_schema);
    shares.mem_bw_schema = bandwidth.unwrap_or(shares.mem_bw_schema);
    Ok(Some(shares))
}

fn read(path: &str) -> Result<LinuxResources, Error> {
    let fail = |error| Error::file("read", path, error);
    let mut text = Vec::new();
    if path == "-" {
        io::stdin().take(SIZE_MAX).read_to_end(&mut text).map_err(fail)?;
    } else {
        let file = File::open(path).map_err(fail)?;
        file.take(SIZE_MAX).read_to_end(&mut text).map_err(fail)?;
    }
    serde_json::from_slice(&text).map_err(|error| {
        let place = Place::of(&error, &text);
        Error::Usage(format!("parse {path}{place}: {error}"))
    })
}

fn from_flags(parsed: &Parsed) -> Result<LinuxResources, Error> {
    let text = |name| parsed.value(name).unwrap_or("").to_owned();
    let memory = LinuxMemory {
        limit: bytes(parsed, "memory")?,
        reservation: bytes(parsed, "memory-reservation")?,
        swap: bytes(parsed, "memory-swap")?,
        kernel: bytes(parsed, "kernel-memory")?,
        kernel_tcp: bytes(parsed, "kernel-memory-tcp")?,
        ..LinuxMemory::default()
    };
    let cpu = LinuxCpu {
        shares: number(parsed, "cpu-share")?,
        quota: number(parsed, "cpu-quota")?,
        burst: number(parsed, "cpu-burst")?,
        period: number(parsed, "cpu-period")?,
        realtime_runtime: number(parsed, "cpu-rt-runtime")?,
        realtime_period: number(parsed, "cpu-rt-period")?,
        cpus: text("cpuset-cpus"),
        mems: text("cpuset-mems"),
        idle: number(parsed, "cpu-idle")?,
    };
    let weight = number(parsed, "blkio-weight")?.filter(|&weight| weight != 0);
    Ok(LinuxResources {
        memory: Some(memory),
        cpu: Some(cpu),
        block_io: Some(LinuxBlockIo { weight, ..LinuxBlockIo::default() }),
        pids: Some(LinuxPids { limit: number(parsed, "pids-limit")? }),
        ..LinuxResources::default()
    })
}

fn number<T: std::str::FromStr>(parsed: &Parsed, name: &str) -> Result<Option<T>, Error> {
    if parsed.value(name) == Some("") {
        return Ok(None);
    }
    parsed.number(name).map_err(|_| Error::Usage(format!("invalid value for {name}")))
}

fn bytes(parsed: &Parsed, name: &str) -> Result<Option<i64>, Error> {
    match parsed.value(name) {
        None | Some("") => Ok(None),
        Some(text) => match parse_bytes(text) {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(Error::Usage(format!("invalid value for {name}: invalid size: '{text}'"))),
        },
    }
}

/// Reads a number of bytes with a unit, each 1024 times the one before; -1 means no limit.
fn parse_bytes(text: &str) -> Option<i64> {
    const UNITS: &str = "kmgtp";
    if text == "-1" {
        return Some(-1);
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim_start().to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        unit if unit.len() == 1 => 10 * (UNITS.find(unit)? + 1),
        _ => return None,
    };
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(1 << shift);
    }
    let bytes = number.parse::<f64>().ok()? * (1_i64 << shift) as f64;
    (bytes >= 0.0 && bytes < i64::MAX as f64).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("1024", Some(1024)),
            ("32m", Some(32 << 20)),
            ("32MiB", Some(32 << 20)),
            ("1.5g", Some(3 << 29)),
            ("2 GB", Some(2 << 30)),
            ("7b", Some(7)),
            ("-2", None),
            ("m", None),
            ("1x", None),
            ("9999999999999g", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse_bytes(text), want, "{text:?}");
        }
    }
}
