//! Containers from create to delete, as root, on the real kernel.

mod support;

use std::{
    fs,
    io::Read as _,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::Stdio,
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use serde_json::json;
use support::{Bundle, wait_until};

#[test]
fn create_start_kill_delete() {
    let bundle = Bundle::new("sleep 1000");
    assert_eq!(bundle.create(), 0);
    let state = bundle.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["bundle"], bundle.path_text());
    assert_eq!(bundle.on("start", &[]).status, 0);
    assert_eq!(bundle.state()["status"], "running");
    assert_eq!(bundle.on("pause", &[]).status, 0);
    assert_eq!(bundle.state()["status"], "paused");
    assert_eq!(bundle.on("resume", &[]).status, 0);
    assert_eq!(bundle.state()["status"], "running");
    let listed = bundle.call(&["list", "--format=json"]);
    assert!(listed.stdout.contains(&bundle.id), "{}", listed.stdout);
    assert_eq!(bundle.on("kill", &["KILL"]).status, 0);
    bundle.wait_for("stopped");
    assert_eq!(bundle.on("delete", &[]).status, 0);
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

#[test]
fn exit_statuses() {
    let mut host_pids = Bundle::new("kill -9 $$");
    let namespaces = host_pids.config["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|namespace| namespace["type"] != "pid");
    let cases = [
        ("success", Bundle::new("true"), 0),
        ("failure", Bundle::new("exit 7"), 7),
        // The init of a pid namespace cannot kill itself, so this one has none.
        ("signal", host_pids, 137),
    ];
    for (case, bundle, want) in cases {
        let answer = bundle.run();
        assert_eq!(answer.status, want, "{case}: {}", answer.stderr);
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{case}");
    }
}

#[test]
fn errors_in_the_words_that_clients_match() {
    let bundle = Bundle::new("sleep 1000");
    let check = |case: &str, answer: support::Answer, status: i32, want: &str| {
        assert_eq!(answer.status, status, "{case}: {}", answer.stderr);
        assert!(answer.stderr.contains(want), "{case}: {}", answer.stderr);
    };
    check("no container", bundle.on("state", &[]), 1, "container does not exist");
    check("bad id", bundle.call(&["state", "a/b"]), 1, "invalid container ID format");
    bundle.start();
    let again = bundle.call(&["create", "-b", bundle.path_text(), &bundle.id]);
    check("taken id", again, 1, "container with given ID already exists");
    check("start twice", bundle.on("start", &[]), 1, "cannot start an already running container");
    check("delete", bundle.on("delete", &[]), 1, "that is not stopped: running");
    check("exec", bundle.on("exec", &["nosuch"]), 255, "executable file not found in $PATH");
    check("exec file", bundle.on("exec", &["/etc/passwd"]), 255, "permission denied");
    check("exec path", bundle.on("exec", &["/proc/no/such"]), 255, "no such file or directory");
    check("resume", bundle.on("resume", &[]), 1, "container not paused");
    assert_eq!(bundle.on("kill", &["9"]).status, 0);
    bundle.wait_for("stopped");
    check("kill", bundle.on("kill", &["9"]), 1, "container not running");
    check("exec stopped", bundle.on("exec", &["true"]), 255, "cannot exec in a stopped container");
    check("start stopped", bundle.on("start", &[]), 1, "cannot start a container that has stopped");
}

#[test]
fn failed_create_leaves_nothing() {
    let mount = |source: &str, destination: &str| json!([{"source": source, "destination": destination, "options": ["bind"]}]);
    let fails = json!([{"path": "/bin/false"}]);
    let cases = [
        ("program", "/process/args", json!(["nosuch"]), "executable file not found in $PATH"),
        ("no args", "/process/args", json!([]), "process.args: args must not be empty"),
        ("mount source", "/mounts", mount("/proc/no/such", "/tmp"), "no such file or directory"),
        ("mount on root", "/mounts", mount("/tmp", "/"), "is the root filesystem itself"),
        ("rootfs", "/root/path", json!("nowhere"), "no such file or directory"),
        (
            "namespace",
            "/linux/namespaces/0/path",
            json!("/proc/no/such"),
            "open namespace /proc/no/such",
        ),
        ("prestart hook", "/hooks", json!({"prestart": fails}), "prestart hook #0: exit status 1"),
        (
            "createContainer hook",
            "/hooks",
            json!({"createContainer": fails}),
            "createContainer hook #0: exit status 1",
        ),
        ("sysctl", "/linux/sysctl", json!({"net.no_such": "1"}), "no such file or directory"),
        ("label", "/process/apparmorProfile", json!("no-such"), "attr"),
    ];
    for (case, pointer, value, want) in cases {
        let mut bundle = Bundle::new("true");
        set(&mut bundle.config, pointer, value);
        bundle.write_config();
        let answer = bundle.call(&["create", "-b", bundle.path_text(), &bundle.id]);
        assert_eq!(answer.status, 1, "{case}: {}", answer.stderr);
        assert!(answer.stderr.contains(want), "{case}: {}", answer.stderr);
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{case}");
    }
}

/// Sets a value in a document, making the objects above it.
fn set(document: &mut serde_json::Value, pointer: &str, value: serde_json::Value) {
    let mut at = document;
    for key in pointer.split('/').skip(1) {
        at = match key.parse::<usize>() {
            Ok(index) => &mut at[index],
            Err(_) => &mut at[key],
        };
    }
    *at = value;
}

#[test]
fn delete_by_force_after_a_crash() {
    let bundle = Bundle::new("sleep 1000");
    bundle.start();
    assert_eq!(bundle.on("delete", &["--force"]).status, 0);
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
    fs::create_dir_all(bundle.root().join(&bundle.id)).expect("half-made directory");
    assert_eq!(bundle.on("delete", &["--force"]).status, 0, "no record");
    assert_eq!(bundle.on("delete", &["--force"]).status, 0, "nothing at all");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

#[test]
fn without_rights() {
    use std::os::unix::{fs::chown, process::CommandExt as _};
    const USER: u32 = 12_345;
    let mut bundle = Bundle::new("");
    fs::remove_file(bundle.path().join("config.json")).expect("remove config");
    bundle.copy_program();
    chown(bundle.path(), Some(USER), Some(USER)).expect("give bundle");
    let call = |words: &[&str]| {
        let output = bundle.command(words).uid(USER).gid(USER).output();
        support::Answer::new(output.expect("run the program"))
    };
    let answer = call(&["spec", "--rootless", "-b", bundle.path_text()]);
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    let config = bundle.path().join("config.json");
    let text = fs::read(&config).expect("read config");
    let mut config_json: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    config_json["process"]["terminal"] = json!(false);
    // The container sees cgroups of its own, not those that come with the host's /sys.
    let script = "id -u; cat /proc/self/uid_map; \
                  cd /sys/fs/cgroup; test ! -e cgroup.controllers || ls -d */ 2>/dev/null; true";
    config_json["process"]["args"] = json!(["sh", "-c", script]);
    fs::write(config, config_json.to_string()).expect("write config");
    let answer = call(&["run", "-b", bundle.path_text(), &bundle.id]);
    let want = "0\n         0      12345          1\n";
    assert_eq!((answer.status, answer.stdout.as_str()), (0, want), "{}", answer.stderr);
    assert_eq!(answer.stderr, "");
}

#[test]
fn exec() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["root"]["readonly"] = json!(false);
    bundle.start();
    let cases: [(&str, &[&str], i32, &str); 5] = [
        ("status", &["sh", "-c", "exit 9"], 9, ""),
        ("output", &["sh", "-c", "echo $PPID $(hostname)"], 0, "0 runc-rs\n"),
        // A cgroup namespace shows the container's own as the root, so both are compared.
        (
            "cgroup",
            &["sh", "-c", "[ \"$(cat /proc/self/cgroup)\" = \"$(cat /proc/1/cgroup)\" ]"],
            0,
            "",
        ),
        ("pid namespace", &["cat", "/proc/1/comm"], 0, "sleep\n"),
        ("descriptors", &["sh", "-c", "ls /proc/$$/fd; true"], 0, "0\n1\n2\n"),
    ];
    for (case, words, status, stdout) in cases {
        let answer = bundle.on("exec", words);
        assert_eq!(answer.status, status, "{case}: {}", answer.stderr);
        if !stdout.is_empty() {
            assert_eq!(answer.stdout, stdout, "{case}");
        }
    }
    let id = bundle.id.as_str();
    let flags =
        ["exec", "--user", "1000:7", "-g", "8", "-e", "A=b", "--cwd", "/tmp", id, "sh", "-c"];
    let words = [flags.as_slice(), &["id -u; id -g; id -G; echo $A $HOME; pwd"]].concat();
    assert_eq!(bundle.call(&words).stdout, "1000\n7\n7 8\nb /home/u\n/tmp\n");
    let process =
        json!({"args": ["sh", "-c", "echo $X; exit 3"], "env": ["X=y", "PATH=/bin"], "cwd": "/"});
    let file = bundle.path().join("process.json");
    fs::write(&file, process.to_string()).expect("write process");
    let answer = bundle.call(&["exec", "-p", file.to_str().expect("plain name"), id]);
    assert_eq!((answer.status, answer.stdout.as_str()), (3, "y\n"), "{}", answer.stderr);
}

/// A process may have ended before anything is recorded of it, or anybody told.
#[test]
fn execs_that_end_at_once() {
    let bundle = Bundle::new("sleep 1000");
    bundle.start();
    let file = bundle.path().join("pid");
    let pid_file = file.to_str().expect("plain name");
    for round in 0..20 {
        let words = ["exec", "-d", "--pid-file", pid_file, &bundle.id, "sh", "-c", "kill -9 $$"];
        let mut command = bundle.command(&words);
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.expect("run exec").success(), "detached, round {round}");
        let pid = fs::read_to_string(&file).expect("read pid file");
        assert!(pid.parse::<u32>().is_ok_and(|pid| pid > 0), "round {round}: {pid:?}");
        fs::remove_file(&file).expect("remove pid file");
        let answer = bundle.on("exec", &["true"]);
        assert_eq!(answer.status, 0, "round {round}: {answer:?}");
        let answer = bundle.on("exec", &["sh", "-c", "kill -9 $$"]);
        assert_eq!(answer.status, 137, "round {round}: {answer:?}");
    }
    assert_eq!(bundle.state()["status"], "running");
}

/// Nobody would ever know of a process whose runtime is killed before it says which one it is.
#[test]
fn an_exec_waits_until_it_is_known() {
    let bundle = Bundle::new("sleep 1000");
    bundle.start();
    let path = bundle.path().join("pidfd.sock");
    let listener = socket_without_room(&path);
    let _waits = UnixStream::connect(&path).expect("the one that has room");
    let (path, pid_file) = (path.to_str().expect("plain"), bundle.path().join("pid"));
    let words = ["exec", "-d", "--pidfd-socket", path, "--pid-file"];
    let pid_file = pid_file.to_str().expect("plain");
    let program = [&bundle.id, "sh", "-c", "echo > /tmp/ran; exec sleep 1000"];
    let mut command = bundle.command(&[&words[..], &[pid_file], &program].concat());
    let mut runtime = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run");
    let system_call = format!("/proc/{}/syscall", runtime.id());
    wait_until("the runtime's wait for room", || {
        let text = fs::read_to_string(&system_call).unwrap_or_default();
        text.starts_with(&format!("{} ", libc::SYS_connect))
    });
    let processes = || bundle.call(&["ps", "-f", "json", &bundle.id]).stdout.trim().to_owned();
    assert_eq!(processes().split(',').count(), 2, "init and the exec: {}", processes());
    runtime.kill().expect("killed");
    runtime.wait().expect("reaped");
    wait_until("the end of the exec", || !processes().contains(','));
    assert!(!bundle.rootfs().join("tmp/ran").exists(), "its program has run");
    drop(listener);
    let mut words = vec!["exec", "-d", "--pid-file", pid_file, &bundle.id];
    words.push("/nonexistent");
    assert_ne!(bundle.call(&words).status, 0, "it has no program");
    assert!(!Path::new(pid_file).exists(), "what has no program has no number");
}

/// A socket at which one client may wait, and the next one waits to wait.
fn socket_without_room(path: &Path) -> OwnedFd {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let socket = rustix::net::socket(family, kind, None).expect("socket");
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).expect("short")).expect("bound");
    rustix::net::listen(&socket, 0).expect("listens");
    socket
}

