//! Statistics of v1 hierarchies.

use super::{
    BlockIo, BlockIoEntry, Counter, Cpu, Cpuset, Memory, Pids, Stats, hugepage_sizes, number,
    optional, parse, rdma, required, table,
};
use crate::cgroup::{Cgroup, Error, directory::Directory};

/// `cpuacct.stat` counts in hundredths of a second, whatever the kernel's own clock is.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

pub(super) fn stats(cgroup: &Cgroup) -> Result<Stats, Error> {
    let mut stats = Stats::default();
    if let Some(directory) = open(cgroup, "cpuacct")? {
        stats.cpu = cpu(directory)?;
    }
    if let Some(directory) = open(cgroup, "cpu")? {
        let table = table(directory, "cpu.stat")?;
        let value = |name: &str| table.get(name).copied().unwrap_or(0);
        stats.cpu.periods = value("nr_periods");
        stats.cpu.throttled_periods = value("nr_throttled");
        stats.cpu.throttled_time = value("throttled_time");
        stats.cpu.burst_periods = value("nr_bursts");
        stats.cpu.burst_time = value("burst_time");
    }
    if let Some(directory) = open(cgroup, "cpuset")? {
        stats.cpuset = cpuset(directory)?;
    }
    if let Some(directory) = open(cgroup, "memory")? {
        stats.memory = memory(directory)?;
    }
    if let Some(directory) = open(cgroup, "pids")? {
        let current = number(directory, "pids.current")?.unwrap_or(0);
        let limit = number(directory, "pids.max")?.filter(|limit| *limit != u64::MAX);
        stats.pids = Pids { current, limit: limit.unwrap_or(0) };
    }
    if let Some(directory) = open(cgroup, "blkio")? {
        stats.block_io = block_io(directory)?;
    }
    if let Some(directory) = open(cgroup, "hugetlb")? {
        for size in hugepage_sizes() {
            let counter = match counter(directory, &format!("hugetlb.{size}.rsvd"))? {
                Some(counter) => counter,
                None => counter(directory, &format!("hugetlb.{size}"))?.unwrap_or_default(),
            };
            stats.hugetlb.insert(size, counter);
        }
    }
    if let Some(directory) = open(cgroup, "rdma")? {
        stats.rdma = rdma(directory)?;
    }
    Ok(stats)
}

fn open<'a>(cgroup: &'a Cgroup, controller: &str) -> Result<Option<&'a Directory>, Error> {
    cgroup.group(controller).map(super::super::Group::must_open).transpose()
}

fn cpu(directory: &Directory) -> Result<Cpu, Error> {
    let stat = table(directory, "cpuacct.stat")?;
    let ticks = |name: &str| stat.get(name).copied().unwrap_or(0) * NANOSECONDS_PER_TICK;
    let per_cpu = optional(directory, "cpuacct.usage_percpu")?.unwrap_or_default();
    let mut cpu = Cpu {
        total: number(directory, "cpuacct.usage")?.unwrap_or(0),
        user: ticks("user"),
        kernel: ticks("system"),
        per_cpu: parse::numbers(&per_cpu),
        ..Cpu::default()
    };
    // A header, and then for each CPU its number, user and system time.
    let all = optional(directory, "cpuacct.usage_all")?.unwrap_or_default();
    for line in all.lines().skip(1) {
        if let [_, user, kernel] = parse::numbers(line).as_slice() {
            cpu.per_cpu_user.push(*user);
            cpu.per_cpu_kernel.push(*kernel);
        }
    }
    Ok(cpu)
}

