//! Parts of the runtime-spec that are Linux's alone, as root, on the real kernel: scheduling,
//! memory, network devices.

mod support;

use std::{fs, process::Command};

use serde_json::json;
use support::{Answer, Bundle};

#[test]
fn memory_policy_of_an_init() {
    let mut bundle = Bundle::new("head -n 1 /proc/self/numa_maps");
    bundle.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
    let answer = bundle.run();
    assert!(answer.stdout.contains(" bind:0 "), "{answer:?}");
}

#[test]
fn memory_policy_of_an_exec() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["linux"]["memoryPolicy"] =
        json!({"mode": "MPOL_PREFERRED", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    bundle.start();
    let answer = bundle.on("exec", &["sh", "-c", "head -n 1 /proc/self/numa_maps"]);
    assert!(answer.stdout.contains(" prefer=static:0 "), "{answer:?}");
}

/// The first two CPUs that the tests may use.
fn two_cpus() -> [usize; 2] {
    let words = sys::affinity::cpus().expect("own CPUs").first_word();
    let mut cpus = (0..64).filter(|cpu| words & (1 << cpu) != 0);
    [(); 2].map(|()| cpus.next().expect("these tests need two of the first 64 CPUs"))
}

#[test]
fn cpus_of_an_exec() {
    const SHOW: [&str; 3] = ["grep", "Cpus_allowed_list", "/proc/self/status"];
    let [one, other] = two_cpus();
    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["process"]["execCPUAffinity"] =
        json!({"initial": one.to_string(), "final": other.to_string()});
    bundle.start();
    let list = |answer: &Answer| answer.stdout.trim().split('\t').nth(1).map(str::to_owned);
    let answer = bundle.on("exec", &SHOW);
    assert_eq!(list(&answer), Some(other.to_string()), "of the container: {answer:?}");
    let cases = [
        ("initial", json!({"initial": one.to_string()}), one.to_string()),
        ("final", json!({"final": other.to_string()}), other.to_string()),
        ("past 1024", json!({"final": format!("{other},1024-5000")}), other.to_string()),
    ];
    for (case, affinity, want) in cases {
        let process = json!({"args": SHOW, "cwd": "/", "env": ["PATH=/bin"],
            "execCPUAffinity": affinity});
        let file = bundle.path().join("process.json");
        fs::write(&file, process.to_string()).expect("write process");
        let answer =
            bundle.call(&["exec", "-p", file.to_str().expect("plain name"), bundle.id.as_str()]);
        assert_eq!(list(&answer), Some(want), "{case}: {answer:?}");
    }
}

#[test]
fn runtime_s_own_affinity_is_not_handed_on() {
    let [one, _] = two_cpus();
    let bundle = Bundle::new("grep Cpus_allowed_list /proc/self/status");
    bundle.write_config();
    let run = bundle.command(&["run", "-b", bundle.path_text(), &bundle.id]);
    let mut command = Command::new("/bin/busybox");
    command.arg("taskset").arg(format!("{:x}", 1_u64 << one)).arg(run.get_program());
    let answer = Answer::new(command.args(run.get_args()).output().expect("run taskset"));
    let own = fs::read_to_string("/proc/self/status").expect("own status");
    let own = own.lines().find(|line| line.starts_with("Cpus_allowed_list")).expect("a list");
    assert_eq!(answer.stdout.trim_end(), own, "{answer:?}");
}

/// Runs the bundle in a network namespace of its own, in which `setup` has been done.
fn run_with_network(bundle: &Bundle, setup: &str) -> Answer {
    bundle.write_config();
    let run = bundle.command(&["run", "-b", bundle.path_text(), &bundle.id]);
    let mut command = Command::new("/bin/busybox");
    let script = format!("{setup} && exec \"$@\"");
    command.args(["unshare", "-n", "/bin/busybox", "sh", "-c", &script, "sh"]);
    command.arg(run.get_program()).args(run.get_args());
    Answer::new(command.output().expect("run unshare"))
}

const INTERFACE: &str = "b=/bin/busybox; $b ip link add spec0 type veth && \
    $b ip addr add 10.9.8.7/24 dev spec0 && $b ip addr add 127.0.0.33/32 scope host dev spec0 && \
    $b ip link set spec0 mtu 1789";

#[test]
fn network_devices_move_with_their_addresses() {
    let show = "busybox ip -4 -o addr show dev NAME; cat /sys/class/net/NAME/mtu";
    let cases = [("own name", json!({}), "spec0"), ("new name", json!({"name": "eth7"}), "eth7")];
    for (case, device, name) in cases {
        let mut bundle = Bundle::new(&show.replace("NAME", name));
        bundle.config["linux"]["netDevices"] = json!({"spec0": device});
        let answer = run_with_network(&bundle, INTERFACE);
        let lines: Vec<&str> = answer.stdout.lines().collect();
        assert_eq!(lines.len(), 2, "{case}: {answer:?}");
        assert!(lines[0].contains("inet 10.9.8.7/24 brd 10.9.8.255"), "{case}: {answer:?}");
        assert_eq!(lines[1], "1789", "{case}: {answer:?}");
    }
}

#[test]
fn network_device_that_is_not_there() {
    let mut bundle = Bundle::new("true");
    bundle.config["linux"]["netDevices"] = json!({"nosuch0": {}});
    let answer = bundle.run();
    assert_eq!(answer.status, 1, "{answer:?}");
    let want = "link not found for interface nosuch0 on runtime namespace";
    assert!(answer.stderr.contains(want), "{answer:?}");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

#[test]
fn shares_of_caches_need_a_machine_that_has_them() {
    if fs::read_to_string("/proc/mounts").expect("mounts").contains(" resctrl ") {
        eprintln!("this machine has resctrl, so there is nothing to refuse");
        return;
    }
    let mut bundle = Bundle::new("sleep 1000");
    bundle.start();
    let answer = bundle.on("update", &["--l3-cache-schema", "L3:0=f"]);
    let want = "Intel RDT/CAT: l3 cache schema is not enabled";
    assert!(answer.status == 1 && answer.stderr.contains(want), "{answer:?}");
    let answer = bundle.on("update", &["--mem-bw-schema", "MB:0=20"]);
    let want = "Intel RDT/MBA: memory bandwidth schema is not enabled";
    assert!(answer.status == 1 && answer.stderr.contains(want), "{answer:?}");
    bundle.on("delete", &["--force"]);
    bundle.config["linux"]["intelRdt"] = json!({"closID": "x"});
    let answer = bundle.run();
    let want = "intelRdt is specified in config, but Intel RDT is not enabled";
    assert!(answer.status == 1 && answer.stderr.contains(want), "{answer:?}");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

#[test]
fn words_reach_the_kernel() {
    const SCHEDULER: &str =
        "set -- $(cat /proc/self/stat); shift 18; echo nice $1; shift 22; echo policy $1";
    let batch = json!({"policy": "SCHED_BATCH", "nice": 5});
    let best_effort = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    let cases = [
        ("oomScoreAdj", "process", json!(123), "cat /proc/self/oom_score_adj", "123\n"),
        ("scheduler", "process", batch, SCHEDULER, "nice 5\npolicy 3\n"),
        ("ioPriority", "process", best_effort, "busybox ionice -p 1", "best-effort: prio 6\n"),
        (
            "personality",
            "linux",
            json!({"domain": "LINUX32"}),
            "cat /proc/self/personality",
            "00000008\n",
        ),
        (
            "sysctl",
            "linux",
            json!({"net.ipv4.ip_forward": "1", "kernel.shmmax": "12345"}),
            "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax",
            "1\n12345\n",
        ),
    ];
    for (name, section, value, script, want) in cases {
        let mut bundle = Bundle::new(script);
        bundle.config[section][name] = value;
        let answer = bundle.run();
        assert_eq!(answer.stdout, want, "{name}: {answer:?}");
    }
    let mut bundle = Bundle::new("hostname; cat /proc/sys/kernel/domainname");
    bundle.config["hostname"] = json!("one");
    bundle.config["domainname"] = json!("two");
    assert_eq!(bundle.run().stdout, "one\ntwo\n");
}
