//! Something else passes for /proc or /sys, so that what the runtime writes there, or hides there,
//! is not what it seems.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
};

use serde_json::json;

use crate::{add_mount, drop_mounts, hook, hostile, support::Bundle};

/// CVE-2019-16884, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: an image or a volume has its
/// own idea of /proc and /sys.
#[test]
fn cve_2019_19921_images_and_volumes() {
    /// What the image or the configuration has.
    type Change = fn(&mut Bundle);
    let ordinary = "must be mounted on ordinary directory";
    let cases: [(&str, Change, &str); 9] = [
        ("/proc is a link", |bundle| link(bundle, "proc", "/tmp"), ordinary),
        ("/proc is a link to itself", |bundle| link(bundle, "proc", "proc"), ordinary),
        ("/proc is a link to nothing", |bundle| link(bundle, "proc", "/no/such"), ordinary),
        ("/sys is a link", |bundle| link(bundle, "sys", "/tmp"), ordinary),
        (
            "/proc is a file",
            |bundle| {
                fs::remove_dir(bundle.rootfs().join("proc")).expect("remove directory");
                fs::write(bundle.rootfs().join("proc"), "").expect("write file");
            },
            ordinary,
        ),
        (
            "tmpfs on /proc",
            |bundle| add_mount(bundle, json!({"destination": "/proc", "type": "tmpfs"})),
            "cannot be mounted because it is not of type proc",
        ),
        (
            "tmpfs on /proc by another way",
            |bundle| {
                link(bundle, "tmp", "/proc");
                add_mount(bundle, json!({"destination": "/tmp", "type": "tmpfs"}));
            },
            "cannot be mounted because it is not of type proc",
        ),
        (
            "volume on /proc/self/attr",
            |bundle| {
                let volume = json!({"source": "/tmp", "destination": "/proc/self/attr", "options": ["bind"]});
                add_mount(bundle, volume);
            },
            "cannot be mounted because it is inside /proc",
        ),
        (
            "volume on /proc/sys by dots",
            |bundle| {
                let volume = json!({"source": "/tmp", "destination": "/x/../proc/./sys", "options": ["bind"]});
                add_mount(bundle, volume);
            },
            "cannot be mounted because it is inside /proc",
        ),
    ];
    for (case, change, want) in cases {
        let mut bundle = Bundle::new("true");
        change(&mut bundle);
        let answer = bundle.run();
        assert_eq!(answer.status, 1, "{case}");
        assert!(answer.stderr.contains(want), "{case}: {}", answer.stderr);
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{case}");
    }
}

fn link(bundle: &Bundle, name: &str, to: &str) {
    let path = bundle.rootfs().join(name);
    fs::remove_dir(&path).expect("remove directory");
    symlink(to, &path).expect("link");
}

