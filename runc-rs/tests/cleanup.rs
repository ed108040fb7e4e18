//! Whatever goes wrong leaves nothing behind, and `delete --force` removes what a crash left, as
//! root, on the real kernel.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use support::{Bundle, wait_until};

/// Checks that nothing is left of a container; processes that nobody waits for have a while to go.
fn assert_clean(bundle: &Bundle, case: &str) {
    wait_until(&format!("{case}: {:?}", bundle.leftovers()), || {
        bundle.leftovers().iter().all(|left| !left.starts_with("process"))
    });
    assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{case}");
}

fn delete(bundle: &Bundle, case: &str) {
    let answer = bundle.on("delete", &["--force"]);
    assert_eq!(answer.status, 0, "{case}: {}", answer.stderr);
    assert_clean(bundle, case);
}

/// The container's groups, by controller.
fn cgroups(bundle: &Bundle) -> BTreeMap<String, PathBuf> {
    serde_json::from_value(record(bundle)["cgroup_paths"].clone()).expect("paths")
}

fn record(bundle: &Bundle) -> Value {
    let text = fs::read(record_path(bundle)).expect("read record");
    serde_json::from_slice(&text).expect("JSON")
}

fn record_path(bundle: &Bundle) -> PathBuf {
    bundle.root().join(&bundle.id).join("state.json")
}

/// A container that cannot be created because another one has its cgroup takes nothing from that.
#[test]
fn cgroup_of_another_container() {
    let first = Bundle::new("sleep 1000");
    first.start();
    for command in ["create", "run"] {
        let mut second = Bundle::new("true");
        second.config["linux"]["cgroupsPath"] = json!(format!("/{}", first.id));
        second.write_config();
        let answer = second.call(&[command, "-b", second.path_text(), &second.id]);
        assert_eq!(answer.status, 1, "{command}");
        assert!(answer.stderr.contains("cgroup is not empty"), "{command}: {}", answer.stderr);
        assert_eq!(first.state()["status"], "running", "{command}");
        assert_clean(&second, command);
        // As if that create had been killed after it planned its cgroups.
        let entry = second.root().join(&second.id);
        fs::create_dir_all(&entry).expect("make entry");
        let paths = serde_json::to_string(&cgroups(&first)).expect("JSON");
        fs::write(entry.join("planned.json"), paths).expect("write plan");
        delete(&second, command);
        assert_eq!(first.state()["status"], "running", "{command}");
    }
}

/// What a record may look like after a crash, or when another program wrote it.
#[test]
fn records_that_cannot_be_read() {
    /// What happens to the files of a container that runs.
    type Damage = fn(&Bundle);
    let cases: [(&str, Damage); 8] = [
        ("whole", |_| {}),
        ("missing", |bundle| fs::remove_file(record_path(bundle)).expect("remove record")),
        ("empty", |bundle| fs::write(record_path(bundle), "").expect("write record")),
        ("half", |bundle| {
            let text = fs::read(record_path(bundle)).expect("read record");
            fs::write(record_path(bundle), &text[..text.len() / 2]).expect("write record");
        }),
        ("other JSON", |bundle| fs::write(record_path(bundle), "[1, null]").expect("write record")),
        ("a directory", |bundle| {
            fs::remove_file(record_path(bundle)).expect("remove record");
            fs::create_dir_all(record_path(bundle).join("x")).expect("make directory");
        }),
        ("of runc 1.1", |bundle| {
            let own = record(bundle);
            let foreign = json!({
                "id": own["id"],
                "init_process_pid": own["init_process_pid"],
                "init_process_start": own["init_process_start"],
                "created": own["created"],
                "config": {
                    "no_pivot_root": false, "rootfs": "/x", "umask": null, "Hooks": {},
                    "labels": ["bundle=/proc/no/such"], "cgroups": {"path": "x", "Systemd": false},
                },
                "rootless": false,
                "cgroup_paths": own["cgroup_paths"],
                "namespace_paths": {"NEWNS": "/proc/1/ns/mnt"},
                "external_descriptors": ["/dev/null", "/dev/null", "/dev/null"],
                "intel_rdt_path": "",
            });
            fs::write(record_path(bundle), foreign.to_string()).expect("write record");
        }),
        ("with other types", |bundle| {
            let mut own = record(bundle);
            own["created"] = json!(7);
            own["rootless"] = json!("no");
            own["config"] = json!([]);
            fs::write(record_path(bundle), own.to_string()).expect("write record");
        }),
    ];
    for (case, damage) in cases {
        let bundle = Bundle::new("sleep 1000");
        bundle.start();
        damage(&bundle);
        let listed = bundle.call(&["list", "-q"]);
        assert_eq!(listed.status, 0, "{case}: {}", listed.stderr);
        delete(&bundle, case);
        let again = bundle.on("delete", &["--force"]);
        assert_eq!(again.status, 0, "{case}: unknown by now: {}", again.stderr);
        assert_eq!(bundle.on("delete", &[]).status, 1, "{case}: without force");
    }
}

