//! Tasks under strict fakes of shims: what must hold when shims refuse, hang, lie and die.

#[path = "runtime/fake.rs"]
mod fake;
#[path = "runtime/lost.rs"]
mod lost;
#[path = "runtime/restart.rs"]
mod restart;
#[path = "runtime/rubbish.rs"]
mod rubbish;
#[path = "runtime/sandbox.rs"]
mod sandbox;

use std::{
    fs,
    time::{Duration, Instant},
};

use engine::{events::Subscription, runtime::Error};
use prost::Message;
use prost_types::Timestamp;
use proto::{
    SHIM_FAREWELL_MAX,
    any::{pack, unpack},
    containerd::{
        events::{TaskDelete, TaskExit},
        task::v3,
        types::Envelope,
    },
};

use fake::{INIT, Manner, Stage};

/// How long something may take that should happen at once.
const LIMIT: Duration = Duration::from_secs(20);

/// How long something may take that waits for deadlines of the runtime's.
const LONG_LIMIT: Duration = Duration::from_secs(120);

/// Waits for a future with a deadline.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// The exits and deletes that are told, up to the first delete.
async fn told(events: &mut Subscription) -> (Vec<u32>, u32) {
    let mut exits = Vec::new();
    loop {
        let envelope = soon("an event", events.next()).await.expect("open");
        let event = envelope.event.as_ref().expect("has one");
        if let Some(exit) = unpack::<TaskExit>(event).expect("well formed") {
            exits.push(exit.exit_status);
        } else if let Some(delete) = unpack::<TaskDelete>(event).expect("well formed") {
            return (exits, delete.exit_status);
        }
    }
}

/// Waits for the start of a shim.
async fn started(stage: &Stage) {
    while stage.calls().is_empty() {
        tokio::task::yield_now().await;
    }
}

fn exit_event(id: &str, exit_status: u32) -> Envelope {
    let exit = TaskExit {
        container_id: id.to_owned(),
        id: id.to_owned(),
        pid: INIT,
        exit_status,
        exited_at: Some(Timestamp::default()),
    };
    Envelope {
        timestamp: Some(Timestamp::default()),
        namespace: "default".to_owned(),
        topic: "/tasks/exit".to_owned(),
        event: Some(pack(&exit)),
    }
}

#[tokio::test]
async fn a_life() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("c1", Manner::Good);
    let create = || runtime.create(&stage.namespace, stage.request("c1"));
    assert_eq!(soon("create", create()).await.expect("made"), INIT);
    let error = create().await.expect_err("has one");
    assert_eq!(error.to_string(), "task c1: already exists");

    let task = runtime.task(&stage.namespace, "c1").expect("is there");
    let error = soon("delete", task.delete()).await.expect_err("runs");
    let text = "failed to delete task: task must be stopped before deletion: running";
    assert!(error.to_string().starts_with(text), "{error}");
    let error = task.delete_exec("e").await.expect_err("the fake says the same of execs");
    assert!(error.to_string().starts_with("task must be stopped"), "{error}");
    let waits = [0; 50].map(|_| task.wait(""));
    let end = async { shim.exit(7) };
    let (exits, ()) =
        soon("wait", async { tokio::join!(futures::future::join_all(waits), end) }).await;
    assert!(exits.iter().all(|exit| exit.as_ref().is_ok_and(|exit| exit.status == 7)));
    assert_eq!(shim.asked().iter().filter(|method| *method == "Wait").count(), 1);
    assert_eq!(task.delete().await.expect("ended").status, 7);
    stage.assert_nothing_left();
    assert!(matches!(task.delete().await, Err(Error::NotFound { .. })));

    // The next task of the container waits for the end of the first one's shim.
    stage.shim("c1", Manner::Good);
    soon("create", create()).await.expect("made again");
    assert_eq!(stage.calls(), ["start c1", "start c1"]);
    runtime.close().await;
}

