//! What `events` prints of a container's use of resources.
//!
//! The form is runc's (`types/events.go`), with its rule that most zeros are left out.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::{
    cgroup::stats::{self, Stats},
    intel_rdt::Figures,
};

/// An event, one line of output.
#[derive(Debug, Serialize)]
pub struct Event<'a> {
    /// "stats" or "oom".
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The container's id.
    pub id: &'a str,
    /// What "stats" is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Usage>,
}

/// What a container has used.
#[derive(Debug, Serialize)]
pub struct Usage {
    cpu: Cpu,
    cpuset: Cpuset,
    memory: Memory,
    pids: Pids,
    blkio: BlockIo,
    hugetlb: BTreeMap<String, Hugetlb>,
    pub(crate) intel_rdt: Figures,
    network_interfaces: Option<()>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Debug, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Serialize)]
struct CpuUsage {
    #[serde(skip_serializing_if = "is_zero")]
    total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu_kernel: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu_user: Vec<u64>,
    kernel: u64,
    user: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_time: u64,
}

#[derive(Debug, Serialize)]
struct Pressure {
    some: PressureLine,
    full: PressureLine,
}

#[derive(Debug, Serialize)]
struct PressureLine {
    #[serde(serialize_with = "as_go")]
    avg10: f64,
    #[serde(serialize_with = "as_go")]
    avg60: f64,
    #[serde(serialize_with = "as_go")]
    avg300: f64,
    total: u64,
}

/// Writes whole numbers without a fraction.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
#[expect(clippy::cast_possible_truncation, reason = "these are percentages")]
fn as_go<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if number.fract() == 0.0 && number.abs() < 1e9 {
        serializer.serialize_i64(*number as i64)
    } else {
        serializer.serialize_f64(*number)
    }
}

#[derive(Debug, Serialize)]
struct Cpuset {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cpus: Vec<u16>,
    cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mems: Vec<u16>,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

#[derive(Debug, Serialize)]
struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    cache: u64,
    usage: MemoryEntry,
    swap: MemoryEntry,
    kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Serialize)]
struct MemoryEntry {
    limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    limit: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlockIo {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_bytes_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_serviced_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_queue_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_wait_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_merged_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sectors_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Serialize)]
struct BlockIoEntry {
    #[serde(skip_serializing_if = "is_zero")]
    major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    minor: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    op: String,
    #[serde(skip_serializing_if = "is_zero")]
    value: u64,
}