/// Circumstances in which a container is deleted.
#[test]
fn deleted_in_every_state() {
    /// What happens before.
    type Prepare = fn(&Bundle);
    let cases: [(&str, Prepare); 6] = [
        ("created", |bundle| assert_eq!(bundle.create(), 0)),
        ("paused", |bundle| {
            bundle.start();
            assert_eq!(bundle.on("pause", &[]).status, 0);
        }),
        ("bundle is gone", |bundle| {
            bundle.start();
            fs::remove_file(bundle.path().join("config.json")).expect("remove config");
            fs::remove_dir_all(bundle.rootfs()).expect("remove rootfs");
        }),
        ("init is dead, cgroups are gone", |bundle| {
            bundle.start();
            assert_eq!(bundle.on("kill", &["KILL"]).status, 0);
            bundle.wait_for("stopped");
            for path in cgroups(bundle).values() {
                wait_until("group is gone", || {
                    let _ = fs::remove_dir(path);
                    !path.exists()
                });
            }
        }),
        ("with an exec, and groups of its own", |bundle| {
            bundle.start();
            let mut exec = bundle.command(&["exec", "-d", &bundle.id, "sleep", "1000"]);
            // The process keeps them open.
            exec.stdout(Stdio::null()).stderr(Stdio::null());
            assert!(exec.status().expect("run exec").success());
            for path in cgroups(bundle).values() {
                fs::create_dir_all(path.join("a/b")).expect("make groups");
            }
        }),
        ("pid is somebody else's by now", |bundle| {
            bundle.start();
            let mut own = record(bundle);
            own["init_process_pid"] = json!(std::process::id());
            fs::write(record_path(bundle), own.to_string()).expect("write record");
        }),
    ];
    for (case, prepare) in cases {
        let bundle = Bundle::new("sleep 1000");
        prepare(&bundle);
        delete(&bundle, case);
    }
}

/// Processes that cannot be killed, because a group above theirs is frozen: the record stays until
/// they are gone.
#[test]
fn processes_that_do_not_die_yet() {
    let freezer = Path::new("/sys/fs/cgroup/freezer");
    let mut bundle = Bundle::new("sleep 1000");
    let above = format!("above-{}", bundle.id);
    bundle.config["linux"]["cgroupsPath"] = json!(format!("/{above}/{}", bundle.id));
    bundle.start();
    let groups: Vec<PathBuf> =
        cgroups(&bundle).values().filter_map(|path| path.parent().map(Path::to_owned)).collect();
    let (file, frozen, thawed) = if freezer.exists() {
        (freezer.join(&above).join("freezer.state"), "FROZEN", "THAWED")
    } else {
        (groups[0].join("cgroup.freeze"), "1", "0")
    };
    fs::write(&file, frozen).expect("freeze");
    let answer = bundle.on("delete", &["--force"]);
    fs::write(&file, thawed).expect("thaw");
    // cgroup v2 kills frozen processes.
    if freezer.exists() {
        assert_eq!(answer.status, 1, "{}", answer.stderr);
        assert!(record_path(&bundle).exists(), "the record stays: {}", answer.stderr);
    }
    delete(&bundle, "thawed");
    for group in groups {
        let _ = fs::remove_dir(group);
    }
}

