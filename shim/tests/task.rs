//! The shim's program, driven as containerd does, with a real runtime on the real kernel.
//!
//! Needs root, a static busybox and runc; `SHIM_TEST_RUNTIME` names another runtime.

#[path = "task/commands.rs"]
mod commands;
#[path = "task/harness.rs"]
mod harness;
#[path = "task/hostile.rs"]
mod hostile;
#[path = "task/output.rs"]
mod output;
#[path = "task/sandbox.rs"]
mod sandbox;
#[path = "task/streams.rs"]
mod streams;

use std::{fs, io::Write, os::unix::fs::PermissionsExt, path::Path, time::Instant};

use harness::{Client, Shim, delete, delete_output, eventually, process, read_all};
use prost_types::Any;
use proto::{
    any,
    containerd::{runc::v1::ProcessDetails, task::v3 as api, types::Mount, v1::types::Status},
    io::containerd::cgroups,
    time::NO_TIME,
};
use rustix::process::{Resource, Rlimit};

/// Creates the task and starts it.
fn run(shim: &Shim, client: &mut Client, request: &api::CreateTaskRequest) -> u32 {
    let created: api::CreateTaskResponse = client.task("Create", request).expect("Create");
    let started: api::StartResponse = client.task("Start", &start(shim, "")).expect("Start");
    assert_eq!(started.pid, created.pid);
    created.pid
}

fn start(shim: &Shim, exec: &str) -> api::StartRequest {
    api::StartRequest { id: shim.id.clone(), exec_id: exec.to_owned() }
}

fn wait(shim: &Shim, exec: &str) -> api::WaitRequest {
    api::WaitRequest { id: shim.id.clone(), exec_id: exec.to_owned() }
}

fn delete_request(shim: &Shim, exec: &str) -> api::DeleteRequest {
    api::DeleteRequest { id: shim.id.clone(), exec_id: exec.to_owned() }
}

fn kill(shim: &Shim, client: &mut Client) {
    let request = api::KillRequest { id: shim.id.clone(), signal: 9, ..Default::default() };
    client.task::<()>("Kill", &request).expect("Kill");
}

fn exec_request(shim: &Shim, exec: &str, args: &[&str]) -> api::ExecProcessRequest {
    let value = serde_json::to_vec(&process(args)).expect("JSON");
    api::ExecProcessRequest {
        id: shim.id.clone(),
        exec_id: exec.to_owned(),
        spec: Some(Any { type_url: any::RUNTIME_PROCESS.to_owned(), value }),
        ..Default::default()
    }
}

fn status(shim: &Shim, client: &mut Client) -> Status {
    let request = api::StateRequest { id: shim.id.clone(), ..Default::default() };
    let state: api::StateResponse = client.task("State", &request).expect("State");
    state.status()
}

/// Kills, deletes and shuts down.
fn clean_up(shim: Shim, client: &mut Client) {
    kill(&shim, client);
    client.task::<api::WaitResponse>("Wait", &wait(&shim, "")).expect("Wait");
    client.task::<api::DeleteResponse>("Delete", &delete_request(&shim, "")).expect("Delete");
    shim.finish(client);
}

