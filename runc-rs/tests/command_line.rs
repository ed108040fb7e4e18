//! The command line: what needs neither a container nor root.

use std::process::{Command, Output};

fn call(words: &[&str]) -> (i32, String, String) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_runc-rs"));
    let output = command.arg("--root").arg(directory.path()).args(words).output();
    let Output { status, stdout, stderr } = output.expect("run the program");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (status.code().expect("no signal"), text(stdout), text(stderr))
}

const COMMANDS: [&str; 17] = [
    "checkpoint",
    "create",
    "delete",
    "events",
    "exec",
    "features",
    "kill",
    "list",
    "pause",
    "ps",
    "restore",
    "resume",
    "run",
    "spec",
    "start",
    "state",
    "update",
];

#[test]
fn each_command_has_help() {
    for command in COMMANDS {
        for words in [vec![command, "--help"], vec![command, "-h"], vec!["help", command]] {
            let (status, stdout, stderr) = call(&words);
            assert_eq!((status, stderr.as_str()), (0, ""), "{words:?}");
            let want = format!("NAME:\n   runc-rs {command} - ");
            assert!(stdout.starts_with(&want), "{words:?}: {stdout}");
        }
    }
    for words in [&["--help"][..], &["-h"], &["help"], &["h"], &[], &["--debug"]] {
        let (status, stdout, _) = call(words);
        assert_eq!(status, 0, "{words:?}");
        let listed = |command: &&str| stdout.contains(&format!("\n   {command} "));
        assert!(COMMANDS.iter().all(listed), "{words:?}: {stdout}");
    }
}

#[test]
fn flags_that_help_lists_are_taken() {
    for command in COMMANDS {
        let (_, help, _) = call(&[command, "--help"]);
        let options = help.split_once("\nOPTIONS:\n").map_or("", |(_, options)| options);
        for line in options.lines() {
            let spelled = line.trim_start().split("  ").next().unwrap_or_default();
            for one in spelled.split(", ") {
                let (flag, value) = one.split_once(' ').unwrap_or((one, ""));
                let words = if value.is_empty() { vec![flag] } else { vec![flag, "1"] };
                let (_, stdout, stderr) = call(&[&[command], &words[..], &["--nothing"]].concat());
                let want = "flag provided but not defined: -nothing";
                assert!(stderr.contains(want), "{command} {words:?}: {stderr}");
                assert!(stdout.starts_with("Incorrect Usage: flag provided"), "{command}");
            }
        }
    }
}

/// The flags of runc 1.5, as its help lists them, but for help itself.
#[test]
fn checkpoint_and_restore_have_flags_of_runc() {
    let both = "image-path work-path tcp-established ext-unix-sk shell-job lazy-pages file-locks \
                manage-cgroups-mode empty-ns auto-dedup";
    let cases = [
        (
            "checkpoint",
            "parent-path leave-running tcp-skip-in-flight link-remap status-fd page-server pre-dump",
        ),
        (
            "restore",
            "console-socket bundle b detach d pid-file no-subreaper no-pivot lsm-profile \
             lsm-mount-context",
        ),
    ];
    for (command, own) in cases {
        let (_, help, _) = call(&[command, "--help"]);
        let options = help.split_once("\nOPTIONS:\n").map_or("", |(_, options)| options);
        let spelled = options.lines().filter_map(|line| line.trim_start().split("  ").next());
        let flags = spelled.flat_map(|text| text.split(", ").map(|one| one.split(' ').next()));
        let mut listed: Vec<_> =
            flags.map(|flag| flag.unwrap_or_default().trim_start_matches('-')).collect();
        listed.sort_unstable();
        let mut want: Vec<_> = both.split_whitespace().chain(own.split_whitespace()).collect();
        want.sort_unstable();
        assert_eq!(listed, want, "{command}");
    }
}

#[test]
fn wrong_command_lines() {
    let cases: [(&[&str], i32, &str); 12] = [
        (&["nothing"], 3, "No help topic for 'nothing'"),
        (&["help", "nothing"], 3, "No help topic for 'nothing'"),
        (&["nothing", "-h"], 3, "No help topic for 'nothing'"),
        (&["--nothing"], 1, "flag provided but not defined: -nothing"),
        (&["run", "--nothing", "x"], 1, "msg=\"flag provided but not defined: -nothing\""),
        (&["exec", "--nothing"], 1, "msg=\"flag provided but not defined: -nothing\""),
        (&["state"], 1, "\\\"state\\\" requires exactly 1 argument(s)"),
        (&["exec"], 1, "\\\"exec\\\" requires a minimum of 1 argument(s)"),
        (&["kill", "a", "b", "c"], 1, "\\\"kill\\\" requires a maximum of 2 argument(s)"),
        (&["features", "x"], 1, "\\\"features\\\" requires exactly 0 argument(s)"),
        (&["run", "--bundle"], 1, "flag needs an argument: -bundle"),
        (&["--log-format", "x", "list"], 1, "invalid log-format: x"),
    ];
    for (words, want_status, want) in cases {
        let (status, _, stderr) = call(words);
        assert_eq!(status, want_status, "{words:?}: {stderr}");
        assert!(stderr.contains(want), "{words:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{words:?}: {stderr}");
    }
}

/// `features` says what runc 1.5 says, but for versions, and the flags that this kernel has.
#[test]
fn features_are_those_of_runc() {
    let (status, stdout, _) = call(&["features"]);
    assert_eq!(status, 0);
    let mut document: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    let mut seccomp = document["linux"]["seccomp"].take();
    let seccomp_of = seccomp.as_object_mut().expect("an object");
    let flags = seccomp_of.remove("supportedFlags").expect("flags");
    let known = seccomp_of["knownFlags"].as_array().expect("a list");
    assert!(flags.as_array().is_some_and(|flags| flags.iter().all(|flag| known.contains(flag))));
    document["linux"]["seccomp"] = seccomp;
    let annotations = document["annotations"].as_object_mut().expect("an object");
    for name in ["version", "commit"] {
        let text = annotations.remove(&format!("org.opencontainers.runc.{name}"));
        assert!(text.is_some_and(|text| text.is_string()), "{name}");
    }
    let want: serde_json::Value =
        serde_json::from_str(include_str!("data/features.json")).expect("JSON");
    assert_eq!(document, want);
}

#[test]
fn errors_in_a_log_of_json() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let log = directory.path().join("log");
    let name = log.to_str().expect("plain name");
    let (status, _, stderr) = call(&["--log", name, "--log-format", "json", "state", "none"]);
    assert_eq!((status, stderr.as_str()), (1, "container does not exist\n"));
    let text = std::fs::read_to_string(&log).expect("read log");
    let entry: serde_json::Value = serde_json::from_str(&text).expect("one line of JSON");
    assert_eq!(entry["level"], "error");
    assert_eq!(entry["msg"], "container does not exist");
    assert!(entry["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{text}");
}

/// The table of the runtime-spec names a test for each field.
#[test]
fn documentation_names_tests_that_exist() {
    let table = include_str!("../../docs/runtime-spec.md");
    let tests = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut found = 0;
    for (file, function) in table.split('`').filter_map(|word| word.split_once("::")) {
        let text = std::fs::read_to_string(tests.join(file).with_extension("rs"));
        let text = text.unwrap_or_else(|error| panic!("{file}: {error}"));
        let exists = function == "*" || text.contains(&format!("fn {function}()"));
        assert!(exists, "{file}::{function}");
        found += 1;
    }
    assert!(found > 40, "{found}");
}
