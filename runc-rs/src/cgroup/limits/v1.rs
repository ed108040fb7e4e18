//! The files of v1 controllers.

use super::{OnError, Refusal, Write, hugepages, pids, rdma, set};
use crate::spec::resources::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

/// The kernel's bounds of `cpu.shares`, to which it would correct silently.
const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 1 << 18;

/// What to write for a v1 controller. Real-time scheduling comes last, the cpuset first.
pub(in crate::cgroup) fn v1(
    controller: &str,
    resources: &LinuxResources,
) -> Result<Vec<Write>, Refusal> {
    let writes = match controller {
        "cpuset" => resources.cpu.as_ref().map(cpuset).unwrap_or_default(),
        "cpu" => resources.cpu.as_ref().map(cpu).transpose()?.unwrap_or_default(),
        "memory" => resources.memory.as_ref().map(memory).transpose()?.unwrap_or_default(),
        "pids" => pids(resources).into_iter().collect(),
        "blkio" => resources.block_io.as_ref().map(block_io).unwrap_or_default(),
        "hugetlb" => {
            let mut writes = Vec::new();
            for limit in &resources.hugepage_limits {
                writes.extend(hugepages(limit, "limit_in_bytes")?);
            }
            writes
        }
        "rdma" => resources.rdma.iter().map(rdma).collect(),
        "net_cls" => {
            let class = resources.network.as_ref().and_then(|network| network.class_id);
            let class = class.filter(|class| *class != 0);
            class.map(|class| Write::new("net_cls.classid", class)).into_iter().collect()
        }
        "net_prio" => {
            let priorities = resources.network.iter().flat_map(|network| &network.priorities);
            priorities
                .map(|of| Write::new("net_prio.ifpriomap", format!("{} {}", of.name, of.priority)))
                .collect()
        }
        _ => Vec::new(),
    };
    Ok(writes)
}

fn cpuset(cpu: &LinuxCpu) -> Vec<Write> {
    let lists = [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)];
    let given = lists.into_iter().filter(|(_, list)| !list.is_empty());
    given.map(|(file, list)| Write::new(file, list)).collect()
}

fn cpu(cpu: &LinuxCpu) -> Result<Vec<Write>, Refusal> {
    let mut writes = Vec::new();
    match cpu.shares {
        None | Some(0) => {}
        Some(..SHARES_MIN) => {
            return Err(format!("the minimum allowed cpu-shares is {SHARES_MIN}"));
        }
        Some(shares) if shares > SHARES_MAX => {
            return Err(format!("the maximum allowed cpu-shares is {SHARES_MAX}"));
        }
        Some(shares) => writes.push(Write::new("cpu.shares", shares)),
    }
    if let Some(period) = cpu.period.filter(|period| *period != 0) {
        writes.push(Write::new("cpu.cfs_period_us", period).on_error(OnError::Defer));
    }
    if let Some(burst) = cpu.burst {
        let write = Write::new("cpu.cfs_burst_us", burst);
        writes.push(write.on_error(OnError::DeferOrSkipMissing));
    }
    if let Some(quota) = set(cpu.quota) {
        writes.push(Write::new("cpu.cfs_quota_us", quota));
    }
    if let Some(idle) = cpu.idle {
        writes.push(Write::new("cpu.idle", idle));
    }
    if let Some(period) = cpu.realtime_period.filter(|period| *period != 0) {
        writes.push(Write::new("cpu.rt_period_us", period).on_error(OnError::Defer));
    }
    if let Some(runtime) = set(cpu.realtime_runtime) {
        writes.push(Write::new("cpu.rt_runtime_us", runtime));
    }
    Ok(writes)
}

fn memory(memory: &LinuxMemory) -> Result<Vec<Write>, Refusal> {
    let mut writes = Vec::new();
    // The limit of memory may never be above that of memory and swap. Which of them must go
    // first depends on the old values; whichever is refused first is tried again.
    if let Some(limit) = set(memory.limit) {
        writes.push(Write::new("memory.limit_in_bytes", limit).on_error(OnError::Defer));
    }
    match (set(memory.swap), set(memory.limit)) {
        (Some(swap), _) => writes.push(Write::new("memory.memsw.limit_in_bytes", swap)),
        (None, Some(-1)) => {
            let write = Write::new("memory.memsw.limit_in_bytes", -1);
            writes.push(write.on_error(OnError::SkipMissing));
        }
        (None, _) => {}
    }
    if let Some(reservation) = set(memory.reservation) {
        writes.push(Write::new("memory.soft_limit_in_bytes", reservation));
    }
    if memory.disable_oom_killer == Some(true) {
        writes.push(Write::new("memory.oom_control", 1));
    }
    match memory.swappiness {
        // -1 by way of an unsigned number is "as it is".
        None | Some(u64::MAX) => {}
        Some(swappiness @ ..=100) => writes.push(Write::new("memory.swappiness", swappiness)),
        Some(swappiness) => {
            return Err(format!(
                "invalid memory swappiness value: {swappiness} (valid range is 0-100)"
            ));
        }
    }
    Ok(writes)
}

