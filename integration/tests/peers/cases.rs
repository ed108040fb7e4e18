//! What users of an engine do with containers.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration::process::{OnTerminal, run_with_input};

use crate::peer::{IMAGE, Kind, Peer, cgroup_file};

/// A case.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// The only engine that has what is tested; `None` for all.
    pub(crate) on: Option<Kind>,
    pub(crate) run: fn(&Peer) -> Result<()>,
}

const fn both(name: &'static str, run: fn(&Peer) -> Result<()>) -> Case {
    Case { name, on: None, run }
}

/// All cases.
pub(crate) const CASES: &[Case] = &[
    both("run", run),
    both("run_what_is_not_there", run_what_is_not_there),
    both("user_and_read_only_root", user_and_read_only_root),
    both("limits_and_update", limits_and_update),
    both("volumes", volumes),
    both("namespaces_of_the_host", namespaces_of_the_host),
    both("rights", rights),
    both("devices_sysctls_names", devices_sysctls_names),
    both("input", input),
    both("terminal", terminal),
    both("init", init),
    both("exec", exec),
    both("pause", pause),
    both("watch", watch),
    both("signals_and_start_again", signals_and_start_again),
    both("restart_and_stop", restart_and_stop),
    Case { name: "user_namespace", on: Some(Kind::Podman), run: user_namespace },
    Case { name: "created_is_not_running", on: Some(Kind::Podman), run: created_is_not_running },
];

/// A script that ends when it is asked to, and soon.
const WAIT: &str = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done";

fn same(what: &str, got: &str, want: &str) -> Result<()> {
    ensure!(got.trim_end() == want, "{what}: {got:?} instead of {want:?}");
    Ok(())
}

fn run(peer: &Peer) -> Result<()> {
    same("output", &peer.script(&["--env", "A=b"], "echo $A $PWD")?, "b /")?;
    let answer = peer.run(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure!((answer.code, answer.stdout.as_str()) == (7, "out\n"), "{answer}");
    ensure!(answer.stderr.contains("err"), "{answer}");
    Ok(())
}

/// Both engines make exit statuses of a runtime's messages.
fn run_what_is_not_there(peer: &Peer) -> Result<()> {
    let cases = [
        ("nothing", 127, "executable file not found in $PATH"),
        ("/no/thing", 127, "no such file or directory"),
        ("/etc/passwd", 126, "permission denied"),
        ("/etc", 126, "directory"),
    ];
    for (program, code, text) in cases {
        let answer = peer.run(&[], &[program])?;
        ensure!(answer.code == code && answer.stderr.contains(text), "{program}: {answer}");
    }
    Ok(())
}

fn user_and_read_only_root(peer: &Peer) -> Result<()> {
    let got = peer.script(&["--user", "1000:2000"], "id -u; id -g")?;
    same("user", &got, "1000\n2000")?;
    let flags = ["--user", "1000", "--read-only", "--tmpfs", "/fresh"];
    let got = peer.script(&flags, "echo a > /fresh/a && cat /fresh/a; touch /b 2>&1; true")?;
    same("what can be written", &got, "a\ntouch: /b: Read-only file system")
}

fn limits_and_update(peer: &Peer) -> Result<()> {
    let flags = ["--memory", "64m", "--pids-limit", "40", "--cpus", "0.5"];
    let name = peer.background(&flags, WAIT)?;
    let read = |file: &str| peer.ok(&["exec", &name, "sh", "-c", file]);
    let memory = cgroup_file("memory", "memory.limit_in_bytes", "memory.max");
    let cpu = cgroup_file("cpu", "cpu.cfs_quota_us", "cpu.max | cut -d ' ' -f 1");
    same("memory", &read(&memory)?, "67108864")?;
    same("pids", &read(&cgroup_file("pids", "pids.max", "pids.max"))?, "40")?;
    same("cpu", &read(&cpu)?, "50000")?;
    peer.ok(&["update", "--cpus", "0.3", &name])?;
    same("cpu, updated", &read(&cpu)?, "30000")
}

fn volumes(peer: &Peer) -> Result<()> {
    let directory = peer.file("volume");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("in"), "from the host\n")?;
    let writable = format!("{}:/rw", directory.display());
    let readonly = format!("{}:/ro:ro", directory.display());
    let script = "cat /ro/in; echo back > /rw/out; touch /ro/x 2>&1; true";
    let got = peer.script(&["--volume", &writable, "--volume", &readonly], script)?;
    same("volumes", &got, "from the host\ntouch: /ro/x: Read-only file system")?;
    same("what came back", &fs::read_to_string(directory.join("out"))?, "back")
}

