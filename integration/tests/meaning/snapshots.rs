//! Snapshots.

use prost::Message;
use proto::containerd::services::snapshots::v1::{
    CommitSnapshotRequest, Info, ListSnapshotsRequest, ListSnapshotsResponse, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse,
    UpdateSnapshotRequest, UsageRequest, ViewSnapshotRequest,
};

use crate::{
    Row,
    objects::{labels, mask},
};

/// The snapshotter that every machine can have.
const NATIVE: &str = "native";

pub(crate) fn rows() -> Vec<Row> {
    [made(), looked_at(), changed()].into_iter().flatten().collect()
}

fn prepare(call: &'static str, key: &str, parent: &str) -> Row {
    const PREPARE: &str = "/containerd.services.snapshots.v1.Snapshots/Prepare";
    let prepare = PrepareSnapshotRequest {
        snapshotter: NATIVE.to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
        labels: labels(&[("containerd.io/gc.root", "x")]),
    };
    Row::new(call, PREPARE, &prepare)
}

fn commit(call: &'static str, name: &str, key: &str) -> Row {
    const COMMIT: &str = "/containerd.services.snapshots.v1.Snapshots/Commit";
    let commit = CommitSnapshotRequest {
        snapshotter: NATIVE.to_owned(),
        name: name.to_owned(),
        key: key.to_owned(),
        labels: labels(&[("containerd.io/gc.root", "x")]),
        ..CommitSnapshotRequest::default()
    };
    Row::new(call, COMMIT, &commit)
}

fn view(call: &'static str, key: &str, parent: &str) -> Row {
    const VIEW: &str = "/containerd.services.snapshots.v1.Snapshots/View";
    let view = ViewSnapshotRequest {
        snapshotter: NATIVE.to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
        labels: labels(&[("containerd.io/gc.root", "x")]),
    };
    Row::new(call, VIEW, &view)
}

fn remove(call: &'static str, key: &str) -> Row {
    const REMOVE: &str = "/containerd.services.snapshots.v1.Snapshots/Remove";
    let remove = RemoveSnapshotRequest { snapshotter: NATIVE.to_owned(), key: key.to_owned() };
    Row::new(call, REMOVE, &remove)
}

fn made() -> Vec<Row> {
    const PREPARE: &str = "/containerd.services.snapshots.v1.Snapshots/Prepare";
    let unknown = PrepareSnapshotRequest {
        snapshotter: "bogus".to_owned(),
        key: "x".to_owned(),
        ..PrepareSnapshotRequest::default()
    };
    vec![
        Row::new("snapshot: prepare on an unknown snapshotter", PREPARE, &unknown),
        prepare("snapshot: prepare", "a1", ""),
        prepare("snapshot: prepare again", "a1", ""),
        prepare("snapshot: prepare on what is not there", "a2", "none"),
        prepare("snapshot: prepare on an active one", "a2", "a1"),
        prepare("snapshot: prepare without a key", "", ""),
        commit("snapshot: commit what is not there", "c1", "none"),
        commit("snapshot: commit", "c1", "a1"),
        commit("snapshot: commit again", "c2", "a1"),
        prepare("snapshot: prepare on a committed one", "a2", "c1"),
        commit("snapshot: commit under a name that is taken", "c1", "a2"),
        commit("snapshot: commit a committed one", "c3", "c1"),
        commit("snapshot: commit without a name", "", "a2"),
        prepare("snapshot: prepare the name of a committed one", "c1", ""),
        view("snapshot: view", "v1", "c1"),
        view("snapshot: view again", "v1", "c1"),
        view("snapshot: view of an active one", "v2", "a2"),
        view("snapshot: view of what is not there", "v2", "none"),
        prepare("snapshot: prepare on another namespace's", "a3", "c1").of(Some("two")),
    ]
}

