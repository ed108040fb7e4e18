//! Statistics of a v2 group, in the units of v1.

use std::collections::BTreeMap;

use super::{
    BlockIo, BlockIoEntry, Counter, Cpu, Memory, Misc, Pids, Pressure, Stats, hugepage_sizes,
    number, optional, parse, rdma, table,
};
use crate::cgroup::{Error, directory::Directory};

pub(super) fn stats(directory: &Directory) -> Result<Stats, Error> {
    Ok(Stats {
        cpu: cpu(directory)?,
        memory: memory(directory)?,
        pids: pids(directory)?,
        block_io: block_io(directory)?,
        hugetlb: hugetlb(directory)?,
        rdma: rdma(directory)?,
        misc: misc(directory)?,
        ..Stats::default()
    })
}

fn pressure(directory: &Directory, name: &str) -> Result<Option<Pressure>, Error> {
    Ok(optional(directory, name)?.and_then(|text| parse::pressure(&text)))
}

fn cpu(directory: &Directory) -> Result<Cpu, Error> {
    let table = table(directory, "cpu.stat")?;
    let value = |name: &str| table.get(name).copied().unwrap_or(0);
    let time = |name: &str| value(name).saturating_mul(1000);
    Ok(Cpu {
        total: time("usage_usec"),
        user: time("user_usec"),
        kernel: time("system_usec"),
        periods: value("nr_periods"),
        throttled_periods: value("nr_throttled"),
        throttled_time: time("throttled_usec"),
        burst_periods: value("nr_bursts"),
        burst_time: time("burst_usec"),
        pressure: pressure(directory, "cpu.pressure")?,
        ..Cpu::default()
    })
}

fn counter(directory: &Directory, prefix: &str) -> Result<Option<Counter>, Error> {
    let file = |name| number(directory, &format!("{prefix}.{name}"));
    let Some(usage) = file("current")? else { return Ok(None) };
    Ok(Some(Counter {
        usage,
        max: file("peak")?.unwrap_or(0),
        failures: 0,
        limit: file("max")?.unwrap_or(0),
    }))
}

fn memory(directory: &Directory) -> Result<Memory, Error> {
    let raw = table(directory, "memory.stat")?;
    let events = table(directory, "memory.events")?;
    let usage = counter(directory, "memory")?.unwrap_or_default();
    let swap_only = counter(directory, "memory.swap")?.unwrap_or_default();
    // The most that both have used together is not the sum of the most of each.
    let limit = swap_only.limit.saturating_add(usage.limit);
    let swap =
        Counter { usage: swap_only.usage.saturating_add(usage.usage), max: 0, failures: 0, limit };
    Ok(Memory {
        cache: raw.get("file").copied().unwrap_or(0),
        usage,
        swap,
        swap_only,
        raw,
        events,
        pressure: pressure(directory, "memory.pressure")?,
        ..Memory::default()
    })
}

fn pids(directory: &Directory) -> Result<Pids, Error> {
    if let Some(current) = number(directory, "pids.current")? {
        let limit = number(directory, "pids.max")?.filter(|limit| *limit != u64::MAX);
        return Ok(Pids { current, limit: limit.unwrap_or(0) });
    }
    // Without the controller there is still the list.
    let list = match optional(directory, "cgroup.procs")? {
        Some(list) => list,
        None => optional(directory, "cgroup.threads")?.unwrap_or_default(),
    };
    Ok(Pids { current: list.lines().count() as u64, limit: 0 })
}

fn block_io(directory: &Directory) -> Result<BlockIo, Error> {
    let text = optional(directory, "io.stat")?.unwrap_or_default();
    let mut io = parse_io(&text);
    io.pressure = pressure(directory, "io.pressure")?;
    Ok(io)
}

/// Lines such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn parse_io(text: &str) -> BlockIo {
    let mut io = BlockIo::default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let Some((major, minor)) = fields.next().and_then(|device| device.split_once(':')) else {
            continue;
        };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for field in fields {
            let Some((name, Ok(value))) =
                field.split_once('=').map(|(name, value)| (name, value.parse()))
            else {
                continue;
            };
            let (list, operation) = match name {
                "rbytes" => (&mut io.service_bytes, "Read"),
                "wbytes" => (&mut io.service_bytes, "Write"),
                "rios" => (&mut io.serviced, "Read"),
                "wios" => (&mut io.serviced, "Write"),
                "cost.usage" => (&mut io.cost_usage, "Count"),
                "cost.wait" => (&mut io.cost_wait, "Count"),
                "cost.indebt" => (&mut io.cost_indebt, "Count"),
                "cost.indelay" => (&mut io.cost_indelay, "Count"),
                _ => continue,
            };
            list.push(BlockIoEntry { major, minor, operation: operation.to_owned(), value });
        }
    }
    io
}

fn hugetlb(directory: &Directory) -> Result<BTreeMap<String, Counter>, Error> {
    let mut counters = BTreeMap::new();
    for size in hugepage_sizes() {
        let prefix = format!("hugetlb.{size}");
        let usage = match number(directory, &format!("{prefix}.rsvd.current"))? {
            Some(usage) => Some(usage),
            None => number(directory, &format!("{prefix}.current"))?,
        };
        let Some(usage) = usage else { continue };
        let events = table(directory, &format!("{prefix}.events"))?;
        let failures = events.get("max").copied().unwrap_or(0);
        let limit = number(directory, &format!("{prefix}.max"))?.unwrap_or(0);
        counters.insert(size, Counter { usage, max: 0, failures, limit });
    }
    Ok(counters)
}

fn misc(directory: &Directory) -> Result<BTreeMap<String, Misc>, Error> {
    let mut resources: BTreeMap<String, Misc> = BTreeMap::new();
    for (name, usage) in table(directory, "misc.current")? {
        resources.entry(name).or_default().usage = usage;
    }
    for (name, events) in table(directory, "misc.events")? {
        let name = name.trim_end_matches(".max").to_owned();
        resources.entry(name).or_default().events = events;
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_lines() {
        let entry = |operation: &str, value| BlockIoEntry {
            major: 8,
            minor: 1,
            operation: operation.to_owned(),
            value,
        };
        let text = "8:1 rbytes=1 wbytes=2 rios=3 dios=9 cost.usage=5 x\n7:x rbytes=1\n\n";
        let want = BlockIo {
            service_bytes: vec![entry("Read", 1), entry("Write", 2)],
            serviced: vec![entry("Read", 3)],
            cost_usage: vec![entry("Count", 5)],
            ..BlockIo::default()
        };
        assert_eq!(parse_io(text), want);
    }
}
