//! Content and leases.

use integration::image;
use prost::Message;
use proto::containerd::services::{
    content::v1::{
        AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest,
        ListContentResponse, ReadContentRequest, ReadContentResponse, StatusRequest, UpdateRequest,
        WriteAction, WriteContentRequest, WriteContentResponse,
    },
    leases::v1::{
        AddResourceRequest, CreateRequest, DeleteRequest, DeleteResourceRequest, ListRequest,
        ListResourcesRequest, ListResourcesResponse, ListResponse, Resource,
    },
};

use crate::{
    Row,
    objects::{digest, labels, mask},
};

/// The label of what is not to be collected as garbage in the middle of the table.
const KEPT: (&str, &str) = ("containerd.io/gc.root", "x");

pub(crate) const WRITE: &str = "/containerd.services.content.v1.Content/Write";

pub(crate) fn rows() -> Vec<Row> {
    [writes(), content(), blobs(), leases(), resources()].into_iter().flatten().collect()
}

pub(crate) fn write(reference: &str, action: WriteAction, data: &[u8]) -> WriteContentRequest {
    WriteContentRequest {
        r#ref: reference.to_owned(),
        action: action.into(),
        data: data.to_vec().into(),
        ..WriteContentRequest::default()
    }
}

pub(crate) fn commit(
    reference: &str,
    data: &[u8],
    total: i64,
    expected: &str,
) -> WriteContentRequest {
    WriteContentRequest {
        labels: labels(&[KEPT]),
        total,
        expected: expected.to_owned(),
        ..write(reference, WriteAction::Commit, data)
    }
}

/// The action, the offset and the digest.
pub(crate) fn written(bytes: &[u8]) -> String {
    let it = WriteContentResponse::decode(bytes).expect("an answer to a write");
    format!("{} {} {} {}", it.action, it.offset, it.total, it.digest)
}

fn writes() -> Vec<Row> {
    use WriteAction::{Stat, Write};
    let row = |call, message: &WriteContentRequest| Row::new(call, WRITE, message).showing(written);
    let hello = image::digest(b"hello");
    let expecting = |reference: &str, expected: &str, total| WriteContentRequest {
        expected: expected.to_owned(),
        total,
        ..write(reference, Stat, b"")
    };
    vec![
        row("content: write without a ref", &write("", Stat, b"")),
        row("content: write", &write("r1", Write, b"hello")),
        row("content: go on with a write", &write("r1", Stat, b"")),
        row(
            "content: write at an offset that is not its end",
            &WriteContentRequest { offset: 9, ..write("r1", Write, b"x") },
        ),
        row(
            "content: write again from the start",
            &WriteContentRequest { offset: 0, ..write("r1", Write, b"hello") },
        ),
        row("content: commit with another size", &commit("r1", b"", 4, "")),
        row("content: commit with another digest", &commit("r1", b"", 0, &digest())),
        row("content: commit", &commit("r1", b"", 5, &hello)),
        row("content: commit again", &commit("r1", b"hello", 5, &hello)),
        row("content: begin what is there", &expecting("r2", &hello, 5)),
        row("content: begin what another namespace has", &expecting("r2", &hello, 5))
            .of(Some("two")),
        row("content: commit what another namespace has", &expecting("r2", &hello, 5))
            .then(&commit("r2", b"", 5, &hello))
            .of(Some("two")),
        row("content: another total", &WriteContentRequest { total: 7, ..write("r3", Stat, b"") })
            .then(&WriteContentRequest { total: 8, ..write("r3", Stat, b"") }),
        row("content: another ref in a write", &write("r4", Stat, b""))
            .then(&write("r5", Stat, b"")),
        row(
            "content: an unknown action",
            &WriteContentRequest { action: 9, ..write("r6", Stat, b"") },
        ),
        row(
            "content: commit with a long label",
            &WriteContentRequest {
                labels: labels(&[("k", &"v".repeat(4096))]),
                ..commit("r7", b"seven", 5, "")
            },
        ),
        row(
            "content: write and commit at once",
            &WriteContentRequest {
                labels: labels(&[("key", "one"), KEPT]),
                ..commit("r8", b"eight", 5, "")
            },
        ),
    ]
}

