//! Events: which, and in which order.

use anyhow::{Context, Result, ensure};
use integration::cell::Cell;

use super::{Case, has};

pub(crate) const CASES: &[Case] = &[
    Case { name: "events_of_run", run: of_run },
    Case { name: "events_of_exec", run: of_exec },
    Case { name: "events_of_oom", run: of_oom },
    Case { name: "events_filter", run: filter },
];

/// Checks that `topics` are in `text` in this order.
fn in_order(text: &str, topics: &[&str]) -> Result<()> {
    let mut rest = text;
    for topic in topics {
        let (_, after) =
            rest.split_once(topic).with_context(|| format!("{topic} is not next in {text:?}"))?;
        rest = after;
    }
    Ok(())
}

/// Subscribes; an event that cannot be mistaken shows that the subscription stands.
pub(super) fn subscribe(cell: &Cell, filters: &[&str]) -> Result<integration::process::Running> {
    let mut events = cell.spawn(&[&["events"], filters].concat())?;
    integration::wait::until("the subscription", || {
        cell.ok(&["namespaces", "label", cell.namespace(), "subscribed=yes"])?;
        Ok(events.stdout()?.contains("/namespaces/update").then_some(()))
    })?;
    Ok(events)
}

fn of_run(cell: &mut Cell) -> Result<()> {
    let mut events = subscribe(cell, &[])?;
    let id = cell.id();
    cell.run(&["--rm"], &id, &["sh", "-c", "exit 5"])?;
    events.wait_for("/containers/delete")?;
    let seen = events.stdout()?;
    in_order(
        &seen,
        &["/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"],
    )?;
    let exit = seen.lines().find(|line| line.contains("/tasks/exit")).unwrap_or_default();
    has(exit, "\"exit_status\":5")?;
    has(exit, &format!("\"container_id\":\"{id}\""))
}

fn of_exec(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    let mut events = subscribe(cell, &[])?;
    cell.ok(&["tasks", "exec", "--exec-id", "e", &id, "true"])?;
    events.wait_for("/tasks/exit")?;
    cell.remove(&id)?;
    in_order(&events.stdout()?, &["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"])
}

/// The first process lives on, so nothing but the kill itself makes anybody look.
fn of_oom(cell: &mut Cell) -> Result<()> {
    let mut events = subscribe(cell, &[])?;
    let hungry = "dd if=/dev/zero of=/dev/null bs=100M count=1; sleep 100";
    let id = cell.background(&["--memory-limit", "16777216"], &["sh", "-c", hungry])?;
    events.wait_for("/tasks/oom")?;
    cell.remove(&id)?;
    let seen = events.stdout()?;
    let oom = seen.lines().find(|line| line.contains("/tasks/oom")).unwrap_or_default();
    has(oom, &format!("\"container_id\":\"{id}\""))
}

fn filter(cell: &mut Cell) -> Result<()> {
    let filters = ["topic~=\"/containers/.*\"", "topic==\"/namespaces/update\""];
    let mut events = subscribe(cell, &filters)?;
    cell.run(&["--rm"], &cell.id(), &["true"])?.ok()?;
    events.wait_for("/containers/delete")?;
    ensure!(!events.stdout()?.contains("/tasks/"), "a filtered event came through");
    Ok(())
}
