//! Ids, cgroup paths, annotations and other texts that end up in paths, lists and messages.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{hook, hostile, support::Bundle};

/// crun 1.28, and its like: an id is a path out of the state directory.
#[test]
fn ids_are_no_paths() {
    let bundle = Bundle::new("true");
    bundle.write_config();
    fs::create_dir_all(bundle.root().join("inner")).expect("make root");
    let keep = bundle.path().join("keep");
    fs::write(&keep, "").expect("write file");
    let long = "x".repeat(256);
    let ids =
        ["..", ".", "", "../keep", "/keep", "a/../..", "a/b", "a\\b", "a b", "a\nb", "é", &long];
    for id in ids {
        let calls: [&[&str]; 7] = [
            &["create", "-b", bundle.path_text(), "--", id],
            &["run", "-b", bundle.path_text(), "--", id],
            &["delete", "--force", "--", id],
            &["state", "--", id],
            &["kill", "--", id, "9"],
            &["exec", "--", id, "true"],
            &["update", "--pids-limit", "3", "--", id],
        ];
        for words in calls {
            let answer = bundle.call(words);
            assert_ne!(answer.status, 0, "{words:?}: {}", answer.stdout);
            assert!(answer.stderr.contains("invalid container ID format"), "{}", answer.stderr);
        }
        assert!(keep.exists(), "{id:?}");
        assert_eq!(fs::read_dir(bundle.root()).expect("read root").count(), 1, "{id:?}");
    }
}

/// crun 1.28: a cgroup's path leads out of the hierarchy.
#[test]
fn cgroup_paths_stay_in_the_hierarchy() {
    for path in ["/../../../{}", "../../{}", "/a/../../{}", "/./{}", "//{}//"] {
        let mut bundle = Bundle::new("sleep 1000");
        bundle.config["linux"]["cgroupsPath"] = json!(path.replace("{}", &bundle.id));
        bundle.start();
        let record = bundle.root().join(&bundle.id).join("state.json");
        let record: Value =
            serde_json::from_slice(&fs::read(record).expect("read record")).expect("JSON");
        let groups: Vec<PathBuf> = record["cgroup_paths"]
            .as_object()
            .expect("an object")
            .values()
            .map(|path| PathBuf::from(path.as_str().expect("a path")))
            .collect();
        assert!(!groups.is_empty(), "{path}");
        for group in groups {
            assert!(group.starts_with("/sys/fs/cgroup"), "{path}: {group:?}");
            assert!(!group.components().any(|part| part.as_os_str() == ".."), "{path}: {group:?}");
            assert!(group.is_dir(), "{path}: {group:?}");
        }
        assert_eq!(bundle.on("delete", &["--force"]).status, 0, "{path}");
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{path}");
    }
}

/// An exec in a cgroup that is not below the container's.
#[test]
fn exec_stays_below_the_cgroup() {
    let bundle = Bundle::new("sleep 1000");
    bundle.start();
    let paths = [
        "..",
        "/..",
        "../..",
        "a/../..",
        "a/../../b",
        "devices:..",
        "devices:/../x",
        "cpu,devices:..",
    ];
    for path in paths {
        let answer = bundle.call(&["exec", "--cgroup", path, &bundle.id, "echo", "ran"]);
        assert_eq!((answer.status, answer.stdout.as_str()), (255, ""), "{path}");
    }
    let answer = bundle.call(&["exec", "--cgroup", "/", &bundle.id, "cat", "/proc/self/cgroup"]);
    assert_eq!(answer.status, 0, "{}", answer.stderr);
}