#[tokio::test]
async fn a_list_asks_only_for_what_is_not_known() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("c1", Manner::Good);
    soon("create", runtime.create(&stage.namespace, stage.request("c1"))).await.expect("made");
    let task = runtime.task(&stage.namespace, "c1").expect("is there");
    let list = async || soon("list", task.state_or_last()).await.expect("known").status;
    let asked = || shim.asked().iter().filter(|method| *method == "State").count();
    for _ in 0..3 {
        assert_eq!(list().await, 2);
    }
    assert_eq!(asked(), 1);
    let kill = v3::KillRequest { id: "c1".to_owned(), signal: 15, ..Default::default() };
    soon("kill", task.call(&kill)).await.expect("answers");
    assert_eq!((list().await, asked()), (2, 2), "after a call that may change it");
    let pids = v3::PidsRequest { id: "c1".to_owned() };
    let _ = soon("pids", task.call(&pids)).await;
    assert_eq!((list().await, asked()), (2, 2), "after one that cannot");
    soon("state", task.state("")).await.expect("answers");
    assert_eq!(asked(), 3, "who asks for one task asks its shim");
    shim.exit(7);
    soon("wait", task.wait("")).await.expect("ended");
    assert_eq!((list().await, asked()), (3, 4), "after the end of a wait");
    runtime.forward(exit_event("c1", 7)).await.expect("well formed");
    assert_eq!((list().await, asked()), (3, 5), "after an exit that the shim tells of");

    runtime.close().await;
    drop(runtime);
    let runtime = stage.runtime();
    let task = runtime.task(&stage.namespace, "c1").expect("is there");
    for _ in 0..3 {
        assert_eq!(soon("list", task.state_or_last()).await.expect("known").status, 3);
    }
    assert_eq!(asked(), 6, "after the daemon started again");
    soon("delete", task.delete()).await.expect("ended");
    soon("close", runtime.close()).await;
    stage.assert_nothing_left();
}

#[tokio::test]
async fn a_wait_that_was_left_is_not_the_next_execs() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("c1", Manner::Good);
    runtime.create(&stage.namespace, stage.request("c1")).await.expect("made");
    let task = runtime.task(&stage.namespace, "c1").expect("is there");
    let left = tokio::time::timeout(Duration::from_millis(200), task.wait("e")).await;
    left.expect_err("runs");
    shim.exit(7);
    task.delete_exec("e").await.expect("deleted");
    shim.exit(8);
    assert_eq!(soon("wait", task.wait("e")).await.expect("ended").status, 8);
    runtime.close().await;
}

#[tokio::test]
async fn a_failed_create_leaves_nothing() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    for manner in [Manner::CreateFails, Manner::Garbage] {
        let shim = stage.shim("c1", manner);
        let error = soon("create", runtime.create(&stage.namespace, stage.request("c1"))).await;
        let error = error.expect_err("fails");
        let refused = "failed to create shim task: OCI runtime create failed: no luck";
        assert!(manner == Manner::Garbage || error.to_string() == refused, "{error}");
        stage.assert_nothing_left();
        assert!(runtime.tasks(&stage.namespace).is_empty());
        drop(shim);
    }
    // A runtime that does not exist, and one that is no name.
    for name in ["io.containerd.missing.v9", "missing", "/no/such/shim"] {
        let mut request = stage.request("c1");
        request.runtime = name.to_owned();
        runtime.create(&stage.namespace, request).await.expect_err(name);
    }
    stage.assert_nothing_left();
}

#[tokio::test]
async fn a_creator_that_leaves_leaves_nothing() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("c1", Manner::Good);
    shim.exit(0);
    tokio::select! {
        biased;
        () = started(&stage) => {}
        made = runtime.create(&stage.namespace, stage.request("c1")) => panic!("{made:?}"),
    }
    let gone = async {
        while !runtime.tasks(&stage.namespace).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    soon("the end", gone).await;
    assert!(shim.asked().contains(&"Shutdown".to_owned()));
    stage.assert_nothing_left();
}

#[tokio::test]
async fn a_stuck_shim_delays_no_other() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let mut shims = Vec::new();
    for id in ["a", "b", "c"] {
        shims.push(stage.shim(id, Manner::Good));
        soon("create", runtime.create(&stage.namespace, stage.request(id))).await.expect("made");
    }
    shims[1].behave(Manner::Stuck);
    let list = async || {
        let begun = Instant::now();
        let tasks = runtime.tasks(&stage.namespace);
        let states = futures::future::join_all(tasks.iter().map(|task| task.state_or_last())).await;
        let states: Vec<_> = states.into_iter().map(|state| state.expect("known").status).collect();
        (states, begun.elapsed())
    };
    let (states, first) = soon("list", list()).await;
    assert_eq!(states, [2, 0, 2], "the stuck one's state is not known");
    let (states, took) = soon("list", list()).await;
    assert_eq!(states, [2, 0, 2]);
    assert!(took < first, "a suspect is waited for only briefly: {took:?}, and {first:?} at first");
    shims[1].behave(Manner::Good);
    let healed = async { while list().await.0 != [2, 2, 2] {} };
    tokio::time::timeout(LONG_LIMIT, healed).await.expect("it is known again");
    runtime.close().await;
}