fn namespaces_of_the_host(peer: &Peer) -> Result<()> {
    let own = |kind: &str| -> Result<String> {
        Ok(fs::read_link(format!("/proc/self/ns/{kind}"))?.display().to_string())
    };
    let script = "for kind in net pid; do readlink /proc/self/ns/$kind; done";
    let got = peer.script(&["--network", "host", "--pid", "host"], script)?;
    same("the host's", &got, &format!("{}\n{}", own("net")?, own("pid")?))?;
    let got = peer.script(&[], script)?;
    let shared = got.contains(&own("net")?) || got.contains(&own("pid")?);
    ensure!(!shared, "shared by itself: {got}");
    Ok(())
}

fn rights(peer: &Peer) -> Result<()> {
    let script = "grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/self/status | tr -d '\\t'";
    let flags = ["--cap-drop", "all", "--cap-add", "kill"];
    let got = peer.script(&flags, script)?;
    same("a profile and one capability", &got, "CapEff:0000000000000020\nNoNewPrivs:0\nSeccomp:2")?;
    let flags = ["--security-opt", "seccomp=unconfined", "--security-opt", "no-new-privileges"];
    let got = peer.script(&flags, script)?;
    ensure!(got.ends_with("NoNewPrivs:1\nSeccomp:0\n"), "neither: {got}");
    let got = peer.script(
        &["--privileged"],
        "ls /dev/loop-control && echo 1 > /proc/sys/vm/drop_caches; stat -c %t /dev/null",
    )?;
    ensure!(got.ends_with("1\n"), "privileged: {got}");
    Ok(())
}

fn devices_sysctls_names(peer: &Peer) -> Result<()> {
    let flags = [
        ["--device", "/dev/null:/dev/extra"],
        ["--sysctl", "kernel.msgmax=9000"],
        ["--hostname", "named"],
        ["--shm-size", "2m"],
        ["--ulimit", "nofile=100:200"],
        ["--ulimit", "nproc=100:200"],
    ];
    let script = "stat -c '%F %t:%T' /dev/extra; cat /proc/sys/kernel/msgmax; hostname; \
                  df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2; ulimit -n";
    let got = peer.script(flags.as_flattened(), script)?;
    same("all", &got, "character special file 1:3\n9000\nnamed\n2048\n100")
}

fn input(peer: &Peer) -> Result<()> {
    let words = peer.run_words(&["--rm", "--interactive"], &["wc", "-c"]);
    let answer = run_with_input(&mut peer.command(&words), &[b'x'; 100_000])?;
    same("bytes", &answer.ok()?, "100000")
}

fn terminal(peer: &Peer) -> Result<()> {
    let script =
        "tty; until [ \"$(stty size)\" = '31 97' ]; do sleep 0.05; done; read x; echo got-$x";
    let words = peer.run_words(&["--rm", "--interactive", "--tty"], &["sh", "-c", script]);
    let mut shown = OnTerminal::start(&peer.command(&words), 31, 97)?;
    shown.wait_for("/dev/pts/0")?;
    shown.type_keys("key\r")?;
    shown.wait_for("got-key")?;
    let code = shown.finish()?;
    ensure!(code == 0, "ended with {code}");
    Ok(())
}

fn init(peer: &Peer) -> Result<()> {
    let path = integration::programs::debian("docker-init")?.display().to_string();
    let own: &[&str] = if peer.kind() == Kind::Podman { &["--init-path", &path] } else { &[] };
    let got = peer.script(&[&["--init"], own].concat(), "[ $$ != 1 ] && cat /proc/1/comm")?;
    ensure!(got.contains("docker-init") || got.contains("podman-init"), "first process: {got}");
    Ok(())
}