#[test]
fn a_task_from_create_to_delete() {
    let shim = Shim::start("life", &["sh", "-c", "echo out; echo err >&2; exit 3"]);
    let mut client = shim.client();
    let mut request = shim.create_request();
    request.stdout = shim.fifo("stdout");
    request.stderr = shim.fifo("stderr");
    let (out, err) = (read_all(&request.stdout), read_all(&request.stderr));
    client.task::<api::CreateTaskResponse>("Create", &request).expect("Create");
    let state: api::StateResponse = client
        .task("State", &api::StateRequest { id: shim.id.clone(), ..Default::default() })
        .expect("State");
    // As Go's shim says that there was no exit.
    assert_eq!((state.status(), state.exited_at), (Status::Created, Some(NO_TIME)));
    let waiting = client.send("Wait", &wait(&shim, ""));
    let mut other = shim.client();
    other.task::<api::StartResponse>("Start", &start(&shim, "")).expect("Start");
    let exit: api::WaitResponse = client.receive(waiting).expect("Wait");
    assert_eq!(exit.exit_status, 3);
    let deleted: api::DeleteResponse =
        client.task("Delete", &delete_request(&shim, "")).expect("Delete");
    assert_eq!((deleted.exit_status, deleted.exited_at), (3, exit.exited_at));
    assert_eq!(out.join().expect("join"), b"out\n");
    assert_eq!(err.join().expect("join"), b"err\n");
    for topic in ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"] {
        assert_eq!(shim.event(), topic);
    }
    let again = client.task::<api::DeleteResponse>("Delete", &delete_request(&shim, ""));
    assert_eq!(again.expect_err("gone").code, 5);
    shim.finish(&mut client);
}

#[test]
fn execs_exit_before_init() {
    let shim = Shim::start("exec", &["sleep", "1000"]);
    let mut client = shim.client();
    let pid = run(&shim, &mut client, &shim.create_request());
    client.task::<()>("Exec", &exec_request(&shim, "e1", &["sleep", "1000"])).expect("Exec");
    let started: api::StartResponse = client.task("Start", &start(&shim, "e1")).expect("Start");
    let pids: api::PidsResponse =
        client.task("Pids", &api::PidsRequest { id: shim.id.clone() }).expect("Pids");
    let details = any::pack(&ProcessDetails { exec_id: "e1".to_owned() });
    let mut got: Vec<_> =
        pids.processes.into_iter().map(|process| (process.pid, process.info)).collect();
    got.sort_by_key(|(pid, _)| *pid);
    assert_eq!(got, [(pid, None), (started.pid, Some(details))]);
    let exec = client.send("Wait", &wait(&shim, "e1"));
    kill(&shim, &mut client);
    let exit: api::WaitResponse = client.receive(exec).expect("Wait");
    assert_eq!(exit.exit_status, 137);
    let topics: Vec<String> = (0..6).map(|_| shim.event()).collect();
    let want = ["create", "start", "exec-added", "exec-started", "exit", "exit"];
    assert_eq!(topics, want.map(|topic| format!("/tasks/{topic}")));
    client.task::<api::DeleteResponse>("Delete", &delete_request(&shim, "e1")).expect("Delete");
    client.task::<api::DeleteResponse>("Delete", &delete_request(&shim, "")).expect("Delete");
    shim.finish(&mut client);
}

#[test]
fn an_exec_is_named_as_a_file_of_the_shim() {
    let shim = Shim::start("names", &["sleep", "1000"]);
    let mut client = shim.client();
    run(&shim, &mut client, &shim.create_request());
    let kept = || ["init.pid", "shim.pid"].map(|name| fs::read(shim.bundle().join(name)).ok());
    let before = kept();
    for exec in ["init", "shim"] {
        client.task::<()>("Exec", &exec_request(&shim, exec, &["true"])).expect("Exec");
        client.task::<api::StartResponse>("Start", &start(&shim, exec)).expect("Start");
        client.task::<api::WaitResponse>("Wait", &wait(&shim, exec)).expect("Wait");
        client.task::<api::DeleteResponse>("Delete", &delete_request(&shim, exec)).expect("Delete");
        assert_eq!(kept(), before, "{exec}");
    }
    clean_up(shim, &mut client);
}

