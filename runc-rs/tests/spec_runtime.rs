//! What the runtime-spec says of a container's life and filesystem, as root, on the real kernel:
//! hooks that fail, mounts that are changed, roots, ids of an unprivileged user.

mod support;

use std::{fs, os::unix::fs::symlink, process::Command};

use serde_json::{Value, json};
use support::{Answer, Bundle};

fn hook(script: &str) -> Value {
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
}

/// The hooks before the program: the container does not come to be.
#[test]
fn hooks_that_fail_before_the_start() {
    let fails = "echo out; echo err >&2; exit 3";
    let output = "hook #0: exit status 3, stdout: out, stderr: err";
    for point in ["prestart", "createRuntime", "createContainer"] {
        let mut bundle = Bundle::new("true");
        let log = bundle.path().join("log");
        bundle.config["hooks"][point] = hook(fails);
        bundle.config["hooks"]["poststop"] = hook(&format!("echo stopped >> {}", log.display()));
        bundle.write_config();
        let answer = bundle.call(&["create", "-b", bundle.path_text(), &bundle.id]);
        assert_eq!(answer.status, 1, "{point}: {answer:?}");
        let want = format!("unable to start container process: error running {point} {output}");
        assert!(answer.stderr.contains(&want), "{point}: {answer:?}");
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{point}");
    }
}

#[test]
fn hooks_that_take_too_long() {
    let mut bundle = Bundle::new("true");
    bundle.config["hooks"]["createRuntime"] =
        json!([{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]);
    let answer = bundle.run();
    assert_eq!(answer.status, 1, "{answer:?}");
    let want = "error running createRuntime hook #0: hook ran past specified timeout of 1.0s";
    assert!(answer.stderr.contains(want), "{answer:?}");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

#[test]
fn hooks_that_fail_later() {
    let mut bundle = Bundle::new("echo ran");
    bundle.config["hooks"]["startContainer"] = hook("exit 1");
    let answer = bundle.run();
    assert_eq!((answer.status, answer.stdout.as_str()), (255, ""), "startContainer: {answer:?}");
    assert!(answer.stderr.contains("error running startContainer hook #0"), "{answer:?}");

    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["hooks"]["poststart"] = hook("exit 1");
    let answer = bundle.run();
    assert_eq!(answer.status, 1, "poststart: {answer:?}");
    assert!(answer.stderr.contains("error running poststart hook #0"), "{answer:?}");
    assert_eq!(bundle.leftovers(), Vec::<String>::new(), "poststart");

    let mut bundle = Bundle::new("echo ran");
    let mark = bundle.path().join("second hook");
    let mut hooks = hook("exit 1");
    hooks.as_array_mut().expect("a list").push(hook(&format!("> '{}'", mark.display()))[0].take());
    bundle.config["hooks"]["poststop"] = hooks;
    let answer = bundle.run();
    assert!(mark.exists(), "poststop: those after a failed one run, too");
    assert_eq!((answer.status, answer.stdout.as_str()), (0, "ran\n"), "poststop: {answer:?}");
    assert!(answer.stderr.contains("level=warning"), "poststop: {answer:?}");
    assert_eq!(bundle.leftovers(), Vec::<String>::new(), "poststop");
}

#[test]
fn environment_and_directory_of_hooks() {
    let mut bundle = Bundle::new("cat /tmp/seen");
    bundle.config["root"]["readonly"] = json!(false);
    bundle.config["process"]["env"] = json!(["PATH=/bin", "OWN=1"]);
    let show = |own: &str| {
        let first = format!("echo $0 $OWN $(pwd) >> {own}");
        let second = format!("echo $OWN >> {own}");
        json!([
            {"path": "/bin/sh", "args": ["sh", "-c", first, "zero"]},
            {"path": "/bin/sh", "args": ["sh", "-c", second], "env": ["PATH=/bin", "OWN=2"]},
        ])
    };
    let log = bundle.rootfs().join("tmp/seen");
    bundle.config["hooks"]["createContainer"] = show(log.to_str().expect("plain name"));
    bundle.config["hooks"]["startContainer"] = show("/tmp/seen");
    let answer = bundle.run();
    // Before the program there is no environment but the hook's own, then its stands in for one.
    let want = format!("zero {}\n2\nzero 1 /\n2\n", bundle.rootfs().display());
    assert_eq!(answer.stdout, want, "{answer:?}");
}

/// The options of what is mounted at `point`, of the last line if there are several.
fn options_at<'a>(mounts: &'a str, point: &str) -> Vec<&'a str> {
    let mut lines = mounts.lines().filter(|line| line.split(' ').nth(2) == Some(point));
    let options =
        lines.next_back().and_then(|line| line.rsplit_once('(')).map_or("", |(_, rest)| rest);
    options.trim_end_matches(')').split(',').collect()
}

