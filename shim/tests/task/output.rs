//! Where output goes when a logging program takes it, and who can hold its end up.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use proto::containerd::task::v3 as api;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    clean_up, delete_request, exec_request,
    harness::{Client, Shim, eventually, read_all, runtime},
    kill, run, start, wait,
};

/// A directory with a logging program in it, that runs `script` with the directory as `$2` and
/// writes its own process ID there first.
struct Logger(tempfile::TempDir);

impl Logger {
    fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let program = directory.path().join("logger");
        let text = format!("#!/bin/sh\necho $$ >$2/pid.new && mv $2/pid.new $2/pid\n{script}\n");
        fs::write(&program, text).expect("write");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
        Self(directory)
    }

    /// What a client names it.
    fn uri(&self, scheme: &str) -> String {
        let directory = self.0.path().display();
        format!("{scheme}://{directory}/logger?to={directory}")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    /// Waits until it has begun.
    fn pid(&self) -> Pid {
        eventually("the logging program begins", || self.file("pid").exists());
        self.read("pid").trim().parse().ok().and_then(Pid::from_raw).expect("a process ID")
    }

    /// Waits until it is gone.
    fn ends(&self) {
        let path = format!("/proc/{}", self.pid().as_raw_nonzero());
        eventually("the logging program ends", || !fs::exists(&path).unwrap_or(true));
    }
}

fn request(shim: &Shim, uri: &str) -> api::CreateTaskRequest {
    api::CreateTaskRequest {
        stdout: uri.to_owned(),
        stderr: uri.to_owned(),
        ..shim.create_request()
    }
}

fn wait_and_delete(shim: &Shim, client: &mut Client) -> u32 {
    let exit: api::WaitResponse = client.task("Wait", &wait(shim, "")).expect("Wait");
    client.task::<api::DeleteResponse>("Delete", &delete_request(shim, "")).expect("Delete");
    exit.exit_status
}

#[test]
fn a_logger_has_it_all_when_the_task_is_deleted() {
    let copy = "cat <&3 >$2/out 5>&- & cat <&4 >$2/err 5>&- &";
    let end = "exec 5>&- 3<&- 4<&-; wait; echo $CONTAINER_ID $CONTAINER_NAMESPACE >$2/done";
    let cases = [
        ("binary", format!("{copy} {end}")),
        ("binary-v2", format!("{copy} echo ready >&5; {end}")),
    ];
    for (scheme, script) in cases {
        let logger = Logger::new(&script);
        let shim = Shim::start(scheme, &["sh", "-c", "echo out; echo err >&2; exit 5"]);
        let mut client = shim.client();
        run(&shim, &mut client, &request(&shim, &logger.uri(scheme)));
        assert_eq!(wait_and_delete(&shim, &mut client), 5, "{scheme}");
        assert_eq!(logger.read("out"), "out\n", "{scheme}");
        assert_eq!(logger.read("err"), "err\n", "{scheme}");
        assert_eq!(logger.read("done"), format!("{} shim-test\n", shim.id), "{scheme}");
        shim.finish(&mut client);
    }
}

#[test]
fn a_logger_that_is_killed_leaves_the_task_alone() {
    let logger = Logger::new("exec 5>&-; exec sleep 1000");
    let shim = Shim::start("logkill", &["sh", "-c", "while :; do echo x; sleep 0.1; done"]);
    let mut client = shim.client();
    run(&shim, &mut client, &request(&shim, &logger.uri("binary")));
    kill_process(logger.pid(), Signal::KILL).expect("kill");
    logger.ends();
    // It is asked in the same way as before.
    client.task::<()>("Exec", &exec_request(&shim, "e", &["true"])).expect("Exec");
    client.task::<api::StartResponse>("Start", &start(&shim, "e")).expect("Start");
    client.task::<api::WaitResponse>("Wait", &wait(&shim, "e")).expect("Wait");
    client.task::<api::DeleteResponse>("Delete", &delete_request(&shim, "e")).expect("Delete");
    clean_up(shim, &mut client);
}

