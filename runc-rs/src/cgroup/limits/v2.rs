//! The files of a v2 group.

use super::{OnError, Refusal, Write, hugepages, pids, rdma, set};
use crate::spec::resources::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

/// The kernel's own period, in microseconds.
const PERIOD_DEFAULT: u64 = 100_000;

/// What to write to a v2 group, `unified` keys and devices apart.
pub(in crate::cgroup) fn v2(resources: &LinuxResources) -> Result<Vec<Write>, Refusal> {
    let mut writes: Vec<Write> = pids(resources).into_iter().collect();
    if let Some(memory) = &resources.memory {
        writes.extend(self::memory(memory)?);
    }
    if let Some(io) = &resources.block_io {
        writes.extend(block_io(io));
    }
    if let Some(cpu) = &resources.cpu {
        writes.extend(self::cpu(cpu));
        let lists = [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)];
        let given = lists.into_iter().filter(|(_, list)| !list.is_empty());
        writes.extend(given.map(|(file, list)| Write::new(file, list)));
    }
    for limit in &resources.hugepage_limits {
        writes.extend(hugepages(limit, "max")?);
    }
    writes.extend(resources.rdma.iter().map(rdma));
    Ok(writes)
}

/// What to write for the `unified` keys: each line of a value on its own.
pub(in crate::cgroup) fn unified(resources: &LinuxResources) -> Result<Vec<Write>, Refusal> {
    let mut writes = Vec::new();
    for (file, value) in &resources.unified {
        if file.contains('/') {
            return Err(format!("unified resource {file:?} must be a file name (no slashes)"));
        }
        if !file.contains('.') || file.starts_with('.') {
            return Err(format!(
                "unified resource {file:?} must be in the form CONTROLLER.PARAMETER"
            ));
        }
        writes.extend(value.lines().map(|line| Write::new(file.clone(), line)));
    }
    Ok(writes)
}

/// A limit as v2 writes it.
fn limit(value: i64) -> String {
    if value == -1 { "max".to_owned() } else { value.to_string() }
}

fn memory(memory: &LinuxMemory) -> Result<Vec<Write>, Refusal> {
    let mut writes = Vec::new();
    if let Some(swap) = swap(memory.swap.unwrap_or(0), memory.limit.unwrap_or(0))? {
        // Without swap in the kernel, no limit and no swap are what there is.
        let on_error = if swap <= 0 { OnError::SkipMissing } else { OnError::Fail };
        writes.push(Write::new("memory.swap.max", limit(swap)).on_error(on_error));
    }
    if let Some(memory) = set(memory.limit) {
        writes.push(Write::new("memory.max", limit(memory)));
    }
    if let Some(reservation) = set(memory.reservation) {
        writes.push(Write::new("memory.low", limit(reservation)));
    }
    Ok(writes)
}

/// The limit of swap alone, from that of memory and swap together; -1 is "no limit".
pub(in crate::cgroup) fn swap(both: i64, memory: i64) -> Result<Option<i64>, Refusal> {
    Ok(match (both, memory) {
        // As in v1, where more memory than memory and swap is impossible.
        (0, -1) => Some(-1),
        (0, _) => None,
        (-1, _) => Some(-1),
        (both, -1) => Some(both),
        (_, 0) => return Err("unable to set swap limit without memory limit".to_owned()),
        (_, memory) if memory < 0 => return Err(format!("invalid memory value: {memory}")),
        (both, memory) if both < memory => {
            return Err("memory+swap limit should be >= memory limit".to_owned());
        }
        (both, memory) => Some(both - memory),
    })
}

fn cpu(cpu: &LinuxCpu) -> Vec<Write> {
    let mut writes = Vec::new();
    if let Some(idle) = cpu.idle {
        writes.push(Write::new("cpu.idle", idle));
    }
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        writes.push(Write::new("cpu.weight", weight(shares)));
    }
    if let Some(burst) = cpu.burst {
        writes.push(Write::new("cpu.max.burst", burst).on_error(OnError::Defer));
    }
    let period = cpu.period.filter(|period| *period != 0);
    if set(cpu.quota).is_some() || period.is_some() {
        let quota = cpu.quota.filter(|quota| *quota > 0);
        let quota = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
        let period = period.unwrap_or(PERIOD_DEFAULT);
        writes.push(Write::new("cpu.max", format!("{quota} {period}")));
    }
    writes
}

/// The v2 weight, 1 to 10000, for v1 shares, 2 to 262144.
///
/// A quadratic function through the ends and the defaults (1024 and 100), which runc and crun
/// have agreed on.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the value is between 1 and 10000"
)]
pub(in crate::cgroup) fn weight(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10_f64.powf(exponent).ceil() as u64
        }
    }
}