fn block_io(io: &LinuxBlockIo) -> Vec<Write> {
    // The weights belong to the scheduler that is built in: CFQ's before Linux 5.0, then BFQ's.
    let weight = |file: &'static str, bfq: &'static str, value: String| {
        let bfq = Write::new(bfq, &value);
        Write::new(file, &value).on_error(OnError::Else(Box::new(bfq)))
    };
    let mut writes = Vec::new();
    if let Some(value) = io.weight.filter(|weight| *weight != 0) {
        writes.push(weight("blkio.weight", "blkio.bfq.weight", value.to_string()));
    }
    if let Some(value) = io.leaf_weight.filter(|weight| *weight != 0) {
        writes.push(Write::new("blkio.leaf_weight", value));
    }
    for device in &io.weight_device {
        let value = |weight: u16| format!("{}:{} {weight}", device.major, device.minor);
        if let Some(given) = device.weight.filter(|weight| *weight != 0) {
            writes.push(weight("blkio.weight_device", "blkio.bfq.weight_device", value(given)));
        }
        if let Some(given) = device.leaf_weight.filter(|weight| *weight != 0) {
            writes.push(Write::new("blkio.leaf_weight_device", value(given)));
        }
    }
    let rates = [
        ("blkio.throttle.read_bps_device", &io.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", &io.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", &io.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", &io.throttle_write_iops_device),
    ];
    for (file, devices) in rates {
        for device in devices {
            let value = format!("{}:{} {}", device.major, device.minor, device.rate);
            writes.push(Write::new(file, value));
        }
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).expect("is valid")
    }

    /// `file=value`, with a mark for what may be refused.
    fn show(writes: &[Write]) -> Vec<String> {
        let show = |write: &Write| {
            let mark = match &write.on_error {
                OnError::Fail => String::new(),
                OnError::SkipMissing => "?".to_owned(),
                OnError::Defer => "~".to_owned(),
                OnError::DeferOrSkipMissing => "~?".to_owned(),
                OnError::Else(other) => format!(" or {}={}", other.file, other.value),
            };
            format!("{}={}{mark}", write.file, write.value)
        };
        writes.iter().map(show).collect()
    }

    #[test]
    fn files_and_values() {
        let cases: [(&str, &str, &[&str]); 12] = [
            ("cpuset", r#"{"cpu":{"cpus":"0-1"}}"#, &["cpuset.cpus=0-1"]),
            (
                "cpu",
                r#"{"cpu":{"shares":512,"quota":-1,"period":50000,"burst":10,"idle":1}}"#,
                &[
                    "cpu.shares=512",
                    "cpu.cfs_period_us=50000~",
                    "cpu.cfs_burst_us=10~?",
                    "cpu.cfs_quota_us=-1",
                    "cpu.idle=1",
                ],
            ),
            (
                "cpu",
                r#"{"cpu":{"shares":0,"quota":0,"realtimeRuntime":1,"realtimePeriod":2}}"#,
                &["cpu.rt_period_us=2~", "cpu.rt_runtime_us=1"],
            ),
            (
                "memory",
                r#"{"memory":{"limit":524288,"swap":1048576,"reservation":4,"swappiness":60,
                    "kernel":7,"disableOOMKiller":true}}"#,
                &[
                    "memory.limit_in_bytes=524288~",
                    "memory.memsw.limit_in_bytes=1048576",
                    "memory.soft_limit_in_bytes=4",
                    "memory.oom_control=1",
                    "memory.swappiness=60",
                ],
            ),
            (
                "memory",
                r#"{"memory":{"limit":-1,"disableOOMKiller":false}}"#,
                &["memory.limit_in_bytes=-1~", "memory.memsw.limit_in_bytes=-1?"],
            ),
            ("pids", r#"{"pids":{"limit":0}}"#, &["pids.max=1"]),
            ("pids", r#"{"pids":{"limit":-1}}"#, &["pids.max=max"]),
            ("pids", r#"{"pids":{}}"#, &[]),
            (
                "blkio",
                r#"{"blockIO":{"weight":100,"weightDevice":[{"major":8,"minor":0,"weight":10}],
                    "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]}}"#,
                &[
                    "blkio.weight=100 or blkio.bfq.weight=100",
                    "blkio.weight_device=8:0 10 or blkio.bfq.weight_device=8:0 10",
                    "blkio.throttle.write_iops_device=8:16 0",
                ],
            ),
            (
                "hugetlb",
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4096}]}"#,
                &["hugetlb.2MB.limit_in_bytes=4096", "hugetlb.2MB.rsvd.limit_in_bytes=4096?"],
            ),
            ("net_cls", r#"{"network":{"classID":1048577}}"#, &["net_cls.classid=1048577"]),
            (
                "net_prio",
                r#"{"network":{"priorities":[{"name":"eth0","priority":5}]}}"#,
                &["net_prio.ifpriomap=eth0 5"],
            ),
        ];
        for (controller, json, want) in cases {
            let got = v1(controller, &resources(json)).expect(json);
            assert_eq!(show(&got), want, "{controller} {json}");
        }
    }

    #[test]
    fn refuses() {
        let cases = [
            ("cpu", r#"{"cpu":{"shares":1}}"#, "the minimum allowed cpu-shares is 2"),
            ("cpu", r#"{"cpu":{"shares":262145}}"#, "the maximum allowed cpu-shares is 262144"),
            (
                "memory",
                r#"{"memory":{"swappiness":101}}"#,
                "invalid memory swappiness value: 101 (valid range is 0-100)",
            ),
            (
                "hugetlb",
                r#"{"hugepageLimits":[{"pageSize":"../x","limit":1}]}"#,
                "invalid hugepage size \"../x\"",
            ),
        ];
        for (controller, json, want) in cases {
            assert_eq!(v1(controller, &resources(json)), Err(want.to_owned()), "{json}");
        }
    }
}
