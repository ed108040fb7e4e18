//! What programs take of memory and of the disk.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use integration::{cell::Cell, programs};

use crate::{Options, side, table::Table};

/// Adds the daemon's memory to the row `name`.
pub(crate) fn daemon(name: &'static str, cell: &Cell, table: &mut Table) -> Result<()> {
    let rss = daemon_kib(cell)?;
    table.add(name, "MiB", side(cell), rss / 1024.0);
    Ok(())
}

/// The daemon's memory.
pub(crate) fn daemon_kib(cell: &Cell) -> Result<f64> {
    kib(cell.running_daemon().id(), "status", "VmRSS:")
}

/// Adds what the shims of `cell` take, each.
pub(crate) fn shims(cell: &Cell, table: &mut Table) -> Result<()> {
    let count = |text: &str| text.parse::<f64>().unwrap_or_default();
    for pid in shims_of(cell)? {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let threads = status.lines().find_map(|line| line.strip_prefix("Threads:"));
        table.add("shim, idle: PSS", "KiB", side(cell), kib(pid, "smaps_rollup", "Pss:")?);
        table.add("shim, idle: RSS", "KiB", side(cell), kib(pid, "status", "VmRSS:")?);
        let threads = count(threads.unwrap_or_default().trim());
        table.add("shim, idle: threads", "each", side(cell), threads);
    }
    Ok(())
}

/// What the shims of `cell` take together.
pub(crate) fn all_shims_kib(cell: &Cell) -> Result<f64> {
    shims_of(cell)?.into_iter().map(|pid| kib(pid, "smaps_rollup", "Pss:")).sum()
}

/// The processes that are shims of `cell`.
fn shims_of(cell: &Cell) -> Result<Vec<u32>> {
    let program = cell.choice().shim()?.canonicalize()?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(its) = fs::read_link(format!("/proc/{pid}/exe")) else { continue };
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if its == program && line.contains(cell.namespace()) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Adds the size of all programs that are installed.
pub(crate) fn installed(options: &Options, table: &mut Table) -> Result<()> {
    let name = "installed size";
    if !options.wants(name) {
        return Ok(());
    }
    let size = |files: Vec<std::path::PathBuf>| -> Result<f64> {
        let sizes: Vec<u64> =
            files.iter().map(|file| Ok(fs::metadata(file)?.len())).collect::<Result<_>>()?;
        Ok(sizes.iter().sum::<u64>() as f64 / f64::from(1 << 20))
    };
    let peers = ["containerd", "containerd-shim-runc-v2", "runc", "ctr"];
    let peers: Vec<_> = peers.iter().filter_map(|name| programs::find(name)).collect();
    table.add(name, "MiB", "containerd", size(peers)?);
    let own = ["gantryd", "containerd-shim-runc-rs-v2", "runc-rs", "ctr"];
    let own: Vec<_> = own.iter().filter_map(|name| programs::own(name).ok()).collect();
    table.add(name, "MiB", "gantry", size(own)?);
    Ok(())
}

/// A value in KiB of a file of `/proc/<pid>`.
pub(crate) fn kib(pid: u32, file: &str, field: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(Path::new(&path)).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let value = line.and_then(|line| line.split_whitespace().next());
    Ok(value.with_context(|| format!("{field} in {path}"))?.parse()?)
}
