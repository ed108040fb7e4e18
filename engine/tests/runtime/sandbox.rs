//! Sandboxes under strict fakes of shims.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, process::ExitStatusExt},
    },
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use engine::runtime::{CreateSandbox, Error, Membership, Runtime, Sandbox, Task};
use proto::containerd::runtime::sandbox::v1::SandboxStatusRequest;
use rustix::process::Signal;

use super::{
    fake::{FakeShim, Manner, Stage},
    lost::{Full, end},
    soon,
};

async fn made(stage: &Stage, runtime: &Runtime) -> (Arc<FakeShim>, Arc<Sandbox>) {
    let shim = stage.shim("s1", Manner::Good);
    (shim, made_under(stage, runtime).await)
}

/// Makes `s1` under the shim that waits for it.
async fn made_under(stage: &Stage, runtime: &Runtime) -> Arc<Sandbox> {
    let runtime_name = stage.request("s1").runtime;
    let request =
        CreateSandbox { id: "s1".to_owned(), runtime: runtime_name, ..CreateSandbox::default() };
    soon("create", runtime.create_sandbox(&stage.namespace, request)).await.expect("made");
    let sandbox = runtime.sandbox(&stage.namespace, "s1").expect("is there");
    soon("start", sandbox.start()).await.expect("started");
    sandbox
}

#[tokio::test]
async fn a_life() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let (shim, sandbox) = made(&stage, &runtime).await;
    let wait = sandbox.wait();
    let stop = sandbox.stop(7);
    let (exit, stopped) = soon("stop", async { tokio::join!(wait, stop) }).await;
    assert_eq!(exit.expect("ended").exit_status, 0);
    stopped.expect("stopped");
    assert_eq!(shim.stopped_within(), [7], "the shim is told how long it may take");
    soon("shutdown", sandbox.shutdown()).await.expect("shut down");
    assert!(runtime.sandbox(&stage.namespace, "s1").is_none());
    soon("stop", sandbox.stop(0)).await.expect("what is not there has stopped");
    let error = soon("shutdown", sandbox.shutdown()).await.expect_err("was shut down");
    assert!(matches!(error, Error::NoSandbox { .. }), "{error}");
    soon("close", runtime.close()).await;
    stage.assert_no_sandboxes();
}

/// Nobody is told that a sandbox has ended, or is not there, while that is not known.
#[tokio::test]
async fn a_sandbox_whose_shim_is_lost() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let (shim, sandbox) = made(&stage, &runtime).await;
    let full = Full::new(&stage, "s1");
    let asks = async {
        shim.drop_connections();
        while sandbox.endpoint().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut errors = vec![
            soon("status", sandbox.call(&status())).await.map(drop),
            soon("stop", sandbox.stop(0)).await,
            soon("shutdown", sandbox.shutdown()).await,
        ];
        let sandbox_of_task = Some(Membership { id: "s1".to_owned(), ..Membership::default() });
        let mut request = stage.request("c1");
        request.sandbox = sandbox_of_task;
        let created = runtime.create(&stage.namespace, request);
        errors.push(soon("create", created).await.map(drop));
        for error in errors {
            let error = error.expect_err("lost");
            assert!(matches!(error, Error::SandboxUnreachable { .. }), "{error}");
        }
        // One that waits is not told anything, not even after the connection was made again.
        full.mend();
        answers(&sandbox).await;
        assert_eq!(shim.stopped_within(), [0; 0]);
        soon("stop", sandbox.stop(3)).await.expect("stopped");
    };
    let both = async { tokio::join!(sandbox.wait(), asks) };
    let (exit, ()) = soon("the end", both).await;
    assert_eq!(exit.expect("ended").exit_status, 0, "as the shim says");
    assert_eq!(stage.calls(), ["start s1"], "no shim is started for a task that cannot join");
    assert!(!shim.is_dead());
    soon("shutdown", sandbox.shutdown()).await.expect("shut down");
    soon("close", runtime.close()).await;
    stage.assert_no_sandboxes();
    stage.assert_nothing_left();
}

fn status() -> SandboxStatusRequest {
    SandboxStatusRequest { sandbox_id: "s1".to_owned(), verbose: false }
}

