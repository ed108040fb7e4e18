//! `ctr snapshots tree`

use std::collections::BTreeMap;

use clap::Args;
use proto::containerd::services::snapshots::v1::Info;

use super::Context;
use crate::output::outln;

/// Print snapshots as trees
#[derive(Args, Debug)]
pub(crate) struct Tree {}

impl Tree {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let snapshots = context.list(Vec::new()).await?;
        Ok(lines(&snapshots).iter().try_for_each(|line| outln!("{line}"))?)
    }
}

/// Each snapshot below its parent. One whose parent is not in the list stands at the root.
fn lines(snapshots: &[Info]) -> Vec<String> {
    let known: std::collections::BTreeSet<&str> =
        snapshots.iter().map(|info| info.name.as_str()).collect();
    let mut children: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for info in snapshots {
        let parent = known.get(info.parent.as_str()).copied().unwrap_or("");
        children.entry(parent).or_default().push(&info.name);
    }
    let mut lines = Vec::new();
    let roots = children.remove("").unwrap_or_default();
    let mut open: Vec<(&str, usize)> = roots.into_iter().rev().map(|name| (name, 0)).collect();
    while let Some((name, level)) = open.pop() {
        let branch = if level > 0 { "\\_" } else { "" };
        lines.push(format!("{}{branch} {name}", "  ".repeat(level)));
        // Removed when visited, so that a list that is no tree ends all the same.
        let below = children.remove(name).unwrap_or_default();
        open.extend(below.into_iter().rev().map(|name| (name, level + 1)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches() {
        let info = |name: &str, parent: &str| Info {
            name: name.to_owned(),
            parent: parent.to_owned(),
            ..Default::default()
        };
        let snapshots = [info("b", "a"), info("c", "b"), info("a", ""), info("d", "a")];
        assert_eq!(lines(&snapshots), [" a", "  \\_ b", "    \\_ c", "  \\_ d"]);
        assert_eq!(lines(&[info("x", "gone")]), [" x"]);
        assert_eq!(lines(&[info("x", "y"), info("y", "x")]), Vec::<String>::new());
    }
}