/// An annotation is a text and nothing else: no bundle, no property of a unit, no state.
#[test]
fn annotations_inject_nothing() {
    let mut bundle = hostile("sleep 1000");
    let evil = Bundle::new("true");
    evil.write_config();
    let flag = bundle.path().join("flag");
    let annotations = json!({
        "bundle": evil.path_text(),
        "bundle=/x": "y",
        "a=b": "c\nd\"e",
        "org.systemd.property.ExecStartPre": format!("['/bin/touch {}']", flag.display()),
        "org.criu.config": "/etc/passwd",
        "run.oci.handler": "krun",
        "run.oci.hooks.stdout": flag.to_str().expect("plain name"),
    });
    bundle.config["annotations"] = annotations;
    let log = bundle.path().join("log");
    bundle.config["hooks"]["createRuntime"] = hook(&format!("cat > {}", log.display()));
    bundle.start();
    assert_eq!(bundle.state()["bundle"], bundle.path_text());
    let told: Value = serde_json::from_slice(&fs::read(log).expect("read log")).expect("JSON");
    assert_eq!(told["bundle"], bundle.path_text());
    assert_eq!(told["annotations"]["run.oci.handler"], "krun");
    // The other bundle's user would be another one.
    let answer = bundle.on("exec", &["true"]);
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    assert!(!flag.exists(), "something was run or written");
}

/// CVE-2021-43784: a length overflows on the way from the runtime to its init.
#[test]
fn cve_2021_43784_long_values() {
    // The longest variable that Linux takes has 128 KiB.
    let long = "x".repeat(131_000);
    let mut bundle = Bundle::new("echo ${#A} ${#B}");
    bundle.config["process"]["env"] =
        json!(["PATH=/bin", format!("A={long}"), format!("B={}", &long[..65_537])]);
    bundle.config["annotations"] = json!({"long": "y".repeat(1 << 20)});
    bundle.config["hostname"] = json!("h");
    let answer = bundle.run();
    assert_eq!(answer.stdout, "131000 65537\n", "{}", answer.stderr);
    // Errors are as long as what they name, and arrive, cut off.
    let mut bundle = Bundle::new("true");
    bundle.config["process"]["args"] = json!([format!("/{long}")]);
    let answer = bundle.run();
    assert_eq!(answer.status, 1);
    assert!(answer.stderr.contains("exec: \\\"/xxx"), "{:.200}", answer.stderr);
    let mut bundle = Bundle::new("true");
    let mappings: Vec<_> =
        (0..1000).map(|at| json!({"containerID": at, "hostID": 100_000 + at, "size": 1})).collect();
    bundle.config["linux"]["uidMappings"] = json!(mappings);
    bundle.config["linux"]["gidMappings"] = json!(mappings);
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.push(json!({"type": "user"}));
    // The kernel takes 340 lines.
    let answer = bundle.run();
    assert_eq!(answer.status, 1);
    assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{}", answer.stderr);
}

/// What a caller or an image has at hand is not followed: the temporary file of a pid file.
#[test]
fn pid_file_is_not_written_through_a_link() {
    let bundle = Bundle::new("sleep 1000");
    bundle.write_config();
    let victim = bundle.path().join("victim");
    fs::write(&victim, "precious").expect("write file");
    std::os::unix::fs::symlink(&victim, bundle.path().join(".pid")).expect("link");
    std::os::unix::fs::symlink(&victim, bundle.path().join("pid")).expect("link");
    let pid_file = bundle.path().join("pid");
    let words = ["create", "-b", bundle.path_text(), "--pid-file"];
    let words = [words.as_slice(), &[pid_file.to_str().expect("plain name"), &bundle.id]].concat();
    let mut command = bundle.command(&words);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    assert!(command.status().expect("run create").success());
    assert_eq!(fs::read_to_string(&victim).expect("read"), "precious");
    let written = fs::read_to_string(&pid_file).expect("read pid file");
    assert_eq!(written, bundle.state()["pid"].to_string());
}

/// Records are root's: they have the environment of hooks, and names in them are trusted.
#[test]
fn state_directory_is_private() {
    use std::os::unix::fs::MetadataExt as _;
    let bundle = Bundle::new("true");
    assert_eq!(bundle.create(), 0);
    let entry = bundle.root().join(&bundle.id);
    let mode = |path: &Path| format!("{:o}", fs::metadata(path).expect("stat").mode() & 0o7777);
    assert_eq!(mode(&bundle.root()), "700");
    assert_eq!(mode(&entry), "700");
    assert_eq!(mode(&entry.join("state.json")), "600");
    assert_eq!(mode(&entry.join("exec.fifo")), "600");
}