/// One that ends while the runtime still makes the container is not waited for in a delete, which
/// takes two seconds. A machine that is busy may take as long for something else, but not each time.
#[test]
fn a_logger_that_ends_at_once_delays_no_delete() {
    let took = |round: u32| {
        let logger = Logger::new("exit 1");
        let slow = logger.file("runtime");
        let pid = logger.file("pid");
        // Until the shim has collected the program: a zombie can be signalled.
        let wait =
            format!("while kill -0 $(cat {}) 2>/dev/null; do sleep 0.01; done", pid.display());
        let text = format!(
            "#!/bin/sh\ncase \" $* \" in *\" create \"*) {wait};; esac\nexec {} \"$@\"\n",
            runtime(),
        );
        fs::write(&slow, text).expect("write");
        fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).expect("chmod");
        let test = format!("logends{round}");
        let shim = Shim::start_with(&test, &["true"], &slow.to_string_lossy());
        let mut client = shim.client();
        let request = request(&shim, &logger.uri("binary"));
        client.task::<api::CreateTaskResponse>("Create", &request).expect("Create");
        let begin = Instant::now();
        client.task::<api::DeleteResponse>("Delete", &delete_request(&shim, "")).expect("Delete");
        let took = begin.elapsed();
        shim.finish(&mut client);
        took
    };
    let quick = (0..5).any(|round| took(round) < Duration::from_secs(2));
    assert!(quick, "each delete has waited");
}

#[test]
fn a_logger_that_is_not_ready_delays_its_task_only() {
    let logger = Logger::new("exec sleep 1000");
    let shim = Shim::start("logwait", &["true"]);
    let mut client = shim.client();
    let creating = client.send("Create", &request(&shim, &logger.uri("binary-v2")));
    let pid = logger.pid();
    let mut other = shim.client();
    let connect = api::ConnectRequest { id: shim.id.clone() };
    other.task::<api::ConnectResponse>("Connect", &connect).expect("Connect");
    kill_process(pid, Signal::KILL).expect("kill");
    let error = client.receive::<api::CreateTaskResponse>(creating).expect_err("no logger");
    assert!(error.message.contains("logging binary"), "{}", error.message);
    assert!(!shim.has_rootfs_mount(), "the rootfs is unmounted");
    // There is no such program.
    let error = client
        .task::<api::CreateTaskResponse>("Create", &request(&shim, "binary:///no/such/program"))
        .expect_err("no program");
    assert!(error.message.contains("failed to create init process I/O"), "{}", error.message);
    shim.finish(&mut client);
}

#[test]
fn a_logger_that_does_not_end_is_killed() {
    let logger = Logger::new("trap '' TERM; exec 5>&-; exec sleep 1000");
    let shim = Shim::start("logstays", &["true"]);
    let mut client = shim.client();
    run(&shim, &mut client, &request(&shim, &logger.uri("binary")));
    assert_eq!(wait_and_delete(&shim, &mut client), 0);
    logger.ends();
    shim.finish(&mut client);
}

#[test]
fn a_grandchild_cannot_hold_the_output_open() {
    let shim = Shim::start("grandchild", &["sleep", "1000"]);
    let mut client = shim.client();
    run(&shim, &mut client, &shim.create_request());
    let mut request = exec_request(&shim, "e", &["sh", "-c", "sleep 1000 & echo out"]);
    request.stdout = shim.fifo("stdout");
    let out = read_all(&request.stdout);
    client.task::<()>("Exec", &request).expect("Exec");
    client.task::<api::StartResponse>("Start", &start(&shim, "e")).expect("Start");
    client.task::<api::WaitResponse>("Wait", &wait(&shim, "e")).expect("Wait");
    client.task::<api::DeleteResponse>("Delete", &delete_request(&shim, "e")).expect("Delete");
    assert_eq!(out.join().expect("join"), b"out\n");
    kill(&shim, &mut client);
    assert_eq!(wait_and_delete(&shim, &mut client), 137);
    shim.finish(&mut client);
}

#[test]
fn streams_of_another_kind_are_refused() {
    let shim = Shim::start("scheme", &["true"]);
    let mut client = shim.client();
    let error = client
        .task::<api::CreateTaskResponse>("Create", &request(&shim, "streaming://x"))
        .expect_err("no such scheme");
    assert!(error.message.contains("unknown STDIO scheme streaming"), "{}", error.message);
    shim.finish(&mut client);
}
