//! What the daemon says about itself; namespaces and leases.

use anyhow::Result;
use integration::{
    cell::{Cell, IMAGE},
    process,
};

use super::{Case, has, has_not, needs_own_client, row};

pub(crate) const CASES: &[Case] = &[
    Case { name: "version", run: version },
    Case { name: "info", run: info },
    Case { name: "plugins_ls", run: plugins },
    Case { name: "namespaces_create_ls_label_rm", run: namespaces },
    Case { name: "namespaces_are_apart", run: namespaces_are_apart },
    Case { name: "namespaces_rm_refuses_used", run: namespace_in_use },
    Case { name: "leases_create_ls_rm", run: leases },
];

fn version(cell: &mut Cell) -> Result<()> {
    let said = cell.ok(&["version"])?;
    has(&said, "Client:")?;
    has(&said, "Server:")?;
    has(&said, "Revision:")
}

fn info(cell: &mut Cell) -> Result<()> {
    needs_own_client(cell, "Debian's ctr has no `info`")?;
    cell.ok(&["info"]).map(drop)
}

fn plugins(cell: &mut Cell) -> Result<()> {
    let said = cell.ok(&["plugins", "ls"])?;
    for part in ["overlayfs", "io.containerd.grpc.v1", "ok"] {
        has(&said, part)?;
    }
    Ok(())
}

fn namespaces(cell: &mut Cell) -> Result<()> {
    cell.ok(&["namespaces", "create", "smoke", "color=blue"])?;
    has(row(&cell.ok(&["namespaces", "ls"])?, "smoke")?, "color=blue")?;
    has(&cell.refused(&["namespaces", "create", "smoke"])?, "already exists")?;
    cell.ok(&["namespaces", "label", "smoke", "color=green", "size=1"])?;
    let table = cell.ok(&["namespaces", "ls"])?;
    has(row(&table, "smoke")?, "color=green")?;
    has(row(&table, "smoke")?, "size=1")?;
    cell.ok(&["namespaces", "rm", "smoke"])?;
    has_not(&cell.ok(&["namespaces", "ls", "-q"])?, "smoke")
}

fn namespaces_are_apart(cell: &mut Cell) -> Result<()> {
    has(&cell.ok(&["images", "ls", "-q"])?, IMAGE)?;
    let words = ["images", "ls", "-q"];
    let elsewhere = process::run(&mut cell.command_at(cell.running_daemon(), "elsewhere", &words));
    has_not(&elsewhere?.ok()?, IMAGE)
}

fn namespace_in_use(cell: &mut Cell) -> Result<()> {
    let namespace = cell.namespace().to_owned();
    has(&cell.refused(&["namespaces", "rm", &namespace])?, "must be empty")
}

fn leases(cell: &mut Cell) -> Result<()> {
    let id = cell.ok(&["leases", "create", "--id", "smoke-lease", "--expires", "1h", "a=b"])?;
    has(&id, "smoke-lease")?;
    has(row(&cell.ok(&["leases", "ls"])?, "smoke-lease")?, "a=b")?;
    cell.ok(&["leases", "rm", "--sync", "smoke-lease"])?;
    has_not(&cell.ok(&["leases", "ls", "-q"])?, "smoke-lease")
}
