//! Containers that criu takes apart and makes again, as root, on the real kernel.
//!
//! Tests with `needs_criu` in their name need a criu in `PATH` that works on this kernel, which is
//! what `criu check` says. Without one they say so and pass, unless `GANTRY_REQUIRE_CRIU` is set.

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use support::{
    Answer, Bundle,
    criu::{
        ECHO, Helper, Talking, checkpoint, criu_works, end, fail, free_port, images, inside,
        lazy_pages_work, pid, restore, succeed, work,
    },
    wait_until,
};

#[test]
fn needs_criu_twice_and_with_its_execs() {
    if !criu_works() {
        return;
    }
    let mut talking = Talking::start(Bundle::new(ECHO));
    talking.talk("one");
    let script = "sleep 1000 < /dev/null > /dev/null 2>&1 & echo $!";
    let exec = inside(&talking.bundle, &["sh", "-c", script]);
    for round in 0..2 {
        succeed(&talking.checkpoint(&[]));
        fail(&talking.bundle.on("state", &[]), "container does not exist");
        assert_eq!(talking.bundle.leftovers(), Vec::<String>::new(), "round {round}");
        let pid_file = talking.bundle.path().join("pid");
        talking = talking.restore(&["--pid-file", pid_file.to_str().expect("plain name")]);
        talking.talk("again");
        let bundle = &talking.bundle;
        assert_eq!(bundle.state()["status"], "running");
        assert_eq!(fs::read_to_string(pid_file).expect("pid file"), pid(bundle).to_string());
        assert_eq!(inside(bundle, &["sh", "-c", "echo ok"]), "ok\n");
        inside(bundle, &["ls", &format!("/proc/{}", exec.trim())]);
        let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", pid(bundle))).expect("read");
        assert!(cgroup.contains(&bundle.id), "{cgroup}");
    }
    end(talking.bundle);
}

#[test]
fn needs_criu_terminal() {
    if !criu_works() {
        return;
    }
    let mut bundle = Bundle::new(ECHO);
    bundle.config["process"]["terminal"] = json!(true);
    bundle.write_config();
    let socket = bundle.path().join("console");
    let socket_text = socket.to_str().expect("plain name").to_owned();
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("listen");
    let talk = |answer: Answer, word: &str| {
        succeed(&answer);
        let (connection, _) = listener.accept().expect("accept");
        let mut master = fs::File::from(support::receive_descriptor(&connection));
        writeln!(master, "{word}").expect("write");
        let mut lines = BufReader::new(master.try_clone().expect("copy")).lines();
        let want = format!("got {word}");
        assert!(lines.any(|line| line.expect("read").trim_end() == want), "{want}");
        master
    };
    let words = ["run", "-d", "--console-socket", &socket_text, "-b", bundle.path_text()];
    let master = talk(bundle.call(&[&words[..], &[bundle.id.as_str()]].concat()), "one");
    succeed(&checkpoint(&bundle, &[]));
    drop(master);
    let _master = talk(restore(&bundle, &["-d", "--console-socket", &socket_text]), "two");
    end(bundle);
}

#[test]
fn needs_criu_leaves_running() {
    if !criu_works() {
        return;
    }
    let mut talking = Talking::start(Bundle::new(ECHO));
    let before = pid(&talking.bundle);
    succeed(&talking.checkpoint(&["--leave-running"]));
    talking.talk("still there");
    assert_eq!(pid(&talking.bundle), before);
    // A paused one is dumped, too, and stays paused.
    succeed(&talking.bundle.on("pause", &[]));
    succeed(&talking.checkpoint(&["--leave-running"]));
    assert_eq!(talking.bundle.state()["status"], "paused");
    end(talking.bundle);
}