#[test]
fn terminal_goes_to_the_console_socket() {
    let mut bundle = Bundle::new("tty; stty size; [ /dev/console -ef $(tty) ] && echo same");
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({"height": 33, "width": 44});
    bundle.write_config();
    let path = bundle.path().join("console.sock");
    let listener = UnixListener::bind(&path).expect("listen");
    let console = path.to_str().expect("plain name");
    let words = ["create", "-b", bundle.path_text(), "--console-socket", console, &bundle.id];
    let answer = bundle.call(&words);
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    let (stream, _) = listener.accept().expect("accept");
    let mut master = fs::File::from(support::receive_descriptor(&stream));
    assert_eq!(bundle.on("start", &[]).status, 0);
    let mut text = String::new();
    // EIO is how a terminal says that its other end is gone.
    let _ = master.read_to_string(&mut text);
    assert_eq!(text, "/dev/pts/0\r\n33 44\r\nsame\r\n");
}

#[test]
fn smallest_memory_limit() {
    let mut bundle = Bundle::new("true");
    bundle.config["process"]["args"] = json!(["true"]);
    bundle.config["linux"]["resources"]["memory"] = json!({"limit": 512 << 10});
    let answer = bundle.run();
    assert_eq!(answer.status, 0, "{}", answer.stderr);
}