fn content() -> Vec<Row> {
    const INFO: &str = "/containerd.services.content.v1.Content/Info";
    const UPDATE: &str = "/containerd.services.content.v1.Content/Update";
    const LIST: &str = "/containerd.services.content.v1.Content/List";
    let hello = image::digest(b"hello");
    let info = |call, digest: &str| {
        Row::new(call, INFO, &InfoRequest { digest: digest.to_owned() }).showing(|bytes| {
            let it = InfoResponse::decode(bytes).expect("an answer").info.expect("is there");
            format!("{} {} {:?}", it.digest, it.size, it.labels)
        })
    };
    let update = |call, digest: &str, pairs: &[(&str, &str)], paths: &[&str]| {
        let info = Info { digest: digest.to_owned(), labels: labels(pairs), ..Info::default() };
        let update_mask = if paths.is_empty() { None } else { mask(paths) };
        Row::new(call, UPDATE, &UpdateRequest { info: Some(info), update_mask })
    };
    let list = |call, filters: &[&str]| {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        Row::new(call, LIST, &ListContentRequest { filters }).showing(|bytes| {
            let it = ListContentResponse::decode(bytes).expect("a list");
            format!("{:?}", it.info.iter().map(|it| &it.digest).collect::<Vec<_>>())
        })
    };
    vec![
        info("content: info", &hello),
        info("content: info of what is not there", &digest()),
        info("content: info of no digest", "x"),
        info("content: info without a digest", ""),
        info("content: info in a namespace that is not there", &hello).of(Some("nowhere")),
        update("content: update a label", &hello, &[("a", "1")], &["labels.a"]),
        update("content: update labels", &hello, &[("b", "2"), KEPT], &["labels"]),
        update("content: update all", &hello, &[("c", "3"), KEPT], &[]),
        info("content: info after updates", &hello),
        update("content: update its digest", &hello, &[], &["digest"]),
        update("content: update its size", &hello, &[], &["size"]),
        update(
            "content: update with a long label",
            &hello,
            &[("k", &"v".repeat(4096))],
            &["labels.k"],
        ),
        update("content: update what is not there", &digest(), &[], &["labels.a"]),
        update("content: update no digest", "x", &[], &[]),
        list("content: list", &[]),
        list("content: list by label", &["labels.key==one"]),
        list("content: list by digest", &[&format!("digest=={hello}")]),
        list("content: list by size", &["size==5"]),
        list("content: list by a broken filter", &["digest"]),
        list("content: list by another broken filter", &["digest=="]),
    ]
}

