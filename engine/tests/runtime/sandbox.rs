//! Sandboxes under strict fakes of shims.

use std::{sync::Arc, time::Duration};

use engine::runtime::{CreateSandbox, Error, Membership, Runtime, Sandbox};
use proto::containerd::runtime::sandbox::v1::SandboxStatusRequest;

use super::{
    fake::{FakeShim, Manner, Stage},
    lost::Full,
    soon,
};

async fn made(stage: &Stage, runtime: &Runtime) -> (Arc<FakeShim>, Arc<Sandbox>) {
    let shim = stage.shim("s1", Manner::Good);
    let runtime_name = stage.request("s1").runtime;
    let request =
        CreateSandbox { id: "s1".to_owned(), runtime: runtime_name, ..CreateSandbox::default() };
    soon("create", runtime.create_sandbox(&stage.namespace, request)).await.expect("made");
    let sandbox = runtime.sandbox(&stage.namespace, "s1").expect("is there");
    soon("start", sandbox.start()).await.expect("started");
    (shim, sandbox)
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
        let status = SandboxStatusRequest { sandbox_id: "s1".to_owned(), verbose: false };
        let mut errors = vec![
            soon("status", sandbox.call(&status)).await.map(drop),
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
        while sandbox.call(&status).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
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
