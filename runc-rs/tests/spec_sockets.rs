//! Sockets and descriptors between a container and those around it, as root, on the real kernel:
//! the agent of seccomp notifications, pidfds, sd_notify(3), descriptors that are handed on.

mod support;

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::net::{UnixDatagram, UnixListener},
    },
    process::Stdio,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};
use serde_json::{Value, json};
use support::{Answer, Bundle, DEADLINE, wait_until};

/// Waits until there is something to read.
fn wait_for(fd: &impl std::os::fd::AsFd, what: &str) {
    let timeout = Timespec { tv_sec: DEADLINE.as_secs().cast_signed(), tv_nsec: 0 };
    let mut waiting = [PollFd::new(fd, PollFlags::IN)];
    let ready = poll(&mut waiting, Some(&timeout)).expect("poll");
    assert!(ready > 0, "{what}: not within {DEADLINE:?}");
}

/// Takes the next connection, and from it a message with a descriptor.
fn receive(listener: &UnixListener) -> (String, OwnedFd) {
    wait_for(listener, "connection");
    let (stream, _) = listener.accept().expect("accept");
    receive_from(&stream)
}

fn receive_from(stream: &impl std::os::fd::AsFd) -> (String, OwnedFd) {
    wait_for(stream, "message");
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 8192];
    let mut slices = [io::IoSliceMut::new(&mut bytes)];
    let received = recvmsg(stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC);
    let length = received.expect("receive").bytes;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    (text, descriptor.expect("a descriptor"))
}

/// Answers one notification with an error number.
fn answer_with(listener: &OwnedFd, errno: i32) {
    wait_for(listener, "notification");
    sys::seccomp_notify::refuse_next(listener.as_fd(), errno).expect("answer");
}

/// A bundle whose `mkdir` an agent answers.
fn watched(script: &str) -> (Bundle, UnixListener) {
    let mut bundle = Bundle::new(script);
    let path = bundle.path().join("agent.sock");
    let listener = UnixListener::bind(&path).expect("listen");
    bundle.config["annotations"] = json!({"color": "red"});
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": path,
        "listenerMetadata": "for the agent",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    });
    (bundle, listener)
}

const REFUSED: &str = "mkdir: can't create directory '/tmp/x': Exchange full\n";

