//! Who a process is, and what it may do.

use std::fs;

use serde_json::json;

use crate::{hostile, support::Bundle};

const INHERITABLE: [&str; 3] = ["grep", "CapInh", "/proc/self/status"];
const NONE: &str = "CapInh:\t0000000000000000\n";

/// CVE-2022-29162, CVE-2022-27650: programs get inheritable capabilities that nobody asked for.
#[test]
fn cve_2022_29162_inheritable_capabilities() {
    let mut bundle = hostile("sleep 1000");
    bundle.config["process"]["args"] = json!(INHERITABLE);
    assert_eq!(bundle.run().stdout, NONE, "run");
    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.start();
    let process = json!({
        "args": INHERITABLE, "cwd": "/", "env": ["PATH=/bin"],
        "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"],
                         "permitted": ["CAP_CHOWN"]},
    });
    let file = bundle.path().join("process.json");
    fs::write(&file, process.to_string()).expect("write process");
    let (id, file) = (bundle.id.as_str(), file.to_str().expect("plain name"));
    let cases: [(&str, &[&str], &[&str]); 4] = [
        ("exec", &["exec", id], &INHERITABLE),
        ("exec --cap", &["exec", "--cap", "CAP_NET_RAW", id], &INHERITABLE),
        ("exec as a user", &["exec", "-u", "1000", "--cap", "CAP_NET_RAW", id], &INHERITABLE),
        ("exec --process", &["exec", "--process", file, id], &[]),
    ];
    for (case, flags, program) in cases {
        let answer = bundle.call(&[flags, program].concat());
        assert_eq!(answer.stdout, NONE, "{case}: {}", answer.stderr);
    }
}

/// CVE-2026-30892: another user than the one that was named.
#[test]
fn cve_2026_30892_users() {
    let bundle = Bundle::new("sleep 1000");
    // Digits are no name, even where there is one.
    let passwd = bundle.rootfs().join("etc/passwd");
    fs::write(passwd, "root:x:0:0::/root:\n1234:x:0:0::/root:\n+1:x:0:0::/:\n").expect("write");
    bundle.start();
    let script = "echo $(id -u):$(id -g)";
    let cases = [
        ("1234", Some("1234:0\n")),
        ("1:2", Some("1:2\n")),
        ("2147483646", Some("2147483646:0\n")),
        ("0:", None),
        (":0", None),
        (":", None),
        ("+1", None),
        ("-1", None),
        ("1:x", None),
        ("1:-1", None),
        ("1:2:3", None),
        ("1 ", None),
        ("0x10", None),
        ("2147483648", None),
        ("4294967295", None),
        ("4294967296", None),
        ("18446744073709551616", None),
        ("root", None),
    ];
    for (user, want) in cases {
        let flag = format!("--user={user}");
        let answer = bundle.call(&["exec", &flag, &bundle.id, "sh", "-c", script]);
        assert_eq!(answer.status == 0, want.is_some(), "{user:?}: {}", answer.stderr);
        assert_eq!(answer.stdout, want.unwrap_or(""), "{user:?}: {}", answer.stderr);
        let flag = format!("--additional-gids={user}");
        let answer = bundle.call(&["exec", &flag, &bundle.id, "sh", "-c", "true"]);
        let is_number = want.is_some() && !user.contains(':');
        assert_eq!(answer.status == 0, is_number, "group {user:?}: {}", answer.stderr);
    }
}

/// CVE-2024-40635 and its kin: a number that the kernel does not take for an id.
#[test]
fn ids_that_are_none() {
    let cases = [
        ("uid", json!({"uid": u32::MAX})),
        ("gid", json!({"gid": u32::MAX})),
        ("groups", json!({"additionalGids": [u32::MAX]})),
        ("wrapped", json!({"uid": 1_u64 << 32})),
        ("negative", json!({"uid": -1})),
    ];
    for (case, user) in cases {
        let mut bundle = Bundle::new("id -u");
        bundle.config["process"]["user"] = user.clone();
        let answer = bundle.run();
        assert_eq!((answer.status, answer.stdout.as_str()), (1, ""), "run, {case}");
        let bundle = Bundle::new("sleep 1000");
        bundle.start();
        let process = json!({"args": ["id", "-u"], "cwd": "/", "env": ["PATH=/bin"], "user": user});
        let file = bundle.path().join("process.json");
        fs::write(&file, process.to_string()).expect("write process");
        let words = ["exec", "-p", file.to_str().expect("plain name"), &bundle.id];
        let answer = bundle.call(&words);
        assert_eq!((answer.status, answer.stdout.as_str()), (255, ""), "exec, {case}");
    }
}

/// CVE-2026-15809: what is in HOME goes into the environment, and into no file.
#[test]
fn cve_2026_15809_home() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["root"]["readonly"] = json!(false);
    let passwd = bundle.rootfs().join("etc/passwd");
    let before = fs::read_to_string(&passwd).expect("read passwd");
    let home = "HOME=/root\nevil::0:0::/:/bin/sh";
    bundle.config["process"]["env"] = json!(["PATH=/bin", home]);
    bundle.start();
    let answer = bundle.on("exec", &["sh", "-c", "echo \"$HOME\""]);
    assert_eq!(answer.stdout, "/root\nevil::0:0::/:/bin/sh\n", "{}", answer.stderr);
    assert_eq!(fs::read_to_string(passwd).expect("read passwd"), before);
}

/// Files of the image that the runtime reads are not waited for, and are not read without end.
#[test]
fn images_do_not_hold_the_runtime_up() {
    /// Makes something of /etc/passwd.
    type Make = fn(&std::path::Path);
    let cases: [(&str, Make); 4] = [
        ("fifo", |path| {
            let fifo = rustix::fs::FileType::Fifo;
            let mode = rustix::fs::Mode::from_raw_mode(0o644);
            rustix::fs::mknodat(rustix::fs::CWD, path, fifo, mode, 0).expect("make fifo");
        }),
        ("directory", |path| fs::create_dir(path).expect("make directory")),
        ("without end", |path| {
            std::os::unix::fs::symlink("/dev/zero", path).expect("make link");
        }),
        ("huge", |path| {
            fs::File::create(path).and_then(|file| file.set_len(10 << 30)).expect("make file");
        }),
    ];
    for (case, make) in cases {
        let mut bundle = Bundle::new("echo $HOME");
        let passwd = bundle.rootfs().join("etc/passwd");
        fs::remove_file(&passwd).expect("remove passwd");
        make(&passwd);
        bundle.config["process"]["env"] = json!(["PATH=/bin"]);
        let answer = bundle.run();
        assert_eq!(answer.stdout, "/\n", "{case}: {}", answer.stderr);
    }
}

/// The host's devices stay root's, whatever the container calls /dev/null.
#[test]
fn standard_streams_of_the_host_are_not_given_away() {
    let mut bundle = hostile("sleep 1000");
    drop_dev(&mut bundle);
    bundle.start();
    let replace = "rm /dev/null; echo > /dev/null";
    assert_eq!(bundle.on("exec", &["busybox", "sh", "-c", replace]).status, 0);
    let answer = bundle.call(&["exec", "-u", "1000", &bundle.id, "true"]);
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata("/dev/null").expect("stat"));
    // A failure here shall not be everybody's.
    std::os::unix::fs::chown("/dev/null", Some(0), None).expect("chown");
    assert_eq!(owner, 0);
}

fn drop_dev(bundle: &mut Bundle) {
    crate::drop_mounts(bundle, "/dev");
    std::os::unix::fs::symlink("busybox", bundle.rootfs().join("bin/rm")).expect("link rm");
}
