//! `update`, flag by flag, on cgroup v1, as root, on the real kernel. `unified.rs` and `systemd.rs`
//! have v2.

mod support;

use std::fs;

use serde_json::json;
use support::Bundle;

/// The container's file of a controller, if the kernel has it.
fn file(bundle: &Bundle, controller: &str, name: &str) -> Option<String> {
    let path = format!("/sys/fs/cgroup/{controller}/{}/{name}", bundle.id);
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Whether the kernel keeps a soft limit: newer ones take it and forget it.
fn has_soft_limits(bundle: &Bundle) -> bool {
    const NAME: &str = "memory.soft_limit_in_bytes";
    let path = format!("/sys/fs/cgroup/memory/{}/{NAME}", bundle.id);
    fs::write(path, "16777216").is_ok()
        && file(bundle, "memory", NAME).is_some_and(|kept| kept == "16777216")
}

/// Whether there is cgroup v1 here, as in the machine whose suite has this program.
fn has_legacy_cgroups() -> bool {
    let found = !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if !found {
        #[expect(clippy::print_stderr, reason = "what is not tested is said")]
        {
            eprintln!("SKIPPED: there is only cgroup v2 here");
        }
    }
    found
}

#[test]
fn each_flag_sets_its_limit() {
    if !has_legacy_cgroups() {
        return;
    }
    let bundle = Bundle::new("sleep 1000");
    bundle.start();
    // Only the first ones are in every kernel.
    let cases = [
        ("--pids-limit", "42", "pids", "pids.max", "42"),
        ("--pids-limit", "-1", "pids", "pids.max", "max"),
        ("--cpu-share", "200", "cpu", "cpu.shares", "200"),
        ("--cpu-period", "200000", "cpu", "cpu.cfs_period_us", "200000"),
        ("--cpu-quota", "50000", "cpu", "cpu.cfs_quota_us", "50000"),
        ("--memory", "64m", "memory", "memory.limit_in_bytes", "67108864"),
        ("--memory-reservation", "32MB", "memory", "memory.soft_limit_in_bytes", "33554432"),
        ("--cpuset-cpus", "0", "cpuset", "cpuset.cpus", "0"),
        ("--cpuset-mems", "0", "cpuset", "cpuset.mems", "0"),
        ("--memory-swap", "128m", "memory", "memory.memsw.limit_in_bytes", "134217728"),
        ("--cpu-burst", "10000", "cpu", "cpu.cfs_burst_us", "10000"),
        ("--cpu-rt-period", "900000", "cpu", "cpu.rt_period_us", "900000"),
        ("--cpu-rt-runtime", "1000", "cpu", "cpu.rt_runtime_us", "1000"),
        ("--blkio-weight", "123", "blkio", "blkio.bfq.weight", "123"),
        ("--cpu-idle", "1", "cpu", "cpu.idle", "1"),
    ];
    let mut set = 0;
    for (flag, value, controller, name, want) in cases {
        let is_soft = flag == "--memory-reservation";
        if file(&bundle, controller, name).is_none() || is_soft && !has_soft_limits(&bundle) {
            continue;
        }
        let answer = bundle.call(&["update", flag, value, &bundle.id]);
        assert_eq!((answer.status, answer.stderr.as_str()), (0, ""), "{flag} {value}");
        let found = file(&bundle, controller, name);
        assert_eq!(found.as_deref(), Some(want), "{flag} {value}: {name}");
        set += 1;
    }
    assert!(set >= 7, "only {set} limits are here");
}

#[test]
fn limits_of_the_kernels_memory_are_ignored() {
    let bundle = Bundle::new("sleep 1000");
    bundle.start();
    let warning = "Kernel memory settings are ignored and will be removed";
    for (flag, value, status, want) in [
        ("--kernel-memory", "1m", 0, warning),
        ("--kernel-memory-tcp", "1m", 0, warning),
        ("--kernel-memory", "x", 1, "invalid value for kernel-memory: invalid size: 'x'"),
        ("--kernel-memory-tcp", "x", 1, "invalid value for kernel-memory-tcp: invalid size: 'x'"),
    ] {
        let answer = bundle.call(&["update", flag, value, &bundle.id]);
        assert_eq!(answer.status, status, "{flag} {value}: {}", answer.stderr);
        assert!(answer.stderr.contains(want), "{flag} {value}: {}", answer.stderr);
    }
}

/// What is refused is said in runc's words, and changes nothing.
#[test]
fn values_that_the_kernel_refuses() {
    if !has_legacy_cgroups() {
        return;
    }
    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["linux"]["resources"]["pids"] = json!({"limit": 30});
    bundle.start();
    let path = format!("/sys/fs/cgroup/cpuset/{}/cpuset.cpus", bundle.id);
    let cases = [
        (
            "--cpuset-cpus",
            "x",
            format!("failed to write \\\"x\\\": write {path}: invalid argument"),
        ),
        ("--cpu-share", "1", "the minimum allowed cpu-shares is 2".to_owned()),
        ("--memory", "10", "unable to set memory limit to 10 (current usage: ".to_owned()),
        ("--pids-limit", "x", "invalid value for pids-limit".to_owned()),
    ];
    for (flag, value, want) in cases {
        let answer = bundle.call(&["update", flag, value, &bundle.id]);
        assert_eq!(answer.status, 1, "{flag} {value}: {}", answer.stderr);
        assert!(answer.stderr.contains(&want), "{flag} {value}: {}", answer.stderr);
    }
    assert_eq!(file(&bundle, "pids", "pids.max").as_deref(), Some("30"));
}

#[test]
fn a_container_that_has_stopped_has_no_limits() {
    let bundle = Bundle::new("true");
    bundle.start();
    bundle.wait_for("stopped");
    let answer = bundle.on("update", &["--pids-limit", "5"]);
    assert_eq!(answer.status, 1);
    assert!(answer.stderr.contains("container not running"), "{}", answer.stderr);
    // Whose cgroup may be gone already.
    let answer = bundle.call(&["ps", "-f", "json", &bundle.id]);
    assert_eq!((answer.status, answer.stdout.as_str()), (0, "null\n"), "{}", answer.stderr);
}
