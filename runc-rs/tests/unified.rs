//! Whole containers on a machine with cgroup v2 alone, with every controller.
//!
//! Run in a virtual machine by `cargo test -p integration --test vm -- v2`. Tests with
//! `needs_<feature>` in their name are left out where the kernel lacks that.

mod support;

use serde_json::json;
use support::Bundle;

fn needs_unified() {
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    let controllers = controllers.expect("needs cgroup v2: run this in the virtual machine");
    assert!(controllers.contains("memory"), "needs cgroup v2 with controllers");
}

#[test]
fn exec_follows_the_init_into_a_group_below() {
    needs_unified();
    let mut bundle = Bundle::new("sleep 1000");
    make_cgroups_writable(&mut bundle);
    bundle.start();
    let cgroup = |what: &str| {
        let answer = bundle.on("exec", &["cat", "/proc/self/cgroup"]);
        assert_eq!(answer.status, 0, "{what}: {}", answer.stderr);
        answer.stdout
    };
    let sh = |script: &str| {
        let answer = bundle.on("exec", &["sh", "-euc", script]);
        assert_eq!(answer.status, 0, "{script}: {}", answer.stderr);
    };
    assert_eq!(cgroup("at first"), "0::/\n");
    sh("mkdir /sys/fs/cgroup/foo; echo 1 > /sys/fs/cgroup/foo/cgroup.procs");
    assert_eq!(cgroup("the init is below"), "0::/\n");
    sh("cd /sys/fs/cgroup; echo $$ > foo/cgroup.procs; echo +memory > cgroup.subtree_control");
    assert_eq!(cgroup("only there may processes be"), "0::/foo\n");
    assert_eq!(bundle.on("delete", &["--force"]).status, 0);
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

fn make_cgroups_writable(bundle: &mut Bundle) {
    let mounts = bundle.config["mounts"].as_array_mut().expect("a list");
    for mount in mounts.iter_mut().filter(|mount| mount["type"] == "cgroup") {
        mount["options"] = json!(["nosuid", "noexec", "nodev", "relatime"]);
    }
}
