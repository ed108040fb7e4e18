//! What a container has used, in containerd's messages: one for each version of control groups.
//!
//! The container's groups are those of its init when it was created, found in `/proc`, because
//! the runtime may be anyone's. Source: containerd/cgroups, `cgroup1/stats` and `cgroup2/stats`.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Component, Path, PathBuf},
};

use prost_types::Any;
use proto::{
    any,
    io::containerd::cgroups::{v1, v2},
};
use runc_rs::cgroup::{
    Cgroup, Stats,
    stats::{BlockIoEntry, Counter, Memory, Pressure, PressureLine, RdmaEntry},
};
use rustix::process::Pid;

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// The directory of each controller; that of v2 has an empty name.
pub(crate) type Paths = BTreeMap<String, PathBuf>;

/// Finds the control groups of a process.
///
/// # Errors
///
/// The process is gone.
pub(crate) fn paths_of(pid: Pid) -> io::Result<Paths> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero()))?;
    let root = Path::new(ROOT);
    Ok(paths_in(&text, root, root.join("cgroup.controllers").exists()))
}

/// The directories of the control group at `path`, below the mounts of all hierarchies that have
/// it.
pub(crate) fn paths_below(path: &str) -> Paths {
    paths_of_group(path, Path::new(ROOT))
}

fn paths_of_group(path: &str, root: &Path) -> Paths {
    let inside = |component| matches!(component, Component::Normal(_) | Component::RootDir);
    if !Path::new(path).components().all(inside) {
        return Paths::new();
    }
    let below = path.trim_start_matches('/');
    if root.join("cgroup.controllers").exists() {
        let group = root.join(below);
        return group.is_dir().then_some((String::new(), group)).into_iter().collect();
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let group = |name: String| {
        let group = root.join(&name).join(below);
        // "unified" is the v2 hierarchy of a hybrid machine, which has no controllers.
        (name != "unified" && group.is_dir()).then_some((name, group))
    };
    entries.filter_map(|entry| group(entry.file_name().into_string().ok()?)).collect()
}

fn paths_in(text: &str, root: &Path, is_unified: bool) -> Paths {
    let mut paths = Paths::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let below = path.trim_start_matches('/');
        match controllers {
            "" if is_unified => drop(paths.insert(String::new(), root.join(below))),
            "" => {}
            // The directory of a hierarchy with a name has that name.
            names => {
                let directory = names.strip_prefix("name=").unwrap_or(names);
                for name in names.split(',') {
                    paths.insert(name.to_owned(), root.join(directory).join(below));
                }
            }
        }
    }
    paths
}

/// Packs what the control group has used, in the message of its version.
pub(crate) fn pack(cgroup: &Cgroup, stats: &Stats) -> Any {
    if cgroup.is_unified() { any::pack(&unified(stats)) } else { any::pack(&legacy(stats)) }
}

fn legacy(stats: &Stats) -> v1::Metrics {
    let cpu = &stats.cpu;
    let events = |name: &str| stats.memory.events.get(name).copied().unwrap_or_default();
    v1::Metrics {
        hugetlb: stats
            .hugetlb
            .iter()
            .map(|(size, counter)| v1::HugetlbStat {
                usage: counter.usage,
                max: counter.max,
                failcnt: counter.failures,
                pagesize: size.clone(),
            })
            .collect(),
        pids: Some(v1::PidsStat { current: stats.pids.current, limit: stats.pids.limit }),
        cpu: Some(v1::CpuStat {
            usage: Some(v1::CpuUsage {
                total: cpu.total,
                kernel: cpu.kernel,
                user: cpu.user,
                per_cpu: cpu.per_cpu.clone(),
            }),
            throttling: Some(v1::Throttle {
                periods: cpu.periods,
                throttled_periods: cpu.throttled_periods,
                throttled_time: cpu.throttled_time,
            }),
        }),
        memory: Some(legacy_memory(&stats.memory)),
        blkio: Some(legacy_block_io(stats)),
        rdma: Some(v1::RdmaStat {
            current: stats.rdma.current.iter().map(legacy_rdma).collect(),
            limit: stats.rdma.limit.iter().map(legacy_rdma).collect(),
        }),
        memory_oom_control: Some(v1::MemoryOomControl {
            oom_kill_disable: events("oom_kill_disable"),
            under_oom: events("under_oom"),
            oom_kill: events("oom_kill"),
        }),
        ..v1::Metrics::default()
    }
}