fn blobs() -> Vec<Row> {
    const DELETE: &str = "/containerd.services.content.v1.Content/Delete";
    const READ: &str = "/containerd.services.content.v1.Content/Read";
    const STATUS: &str = "/containerd.services.content.v1.Content/Status";
    const ABORT: &str = "/containerd.services.content.v1.Content/Abort";
    let hello = image::digest(b"hello");
    let delete = |call, digest: &str| {
        Row::new(call, DELETE, &DeleteContentRequest { digest: digest.to_owned() })
    };
    let read = |call, digest: &str, offset, size| {
        let read = ReadContentRequest { digest: digest.to_owned(), offset, size };
        Row::new(call, READ, &read).showing(|bytes| {
            let it = ReadContentResponse::decode(bytes).expect("bytes");
            format!("{} {:?}", it.offset, it.data)
        })
    };
    let status =
        |call, name: &str| Row::new(call, STATUS, &StatusRequest { r#ref: name.to_owned() });
    let abort = |call, name: &str| Row::new(call, ABORT, &AbortRequest { r#ref: name.to_owned() });
    vec![
        read("content: read", &hello, 0, 0),
        read("content: read a part", &hello, 1, 3),
        read("content: read past the end", &hello, 6, 0),
        read("content: read too much", &hello, 0, 6),
        read("content: read at the end", &hello, 5, 0),
        read("content: read before the start", &hello, -1, 0),
        read("content: read what is not there", &digest(), 0, 0),
        read("content: read no digest", "x", 0, 0),
        status("content: status of what is not there", "none"),
        status("content: status without a ref", ""),
        abort("content: abort what is not there", "none"),
        abort("content: abort without a ref", ""),
        delete("content: delete", &hello),
        delete("content: delete again", &hello),
        delete("content: delete no digest", "x"),
        read("content: read what another namespace has", &hello, 0, 0).of(Some("two")),
    ]
}

fn leases() -> Vec<Row> {
    const CREATE: &str = "/containerd.services.leases.v1.Leases/Create";
    const LIST: &str = "/containerd.services.leases.v1.Leases/List";
    const DELETE: &str = "/containerd.services.leases.v1.Leases/Delete";
    let create = |call, id: &str, pairs: &[(&str, &str)]| {
        Row::new(call, CREATE, &CreateRequest { id: id.to_owned(), labels: labels(pairs) })
    };
    let list = |call, filters: &[&str]| {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        Row::new(call, LIST, &ListRequest { filters }).showing(|bytes| {
            let it = ListResponse::decode(bytes).expect("a list");
            format!("{:?}", it.leases.iter().map(|it| (&it.id, &it.labels)).collect::<Vec<_>>())
        })
    };
    let delete =
        |call, id: &str| Row::new(call, DELETE, &DeleteRequest { id: id.to_owned(), sync: false });
    vec![
        create("lease: create", "l1", &[("key", "one")]),
        create("lease: create again", "l1", &[]),
        create("lease: create another", "l2", &[("containerd.io/gc.flat", "x")]),
        create("lease: create with a slash", "a/b", &[]),
        create("lease: create with a long label", "long", &[("k", &"v".repeat(4096))]),
        list("lease: list", &[]),
        list("lease: list by id", &["id==l1"]),
        list("lease: list by label", &["labels.key==one"]),
        list("lease: list by a broken filter", &["id=="]),
        delete("lease: delete", "l2"),
        delete("lease: delete again", "l2"),
        delete("lease: delete without an id", ""),
        delete("lease: delete in a namespace that is not there", "l").of(Some("nowhere")),
    ]
}

fn resources() -> Vec<Row> {
    const ADD: &str = "/containerd.services.leases.v1.Leases/AddResource";
    const REMOVE: &str = "/containerd.services.leases.v1.Leases/DeleteResource";
    const LIST: &str = "/containerd.services.leases.v1.Leases/ListResources";
    let resource =
        |kind: &str, id: &str| Some(Resource { r#type: kind.to_owned(), id: id.to_owned() });
    let add = |call, lease: &str, kind: &str, id: &str| {
        let add = AddResourceRequest { id: lease.to_owned(), resource: resource(kind, id) };
        Row::new(call, ADD, &add)
    };
    let remove = |call, lease: &str, kind: &str, id: &str| {
        let remove = DeleteResourceRequest { id: lease.to_owned(), resource: resource(kind, id) };
        Row::new(call, REMOVE, &remove)
    };
    let list = |call, lease: &str| {
        Row::new(call, LIST, &ListResourcesRequest { id: lease.to_owned() }).showing(|bytes| {
            let it = ListResourcesResponse::decode(bytes).expect("a list");
            let mut found: Vec<_> = it.resources.iter().map(|it| (&it.r#type, &it.id)).collect();
            found.sort();
            format!("{found:?}")
        })
    };
    vec![
        add("lease: hold content", "l1", "content", &digest()),
        add("lease: hold it again", "l1", "content", &digest()),
        add("lease: hold a snapshot", "l1", "snapshots/overlayfs", "key"),
        add("lease: hold an ingest", "l1", "ingests", "ref"),
        add("lease: hold no digest", "l1", "content", "x"),
        add("lease: hold an unknown type", "l1", "bogus", "x"),
        add("lease: hold content/x", "l1", "content/x", &digest()),
        add("lease: hold snapshots", "l1", "snapshots", "x"),
        add("lease: hold snapshots/a/b", "l1", "snapshots/a/b", "x"),
        add("lease: hold for one that is not there", "none", "content", &digest()),
        list("lease: list what is held", "l1"),
        list("lease: list what is held by none", "none"),
        remove("lease: let go", "l1", "ingests", "ref"),
        remove("lease: let go again", "l1", "ingests", "ref"),
        remove("lease: let go of an unknown type", "l1", "bogus", "x"),
        remove("lease: let go for one that is not there", "none", "content", &digest()),
        list("lease: list what is still held", "l1"),
    ]
}
