//! Mounts, devices and consoles that an image, or a process that shares a volume, leads elsewhere.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

use crate::{add_mount, create_with_terminal, drop_mounts, hook, hostile, support::Bundle};

/// Exchanges two files as fast as it can while it lives.
fn race<T>(one: &Path, other: &Path, meanwhile: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).expect("exchange");
            }
        });
        let result = meanwhile();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

/// CVE-2021-30465, CVE-2024-45310: a target is a directory when it is looked at, and a symlink out
/// of the root when it is used. Another container that has the same volume does that.
#[test]
fn cve_2021_30465_swapped_targets() {
    const STARTS: usize = 30;
    let top = tempfile::tempdir().expect("temporary directory");
    let (volume, outside) = (top.path().join("volume"), top.path().join("outside"));
    let source = top.path().join("source");
    for directory in [&volume.join("target"), &outside, &source] {
        fs::create_dir_all(directory).expect("make directory");
    }
    fs::write(source.join("file"), "").expect("write file");
    symlink(&outside, volume.join("link")).expect("link");
    symlink("../../../../../../../../../..", volume.join("target/up")).expect("link");
    let text = outside.to_str().expect("plain name");
    race(&volume.join("target"), &volume.join("link"), || {
        for round in 0..STARTS {
            let mut bundle = Bundle::new("true");
            let bind = |from: &Path, to: &str| json!({"source": from, "destination": to, "options": ["bind"]});
            add_mount(&mut bundle, bind(&volume, "/volume"));
            add_mount(&mut bundle, bind(&source, "/volume/target/made/deep"));
            add_mount(&mut bundle, bind(&source.join("file"), "/volume/target/file"));
            add_mount(&mut bundle, json!({"destination": "/volume/target/tmp", "type": "tmpfs"}));
            // Whether it starts is up to the race; what is outside is not.
            bundle.run();
            let found = fs::read_dir(&outside).expect("read outside").count();
            assert_eq!(found, 0, "round {round}: something was made outside");
            let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
            assert!(!mounts.contains(text), "round {round}: something was mounted outside");
            assert_eq!(bundle.leftovers(), Vec::<String>::new(), "round {round}");
        }
    });
}

/// A file that is copied is a FIFO when it is opened: nobody waits for whoever writes to it.
#[test]
fn copies_do_not_wait_for_fifos() {
    const STARTS: usize = 30;
    let volume = tempfile::tempdir().expect("temporary directory");
    let (file, fifo) = (volume.path().join("file"), volume.path().join("zz"));
    fs::write(&file, "content").expect("write file");
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("make FIFO");
    race(&file, &fifo, || {
        for round in 0..STARTS {
            let mut bundle = Bundle::new("true");
            let bind =
                json!({"source": volume.path(), "destination": "/volume", "options": ["bind"]});
            add_mount(&mut bundle, bind);
            add_mount(
                &mut bundle,
                json!({"destination": "/volume", "type": "tmpfs", "options": ["tmpcopyup"]}),
            );
            bundle.write_config();
            let words = ["run", "-b", bundle.path_text(), &bundle.id];
            let call = bundle.command(&words);
            let mut command = std::process::Command::new("timeout");
            command.args(["-s", "KILL", "20"]).arg(call.get_program()).args(call.get_args());
            let output = command.stdin(std::process::Stdio::null()).output().expect("run");
            // Whether it starts is up to the race.
            assert!(
                output.status.code().is_some_and(|code| code < 128),
                "round {round}: {output:?}"
            );
        }
    });
}

/// CVE-2026-41579, CVE-2026-47766: devices are made where the image's /dev leads.
#[test]
fn cve_2026_41579_dev_is_a_link() {
    for to in ["/etc", "/", "../../../../../../../../tmp", "/proc/self", "dev"] {
        for with_tmpfs in [false, true] {
            let mut bundle = Bundle::new("true");
            if !with_tmpfs {
                drop_mounts(&mut bundle, "/dev");
            }
            fs::remove_dir(bundle.rootfs().join("dev")).expect("remove dev");
            symlink(to, bundle.rootfs().join("dev")).expect("link dev");
            let before = names(&bundle.rootfs());
            let answer = bundle.run();
            assert_eq!(answer.status, 1, "{to}, {with_tmpfs}: {}", answer.stderr);
            assert_eq!(names(&bundle.rootfs()), before, "{to}, {with_tmpfs}");
            assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{to}, {with_tmpfs}");
        }
    }
}