fn block_io(io: &LinuxBlockIo) -> Vec<Write> {
    let mut writes = Vec::new();
    if let Some(weight) = io.weight.filter(|weight| *weight != 0) {
        // BFQ has v1's weights; the others' go from 1 to 10000.
        let converted = 1 + u64::from(weight.saturating_sub(10)) * 9999 / 990;
        let other = Box::new(Write::new("io.weight", converted));
        writes.push(Write::new("io.bfq.weight", weight).on_error(OnError::Else(other)));
    }
    for device in &io.weight_device {
        if let Some(weight) = device.weight.filter(|weight| *weight != 0) {
            let value = format!("{}:{} {weight}", device.major, device.minor);
            writes.push(Write::new("io.bfq.weight", value).on_error(OnError::SkipMissing));
        }
    }
    let rates = [
        ("rbps", &io.throttle_read_bps_device),
        ("wbps", &io.throttle_write_bps_device),
        ("riops", &io.throttle_read_iops_device),
        ("wiops", &io.throttle_write_iops_device),
    ];
    for (key, devices) in rates {
        for device in devices {
            let rate = if device.rate == 0 { "max".to_owned() } else { device.rate.to_string() };
            let value = format!("{}:{} {key}={rate}", device.major, device.minor);
            writes.push(Write::new("io.max", value));
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

    fn show(writes: &[Write]) -> Vec<String> {
        writes.iter().map(|write| format!("{}={}", write.file, write.value)).collect()
    }

    #[test]
    fn files_and_values() {
        let cases: [(&str, &[&str]); 9] = [
            (
                r#"{"memory":{"limit":100,"swap":300,"reservation":50}}"#,
                &["memory.swap.max=200", "memory.max=100", "memory.low=50"],
            ),
            (r#"{"memory":{"limit":100,"swap":100}}"#, &["memory.swap.max=0", "memory.max=100"]),
            (r#"{"memory":{"limit":-1}}"#, &["memory.swap.max=max", "memory.max=max"]),
            (r#"{"memory":{"limit":0,"swap":-1}}"#, &["memory.swap.max=max"]),
            (
                r#"{"cpu":{"shares":1024,"quota":20000,"burst":5,"idle":0,"mems":"0"}}"#,
                &[
                    "cpu.idle=0",
                    "cpu.weight=100",
                    "cpu.max.burst=5",
                    "cpu.max=20000 100000",
                    "cpuset.mems=0",
                ],
            ),
            (r#"{"cpu":{"period":50000}}"#, &["cpu.max=max 50000"]),
            (
                r#"{"blockIO":{"weight":1000,"throttleReadBpsDevice":
                    [{"major":8,"minor":0,"rate":7},{"major":8,"minor":1,"rate":0}]}}"#,
                &["io.bfq.weight=1000", "io.max=8:0 rbps=7", "io.max=8:1 rbps=max"],
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4}],
                    "rdma":{"mlx4_0":{"hcaHandles":3}}}"#,
                &["hugetlb.2MB.max=4", "hugetlb.2MB.rsvd.max=4", "rdma.max=mlx4_0 hca_handle=3"],
            ),
            (r#"{"pids":{"limit":42}}"#, &["pids.max=42"]),
        ];
        for (json, want) in cases {
            assert_eq!(show(&v2(&resources(json)).expect(json)), want, "{json}");
        }
    }

    #[test]
    fn unified_keys() {
        let json = r#"{"unified":{"memory.high":"5","io.max":"8:0 rbps=1\n8:1 rbps=2\n"}}"#;
        let want = ["io.max=8:0 rbps=1", "io.max=8:1 rbps=2", "memory.high=5"];
        assert_eq!(show(&unified(&resources(json)).expect(json)), want);
        let refusals = [
            (
                r#"{"unified":{"../x.y":"1"}}"#,
                "unified resource \"../x.y\" must be a file name (no slashes)",
            ),
            (
                r#"{"unified":{"memory":"1"}}"#,
                "unified resource \"memory\" must be in the form CONTROLLER.PARAMETER",
            ),
        ];
        for (json, want) in refusals {
            assert_eq!(unified(&resources(json)), Err(want.to_owned()), "{json}");
        }
    }

    #[test]
    fn refuses() {
        let cases = [
            (r#"{"memory":{"swap":5}}"#, "unable to set swap limit without memory limit"),
            (r#"{"memory":{"limit":6,"swap":5}}"#, "memory+swap limit should be >= memory limit"),
            (r#"{"memory":{"limit":-6,"swap":5}}"#, "invalid memory value: -6"),
        ];
        for (json, want) in cases {
            assert_eq!(v2(&resources(json)), Err(want.to_owned()), "{json}");
        }
    }

    #[test]
    fn weights() {
        let cases = [(2, 1), (3, 2), (1024, 100), (512, 59), (262_143, 10_000), (1 << 40, 10_000)];
        for (shares, want) in cases {
            assert_eq!(weight(shares), want, "{shares}");
        }
    }
}
