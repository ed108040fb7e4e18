//! Containers as records: create, list, info, label, remove.

use anyhow::Result;
use integration::cell::{Cell, IMAGE};

use super::{Case, has, has_not, row};

pub(crate) const CASES: &[Case] = &[
    Case { name: "containers_create_ls_rm", run: create },
    Case { name: "containers_info", run: info },
    Case { name: "containers_label", run: label },
    Case { name: "containers_create_twice", run: twice },
    Case { name: "containers_rm_running", run: running },
];

fn create(cell: &mut Cell) -> Result<()> {
    let id = cell.id();
    cell.ok(&["containers", "create", "--label", "a=b", IMAGE, &id, "true"])?;
    let table = cell.ok(&["containers", "ls"])?;
    has(row(&table, &id)?, IMAGE)?;
    has(row(&table, &id)?, "io.containerd.runc.v2")?;
    has(&cell.ok(&["containers", "ls", "-q", "labels.a==b"])?, &id)?;
    has_not(&cell.ok(&["containers", "ls", "-q", "labels.a==c"])?, &id)?;
    cell.ok(&["containers", "rm", &id])?;
    has_not(&cell.ok(&["containers", "ls", "-q"])?, &id)?;
    has_not(&cell.ok(&["snapshots", "ls"])?, &format!("{id} "))
}

fn info(cell: &mut Cell) -> Result<()> {
    let id = cell.id();
    cell.ok(&["containers", "create", "--env", "A=B", IMAGE, &id, "echo", "it"])?;
    let said = cell.ok(&["containers", "info", &id])?;
    let value: serde_json::Value = serde_json::from_str(&said)?;
    cell.ok(&["containers", "rm", &id])?;
    has(&value["Spec"]["process"]["args"].to_string(), r#"["echo","it"]"#)?;
    has(&value["Spec"]["process"]["env"].to_string(), "A=B")?;
    has(&value["Spec"]["process"]["env"].to_string(), "FROM_IMAGE=yes")?;
    has(&value["Image"].to_string(), IMAGE)?;
    has(&value["Runtime"]["Name"].to_string(), "io.containerd.runc.v2")
}

fn label(cell: &mut Cell) -> Result<()> {
    let id = cell.id();
    cell.ok(&["containers", "create", IMAGE, &id, "true"])?;
    cell.ok(&["containers", "label", &id, "color=blue"])?;
    let listed = cell.ok(&["containers", "ls", "-q", "labels.color==blue"])?;
    cell.ok(&["containers", "rm", &id])?;
    has(&listed, &id)
}

fn twice(cell: &mut Cell) -> Result<()> {
    let id = cell.id();
    cell.ok(&["containers", "create", IMAGE, &id, "true"])?;
    let said = cell.refused(&["containers", "create", IMAGE, &id, "true"])?;
    cell.ok(&["containers", "rm", &id])?;
    has(&said, &id)?;
    has(&said, "already exists")
}

fn running(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    let said = cell.refused(&["containers", "rm", &id])?;
    cell.remove(&id)?;
    has(&said, "stopped")
}
