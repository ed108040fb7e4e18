//! What a container has used.
//!
//! One structure for both versions of control groups, in the units of v1: v2's numbers are
//! converted, as runc does. A part that the kernel does not tell is empty or 0.
//!
//! It has what `runc events` prints and what containerd's `io.containerd.cgroups.v1` and `v2`
//! metrics ask for, except network and thread state counters, which are no matter of control
//! groups.

mod parse;
mod v1;
mod v2;

use std::{collections::BTreeMap, io};

use super::{Cgroup, Error, directory::Directory, processes::is_gone};

/// What a container has used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// CPU time.
    pub cpu: Cpu,
    /// CPU placement (v1 only).
    pub cpuset: Cpuset,
    /// Memory and swap.
    pub memory: Memory,
    /// Number of tasks.
    pub pids: Pids,
    /// Block devices.
    pub block_io: BlockIo,
    /// Huge pages, by page size as in `2MB`.
    pub hugetlb: BTreeMap<String, Counter>,
    /// RDMA devices.
    pub rdma: Rdma,
    /// Other resources (v2 only), by name.
    pub misc: BTreeMap<String, Misc>,
}

/// CPU time, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cpu {
    /// All of it.
    pub total: u64,
    /// In user mode.
    pub user: u64,
    /// In the kernel.
    pub kernel: u64,
    /// By CPU (v1 only).
    pub per_cpu: Vec<u64>,
    /// In user mode, by CPU (v1 only).
    pub per_cpu_user: Vec<u64>,
    /// In the kernel, by CPU (v1 only).
    pub per_cpu_kernel: Vec<u64>,
    /// Number of periods in which there was something to run.
    pub periods: u64,
    /// Number of periods in which the quota was used up.
    pub throttled_periods: u64,
    /// Time spent waiting for the next period.
    pub throttled_time: u64,
    /// Number of periods in which more than the quota was used.
    pub burst_periods: u64,
    /// Time used above the quota.
    pub burst_time: u64,
    /// Time lost waiting for a CPU (v2 only).
    pub pressure: Option<Pressure>,
}

/// The cpuset controller's files, as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the kernel")]
pub struct Cpuset {
    pub cpus: Vec<u16>,
    pub cpu_exclusive: u64,
    pub mems: Vec<u16>,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

/// A resource with a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// What is used now.
    pub usage: u64,
    /// The most that has been used.
    pub max: u64,
    /// How often the limit was hit.
    pub failures: u64,
    /// The limit; without one, the largest number, or near it on v1.
    pub limit: u64,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// Page cache.
    pub cache: u64,
    /// Memory.
    pub usage: Counter,
    /// Memory and swap together.
    pub swap: Counter,
    /// Swap alone.
    pub swap_only: Counter,
    /// Memory of the kernel (v1 only).
    pub kernel: Counter,
    /// Memory of the kernel for TCP (v1 only).
    pub kernel_tcp: Counter,
    /// `memory.stat`, as it is.
    pub raw: BTreeMap<String, u64>,
    /// `memory.events` of v2 or `memory.oom_control` of v1, as it is.
    pub events: BTreeMap<String, u64>,
    /// Time lost waiting for memory (v2 only).
    pub pressure: Option<Pressure>,
}

/// Number of tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// How many there may be; 0 is "no limit".
    pub limit: u64,
}

/// Block devices, in the lists of v1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockIo {
    /// Bytes.
    pub service_bytes: Vec<BlockIoEntry>,
    /// Operations.
    pub serviced: Vec<BlockIoEntry>,
    /// Operations in the queue (v1 only).
    pub queued: Vec<BlockIoEntry>,
    /// Time from dispatch to completion, in nanoseconds (v1 only).
    pub service_time: Vec<BlockIoEntry>,
    /// Time in the queue, in nanoseconds (v1 only).
    pub wait_time: Vec<BlockIoEntry>,
    /// Operations that were merged with others (v1 only).
    pub merged: Vec<BlockIoEntry>,
    /// Time of the device, in milliseconds (v1 only).
    pub time: Vec<BlockIoEntry>,
    /// Sectors (v1 only).
    pub sectors: Vec<BlockIoEntry>,
    /// Cost model: share of the device that was used (v2 only).
    pub cost_usage: Vec<BlockIoEntry>,
    /// Cost model: time spent waiting (v2 only).
    pub cost_wait: Vec<BlockIoEntry>,
    /// Cost model: time in debt (v2 only).
    pub cost_indebt: Vec<BlockIoEntry>,
    /// Cost model: time delayed for debt (v2 only).
    pub cost_indelay: Vec<BlockIoEntry>,
    /// Time lost waiting for block devices (v2 only).
    pub pressure: Option<Pressure>,
}