/// Waits until the sandbox's shim answers.
async fn answers(sandbox: &Sandbox) {
    while sandbox.call(&status()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the shim has been asked for `method` this often.
async fn asked(shim: &FakeShim, method: &str, times: usize) {
    while shim.asked().iter().filter(|asked| *asked == method).count() < times {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The connection ends in the middle of the shutdown of a sandbox that runs.
#[tokio::test]
async fn a_shutdown_during_a_loss_ends_nothing_that_runs() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let (shim, sandbox) = made(&stage, &runtime).await;
    shim.behave(Manner::Stuck);
    let heard = async {
        asked(&shim, "ShutdownSandbox", 1).await;
        shim.drop_connections();
    };
    let both = async { tokio::join!(sandbox.shutdown(), heard) };
    let (done, ()) = soon("shutdown", both).await;
    let error = done.expect_err("runs");
    assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
    shim.behave(Manner::Good);
    soon("the status", answers(&sandbox)).await;
    assert!(!shim.is_dead());
    assert_eq!(stage.calls(), ["start s1"], "nothing was cleaned up");
    soon("shutdown", sandbox.shutdown()).await.expect("shut down");
    soon("close", runtime.close()).await;
    stage.assert_no_sandboxes();
}

/// A shim that has too little of something drops whoever connects.
#[tokio::test]
async fn a_shim_that_drops_a_later_daemon_is_not_taken_for_dead() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let (shim, _) = made(&stage, &runtime).await;
    soon("close", runtime.close()).await;
    drop(runtime);
    shim.behave(Manner::Cut);
    let before = shim.asked().iter().filter(|asked| *asked == "Connect").count();
    let runtime = stage.runtime();
    soon("three tries", asked(&shim, "Connect", before + 3)).await;
    shim.behave(Manner::Good);
    let sandbox = runtime.sandbox(&stage.namespace, "s1").expect("is there");
    soon("the status", answers(&sandbox)).await;
    assert!(!shim.is_dead());
    assert_eq!(stage.calls(), ["start s1"], "nothing was cleaned up");
    soon("shutdown", sandbox.shutdown()).await.expect("shut down");
    soon("close", runtime.close()).await;
    stage.assert_no_sandboxes();
}

/// The process that listens at the socket of the shim of `s1`, and would be killed for it.
fn listener(stage: &Stage, socket: OwnedFd) -> Child {
    let listens = Command::new("sleep").arg("600").stdin(socket).spawn().expect("spawned");
    let program = fs::read_link(format!("/proc/{}/exe", listens.id())).expect("runs");
    let recorded = stage.sandbox_bundle("s1").join("shim-binary-path");
    fs::write(recorded, program.as_os_str().as_bytes()).expect("written");
    listens
}

/// Waits for the end of the sandbox.
async fn gone(stage: &Stage, runtime: &Runtime) {
    while runtime.sandbox(&stage.namespace, "s1").is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One that does not say who it is, and drops its connection, is known by its socket.
#[tokio::test]
async fn a_shim_that_is_given_up_is_killed() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    made(&stage, &runtime).await;
    soon("close", runtime.close()).await;
    drop(runtime);
    let (shim, socket) = stage.shim_and_socket("s1", Manner::Anonymous);
    let mut listens = listener(&stage, socket);
    let runtime = stage.runtime();
    let sandbox = runtime.sandbox(&stage.namespace, "s1").expect("is there");
    soon("the status", answers(&sandbox)).await;
    shim.drop_connections();
    soon("the end", gone(&stage, &runtime)).await;
    let status = listens.wait().expect("reaped");
    assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
    soon("close", runtime.close()).await;
    stage.assert_no_sandboxes();
}

/// A task that is not of the sandbox may have the sandbox's shim: to start one gives that of its group.
async fn made_beside(stage: &Stage, runtime: &Runtime, id: &str) -> Arc<Task> {
    stage.share("s1");
    soon("create", runtime.create(&stage.namespace, stage.request(id))).await.expect("made");
    runtime.task(&stage.namespace, id).expect("is there")
}

#[tokio::test]
async fn a_shim_that_is_given_up_is_left_to_a_task_beside_its_sandbox() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let (shim, socket) = stage.shim_and_socket("s1", Manner::Good);
    made_under(&stage, &runtime).await;
    made_beside(&stage, &runtime, "c1").await;
    soon("close", runtime.close()).await;
    drop(runtime);
    let listens = listener(&stage, socket);
    shim.behave(Manner::NoSandbox);
    let runtime = stage.runtime();
    soon("the end", gone(&stage, &runtime)).await;
    let task = runtime.task(&stage.namespace, "c1").expect("is there");
    soon("the state", task.state("")).await.expect("answers");
    assert!(stage.folder().join("s1.sock").exists(), "the socket is needed");
    end(listens);
    soon("close", runtime.close()).await;
    stage.assert_no_sandboxes();
}

/// Neither the end of a sandbox nor that of a task beside it is the shim's, while the other is there.
#[tokio::test]
async fn a_shim_that_a_sandbox_and_a_task_share() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let (shim, sandbox) = made(&stage, &runtime).await;
    shim.behave(Manner::Lingers);
    let first = made_beside(&stage, &runtime, "c1").await;
    shim.exit(0);
    soon("delete", first.delete()).await.expect("deleted");
    soon("the status", answers(&sandbox)).await;
    assert!(!shim.is_dead(), "the sandbox needs it");
    let second = made_beside(&stage, &runtime, "c2").await;
    soon("shutdown", sandbox.shutdown()).await.expect("shut down");
    soon("the state", second.state("")).await.expect("answers");
    assert!(!shim.is_dead(), "the task needs it");
    assert!(stage.folder().join("s1.sock").exists(), "the socket is needed");
    stage.assert_no_sandboxes();
    soon("close", runtime.close()).await;
}

/// What cannot be joined is no reason to start a shim.
#[tokio::test]
async fn a_task_of_a_sandbox_whose_address_is_none() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let address = "nowhere".to_owned();
    let mut request = stage.request("c1");
    request.sandbox = Some(Membership { id: "s1".to_owned(), address, ..Membership::default() });
    let made = soon("create", runtime.create(&stage.namespace, request)).await;
    let error = made.expect_err("no address");
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    assert_eq!(stage.calls(), [""; 0]);
    soon("close", runtime.close()).await;
    stage.assert_nothing_left();
}
