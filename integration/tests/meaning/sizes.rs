//! Messages of many megabytes: the limits are 16 MiB each way.

use prost::Message;
use proto::containerd::services::{
    containers::v1::{
        Container, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest,
        GetContainerResponse, ListContainerMessage, ListContainersRequest, ListContainersResponse,
    },
    content::v1::{WriteAction, WriteContentRequest},
};

use crate::{
    Row,
    objects::{container, labels},
    stores::{WRITE, commit, write, written},
};

/// Of its own, so that lists are of these.
const NAMESPACE: Option<&str> = Some("large");

pub(crate) fn rows() -> Vec<Row> {
    [writes(), containers()].into_iter().flatten().collect()
}

fn writes() -> Vec<Row> {
    use WriteAction::{Stat, Write};
    let row = |call, message: &WriteContentRequest| {
        Row::new(call, WRITE, message).showing(written).of(NAMESPACE)
    };
    let data = |megabytes: usize| vec![b'x'; megabytes << 20];
    vec![
        row("size: write 5 MiB", &write("r1", Write, &data(5))),
        row("size: go on with them", &write("r1", Stat, b"")),
        row("size: write and commit 15 MiB", &commit("r2", &data(15), 15 << 20, "")),
        row("size: write 17 MiB", &write("r3", Write, &data(17))),
        row("size: write 17 MiB to what was begun", &write("r4", Stat, b"")).then(&write(
            "r4",
            Write,
            &data(17),
        )),
    ]
}

fn containers() -> Vec<Row> {
    const CREATE: &str = "/containerd.services.containers.v1.Containers/Create";
    const GET: &str = "/containerd.services.containers.v1.Containers/Get";
    const LIST: &str = "/containerd.services.containers.v1.Containers/List";
    const LIST_STREAM: &str = "/containerd.services.containers.v1.Containers/ListStream";
    const DELETE: &str = "/containerd.services.containers.v1.Containers/Delete";
    let create = |call, id: &str, megabytes: usize| {
        let mut container: Container = container(id);
        container.labels = labels(&[("key", "large")]);
        if let Some(spec) = &mut container.spec {
            spec.value = vec![b'x'; megabytes << 20];
        }
        Row::new(call, CREATE, &CreateContainerRequest { container: Some(container) }).of(NAMESPACE)
    };
    let get = |call, id: &str| {
        Row::new(call, GET, &GetContainerRequest { id: id.to_owned() }).of(NAMESPACE).showing(
            |bytes| {
                let found = GetContainerResponse::decode(bytes).expect("an answer").container;
                size(found.as_ref())
            },
        )
    };
    let list = |call, filter: &str| {
        let filters = vec![filter.to_owned()];
        let row = Row::new(call, LIST, &ListContainersRequest { filters }).of(NAMESPACE);
        row.telling(in_kibibytes).showing(|bytes| {
            let found = ListContainersResponse::decode(bytes).expect("a list").containers;
            found.iter().map(|it| size(Some(it))).collect::<Vec<_>>().join(" ")
        })
    };
    let stream = |call| {
        let filters = Vec::new();
        Row::new(call, LIST_STREAM, &ListContainersRequest { filters }).of(NAMESPACE).showing(
            |bytes| {
                let found = ListContainerMessage::decode(bytes).expect("one of a list").container;
                size(found.as_ref())
            },
        )
    };
    let delete = |call, id: &str| {
        Row::new(call, DELETE, &DeleteContainerRequest { id: id.to_owned() }).of(NAMESPACE)
    };
    vec![
        create("size: create a container of 15 MiB", "c1", 15),
        get("size: get a container of 15 MiB", "c1"),
        create("size: create a container of 17 MiB", "c2", 17),
        get("size: get a container of 17 MiB", "c2"),
        create("size: create a container of 5 MiB", "c3", 5),
        list("size: list 15 MiB", "id==c1"),
        list("size: list 20 MiB", "id"),
        list("size: list 20 MiB by a label", "labels.key==large"),
        stream("size: stream a list of 20 MiB"),
        delete("size: delete a container of 15 MiB", "c1"),
        delete("size: delete a container of 5 MiB", "c3"),
    ]
}

/// Rounds the size of a message that is too large: times in it take a few bytes more or less.
fn in_kibibytes(told: String) -> String {
    let number =
        told.split_once("larger than max (").and_then(|(_, rest)| rest.split_once(" vs. "));
    let Some((number, _)) = number else { return told };
    let Ok(bytes) = number.parse::<u64>() else { return told };
    told.replace(number, &format!("{} KiB", bytes >> 10))
}

fn size(container: Option<&Container>) -> String {
    let Some(container) = container else { return "none".to_owned() };
    let len = container.spec.as_ref().map_or(0, |spec| spec.value.len());
    format!("{} {len}", container.id)
}
