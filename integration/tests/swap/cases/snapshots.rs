//! Snapshots: list, info, prepare, view, mounts, commit, remove, usage, tree.

use anyhow::{Context, Result};
use integration::cell::Cell;

use super::{Case, has, has_not, row};

pub(crate) const CASES: &[Case] = &[
    Case { name: "snapshots_ls_info", run: list },
    Case { name: "snapshots_prepare_commit_view_rm", run: lifecycle },
    Case { name: "snapshots_native", run: native },
    Case { name: "snapshots_usage_tree", run: usage },
    Case { name: "snapshots_unknown", run: unknown },
];

fn list(cell: &mut Cell) -> Result<()> {
    let top = committed(cell)?;
    let info = cell.ok(&["snapshots", "info", &top])?;
    for part in ["\"Kind\": \"Committed\"", "\"Parent\": \"sha256:", &top] {
        has(&info, part)?;
    }
    Ok(())
}

fn lifecycle(cell: &mut Cell) -> Result<()> {
    let top = committed(cell)?;
    let target = cell.file("target").display().to_string();
    let said = cell.ok(&["snapshots", "prepare", "--target", &target, "key", &top])?;
    has(&said, &target)?;
    has(&said, "upperdir=")?;
    has(&cell.refused(&["snapshots", "prepare", "key", &top])?, "already exists")?;
    has(&cell.ok(&["snapshots", "mounts", &target, "key"])?, "mount -t overlay")?;
    has(row(&cell.ok(&["snapshots", "ls"])?, "key")?, "Active")?;
    cell.ok(&["snapshots", "commit", "name", "key"])?;
    has(row(&cell.ok(&["snapshots", "ls"])?, "name")?, "Committed")?;
    has(&cell.refused(&["snapshots", "info", "key"])?, "not found")?;
    let view = cell.ok(&["snapshots", "view", "--target", &target, "look", "name"])?;
    has_not(&view, "upperdir=")?;
    // Nothing keeps a view that Debian's ctr has made, and a collection may be due.
    cell.ok(&["snapshots", "label", "look", "containerd.io/gc.root=now"])?;
    let said = cell.refused(&["snapshots", "rm", "name"])?;
    has(&said, "cannot remove snapshot with child")?;
    cell.ok(&["snapshots", "rm", "look"])?;
    cell.ok(&["snapshots", "rm", "name"])?;
    has_not(&cell.ok(&["snapshots", "ls"])?, "name ")
}

fn native(cell: &mut Cell) -> Result<()> {
    let flags = ["snapshots", "--snapshotter", "native"];
    let said = cell.ok(&[&flags[..], &["prepare", "--target", "/mnt", "plain"]].concat())?;
    has(&said, "mount -t bind")?;
    cell.ok(&[&flags[..], &["rm", "plain"]].concat()).map(drop)
}

fn usage(cell: &mut Cell) -> Result<()> {
    let top = committed(cell)?;
    let table = cell.ok(&["snapshots", "usage"])?;
    has(row(&table, &top)?, "KiB")?;
    has(&cell.ok(&["snapshots", "tree"])?, &format!("  \\_ {top}"))
}

fn unknown(cell: &mut Cell) -> Result<()> {
    has(&cell.refused(&["snapshots", "info", "nothing"])?, "not found")?;
    has(&cell.refused(&["snapshots", "prepare", "key", "nothing"])?, "not found")?;
    has(&cell.refused(&["snapshots", "rm", "nothing"])?, "not found")
}

/// The topmost snapshot of the image: the committed one that has a parent.
fn committed(cell: &Cell) -> Result<String> {
    let table = cell.ok(&["snapshots", "ls"])?;
    let line = table.lines().find(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        matches!(words.as_slice(), [_, parent, "Committed"] if parent.starts_with("sha256:"))
    });
    let key = line.and_then(|line| line.split_whitespace().next());
    Ok(key.with_context(|| format!("no snapshot of two layers in {table:?}"))?.to_owned())
}