/// A number about a block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockIoEntry {
    /// The device's major number.
    pub major: u64,
    /// The device's minor number.
    pub minor: u64,
    /// What is counted, such as "Read"; may be empty.
    pub operation: String,
    /// The number.
    pub value: u64,
}

/// RDMA devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rdma {
    /// What there may be.
    pub limit: Vec<RdmaEntry>,
    /// What there is.
    pub current: Vec<RdmaEntry>,
}

/// An RDMA device; the largest number is "no limit".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaEntry {
    /// The device.
    pub device: String,
    /// Handles.
    pub hca_handles: u32,
    /// Objects.
    pub hca_objects: u32,
}

/// Another resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Misc {
    /// What is used now.
    pub usage: u64,
    /// How often the limit was hit.
    pub events: u64,
}

/// How long tasks have waited for something (pressure stall information).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// While some of them did.
    pub some: PressureLine,
    /// While all of them did.
    pub full: PressureLine,
}

/// Shares of time in percent, and the time itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PressureLine {
    /// Over the last 10 seconds.
    pub avg10: f64,
    /// Over the last minute.
    pub avg60: f64,
    /// Over the last five minutes.
    pub avg300: f64,
    /// In microseconds, since the group was made.
    pub total: u64,
}

impl Cgroup {
    /// Reads what the container has used.
    ///
    /// # Errors
    ///
    /// - `File`: the group is gone, or cannot be read.
    pub fn stats(&self) -> Result<Stats, Error> {
        if self.unified { v2::stats(self.controller("")?) } else { v1::stats(self) }
    }
}

/// Reads a file that not every kernel or group has.
fn optional(directory: &Directory, name: &str) -> Result<Option<String>, Error> {
    match directory.read(name) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Pressure that is compiled in, but not switched on.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(error) if is_gone(&error) => Ok(None),
        Err(source) => Err(directory.error("read", name, source)),
    }
}

/// Reads a file with one number in it.
fn number(directory: &Directory, name: &str) -> Result<Option<u64>, Error> {
    match optional(directory, name)? {
        Some(text) => required(directory, name, parse::number(&text)).map(Some),
        None => Ok(None),
    }
}

/// Reads a file with a name and a number on each line.
fn table(directory: &Directory, name: &str) -> Result<BTreeMap<String, u64>, Error> {
    Ok(optional(directory, name)?.map(|text| parse::table(&text)).unwrap_or_default())
}

fn required<T>(directory: &Directory, name: &str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| directory.error("parse", name, io::ErrorKind::InvalidData.into()))
}

/// The RDMA controller has the same files in both versions.
fn rdma(directory: &Directory) -> Result<Rdma, Error> {
    let entries = |name| Ok::<_, Error>(optional(directory, name)?.map(|text| parse::rdma(&text)));
    let current = entries("rdma.current")?.unwrap_or_default();
    let limit = entries("rdma.max")?.unwrap_or_default();
    // A device went away between the two.
    if current.len() != limit.len() {
        return Ok(Rdma::default());
    }
    Ok(Rdma { limit, current })
}

/// The huge page sizes of the machine, as the controller names them.
fn hugepage_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut sizes: Vec<String> = names.filter_map(|name| parse::hugepage_size(&name)).collect();
    sizes.sort();
    sizes
}
/// What is fuzzed; see [`crate::fuzz`].
pub(super) fn fuzz(text: &str) {
    parse::number(text);
    parse::table(text);
    parse::list(text);
    parse::numbers(text);
    parse::block_io(text);
    parse::pressure(text);
    parse::rdma(text);
    parse::hugepage_size(text);
}