#[test]
fn mounts_that_are_changed() {
    let mut bundle = Bundle::new("mount");
    let source = bundle.path().join("source");
    fs::create_dir(&source).expect("make source");
    let mounts = bundle.config["mounts"].as_array_mut().expect("a list");
    let tmpfs = |options: Value| json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": options});
    let bind =
        |options: Value| json!({"destination": "/mnt", "source": source, "options": options});
    mounts.push(tmpfs(json!(["size=64k"])));
    mounts.push(tmpfs(json!(["remount", "ro", "nosuid", "size=128k"])));
    mounts.push(bind(json!(["bind"])));
    mounts.push(bind(json!(["bind", "remount", "ro", "noexec"])));
    let answer = bundle.run();
    let has = |point: &str, wanted: &[&str]| {
        let options = options_at(&answer.stdout, point);
        assert!(wanted.iter().all(|one| options.contains(one)), "{point}: {options:?}: {answer:?}");
        let at = format!(" on {point} ");
        assert_eq!(answer.stdout.matches(&at).count(), 1, "{point}: {answer:?}");
    };
    has("/tmp", &["ro", "nosuid", "size=128k"]);
    has("/mnt", &["ro", "noexec"]);
}

#[test]
fn propagation_of_the_root() {
    // The fields between the options and the dash of the root's line.
    let script = "while read -r line; do set -- $line; [ \"$5\" = / ] && echo $7; done \
                  < /proc/self/mountinfo; true";
    let cases = [
        ("", "-"),
        ("private", "-"),
        ("rprivate", "-"),
        ("shared", "shared"),
        ("rshared", "shared"),
        ("unbindable", "unbindable"),
        ("slave", ""),
    ];
    for (name, want) in cases {
        let mut bundle = Bundle::new(script);
        bundle.config["linux"]["rootfsPropagation"] = json!(name);
        let answer = bundle.run();
        assert_eq!(answer.status, 0, "{name}: {answer:?}");
        assert!(answer.stdout.starts_with(want), "{name}: {answer:?}");
    }
}

#[test]
fn root_behind_a_link() {
    let mut bundle = Bundle::new("true");
    symlink("rootfs", bundle.path().join("link")).expect("link");
    bundle.config["root"]["path"] = json!("link");
    let answer = bundle.run();
    assert_eq!(answer.status, 1, "{answer:?}");
    assert!(answer.stderr.contains("invalid rootfs: not an absolute path, or a symlink"));
    bundle.config["root"]["path"] = json!("./rootfs/../rootfs/");
    assert_eq!(bundle.run().status, 0, "a long way round is not a link");
}

#[test]
fn labels_that_the_kernel_does_not_have() {
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        eprintln!("this machine has SELinux, so there is nothing to refuse");
        return;
    }
    let mut bundle = Bundle::new("true");
    bundle.config["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0");
    let answer = bundle.run();
    let want = "selinux label is specified in config, but selinux is disabled or not supported";
    assert!(answer.status == 1 && answer.stderr.contains(want), "{answer:?}");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

#[test]
fn clocks_of_a_time_namespace() {
    let mut bundle = Bundle::new("cat /proc/self/timens_offsets");
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.push(json!({"type": "time"}));
    bundle.config["linux"]["timeOffsets"] =
        json!({"monotonic": {"secs": 77, "nanosecs": 5}, "boottime": {"secs": 88}});
    let answer = bundle.run();
    let words: Vec<&str> = answer.stdout.split_whitespace().collect();
    assert_eq!(words, ["monotonic", "77", "5", "boottime", "88", "0"], "{answer:?}");
}