#[test]
fn agent_of_seccomp_notifications() {
    for no_new_privileges in [true, false] {
        let (mut bundle, listener) = watched("mkdir /tmp/x 2>&1");
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.write_config();
        let mut command = bundle.command(&["run", "-b", bundle.path_text(), &bundle.id]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run");
        let (told, notifications) = receive(&listener);
        let told: Value = serde_json::from_str(&told).expect("JSON");
        let pid = told["pid"].as_i64().expect("pid");
        let want = json!({
            "ociVersion": "1.3.0",
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": "for the agent",
            "state": {
                "ociVersion": "1.3.0",
                "id": bundle.id,
                "status": "creating",
                "pid": pid,
                "bundle": bundle.path_text(),
                "annotations": {"color": "red"},
            },
        });
        assert_eq!(told, want);
        answer_with(&notifications, libc::EXFULL);
        let answer = Answer::new(child.wait_with_output().expect("end"));
        assert_eq!(answer.stdout, REFUSED, "{no_new_privileges}: {answer:?}");
    }
}

/// With the flag, only a deadly signal disturbs a call that the agent has been asked about.
#[test]
fn calls_of_which_an_agent_knows_wait_killably() {
    const FLAG: &str = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";
    let cases = [(json!([FLAG]), true, "Exchange full"), (json!([]), false, "Interrupted")];
    for (flags, killable, want) in cases {
        let (mut bundle, listener) = watched("trap 'echo caught' USR1; cd /tmp 2>&1; true");
        // The filter is then the last thing before the program: the runtime's own calls are free.
        bundle.config["process"]["noNewPrivileges"] = json!(true);
        bundle.config["linux"]["seccomp"]["syscalls"][0]["names"] = json!(["chdir"]);
        bundle.config["linux"]["seccomp"]["flags"] = flags.clone();
        bundle.write_config();
        let mut command = bundle.command(&["run", "-b", bundle.path_text(), &bundle.id]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run");
        let (told, notifications) = receive(&listener);
        let told: Value = serde_json::from_str(&told).expect("JSON");
        let pid = told["pid"].as_i64().expect("pid");
        wait_for(&notifications, "notification");
        let call = sys::seccomp_notify::receive(notifications.as_fd()).expect("receive");
        wait_until("it sleeps", || state_of(pid) == Some('S'));
        let signal = rustix::process::Signal::USR1;
        let process = rustix::process::Pid::from_raw(pid as i32).expect("a pid");
        rustix::process::kill_process(process, signal).expect("signal");
        if killable {
            // The kernel wakes it, sees the flag, and has it sleep so that no signal is heard.
            wait_until("it sleeps deeply", || state_of(pid) == Some('D'));
            sys::seccomp_notify::refuse(notifications.as_fd(), call, libc::EXFULL).expect("answer");
        }
        let answer = Answer::new(child.wait_with_output().expect("end"));
        assert!(answer.stdout.contains(want), "{flags}: {answer:?}");
        assert!(answer.stdout.contains("caught\n"), "{flags}: {answer:?}");
    }
}

/// The letter of a process's state in proc(5).
fn state_of(pid: i64) -> Option<char> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn agent_is_told_of_an_exec() {
    let (bundle, listener) = watched("sleep 1000");
    bundle.start();
    let (_, _notifications_of_init) = receive(&listener);
    let mut command = bundle.command(&["exec", &bundle.id, "sh", "-c", "mkdir /tmp/x 2>&1"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run");
    let (told, notifications) = receive(&listener);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["state"]["status"], "running", "{told}");
    assert_eq!(told["state"]["pid"], bundle.state()["pid"], "{told}");
    assert_ne!(told["pid"], told["state"]["pid"], "{told}");
    answer_with(&notifications, libc::EXFULL);
    let answer = Answer::new(child.wait_with_output().expect("end"));
    assert_eq!(answer.stdout, REFUSED, "{answer:?}");
}

/// The filter is loaded before the agent has the listener: it need not allow what sends one.
#[test]
fn profiles_that_allow_no_messages() {
    for no_new_privileges in [true, false] {
        let (mut bundle, listener) = watched("mkdir /tmp/x 2>&1; sleep 1000");
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        let names = ["sendmsg", "recvmsg", "sendto", "recvfrom", "sendmmsg", "recvmmsg"];
        let rules = bundle.config["linux"]["seccomp"]["syscalls"].as_array_mut();
        rules.expect("a list").push(json!({"names": names, "action": "SCMP_ACT_ERRNO"}));
        bundle.start();
        let (_, _notifications_of_init) = receive(&listener);
        let mut command = bundle.command(&["exec", &bundle.id, "sh", "-c", "mkdir /tmp/x 2>&1"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run");
        let (_, notifications) = receive(&listener);
        answer_with(&notifications, libc::EXFULL);
        let answer = Answer::new(child.wait_with_output().expect("end"));
        assert_eq!(answer.stdout, REFUSED, "{no_new_privileges}: {answer:?}");
    }
}

/// A runtime that may not look into other processes.
#[test]
fn agent_of_a_runtime_without_ptrace() {
    let (bundle, listener) = watched("mkdir /tmp/x 2>&1");
    bundle.write_config();
    let call = bundle.command(&["run", "-b", bundle.path_text(), &bundle.id]);
    let mut command = std::process::Command::new("setpriv");
    command.args(["--bounding-set", "-sys_ptrace", "--inh-caps", "-all"]);
    command.arg(call.get_program()).args(call.get_args()).stdin(Stdio::null());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run");
    let (_, notifications) = receive(&listener);
    answer_with(&notifications, libc::EXFULL);
    let answer = Answer::new(child.wait_with_output().expect("end"));
    assert_eq!(answer.stdout, REFUSED, "{answer:?}");
}

#[test]
fn no_agent() {
    let (bundle, listener) = watched("true");
    drop(listener);
    let answer = bundle.run();
    assert_eq!(answer.status, 1, "{answer:?}");
    assert!(answer.stderr.contains("agent.sock: connection refused"), "{answer:?}");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

#[test]
fn pidfds_of_init_and_exec() {
    let bundle = Bundle::new("sleep 1000");
    bundle.write_config();
    let path = bundle.path().join("pidfd.sock");
    let listener = UnixListener::bind(&path).expect("listen");
    let socket = path.to_str().expect("plain name");
    let status = bundle
        .command(&["create", "-b", bundle.path_text(), "--pidfd-socket", socket, &bundle.id])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.expect("run create").success());
    let pid_of = |descriptor: &OwnedFd| {
        let path = format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd());
        let text = fs::read_to_string(path).expect("fdinfo");
        let line = text.lines().find_map(|line| line.strip_prefix("Pid:\t").map(str::to_owned));
        line.expect("a pidfd").parse::<i64>().expect("a number")
    };
    let (_, init) = receive(&listener);
    assert_eq!(Some(pid_of(&init)), bundle.state()["pid"].as_i64());
    assert_eq!(bundle.on("start", &[]).status, 0);
    let pid_file = bundle.path().join("pid");
    let flags = ["exec", "-d", "--pidfd-socket", socket, "--pid-file"];
    let words = [&flags[..], &[pid_file.to_str().expect("plain name"), &bundle.id, "sleep", "9"]];
    let mut command = bundle.command(&words.concat());
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.expect("run exec").success());
    let (_, exec) = receive(&listener);
    let written = fs::read_to_string(pid_file).expect("pid file");
    assert_eq!(pid_of(&exec).to_string(), written);
}

#[test]
fn descriptors_that_are_handed_on() {
    let bundle = Bundle::new("ls /proc/self/fd | head -n 4; cat <&3; env | grep LISTEN; true");
    bundle.write_config();
    let file = bundle.path().join("handed-on");
    fs::write(&file, "content\n").expect("write file");
    let run = |words: &str, variables: &str| {
        let program = bundle.program.to_str().expect("plain name");
        let (root, path) = (bundle.root(), bundle.path_text());
        let script = format!(
            "exec 3<{} 4</dev/zero 5</dev/null; {variables} exec {program} --root {} run -b {path} \
             {words} {}",
            file.display(),
            root.display(),
            bundle.id
        );
        let mut command = std::process::Command::new("/bin/busybox");
        Answer::new(command.args(["sh", "-c", &script]).output().expect("run sh"))
    };
    let cases = [
        ("one", "--preserve-fds 1", "", "0\n1\n2\n3\ncontent\n"),
        ("listening", "", "LISTEN_FDS=1", "0\n1\n2\n3\ncontent\nLISTEN_FDS=1\nLISTEN_PID=1\n"),
    ];
    for (case, words, variables, want) in cases {
        let answer = run(words, variables);
        assert_eq!(answer.stdout, want, "{case}: {answer:?}");
    }
    let answer = run("--preserve-fds 90", "");
    assert_eq!(answer.status, 1, "{answer:?}");
    assert!(answer.stderr.contains("unable to stat preserved-fd 3 (of 90)"), "{answer:?}");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

/// What the host is told: two messages, and a third that waits until it has read them.
fn messages(host: &UnixDatagram) -> [String; 2] {
    let mut bytes = [0; 256];
    let mut next = || {
        wait_for(host, "message");
        let length = host.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let got = [next(), next()];
    let (barrier, _pipe) = receive_from(host);
    assert_eq!(barrier, "BARRIER=1");
    got
}

/// Says what a service says, from inside the container.
fn say_ready(bundle: &Bundle) {
    let path = format!("/proc/{}/root/run/notify/notify.sock", bundle.state()["pid"]);
    let socket = UnixDatagram::unbound().expect("socket");
    for message in ["STATUS=starting", "READY=1\nSTATUS=ready\n"] {
        support::wait_until("socket", || socket.send_to(message.as_bytes(), &path).is_ok());
    }
}

#[test]
fn readiness_in_the_foreground() {
    let bundle = Bundle::new("while [ ! -e /tmp/end ]; do sleep 0.1; done; echo $NOTIFY_SOCKET");
    let end = bundle.rootfs().join("tmp/end");
    bundle.write_config();
    let path = bundle.path().join("host.sock");
    let host = UnixDatagram::bind(&path).expect("listen");
    let mut command = bundle.command(&["run", "-b", bundle.path_text(), &bundle.id]);
    command.env("NOTIFY_SOCKET", &path).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("run");
    let is_running = || {
        let answer = bundle.on("state", &[]);
        answer.status == 0 && answer.stdout.contains("\"running\"")
    };
    support::wait_until("running", is_running);
    say_ready(&bundle);
    let want = ["READY=1\n".to_owned(), format!("MAINPID={}\n", child.id())];
    assert_eq!(messages(&host), want);
    fs::write(end, "").expect("end the container");
    let answer = Answer::new(child.wait_with_output().expect("end"));
    assert_eq!((answer.status, answer.stdout.as_str()), (0, "/run/notify/notify.sock\n"));
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

#[test]
fn readiness_of_a_container_that_is_started() {
    let bundle = Bundle::new("sleep 1000");
    bundle.write_config();
    let path = bundle.path().join("host.sock");
    let host = UnixDatagram::bind(&path).expect("listen");
    let call = |words: &[&str]| {
        let mut command = bundle.command(words);
        command.env("NOTIFY_SOCKET", &path).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("run")
    };
    let mut create = call(&["create", "-b", bundle.path_text(), &bundle.id]);
    assert!(create.wait().expect("end of create").success());
    let mut start = call(&["start", &bundle.id]);
    bundle.wait_for("running");
    say_ready(&bundle);
    let want = ["READY=1\n".to_owned(), format!("MAINPID={}\n", bundle.state()["pid"])];
    assert_eq!(messages(&host), want);
    assert!(start.wait().expect("end of start").success());
}