#[derive(Debug, Serialize)]
struct Hugetlb {
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

impl From<Stats> for Usage {
    fn from(stats: Stats) -> Self {
        let Stats { cpu, cpuset, memory, pids, block_io, hugetlb, rdma: _, misc: _ } = stats;
        Self {
            cpu: cpu.into(),
            cpuset: cpuset.into(),
            memory: memory.into(),
            pids: Pids { current: pids.current, limit: pids.limit },
            blkio: block_io.into(),
            hugetlb: hugetlb.into_iter().map(|(size, counter)| (size, counter.into())).collect(),
            intel_rdt: Figures::default(),
            network_interfaces: None,
        }
    }
}

impl From<stats::Cpu> for Cpu {
    fn from(cpu: stats::Cpu) -> Self {
        Self {
            usage: CpuUsage {
                total: cpu.total,
                percpu: cpu.per_cpu,
                percpu_kernel: cpu.per_cpu_kernel,
                percpu_user: cpu.per_cpu_user,
                kernel: cpu.kernel,
                user: cpu.user,
            },
            throttling: Throttling {
                periods: cpu.periods,
                throttled_periods: cpu.throttled_periods,
                throttled_time: cpu.throttled_time,
            },
            psi: cpu.pressure.map(Pressure::from),
        }
    }
}

impl From<stats::Cpuset> for Cpuset {
    fn from(cpuset: stats::Cpuset) -> Self {
        Self {
            cpus: cpuset.cpus,
            cpu_exclusive: cpuset.cpu_exclusive,
            mems: cpuset.mems,
            mem_hardwall: cpuset.mem_hardwall,
            mem_exclusive: cpuset.mem_exclusive,
            memory_migrate: cpuset.memory_migrate,
            memory_spread_page: cpuset.memory_spread_page,
            memory_spread_slab: cpuset.memory_spread_slab,
            memory_pressure: cpuset.memory_pressure,
            sched_load_balance: cpuset.sched_load_balance,
            sched_relax_domain_level: cpuset.sched_relax_domain_level,
        }
    }
}

impl From<stats::Memory> for Memory {
    fn from(memory: stats::Memory) -> Self {
        Self {
            cache: memory.cache,
            usage: memory.usage.into(),
            swap: memory.swap.into(),
            kernel: memory.kernel.into(),
            kernel_tcp: memory.kernel_tcp.into(),
            raw: memory.raw,
            psi: memory.pressure.map(Pressure::from),
        }
    }
}

impl From<stats::BlockIo> for BlockIo {
    fn from(io: stats::BlockIo) -> Self {
        let list = |entries: Vec<stats::BlockIoEntry>| {
            entries.into_iter().map(BlockIoEntry::from).collect()
        };
        Self {
            io_service_bytes_recursive: list(io.service_bytes),
            io_serviced_recursive: list(io.serviced),
            io_queue_recursive: list(io.queued),
            io_service_time_recursive: list(io.service_time),
            io_wait_time_recursive: list(io.wait_time),
            io_merged_recursive: list(io.merged),
            io_time_recursive: list(io.time),
            sectors_recursive: list(io.sectors),
            psi: io.pressure.map(Pressure::from),
        }
    }
}

impl From<stats::BlockIoEntry> for BlockIoEntry {
    fn from(entry: stats::BlockIoEntry) -> Self {
        let stats::BlockIoEntry { major, minor, operation, value } = entry;
        Self { major, minor, op: operation, value }
    }
}

impl From<stats::Counter> for MemoryEntry {
    fn from(counter: stats::Counter) -> Self {
        let stats::Counter { usage, max, failures, limit } = counter;
        Self { limit, usage, max, failcnt: failures }
    }
}

impl From<stats::Counter> for Hugetlb {
    fn from(counter: stats::Counter) -> Self {
        Self { usage: counter.usage, max: counter.max, failcnt: counter.failures }
    }
}

impl From<stats::Pressure> for Pressure {
    fn from(pressure: stats::Pressure) -> Self {
        let line = |line: stats::PressureLine| PressureLine {
            avg10: line.avg10,
            avg60: line.avg60,
            avg300: line.avg300,
            total: line.total,
        };
        Self { some: line(pressure.some), full: line(pressure.full) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_used() {
        let event = Event { kind: "stats", id: "x", data: Some(Stats::default().into()) };
        let want = concat!(
            r#"{"type":"stats","id":"x","data":{"cpu":{"usage":{"kernel":0,"user":0},"#,
            r#""throttling":{}},"cpuset":{"cpu_exclusive":0,"mem_hardwall":0,"mem_exclusive":0,"#,
            r#""memory_migrate":0,"memory_spread_page":0,"memory_spread_slab":0,"#,
            r#""memory_pressure":0,"sched_load_balance":0,"sched_relax_domain_level":0},"#,
            r#""memory":{"usage":{"limit":0,"failcnt":0},"swap":{"limit":0,"failcnt":0},"#,
            r#""kernel":{"limit":0,"failcnt":0},"kernelTCP":{"limit":0,"failcnt":0}},"#,
            r#""pids":{},"blkio":{},"hugetlb":{},"intel_rdt":{},"network_interfaces":null}}"#,
        );
        assert_eq!(serde_json::to_string(&event).expect("serializes"), want);
    }

    #[test]
    fn pressure_as_go_writes_it() {
        let some = stats::PressureLine { avg10: 1.5, avg60: 2.0, avg300: 0.0, total: 7 };
        let pressure = stats::Pressure { some, full: stats::PressureLine::default() };
        let want = r#"{"some":{"avg10":1.5,"avg60":2,"avg300":0,"total":7},"full":{"avg10":0,"avg60":0,"avg300":0,"total":0}}"#;
        assert_eq!(serde_json::to_string(&Pressure::from(pressure)).expect("serializes"), want);
    }
}
