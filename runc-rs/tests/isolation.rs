//! What a container can see and do, as root, on the real kernel. Where a case stands for an
//! advisory, its number is in the case.

mod support;

use std::{
    fs,
    os::{fd::AsRawFd as _, unix::fs::symlink},
};

use serde_json::json;
use support::Bundle;

#[test]
fn restrictions() {
    let cases = [
        ("hostname", "hostname", "runc-rs\n"),
        ("pid 1", "echo $$", "1\n"),
        ("read-only root", "touch /x 2>&1", "touch: /x: Read-only file system\n"),
        ("masked file", "cat /proc/keys", ""),
        ("masked directory", "ls /sys/firmware", ""),
        (
            "masked directory is read-only",
            "touch /sys/firmware/x 2>&1",
            "touch: /sys/firmware/x: Read-only file system\n",
        ),
        (
            "read-only path",
            "echo 1 2>&1 > /proc/sys/kernel/panic",
            "sh: can't create /proc/sys/kernel/panic: Read-only file system\n",
        ),
        (
            "capabilities",
            "grep -E 'Cap(Inh|Eff|Amb)' /proc/self/status",
            "CapInh:\t0000000000000000\nCapEff:\t0000000020000420\nCapAmb:\t0000000000000000\n",
        ),
        ("no new privileges", "grep NoNew /proc/self/status", "NoNewPrivs:\t1\n"),
        ("limits", "ulimit -n", "1024\n"),
        ("loopback is up", "cat /sys/class/net/lo/flags", "0x9\n"),
        ("descriptors", "ls /proc/$$/fd; true", "0\n1\n2\n"),
        ("multiplexer", "readlink /dev/ptmx", "pts/ptmx\n"),
        ("devices", "stat -c '%t:%T %a' /dev/null /dev/tty", "1:3 666\n5:0 666\n"),
        ("environment", "echo $HOME $TERM", "/root xterm\n"),
    ];
    for (case, script, want) in cases {
        let answer = Bundle::new(script).run();
        assert_eq!(answer.stdout, want, "{case}: {}", answer.stderr);
    }
}

/// A driver that is not there says so; a device that the cgroup forbids is refused before.
#[test]
fn devices_that_every_container_may_use() {
    let cases = [("c 10 200, /dev/net/tun", 10, 200, true), ("c 1 11, /dev/kmsg", 1, 11, false)];
    for (case, major, minor, allowed) in cases {
        let mut bundle = Bundle::new("cat < /dev/net/it");
        bundle.config["linux"]["devices"] = json!([
            {"path": "/dev/net/it", "type": "c", "major": major, "minor": minor, "fileMode": 438}
        ]);
        bundle.config["linux"]["resources"]["devices"] = json!([{"allow": false, "access": "rwm"}]);
        let answer = bundle.run();
        let refused = answer.stderr.contains("not permitted");
        assert_eq!(refused, !allowed, "{case}: {answer:?}");
    }
}

#[test]
fn capabilities_that_nobody_has_are_left_out() {
    let mut bundle = Bundle::new("grep CapPrm /proc/self/status");
    let own = rustix::thread::capabilities(None).expect("own capabilities").permitted;
    let names = ["CAP_KILL", "CAP_SYS_RESOURCE", "CAP_NO_SUCH"];
    for set in ["bounding", "permitted", "effective"] {
        bundle.config["process"]["capabilities"][set] = json!(names);
    }
    let asked = 1 << 5 | rustix::thread::CapabilitySet::SYS_RESOURCE.bits();
    let answer = bundle.run();
    assert_eq!(answer.stdout, format!("CapPrm:\t{:016x}\n", asked & own.bits()));
    // Clients look for these words.
    let want = "ignoring unknown or unavailable capabilities: [CAP_NO_SUCH";
    assert!(answer.stderr.contains(want), "{answer:?}");
}