fn cpuset(directory: &Directory) -> Result<Cpuset, Error> {
    let list = |name| match optional(directory, name)? {
        Some(text) => required(directory, name, parse::list(&text)),
        None => Ok(Vec::new()),
    };
    let flag = |name| Ok::<_, Error>(number(directory, name)?.unwrap_or(0));
    let level = optional(directory, "cpuset.sched_relax_domain_level")?;
    Ok(Cpuset {
        cpus: list("cpuset.cpus")?,
        cpu_exclusive: flag("cpuset.cpu_exclusive")?,
        mems: list("cpuset.mems")?,
        mem_hardwall: flag("cpuset.mem_hardwall")?,
        mem_exclusive: flag("cpuset.mem_exclusive")?,
        memory_migrate: flag("cpuset.memory_migrate")?,
        memory_spread_page: flag("cpuset.memory_spread_page")?,
        memory_spread_slab: flag("cpuset.memory_spread_slab")?,
        memory_pressure: flag("cpuset.memory_pressure")?,
        sched_load_balance: flag("cpuset.sched_load_balance")?,
        sched_relax_domain_level: level.and_then(|text| text.trim().parse().ok()).unwrap_or(0),
    })
}

/// The four files of a counter, if there are any.
fn counter(directory: &Directory, prefix: &str) -> Result<Option<Counter>, Error> {
    let file = |name| number(directory, &format!("{prefix}.{name}"));
    let Some(usage) = file("usage_in_bytes")? else { return Ok(None) };
    Ok(Some(Counter {
        usage,
        max: file("max_usage_in_bytes")?.unwrap_or(0),
        failures: file("failcnt")?.unwrap_or(0),
        limit: file("limit_in_bytes")?.unwrap_or(0),
    }))
}

fn memory(directory: &Directory) -> Result<Memory, Error> {
    let raw = table(directory, "memory.stat")?;
    let usage = counter(directory, "memory")?.unwrap_or_default();
    let swap = counter(directory, "memory.memsw")?.unwrap_or_default();
    let swap_only = Counter {
        usage: swap.usage.saturating_sub(usage.usage),
        failures: swap.failures.saturating_sub(usage.failures),
        ..Counter::default()
    };
    Ok(Memory {
        cache: raw.get("cache").copied().unwrap_or(0),
        usage,
        swap,
        swap_only,
        kernel: counter(directory, "memory.kmem")?.unwrap_or_default(),
        kernel_tcp: counter(directory, "memory.kmem.tcp")?.unwrap_or_default(),
        raw,
        events: table(directory, "memory.oom_control")?,
        pressure: None,
    })
}

/// Which file has which list. Schedulers come and go, and each brings its own files: those of
/// BFQ with debugging, of BFQ, of CFQ, and of throttling, which is always there.
fn block_io(directory: &Directory) -> Result<BlockIo, Error> {
    let file = |name: &str| -> Result<Option<Vec<BlockIoEntry>>, Error> {
        let text = optional(directory, name)?;
        Ok(text.map(|text| parse::block_io(&text)).filter(|entries| !entries.is_empty()))
    };
    for prefix in ["blkio.bfq.", "blkio."] {
        let list = |name: &str| file(&format!("{prefix}{name}_recursive"));
        let Some(service_bytes) = list("io_service_bytes")? else { continue };
        return Ok(BlockIo {
            service_bytes,
            serviced: list("io_serviced")?.unwrap_or_default(),
            queued: list("io_queued")?.unwrap_or_default(),
            service_time: list("io_service_time")?.unwrap_or_default(),
            wait_time: list("io_wait_time")?.unwrap_or_default(),
            merged: list("io_merged")?.unwrap_or_default(),
            time: list("time")?.unwrap_or_default(),
            sectors: list("sectors")?.unwrap_or_default(),
            ..BlockIo::default()
        });
    }
    let throttle = |name: &str| -> Result<Vec<BlockIoEntry>, Error> {
        let recursive = file(&format!("blkio.throttle.{name}_recursive"))?;
        match recursive {
            Some(entries) => Ok(entries),
            None => Ok(file(&format!("blkio.throttle.{name}"))?.unwrap_or_default()),
        }
    };
    Ok(BlockIo {
        service_bytes: throttle("io_service_bytes")?,
        serviced: throttle("io_serviced")?,
        ..BlockIo::default()
    })
}
