//! Shims that are lost: they live, as far as anybody knows, and there is no way to them.

use std::{
    fs,
    os::{fd::OwnedFd, unix::net::UnixStream, unix::process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use engine::runtime::{Error, Runtime, Task};
use proto::containerd::{task::v3, v1::types::Status};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    exit_event,
    fake::{FakeShim, INIT, Manner, Stage},
    soon, told,
};

/// A socket at `path` that has no room for another client, and the client that has the room.
fn full_socket(path: &Path) -> (OwnedFd, UnixStream) {
    let (family, kind) = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM);
    let listener = rustix::net::socket(family, kind, None).expect("a socket");
    let address = rustix::net::SocketAddrUnix::new(path).expect("short");
    rustix::net::bind(&listener, &address).expect("bound");
    rustix::net::listen(&listener, 0).expect("listens");
    (listener, UnixStream::connect(path).expect("fits"))
}

/// A shim's socket that is not reached, because there is another one with no room in its place.
pub(crate) struct Full {
    path: PathBuf,
    away: PathBuf,
    socket: (OwnedFd, UnixStream),
}

impl Full {
    pub(crate) fn new(stage: &Stage, id: &str) -> Self {
        let path = stage.folder().join(format!("{id}.sock"));
        let away = path.with_extension("away");
        fs::rename(&path, &away).expect("renamed");
        let socket = full_socket(&path);
        Self { path, away, socket }
    }

    /// Lets the shim be reached again.
    pub(crate) fn mend(self) {
        drop(self.socket);
        fs::rename(self.away, self.path).expect("renamed");
    }
}

/// Ends the connection to a shim, and lets there be no other.
async fn lose(stage: &Stage, id: &str, task: &Task, shim: &FakeShim) -> Full {
    let full = Full::new(stage, id);
    shim.drop_connections();
    let error = soon("an answer", task.state("")).await.expect_err("the connection is gone");
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    full
}

/// Waits until a task has a status. It is listed all the time.
async fn is(task: &Task, status: Status) {
    while task.state_or_last().await.expect("is there").status() != status {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn sleep() -> Child {
    Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().expect("spawned")
}

/// Ends a process, which nobody may have killed before.
pub(crate) fn end(mut child: Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a number");
    kill_process(pid, Signal::TERM).expect("it was not reaped");
    let status = child.wait().expect("reaped");
    assert_eq!(status.signal(), Some(Signal::TERM.as_raw()), "it was killed");
}

fn signal(id: &str, signal: u32) -> v3::KillRequest {
    v3::KillRequest { id: id.to_owned(), signal, ..Default::default() }
}

async fn made(stage: &Stage, runtime: &Runtime, id: &str) -> Arc<Task> {
    soon("create", runtime.create(&stage.namespace, stage.request(id))).await.expect("made");
    runtime.task(&stage.namespace, id).expect("is there")
}

/// What is said of a socket without room is said of a lack of descriptors too.
#[tokio::test]
async fn a_shim_that_cannot_be_reached_again_is_not_taken_for_dead() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("c1", Manner::Good);
    runtime.create(&stage.namespace, stage.request("c1")).await.expect("made");
    let task = runtime.task(&stage.namespace, "c1").expect("is there");
    let full = lose(&stage, "c1", &task, &shim).await;
    soon("no state", is(&task, Status::Unknown)).await;
    full.mend();
    soon("the state", is(&task, Status::Running)).await;
    assert_eq!(stage.calls(), ["start c1"], "nothing was cleaned up");
    assert!(!shim.is_dead());
    shim.exit(0);
    soon("delete", task.delete()).await.expect("ended");
    stage.assert_nothing_left();
    runtime.close().await;
}

#[tokio::test]
async fn a_shim_that_cannot_be_reached_is_not_taken_for_dead() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("c1", Manner::Good);
    runtime.create(&stage.namespace, stage.request("c1")).await.expect("made");
    runtime.close().await;
    drop(runtime);
    // From here on the shim's address is that of a socket with no room.
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("full.sock");
    let _full = full_socket(&path);
    let text = format!("unix://{}", path.display());
    fs::write(stage.bundle("c1").join("bootstrap.json"), text).expect("written");

    let runtime = stage.runtime();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(stage.calls(), ["start c1"]);
    assert!(stage.bundle("c1").exists());
    soon("close", runtime.close()).await;
    drop(shim);
}

