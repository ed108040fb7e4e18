//! What garbage collection would remove, and why it does not. Only our daemon tells, and only our
//! client asks.

use anyhow::{Context, Result};
use integration::{
    cell::{Cell, IMAGE},
    daemon::Kind,
    image::{self, Flavour},
    process, wait,
};

use super::{Case, Skipped, has, has_not, needs_own_client, row};

pub(crate) const CASES: &[Case] = &[
    Case { name: "gc_explain_image", run: image },
    Case { name: "gc_explain_unknown", run: unknown },
    Case { name: "gc_dry_run", run: dry_run },
    Case { name: "gc_explain_leased", run: leased },
    Case { name: "gc_explain_in_use", run: in_use },
];

fn needs_words(cell: &Cell) -> Result<()> {
    needs_own_client(cell, "Debian's ctr has no words for it")?;
    if cell.choice().daemon != Kind::Gantryd {
        return Err(Skipped("containerd does not explain its garbage collection").into());
    }
    Ok(())
}

fn explain(cell: &Cell, object: &str) -> Result<String> {
    cell.ok(&["gc", "explain", object])
}

fn image(cell: &mut Cell) -> Result<()> {
    needs_words(cell)?;
    let image = image::busybox(Flavour::Oci)?;
    let top = &image.top().digest;
    has(&explain(cell, &format!("image/{IMAGE}"))?, &format!("image/{IMAGE} stays"))?;
    has(&explain(cell, top)?, &format!("-> content/{top} (target)"))?;
    let layer = &image.layers().first().context("it has a layer")?.digest;
    let said = explain(cell, layer)?;
    has(&said, &format!("content/{layer} stays"))?;
    has(&said, "label containerd.io/gc.ref.content.")?;
    has_not(&cell.ok(&["gc", "run", "--dry-run"])?, layer)
}

fn unknown(cell: &mut Cell) -> Result<()> {
    needs_words(cell)?;
    let digest = image::digest(b"never written");
    let names = ["image", "snapshot", "container", "lease", "ingest"].map(|it| format!("{it}/no"));
    for object in names.iter().chain([&digest]) {
        let said = cell.refused(&["gc", "explain", object])?;
        has(&said, &format!("object {object:?} in namespace {:?}: not found", cell.namespace()))?;
    }
    has(&cell.refused(&["gc", "explain", ""])?, "object must not be empty")
}

/// What nothing refers to is listed, and then removed.
fn dry_run(cell: &mut Cell) -> Result<()> {
    needs_words(cell)?;
    let id = cell.id();
    let digest = image::digest(id.as_bytes());
    let said = wait::until("a dry run before the daemon collects by itself", || {
        // It may be there still, and then is not written again.
        process::run_with_input(&mut cell.command(&["content", "ingest", &id]), id.as_bytes())?;
        let said = cell.ok(&["gc", "run", "--dry-run"])?;
        Ok(said.contains(&digest).then_some(said))
    })?;
    has(row(&said, cell.namespace())?, "content/")?;
    has(&said, "would be removed")?;
    cell.ok(&["gc", "run"])?;
    has_not(&cell.ok(&["content", "ls", "-q"])?, &digest)
}

/// A lease keeps a blob until it is deleted.
fn leased(cell: &mut Cell) -> Result<()> {
    needs_words(cell)?;
    let id = cell.id();
    let digest = image::digest(id.as_bytes());
    cell.ok(&["leases", "create", "--id", &id])?;
    let words = ["content", "ingest", "--lease", &id, &id];
    process::run_with_input(&mut cell.command(&words), id.as_bytes())?.ok()?;
    has(&explain(cell, &format!("lease/{id}"))?, &format!("lease/{id} stays: it expires at"))?;
    cell.ok(&["gc", "run"])?;
    let said = explain(cell, &digest)?;
    has(&said, &format!("content/{digest} stays"))?;
    has(&said, &format!("(lease {id})"))?;
    cell.ok(&["leases", "rm", &id])?;
    cell.ok(&["gc", "run"])?;
    has(&cell.refused(&["gc", "explain", &digest])?, "not found")
}

/// What a container uses stays, also without its image.
fn in_use(cell: &mut Cell) -> Result<()> {
    needs_words(cell)?;
    let (name, id) = ("gc.test/used:1", cell.id());
    cell.import(&image::layered(Flavour::Oci, "gc-1")?, name)?;
    cell.ok(&["containers", "create", name, &id, "true"])?;
    has(&explain(cell, &format!("image/{name}"))?, &format!("image/{name} stays"))?;
    cell.ok(&["images", "rm", "--sync", name])?;
    cell.ok(&["gc", "run"])?;
    has(&explain(cell, &format!("container/{id}"))?, &format!("container/{id} stays"))?;
    let table = cell.ok(&["snapshots", "ls"])?;
    let layer = row(&table, &id)?.split_whitespace().nth(1).context("it has a parent")?;
    let said = explain(cell, &format!("snapshot/overlayfs/{layer}"))?;
    has(&said, &format!("snapshot/overlayfs/{layer} stays"))?;
    has(&said, &format!("container/{id} (for its own sake)"))?;
    has(&said, &format!("-> snapshot/overlayfs/{id} (root filesystem)"))?;
    has(&said, &format!("-> snapshot/overlayfs/{layer} (parent)"))?;
    cell.ok(&["containers", "rm", &id])?;
    cell.ok(&["gc", "run"])?;
    has_not(&cell.ok(&["snapshots", "ls"])?, layer)
}