#[test]
fn signals_are_at_their_default() {
    let mut bundle = Bundle::new("");
    let words = ["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"];
    bundle.config["process"]["args"] = json!(words);
    let answer = bundle.run();
    let want = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n";
    assert_eq!(answer.stdout, want, "{}", answer.stderr);
}

#[test]
fn user() {
    let mut bundle = Bundle::new("id -u; id -g; id -G; umask; pwd; echo $HOME");
    bundle.config["process"]["user"] =
        json!({"uid": 1000, "gid": 1001, "additionalGids": [7, 8], "umask": 0o27});
    bundle.config["process"]["cwd"] = json!("/new/directory");
    bundle.config["root"]["readonly"] = json!(false);
    let answer = bundle.run();
    assert_eq!(
        answer.stdout, "1000\n1001\n1001 7 8\n0027\n/new/directory\n/home/u\n",
        "{}",
        answer.stderr
    );
}

#[test]
fn user_namespace() {
    let script = "id -u; cat /proc/self/uid_map; echo x > /dev/null && touch /tmp/made";
    let mut bundle = Bundle::new(script);
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    bundle.config["linux"]["uidMappings"] = mapping.clone();
    bundle.config["linux"]["gidMappings"] = mapping;
    bundle.config["root"]["readonly"] = json!(false);
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.push(json!({"type": "user"}));
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    fs::set_permissions(bundle.rootfs().join("tmp"), all).expect("open /tmp");
    let answer = bundle.run();
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    assert_eq!(answer.stdout, "0\n         0     100000       1000\n");
    let made = bundle.rootfs().join("tmp/made").metadata().expect("made");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 100_000);
}

/// CVE-2021-30465, CVE-2024-45310: targets of mounts lead out of the root.
#[test]
fn mounts_stay_inside() {
    let cases = [
        ("absolute link", "/inside", "inside"),
        ("link past the root", "/../../inside", "inside"),
        ("link to nothing", "/../../outside", "outside"),
    ];
    for (case, to, at) in cases {
        let mut bundle = Bundle::new(&format!("cat /{at}/deep/f"));
        let outside = bundle.path().join("outside");
        fs::create_dir(&outside).expect("make outside");
        fs::create_dir(bundle.rootfs().join("inside")).expect("make inside");
        symlink(to, bundle.rootfs().join("link")).expect("link");
        let source = bundle.path().join("source");
        fs::create_dir(&source).expect("make source");
        fs::write(source.join("f"), "content\n").expect("write source");
        let mount = json!({"source": source, "destination": "/link/deep", "options": ["bind"]});
        bundle.config["mounts"].as_array_mut().expect("a list").push(mount);
        let answer = bundle.run();
        assert_eq!(answer.stdout, "content\n", "{case}: {}", answer.stderr);
        assert_eq!(fs::read_dir(&outside).expect("read outside").count(), 0, "{case}");
    }
}

/// CVE-2019-16884, CVE-2019-19921, CVE-2023-27561: something else passes for /proc.
#[test]
fn proc_is_proc() {
    let link = Bundle::new("true");
    fs::remove_dir(link.rootfs().join("proc")).expect("remove proc");
    symlink("/tmp", link.rootfs().join("proc")).expect("link proc");
    let mut bind = Bundle::new("true");
    let over = json!({"source": "/tmp", "destination": "/proc", "options": ["bind"]});
    bind.config["mounts"].as_array_mut().expect("a list").push(over);
    let mut below = Bundle::new("true");
    let over = json!({"source": "/tmp", "destination": "/proc/self", "options": ["bind"]});
    below.config["mounts"].as_array_mut().expect("a list").push(over);
    let cases = [
        ("symlink", link, "must be mounted on ordinary directory"),
        ("bind", bind, "cannot be mounted because it is not of type proc"),
        ("below", below, "cannot be mounted because it is inside /proc"),
    ];
    for (case, bundle, want) in cases {
        let answer = bundle.run();
        assert_eq!(answer.status, 1, "{case}");
        assert!(answer.stderr.contains(want), "{case}: {}", answer.stderr);
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{case}");
    }
}