#[test]
fn needs_criu_pre_dump() {
    if !criu_works() {
        return;
    }
    let mut talking = Talking::start(Bundle::new(ECHO));
    let parent = talking.bundle.path().join("parent");
    let parent_text = parent.to_str().expect("plain name");
    let id = talking.bundle.id.clone();
    let call = |words: &[&str]| talking.bundle.call(&[words, &[id.as_str()]].concat());
    let answer = call(&["checkpoint", "--pre-dump", "--image-path", parent_text]);
    if answer.stderr.contains("criu is missing features: [MemTrack]") {
        eprintln!("SKIPPED: this kernel does not track memory");
        return end(talking.bundle);
    }
    succeed(&answer);
    assert_eq!(talking.bundle.state()["status"], "running");
    fail(&talking.checkpoint(&["--parent-path", parent_text]), "--parent-path must be relative");
    fail(&talking.checkpoint(&["--parent-path", "../none"]), "invalid --parent-path");
    talking.talk("still there");
    succeed(&talking.checkpoint(&["--parent-path", "../parent"]));
    assert!(Path::new(&images(&talking.bundle)).join("parent").exists(), "link to parent");
    talking = talking.restore(&[]);
    talking.talk("again");
    end(talking.bundle);
}

#[test]
fn needs_criu_mounts_of_the_host() {
    if !criu_works() {
        return;
    }
    let mut bundle = Bundle::new(ECHO);
    let host = bundle.path().join("host");
    for name in ["one", "two", "three"] {
        fs::create_dir_all(host.join(name)).expect("make directory");
        fs::write(host.join(name).join("name"), name).expect("write");
    }
    fs::create_dir_all(bundle.rootfs().join("real")).expect("make directory");
    std::os::unix::fs::symlink("/real/conf", bundle.rootfs().join("conf")).expect("make link");
    fs::create_dir(bundle.rootfs().join("real/conf")).expect("make directory");
    let bind = |source: &str, destination: &str| json!({"source": source, "destination": destination, "options": ["rbind"]});
    bundle.config["linux"]["maskedPaths"] = json!(["/proc/version", "/proc/scsi", "/no/such"]);
    let mounts = bundle.config["mounts"].as_array_mut().expect("a list");
    mounts.extend([
        bind("host/one", "/test"),
        bind("host/two", "/test/for/nested"),
        bind("host/three", "/conf"),
        bind("host/one/name", "/etc/file"),
        bind("host/two", "/dev/below/tmpfs"),
    ]);
    mounts.push(json!({"type": "cgroup", "source": "cgroup", "destination": "/sys/fs/cgroup",
        "options": ["nosuid", "ro"]}));
    let talking = Talking::start(bundle);
    let files = [
        "/test/name",
        "/test/for/nested/name",
        "/real/conf/name",
        "/etc/file",
        "/dev/below/tmpfs/name",
    ];
    let look = |talking: &Talking| {
        let script =
            format!("for f in {}; do cat $f; echo; done; cat /proc/version", files.join(" "));
        assert_eq!(inside(&talking.bundle, &["sh", "-c", &script]), "one\ntwo\nthree\none\ntwo\n");
        inside(&talking.bundle, &["ls", "/sys/fs/cgroup"])
    };
    let cgroups = look(&talking);
    succeed(&talking.checkpoint(&[]));
    // What create has made is made again.
    fs::remove_dir_all(host.join("one/for")).expect("remove target");
    fs::remove_file(talking.bundle.rootfs().join("etc/file")).expect("remove target");
    let talking = talking.restore(&[]);
    assert_eq!(look(&talking), cgroups);
    end(talking.bundle);
}

