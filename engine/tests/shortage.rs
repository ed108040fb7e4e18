//! That a shortage of descriptors is not taken for the end of a shim. A program of its own, since the
//! shortage is the whole program's.

#[path = "runtime/fake.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod fake;

use std::{
    fs::{self, File},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use engine::runtime::{CreateSandbox, Error};
use proto::containerd::v1::types::Status;

use fake::{Manner, Stage};

/// How long something may take that is tried each second.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a test that takes all descriptors while no other test of this program runs, or is set up.
fn alone(test: impl Future<Output = ()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(test);
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// Takes all descriptors that there are.
fn exhaust() -> Vec<File> {
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    taken
}

/// Whether this program holds a process by a descriptor.
fn holds_process() -> bool {
    let open = fs::read_dir("/proc/self/fd").expect("read").filter_map(Result::ok);
    let mut targets = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.any(|target| target.to_string_lossy().contains("pidfd"))
}

/// A shim that did not say who it is loses its connection, for which there is one more descriptor, and
/// one for the other end, but none for its process.
#[test]
fn a_shim_whose_process_cannot_be_held_is_not_taken_for_dead() {
    alone(async {
        let stage = Stage::new();
        let runtime = stage.runtime();
        let shim = stage.shim("c1", Manner::Anonymous);
        soon("create", runtime.create(&stage.namespace, stage.request("c1"))).await.expect("made");
        let task = runtime.task(&stage.namespace, "c1").expect("is there");
        shim.behave(Manner::Good);
        let is = async |status: Status| {
            while task.state_or_last().await.expect("is there").status() != status {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("the state", is(Status::Running)).await;
        assert!(!holds_process());
        let taken = exhaust();
        shim.drop_connections();
        let connects = || shim.asked().iter().filter(|method| *method == "Connect").count();
        let before = connects();
        let tried = async {
            while connects() < before + 4 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("two tries", tried).await;
        soon("the state", is(Status::Running)).await;
        assert!(!shim.is_dead());
        drop(taken);
        assert_eq!(stage.calls(), ["start c1"], "nothing was cleaned up");
        // It is held as soon as it can be.
        let held = async {
            while !holds_process() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("another try", held).await;
        shim.exit(0);
        soon("delete", task.delete()).await.expect("ended");
        soon("close", runtime.close()).await;
        stage.assert_nothing_left();
    });
}

#[test]
fn what_is_left_of_a_task_is_removed_later() {
    alone(async {
        let stage = Stage::new();
        let runtime = stage.runtime();
        let shim = stage.shim("c1", Manner::Good);
        soon("create", runtime.create(&stage.namespace, stage.request("c1"))).await.expect("made");
        let task = runtime.task(&stage.namespace, "c1").expect("is there");
        shim.exit(3);
        let taken = exhaust();
        assert_eq!(soon("delete", task.delete()).await.expect("ended").status, 3);
        let error = soon("delete", task.delete()).await.expect_err("was deleted");
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        shim.die();
        drop(taken);
        let gone = async {
            while runtime.task(&stage.namespace, "c1").is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("the removal", gone).await;
        stage.assert_nothing_left();
        assert!(!stage.folder().join("c1.sock").exists(), "nobody listens there");
        soon("close", runtime.close()).await;
    });
}

#[test]
fn what_is_left_of_a_sandbox_is_removed_later() {
    alone(async {
        let stage = Stage::new();
        let runtime = stage.runtime();
        let _shim = stage.shim("s1", Manner::Good);
        let request = || CreateSandbox {
            id: "s1".to_owned(),
            runtime: stage.request("s1").runtime,
            ..CreateSandbox::default()
        };
        let create = || runtime.create_sandbox(&stage.namespace, request());
        soon("create", create()).await.expect("made");
        let sandbox = runtime.sandbox(&stage.namespace, "s1").expect("is there");
        let taken = exhaust();
        soon("shutdown", sandbox.shutdown()).await.expect("shut down");
        assert_eq!(sandbox.endpoint(), None);
        let error = soon("shutdown", sandbox.shutdown()).await.expect_err("was shut down");
        assert!(matches!(error, Error::NoSandbox { .. }), "{error}");
        drop(taken);
        let gone = async {
            while runtime.sandbox(&stage.namespace, "s1").is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("the removal", gone).await;
        stage.assert_no_sandboxes();
        assert!(!stage.folder().join("s1.sock").exists(), "nobody listens there");
        stage.shim("s1", Manner::Good);
        soon("create", create()).await.expect("the name is free");
        soon("close", runtime.close()).await;
    });
}

/// Nothing can be read when the daemon has just found the task again, not even which program its shim is.
#[test]
fn no_other_shim_than_the_one_that_made_a_task_cleans_up_after_it() {
    alone(async {
        let stage = Stage::new();
        let shim = stage.shim("c1", Manner::Good);
        let runtime = stage.runtime();
        soon("create", runtime.create(&stage.namespace, stage.request("c1"))).await.expect("made");
        soon("close", runtime.close()).await;
        drop(runtime);
        let asked = shim.asked().len();
        let runtime = stage.runtime();
        let found = async {
            while shim.asked().len() == asked {
                tokio::task::yield_now().await;
            }
        };
        soon("a question", found).await;
        let taken = exhaust();
        let task = runtime.task(&stage.namespace, "c1").expect("is there");
        let known = async {
            while task.state_or_last().await.expect("is there").status() != Status::Running {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("the state", known).await;
        // What would look for the program has had its turn.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        drop(taken);
        shim.die();
        let gone = async {
            while runtime.task(&stage.namespace, "c1").is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("the removal", gone).await;
        assert_eq!(stage.calls(), ["start c1", "delete c1"]);
        soon("close", runtime.close()).await;
        stage.assert_nothing_left();
    });
}
