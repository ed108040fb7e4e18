//! The runtimes alone, driven as a shim drives them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use integration::{cell::Cell, cell::IMAGE, process, programs, stage::Stage};
use serde_json::{Value, json};

use crate::{Options, milliseconds, table::Table};

/// How many runs one measurement of processor time covers: the kernel counts in 10 ms.
const RUNS: u32 = 10;

const RUNTIMES: &[&str] = &["runc", "crun", "runc-rs"];

/// Measures `run` of an empty program, with `runc spec`'s document and with a seccomp profile.
pub(crate) fn measure(
    options: &Options,
    cells: &[Cell],
    stage: &Stage,
    table: &mut Table,
) -> Result<()> {
    let rows = [
        ("OCI run", "OCI run, CPU", None),
        ("OCI run with seccomp", "OCI run with seccomp, CPU", Some(())),
    ];
    let runtimes: Vec<(&'static str, PathBuf)> = RUNTIMES
        .iter()
        .filter_map(|name| {
            Some((*name, programs::own(name).ok().or_else(|| programs::find(name))?))
        })
        .collect();
    for (wall, cpu, seccomp) in rows {
        if !options.wants(wall) {
            continue;
        }
        let profile = match seccomp {
            Some(()) => Some(profile(cells.first().context("a daemon to ask for a profile")?)?),
            None => None,
        };
        let bundle = bundle(stage, profile)?;
        for round in 0..options.rounds {
            for (name, program) in &runtimes {
                let before = children_ms()?;
                for run in 0..RUNS {
                    let id = format!("bench-{name}-{round}-{run}");
                    let mut command = Command::new(program);
                    let state = stage.directory().join(format!("state-{name}"));
                    command.arg("--root").arg(state).args(["run", "--bundle"]);
                    command.arg(&bundle).arg(id);
                    table.add(wall, "ms", name, milliseconds(&mut command)?);
                }
                table.add(cpu, "ms", name, (children_ms()? - before) / f64::from(RUNS));
            }
        }
    }
    Ok(())
}

/// Makes a bundle of `runc spec`'s document over busybox.
fn bundle(stage: &Stage, seccomp: Option<Value>) -> Result<PathBuf> {
    let name = if seccomp.is_some() { "bundle-seccomp" } else { "bundle" };
    let bundle = stage.directory().join(name);
    let bin = bundle.join("rootfs/bin");
    fs::create_dir_all(&bin)?;
    fs::copy(programs::debian("busybox")?, bin.join("busybox"))?;
    fs::hard_link(bin.join("busybox"), bin.join("true"))?;
    let runc = programs::debian("runc")?;
    process::run(Command::new(runc).arg("spec").arg("--bundle").arg(&bundle))?.ok()?;
    let path = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&path)?)?;
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["/bin/true"]);
    if let Some(profile) = seccomp {
        spec["linux"]["seccomp"] = profile;
    }
    fs::write(path, spec.to_string())?;
    Ok(bundle)
}

/// The profile that containerd and docker give to a container by default.
fn profile(cell: &Cell) -> Result<Value> {
    let id = cell.id();
    cell.ok(&["containers", "create", "--seccomp", IMAGE, &id, "true"])?;
    let info: Value = serde_json::from_str(&cell.ok(&["containers", "info", &id])?)?;
    cell.ok(&["containers", "rm", &id])?;
    Ok(info["Spec"]["linux"]["seccomp"].clone())
}

/// The processor time of all children that have ended, in milliseconds.
fn children_ms() -> Result<f64> {
    let stat = fs::read_to_string(Path::new("/proc/self/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("/proc/self/stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // cutime and cstime of proc(5), counted from the third field, in ticks of 10 ms.
    let ticks: f64 = fields[13].parse::<f64>()? + fields[14].parse::<f64>()?;
    Ok(ticks * 10.0)
}