fn legacy_memory(memory: &Memory) -> v1::MemoryStat {
    let raw = |name: &str| memory.raw.get(name).copied().unwrap_or_default();
    let entry = |counter: &Counter| {
        Some(v1::MemoryEntry {
            limit: counter.limit,
            usage: counter.usage,
            max: counter.max,
            failcnt: counter.failures,
        })
    };
    v1::MemoryStat {
        cache: memory.cache,
        rss: raw("rss"),
        rss_huge: raw("rss_huge"),
        mapped_file: raw("mapped_file"),
        dirty: raw("dirty"),
        writeback: raw("writeback"),
        pg_pg_in: raw("pgpgin"),
        pg_pg_out: raw("pgpgout"),
        pg_fault: raw("pgfault"),
        pg_maj_fault: raw("pgmajfault"),
        inactive_anon: raw("inactive_anon"),
        active_anon: raw("active_anon"),
        inactive_file: raw("inactive_file"),
        active_file: raw("active_file"),
        unevictable: raw("unevictable"),
        hierarchical_memory_limit: raw("hierarchical_memory_limit"),
        hierarchical_swap_limit: raw("hierarchical_memsw_limit"),
        total_cache: raw("total_cache"),
        total_rss: raw("total_rss"),
        total_rss_huge: raw("total_rss_huge"),
        total_mapped_file: raw("total_mapped_file"),
        total_dirty: raw("total_dirty"),
        total_writeback: raw("total_writeback"),
        total_pg_pg_in: raw("total_pgpgin"),
        total_pg_pg_out: raw("total_pgpgout"),
        total_pg_fault: raw("total_pgfault"),
        total_pg_maj_fault: raw("total_pgmajfault"),
        total_inactive_anon: raw("total_inactive_anon"),
        total_active_anon: raw("total_active_anon"),
        total_inactive_file: raw("total_inactive_file"),
        total_active_file: raw("total_active_file"),
        total_unevictable: raw("total_unevictable"),
        usage: entry(&memory.usage),
        swap: entry(&memory.swap),
        kernel: entry(&memory.kernel),
        kernel_tcp: entry(&memory.kernel_tcp),
    }
}

fn legacy_block_io(stats: &Stats) -> v1::BlkIoStat {
    let list = |entries: &[BlockIoEntry]| {
        let entry = |entry: &BlockIoEntry| v1::BlkIoEntry {
            op: entry.operation.clone(),
            device: String::new(),
            major: entry.major,
            minor: entry.minor,
            value: entry.value,
        };
        entries.iter().map(entry).collect()
    };
    let io = &stats.block_io;
    v1::BlkIoStat {
        io_service_bytes_recursive: list(&io.service_bytes),
        io_serviced_recursive: list(&io.serviced),
        io_queued_recursive: list(&io.queued),
        io_service_time_recursive: list(&io.service_time),
        io_wait_time_recursive: list(&io.wait_time),
        io_merged_recursive: list(&io.merged),
        io_time_recursive: list(&io.time),
        sectors_recursive: list(&io.sectors),
    }
}

fn legacy_rdma(entry: &RdmaEntry) -> v1::RdmaEntry {
    v1::RdmaEntry {
        device: entry.device.clone(),
        hca_handles: entry.hca_handles,
        hca_objects: entry.hca_objects,
    }
}

