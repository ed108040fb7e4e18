//! CVE-2024-21626: a descriptor of the host's, or a working directory there.

use std::{fs, os::unix::fs::symlink, process::Command};

use serde_json::json;

use crate::{
    hook,
    support::{Answer, Bundle},
};

/// The program, called by somebody who has directories and files of the host open.
fn call_with_open_files(bundle: &Bundle, words: &[&str]) -> Answer {
    let script = "exec 3</etc/passwd 4</etc/passwd 5</ 6</root 7</ 8</etc/shadow; exec \"$@\"";
    let inner = bundle.command(words);
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(inner.get_program()).args(inner.get_args());
    Answer::new(command.stdin(std::process::Stdio::null()).output().expect("run the program"))
}

#[test]
fn cve_2024_21626_working_directory() {
    let bundle = Bundle::new("sleep 1000");
    symlink("/proc/self/fd/7", bundle.rootfs().join("link")).expect("link");
    bundle.start();
    let mut paths = vec!["/link".to_owned(), "/link/etc".to_owned()];
    paths.extend((3..12).map(|number| format!("/proc/self/fd/{number}")));
    paths.extend((5..8).map(|number| format!("/proc/self/fd/{number}/..")));
    for path in &paths {
        let exec = ["exec", "--cwd", path, &bundle.id, "ls", ".."];
        let answer = call_with_open_files(&bundle, &exec);
        assert_eq!(answer.status, 255, "exec in {path}: {}", answer.stdout);
        let mut other = Bundle::new("ls ..");
        symlink("/proc/self/fd/7", other.rootfs().join("link")).expect("link");
        other.config["process"]["cwd"] = json!(path);
        other.write_config();
        let answer = call_with_open_files(&other, &["run", "-b", other.path_text(), &other.id]);
        assert_ne!(answer.status, 0, "run in {path}: {}", answer.stdout);
        assert_eq!(answer.stdout, "", "run in {path}");
        assert_eq!(other.leftovers(), Vec::<String>::new(), "run in {path}");
    }
}

/// The program's descriptors are the standard ones and those that were to be preserved.
#[test]
fn cve_2024_21626_descriptors() {
    let script = "ls /proc/$$/fd; readlink /proc/$$/fd/3; readlink /proc/$$/fd/4; true";
    let cases: [(&str, &[&str], &str); 2] = [
        ("none", &[], "0\n1\n2\n"),
        ("two", &["--preserve-fds", "2"], "0\n1\n2\n3\n4\n/etc/passwd\n/etc/passwd\n"),
    ];
    for (case, flags, want) in cases {
        let bundle = Bundle::new(script);
        bundle.write_config();
        let run = [&["run", "-b", bundle.path_text()], flags, &[bundle.id.as_str()]].concat();
        let answer = call_with_open_files(&bundle, &run);
        assert_eq!(answer.stdout, want, "run, {case}: {}", answer.stderr);

        let bundle = Bundle::new("sleep 1000");
        bundle.start();
        let exec = [&["exec"], flags, &[bundle.id.as_str(), "sh", "-c", script]].concat();
        let answer = call_with_open_files(&bundle, &exec);
        assert_eq!(answer.stdout, want, "exec, {case}: {}", answer.stderr);
    }
}

/// Descriptors that are not there, or the runtime's own, cannot be preserved.
#[test]
fn descriptors_that_cannot_be_preserved() {
    let bundle = Bundle::new("true");
    bundle.write_config();
    let log = bundle.path().join("log");
    let log = log.to_str().expect("plain name");
    for count in ["1", "-1", "2147483647", "4294967299", "x"] {
        let run = ["--log", log, "run", "--preserve-fds", count, "-b", bundle.path_text()];
        let words = [run.as_slice(), &[bundle.id.as_str()]].concat();
        let answer = bundle.call(&words);
        assert_eq!(answer.status, 1, "{count}: {}", answer.stdout);
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{count}");
    }
}

/// Hooks in the container have nothing of the runtime's.
#[test]
fn cve_2024_21626_hooks() {
    let mut bundle = Bundle::new("true");
    bundle.config["root"]["readonly"] = json!(false);
    let script = "ls -l /proc/$$/fd > /log";
    bundle.config["hooks"]["startContainer"] = hook(script);
    bundle.config["hooks"]["startContainer"][0]["env"] = json!(["PATH=/bin"]);
    bundle.write_config();
    let answer = call_with_open_files(&bundle, &["run", "-b", bundle.path_text(), &bundle.id]);
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    let log = fs::read_to_string(bundle.rootfs().join("log")).expect("read log");
    let links: Vec<&str> = log.lines().filter_map(|line| line.split(" -> ").nth(1)).collect();
    assert!(links.iter().all(|link| link.starts_with("/memfd:") || *link == "/log"), "{log}");
    assert_eq!(links.len(), 3, "{log}");
}