#[test]
fn without_descriptors_the_first_caller_is_served_and_others_wait() {
    let shim = Shim::start("full", &["true"]);
    let mut client = shim.client();
    let connect = api::ConnectRequest { id: shim.id.clone() };
    client.task::<api::ConnectResponse>("Connect", &connect).expect("Connect");
    let pid = rustix::process::Pid::from_raw(shim.pid()).expect("a process ID");
    let open = fs::read_dir(format!("/proc/{}/fd", shim.pid())).expect("fds").count() as u64;
    let limit = |current| {
        let limit = Rlimit { current: Some(current), maximum: Some(1024) };
        rustix::process::prlimit(Some(pid), Resource::Nofile, limit).expect("prlimit");
    };
    // Numbers below the limit may be free, and are taken first.
    limit(open);
    let mut first = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let mut caller = shim.client();
        let call = caller.send("Connect", &connect);
        waiting.push((caller, call));
    }
    // A connection is accepted in order, so the first has an answer before the others.
    let (mut caller, call) = waiting.remove(0);
    caller.receive::<api::ConnectResponse>(call).expect("the reserve is for it");
    first.push(caller);
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", shim.pid())).expect("stat");
        let after = stat.rsplit(')').next().unwrap_or_default();
        let fields: Vec<u64> =
            after.split_whitespace().skip(11).take(2).filter_map(|n| n.parse().ok()).collect();
        fields.iter().sum::<u64>()
    };
    let before = ticks();
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(ticks() - before < 20, "a full shim sleeps: {} ticks", ticks() - before);
    limit(1024);
    for (mut caller, call) in waiting {
        caller.receive::<api::ConnectResponse>(call).expect("there is room again");
    }
    shim.finish(&mut client);
}

#[test]
fn an_exec_that_cannot_start() {
    let shim = Shim::start("noexec", &["sleep", "1000"]);
    let mut client = shim.client();
    run(&shim, &mut client, &shim.create_request());
    client.task::<()>("Exec", &exec_request(&shim, "e1", &["nosuch"])).expect("Exec");
    let error = client.task::<api::StartResponse>("Start", &start(&shim, "e1")).expect_err("Start");
    assert!(error.message.starts_with("OCI runtime exec failed: "), "{}", error.message);
    assert!(error.message.contains("nosuch"), "{}", error.message);
    client.task::<api::WaitResponse>("Wait", &wait(&shim, "e1")).expect("Wait");
    client.task::<api::DeleteResponse>("Delete", &delete_request(&shim, "e1")).expect("Delete");
    for exec in ["e1", "../e", ""] {
        let request = exec_request(&shim, exec, &["true"]);
        let got = client.task::<()>("Exec", &request).map_err(|status| status.code);
        assert_eq!(got, if exec == "e1" { Ok(()) } else { Err(3) }, "{exec:?}");
    }
    // The end of what never ran is told to those who wait for it.
    client.task::<()>("Exec", &exec_request(&shim, "e2", &["true"])).expect("Exec");
    let waiting = client.send("Wait", &wait(&shim, "e2"));
    client.task::<api::DeleteResponse>("Delete", &delete_request(&shim, "e2")).expect("Delete");
    let error = client.receive::<api::WaitResponse>(waiting).expect_err("never ran");
    assert_eq!(error.code, 5, "{}", error.message);
    clean_up(shim, &mut client);
}

#[test]
fn input_ends_when_it_is_closed() {
    const LEN: usize = 1 << 20;
    let shim = Shim::start("stdin", &["wc", "-c"]);
    let mut client = shim.client();
    let mut request = shim.create_request();
    request.stdin = shim.fifo("stdin");
    request.stdout = shim.fifo("stdout");
    let out = read_all(&request.stdout);
    run(&shim, &mut client, &request);
    let mut stdin = fs::OpenOptions::new().write(true).open(&request.stdin).expect("open");
    stdin.write_all(&vec![b'x'; LEN]).expect("write");
    drop(stdin);
    // The shim keeps the fifo open, so that another client may go on.
    assert_eq!(status(&shim, &mut client), Status::Running);
    let close = api::CloseIoRequest { id: shim.id.clone(), stdin: true, ..Default::default() };
    client.task::<()>("CloseIO", &close).expect("CloseIO");
    let exit: api::WaitResponse = client.task("Wait", &wait(&shim, "")).expect("Wait");
    assert_eq!(exit.exit_status, 0);
    client.task::<api::DeleteResponse>("Delete", &delete_request(&shim, "")).expect("Delete");
    assert_eq!(String::from_utf8_lossy(&out.join().expect("join")), format!("{LEN}\n"));
    shim.finish(&mut client);
}

