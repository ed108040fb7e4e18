//! The shim's command line, as each generation of containerd uses it, and the options of runtimes.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use prost::Message;
use proto::{
    any,
    containerd::{
        runc::v1::Options,
        runtime::bootstrap::v1::{BootstrapParams, BootstrapResult},
        task::v3 as api,
        types::RuntimeInfo,
    },
};

use crate::harness::{Client, PROGRAM, Shim, eventually};

/// Runs the shim's program in `directory` with `input` to read.
fn shim(directory: &Path, args: &[&str], envs: &[(&str, &str)], input: &[u8]) -> Output {
    let mut child = Command::new(PROGRAM)
        .args(args)
        .envs(envs.iter().copied())
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawned");
    child.stdin.take().expect("piped").write_all(input).expect("written");
    child.wait_with_output().expect("ended")
}

/// A program that runs `script`.
fn program(directory: &Path, script: &str) -> PathBuf {
    let path = directory.join("runtime");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    path
}

#[test]
fn version_and_info() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let said = shim(directory.path(), &["-v"], &[], b"");
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.status.success() && text.starts_with("containerd-shim-runc-rs-v2:\n"), "{text}");
    let cases = [
        (
            "features",
            r#"echo '{"ociVersionMax": "1.2.0"}'"#,
            Some("{\"ociVersionMax\": \"1.2.0\"}\n"),
        ),
        ("an older runtime", "echo no such command >&2; exit 1", None),
        ("no JSON", "echo hello", None),
    ];
    for (case, script, features) in cases {
        let runtime = program(directory.path(), script).to_string_lossy().into_owned();
        let options = Options { binary_name: runtime, ..Options::default() };
        let input = any::pack(&options).encode_to_vec();
        let said = shim(directory.path(), &["-info"], &[], &input);
        assert!(said.status.success(), "{case}: {said:?}");
        let info = RuntimeInfo::decode(said.stdout.as_slice()).expect("RuntimeInfo");
        assert_eq!(info.name, "io.containerd.runc-rs.v2", "{case}");
        assert_eq!(info.options, Some(any::pack(&options)), "{case}");
        let got = info.features.map(|any| String::from_utf8_lossy(&any.value).into_owned());
        assert_eq!(got.as_deref(), features, "{case}");
    }
}

#[test]
fn every_containerd_finds_the_shim() {
    let one = Shim::start("dialects", &["true"]);
    let mut client = one.client();
    let address = format!("unix://{}", one.address.display());
    let json = |version| {
        format!(r#"{{"version":{version},"address":"{address}","protocol":"ttrpc"}}"#).into_bytes()
    };
    let params = BootstrapParams {
        instance_id: one.id.clone(),
        namespace: "shim-test".to_owned(),
        ..BootstrapParams::default()
    };
    let result = BootstrapResult {
        version: 3,
        address: address.clone(),
        protocol: "ttrpc".to_owned(),
        ..BootstrapResult::default()
    };
    let options = any::pack(&Options::default()).encode_to_vec();
    let newest = ("MAX_SHIM_VERSION", "3");
    let cases = [
        ("1.6", options.clone(), vec![], address.clone().into_bytes()),
        ("1.7", options.clone(), vec![("MAX_SHIM_VERSION", "2")], json(2)),
        ("2.0", options, vec![newest], json(3)),
        ("2.3", params.encode_to_vec(), vec![newest], result.encode_to_vec()),
    ];
    let containerd = one.containerd();
    for (case, input, envs, want) in cases {
        let args = ["-namespace", "shim-test", "-id", &one.id, "-address", &containerd, "start"];
        let said = shim(&one.bundle(), &args, &envs, &input);
        assert!(said.status.success(), "{case}: {said:?}");
        assert_eq!(said.stdout, want, "{case}: {}", String::from_utf8_lossy(&said.stdout));
    }
    one.finish(&mut client);
}

#[test]
fn a_core_is_shared_with_nobody_or_the_start_fails() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let id = format!("shim-test-core-{}", std::process::id());
    fs::write(directory.path().join("config.json"), "{}").expect("config.json");
    let address = directory.path().join("c.sock").to_string_lossy().into_owned();
    let args = ["-namespace", "shim-test", "-id", &id, "-address", &address, "start"];
    let said = shim(directory.path(), &args, &[("SCHED_CORE", "1")], b"");
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    let can = sys::scheduling::make_core_cookie();
    assert_eq!(said.status.success(), can.is_ok(), "{text} and {can:?}");
    if can.is_ok() {
        let socket = String::from_utf8(said.stdout).expect("an address");
        let mut client = Client::connect(Path::new(socket.trim_start_matches("unix://")));
        let shutdown = api::ShutdownRequest { id, now: true };
        client.task::<()>("Shutdown", &shutdown).expect("Shutdown");
    } else {
        assert!(text.contains("enable sched core support"), "{text}");
        assert!(said.stdout.is_empty(), "{said:?}");
    }
}