#[test]
fn needs_criu_namespaces_by_path() {
    if !criu_works() {
        return;
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--net", "--ipc", "--uts", "sleep", "1000"]).stdin(Stdio::null());
    let holder = Helper(unshare.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run"));
    let own = |name: &str| fs::metadata(format!("/proc/self/ns/{name}")).expect("stat").ino();
    let of = |pid: i64, name: &str| {
        fs::metadata(format!("/proc/{pid}/ns/{name}")).map(|found| found.ino()).unwrap_or(0)
    };
    let held = i64::from(holder.0.id());
    wait_until("unshare", || !["net", "ipc", "uts"].iter().any(|name| of(held, name) == own(name)));
    let mut bundle = Bundle::new(ECHO);
    for namespace in bundle.config["linux"]["namespaces"].as_array_mut().expect("a list") {
        let kind = match namespace["type"].as_str() {
            Some("network") => "net",
            Some("ipc") => "ipc",
            _ => continue,
        };
        namespace["path"] = json!(format!("/proc/{held}/ns/{kind}"));
    }
    let mut talking = Talking::start(bundle);
    succeed(&talking.checkpoint(&[]));
    talking = talking.restore(&[]);
    talking.talk("again");
    let restored = pid(&talking.bundle);
    assert_eq!(of(restored, "net"), of(held, "net"), "net");
    assert_eq!(of(restored, "ipc"), of(held, "ipc"), "ipc");
    end(talking.bundle);
}

#[test]
fn needs_criu_another_cgroup() {
    if !criu_works() {
        return;
    }
    let mut talking = Talking::start(Bundle::new(ECHO));
    succeed(&talking.checkpoint(&["--manage-cgroups-mode", "ignore"]));
    let path = format!("/{}/other", talking.bundle.id);
    talking.bundle.config["linux"]["cgroupsPath"] = json!(path);
    talking.bundle.write_config();
    talking = talking.restore(&["--manage-cgroups-mode", "ignore"]);
    talking.talk("again");
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", pid(&talking.bundle)));
    let cgroup = cgroup.expect("read cgroup");
    assert!(cgroup.lines().any(|line| line.ends_with(&path)), "{cgroup}");
    let id = talking.bundle.id.clone();
    succeed(&talking.bundle.on("delete", &["--force"]));
    remove_cgroups(Path::new("/sys/fs/cgroup"), &id);
    assert_eq!(talking.bundle.leftovers(), Vec::<String>::new());
}

/// Removes the groups above a container's, which are nobody's.
fn remove_cgroups(directory: &Path, name: &str) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name() == name {
            fs::remove_dir(entry.path()).expect("remove cgroup");
        } else if entry.path().parent() == Some(Path::new("/sys/fs/cgroup"))
            && entry.path().is_dir()
        {
            remove_cgroups(&entry.path(), name);
        }
    }
}

