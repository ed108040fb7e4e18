//! Where mounts end up and what they look like, as root, on the real kernel.

mod support;

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
};

use serde_json::{Value, json};
use support::Bundle;

/// Adds a mount to a configuration.
fn add(bundle: &mut Bundle, mount: Value) {
    bundle.config["mounts"].as_array_mut().expect("a list").push(mount);
}

#[test]
fn mode_of_a_tmpfs() {
    let cases = [
        ("of a directory that was not there", None, vec![], "1777"),
        ("of the directory that it hides", Some(0o710), vec![], "710"),
        ("as asked for", Some(0o710), vec!["mode=0456"], "456"),
    ];
    for (case, hidden, options, want) in cases {
        let mut bundle = Bundle::new("stat -c %a /new");
        if let Some(mode) = hidden {
            let path = bundle.rootfs().join("new");
            fs::create_dir(&path).expect("make directory");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs::set_permissions(&path, mode).expect("set mode");
        }
        let mount =
            json!({"type": "tmpfs", "source": "tmpfs", "destination": "/new", "options": options});
        add(&mut bundle, mount);
        let answer = bundle.run();
        assert_eq!(answer.stdout.trim(), want, "{case}: {}", answer.stderr);
    }
}

/// Options that take an access time back leave the kernel's own one to all mounts below.
#[test]
fn recursive_access_times() {
    let cases = [
        ("rnoatime", "noatime"),
        ("rstrictatime", ""),
        ("rrelatime", "relatime"),
        ("rnorelatime", "relatime"),
        ("ratime", "relatime"),
        ("rnostrictatime", "relatime"),
    ];
    for (option, want) in cases {
        let mut bundle = Bundle::new("grep -E ' /top(/below)? ' /proc/self/mounts");
        fs::create_dir_all(bundle.rootfs().join("top/below")).expect("make directories");
        for destination in ["/tmp", "/tmp/below"] {
            add(
                &mut bundle,
                json!({"type": "tmpfs", "source": "tmpfs", "destination": destination,
                       "options": ["noatime"]}),
            );
        }
        let source = bundle.rootfs().join("tmp");
        add(
            &mut bundle,
            json!({"source": source, "destination": "/top", "options": ["rbind", option]}),
        );
        let answer = bundle.run();
        let found: Vec<_> = answer
            .stdout
            .lines()
            .filter_map(|line| line.split(' ').nth(3))
            .map(|options| options.split(',').find(|word| word.contains("atime")).unwrap_or(""))
            .collect();
        assert_eq!(found, [want, want], "{option}: {answer:?}");
    }
}

#[test]
fn targets_behind_links_that_lead_nowhere() {
    let cases = [
        ("the last component", "/far/away", "link", "/link", "/far/away"),
        ("one on the way", "/far", "link", "/link/x/y", "/far/x/y"),
        ("out of the root", "../../../far", "link", "/link/x", "/far/x"),
    ];
    for (case, text, link, destination, at) in cases {
        for file in [true, false] {
            let mut bundle = Bundle::new(&format!("cat {at} 2>/dev/null || cat {at}/file"));
            symlink(text, bundle.rootfs().join(link)).expect("make link");
            let source = bundle.path().join("source");
            fs::create_dir(&source).expect("make source");
            fs::write(source.join("file"), "content").expect("write source");
            let source = if file { source.join("file") } else { source };
            add(
                &mut bundle,
                json!({"source": source, "destination": destination, "options": ["bind"]}),
            );
            let answer = bundle.run();
            assert_eq!(answer.stdout, "content", "{case}, file {file}: {}", answer.stderr);
        }
    }
}