/// A step that fails: its name, what is changed, the call, and what the error says.
struct Failure {
    case: &'static str,
    change: fn(&mut Bundle),
    /// The command and its flags.
    words: &'static [&'static str],
    error: &'static str,
}

const CREATE: &[&str] = &["create"];
const RUN: &[&str] = &["run"];

fn hook(script: &str) -> Value {
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 1}])
}

fn mounts(bundle: &mut Bundle) -> &mut Vec<Value> {
    bundle.config["mounts"].as_array_mut().expect("a list")
}

/// In the order in which `create` comes by.
const FAILURES: [Failure; 22] = [
    Failure {
        case: "seccomp that cannot be compiled",
        change: |bundle| {
            bundle.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_NONE"});
        },
        words: CREATE,
        error: "seccomp",
    },
    Failure {
        case: "device rule",
        change: |bundle| {
            bundle.config["linux"]["resources"]["devices"] =
                json!([{"allow": true, "type": "c", "major": -7, "access": "r"}]);
        },
        words: CREATE,
        error: "cgroup",
    },
    Failure {
        case: "limit that is refused",
        change: |bundle| {
            bundle.config["linux"]["resources"]["cpu"] = json!({"cpus": "9999"});
        },
        words: CREATE,
        error: "cgroup",
    },
    Failure {
        case: "source of an idmapped mount",
        change: |bundle| {
            let ids = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
            mounts(bundle).push(json!({
                "source": "/proc/no/such", "destination": "/tmp", "options": ["bind"],
                "uidMappings": ids, "gidMappings": ids,
            }));
        },
        words: CREATE,
        error: "no such file or directory",
    },
    Failure {
        case: "console socket that is not there",
        change: |bundle| bundle.config["process"]["terminal"] = json!(true),
        words: &["create", "--console-socket", "/proc/no/such"],
        error: "connect to /proc/no/such: no such file or directory",
    },
    Failure {
        case: "mappings that overlap",
        change: |bundle| {
            let ids = json!([{"containerID": 0, "hostID": 5, "size": 9},
                             {"containerID": 3, "hostID": 90, "size": 9}]);
            bundle.config["linux"]["uidMappings"] = ids.clone();
            bundle.config["linux"]["gidMappings"] = ids;
            let namespaces = bundle.config["linux"]["namespaces"].as_array_mut();
            namespaces.expect("a list").push(json!({"type": "user"}));
        },
        words: CREATE,
        error: "uid_map: invalid argument",
    },
    Failure {
        case: "last mount",
        change: |bundle| {
            mounts(bundle)
                .push(json!({"source": "/tmp", "destination": "/a/b/c", "options": ["bind"]}));
            mounts(bundle)
                .push(json!({"source": "x", "destination": "/tmp", "type": "no-such-fs"}));
        },
        words: CREATE,
        error: "no such device",
    },
    Failure {
        case: "prestart hook",
        change: |bundle| bundle.config["hooks"]["prestart"] = hook("exit 3"),
        words: CREATE,
        error: "prestart hook #0: exit status 3",
    },
    Failure {
        case: "createRuntime hook",
        change: |bundle| bundle.config["hooks"]["createRuntime"] = hook("exit 3"),
        words: CREATE,
        error: "createRuntime hook #0: exit status 3",
    },
    Failure {
        case: "createRuntime hook that hangs",
        change: |bundle| bundle.config["hooks"]["createRuntime"] = hook("exec sleep 1000"),
        words: CREATE,
        error: "createRuntime hook #0: hook ran past specified timeout of 1.0s",
    },
    Failure {
        case: "createContainer hook",
        change: |bundle| bundle.config["hooks"]["createContainer"] = hook("exit 3"),
        words: CREATE,
        error: "createContainer hook #0: exit status 3",
    },
    Failure {
        case: "createContainer hook that hangs",
        change: |bundle| bundle.config["hooks"]["createContainer"] = hook("exec sleep 1000"),
        words: CREATE,
        error: "createContainer hook #0: hook ran past specified timeout of 1.0s",
    },
    Failure {
        case: "terminal without devpts",
        change: |bundle| {
            bundle.config["process"]["terminal"] = json!(true);
            mounts(bundle).retain(|mount| mount["destination"] != "/dev/pts");
        },
        words: RUN,
        error: "make console",
    },
    Failure {
        case: "sysctl",
        change: |bundle| {
            bundle.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "x"});
        },
        words: CREATE,
        error: "ip_forward",
    },
    Failure {
        case: "working directory",
        change: |bundle| bundle.config["process"]["cwd"] = json!("/bin/busybox"),
        words: CREATE,
        error: "not a directory",
    },
    Failure {
        case: "program",
        change: |bundle| bundle.config["process"]["args"] = json!(["/proc/no/such"]),
        words: CREATE,
        error: "no such file or directory",
    },
    Failure {
        case: "seccomp agent that is not there",
        change: |bundle| {
            bundle.config["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/proc/no/such",
                "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_NOTIFY"}],
            });
        },
        words: CREATE,
        error: "connect to /proc/no/such",
    },
    Failure {
        case: "pidfd socket that is not there",
        change: |_| {},
        words: &["create", "--pidfd-socket", "/proc/no/such"],
        error: "connect to /proc/no/such",
    },
    Failure {
        case: "pid file that cannot be written",
        change: |_| {},
        words: &["create", "--pid-file", "/proc/no/such/pid"],
        error: "write /proc/no/such/pid: no such file or directory",
    },
    Failure {
        case: "startContainer hook",
        change: |bundle| {
            bundle.config["hooks"]["startContainer"] = json!([{"path": "/bin/no-such"}]);
        },
        words: RUN,
        error: "startContainer hook #0",
    },
    Failure {
        case: "program of no format",
        change: |bundle| bundle.config["process"]["args"] = json!(["/etc/text"]),
        words: RUN,
        error: "exec format error",
    },
    Failure {
        case: "poststart hook",
        change: |bundle| {
            bundle.config["hooks"]["poststart"] = hook("exit 3");
            bundle.config["process"]["args"] = json!(["sleep", "1000"]);
        },
        words: RUN,
        error: "poststart hook #0: exit status 3",
    },
];