#[test]
fn needs_criu_foreground() {
    if !criu_works() {
        return;
    }
    let talking = Talking::start(Bundle::new("read line; exit 7"));
    succeed(&talking.checkpoint(&[]));
    let bundle = talking.bundle;
    drop((talking.input, talking.output));
    // The end of the input is what it reads, and then it ends.
    let (stdin, input) = std::io::pipe().expect("pipe");
    drop(input);
    let (images, work) = (images(&bundle), work(&bundle));
    let words = ["restore", "--image-path", &images, "--work-path", &work];
    let mut command =
        bundle.command(&[&words[..], &["-b", bundle.path_text(), &bundle.id]].concat());
    let answer = Answer::new(command.stdin(stdin).output().expect("run restore"));
    assert_eq!(answer.status, 7, "{}", answer.stderr);
    fail(&bundle.on("state", &[]), "container does not exist");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

#[test]
fn needs_criu_hooks() {
    if !criu_works() {
        return;
    }
    let mut talking = Talking::start(Bundle::new(ECHO));
    succeed(&talking.checkpoint(&[]));
    let seen = talking.bundle.path().join("seen");
    let hook = |script: String| json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    talking.bundle.config["hooks"] = json!({
        "prestart": hook(format!("cat > {}", seen.display())),
        "createRuntime": hook("exit 3".to_owned()),
    });
    talking.bundle.write_config();
    let answer = restore(&talking.bundle, &["-d"]);
    fail(&answer, "error running createRuntime hook #0: exit status 3");
    assert_eq!(talking.bundle.leftovers(), Vec::<String>::new());
    let state: Value = serde_json::from_slice(&fs::read(&seen).expect("read")).expect("JSON");
    assert_eq!(state["id"], talking.bundle.id.as_str());
    assert!(state["pid"].as_i64().is_some_and(|pid| pid > 0), "{state}");
    talking.bundle.config["hooks"]["createRuntime"] = hook("true".to_owned());
    talking.bundle.write_config();
    talking = talking.restore(&[]);
    talking.talk("again");
    end(talking.bundle);
}

#[test]
fn needs_criu_configuration_of_the_container() {
    if !criu_works() {
        return;
    }
    let mut bundle = Bundle::new(ECHO);
    let config = bundle.path().join("criu.conf");
    fs::write(&config, "log-file=other.log\n").expect("write");
    bundle.config["annotations"] = json!({"org.criu.config": config});
    let talking = Talking::start(bundle);
    succeed(&talking.checkpoint(&[]));
    let log = PathBuf::from(work(&talking.bundle)).join("other.log");
    fs::remove_file(&log).expect("the dump's log");
    let talking = talking.restore(&[]);
    fs::remove_file(&log).expect("the restore's log");
    end(talking.bundle);
}

#[test]
fn needs_criu_user_namespace() {
    if !criu_works() {
        return;
    }
    let mut bundle = Bundle::new(ECHO);
    let linux = &mut bundle.config["linux"];
    linux["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
    for mappings in ["uidMappings", "gidMappings"] {
        linux[mappings] = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    }
    let mut talking = Talking::start(bundle);
    succeed(&talking.checkpoint(&[]));
    talking = talking.restore(&[]);
    talking.talk("again");
    assert_eq!(inside(&talking.bundle, &["id", "-u"]), "0\n");
    let process = fs::metadata(format!("/proc/{}", pid(&talking.bundle))).expect("stat");
    assert_eq!(process.uid(), 100_000);
    end(talking.bundle);
}

#[test]
fn needs_criu_page_server() {
    if !criu_works() || !lazy_pages_work() {
        return;
    }
    let talking = Talking::start(Bundle::new(ECHO));
    let (images, work) = (images(&talking.bundle), work(&talking.bundle));
    let (mut status, status_end) = std::io::pipe().expect("pipe");
    let server = format!("127.0.0.1:{}", free_port());
    let words = ["checkpoint", "--lazy-pages", "--status-fd", "3", "--page-server", &server];
    let more = ["--image-path", &images, "--work-path", &work, talking.bundle.id.as_str()];
    let mut command = talking.bundle.command(&[&words[..], &more].concat());
    sys::spawn::CommandChild::pass_fds(&mut command, vec![status_end.into()]);
    let mut dump = command.stderr(Stdio::null()).spawn().expect("run checkpoint");
    drop(command);
    let mut byte = [1];
    status.read_exact(&mut byte).expect("a byte when pages can be had");
    assert_eq!(byte, [0]);
    assert_eq!(status.read(&mut byte).expect("read"), 0, "nobody else has the descriptor");
    assert!(Path::new(&images).join("inventory.img").exists(), "images");
    // To a client that wants nothing all that it wants has been served, and that ends the dump.
    drop(std::net::TcpStream::connect(&server).expect("connect to the page server"));
    assert_eq!(dump.wait().expect("wait").code(), Some(0), "checkpoint");
    fail(&talking.bundle.on("state", &[]), "container does not exist");
    assert_eq!(talking.bundle.leftovers(), Vec::<String>::new());
}

#[test]
fn needs_criu_failures_change_nothing() {
    if !criu_works() {
        return;
    }
    // A file of the host's, which cannot be had from inside, as standard output.
    let bundle = Bundle::new("sleep 1000");
    bundle.write_config();
    let outside = fs::File::create(bundle.path().join("output")).expect("create");
    let mut command = bundle.command(&["run", "-d", "-b", bundle.path_text(), &bundle.id]);
    let status = command.stdout(outside).stderr(Stdio::null()).status().expect("run");
    assert!(status.success());
    let answer = checkpoint(&bundle, &[]);
    fail(&answer, "criu failed: type DUMP errno");
    assert!(answer.stderr.contains("--- Quoting"), "criu's own words: {}", answer.stderr);
    assert_eq!(bundle.state()["status"], "running");
    end(bundle);

    let bundle = Bundle::new("true");
    bundle.write_config();
    fs::create_dir(images(&bundle)).expect("make directory");
    fail(&restore(&bundle, &["-d"]), "descriptors.json: no such file or directory");
    fs::write(Path::new(&images(&bundle)).join("descriptors.json"), "[]").expect("write");
    fail(&restore(&bundle, &["-d"]), "criu failed: type RESTORE errno");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

#[test]
fn refusals() {
    let bundle = Bundle::new("sleep 1000");
    assert_eq!(bundle.create(), 0, "create");
    fail(&checkpoint(&bundle, &[]), "Container cannot be checkpointed in created state");
    succeed(&bundle.on("start", &[]));
    let cases: [(&str, &[&str], &str); 7] = [
        ("cgroup mode", &["--manage-cgroups-mode", "x"], "invalid manage-cgroups-mode value"),
        ("namespace", &["--empty-ns", "pid"], "namespace \"pid\" is not supported"),
        ("parent", &["--parent-path", "/x"], "--parent-path must be relative"),
        ("page server", &["--page-server", "x"], "Use --page-server ADDRESS:PORT"),
        ("port", &["--page-server", "x:y"], "Invalid port number"),
        (
            "status",
            &["--lazy-pages", "--status-fd", "77"],
            "invalid --status-fd argument 77: bad file descriptor",
        ),
        ("flag", &["--nothing"], "flag provided but not defined: -nothing"),
    ];
    for (case, flags, want) in cases {
        let answer = checkpoint(&bundle, flags);
        eprintln!("refused: {case}");
        fail(&answer, want);
    }
    let images = images(&bundle);
    let mut command = bundle.command(&["checkpoint", "--image-path", &images, &bundle.id]);
    let answer = Answer::new(command.env("PATH", bundle.path()).output().expect("run"));
    let want = "CRIU version check failed: exec: \"criu\": executable file not found in $PATH";
    fail(&answer, want);
    assert_eq!(bundle.state()["status"], "running");
    end(bundle);
    let bundle = Bundle::new("true");
    fail(&checkpoint(&bundle, &[]), "container does not exist");
}

#[test]
fn record_has_what_a_checkpoint_needs() {
    let mut bundle = Bundle::new("sleep 1000");
    let namespaces = &mut bundle.config["linux"]["namespaces"];
    *namespaces = json!([{"type": "network"}, {"type": "mount"}, {"type": "uts"}]);
    let (stdin, input) = std::io::pipe().expect("pipe");
    bundle.write_config();
    let name = fs::read_link(format!("/proc/self/fd/{}", stdin.as_raw_fd())).expect("read link");
    let mut command = bundle.command(&["create", "-b", bundle.path_text(), &bundle.id]);
    command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().expect("run").success(), "create");
    drop(input);
    let record = fs::read(bundle.root().join(&bundle.id).join("state.json")).expect("read");
    let record: Value = serde_json::from_slice(&record).expect("JSON");
    assert_eq!(record["external_descriptors"], json!([name, "/dev/null", "/dev/null"]));
    let namespaces = json!([{"type": "NEWNET", "path": ""}, {"type": "NEWNS", "path": ""},
        {"type": "NEWUTS", "path": ""}]);
    assert_eq!(record["config"]["namespaces"], namespaces);
    let proc = json!({"source": "proc", "destination": "/proc", "device": "proc"});
    assert_eq!(record["config"]["mounts"][0], proc);
    end(bundle);
}