/// Raising a hard limit takes the host's rights, which nobody in a user namespace has: the runtime
/// does it from outside, if it may.
#[test]
fn limits_above_the_runtime_s_own_in_a_user_namespace() {
    use rustix::process::{Resource, getrlimit};
    let own = getrlimit(Resource::Sigpending).maximum.expect("there is a limit");
    let mut bundle = Bundle::new("ulimit -H -i");
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    bundle.config["linux"]["uidMappings"] = mapping.clone();
    bundle.config["linux"]["gidMappings"] = mapping;
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.push(json!({"type": "user"}));
    bundle.config["process"]["rlimits"] =
        json!([{"type": "RLIMIT_SIGPENDING", "soft": own + 7, "hard": own + 7}]);
    let capabilities = rustix::thread::capabilities(None).expect("own capabilities");
    let answer = bundle.run();
    if capabilities.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE) {
        assert_eq!(answer.stdout, format!("{}\n", own + 7), "{answer:?}");
    } else {
        let want = "error setting rlimit RLIMIT_SIGPENDING: operation not permitted";
        assert!(answer.stderr.contains(want), "{answer:?}");
    }
}

/// An unprivileged user with a range of ids, which newuidmap(1) and newgidmap(1) map.
#[test]
fn ranges_of_ids_without_rights() {
    assert!(
        std::path::Path::new("/usr/bin/newuidmap").exists(),
        "newuidmap is missing: install uidmap"
    );
    let mut bundle = Bundle::new("");
    fs::remove_file(bundle.path().join("config.json")).expect("remove config");
    bundle.copy_program();
    let give = Some(65_534);
    std::os::unix::fs::chown(bundle.path(), give, give).expect("give bundle");
    fs::write(bundle.path().join("ids"), "nobody:200000:1000\n").expect("write ids");
    // The machine's own files stay as they are: these are seen in a mount namespace only.
    let as_nobody = |words: &[&str]| {
        let call = bundle.command(words);
        let ids = bundle.path().join("ids");
        let script = format!(
            "mount --bind {0} /etc/subuid && mount --bind {0} /etc/subgid && exec setpriv \
             --reuid=65534 --regid=65534 --clear-groups \"$@\"",
            ids.display()
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", &script, "sh"]);
        command.arg(call.get_program()).args(call.get_args());
        Answer::new(command.output().expect("run unshare"))
    };
    let answer = as_nobody(&["spec", "--rootless", "-b", bundle.path_text()]);
    assert_eq!(answer.status, 0, "{answer:?}");
    let config = bundle.path().join("config.json");
    let text = fs::read(&config).expect("read config");
    let mut document: Value = serde_json::from_slice(&text).expect("JSON");
    let mapping = json!([
        {"containerID": 0, "hostID": 65_534, "size": 1},
        {"containerID": 1, "hostID": 200_000, "size": 1000},
    ]);
    document["linux"]["uidMappings"] = mapping.clone();
    document["linux"]["gidMappings"] = mapping;
    document["process"]["terminal"] = json!(false);
    document["process"]["user"] = json!({"uid": 5, "gid": 6, "additionalGids": [7]});
    let script = "id -u; id -G; cat /proc/self/uid_map /proc/self/setgroups";
    document["process"]["args"] = json!(["sh", "-c", script]);
    fs::write(&config, document.to_string()).expect("write config");
    let answer = as_nobody(&["run", "-b", bundle.path_text(), &bundle.id]);
    let words: Vec<&str> = answer.stdout.split_whitespace().collect();
    let want = ["5", "6", "7", "0", "65534", "1", "1", "200000", "1000", "allow"];
    assert_eq!(words, want, "{answer:?}");
    document["linux"]["uidMappings"][1]["hostID"] = json!(300_000);
    fs::write(&config, document.to_string()).expect("write config");
    let answer = as_nobody(&["run", "-b", bundle.path_text(), &bundle.id]);
    assert_eq!(answer.status, 1, "{answer:?}");
    assert!(answer.stderr.contains("newuidmap"), "{answer:?}");
}
