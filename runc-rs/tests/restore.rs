//! What a container finds after `restore`: its memory, limits, connections, namespaces and cgroups.
//!
//! As in `checkpoint.rs`, tests with `needs_criu` in their name say so where criu does not work.

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
    process::{Command, Stdio},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;
use support::{
    Bundle, DEADLINE,
    criu::{
        ECHO, Helper, Talking, criu_works, end, fail, images, lazy_pages_work, pid, succeed, work,
    },
    wait_until,
};

#[test]
fn needs_criu_lazy_restore() {
    if !criu_works() || !lazy_pages_work() {
        return;
    }
    let mut talking = Talking::start(Bundle::new(&format!("said=before; {ECHO}; echo $said")));
    talking.talk("one");
    succeed(&talking.checkpoint(&[]));
    let (images, work) = (images(&talking.bundle), work(&talking.bundle));
    let mut command = Command::new("criu");
    command.args(["lazy-pages", "--images-dir", &images, "--work-dir", &work]);
    let mut pages = Helper(command.stdin(Stdio::null()).spawn().expect("run criu lazy-pages"));
    let socket = Path::new(&work).join("lazy-pages.socket");
    wait_until("criu lazy-pages", || socket.exists());
    let mut talking = talking.restore(&["--lazy-pages"]);
    talking.talk("again");
    // It ends when it has brought the last page.
    assert_eq!(pages.0.wait().expect("wait").code(), Some(0), "criu lazy-pages");
    let Talking { bundle, input, mut output } = talking;
    drop(input);
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("read");
    assert_eq!(rest, "before\n", "a page that was brought");
    end(bundle);
}

/// Linux namespaces that a process holds open.
struct Held(Helper);

impl Held {
    fn new(flags: &[&str], kind: &str) -> Self {
        let mut command = Command::new("unshare");
        command.args(flags).args(["sleep", "1000"]).stdin(Stdio::null()).stdout(Stdio::null());
        let held = Self(Helper(command.stderr(Stdio::null()).spawn().expect("run unshare")));
        let own = inode("self", kind);
        wait_until("unshare", || ![0, own].contains(&inode(&held.pid(), kind)));
        held
    }

    fn pid(&self) -> String {
        self.0.0.id().to_string()
    }

    fn path(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.pid())
    }
}

/// A process's Linux namespace, as a number; 0 when there is none.
fn inode(process: &str, kind: &str) -> u64 {
    fs::metadata(format!("/proc/{process}/ns/{kind}")).map_or(0, |found| found.ino())
}

/// Has a container join a Linux namespace.
fn join(bundle: &mut Bundle, kind: &str, path: &str) {
    let all = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    let found = all.iter_mut().find(|namespace| namespace["type"] == kind);
    found.expect("is listed")["path"] = json!(path);
}

#[test]
fn needs_criu_pid_namespace_by_path() {
    if !criu_works() {
        return;
    }
    let held = Held::new(&["--pid", "--fork", "--kill-child"], "pid_for_children");
    let mut bundle = Bundle::new(ECHO);
    join(&mut bundle, "pid", &held.path("pid_for_children"));
    let mut talking = Talking::start(bundle);
    let of = |talking: &Talking| inode(&pid(&talking.bundle).to_string(), "pid");
    let want = inode(&held.pid(), "pid_for_children");
    assert_eq!(of(&talking), want, "before");
    let inner = inner_pid(&talking.bundle);
    let outer = format!("/proc/{}", pid(&talking.bundle));
    succeed(&talking.checkpoint(&[]));
    // Its number is free when the machine's init has waited for it.
    wait_until("the first init is gone", || !Path::new(&outer).exists());
    talking = talking.restore(&[]);
    talking.talk("again");
    assert_eq!(of(&talking), want, "after");
    assert_eq!(inner_pid(&talking.bundle), inner);
    end(talking.bundle);
}

/// The pid that a container's init has in its own pid namespace.
fn inner_pid(bundle: &Bundle) -> String {
    let text = fs::read_to_string(format!("/proc/{}/status", pid(bundle))).expect("read status");
    let line = text.lines().find(|line| line.starts_with("NSpid:")).expect("a line");
    line.split_whitespace().next_back().expect("a pid").to_owned()
}

/// Listens in a network namespace, to which it brings its loopback device up.
fn listen(held: &Held) -> TcpListener {
    let target = format!("--target={}", held.pid());
    let mut up = Command::new("nsenter");
    up.args([&target, "--net", "busybox", "ip", "link", "set", "lo", "up"]);
    assert!(up.status().expect("run nsenter").success());
    let file = fs::File::open(held.path("net")).expect("open namespace");
    let listen = move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("enter namespace");
        TcpListener::bind("127.0.0.1:0").expect("listen")
    };
    // A thread of its own, which stays there.
    std::thread::spawn(listen).join().expect("the thread")
}

/// criu 3 has iptables drop what comes for a connection that is not there, from its dump to its
/// restore, and again during the restore. A network namespace that outlives the container has the
/// dump's rule already when the restore adds the same one; criu takes one of the two away, cannot
/// remove the chain to which the other one leads (`Device or resource busy`), and with that nothing
/// is taken away at all: nobody would hear of the connection any more.
fn remove_rules_of_criu(held: &Held) {
    let target = format!("--target={}", held.pid());
    for iptables in ["iptables", "ip6tables"] {
        let run = |words: &[&str]| {
            let mut command = Command::new("nsenter");
            command.args([&target, "--net", iptables, "--wait"]).args(words);
            command.output().expect("run nsenter").status.success()
        };
        if run(&["--list", "CRIU"]) {
            assert!(run(&["--flush"]) && run(&["--delete-chain"]), "{iptables}");
        }
    }
}

