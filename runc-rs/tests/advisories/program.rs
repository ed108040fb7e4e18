//! CVE-2019-5736: a container overwrites the runtime's program, through a process that runs it.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    process::Stdio,
};

use serde_json::json;

use crate::{
    hostile,
    support::{Answer, Bundle, wait_until},
};

/// A container's program that is the runtime's, in the forms that the attack has.
#[test]
fn cve_2019_5736_entrypoints() {
    let cases: [(&str, &[&str]); 3] =
        [("script", &["/evil"]), ("link", &["/link"]), ("program", &["/proc/self/exe", "--help"])];
    for (case, words) in cases {
        for command in ["run", "exec"] {
            let mut bundle = hostile("sleep 1000");
            bundle.copy_program();
            let evil = bundle.rootfs().join("evil");
            fs::write(&evil, "#!/proc/self/exe\n").expect("write script");
            fs::set_permissions(&evil, fs::Permissions::from_mode(0o755)).expect("chmod");
            let link = bundle.rootfs().join("link");
            std::os::unix::fs::symlink("/proc/self/exe", link).expect("link");
            let before = fs::read(&bundle.program).expect("read program");
            // Whatever comes of it, it is not a changed program.
            let _: Answer = if command == "run" {
                bundle.config["process"]["args"] = json!(words);
                bundle.run()
            } else {
                bundle.start();
                bundle.on("exec", words)
            };
            let after = fs::read(&bundle.program).expect("read program");
            assert!(before == after, "{case}: {command} changed the program");
        }
    }
}

/// A container sees another one's init, which runs the runtime's program, for as long as it likes:
/// it keeps the file open until it could be written to. It sees nothing else of the runtime's.
#[test]
fn cve_2019_5736_shared_pid_namespace() {
    // Process 1 is the attacker's own.
    let script = "exec > /log 2>&1
        while [ ! -e /go ]; do sleep 0.02; done
        for p in /proc/[0-9]*; do
            [ $p != /proc/1 ] || continue
            echo found
            ls -l $p/fd | grep -o ' -> .*' | grep -vE '/dev/null|exec.fifo|socket:'
            exec 3<$p/exe
            echo x >> $p/exe || echo refused
        done
        touch /attacked
        while [ ! -e /later ]; do sleep 0.02; done
        echo x >> /proc/self/fd/3 || echo refused later
        touch /done";
    let mut attacker = hostile(script);
    attacker.copy_program();
    attacker.start();
    let mut victim = Bundle::new("true");
    victim.program = attacker.program.clone();
    let namespaces = victim.config["linux"]["namespaces"].as_array_mut().expect("a list");
    for namespace in namespaces.iter_mut().filter(|namespace| namespace["type"] == "pid") {
        namespace["path"] = json!(format!("/proc/{}/ns/pid", attacker.state()["pid"]));
    }
    assert_eq!(victim.create(), 0);
    let before = fs::read(&attacker.program).expect("read program");
    let file = |name: &str| attacker.rootfs().join(name);
    fs::write(file("go"), "").expect("write flag");
    wait_until("the attack", || file("attacked").exists());
    assert_eq!(victim.on("delete", &["--force"]).status, 0);
    fs::write(file("later"), "").expect("write flag");
    wait_until("the later attack", || file("done").exists());
    let log = fs::read_to_string(file("log")).expect("read log");
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.len(), 5, "{log}");
    assert_eq!((lines[0], lines[2], lines[4]), ("found", "refused", "refused later"), "{log}");
    assert!(lines[3].contains("Read-only file system"), "{log}");
    let after = fs::read(&attacker.program).expect("read program");
    assert!(before == after, "the program was changed");
}

/// The protection is no copy: an init runs the file itself, from a mount that is nowhere.
#[test]
fn cve_2019_5736_costs_no_copy() {
    let mut bundle = Bundle::new("true");
    bundle.copy_program();
    assert_eq!(bundle.create(), 0);
    let running = fs::metadata(format!("/proc/{}/exe", bundle.state()["pid"])).expect("stat exe");
    let installed = fs::metadata(&bundle.program).expect("stat program");
    assert_eq!((running.dev(), running.ino()), (installed.dev(), installed.ino()));
}

/// Without rights it is the user's own program that a container could change, where the user can.
#[test]
fn cve_2019_5736_rootless() {
    use std::os::unix::{fs::chown, process::CommandExt as _};
    const USER: u32 = 12_345;
    for own in [true, false] {
        let mut bundle = Bundle::new("");
        fs::remove_file(bundle.path().join("config.json")).expect("remove config");
        bundle.copy_program();
        chown(bundle.path(), Some(USER), Some(USER)).expect("give bundle");
        if own {
            chown(&bundle.program, Some(USER), Some(USER)).expect("give program");
        }
        let call = |words: &[&str]| {
            let mut command = bundle.command(words);
            command.uid(USER).gid(USER).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().expect("run the program").code()
        };
        assert_eq!(call(&["spec", "--rootless", "-b", bundle.path_text()]), Some(0), "{own}");
        let path = bundle.path().join("config.json");
        let mut config: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).expect("read config")).expect("JSON");
        config["process"]["terminal"] = json!(false);
        fs::write(&path, config.to_string()).expect("write config");
        assert_eq!(call(&["create", "-b", bundle.path_text(), &bundle.id]), Some(0), "{own}");
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let exe = format!("/proc/{}/exe", bundle.state()["pid"]);
        let program = rustix::fs::open(exe, flags, rustix::fs::Mode::empty()).expect("open");
        assert_eq!(bundle.on("delete", &["--force"]).status, 0, "{own}");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "echo x >> /proc/self/fd/0"]).uid(USER).gid(USER).stdin(program);
        let status = command.stderr(Stdio::null()).status().expect("run sh");
        assert!(!status.success(), "{own}: the program was written to");
    }
}