#[test]
fn a_terminal() {
    let shim = Shim::start("tty", &["sleep", "1000"]);
    let mut client = shim.client();
    run(&shim, &mut client, &shim.create_request());
    let mut request = exec_request(&shim, "t", &["sh", "-c", "read go; stty size; exit 4"]);
    request.terminal = true;
    request.stdin = shim.fifo("stdin");
    request.stdout = shim.fifo("stdout");
    let out = read_all(&request.stdout);
    client.task::<()>("Exec", &request).expect("Exec");
    client.task::<api::StartResponse>("Start", &start(&shim, "t")).expect("Start");
    let size = api::ResizePtyRequest {
        id: shim.id.clone(),
        exec_id: "t".to_owned(),
        width: 100,
        height: 30,
    };
    client.task::<()>("ResizePty", &size).expect("ResizePty");
    fs::write(&request.stdin, "go\n").expect("write");
    let exit: api::WaitResponse = client.task("Wait", &wait(&shim, "t")).expect("Wait");
    assert_eq!(exit.exit_status, 4);
    client.task::<api::DeleteResponse>("Delete", &delete_request(&shim, "t")).expect("Delete");
    assert_eq!(String::from_utf8_lossy(&out.join().expect("join")), "go\r\n30 100\r\n");
    clean_up(shim, &mut client);
}

#[test]
fn frozen_and_thawed() {
    let shim = Shim::start("pause", &["sleep", "1000"]);
    let mut client = shim.client();
    run(&shim, &mut client, &shim.create_request());
    let id = shim.id.clone();
    client.task::<()>("Pause", &api::PauseRequest { id: id.clone() }).expect("Pause");
    assert_eq!(status(&shim, &mut client), Status::Paused);
    let again = client.task::<()>("Pause", &api::PauseRequest { id: id.clone() });
    assert_eq!(again.expect_err("paused").code, 9);
    client.task::<()>("Resume", &api::ResumeRequest { id }).expect("Resume");
    assert_eq!(status(&shim, &mut client), Status::Running);
    clean_up(shim, &mut client);
}

#[test]
fn what_the_task_has_used() {
    let shim = Shim::start("stats", &["sleep", "1000"]);
    let mut client = shim.client();
    run(&shim, &mut client, &shim.create_request());
    let (memory, _) = used(&shim, &mut client);
    assert!(memory.is_some_and(|bytes| bytes > 0), "{memory:?}");
    // Runtimes with threads say that init is started before it has become the program.
    eventually("one process", || used(&shim, &mut shim.client()).1 == Some(1));
    clean_up(shim, &mut client);
}

/// The memory and the processes that the shim's figures tell of.
fn used(shim: &Shim, client: &mut Client) -> (Option<u64>, Option<u64>) {
    let stats: api::StatsResponse =
        client.task("Stats", &api::StatsRequest { id: shim.id.clone() }).expect("Stats");
    let stats = stats.stats.expect("figures");
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let metrics: Option<cgroups::v2::Metrics> = any::unpack(&stats).expect("decodes");
        let metrics = metrics.expect("those of cgroups v2");
        (metrics.memory.map(|memory| memory.usage), metrics.pids.map(|pids| pids.current))
    } else {
        let metrics: Option<cgroups::v1::Metrics> = any::unpack(&stats).expect("decodes");
        let metrics = metrics.expect("those of cgroups v1");
        let usage = metrics.memory.and_then(|memory| memory.usage);
        (usage.map(|usage| usage.usage), metrics.pids.map(|pids| pids.current))
    }
}