#[tokio::test]
async fn a_shim_in_quarantine() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let (shim, other) = (stage.shim("c1", Manner::Good), stage.shim("c2", Manner::Good));
    for id in ["c1", "c2"] {
        soon("create", runtime.create(&stage.namespace, stage.request(id))).await.expect("made");
    }
    let task = |id| runtime.task(&stage.namespace, id).expect("is there");
    let signal = |signal| v3::KillRequest { id: "c1".to_owned(), signal, ..Default::default() };
    let long = async |what, call| tokio::time::timeout(LONG_LIMIT, call).await.expect(what);

    shim.behave(Manner::Stuck);
    let (stuck, term) = (task("c1"), signal(15));
    let (kill, delete) =
        long("an answer", async { tokio::join!(stuck.call(&term), stuck.delete()) }).await;
    for error in [kill.expect_err("no answer"), delete.expect_err("no answer")] {
        let text = error.to_string();
        assert!(matches!(error, Error::Quarantined { pid: Some(_), .. }), "{text}");
        assert!(text.contains("c1.sock) has not answered"), "{text}");
        assert!(text.contains("ctr tasks rm -f c1"), "{text}");
    }
    // Nothing is asked of it any more, and others are asked as before.
    let kills = || shim.asked().iter().filter(|method| *method == "Kill").count();
    let before = kills();
    for _ in 0..100 {
        let error = stuck.call(&signal(15)).await.expect_err("in quarantine");
        assert!(matches!(error, Error::Quarantined { .. }), "{error}");
        assert_eq!(task("c2").state("").await.expect("answers").status, 2);
    }
    assert_eq!(kills(), before);
    assert_eq!(stuck.state_or_last().await.expect("known").status, 0);
    assert_eq!(stuck.state_or_unknown().await.expect("known").status, 0);

    shim.behave(Manner::Good);
    let healed = async {
        while stuck.state("").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG_LIMIT, healed).await.expect("it heals");

    // What is to die dies, with its shim.
    shim.behave(Manner::Stuck);
    let mut events = stage.subscribe();
    let wait = stuck.wait("");
    let death = async {
        let killed = stuck.kill(&signal(9)).await;
        while !shim.is_dead() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // A real one's connections end with it.
        shim.die();
        killed
    };
    let both = async { tokio::join!(wait, death) };
    let (exit, killed) = tokio::time::timeout(LONG_LIMIT, both).await.expect("an end");
    killed.expect("killed");
    assert_eq!(exit.expect("known").status, 137);
    assert_eq!(told(&mut events).await, (vec![137], 137));
    assert_eq!(stage.calls().last().map(String::as_str), Some("delete c1"));
    other.exit(0);
    soon("delete", task("c2").delete()).await.expect("ended");
    soon("close", runtime.close()).await;
    stage.assert_nothing_left();
}