fn read_line(connection: &TcpStream) -> String {
    connection.set_read_timeout(Some(DEADLINE)).expect("set timeout");
    let mut line = String::new();
    let mut bytes = BufReader::with_capacity(1, connection);
    bytes.read_line(&mut line).expect("read from connection");
    line
}

#[test]
fn needs_criu_tcp_connection() {
    if !criu_works() {
        return;
    }
    let held = Held::new(&["--net"], "net");
    let listener = listen(&held);
    let port = listener.local_addr().expect("address").port();
    let mut bundle = Bundle::new(&format!("exec busybox nc 127.0.0.1 {port}"));
    join(&mut bundle, "network", &held.path("net"));
    let mut talking = Talking::start(bundle);
    let (mut connection, _) = listener.accept().expect("accept");
    let both_ways = |talking: &mut Talking, connection: &mut TcpStream, word: &str| {
        writeln!(talking.input, "out {word}").expect("write");
        assert_eq!(read_line(connection), format!("out {word}\n"));
        writeln!(connection, "in {word}").expect("write");
        let mut line = String::new();
        talking.output.read_line(&mut line).expect("read");
        assert_eq!(line, format!("in {word}\n"));
    };
    both_ways(&mut talking, &mut connection, "before");
    fail(&talking.checkpoint(&[]), "criu failed: type DUMP errno");
    both_ways(&mut talking, &mut connection, "still there");
    succeed(&talking.checkpoint(&["--tcp-established"]));
    // It arrives when there is somebody again.
    writeln!(connection, "in between").expect("write");
    talking = talking.restore(&["--tcp-established"]);
    remove_rules_of_criu(&held);
    let mut line = String::new();
    talking.output.read_line(&mut line).expect("read");
    assert_eq!(line, "in between\n");
    both_ways(&mut talking, &mut connection, "after");
    drop((talking.input, talking.output));
    end(talking.bundle);
}

/// The file of a container's group in the hierarchy with a controller.
fn limit(bundle: &Bundle, controller: &str, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", pid(bundle))).expect("read");
    let mut lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let legacy = lines.find(|(names, _)| names.split(',').any(|name| name == controller));
    let place = match legacy {
        Some((names, path)) => format!("{names}{path}"),
        None => text.trim().trim_start_matches("0::/").to_owned(),
    };
    let file = format!("/sys/fs/cgroup/{place}/{name}");
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}")).trim().to_owned()
}

fn limits(bundle: &Bundle) -> Vec<String> {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let memory = if unified { "memory.max" } else { "memory.limit_in_bytes" };
    let cpu = if unified { "cpu.weight" } else { "cpu.shares" };
    [("pids", "pids.max"), ("memory", memory), ("cpu", cpu)]
        .map(|(controller, name)| limit(bundle, controller, name))
        .to_vec()
}

fn limited() -> Bundle {
    let mut bundle = Bundle::new(ECHO);
    bundle.config["linux"]["resources"] = json!({
        "pids": {"limit": 50}, "memory": {"limit": 64 << 20}, "cpu": {"shares": 2048},
    });
    bundle
}

#[test]
fn needs_criu_limits() {
    if !criu_works() {
        return;
    }
    let mut talking = Talking::start(limited());
    let before = limits(&talking.bundle);
    assert_eq!(before[..2], ["50", "67108864"]);
    succeed(&talking.checkpoint(&[]));
    talking = talking.restore(&[]);
    talking.talk("again");
    assert_eq!(limits(&talking.bundle), before);
    // `config.json` says what they are to be now, not the images.
    succeed(&talking.checkpoint(&[]));
    talking.bundle.config["linux"]["resources"]["pids"]["limit"] = json!(60);
    talking.bundle.write_config();
    talking = talking.restore(&["--manage-cgroups-mode", "ignore"]);
    talking.talk("with other limits");
    assert_eq!(limits(&talking.bundle)[0], "60");
    end(talking.bundle);
}

#[test]
fn needs_criu_and_needs_systemd() {
    if !criu_works() {
        return;
    }
    if !Path::new("/run/systemd/system").exists() {
        return eprintln!("SKIPPED: there is no systemd here");
    }
    let mut bundle = limited();
    let path = format!("machine.slice:gantry:{}", bundle.id);
    bundle.config["linux"]["cgroupsPath"] = json!(path);
    bundle.systemd_cgroup = true;
    let unit = format!("gantry-{}.scope", bundle.id);
    let shown = |property: &str| {
        let mut command = Command::new("systemctl");
        command.args(["show", "--property", property, "--value", &unit]);
        let output = command.output().expect("run systemctl").stdout;
        String::from_utf8(output).expect("text").trim().to_owned()
    };
    let mut talking = Talking::start(bundle);
    let before = limits(&talking.bundle);
    succeed(&talking.checkpoint(&[]));
    wait_until("systemd forgets the unit", || shown("LoadState") == "not-found");
    talking = talking.restore(&[]);
    talking.talk("again");
    assert_eq!(limits(&talking.bundle), before);
    assert_eq!(shown("ActiveState"), "active");
    assert_eq!(shown("TasksMax"), "50");
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", pid(&talking.bundle)));
    let cgroup = cgroup.expect("read");
    let inside = format!("/machine.slice/{unit}");
    assert!(cgroup.lines().any(|line| line.ends_with(&inside)), "{cgroup}");
    assert_eq!(talking.bundle.state()["status"], "running");
    succeed(&talking.bundle.on("delete", &["--force"]));
    wait_until("systemd forgets the unit", || shown("LoadState") == "not-found");
    assert_eq!(talking.bundle.leftovers(), Vec::<String>::new());
}