#[test]
fn nothing_is_left_of_a_failed_create() {
    let shim = Shim::start("fail", &["nosuch"]);
    let mut client = shim.client();
    let request = shim.create_request();
    let error =
        client.task::<api::CreateTaskResponse>("Create", &request).expect_err("no such program");
    assert!(error.message.starts_with("OCI runtime create failed: "), "{}", error.message);
    assert!(error.message.contains("nosuch"), "{}", error.message);
    assert!(!shim.has_rootfs_mount(), "the rootfs is unmounted");

    let mut broken = shim.create_request();
    broken.rootfs.push(Mount { r#type: "nosuchfs".to_owned(), ..Mount::default() });
    client.task::<api::CreateTaskResponse>("Create", &broken).expect_err("no such filesystem");
    assert!(!shim.has_rootfs_mount(), "the first mount is undone");

    let state = api::StateRequest { id: shim.id.clone(), ..Default::default() };
    let error = client.task::<api::StateResponse>("State", &state).expect_err("no such task");
    assert_eq!((error.code, error.message.as_str()), (5, "container not created: not found"));
    shim.finish(&mut client);
}

/// A runtime that is killed when it has done `command`.
fn killed_after(directory: &Path, command: &str) -> String {
    let real = harness::runtime();
    let kill = format!("case \"$*\" in *' {command} '*) kill -9 $$;; esac");
    script(directory, &format!("{real} \"$@\" || exit\n{kill}"))
}

fn script(directory: &Path, text: &str) -> String {
    let path = directory.join("runtime");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    path.to_string_lossy().into_owned()
}

/// A runtime that fails has reaped what it started, and the number that it has said may be another's.
#[test]
fn a_failed_exec_kills_nobody_else() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut other = std::process::Command::new("sleep").arg("1000").spawn().expect("spawned");
    let real = harness::runtime();
    let text = format!(
        "file=; last=; exec=\n\
         for word; do\n\
         [ \"$last\" = --pid-file ] && file=$word; [ \"$word\" = exec ] && exec=1; last=$word\n\
         done\n\
         [ -n \"$exec\" ] || exec {real} \"$@\"\n\
         printf {} > $file; exit 1",
        other.id()
    );
    let runtime = script(directory.path(), &text);
    let shim = Shim::start_with("odd-exec", &["sleep", "1000"], &runtime);
    let mut client = shim.client();
    run(&shim, &mut client, &shim.create_request());
    client.task::<()>("Exec", &exec_request(&shim, "e", &["true"])).expect("Exec");
    let error = client.task::<api::StartResponse>("Start", &start(&shim, "e"));
    error.expect_err("the runtime has failed");
    assert!(!shim.bundle().join("exec-e.pid").exists(), "its number is forgotten");
    clean_up(shim, &mut client);
    assert!(other.try_wait().expect("looked at").is_none(), "it was killed");
    other.kill().expect("killed");
    other.wait().expect("reaped");
}

#[test]
fn nothing_is_left_of_a_killed_exec() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let runtime = killed_after(directory.path(), "exec");
    let shim = Shim::start_with("cut-exec", &["sleep", "1000"], &runtime);
    let mut client = shim.client();
    run(&shim, &mut client, &shim.create_request());
    client.task::<()>("Exec", &exec_request(&shim, "e", &["sleep", "1000"])).expect("Exec");
    let error = client.task::<api::StartResponse>("Start", &start(&shim, "e"));
    let error = error.expect_err("the runtime was killed");
    assert!(error.message.contains("exit status 137"), "{}", error.message);
    let pids = api::PidsRequest { id: shim.id.clone() };
    eventually("only init is left", || {
        let answer = shim.client().task::<api::PidsResponse>("Pids", &pids);
        answer.expect("Pids").processes.len() == 1
    });
    assert!(!shim.bundle().join("exec-e.pid").exists(), "its number is forgotten");
    clean_up(shim, &mut client);
}

