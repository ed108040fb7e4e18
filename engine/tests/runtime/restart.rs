//! The restart monitor over fakes of shims: which exits lead to another task, and which do not.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use engine::{
    content,
    events::Exchange,
    labels::Labels,
    metadata::{self, Container},
    restart::{Monitor, Parts},
    runtime::Runtime,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    exit_event,
    fake::{FakeShim, Manner, Stage},
    soon,
};

/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3600);

/// A runtime with a monitor.
struct Watched<'s> {
    stage: &'s Stage,
    runtime: Arc<Runtime>,
    records: metadata::Store,
    monitor: Monitor,
    stop: CancellationToken,
    running: AbortOnDropHandle<()>,
}

impl<'s> Watched<'s> {
    fn start(stage: &'s Stage, records: &metadata::Store, interval: Duration) -> Self {
        let events: Exchange = stage.events.clone();
        let heard = Monitor::listen(&events);
        let runtime = Arc::new(stage.runtime());
        let content = content::Store::open(&stage.folder().join("content"), records.clone());
        let parts = Parts {
            content: content.expect("opens"),
            snapshotters: Arc::new(BTreeMap::new()),
            runtime: Arc::clone(&runtime),
            events,
        };
        let monitor = Monitor::open(parts, interval, heard).expect("opens");
        let stop = CancellationToken::new();
        let running = tokio::spawn(monitor.clone().run(stop.clone()));
        let running = AbortOnDropHandle::new(running);
        Self { stage, runtime, records: records.clone(), monitor, stop, running }
    }

    /// Makes a container with `status=running policy=always` and so on.
    fn container(&self, id: &str, text: &str) {
        let now = std::time::SystemTime::now();
        let container = Container {
            id: id.to_owned(),
            labels: labels(text),
            image: String::new(),
            runtime: metadata::Runtime { name: self.stage.request(id).runtime, options: None },
            spec: Some(prost_types::Any { type_url: String::new(), value: b"{}".to_vec() }),
            snapshotter: String::new(),
            snapshot_key: String::new(),
            created: now,
            updated: now,
            extensions: BTreeMap::new(),
            sandbox: String::new(),
        };
        let made = self.records.create_container(&self.stage.namespace, container);
        self.monitor.note(&self.stage.namespace, id, &made.expect("made").labels);
    }

    /// Changes labels as a client does.
    fn label(&self, id: &str, text: &str) {
        let mut container = self.record(id);
        container.labels.extend(labels(text));
        let mask = ["labels".to_owned()];
        let changed = self.records.update_container(&self.stage.namespace, &container, &mask);
        self.monitor.note(&self.stage.namespace, id, &changed.expect("changed").labels);
    }

    fn record(&self, id: &str) -> Container {
        self.records.container(&self.stage.namespace, id).expect("is there")
    }

    fn count(&self, id: &str) -> String {
        let count = self.record(id).labels.remove("containerd.io/restart.count");
        count.unwrap_or_default()
    }

    /// Runs a container as a client does.
    async fn run(&self, id: &str) -> Arc<FakeShim> {
        let shim = self.stage.shim(id, Manner::Good);
        let request = self.stage.request(id);
        soon("create", self.runtime.create(&self.stage.namespace, request)).await.expect("made");
        let task = self.runtime.task(&self.stage.namespace, id).expect("is there");
        soon("start", task.start("")).await.expect("started");
        shim
    }

    async fn exit(&self, id: &str, shim: &FakeShim, status: u32) {
        shim.exit(status);
        self.runtime.forward(exit_event(id, status)).await.expect("well formed");
    }