/// CVE-2026-41579: /dev of an image is a link to somewhere else.
#[test]
fn devices_are_made_in_dev() {
    let mut bundle = Bundle::new("true");
    let mounts = bundle.config["mounts"].as_array_mut().expect("a list");
    mounts.retain(|mount| {
        !mount["destination"].as_str().is_some_and(|path| path.starts_with("/dev"))
    });
    fs::remove_dir(bundle.rootfs().join("dev")).expect("remove dev");
    symlink("/etc", bundle.rootfs().join("dev")).expect("link dev");
    let answer = bundle.run();
    assert_eq!(answer.status, 1);
    assert!(answer.stderr.contains("open /dev: "), "{}", answer.stderr);
    assert_eq!(fs::read_dir(bundle.rootfs().join("etc")).expect("read etc").count(), 1);
}

/// CVE-2024-21626: a working directory, or a descriptor, of the host.
#[test]
fn nothing_of_the_host_is_open() {
    for number in [3, 5, 7, 9] {
        let mut bundle = Bundle::new("pwd; ls ..");
        bundle.config["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        let answer = bundle.run();
        assert_ne!(answer.status, 0, "{number}: {}", answer.stdout);
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{number}");
    }
}

/// CVE-2019-5736: the runtime's program can be changed through a process that runs it.
#[test]
fn runtime_cannot_be_overwritten() {
    let mut bundle = Bundle::new("true");
    bundle.copy_program();
    assert_eq!(bundle.create(), 0);
    let exe = format!("/proc/{}/exe", bundle.state()["pid"]);
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let program = rustix::fs::open(exe, flags, rustix::fs::Mode::empty()).expect("open program");
    // While it runs nobody can write to it anyway.
    assert_eq!(bundle.on("delete", &["--force"]).status, 0);
    let again = format!("/proc/self/fd/{}", program.as_raw_fd());
    let error = fs::OpenOptions::new().write(true).open(again).expect_err("a sealed program");
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
}

#[test]
fn mount_options() {
    let options = |answer: &str, point: &str| {
        let line = answer.lines().find(|line| line.split(' ').nth(2) == Some(point));
        let options = line.and_then(|line| line.rsplit_once('(')).map_or("", |(_, rest)| rest);
        options.trim_end_matches(')').to_owned()
    };
    let mut bundle = Bundle::new("mount");
    let source = bundle.path().join("source");
    fs::create_dir(&source).expect("make source");
    let cases = [
        ("/a", json!(["bind", "ro", "nosuid"]), vec!["ro", "nosuid"]),
        ("/b", json!(["rbind", "rro"]), vec!["ro"]),
        ("/c", json!(["bind", "noexec", "nodev"]), vec!["rw", "noexec", "nodev"]),
    ];
    let mounts = bundle.config["mounts"].as_array_mut().expect("a list");
    for (target, options, _) in &cases {
        mounts.push(json!({"source": source, "destination": target, "options": options}));
    }
    let answer = bundle.run();
    for (target, _, want) in cases {
        let got = options(&answer.stdout, target);
        let has = |option: &&str| got.split(',').any(|one| one == *option);
        assert!(want.iter().all(has), "{target}: {got}: {}", answer.stderr);
    }
}

#[test]
fn seccomp() {
    for no_new_privileges in [true, false] {
        let mut bundle = Bundle::new("mkdir /tmp/x 2>&1; grep Seccomp: /proc/self/status");
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
        });
        let answer = bundle.run();
        let want = "mkdir: can't create directory '/tmp/x': Operation not supported\nSeccomp:\t2\n";
        assert_eq!(answer.stdout, want, "{no_new_privileges}: {}", answer.stderr);
    }
}