#[tokio::test]
async fn nonsense_is_an_error_and_no_hang() {
    for manner in [Manner::Garbage, Manner::Oversized, Manner::Cut, Manner::OddMessage] {
        let stage = Stage::new();
        let runtime = stage.runtime();
        let shim = stage.shim("c1", Manner::Good);
        soon("create", runtime.create(&stage.namespace, stage.request("c1"))).await.expect("made");
        let task = runtime.task(&stage.namespace, "c1").expect("is there");
        shim.behave(manner);
        for _ in 0..3 {
            let state = soon("an answer", task.state("")).await;
            assert!(state.is_err(), "{manner:?}: {state:?}");
        }
        shim.behave(Manner::Good);
        let healed = async {
            while task.state("").await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon("a good answer", healed).await;
        shim.exit(3);
        assert_eq!(soon("delete", task.delete()).await.expect("ended").status, 3, "{manner:?}");
        soon("close", runtime.close()).await;
        assert_eq!(stage.calls(), ["start c1"], "{manner:?}: nothing was taken for dead");
        stage.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_death_is_told_once() {
    for exit_was_told in [false, true] {
        let stage = Stage::new();
        let runtime = stage.runtime();
        let shim = stage.shim("c1", Manner::Good);
        soon("create", runtime.create(&stage.namespace, stage.request("c1"))).await.expect("made");
        let task = runtime.task(&stage.namespace, "c1").expect("is there");
        let mut events = stage.subscribe();
        if exit_was_told {
            runtime.forward(exit_event("c1", 3)).await.expect("well formed");
        }
        let wait = task.wait("");
        let death = async { shim.die() };
        let (exit, ()) = soon("wait", async { tokio::join!(wait, death) }).await;
        // The binary's `delete` says 137.
        let want = if exit_was_told { 3 } else { 137 };
        assert_eq!(exit.expect("known").status, want);
        runtime.forward(exit_event("c1", 137)).await.expect("well formed");
        let (exits, deleted) = told(&mut events).await;
        assert_eq!((exits.as_slice(), deleted), ([want].as_slice(), want));
        assert_eq!(stage.calls(), ["start c1", "delete c1"]);
        stage.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_bundle_stays_until_it_is_cleaned_up_after() {
    for by_next_daemon in [false, true] {
        let stage = Stage::new();
        let runtime = stage.runtime();
        let shim = stage.shim("c1", Manner::Good);
        soon("create", runtime.create(&stage.namespace, stage.request("c1"))).await.expect("made");
        let task = runtime.task(&stage.namespace, "c1").expect("is there");
        let mut events = stage.subscribe();
        stage.unlucky(true);
        fs::write(stage.bundle("c1").join("init.pid"), INIT.to_string()).expect("written");
        shim.die();
        assert_eq!(soon("wait", task.wait("")).await.expect("known").status, 255);
        assert!(stage.bundle("c1").exists());
        let error = soon("create", runtime.create(&stage.namespace, stage.request("c1"))).await;
        assert!(error.expect_err("is left over").to_string().contains("no luck"));
        stage.unlucky(false);
        let runtime = if by_next_daemon {
            runtime.close().await;
            drop(runtime);
            stage.runtime()
        } else {
            let shim = stage.shim("c1", Manner::Good);
            let made = soon("create", runtime.create(&stage.namespace, stage.request("c1"))).await;
            made.expect("made after all");
            shim.die();
            runtime
        };
        assert_eq!(told(&mut events).await, (vec![255], 255), "of the first task, once");
        if !by_next_daemon {
            assert_eq!(told(&mut events).await, (vec![137], 137), "of the second task");
        }
        let none = tokio::time::timeout(Duration::from_millis(50), events.next()).await;
        assert!(none.is_err(), "{none:?}");
        soon("close", runtime.close()).await;
        stage.assert_nothing_left();
    }
}

#[tokio::test]
async fn an_exit_that_was_recorded_and_not_told() {
    for shim_lives in [false, true] {
        let stage = Stage::new();
        let runtime = stage.runtime();
        let shim = stage.shim("c1", Manner::Good);
        soon("create", runtime.create(&stage.namespace, stage.request("c1"))).await.expect("made");
        runtime.close().await;
        drop(runtime);
        let exit = TaskExit {
            container_id: "c1".to_owned(),
            id: "c1".to_owned(),
            pid: INIT,
            exit_status: 9,
            exited_at: Some(Timestamp { seconds: 5, nanos: 0 }),
        };
        fs::write(stage.bundle("c1").join("exit.recorded"), exit.encode_to_vec()).expect("written");
        if shim_lives {
            shim.exit(9);
        } else {
            shim.die();
        }
        let mut events = stage.subscribe();
        let runtime = stage.runtime();
        if shim_lives {
            // The shim got no answer from the daemon that was killed, and tells again.
            runtime.forward(exit_event("c1", 9)).await.expect("well formed");
            runtime.forward(exit_event("c1", 9)).await.expect("well formed");
            let event = soon("an event", events.next()).await.expect("open");
            let exit = unpack::<TaskExit>(event.event.as_ref().expect("has one"));
            assert_eq!(exit.expect("well formed").map(|exit| exit.exit_status), Some(9));
            let task = runtime.task(&stage.namespace, "c1").expect("is there");
            assert_eq!(soon("delete", task.delete()).await.expect("ended").status, 9);
            assert_eq!(told(&mut events).await, (vec![], 9));
        } else {
            // Not what the binary's `delete` says, which is 137.
            assert_eq!(told(&mut events).await, (vec![9], 9));
        }
        let none = tokio::time::timeout(Duration::from_millis(50), events.next()).await;
        assert!(none.is_err(), "it is told once: {none:?}");
        soon("close", runtime.close()).await;
        stage.assert_nothing_left();
    }
}

/// The execs whose exits are told next, until there is nothing more.
async fn execs_told(events: &mut Subscription) -> Vec<String> {
    let mut ids = Vec::new();
    while let Ok(envelope) = tokio::time::timeout(Duration::from_millis(50), events.next()).await {
        let event = envelope.expect("open").event.clone().expect("has one");
        ids.extend(unpack::<TaskExit>(&event).expect("well formed").map(|exit| exit.id));
    }
    ids
}

#[tokio::test]
async fn exits_of_execs_are_told_once() {
    let exit = |id: &str, seconds| {
        let exit = TaskExit {
            container_id: "c1".to_owned(),
            id: id.to_owned(),
            pid: 7,
            exit_status: 3,
            exited_at: Some(Timestamp { seconds, nanos: 1 }),
        };
        Envelope { event: Some(pack(&exit)), ..exit_event("c1", 0) }
    };
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("c1", Manner::Good);
    soon("create", runtime.create(&stage.namespace, stage.request("c1"))).await.expect("made");
    let mut events = stage.subscribe();
    // Two copies at once, a copy after the answer, and the next exec of the same name.
    let (first, second) =
        tokio::join!(runtime.forward(exit("a", 1)), runtime.forward(exit("a", 1)));
    first.and(second).expect("well formed");
    for (id, seconds) in [("a", 1), ("a", 2), ("b", 2)] {
        runtime.forward(exit(id, seconds)).await.expect("well formed");
    }
    assert_eq!(execs_told(&mut events).await, ["a", "a", "b"]);
    runtime.close().await;
    drop(runtime);

    // The answer to the last one was lost with the daemon, and one was never offered. The shim does
    // not wait until the daemon has found it.
    let runtime = stage.runtime();
    for (id, seconds) in [("b", 2), ("c", 3)] {
        runtime.forward(exit(id, seconds)).await.expect("well formed");
    }
    assert_eq!(execs_told(&mut events).await, ["c"]);
    let marks = stage.bundle("c1").join("exits.told");
    for i in 0..100 {
        runtime.forward(exit("d", 10 + i)).await.expect("well formed");
    }
    assert_eq!(execs_told(&mut events).await.len(), 100);
    assert!(fs::metadata(&marks).expect("is kept").len() <= 512, "it does not grow");
    runtime.close().await;
    drop(runtime);

    // What was told and not kept is told again, so that nothing is lost.
    fs::write(&marks, "half a mark").expect("written");
    let runtime = stage.runtime();
    runtime.forward(exit("d", 109)).await.expect("well formed");
    assert_eq!(execs_told(&mut events).await, ["d"]);
    shim.exit(0);
    let task = runtime.task(&stage.namespace, "c1").expect("is there");
    soon("delete", task.delete()).await.expect("ended");
    soon("close", runtime.close()).await;
    stage.assert_nothing_left();
}

#[tokio::test]
async fn a_delete_that_the_shim_does_not_tell_is_told_once() {
    let delete = TaskDelete { container_id: "c1".to_owned(), pid: INIT, ..Default::default() };
    let delete = || Envelope {
        topic: "/tasks/delete".to_owned(),
        event: Some(pack(&delete)),
        ..exit_event("c1", 0)
    };
    for told_by_shim in [false, true] {
        let stage = Stage::new();
        let runtime = stage.runtime();
        let shim = stage.shim("c1", Manner::Good);
        soon("create", runtime.create(&stage.namespace, stage.request("c1"))).await.expect("made");
        let task = runtime.task(&stage.namespace, "c1").expect("is there");
        shim.exit(0);
        runtime.forward(exit_event("c1", 0)).await.expect("well formed");
        let mut events = stage.subscribe();
        if told_by_shim {
            runtime.forward(delete()).await.expect("well formed");
        }
        soon("delete", task.delete()).await.expect("ended");
        assert_eq!(told(&mut events).await, (vec![], 0));
        soon("close", runtime.close()).await;
        // From a shim that ended just after it was written.
        if !told_by_shim {
            runtime.forward(delete()).await.expect("well formed");
        }
        let none = tokio::time::timeout(Duration::from_millis(50), events.next()).await;
        assert!(none.is_err(), "told by the shim: {told_by_shim}: {none:?}");
        stage.assert_nothing_left();
    }
}

#[tokio::test]
async fn an_exit_that_was_told_is_not_told_again_before_its_task_is_found() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("c1", Manner::Good);
    soon("create", runtime.create(&stage.namespace, stage.request("c1"))).await.expect("made");
    let mut events = stage.subscribe();
    runtime.forward(exit_event("c1", 5)).await.expect("well formed");
    assert_eq!(execs_told(&mut events).await, ["c1"]);
    shim.exit(5);
    runtime.close().await;
    drop(runtime);
    let runtime = stage.runtime();
    // No turn is given to whoever looks for the shim.
    runtime.forward(exit_event("c1", 5)).await.expect("well formed");
    assert_eq!(execs_told(&mut events).await, [""; 0]);
    let task = runtime.task(&stage.namespace, "c1").expect("is there");
    assert_eq!(soon("delete", task.delete()).await.expect("ended").status, 5);
    soon("close", runtime.close()).await;
    stage.assert_nothing_left();
}

#[tokio::test]
async fn tasks_outlive_the_daemon() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shims = ["runs", "ended", "dies", "told"].map(|id| stage.shim(id, Manner::Good));
    for id in ["runs", "ended", "dies", "told"] {
        soon("create", runtime.create(&stage.namespace, stage.request(id))).await.expect("made");
    }
    runtime.forward(exit_event("told", 5)).await.expect("well formed");
    runtime.close().await;
    drop(runtime);
    shims[1].exit(4);
    shims[3].exit(5);
    shims[2].die();
    // What else may lie there.
    fs::create_dir_all(stage.bundle("half-made")).expect("made");
    fs::create_dir_all(stage.bundle(".removed/rootfs")).expect("made");
    fs::create_dir_all(stage.state().join("..odd/x")).expect("made");
    fs::write(stage.bundle("file"), "").expect("written");

    let mut events = stage.subscribe();
    let runtime = stage.runtime();
    assert_eq!(told(&mut events).await, (vec![137], 137), "of the dead one");
    let task = |id| runtime.task(&stage.namespace, id).expect("is there");
    let runs = task("runs");
    assert_eq!(soon("state", runs.state("")).await.expect("answers").status, 2);
    let kill = v3::KillRequest { id: "runs".to_owned(), signal: 15, ..Default::default() };
    soon("kill", runs.call(&kill)).await.expect("answers");
    for (id, status) in [("ended", 4), ("told", 5)] {
        assert_eq!(soon("delete", task(id).delete()).await.expect("ended").status, status);
    }
    assert_eq!(told(&mut events).await, (vec![4], 4));
    assert_eq!(told(&mut events).await, (vec![], 5), "an exit that was told is not told again");
    runtime.forward(exit_event("runs", 0)).await.expect("well formed");
    shims[0].exit(0);
    soon("delete", runs.delete()).await.expect("ended");
    assert_eq!(told(&mut events).await, (vec![0], 0));
    let none = tokio::time::timeout(Duration::from_millis(50), events.next()).await;
    assert!(none.is_err(), "{none:?}");
    soon("the end", runtime.close()).await;
    fs::remove_file(stage.bundle("file")).expect("is left alone");
    stage.assert_nothing_left();
}

#[tokio::test]
async fn a_shim_may_hand_on_its_last_events() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let shim = stage.shim("c1", Manner::Lingers);
    runtime.create(&stage.namespace, stage.request("c1")).await.expect("made");
    let task = runtime.task(&stage.namespace, "c1").expect("is there");
    shim.exit(0);
    let slow = async {
        while !shim.asked().contains(&"Shutdown".to_owned()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(SHIM_FAREWELL_MAX).await;
        shim.end()
    };
    let (deleted, by_itself) = soon("delete", async { tokio::join!(task.delete(), slow) }).await;
    deleted.expect("ended");
    assert!(by_itself, "it was killed while it may have told of the end");
    stage.assert_nothing_left();
    runtime.close().await;
}
