//! What must hold for each commit, in under a minute once things are built.

use std::time::Instant;

use anyhow::Result;

use crate::run::{cargo, must};

/// The steps, cheapest first.
const STEPS: &[(&str, &[&str])] = &[
    ("format", &["fmt", "--all", "--check"]),
    ("lints", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    (
        "lints of the snapshotter's program",
        &[
            "clippy",
            "--quiet",
            "--package",
            "snapshotter",
            "--features",
            "server",
            "--",
            "-D",
            "warnings",
        ],
    ),
    ("documentation", &["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]),
    ("unit tests", &["test", "--quiet", "--workspace", "--lib", "--bins"]),
    ("architecture", &["test", "--quiet", "--package", "integration", "--test", "architecture"]),
    ("wire", &["test", "--quiet", "--package", "proto", "--tests"]),
];

pub(crate) fn run() -> Result<()> {
    for (name, words) in STEPS {
        let start = Instant::now();
        must(cargo(words).env("RUSTDOCFLAGS", "-D warnings"))?;
        done(name, start);
    }
    let start = Instant::now();
    crate::codegen(true)?;
    done("generated types", start);
    let start = Instant::now();
    if cargo(&["deny", "--version"]).output().is_ok_and(|output| output.status.success()) {
        must(&mut cargo(&["deny", "check"]))?;
        done("dependencies", start);
    } else {
        println!("check: dependencies: skipped, cargo-deny is not installed");
    }
    Ok(())
}

fn done(name: &str, start: Instant) {
    println!("check: {name}: ok, {:.1} s", start.elapsed().as_secs_f64());
}