/// CVE-2025-52565: the console is mounted where a link leads, or is something else.
#[test]
fn cve_2025_52565_console() {
    /// What the image has.
    type Make = fn(&Bundle);
    let cases: [(&str, Make, &str); 5] = [
        (
            "/dev/console is a link",
            |bundle| {
                drop_dev(bundle);
                symlink("/proc/sysrq-trigger", bundle.rootfs().join("dev/console")).expect("link");
            },
            "open /dev/console: too many levels of symbolic links",
        ),
        ("no /dev/pts", |_| {}, "make console from /dev/pts/ptmx"),
        (
            "/dev/pts/ptmx is a file",
            |bundle| {
                fs::create_dir(bundle.rootfs().join("dev/pts")).expect("make pts");
                fs::write(bundle.rootfs().join("dev/pts/ptmx"), "").expect("write");
            },
            "make console from /dev/pts/ptmx",
        ),
        (
            "/dev/pts/ptmx is a link",
            |bundle| {
                fs::create_dir(bundle.rootfs().join("dev/pts")).expect("make pts");
                let ptmx = bundle.rootfs().join("dev/pts/ptmx");
                symlink("/proc/self/fd/0", ptmx).expect("link");
            },
            "make console from /dev/pts/ptmx",
        ),
        (
            "/dev/pts/ptmx is another device",
            |bundle| {
                fs::create_dir(bundle.rootfs().join("dev/pts")).expect("make pts");
                let null = rustix::fs::FileType::CharacterDevice;
                let mode = rustix::fs::Mode::from_raw_mode(0o666);
                let ptmx = bundle.rootfs().join("dev/pts/ptmx");
                rustix::fs::mknodat(CWD, ptmx, null, mode, rustix::fs::makedev(1, 3))
                    .expect("mknod");
            },
            "make console from /dev/pts/ptmx",
        ),
    ];
    for (case, make, want) in cases {
        let mut bundle = Bundle::new("true");
        let pts = if case.contains("console") { "/no" } else { "/dev" };
        drop_mounts(&mut bundle, pts);
        if case.contains("console") {
            let mounts = bundle.config["mounts"].as_array_mut().expect("a list");
            mounts.retain(|mount| mount["destination"] != "/dev");
        }
        make(&bundle);
        let (_listener, answer) = create_with_terminal(&mut bundle);
        assert_eq!(answer.status, 1, "{case}: {}", answer.stderr);
        assert!(answer.stderr.contains(want), "{case}: {}", answer.stderr);
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{case}");
    }
}

fn drop_dev(bundle: &Bundle) {
    for name in ["pts", "shm", "mqueue"] {
        fs::create_dir(bundle.rootfs().join("dev").join(name)).expect("make directory");
    }
}

/// CVE-2025-52565: an exec's console is made from what the container has put at /dev/pts.
/// A `/dev/console` that leads out of the image: what it leads to keeps its owner, and nothing is
/// mounted there.
#[test]
fn cve_2025_52565_console_leads_out() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    for (case, up) in [("absolute", ""), ("relative", "../../../../../../../../../../..")] {
        let mut bundle = Bundle::new("true");
        drop_mounts(&mut bundle, "/no");
        let mounts = bundle.config["mounts"].as_array_mut().expect("a list");
        mounts.retain(|mount| mount["destination"] != "/dev");
        drop_dev(&bundle);
        let victim = bundle.path().join("victim");
        fs::write(&victim, "of the host").expect("write");
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).expect("set mode");
        let link = format!("{up}{}", victim.display());
        symlink(&link, bundle.rootfs().join("dev/console")).expect("link");
        bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        let (_listener, answer) = create_with_terminal(&mut bundle);
        assert_eq!(answer.status, 1, "{case}: {}", answer.stderr);
        let want = "open /dev/console: too many levels of symbolic links";
        assert!(answer.stderr.contains(want), "{case}: {}", answer.stderr);
        let left = victim.metadata().expect("look at victim");
        assert_eq!((left.uid(), left.mode() & 0o7777), (0, 0o600), "{case}");
        assert_eq!(fs::read_to_string(&victim).expect("read"), "of the host", "{case}");
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{case}");
    }
}

#[test]
fn cve_2025_52565_console_of_an_exec() {
    let mut bundle = hostile("sleep 1000");
    symlink("busybox", bundle.rootfs().join("bin/ln")).expect("link");
    bundle.config["linux"]["maskedPaths"] = json!([]);
    bundle.start();
    let make = "mount -t tmpfs none /dev/pts && ln -s /proc/self/fd/0 /dev/pts/ptmx";
    assert_eq!(bundle.on("exec", &["sh", "-c", make]).status, 0);
    let answer = bundle.call(&["exec", "-t", &bundle.id, "true"]);
    assert_eq!(answer.status, 255, "{}", answer.stdout);
    assert!(answer.stderr.contains("make console from /dev/pts/ptmx"), "{}", answer.stderr);
}

/// CVE-2025-24965: a file of the runtime's own is written through a link of the image. This
/// runtime writes none: a started container has not one file more.
#[test]
fn cve_2025_24965_no_files_of_the_runtime() {
    let mut bundle = Bundle::new("true");
    bundle.config["root"]["readonly"] = json!(false);
    bundle.config["hooks"]["createContainer"] = hook("true");
    let before = names(&bundle.rootfs());
    let answer = bundle.run();
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    assert_eq!(names(&bundle.rootfs()), before);
}

/// Everything below a directory.
fn names(top: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut directories = vec![top.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("read directory") {
            let entry = entry.expect("read entry");
            if entry.file_type().expect("type").is_dir() {
                directories.push(entry.path());
            }
            names.push(entry.path().display().to_string());
        }
    }
    names.sort();
    names
}
