//! Content: list, get, ingest, label, remove.

use anyhow::Result;
use integration::{
    cell::Cell,
    image::{self, Flavour},
    process,
};

use super::{Case, has, has_not, row, same};

pub(crate) const CASES: &[Case] = &[
    Case { name: "content_ls", run: list },
    Case { name: "content_get", run: get },
    Case { name: "content_ingest_label_rm", run: ingest },
    Case { name: "content_ingest_wrong_digest", run: wrong_digest },
    Case { name: "content_get_unknown", run: unknown },
];

fn list(cell: &mut Cell) -> Result<()> {
    let image = image::busybox(Flavour::Oci)?;
    let table = cell.ok(&["content", "ls"])?;
    for blob in &image.blobs {
        row(&table, &blob.digest)?;
    }
    let config = row(&table, &image.top().digest)?;
    has(config, "containerd.io/gc.ref.content")
}

fn get(cell: &mut Cell) -> Result<()> {
    let top = image::busybox(Flavour::Oci)?.top().clone();
    let said = cell.ok(&["content", "get", &top.digest])?;
    same(said.into_bytes(), top.bytes)
}

fn ingest(cell: &mut Cell) -> Result<()> {
    let bytes = "some content\n".repeat(1000).into_bytes();
    let digest = image::digest(&bytes);
    let size = bytes.len().to_string();
    // Without a lease or a label new content is garbage, so it is labelled as it is taken in.
    let words = ["content", "ingest", "--expected-digest", &digest, "--expected-size", &size, "r"];
    process::run_with_input(&mut cell.command(&words), &bytes)?.ok()?;
    cell.ok(&["content", "label", &digest, "color=blue", "containerd.io/gc.root=1"])?;
    has(row(&cell.ok(&["content", "ls"])?, &digest)?, "color=blue")?;
    same(cell.ok(&["content", "get", &digest])?.into_bytes(), bytes)?;
    cell.ok(&["content", "rm", &digest])?;
    has_not(&cell.ok(&["content", "ls", "-q"])?, &digest)
}

fn wrong_digest(cell: &mut Cell) -> Result<()> {
    let digest = image::digest(b"something else");
    let words = ["content", "ingest", "--expected-digest", &digest, "wrong"];
    let said = process::run_with_input(&mut cell.command(&words), b"something")?.refused()?;
    has(&said, "unexpected commit digest")?;
    has_not(&cell.ok(&["content", "ls", "-q"])?, &digest)
}

fn unknown(cell: &mut Cell) -> Result<()> {
    let digest = image::digest(b"never written");
    let said = cell.refused(&["content", "get", &digest])?;
    has(&said, &digest)?;
    has(&said, "not found")
}