fn exec(peer: &Peer) -> Result<()> {
    let name = peer.background(&[], WAIT)?;
    let flags = ["exec", "--user", "1000:2000", "--env", "A=b", "--workdir", "/tmp", &name];
    let got = peer.ok(&[flags.as_slice(), &["sh", "-c", "id -u; echo $A; pwd"]].concat())?;
    same("as asked", &got, "1000\nb\n/tmp")?;
    let answer = peer.call(&["exec", &name, "sh", "-c", "exit 9"])?;
    ensure!(answer.code == 9, "{answer}");
    let answer = peer.call(&["exec", &name, "nothing"])?;
    let text = format!("{}{}", answer.stdout, answer.stderr);
    ensure!(matches!(answer.code, 126 | 127), "{answer}");
    ensure!(text.contains("executable file not found in $PATH"), "{answer}");
    let mut command = peer.command(&["exec", "--interactive", &name, "cat"]);
    same("input", &run_with_input(&mut command, b"piped")?.ok()?, "piped")?;
    let command = peer.command(&["exec", "--interactive", "--tty", &name, "tty"]);
    OnTerminal::start(&command, 24, 80)?.wait_for("/dev/pts/")
}

fn pause(peer: &Peer) -> Result<()> {
    let name = peer.background(&[], WAIT)?;
    peer.wait_for_log(&name, "ready")?;
    peer.ok(&["pause", &name])?;
    same("paused", &peer.status(&name)?, "paused")?;
    ensure!(peer.call(&["exec", &name, "true"])?.code != 0, "exec in a paused container");
    peer.ok(&["unpause", &name])?;
    same("going on", &peer.status(&name)?, "running")?;
    peer.ok(&["exec", &name, "true"]).map(drop)
}

fn watch(peer: &Peer) -> Result<()> {
    let name = peer.background(&[], "echo logged; exec sleep 1000")?;
    peer.wait_for_log(&name, "logged")?;
    let got = peer.ok(&["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", &name])?;
    same("stats", &got, &format!("{name} 1"))?;
    let got = peer.ok(&["top", &name])?;
    ensure!(got.contains("sleep 1000"), "top: {got}");
    Ok(())
}

fn signals_and_start_again(peer: &Peer) -> Result<()> {
    let name = peer.background(&[], WAIT)?;
    peer.wait_for_log(&name, "ready")?;
    peer.ok(&["kill", "--signal", "TERM", &name])?;
    same("by TERM", &peer.ok(&["wait", &name])?, "3")?;
    same("after it", &peer.status(&name)?, "exited")?;
    peer.ok(&["start", &name])?;
    same("again", &peer.status(&name)?, "running")?;
    peer.ok(&["kill", &name])?;
    same("by KILL", &peer.ok(&["wait", &name])?, "137")
}

fn restart_and_stop(peer: &Peer) -> Result<()> {
    let name = peer.background(&[], WAIT)?;
    peer.wait_for_log(&name, "ready")?;
    let pid = || peer.ok(&["inspect", "--format", "{{.State.Pid}}", &name]);
    let first = pid()?;
    peer.ok(&["restart", &name])?;
    ensure!(pid()? != first, "the same process after a restart");
    peer.ok(&["stop", &name])?;
    same("stopped", &peer.status(&name)?, "exited")?;
    peer.ok(&["rm", &name]).map(drop)
}

fn user_namespace(peer: &Peer) -> Result<()> {
    let flags = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"];
    let script = "id -u; tr -s ' ' < /proc/self/uid_map; touch /made && stat -c %u:%g /made";
    same("mapped", &peer.script(&flags, script)?, "0\n 0 100000 65536\n0:0")
}

fn created_is_not_running(peer: &Peer) -> Result<()> {
    let name = "peer-created";
    let words = peer.run_words(&["--name", name], &["sh", "-c", WAIT]);
    let (_, rest) = words.split_first().context("run has words")?;
    peer.ok(&[&["create"], rest].concat())?;
    peer.ok(&["init", name])?;
    same("after init", &peer.status(name)?, "initialized")?;
    same("log", &peer.ok(&["logs", name])?, "")?;
    peer.ok(&["start", name])?;
    peer.wait_for_log(name, "ready")?;
    ensure!(peer.ok(&["ps", "--format", "{{.Image}}"])?.contains(IMAGE), "listed by its image");
    Ok(())
}