#[tokio::test]
async fn whoever_asks_for_a_lost_shim_is_answered() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("c1", Manner::Good);
    let task = made(&stage, &runtime, "c1").await;
    let full = lose(&stage, "c1", &task, &shim).await;
    assert_eq!(soon("state", task.state_or_unknown()).await.expect("known").status, 0);
    let pids = v3::PidsRequest { id: "c1".to_owned() };
    let calls = futures::future::join_all([(); 50].map(|()| task.call(&pids)));
    let errors = soon("all calls", calls).await.into_iter().map(|answer| answer.expect_err("lost"));
    let killed = soon("a signal", task.kill(&signal("c1", 15))).await.expect_err("lost");
    let deleted = soon("a delete", task.delete()).await.expect_err("lost");
    for error in errors.chain([killed, deleted]) {
        let text = error.to_string();
        assert!(matches!(error, Error::Unreachable { pid: Some(_), .. }), "{text}");
        assert!(text.contains("c1.sock) cannot be reached"), "{text}");
        assert!(text.contains("ctr tasks rm -f c1"), "{text}");
    }
    assert!(!shim.is_dead());
    full.mend();
    soon("the state", is(&task, Status::Running)).await;
    assert_eq!(stage.calls(), ["start c1"], "nothing was cleaned up");
    shim.exit(0);
    soon("delete", task.delete()).await.expect("ended");
    soon("close", runtime.close()).await;
    stage.assert_nothing_left();
}

#[tokio::test]
async fn sigkill_ends_a_lost_shim() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("c1", Manner::Good);
    let task = made(&stage, &runtime, "c1").await;
    let mut events = stage.subscribe();
    let death = async {
        let _full = lose(&stage, "c1", &task, &shim).await;
        task.kill(&signal("c1", 9)).await.expect("killed");
    };
    let (exit, ()) = soon("the end", async { tokio::join!(task.wait(""), death) }).await;
    assert_eq!(exit.expect("known").status, 137);
    assert!(shim.is_dead());
    assert_eq!(told(&mut events).await, (vec![137], 137));
    assert_eq!(stage.calls(), ["start c1", "delete c1"]);
    soon("close", runtime.close()).await;
    stage.assert_nothing_left();
}

#[tokio::test]
async fn what_has_ended_below_a_lost_shim_is_deleted() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("c1", Manner::Good);
    let task = made(&stage, &runtime, "c1").await;
    shim.exit(7);
    runtime.forward(exit_event("c1", 7)).await.expect("well formed");
    let mut events = stage.subscribe();
    let _full = lose(&stage, "c1", &task, &shim).await;
    assert_eq!(soon("delete", task.delete()).await.expect("ended").status, 7);
    assert!(shim.is_dead());
    assert_eq!(told(&mut events).await, (vec![], 7));
    soon("close", runtime.close()).await;
    stage.assert_nothing_left();
}

/// A shim that others need is not killed. Init is, and nobody else who may have its number.
#[tokio::test]
async fn sigkill_for_one_of_several_below_a_lost_shim() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("shared", Manner::Good);
    stage.share("shared");
    let mut inits: [Child; 2] = [sleep(), sleep()];
    shim.init_is(inits[0].id());
    let first = made(&stage, &runtime, "c1").await;
    // One that is gone when somebody looks for it.
    inits[1].kill().expect("killed");
    inits[1].wait().expect("reaped");
    shim.init_is(inits[1].id());
    let second = made(&stage, &runtime, "c2").await;
    let full = lose(&stage, "shared", &first, &shim).await;
    soon("a kill", first.kill(&signal("c1", 9))).await.expect("killed");
    let status = inits[0].wait().expect("reaped");
    assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
    soon("a kill", first.kill(&signal("c1", 9))).await.expect("is known to be dead");
    let error = soon("a kill", second.kill(&signal("c2", 9))).await.expect_err("not known");
    let text = error.to_string();
    assert!(matches!(error, Error::Unending { .. }), "{text}");
    assert!(text.contains("task c1 shares it; which process init is is not known"), "{text}");
    assert!(!shim.is_dead());
    full.mend();
    for task in [first, second] {
        soon("the state", is(&task, Status::Running)).await;
    }
    assert_eq!(stage.calls(), ["start c1", "start c2"], "nothing was cleaned up");
    soon("close", runtime.close()).await;
}

/// What a shim for virtual machines calls init is the machine, with all tasks of a pod in it.
#[tokio::test]
async fn sigkill_for_one_of_several_in_a_machine_below_a_lost_shim() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("shared", Manner::Good);
    stage.share("shared");
    let machine = sleep();
    shim.init_is(machine.id());
    let first = made(&stage, &runtime, "c1").await;
    let second = made(&stage, &runtime, "c2").await;
    let _full = lose(&stage, "shared", &first, &shim).await;
    for (task, id, other) in [(&first, "c1", "c2"), (&second, "c2", "c1")] {
        let error = soon("a kill", task.kill(&signal(id, 9))).await.expect_err("others need it");
        let text = error.to_string();
        assert!(matches!(error, Error::Unending { .. }), "{text}");
        assert!(text.contains(&format!("task {other} has the same process")), "{text}");
    }
    assert!(!shim.is_dead());
    soon("close", runtime.close()).await;
    end(machine);
}