/// CVE-2025-52881: what is written to /proc goes to a file that the container has put there. The
/// hook stands for another process of the container that mounts at the right moment.
#[test]
fn cve_2025_52881_sysctls() {
    for name in ["net/ipv4/ip_unprivileged_port_start", "net"] {
        let mut bundle = hostile("cat /proc/sys/net/ipv4/ip_unprivileged_port_start");
        // Not hidden below a read-only mount, so that only the redirection matters.
        bundle.config["linux"]["readonlyPaths"] = json!([]);
        let fake = bundle.path().join("fake");
        fs::create_dir_all(fake.join("ipv4")).expect("make fake");
        fs::write(fake.join("ipv4/ip_unprivileged_port_start"), "fake\n").expect("write fake");
        let source =
            if name == "net" { fake.clone() } else { fake.join("ipv4/ip_unprivileged_port_start") };
        let target = bundle.rootfs().join("proc/sys").join(name);
        let mount = format!("mount --bind {} {}", source.display(), target.display());
        bundle.config["hooks"]["createContainer"] = hook(&mount);
        bundle.config["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "77"});
        let answer = bundle.run();
        // The container sees its own fake, and the real one was written.
        assert_eq!(answer.stdout, "fake\n", "{name}: {}", answer.stderr);
        let left = fs::read_to_string(fake.join("ipv4/ip_unprivileged_port_start"));
        assert_eq!(left.expect("read fake"), "fake\n", "{name}");
    }
}

/// CVE-2025-52881, CVE-2019-16884: a label of an exec is written to a file of the container, and the
/// program runs without it.
#[test]
fn cve_2025_52881_labels() {
    let bundle = hostile("sleep 1000");
    bundle.start();
    let make = "mount -t tmpfs none /proc && mkdir -p /proc/self/attr/apparmor \
                /proc/thread-self/attr/apparmor && for f in /proc/self /proc/thread-self; do \
                echo > $f/attr/exec; echo > $f/attr/apparmor/exec; done";
    let answer = bundle.on("exec", &["sh", "-c", make]);
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    for flag in ["--apparmor=unconfined-of-the-test", "--process-label=a_u:b_r:c_t:s0"] {
        let answer = bundle.call(&["exec", flag, &bundle.id, "true"]);
        assert_eq!(answer.status, 255, "{flag}: there is no such label");
        // Without SELinux a label of its is refused before anything is written.
        let refused = ["/proc/thread-self/attr", "but selinux is disabled or not supported"];
        let says = |text: &&str| answer.stderr.contains(text);
        assert!(refused.iter().any(says), "{flag}: {}", answer.stderr);
    }
    let cat = "cat /proc/*self/attr/exec /proc/*self/attr/apparmor/exec";
    assert_eq!(bundle.on("exec", &["sh", "-c", cat]).stdout, "\n\n\n\n");
}

/// CVE-2025-31133: the image's /dev/null is a link, and what is to be hidden shows the link's end.
#[test]
fn cve_2025_31133_masked_paths() {
    let mut bundle = Bundle::new("true");
    drop_mounts(&mut bundle, "/dev");
    symlink("/proc/sysrq-trigger", bundle.rootfs().join("dev/null")).expect("link");
    let answer = bundle.run();
    assert_eq!(answer.status, 1, "of the image: {}", answer.stderr);
    assert!(answer.stderr.contains("mknod /dev/null: file exists"), "{}", answer.stderr);

    // Replaced after the devices were made, by a process that shares the directory.
    let mut bundle = Bundle::new("stat -c %t:%T /proc/keys /proc/timer_list; cat /proc/keys");
    let null = bundle.rootfs().join("dev/null");
    let script = format!("rm {0}; ln -s /proc/sys/kernel/core_pattern {0}", null.display());
    bundle.config["hooks"]["createContainer"] = hook(&script);
    let answer = bundle.run();
    assert_eq!(answer.stdout, "1:3\n1:3\n", "later: {}", answer.stderr);
}

/// CVE-2023-25809: without rights and without a cgroup namespace the host's cgroups can be written.
#[test]
fn cve_2023_25809_rootless_cgroups() {
    use std::os::unix::{fs::chown, process::CommandExt as _};
    const USER: u32 = 12_345;
    let mut bundle = Bundle::new("");
    fs::remove_file(bundle.path().join("config.json")).expect("remove config");
    bundle.copy_program();
    chown(bundle.path(), Some(USER), Some(USER)).expect("give bundle");
    let call = |words: &[&str]| {
        let output = bundle.command(words).uid(USER).gid(USER).output();
        crate::support::Answer::new(output.expect("run the program"))
    };
    let answer = call(&["spec", "--rootless", "-b", bundle.path_text()]);
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    let path = bundle.path().join("config.json");
    let text = fs::read(&path).expect("read config");
    let mut config: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    config["process"]["terminal"] = json!(false);
    // A group of that user's, as systemd delegates them.
    let group = std::path::PathBuf::from("/sys/fs/cgroup")
        .join(if std::path::Path::new("/sys/fs/cgroup/pids").exists() { "pids" } else { "" });
    let group = group.join(format!("given-{}", bundle.id));
    fs::create_dir(&group).expect("make group");
    chown(&group, Some(USER), Some(USER)).expect("give group");
    let script = format!("mkdir {0}/x 2>/dev/null && echo made in {0}; true", group.display());
    config["process"]["args"] = json!(["sh", "-c", script]);
    let namespaces = config["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|namespace| namespace["type"] != "cgroup");
    fs::write(&path, config.to_string()).expect("write config");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("open config");
    let answer = call(&["run", "-b", bundle.path_text(), &bundle.id]);
    let _ = fs::remove_dir(group.join("x"));
    fs::remove_dir(&group).expect("remove group");
    assert_eq!((answer.status, answer.stdout.as_str()), (0, ""), "{}", answer.stderr);
}