    /// Waits until `shim` has made its `n`th task, and that is started.
    async fn made(&self, shim: &FakeShim, n: usize) {
        let made = async {
            let started = || shim.asked().iter().filter(|method| *method == "Start").count();
            while started() < n {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("the restart", made).await;
        assert_eq!(shim.made(), n);
    }

    /// Waits until no restart is under way that was due, and gives the shim whose was the last.
    async fn barrier(&self) -> Arc<FakeShim> {
        self.container("barrier", "status=running");
        let shim = self.run("barrier").await;
        self.exit("barrier", &shim, 0).await;
        self.made(&shim, 2).await;
        shim
    }

    /// As when the daemon stops: tasks stay.
    async fn close(self) {
        self.stop.cancel();
        soon("the monitor's end", self.running).await.expect("no panic");
        soon("close", self.runtime.close()).await;
    }
}

fn labels(text: &str) -> Labels {
    let pairs = text.split_whitespace().filter_map(|word| word.split_once('='));
    pairs.map(|(key, value)| (format!("containerd.io/restart.{key}"), value.to_owned())).collect()
}

fn records(stage: &Stage) -> metadata::Store {
    metadata::Store::open(&stage.folder().join("metadata")).expect("opens")
}

#[tokio::test]
async fn policies() {
    let cases = [
        ("always", "status=running policy=always loguri=file:///o", 0, 2),
        ("none named", "status=running", 1, 2),
        ("unless-stopped", "status=running policy=unless-stopped", 0, 2),
        ("on-failure that failed", "status=running policy=on-failure:1", 1, 2),
        ("on-failure that ended", "status=running policy=on-failure:1", 0, 1),
        ("failed too often", "status=running policy=on-failure:1 count=1", 1, 1),
        ("no", "status=running policy=no", 1, 1),
        ("always, stopped", "status=running policy=always explicitly-stopped=true", 137, 1),
        ("on-failure, stopped", "status=running policy=on-failure explicitly-stopped=true", 1, 1),
        ("no status", "policy=always", 0, 1),
        ("a policy that is none", "status=running policy=sometimes", 0, 1),
    ];
    let stage = Stage::new();
    let watched = Watched::start(&stage, &records(&stage), NEVER);
    let mut shims = Vec::new();
    for (number, (case, labels, status, _)) in cases.iter().enumerate() {
        let id = format!("c{number}");
        watched.container(&id, labels);
        shims.push(watched.run(&id).await);
        // A change of labels alone leads to nothing yet.
        watched.label(&id, "x=y");
        assert_eq!(shims[number].made(), 1, "{case}");
        watched.exit(&id, &shims[number], *status).await;
    }
    for (shim, (_, _, _, want)) in shims.iter().zip(&cases) {
        watched.made(shim, *want).await;
    }
    watched.barrier().await;
    for ((number, shim), (case, labels, _, want)) in shims.iter().enumerate().zip(&cases) {
        assert_eq!(shim.made(), *want, "{case}");
        let before = if labels.contains("count=1") { "1" } else { "" };
        let count = if *want == 2 { "1" } else { before };
        assert_eq!(watched.count(&format!("c{number}")), count, "{case}");
    }
    let made = shims[0].made_with();
    assert_eq!((made.stdout.as_str(), made.stderr.as_str()), ("file:///o", "file:///o"));
    assert_eq!(shims[1].made_with().stdout, "", "output goes nowhere without a label");
    // The second failure is one too many.
    watched.exit("c3", &shims[3], 1).await;
    watched.exit("c1", &shims[1], 1).await;
    watched.made(&shims[1], 3).await;
    assert_eq!(shims[3].made(), 2);
    watched.close().await;
}

#[tokio::test]
async fn a_task_that_a_client_deletes_is_left_to_the_client() {
    let stage = Stage::new();
    let watched = Watched::start(&stage, &records(&stage), NEVER);
    watched.container("c1", "status=running");
    let shim = watched.run("c1").await;
    shim.exit(0);
    let task = watched.runtime.task(&stage.namespace, "c1").expect("is there");
    soon("delete", task.delete()).await.expect("ended");
    watched.runtime.forward(exit_event("c1", 0)).await.expect("well formed");
    watched.barrier().await;
    assert_eq!(shim.made(), 1);
    watched.close().await;
}

#[tokio::test]
async fn a_container_is_made_what_its_labels_ask() {
    let stage = Stage::new();
    let watched = Watched::start(&stage, &records(&stage), Duration::from_millis(50));
    let shim = stage.shim("c1", Manner::Good);
    watched.container("c1", "status=running");
    watched.made(&shim, 1).await;
    watched.label("c1", "status=stopped");
    let gone = async {
        while watched.runtime.task(&stage.namespace, "c1").is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("the stop", gone).await;
    assert!(shim.asked().contains(&"Kill".to_owned()));
    watched.label("c1", "status=running");
    watched.made(&shim, 2).await;
    // A start that fails is tried again.
    shim.behave(Manner::CreateFails);
    watched.exit("c1", &shim, 0).await;
    let failed = async {
        while shim.made() < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("two more tries", failed).await;
    shim.behave(Manner::Good);
    let again = async {
        while shim.asked().iter().filter(|method| *method == "Start").count() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("the restart", again).await;
    watched.close().await;
}

#[tokio::test]
async fn a_restart_that_a_daemon_was_killed_in_is_done_by_the_next() {
    let stage = Stage::new();
    let records = records(&stage);
    let watched = Watched::start(&stage, &records, NEVER);
    // The old task is deleted, and the daemon killed before it has made the new one.
    watched.container("c1", "status=running policy=on-failure:1 count=1 pending=true");
    watched.container("c2", "status=running policy=on-failure:1 count=1");
    watched.close().await;
    let shims = ["c1", "c2"].map(|id| stage.shim(id, Manner::Good));
    let watched = Watched::start(&stage, &records, NEVER);
    watched.made(&shims[0], 1).await;
    let last = watched.barrier().await;
    assert_eq!(watched.record("c1").labels, labels("status=running policy=on-failure:1 count=1"));
    assert_eq!(shims[1].made(), 0, "nothing says that it failed");
    // It was the only try.
    watched.exit("c1", &shims[0], 1).await;
    watched.exit("barrier", &last, 1).await;
    watched.made(&last, 3).await;
    assert_eq!(shims[0].made(), 1);
    watched.close().await;
}

#[tokio::test]
async fn a_restart_that_failed_is_tried_again_by_the_next_daemon() {
    let cases = [("c1", "on-failure", 1), ("c2", "on-failure:1", 0)];
    let stage = Stage::new();
    let records = records(&stage);
    let watched = Watched::start(&stage, &records, NEVER);
    for (id, policy, _) in cases {
        watched.container(id, &format!("status=running policy={policy}"));
        let shim = watched.run(id).await;
        shim.behave(Manner::CreateFails);
        watched.exit(id, &shim, 1).await;
        let pending = || watched.record(id).labels.remove("containerd.io/restart.pending");
        let failed = async {
            while pending().is_none_or(|pending| pending != "failed") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("the failure", failed).await;
    }
    watched.close().await;
    let shims = cases.map(|(id, _, _)| stage.shim(id, Manner::Good));
    let watched = Watched::start(&stage, &records, NEVER);
    watched.made(&shims[0], 1).await;
    watched.barrier().await;
    for ((id, _, want), shim) in cases.iter().zip(&shims) {
        assert_eq!(shim.made(), *want, "{id}");
        let labels = watched.record(id).labels;
        assert!(!labels.contains_key("containerd.io/restart.pending"), "{id}: {labels:?}");
    }
    assert_eq!(watched.count("c2"), "1");
    watched.close().await;
}

#[tokio::test]
async fn a_stop_over_starts_of_the_daemon() {
    let cases = [
        ("always", "status=running policy=always", 2),
        ("always-stopped", "status=running policy=always explicitly-stopped=true", 2),
        ("unless-stopped", "status=running policy=unless-stopped", 2),
        (
            "unless-stopped-stopped",
            "status=running policy=unless-stopped explicitly-stopped=true",
            1,
        ),
        ("on-failure-failed", "status=running policy=on-failure", 2),
        ("no", "status=running policy=no", 1),
    ];
    let stage = Stage::new();
    let records = records(&stage);
    let watched = Watched::start(&stage, &records, NEVER);
    let mut shims = Vec::new();
    for (id, labels, _) in &cases {
        watched.container(id, labels);
        shims.push(watched.run(id).await);
    }
    watched.close().await;
    for shim in &shims {
        shim.exit(1);
    }
    let watched = Watched::start(&stage, &records, NEVER);
    for (shim, (_, _, want)) in shims.iter().zip(&cases) {
        watched.made(shim, *want).await;
    }
    watched.barrier().await;
    for (shim, (case, _, want)) in shims.iter().zip(&cases) {
        assert_eq!(shim.made(), *want, "{case}");
    }
    let key = "containerd.io/restart.explicitly-stopped";
    assert_eq!(watched.record("always-stopped").labels.get(key).map(String::as_str), Some("false"));
    watched.close().await;
}