fn looked_at() -> Vec<Row> {
    const STAT: &str = "/containerd.services.snapshots.v1.Snapshots/Stat";
    const LIST: &str = "/containerd.services.snapshots.v1.Snapshots/List";
    const MOUNTS: &str = "/containerd.services.snapshots.v1.Snapshots/Mounts";
    const USAGE: &str = "/containerd.services.snapshots.v1.Snapshots/Usage";
    let stat = |call, key: &str| {
        let stat = StatSnapshotRequest { snapshotter: NATIVE.to_owned(), key: key.to_owned() };
        Row::new(call, STAT, &stat).showing(|bytes| {
            let it = StatSnapshotResponse::decode(bytes).expect("an answer").info;
            let it = it.expect("is there");
            format!("{} {:?} {} {:?}", it.name, it.parent, it.kind, it.labels)
        })
    };
    let list = |call, filters: &[&str]| {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let list = ListSnapshotsRequest { snapshotter: NATIVE.to_owned(), filters };
        Row::new(call, LIST, &list).showing(|bytes| {
            let it = ListSnapshotsResponse::decode(bytes).expect("a list");
            format!("{:?}", it.info.iter().map(|it| &it.name).collect::<Vec<_>>())
        })
    };
    let mounts = |call, key: &str| {
        let mounts = MountsRequest { snapshotter: NATIVE.to_owned(), key: key.to_owned() };
        Row::new(call, MOUNTS, &mounts)
    };
    let usage = |call, key: &str| {
        let usage = UsageRequest { snapshotter: NATIVE.to_owned(), key: key.to_owned() };
        Row::new(call, USAGE, &usage)
    };
    vec![
        stat("snapshot: stat", "a2"),
        stat("snapshot: stat a committed one", "c1"),
        stat("snapshot: stat a view", "v1"),
        stat("snapshot: stat what is not there", "none"),
        stat("snapshot: stat without a key", ""),
        stat("snapshot: stat in a namespace that is not there", "c1").of(Some("nowhere")),
        list("snapshot: list", &[]),
        list("snapshot: list by kind", &["kind==committed"]),
        list("snapshot: list by parent", &["parent==c1"]),
        list("snapshot: list by name", &["name==a2"]),
        list("snapshot: list by a broken filter", &["name=="]),
        mounts("snapshot: mounts", "a2"),
        mounts("snapshot: mounts of a committed one", "c1"),
        mounts("snapshot: mounts of what is not there", "none"),
        usage("snapshot: usage", "a2"),
        usage("snapshot: usage of what is not there", "none"),
    ]
}

fn changed() -> Vec<Row> {
    const UPDATE: &str = "/containerd.services.snapshots.v1.Snapshots/Update";
    let update = |call, name: &str, pairs: &[(&str, &str)], paths: &[&str]| {
        let info = Info { name: name.to_owned(), labels: labels(pairs), ..Info::default() };
        let update_mask = if paths.is_empty() { None } else { mask(paths) };
        let snapshotter = NATIVE.to_owned();
        Row::new(
            call,
            UPDATE,
            &UpdateSnapshotRequest { snapshotter, info: Some(info), update_mask },
        )
    };
    vec![
        update("snapshot: update a label", "a2", &[("a", "1")], &["labels.a"]),
        update(
            "snapshot: update labels",
            "v1",
            &[("b", "2"), ("containerd.io/gc.root", "x")],
            &["labels"],
        ),
        update("snapshot: update its parent", "a2", &[], &["parent"]),
        update("snapshot: update its name", "a2", &[], &["name"]),
        update(
            "snapshot: update with a long label",
            "a2",
            &[("k", &"v".repeat(4096))],
            &["labels.k"],
        ),
        update("snapshot: update what is not there", "none", &[("a", "1")], &["labels.a"]),
        remove("snapshot: remove one with children", "c1"),
        remove("snapshot: remove what is not there", "none"),
        remove("snapshot: remove without a key", ""),
        remove("snapshot: remove a view", "v1"),
        remove("snapshot: remove an active one", "a2"),
        remove("snapshot: remove a committed one", "c1"),
        remove("snapshot: remove again", "c1"),
    ]
}