#[test]
fn hooks_in_order() {
    let mut bundle = Bundle::new("echo program >> /log");
    let log = bundle.rootfs().join("log");
    bundle.config["root"]["readonly"] = json!(false);
    let hook = |name: &str, log: &str| {
        let script = format!(
            "grep -o '\"status\":\"[a-z]*\"' | while read s; do echo {name} $s; done >> {log}"
        );
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
    };
    let host = log.to_str().expect("plain name");
    for name in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        bundle.config["hooks"][name] = hook(name, host);
    }
    bundle.config["hooks"]["startContainer"] = hook("startContainer", "/log");
    assert_eq!(bundle.create(), 0);
    assert_eq!(bundle.on("start", &[]).status, 0);
    bundle.wait_for("stopped");
    assert_eq!(bundle.on("delete", &[]).status, 0);
    let text = fs::read_to_string(log).expect("read log");
    let lines: Vec<&str> = text.lines().filter(|line| *line != "program").collect();
    // poststart hooks and the program run at the same time.
    let mut first = lines[..3].to_vec();
    first.extend(lines.iter().filter(|line| line.starts_with("startContainer")));
    let want = [
        "prestart \"status\":\"creating\"",
        "createRuntime \"status\":\"creating\"",
        "createContainer \"status\":\"creating\"",
        "startContainer \"status\":\"created\"",
    ];
    assert_eq!(first, want);
    assert!(lines.contains(&"poststart \"status\":\"running\""), "{text}");
    assert_eq!(lines.last(), Some(&"poststop \"status\":\"stopped\""), "{text}");
    assert!(text.contains("program"), "{text}");
}

