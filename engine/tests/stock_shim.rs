//! Tasks under a shim that was not written here, on the real kernel.
//!
//! Needs root, a static busybox, `containerd-shim-runc-v2` and runc.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use engine::{
    events::Exchange,
    namespace::Namespace,
    runtime::{Create, Runtime, RuntimeTable, Settings},
};
use prost_types::Any;
use proto::{any, containerd::task::v3};
use serde_json::{Value, json};

const SHIM: &str = "/usr/bin/containerd-shim-runc-v2";
const BUSYBOX: &str = "/bin/busybox";
const LIMIT: Duration = Duration::from_secs(30);

/// A directory for a runtime and a root filesystem, and a namespace that nobody else uses.
struct Stage {
    folder: tempfile::TempDir,
    namespace: Namespace,
}

impl Stage {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let bin = folder.path().join("rootfs/bin");
        fs::create_dir_all(&bin).expect("made");
        fs::create_dir(folder.path().join("rootfs/proc")).expect("made");
        fs::copy(BUSYBOX, bin.join("busybox")).expect("busybox is there");
        for applet in ["sh", "sleep"] {
            symlink("busybox", bin.join(applet)).expect("linked");
        }
        let namespace = format!("test-{name}-{}", std::process::id());
        Self { folder, namespace: namespace.parse().expect("an identifier") }
    }

    fn runtime(&self) -> Runtime {
        let path = self.folder.path();
        let settings = Settings {
            root: path.join("root"),
            state: path.join("state"),
            address: path.join("sock"),
            ttrpc_address: path.join("sock.ttrpc"),
            version: "2.3.0",
            debug: false,
            open_files_limit: None,
            runtimes: RuntimeTable::new(),
        };
        Runtime::open(settings, Exchange::default()).expect("opens")
    }

    fn request(&self, id: &str, args: &[&str]) -> Create {
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": process(args),
            "root": { "path": self.folder.path().join("rootfs") },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": {
                "cgroupsPath": format!("/{}/{id}", self.namespace),
                "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }],
            },
        });
        let spec = Any { type_url: any::RUNTIME_SPEC.to_owned(), value: spec.to_string().into() };
        Create {
            id: id.to_owned(),
            runtime: SHIM.to_owned(),
            spec: Some(spec),
            ..Create::default()
        }
    }

    fn bundles(&self) -> PathBuf {
        let folder = self.folder.path().join("state/io.containerd.runtime.v2.task");
        folder.join(self.namespace.as_str())
    }

    /// That no bundle and no control group is left.
    fn assert_nothing_left(&self) {
        let left = fs::read_dir(self.bundles()).expect("there").count();
        assert_eq!(left, 0, "bundles are left");
        let cgroup = Path::new("/sys/fs/cgroup/pids").join(self.namespace.as_str());
        let left = fs::read_dir(&cgroup).into_iter().flatten().flatten();
        let left: Vec<_> =
            left.filter(|entry| entry.path().is_dir()).map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "control groups are left: {left:?}");
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(controller.path().join(self.namespace.as_str()));
        }
        let _ = fs::remove_dir(Path::new("/run/containerd/runc").join(self.namespace.as_str()));
    }
}

fn process(args: &[&str]) -> Value {
    json!({ "args": args, "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"] })
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_life_over_two_daemons() {
    let stage = Stage::new("life");
    let runtime = stage.runtime();
    let request = stage.request("c1", &["sleep", "600"]);
    let pid = soon("create", runtime.create(&stage.namespace, request)).await.expect("made");
    let task = runtime.task(&stage.namespace, "c1").expect("is there");
    assert_eq!(soon("start", task.start("")).await.expect("started"), pid);
    soon("the end", runtime.close()).await;
    drop((task, runtime));

    let runtime = stage.runtime();
    let task = runtime.task(&stage.namespace, "c1").expect("is there");
    let state = soon("state", task.state("")).await.expect("answers");
    assert_eq!((state.pid, state.status), (pid, 2));

    let spec = Any {
        type_url: any::RUNTIME_PROCESS.to_owned(),
        value: process(&["sh", "-c", "exit 5"]).to_string().into(),
    };
    let exec = v3::ExecProcessRequest {
        id: "c1".to_owned(),
        exec_id: "e1".to_owned(),
        spec: Some(spec),
        ..Default::default()
    };
    soon("exec", task.call(&exec)).await.expect("added");
    soon("start", task.start("e1")).await.expect("started");
    assert_eq!(soon("wait", task.wait("e1")).await.expect("ended").status, 5);

    let kill = v3::KillRequest { id: "c1".to_owned(), signal: 9, ..Default::default() };
    soon("kill", task.call(&kill)).await.expect("killed");
    assert_eq!(soon("wait", task.wait("")).await.expect("ended").status, 137);
    assert_eq!(soon("delete", task.delete()).await.expect("deleted").status, 137);
    soon("the end", runtime.close()).await;
    stage.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_that_is_killed_takes_its_container_along() {
    let stage = Stage::new("killed");
    let runtime = stage.runtime();
    let request = stage.request("c1", &["sleep", "600"]);
    let pid = soon("create", runtime.create(&stage.namespace, request)).await.expect("made");
    let task = runtime.task(&stage.namespace, "c1").expect("is there");
    soon("start", task.start("")).await.expect("started");
    let connect = v3::ConnectRequest { id: "c1".to_owned() };
    let shim = soon("connect", task.call(&connect)).await.expect("answers").shim_pid;
    let shim = rustix::process::Pid::from_raw(shim.cast_signed()).expect("a number");
    let wait = task.wait("");
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).expect("killed");
    assert_eq!(soon("wait", wait).await.expect("known").status, 137);
    // A zombie, which somebody else has to reap, runs nothing.
    assert!(fs::read_link(format!("/proc/{pid}/exe")).is_err(), "init runs on");
    assert!(runtime.task(&stage.namespace, "c1").is_err());
    stage.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_does_not_exist() {
    let stage = Stage::new("missing");
    let runtime = stage.runtime();
    let request = stage.request("c1", &["no-such-command"]);
    let error = soon("create", runtime.create(&stage.namespace, request)).await;
    let error = error.expect_err("cannot be made").to_string();
    assert!(error.starts_with("failed to create shim task: OCI runtime create failed"), "{error}");
    assert!(error.contains("executable file not found in $PATH"), "{error}");
    stage.assert_nothing_left();
}