#[test]
fn nothing_is_left_of_a_killed_restore() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("runtime").to_string_lossy().into_owned();
    let shim = Shim::start_with("cut-restore", &["sleep", "1000"], &path);
    // No criu is needed to see what becomes of what a restore has made.
    let make = format!(
        "{} --root {}/shim-test create --bundle {} {} >/dev/null 2>&1 </dev/null",
        harness::runtime(),
        shim.root(),
        shim.bundle().display(),
        shim.id
    );
    let others = format!("exec {} \"$@\"", harness::runtime());
    let restore = format!("*' restore '*) {make} || exit; kill -9 $$;; *) {others};;");
    script(directory.path(), &format!("case \"$*\" in {restore} esac"));
    let mut client = shim.client();
    let request = api::CreateTaskRequest { checkpoint: "/i".to_owned(), ..shim.create_request() };
    client.task::<api::CreateTaskResponse>("Create", &request).expect("Create");
    let error = client.task::<api::StartResponse>("Start", &start(&shim, ""));
    let error = error.expect_err("the runtime was killed");
    let want = "OCI runtime restore failed: ";
    assert!(error.message.starts_with(want) && error.message.contains("137"), "{}", error.message);
    let left = Path::new(&shim.root()).join("shim-test").join(&shim.id);
    assert!(!left.exists(), "{} is left", left.display());
    client.task::<api::DeleteResponse>("Delete", &delete_request(&shim, "")).expect("Delete");
    assert!(!shim.has_rootfs_mount(), "the rootfs is unmounted");
    shim.finish(&mut client);
}

#[test]
fn nothing_is_left_of_a_killed_create() {
    let directory = tempfile::tempdir().expect("temporary directory");
    // Dies when the container is made and nobody was told.
    let runtime = killed_after(directory.path(), "create");
    let shim = Shim::start_with("cut", &["sleep", "1000"], &runtime);
    let mut client = shim.client();
    let error = client
        .task::<api::CreateTaskResponse>("Create", &shim.create_request())
        .expect_err("the runtime was killed");
    assert!(error.message.contains("exit status 137"), "{}", error.message);
    let left = Path::new(&shim.root()).join("shim-test").join(&shim.id);
    assert!(!left.exists(), "{} is left", left.display());
    assert!(!shim.has_rootfs_mount(), "the rootfs is unmounted");
    shim.finish(&mut client);
}

#[test]
fn a_killed_pause_is_taken_back() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let runtime = killed_after(directory.path(), "pause");
    let shim = Shim::start_with("unpause", &["sleep", "1000"], &runtime);
    let mut client = shim.client();
    run(&shim, &mut client, &shim.create_request());
    let pause = api::PauseRequest { id: shim.id.clone() };
    client.task::<()>("Pause", &pause).expect_err("the runtime was killed");
    assert_eq!(status(&shim, &mut client), Status::Running);
    // A frozen container refuses an exec.
    client.task::<()>("Exec", &exec_request(&shim, "e", &["true"])).expect("Exec");
    client.task::<api::StartResponse>("Start", &start(&shim, "e")).expect("it is not frozen");
    client.task::<api::WaitResponse>("Wait", &wait(&shim, "e")).expect("Wait");
    clean_up(shim, &mut client);
}

#[test]
fn a_slow_runtime_delays_nobody() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let runtime = directory.path().join("slow");
    fs::write(&runtime, "#!/bin/sh\nsleep 2\nexit 1\n").expect("write");
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).expect("chmod");
    let shim = Shim::start_with("slow", &["true"], &runtime.to_string_lossy());
    let mut client = shim.client();
    let creating = client.send("Create", &shim.create_request());
    let mut other = shim.client();
    let begin = Instant::now();
    let request = api::ConnectRequest { id: shim.id.clone() };
    other.task::<api::ConnectResponse>("Connect", &request).expect("Connect");
    assert!(begin.elapsed().as_millis() < 1000, "{:?}", begin.elapsed());
    let twice = other.task::<api::CreateTaskResponse>("Create", &shim.create_request());
    assert_eq!(twice.expect_err("at work").code, 6);
    client.receive::<api::CreateTaskResponse>(creating).expect_err("it fails in the end");
    shim.finish(&mut client);
}