#[test]
fn hooks_find_programs_by_the_runtimes_path() {
    let mut bundle = Bundle::new("true");
    let log = bundle.path().join("log");
    let script = format!("echo $MARK >> {}", log.display());
    let own = json!({"path": "/bin/sh", "args": ["sh", "-c", &script], "env": ["MARK=own"]});
    let bare = json!({"path": "/bin/sh", "args": ["sh", "-c", &script], "env": []});
    let inherited = json!({"path": "/bin/sh", "args": ["sh", "-c", &script]});
    for point in ["prestart", "createRuntime", "createContainer", "poststop"] {
        bundle.config["hooks"][point] = json!([own, bare, inherited]);
    }
    bundle.write_config();
    let words = ["run", "-b", bundle.path_text(), &bundle.id];
    let status = bundle.command(&words).env("MARK", "runtime").status().expect("run the program");
    assert!(status.success(), "{status}");
    let text = fs::read_to_string(log).expect("read log");
    // createContainer hooks run in the container's namespaces, and get nothing of the runtime's.
    let host = "own\n\nruntime\n";
    assert_eq!(text, format!("{host}{host}own\n\n\n{host}"));
}

#[test]
fn a_failed_poststart_hook_ends_the_container() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["hooks"]["poststart"] = json!([{"path": "/bin/false"}]);
    assert_eq!(bundle.create(), 0);
    let answer = bundle.on("start", &[]);
    assert_ne!(answer.status, 0);
    assert!(answer.stderr.contains("error running poststart hook #0"), "{}", answer.stderr);
    assert_eq!(bundle.state()["status"], "stopped");
}