#[test]
fn each_option_has_its_effect() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let seen = directory.path().join("seen");
    let script =
        format!("echo \"$@\" $(stat -Lc %u:%g /proc/$$/fd/1) >>{}; exit 1", seen.display());
    let runtime = program(directory.path(), &script).to_string_lossy().into_owned();
    let plain = Options { binary_name: runtime, root: "/r".to_owned(), ..Options::default() };
    let set = |change: fn(&mut Options)| {
        let mut options = plain.clone();
        change(&mut options);
        options
    };
    let cases = [
        ("Root", plain.clone(), "", "--root /r/shim-test "),
        ("SystemdCgroup", set(|o| o.systemd_cgroup = true), "", "--systemd-cgroup create "),
        ("NoPivotRoot", set(|o| o.no_pivot_root = true), "", " --no-pivot "),
        ("NoNewKeyring", set(|o| o.no_new_keyring = true), "", " --no-new-keyring "),
        ("IoUid", set(|o| (o.io_uid, o.io_gid) = (1234, 0)), "", " 1234:0\n"),
        ("IoGid", set(|o| (o.io_uid, o.io_gid) = (0, 4321)), "", " 0:4321\n"),
        ("CriuWorkPath", set(|o| o.criu_work_path = "/w".to_owned()), "/i", "--work-path /w "),
        ("a checkpoint", plain.clone(), "/i", "restore --image-path /i "),
    ];
    for (case, options, checkpoint, want) in cases {
        let _ = fs::remove_file(&seen);
        let shim = Shim::start(&format!("opt-{}", case.replace(' ', "")), &["true"]);
        let mut client = shim.client();
        let mut request = shim.create_request();
        request.options = Some(any::pack(&options));
        request.checkpoint = checkpoint.to_owned();
        request.stdout = shim.fifo("stdout");
        let created = client.task::<api::CreateTaskResponse>("Create", &request);
        if !checkpoint.is_empty() {
            created.expect("a restore begins with the start");
            let start = api::StartRequest { id: shim.id.clone(), exec_id: String::new() };
            client.task::<api::StartResponse>("Start", &start).expect_err("it always fails");
        }
        let text = fs::read_to_string(&seen).unwrap_or_default();
        assert!(text.contains(want), "{case}: {text}");
        drop(client);
    }
}

#[test]
fn a_shim_goes_into_its_cgroup() {
    let name = format!("shim-test-own-{}", std::process::id());
    let root = Path::new("/sys/fs/cgroup");
    let hierarchy =
        if root.join("cgroup.controllers").exists() { root.to_owned() } else { root.join("pids") };
    let group = hierarchy.join(&name);
    fs::create_dir(&group).expect("a control group");
    let directory = tempfile::tempdir().expect("temporary directory");
    fs::write(directory.path().join("config.json"), "{}").expect("config.json");
    let options = Options { shim_cgroup: format!("/{name}"), ..Options::default() };
    let address = directory.path().join("c.sock").to_string_lossy().into_owned();
    let args = ["-namespace", "shim-test", "-id", &name, "-address", &address, "start"];
    let said = shim(directory.path(), &args, &[], &any::pack(&options).encode_to_vec());
    let members = fs::read_to_string(group.join("cgroup.procs")).expect("cgroup.procs");
    let socket = String::from_utf8_lossy(&said.stdout).trim_start_matches("unix://").to_owned();
    let pid = fs::read_to_string(directory.path().join("shim.pid")).expect("shim.pid");
    let mut client = Client::connect(Path::new(&socket));
    let shutdown = api::ShutdownRequest { id: name, now: true };
    client.task::<()>("Shutdown", &shutdown).expect("Shutdown");
    eventually("the group is empty", || fs::remove_dir(&group).is_ok());
    assert_eq!(members.trim(), pid.trim());
}