/// Sources may be what earlier mounts have put into the root, and destinations the host's paths.
/// Where the runtime has to open them, it does so when the init comes to them.
#[test]
fn what_is_mounted_already_is_mounted_again() {
    let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    let cases = [
        // Name, with a user namespace, with an idmapped mount; whose the file is.
        ("plain", false, false, "0"),
        ("in a user namespace", true, false, "65534"),
        ("with ids mapped", false, true, "100000"),
        ("with ids mapped, in a user namespace", true, true, "0"),
    ];
    for (case, user, idmap, owner) in cases {
        let mut bundle = Bundle::new("cat /final/x/file; stat -c %u /final/top");
        let (rootfs, sources) = (bundle.rootfs(), bundle.path().join("sources"));
        for name in ["a/x", "b"] {
            fs::create_dir_all(sources.join(name)).expect("make source");
        }
        fs::write(sources.join("a/top"), "").expect("write source");
        fs::write(sources.join("b/file"), "inner\n").expect("write source");
        // Nobody but the runtime comes to the sources.
        let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&sources, closed).expect("close sources");
        add(
            &mut bundle,
            json!({"source": "sources/a", "destination": "/mnt", "options": ["bind"]}),
        );
        add(
            &mut bundle,
            json!({"source": "sources/b", "destination": "/mnt/x", "options": ["bind"]}),
        );
        let (source, destination) = (rootfs.join("mnt"), rootfs.join("final"));
        let mut again = json!({"source": source, "destination": destination, "options": ["rbind"]});
        if idmap {
            again["uidMappings"] = ids.clone();
            again["gidMappings"] = ids.clone();
        }
        add(&mut bundle, again);
        if user {
            bundle.config["linux"]["uidMappings"] = ids.clone();
            bundle.config["linux"]["gidMappings"] = ids.clone();
            let namespaces = bundle.config["linux"]["namespaces"].as_array_mut();
            namespaces.expect("a list").push(json!({"type": "user"}));
        }
        // Targets are made by the container's root, to whom the root filesystem does not belong.
        for name in ["mnt", "final"] {
            fs::create_dir(rootfs.join(name)).expect("make target");
        }
        let answer = bundle.run();
        assert_eq!(answer.stdout, format!("inner\n{owner}\n"), "{case}: {}", answer.stderr);
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{case}");
    }
}

/// The same where it fails: the runtime says why, and nothing is left.
#[test]
fn sources_that_no_mount_makes() {
    let mut bundle = Bundle::new("true");
    let source = bundle.rootfs().join("missing");
    let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    add(
        &mut bundle,
        json!({"source": source, "destination": "/tmp", "options": ["bind"],
               "uidMappings": ids, "gidMappings": ids}),
    );
    let answer = bundle.run();
    assert_eq!(answer.status, 1, "{answer:?}");
    let want = format!("bind {}: no such file or directory", source.display());
    assert!(answer.stderr.contains(&want), "{answer:?}");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

#[test]
fn a_path_is_masked_once() {
    let mut bundle = Bundle::new("grep -c ' /tmp ' /proc/self/mounts");
    bundle.config["linux"]["maskedPaths"] = json!(["/tmp", "/tmp/", "//tmp"]);
    let answer = bundle.run();
    assert_eq!(answer.stdout, "1\n", "{}", answer.stderr);
}

/// What a masked file shows is the host's, so a container's root may not change it. A device can be
/// written to all the same.
#[test]
fn a_masked_file_cannot_be_changed() {
    let script = "chmod 600 /proc/keys; chown 1 /proc/keys; echo x > /proc/keys && echo written";
    let mut bundle = Bundle::new(script);
    bundle.config["linux"]["maskedPaths"] = json!(["/proc/keys"]);
    let capabilities = json!(["CAP_CHOWN", "CAP_FOWNER", "CAP_DAC_OVERRIDE"]);
    for set in ["bounding", "effective", "permitted"] {
        bundle.config["process"]["capabilities"][set] = capabilities.clone();
    }
    let before = fs::metadata("/dev/null").expect("a device");
    let answer = bundle.run();
    let after = fs::metadata("/dev/null").expect("a device");
    let of = |found: &fs::Metadata| (found.mode(), found.uid());
    assert_eq!(of(&after), of(&before), "the host's");
    assert_eq!(answer.stdout, "written\n", "{answer:?}");
    assert_eq!(answer.stderr.matches("Read-only file system").count(), 2, "{answer:?}");
}

#[test]
fn masked_directories_share_a_filesystem() {
    let mut bundle = Bundle::new("stat -c %d /tmp /root");
    bundle.config["linux"]["maskedPaths"] = json!(["/tmp", "/root"]);
    let answer = bundle.run();
    let devices: Vec<_> = answer.stdout.lines().collect();
    assert!(devices.len() == 2 && devices[0] == devices[1], "{answer:?}");
}

#[test]
fn procfs_and_sysfs_only_on_directories() {
    for name in ["proc", "sys"] {
        let bundle = Bundle::new("true");
        fs::remove_dir(bundle.rootfs().join(name)).expect("remove directory");
        symlink("/elsewhere", bundle.rootfs().join(name)).expect("make link");
        let answer = bundle.run();
        assert_eq!(answer.status, 1, "{name}");
        let want = "must be mounted on ordinary directory";
        assert!(answer.stderr.contains(want), "{name}: {}", answer.stderr);
    }
}

/// A bundle without a mount namespace of its own, but with a bind mount.
fn on_the_host(script: &str) -> Bundle {
    let mut bundle = Bundle::new(script);
    let source = bundle.path().join("source");
    fs::create_dir(&source).expect("make source");
    fs::write(source.join("file"), "content\n").expect("write source");
    add(&mut bundle, json!({"source": source, "destination": "/new", "options": ["bind"]}));
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|namespace| namespace["type"] != "mount");
    for list in ["maskedPaths", "readonlyPaths"] {
        bundle.config["linux"][list] = json!([]);
    }
    bundle
}