#[test]
fn garbage_closes_its_connection_only() {
    let shim = Shim::start("garbage", &["true"]);
    let mut client = shim.client();
    let inputs: [&[u8]; 3] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff\0\0\0\x01\x01\0",
        b"\0\0\0\0\0\0\0\x01\x09\0",
    ];
    for input in inputs {
        let mut stranger = shim.client();
        stranger.write_raw(input);
        assert!(stranger.is_closed(), "{input:?}");
    }
    let error = client.task::<()>("Nothing", &()).expect_err("no such method");
    assert_eq!(error.code, 12);
    shim.finish(&mut client);
}

#[test]
fn delete_cleans_up_after_a_killed_shim() {
    let shim = Shim::start("killed", &["sleep", "1000"]);
    let mut client = shim.client();
    let pid = run(&shim, &mut client, &shim.create_request());
    let shim_pid = rustix::process::Pid::from_raw(shim.pid()).expect("a process ID");
    rustix::process::kill_process(shim_pid, rustix::process::Signal::KILL).expect("kill");
    assert!(client.is_closed());
    let response = delete(&shim.bundle(), &shim.id);
    assert_eq!((response.pid, response.exit_status), (pid, 137));
    eventually("the task is killed", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
    assert!(!shim.has_rootfs_mount() && !shim.address.exists());
}

#[test]
fn delete_fails_while_the_container_lives() {
    let shim = Shim::start("stays", &["sleep", "1000"]);
    let mut client = shim.client();
    let pid = run(&shim, &mut client, &shim.create_request());
    let shim_pid = rustix::process::Pid::from_raw(shim.pid()).expect("a process ID");
    rustix::process::kill_process(shim_pid, rustix::process::Signal::KILL).expect("kill");
    assert!(client.is_closed());
    let runtime = fs::read(shim.bundle().join("runtime")).expect("runtime");
    fs::write(shim.bundle().join("runtime"), "/no/such/runtime").expect("write");
    let output = delete_output(&shim.bundle(), &shim.id);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("/no/such/runtime"), "{output:?}");
    assert!(shim.has_rootfs_mount(), "what a container lives on is not unmounted");
    assert!(fs::exists(format!("/proc/{pid}")).expect("looked"));
    fs::write(shim.bundle().join("runtime"), runtime).expect("write");
    assert_eq!(delete(&shim.bundle(), &shim.id).pid, pid);
    assert!(!shim.has_rootfs_mount() && !shim.address.exists());
}

#[test]
fn an_idle_shim_is_small() {
    let shim = Shim::start("idle", &["sleep", "1000"]);
    let mut client = shim.client();
    run(&shim, &mut client, &shim.create_request());
    for exec in 0..20 {
        let exec = format!("e{exec}");
        client.task::<()>("Exec", &exec_request(&shim, &exec, &["true"])).expect("Exec");
        client.task::<api::StartResponse>("Start", &start(&shim, &exec)).expect("Start");
        client.task::<api::WaitResponse>("Wait", &wait(&shim, &exec)).expect("Wait");
        client
            .task::<api::DeleteResponse>("Delete", &delete_request(&shim, &exec))
            .expect("Delete");
    }
    let proc = format!("/proc/{}", shim.pid());
    let threads = fs::read_dir(format!("{proc}/task")).expect("tasks").count();
    assert_eq!(threads, 1);
    let descriptors = fs::read_dir(format!("{proc}/fd")).expect("fds").count();
    assert!(descriptors <= 16, "{descriptors} descriptors");
    let rollup = fs::read_to_string(format!("{proc}/smaps_rollup")).expect("smaps");
    let of = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    };
    // 76 kB were measured for the static release build; the rest of it is the program itself,
    // which all shims share. An unoptimised dynamic build has relocations and libc's data.
    let limit = if cfg!(debug_assertions) { 700 } else { 200 };
    assert!(of("Private_Dirty:") <= limit, "{rollup}");
    clean_up(shim, &mut client);
}