fn unified(stats: &Stats) -> v2::Metrics {
    const NANOS_PER_MICRO: u64 = 1000;
    let cpu = &stats.cpu;
    let events = |name: &str| stats.memory.events.get(name).copied().unwrap_or_default();
    v2::Metrics {
        pids: Some(v2::PidsStat { current: stats.pids.current, limit: stats.pids.limit }),
        cpu: Some(v2::CpuStat {
            usage_usec: cpu.total / NANOS_PER_MICRO,
            user_usec: cpu.user / NANOS_PER_MICRO,
            system_usec: cpu.kernel / NANOS_PER_MICRO,
            nr_periods: cpu.periods,
            nr_throttled: cpu.throttled_periods,
            throttled_usec: cpu.throttled_time / NANOS_PER_MICRO,
            psi: cpu.pressure.as_ref().map(pressure),
            nr_bursts: cpu.burst_periods,
            burst_usec: cpu.burst_time / NANOS_PER_MICRO,
        }),
        memory: Some(unified_memory(&stats.memory)),
        rdma: Some(v2::RdmaStat {
            current: stats.rdma.current.iter().map(unified_rdma).collect(),
            limit: stats.rdma.limit.iter().map(unified_rdma).collect(),
        }),
        io: Some(unified_io(stats)),
        hugetlb: stats
            .hugetlb
            .iter()
            .map(|(size, counter)| v2::HugeTlbStat {
                current: counter.usage,
                max: counter.limit,
                pagesize: size.clone(),
                failcnt: counter.failures,
            })
            .collect(),
        memory_events: Some(v2::MemoryEvents {
            low: events("low"),
            high: events("high"),
            max: events("max"),
            oom: events("oom"),
            oom_kill: events("oom_kill"),
            oom_group_kill: events("oom_group_kill"),
        }),
        ..v2::Metrics::default()
    }
}

fn unified_memory(memory: &Memory) -> v2::MemoryStat {
    let raw = |name: &str| memory.raw.get(name).copied().unwrap_or_default();
    v2::MemoryStat {
        anon: raw("anon"),
        file: raw("file"),
        kernel_stack: raw("kernel_stack"),
        slab: raw("slab"),
        sock: raw("sock"),
        shmem: raw("shmem"),
        file_mapped: raw("file_mapped"),
        file_dirty: raw("file_dirty"),
        file_writeback: raw("file_writeback"),
        anon_thp: raw("anon_thp"),
        inactive_anon: raw("inactive_anon"),
        active_anon: raw("active_anon"),
        inactive_file: raw("inactive_file"),
        active_file: raw("active_file"),
        unevictable: raw("unevictable"),
        slab_reclaimable: raw("slab_reclaimable"),
        slab_unreclaimable: raw("slab_unreclaimable"),
        pgfault: raw("pgfault"),
        pgmajfault: raw("pgmajfault"),
        workingset_refault: raw("workingset_refault"),
        workingset_activate: raw("workingset_activate"),
        workingset_nodereclaim: raw("workingset_nodereclaim"),
        pgrefill: raw("pgrefill"),
        pgscan: raw("pgscan"),
        pgsteal: raw("pgsteal"),
        pgactivate: raw("pgactivate"),
        pgdeactivate: raw("pgdeactivate"),
        pglazyfree: raw("pglazyfree"),
        pglazyfreed: raw("pglazyfreed"),
        thp_fault_alloc: raw("thp_fault_alloc"),
        thp_collapse_alloc: raw("thp_collapse_alloc"),
        workingset_refault_anon: raw("workingset_refault_anon"),
        workingset_refault_file: raw("workingset_refault_file"),
        workingset_activate_anon: raw("workingset_activate_anon"),
        workingset_activate_file: raw("workingset_activate_file"),
        usage: memory.usage.usage,
        usage_limit: memory.usage.limit,
        swap_usage: memory.swap_only.usage,
        swap_limit: memory.swap_only.limit,
        max_usage: memory.usage.max,
        swap_max_usage: memory.swap_only.max,
        psi: memory.pressure.as_ref().map(pressure),
    }
}