/// A task from a checkpoint has no process before it is started.
#[tokio::test]
async fn sigkill_for_a_restored_one_of_several_below_a_lost_shim() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("shared", Manner::Good);
    stage.share("shared");
    let mut init = sleep();
    made(&stage, &runtime, "c1").await;
    shim.init_is(0);
    let restored = made(&stage, &runtime, "c2").await;
    shim.init_is(init.id());
    assert_eq!(soon("start", restored.start("")).await.expect("started"), init.id());
    let _full = lose(&stage, "shared", &restored, &shim).await;
    soon("a kill", restored.kill(&signal("c2", 9))).await.expect("killed");
    let status = init.wait().expect("reaped");
    assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
    assert!(!shim.is_dead());
    soon("close", runtime.close()).await;
}

/// What had the number of an init that has ended may be a stranger by the time of the next daemon.
#[tokio::test]
async fn nobody_is_killed_for_an_init_that_has_ended() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("shared", Manner::Good);
    stage.share("shared");
    let stranger = sleep();
    shim.init_is(stranger.id());
    made(&stage, &runtime, "c1").await;
    shim.init_is(INIT);
    made(&stage, &runtime, "c2").await;
    shim.exit(0);
    soon("close", runtime.close()).await;
    drop(runtime);
    let runtime = stage.runtime();
    let task = runtime.task(&stage.namespace, "c1").expect("is there");
    soon("the state", is(&task, Status::Stopped)).await;
    let _full = lose(&stage, "shared", &task, &shim).await;
    // It may be said of it that it is dead, or that nobody knows who it is.
    let _ = soon("a kill", task.kill(&signal("c1", 9))).await;
    soon("a delete", task.delete()).await.expect_err("the shim is needed");
    assert!(!shim.is_dead());
    soon("close", runtime.close()).await;
    end(stranger);
}

/// A shim that has too little of something drops whoever connects.
#[tokio::test]
async fn a_shim_that_drops_a_later_daemon_is_not_taken_for_dead() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("c1", Manner::Good);
    made(&stage, &runtime, "c1").await;
    soon("close", runtime.close()).await;
    drop(runtime);
    shim.behave(Manner::Cut);
    let connects = || shim.asked().iter().filter(|method| *method == "Connect").count();
    let before = connects();
    let runtime = stage.runtime();
    let dropped = async {
        while connects() < before + 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("three tries", dropped).await;
    shim.behave(Manner::Good);
    let task = runtime.task(&stage.namespace, "c1").expect("is there");
    soon("the state", is(&task, Status::Running)).await;
    assert!(!shim.is_dead());
    assert_eq!(stage.calls(), ["start c1"], "nothing was cleaned up");
    shim.exit(6);
    assert_eq!(soon("delete", task.delete()).await.expect("ended").status, 6);
    soon("close", runtime.close()).await;
    stage.assert_nothing_left();
}

/// The daemon never heard from the shim which process it is.
#[tokio::test]
async fn sigkill_ends_a_shim_that_a_later_daemon_has_never_reached() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("c1", Manner::Good);
    made(&stage, &runtime, "c1").await;
    soon("close", runtime.close()).await;
    drop(runtime);
    let Full { socket: (listener, _client), .. } = Full::new(&stage, "c1");
    let mut listens = Command::new("sleep").arg("600").stdin(listener).spawn().expect("spawned");
    let program = fs::read_link(format!("/proc/{}/exe", listens.id())).expect("runs");
    fs::write(stage.bundle("c1").join("shim-binary-path"), program.as_os_str().as_encoded_bytes())
        .expect("written");
    let runtime = stage.runtime();
    let task = runtime.task(&stage.namespace, "c1").expect("is there");
    let mut events = stage.subscribe();
    soon("a kill", task.kill(&signal("c1", 9))).await.expect("killed");
    let status = listens.wait().expect("reaped");
    assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
    // What cleans up is no shim here, so it is not known how init has ended.
    assert_eq!(told(&mut events).await, (vec![255], 255));
    soon("close", runtime.close()).await;
    stage.assert_nothing_left();
    drop(shim);
}

/// The connection ends in the middle of the delete of a task that runs.
#[tokio::test]
async fn a_delete_during_a_loss_ends_nothing_that_runs() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("c1", Manner::Good);
    let task = made(&stage, &runtime, "c1").await;
    shim.behave(Manner::Stuck);
    let heard = async {
        while !shim.asked().contains(&"Delete".to_owned()) {
            tokio::task::yield_now().await;
        }
        shim.drop_connections();
    };
    let (deleted, ()) = soon("delete", async { tokio::join!(task.delete(), heard) }).await;
    let error = deleted.expect_err("runs");
    assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
    shim.behave(Manner::Good);
    soon("the state", is(&task, Status::Running)).await;
    assert!(!shim.is_dead());
    assert_eq!(stage.calls(), ["start c1"], "nothing was cleaned up");
    shim.exit(4);
    assert_eq!(soon("delete", task.delete()).await.expect("ended").status, 4);
    soon("close", runtime.close()).await;
    stage.assert_nothing_left();
}