/// Runs a shell script, in which `$runc` is the program, in a mount namespace that is made for this,
/// so that what stays mounted by mistake goes with it. Counts the mounts that the bundle has then.
fn apart(bundle: &Bundle, script: &str) -> support::Answer {
    bundle.write_config();
    let count = format!("grep -c ' {}/' /proc/self/mountinfo", bundle.path_text());
    let runc = format!("{} --root {}", bundle.program.display(), bundle.root().display());
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg(format!("{script}\n{count}")).env("runc", runc).env("id", &bundle.id);
    command.env("bundle", bundle.path()).stdin(std::process::Stdio::null());
    support::Answer::new(command.output().expect("run unshare"))
}

#[test]
fn mounts_on_the_host_go_with_their_container() {
    let run = "$runc run -b $bundle $id";
    let cases = [
        ("run", "echo ran", run, "ran\n0\n"),
        (
            "deleted",
            "sleep 1000",
            "$runc create -b $bundle $id >&- 2>&-; $runc delete -f $id",
            "0\n",
        ),
        ("refused program", "/no/such", run, "0\n"),
        // What was there before stays, however often.
        (
            "a mounted root",
            "cat /new/file",
            "mount --bind $bundle/rootfs $bundle/rootfs; $runc run -b $bundle $id; $runc run -b $bundle $id",
            "content\ncontent\n1\n",
        ),
        // Whoever has taken it away already may have mounted something else since.
        (
            "taken away",
            "sleep 1000",
            "$runc create -b $bundle $id >&- 2>&-; umount -l $bundle/rootfs; \
             mount -t tmpfs x $bundle/rootfs; $runc delete -f $id",
            "1\n",
        ),
    ];
    for (case, program, script, want) in cases {
        let mut bundle = on_the_host(program);
        if case == "refused program" {
            bundle.config["process"]["args"] = json!([program]);
        }
        let answer = apart(&bundle, script);
        assert_eq!(answer.stdout, want, "{case}: {answer:?}");
    }
    let mut bundle = on_the_host("true");
    bundle.config["hooks"] =
        json!({"createContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "exit 1"]}]});
    let answer = apart(&bundle, run);
    assert_eq!(answer.stdout, "0\n", "failing hook: {answer:?}");
}

#[test]
fn without_a_mount_namespace() {
    let mut bundle = on_the_host("cat /new/file; cat /root/made-by-hook");
    let hook = format!("echo hook > {}/root/made-by-hook", bundle.rootfs().display());
    bundle.config["hooks"] =
        json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", hook]}]});
    let answer = apart(&bundle, "$runc run -b $bundle $id");
    assert_eq!(answer.stdout, "content\nhook\n0\n", "{}", answer.stderr);
}

/// What a user namespace may not take from a mount stays where the runtime changes something else of
/// it, and is refused where that is what is asked for.
#[test]
fn locked_flags_other_than_of_bind_mounts() {
    let show = "while read a b c d e; do case $b in /|/mnt|/root) echo $b $d;; esac; done \
                < /proc/mounts; true";
    let refused = "operation not permitted";
    // Options of a bind mount and of a remount of it, and beginnings of lines or what is refused.
    let cases = [
        ("root and paths", "bind", "", vec!["/ ro,nosuid,nodev", "/root ro,nosuid,nodev"]),
        ("remount adds", "bind", "remount,bind,noexec", vec!["/mnt ro,nosuid,nodev,noexec"]),
        ("remount takes", "bind", "remount,bind,rw", vec![refused]),
        ("recursive adds", "rbind,rnoexec", "", vec!["/mnt ro,nosuid,nodev,noexec"]),
    ];
    for (case, options, more, wanted) in cases {
        let mut bundle = Bundle::new(show);
        fs::create_dir(bundle.path().join("source")).expect("make source");
        fs::create_dir(bundle.rootfs().join("mnt")).expect("make target");
        let source = bundle.path().join("source");
        let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        add(
            &mut bundle,
            json!({"source": source, "destination": "/mnt", "options": words(options)}),
        );
        if !more.is_empty() {
            add(&mut bundle, json!({"destination": "/mnt", "options": words(more)}));
        }
        bundle.config["root"]["readonly"] = json!(true);
        bundle.config["linux"]["readonlyPaths"] = json!(["/root"]);
        bundle.config["linux"]["maskedPaths"] = json!(["/etc"]);
        let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.push(json!({"type": "user"}));
        for kind in ["uidMappings", "gidMappings"] {
            bundle.config["linux"][kind] =
                json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        }
        let script = "mount --bind $bundle/rootfs $bundle/rootfs
            mount -o remount,bind,nosuid,nodev $bundle/rootfs
            mount --bind $bundle/source $bundle/source
            mount -o remount,bind,ro,nosuid,nodev $bundle/source
            $runc run -b $bundle $id";
        let answer = apart(&bundle, script);
        for want in wanted {
            let found = if want == refused {
                answer.stderr.contains(want)
            } else {
                answer.stdout.lines().any(|line| line.starts_with(want))
            };
            assert!(found, "{case}: {want}: {answer:?}");
        }
    }
}

/// The options that a bind mount has in the container, for those of its source and its own.
#[test]
fn attributes_of_bind_mounts() {
    let cases = [
        ("no options", "ro,noexec,nodiratime", "bind", false, "ro,noexec,nodiratime,relatime"),
        ("one cleared", "ro,noexec,nodiratime", "bind,dev", false, "rw,nodiratime,relatime"),
        ("implied rw", "ro", "bind,nosuid,nodev", false, "rw,nosuid,nodev,relatime"),
        ("times stay", "nodev,noatime", "bind,ro,exec", false, "ro,noatime"),
        ("times are not taken back", "noatime", "bind,atime", false, "rw,noatime"),
        ("other times", "noatime", "bind,relatime", false, "rw,relatime"),
        ("of directories", "noatime", "bind,nodiratime", false, "rw,nodiratime,relatime"),
        ("locked ones stay", "ro,noexec,nosymfollow", "bind,dev", true, "ro,noexec,relatime"),
        ("locked one cleared", "ro", "bind,rw", true, "operation not permitted"),
        ("locked times", "noatime", "bind,strictatime", true, "operation not permitted"),
    ];
    for (case, source_options, options, user, want) in cases {
        let mut bundle = Bundle::new(
            "while read a b c d e; do [ $b = /mnt ] && echo $d; done < /proc/mounts; true",
        );
        if user {
            let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
            namespaces.push(json!({"type": "user"}));
            for kind in ["uidMappings", "gidMappings"] {
                bundle.config["linux"][kind] =
                    json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
            }
        }
        let source = bundle.path().join("source");
        fs::create_dir(&source).expect("make source");
        fs::create_dir(bundle.rootfs().join("mnt")).expect("make target");
        let options: Vec<_> = options.split(',').collect();
        add(&mut bundle, json!({"source": source, "destination": "/mnt", "options": options}));
        bundle.write_config();
        let script = "mount -t tmpfs -o relatime x $0/source && \
                      mount --bind -o remount,$1 $0/source && \
                      exec $2 --root $0/state run -b $0 $3";
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
        command.arg(bundle.path()).arg(source_options).arg(&bundle.program).arg(&bundle.id);
        let answer = support::Answer::new(command.output().expect("run unshare"));
        let shown = if user { answer.stdout.trim_end().split(",uid").next() } else { None };
        let found = shown.unwrap_or(answer.stdout.trim_end()).to_owned();
        if answer.status == 0 {
            // Options of the filesystem itself come after those of the mount.
            let mount: Vec<_> = found.split(',').filter(|option| *option != "inode64").collect();
            assert_eq!(mount.join(","), want, "{case}");
        } else {
            assert!(answer.stderr.contains(want), "{case}: {}", answer.stderr);
        }
    }
}
