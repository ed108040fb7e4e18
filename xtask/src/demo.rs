//! A container run for a newcomer to watch, from an empty machine to an empty machine.

use std::{
    ffi::OsString,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::{
    cell::{Cell, Choice},
    image::{self, Flavour},
    leaks::Inventory,
    process::Output,
    programs,
    stage::{self, Stage},
    wait,
};

use crate::{dist, run::needs_root};

/// What is shown, and what is timed is only what a user would wait for.
struct Show {
    cell: Cell,
    image: String,
    busybox: bool,
}

/// Builds, and shows a container run; `pull` names an image to be fetched for that.
pub(crate) fn run(pull: Option<&str>, choice: Choice) -> Result<()> {
    if let Some(stage) = Stage::current() {
        return inside(&stage, pull, choice);
    }
    needs_root("a container needs mounts, namespaces and cgroups")?;
    println!("Building the programs; the first time takes a few minutes.\n");
    dist::run(dist::QUICK)?;
    let mut words: Vec<OsString> = vec!["demo".into()];
    if choice == Choice::STOCK {
        words.push("--stock".into());
    }
    if let Some(reference) = pull {
        words.extend(["--pull".into(), reference.into()]);
    }
    let code = stage::run(&words, &[("GANTRY_BIN", dist::directory())])?;
    ensure!(code == 0, "the demo failed");
    Ok(())
}

fn inside(stage: &Stage, pull: Option<&str>, choice: Choice) -> Result<()> {
    stage.enter(choice.view())?;
    let before = Inventory::take("none");
    println!("\nAn engine, with everything that it keeps in a directory of this demo's own:");
    let start = Instant::now();
    let cell = Cell::bare(choice, stage)?;
    shown(&format!("{choice}"), "answers", start.elapsed());
    let (image, busybox) = take_image(&cell, pull)?;
    let namespace = cell.namespace().to_owned();
    let show = Show { cell, image, busybox };
    show.foreground()?;
    show.background()?;
    let cell = show.cell;
    println!("\nThe end:");
    let start = Instant::now();
    drop(cell);
    shown("engine", "stopped", start.elapsed());
    // Directories that an engine makes for itself are on the stage, and go with it.
    let left = before.wait_restored(&namespace).err().map(|error| error.to_string());
    let left =
        left.filter(|left| ["process ", "mount ", "cgroup "].iter().any(|it| left.contains(it)));
    ensure!(left.is_none(), left.unwrap_or_default());
    println!("  Nothing is left: no process, no mount, no cgroup, no file.");
    Ok(())
}

/// Pulls or makes the image; says whether it has busybox in it.
fn take_image(cell: &Cell, pull: Option<&str>) -> Result<(String, bool)> {
    if let Some(reference) = pull {
        println!("\nAn image, from a registry:");
        let start = Instant::now();
        cell.ok(&["images", "pull", reference])?;
        shown(reference, "pulled and unpacked", start.elapsed());
        return Ok((reference.to_owned(), true));
    }
    let busybox = programs::find("busybox").is_some();
    let (image, what) = if busybox {
        (image::busybox(Flavour::Oci)?, "busybox")
    } else {
        (image::probe(Flavour::Oci)?, "one static program of this project")
    };
    let name = "demo.test/hello:1".to_owned();
    println!("\nAn image, made on the spot from {what}:");
    let start = Instant::now();
    cell.import(&image, &name)?;
    shown(&name, "imported and unpacked", start.elapsed());
    Ok((name, busybox))
}

impl Show {
    fn foreground(&self) -> Result<()> {
        println!("\nA container in the foreground:");
        let argv: &[&str] = if self.busybox {
            let script = "echo \"Hello from process $$ on $(uname -sr), as $(id -un).\"; \
                          echo \"I see $(ls /proc | grep -c '^[0-9]') processes, \
                          interfaces: $(ls /sys/class/net | tr '\\n' ' ')\"";
            &["sh", "-c", script]
        } else {
            &["/probe"]
        };
        self.ctr(&["run", "--rm"], "hello", argv)?.ok().map(drop)
    }

    fn background(&self) -> Result<()> {
        println!("\nA container in the background, with its log in a file:");
        let log = self.cell.file("demo.log");
        let uri = format!("file://{}", log.display());
        let argv: &[&str] = if self.busybox {
            &["sh", "-c", "echo working; exec sleep 1000"]
        } else {
            &["/probe", "sleep", "1000"]
        };
        self.ctr(&["run", "-d", "--log-uri", &uri], "worker", argv)?.ok()?;
        let said = wait::until("the log", || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            Ok((!text.is_empty()).then_some(text))
        })?;
        println!("  $ cat {}", log.file_name().unwrap_or_default().to_string_lossy());
        said.lines().for_each(|line| println!("  | {line}"));
        let exec: &[&str] = if self.busybox { &["ps"] } else { &["/probe", "echo", "exec works"] };
        let words = ["tasks", "exec", "--exec-id", "look", "worker"];
        self.told(&[&words, exec].concat())?.ok()?;
        self.told(&["tasks", "ls"])?.ok()?;
        self.told(&["tasks", "rm", "-f", "worker"])?;
        self.told(&["containers", "rm", "worker"])?.ok().map(drop)
    }

    fn ctr(&self, flags: &[&str], id: &str, argv: &[&str]) -> Result<Output> {
        self.told(&[flags, &[&self.image, id], argv].concat())
    }

    /// Runs the client, and shows the command, what it said, and how long it took.
    fn told(&self, words: &[&str]) -> Result<Output> {
        let line: Vec<String> = words
            .iter()
            .map(|word| if word.contains(' ') { format!("'{word}'") } else { (*word).to_owned() })
            .collect();
        println!("  $ ctr {}", line.join(" "));
        let start = Instant::now();
        let output = self.cell.ctr(words).context("the client")?;
        let took = start.elapsed();
        for line in output.stdout.lines().chain(output.stderr.lines()) {
            println!("  | {line}");
        }
        shown("", &format!("exit code {}", output.code), took);
        Ok(output)
    }
}

fn shown(what: &str, happened: &str, took: Duration) {
    println!("  {what:40} {happened:>26} {:>8.1} ms", took.as_secs_f64() * 1000.0);
}