fn unified_io(stats: &Stats) -> v2::IoStat {
    let mut devices: BTreeMap<(u64, u64), v2::IoEntry> = BTreeMap::new();
    let io = &stats.block_io;
    let lists = [(&io.service_bytes, true), (&io.serviced, false)];
    for (entry, is_bytes) in
        lists.iter().flat_map(|(entries, is_bytes)| entries.iter().map(|entry| (entry, *is_bytes)))
    {
        let (major, minor) = (entry.major, entry.minor);
        let device = devices.entry((major, minor)).or_insert_with(|| v2::IoEntry {
            major,
            minor,
            ..v2::IoEntry::default()
        });
        match (entry.operation.as_str(), is_bytes) {
            ("Read", true) => device.rbytes = entry.value,
            ("Write", true) => device.wbytes = entry.value,
            ("Read", false) => device.rios = entry.value,
            ("Write", false) => device.wios = entry.value,
            _ => {}
        }
    }
    let psi = io.pressure.as_ref().map(pressure);
    v2::IoStat { usage: devices.into_values().collect(), psi }
}

fn unified_rdma(entry: &RdmaEntry) -> v2::RdmaEntry {
    v2::RdmaEntry {
        device: entry.device.clone(),
        hca_handles: entry.hca_handles,
        hca_objects: entry.hca_objects,
    }
}

fn pressure(pressure: &Pressure) -> v2::PsiStats {
    let data = |line: &PressureLine| {
        Some(v2::PsiData {
            avg10: line.avg10,
            avg60: line.avg60,
            avg300: line.avg300,
            total: line.total,
        })
    };
    v2::PsiStats { some: data(&pressure.some), full: data(&pressure.full) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let legacy = "5:cpu,cpuacct:/a/b\n2:memory:/a/b\n1:name=systemd:/\n0::/a/b\n";
        let cases = [
            (
                "legacy",
                legacy,
                false,
                vec![
                    ("cpu", "/c/cpu,cpuacct/a/b"),
                    ("cpuacct", "/c/cpu,cpuacct/a/b"),
                    ("memory", "/c/memory/a/b"),
                    ("name=systemd", "/c/systemd/"),
                ],
            ),
            ("unified", "0::/a.slice/b\n", true, vec![("", "/c/a.slice/b")]),
            ("garbage", "x\n\n", true, vec![]),
        ];
        for (case, text, is_unified, want) in cases {
            let want: Paths =
                want.into_iter().map(|(name, path)| (name.to_owned(), path.into())).collect();
            assert_eq!(paths_in(text, Path::new("/c"), is_unified), want, "{case}");
        }
    }

    #[test]
    fn paths_of_a_group() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let (legacy, unified) = (folder.path().join("v1"), folder.path().join("v2"));
        for group in ["memory/pod/a", "pids/pod", "cpu", "unified/pod"] {
            fs::create_dir_all(legacy.join(group)).expect("made");
        }
        fs::create_dir_all(unified.join("pod")).expect("made");
        fs::write(unified.join("cgroup.controllers"), "").expect("written");
        let cases = [
            ("legacy", &legacy, "/pod", vec![("memory", "memory/pod"), ("pids", "pids/pod")]),
            ("below", &legacy, "pod/a", vec![("memory", "memory/pod/a")]),
            ("unified", &unified, "/pod", vec![("", "pod")]),
            ("absent", &unified, "/nosuch", vec![]),
            ("not below", &legacy, "/../v2/pod", vec![]),
        ];
        for (case, root, path, want) in cases {
            let want = want.into_iter().map(|(name, below)| (name.to_owned(), root.join(below)));
            assert_eq!(paths_of_group(path, root), want.collect(), "{case}");
        }
    }
}