#[test]
fn failures_leave_nothing() {
    for Failure { case, change, words, error } in FAILURES {
        let mut bundle = Bundle::new("true");
        let text = bundle.rootfs().join("etc/text");
        fs::write(&text, "no program").expect("write file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(text, mode).expect("chmod");
        change(&mut bundle);
        bundle.write_config();
        let files = files(&bundle);
        let words = [words, &["-b", bundle.path_text(), &bundle.id]].concat();
        let answer = bundle.call(&words);
        assert_ne!(answer.status, 0, "{case}");
        assert!(answer.stderr.contains(error), "{case}: {}", answer.stderr);
        assert_clean(&bundle, case);
        assert_eq!(self::files(&bundle), files, "{case}");
        // The id is free again, and the next one is not hindered.
        assert_eq!(bundle.on("state", &[]).status, 1, "{case}");
    }
}

/// The names in the bundle's directory, but for the root that commands make there.
fn files(bundle: &Bundle) -> Vec<std::ffi::OsString> {
    let entries = fs::read_dir(bundle.path()).expect("read bundle");
    let mut names: Vec<_> = entries.map(|entry| entry.expect("read entry").file_name()).collect();
    names.retain(|name| name != "state");
    names.sort();
    names
}

/// A script that ends in a call of the program; its arguments are the script's.
fn call_from(bundle: &Bundle, script: &str) -> support::Answer {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    command.arg(&bundle.program).arg("--root").arg(bundle.root());
    command.args(["run", "-b", bundle.path_text(), &bundle.id]).stdin(Stdio::null());
    support::Answer::new(command.output().expect("run the script"))
}

/// A state directory with ever more room: for the directory, the plan, the FIFO, the record.
#[test]
fn full_disk() {
    let mut succeeded = false;
    for inodes in 1..8 {
        let bundle = Bundle::new("true");
        bundle.write_config();
        fs::create_dir(bundle.root()).expect("make root");
        let script = format!(
            "mount -t tmpfs -o nr_inodes={inodes} none {0} || exit 90; \"$@\"; s=$?; \
             [ -z \"$(ls -A {0})\" ] || exit 91; exit $s",
            bundle.root().display()
        );
        let answer = call_from(&bundle, &script);
        succeeded = answer.status == 0;
        assert!(matches!(answer.status, 0 | 1), "{inodes}: {} {}", answer.status, answer.stderr);
        let full = answer.stderr.contains("no space left on device");
        assert_eq!(full, answer.status == 1, "{inodes}: {}", answer.stderr);
        assert_clean(&bundle, &format!("{inodes} inodes"));
    }
    assert!(succeeded, "seven inodes are enough");
}

/// Ever more descriptors.
#[test]
fn too_few_descriptors() {
    let mut succeeded = false;
    for limit in (3..16).chain((16..128).step_by(9)) {
        let bundle = Bundle::new("true");
        bundle.write_config();
        let answer = call_from(&bundle, &format!("ulimit -Sn {limit}; exec \"$@\""));
        succeeded = answer.status == 0;
        let told = succeeded || !answer.stderr.is_empty();
        assert!(told, "{limit}: {} without a word", answer.status);
        assert_clean(&bundle, &format!("{limit} descriptors"));
    }
    assert!(succeeded, "so many descriptors are enough");
}

/// Numbers without pattern, the same in each run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Starts the program, and kills it after a while.
fn cut_short(bundle: &Bundle, words: &[&str], after: Duration) {
    let mut command = bundle.command(words);
    let mut child: Child =
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run the program");
    std::thread::sleep(after);
    // It may have ended by itself.
    let _ = child.kill();
    child.wait().expect("wait");
}

/// The runtime is killed at any moment of whatever it does.
#[test]
fn killed_runtime() {
    const ROUNDS: u64 = 40;
    let mut draw = Draw(0x2545_f491_4f6c_dd1d);
    let hooks = json!({
        "createRuntime": [{"path": "/bin/true"}],
        "createContainer": [{"path": "/bin/true"}],
    });
    for round in 0..ROUNDS {
        let after = Duration::from_micros(draw.below(12_000));
        let mut bundle = Bundle::new("sleep 1000");
        if round % 2 == 0 {
            bundle.config["hooks"] = hooks.clone();
        }
        bundle.write_config();
        let id = bundle.id.clone();
        let (bundle_path, pid_file) = (bundle.path_text(), bundle.path().join("pid"));
        let pid_file = pid_file.to_str().expect("plain name");
        let create = ["create", "-b", bundle_path, "--pid-file", pid_file, &id];
        let run = ["run", "-d", "-b", bundle_path, &id];
        let (what, words): (_, &[&str]) = match round % 5 {
            0 | 1 => ("create", &create),
            2 => ("run", &run),
            3 => ("exec", &["exec", &id, "sleep", "1000"]),
            _ => ("delete", &["delete", "--force", &id]),
        };
        if matches!(what, "exec" | "delete") {
            bundle.start();
        }
        cut_short(&bundle, words, after);
        let case = format!("round {round}: {what} killed after {after:?}");
        delete(&bundle, &case);
    }
}

/// A group above the container's, as a pod has one, which is what runs out.
struct Parent {
    name: String,
    tops: Vec<PathBuf>,
}

impl Parent {
    fn new(bundle: &mut Bundle) -> Self {
        let top = PathBuf::from("/sys/fs/cgroup");
        let tops = match top.join("cgroup.controllers").exists() {
            true => vec![top],
            false => {
                let found = fs::read_dir(top).expect("read cgroups");
                found.map(|entry| entry.expect("read entry").path()).collect()
            }
        };
        let parent = Self { name: format!("{}-parent", bundle.id), tops };
        bundle.config["linux"]["cgroupsPath"] = json!(format!("/{}/{}", parent.name, bundle.id));
        parent
    }

    /// Sets a limit, which has one name on v1 and another on v2.
    fn limit(&self, controller: &str, names: [&str; 2], value: &str) {
        let (folder, name) = match self.tops.as_slice() {
            [top] => {
                let enabled =
                    fs::write(top.join("cgroup.subtree_control"), format!("+{controller}"));
                enabled.expect("enable the controller");
                (top.join(&self.name), names[1])
            }
            tops => {
                let top = tops.iter().find(|top| top.ends_with(controller));
                (top.expect("the controller").join(&self.name), names[0])
            }
        };
        fs::create_dir_all(&folder).expect("make the group");
        fs::write(folder.join(name), value).expect("set the limit");
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        for top in &self.tops {
            let _ = fs::remove_dir(top.join(&self.name));
        }
    }
}

/// Creates a container, and gives what was said if it could not be.
fn create_below(bundle: &Bundle) -> Option<String> {
    let log = bundle.path().join("log");
    let _ = fs::remove_file(&log);
    let log_text = log.to_str().expect("plain name");
    let words = ["--log", log_text, "create", "-b", bundle.path_text(), &bundle.id];
    let mut command = bundle.command(&words);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("run");
    (!status.success()).then(|| fs::read_to_string(log).unwrap_or_default())
}

/// Tries limits, of which the first is too low and the last is not: each create works or says what
/// has run out, and leaves nothing.
fn try_limits(bundle: &Bundle, words: &[&str], limits: &[&str], set: impl Fn(&str)) {
    let mut made = Vec::new();
    for limit in limits {
        set(limit);
        let failure = create_below(bundle);
        if let Some(said) = &failure {
            assert!(words.iter().any(|word| said.contains(word)), "with {limit}: {said}");
            assert_clean(bundle, limit);
            assert_eq!(bundle.on("state", &[]).status, 1, "with {limit}");
        } else {
            delete(bundle, limit);
        }
        made.push(failure.is_none());
    }
    assert_eq!((made.first(), made.last()), (Some(&false), Some(&true)), "{limits:?}: {made:?}");
}

#[test]
fn memory_of_the_group_above_runs_out() {
    let mut bundle = Bundle::new("sleep 1000");
    let parent = Parent::new(&mut bundle);
    bundle.write_config();
    let limits = ["4096", "65536", "131072", "262144", "524288", "33554432"];
    // The group itself is memory, too.
    let words = ["memory limit too low?", "cannot allocate memory"];
    try_limits(&bundle, &words, &limits, |limit| {
        parent.limit("memory", ["memory.limit_in_bytes", "memory.max"], limit);
    });
}

#[test]
fn processes_of_the_group_above_run_out() {
    let mut bundle = Bundle::new("sleep 1000");
    // On v1 a process may come into a group that is full; there it may not make another one.
    bundle.config["hooks"] = json!({"createContainer": [{"path": "/bin/true"}]});
    let parent = Parent::new(&mut bundle);
    bundle.write_config();
    let limits = ["0", "1", "2", "3", "16"];
    try_limits(&bundle, &["the limit of processes is reached"], &limits, |limit| {
        parent.limit("pids", ["pids.max"; 2], limit);
    });
}