#[test]
fn a_filter_need_not_allow_what_the_runtime_does() {
    let mut bundle = Bundle::new("true");
    bundle.config["process"]["args"] = json!(["/bin/busybox", "echo", "here"]);
    bundle.config["process"]["noNewPrivileges"] = json!(true);
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{
            "names": ["arch_prctl", "brk", "close", "execve", "exit_group", "fstat", "getuid",
                "getrandom", "mmap", "mprotect", "prlimit64", "read", "readlinkat", "rseq",
                "set_robust_list", "set_tid_address", "uname", "write", "writev"],
            "action": "SCMP_ACT_ALLOW",
        }],
    });
    let answer = bundle.run();
    assert_eq!((answer.status, answer.stdout.as_str()), (0, "here\n"), "{}", answer.stderr);
}

#[test]
fn a_filter_may_be_older_than_the_runtimes_calls() {
    // Without no_new_privs it is loaded while there is still something to do.
    let mut bundle = Bundle::new("echo $HOME");
    bundle.config["process"]["noNewPrivileges"] = json!(false);
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{
            "names": ["close_range", "faccessat2", "openat2", "sendmsg", "statx"],
            "action": "SCMP_ACT_ERRNO",
        }],
    });
    let answer = bundle.run();
    assert_eq!((answer.status, answer.stdout.as_str()), (0, "/root\n"), "{}", answer.stderr);
}

#[test]
fn events_and_update() {
    let bundle = Bundle::new("sleep 1000");
    bundle.start();
    let answer = bundle.on("update", &["--memory", "64m", "--pids-limit", "50"]);
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    let answer = bundle.call(&["events", "--stats", &bundle.id]);
    let event: serde_json::Value = serde_json::from_str(&answer.stdout).expect("JSON");
    assert_eq!(event["type"], "stats");
    assert_eq!(event["data"]["memory"]["usage"]["limit"], 64 << 20, "{event}");
    assert_eq!(event["data"]["pids"]["limit"], 50, "{event}");
    let pids = bundle.call(&["ps", "-f", "json", &bundle.id]);
    let pids: Vec<i32> = serde_json::from_str(&pids.stdout).expect("JSON");
    assert_eq!(pids, [bundle.state()["pid"].as_i64().expect("pid") as i32]);
    wait_until("end", || bundle.on("delete", &["-f"]).status == 0);
}

/// A kill is told at once, though v1 signals it before it is counted, and once.
#[test]
fn events_of_kills() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["linux"]["resources"]["memory"] =
        serde_json::json!({"limit": 16 << 20, "swap": 16 << 20});
    bundle.start();
    let path = bundle.path().join("events");
    let output = fs::File::create(&path).expect("make file");
    // No statistics in between, which would look for kills, too.
    let words = ["events", "--interval", "10m", &bundle.id];
    let mut events = bundle.command(&words).stdout(output).spawn().expect("run events");
    let watched = format!("/proc/{}/fdinfo", events.id());
    wait_until("the watch", || {
        let files = fs::read_dir(&watched).into_iter().flatten().flatten();
        let mut texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        texts.any(|text| text.contains("eventfd-count") || text.contains("inotify wd"))
    });
    let told = format!("{{\"type\":\"oom\",\"id\":\"{}\"}}\n", bundle.id);
    for number in 1..=3 {
        let hog = "x=1234567890123456; while :; do x=$x$x; done";
        assert_ne!(bundle.on("exec", &["sh", "-c", hog]).status, 0, "is killed");
        let text = || fs::read_to_string(&path).expect("read events");
        wait_until("the news of a kill", || text().len() >= told.len() * number);
        assert_eq!(text(), told.repeat(number), "after kill {number}");
    }
    assert_eq!(bundle.on("delete", &["-f"]).status, 0);
    wait_until("the end of events", || events.try_wait().expect("wait").is_some());
    assert!(events.wait().expect("wait").success());
}
