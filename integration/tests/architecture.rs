//! The crate graph and the other rules of `ARCHITECTURE.md` that a program can hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A crate of the workspace, what it may name of the others, and what it must not link, be it
/// through however many others.
struct Rule {
    name: &'static str,
    may_name: &'static [&'static str],
    must_not_link: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule { name: "sys", may_name: &[], must_not_link: &["tokio", "prost"] },
    Rule { name: "proto", may_name: &[], must_not_link: &["sys"] },
    // Its program, which takes a feature to build, speaks gRPC.
    Rule { name: "snapshotter", may_name: &["proto", "sys"], must_not_link: &["tokio", "prost"] },
    Rule { name: "engine", may_name: &["proto", "snapshotter", "sys"], must_not_link: &[] },
    Rule {
        name: "shim",
        may_name: &["proto", "sys", "runc-rs"],
        must_not_link: &["tokio", "tonic", "hyper", "redb", "clap", "regex"],
    },
    Rule {
        name: "runc-rs",
        may_name: &["sys"],
        must_not_link: &["tokio", "prost", "clap", "regex", "cc"],
    },
    Rule { name: "ctr-cli", may_name: &["proto", "sys"], must_not_link: &["redb"] },
    Rule { name: "integration", may_name: &["proto", "sys"], must_not_link: &["tokio"] },
    Rule { name: "xtask", may_name: &["integration"], must_not_link: &["tokio"] },
];

/// The modules of the engine that block and know nothing of the wire.
const DOMAIN: &[&str] = &[
    "content",
    "db",
    "diff",
    "digest",
    "field_mask",
    "filter",
    "gc",
    "go_duration",
    "identifier",
    "labels",
    "metadata",
    "namespace",
    "oci",
    "platform",
    "reference",
];

/// The only file outside `sys` that may be unsafe: there a process is cloned.
const UNSAFE: &[&str] = &["runc-rs/src/init/clone.rs"];

/// How long a file of code may be, tests not counted.
const LINES_MAX: usize = 800;

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is in a workspace")
}

/// What `package` links, as cargo resolves it when it builds only that.
fn linked(package: &str) -> Result<BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--prefix", "none", "--edges", "normal", "--format", "{p}"])
        .args(["--package", package])
        .current_dir(workspace())
        .output()?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

#[test]
fn crates_name_and_link_what_they_may() -> Result<()> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(workspace())
        .output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let own: BTreeSet<String> = packages.iter().map(name).collect();
    let ruled: BTreeSet<String> = RULES.iter().map(|rule| rule.name.to_owned()).collect();
    assert_eq!(own, ruled, "each crate has a rule");
    let named: BTreeMap<String, BTreeSet<String>> = packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array();
            let names = dependencies.into_iter().flatten();
            let normal = names.filter(|it| it["kind"].is_null()).map(name);
            (name(package), normal.filter(|name| own.contains(name)).collect())
        })
        .collect();
    let mut wrong = Vec::new();
    for rule in RULES {
        for other in &named[rule.name] {
            if !rule.may_name.contains(&other.as_str()) {
                wrong.push(format!("{} names {other}", rule.name));
            }
        }
        let linked = linked(rule.name)?;
        for other in rule.must_not_link.iter().filter(|other| linked.contains(**other)) {
            wrong.push(format!("{} links {other}", rule.name));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    Ok(())
}

/// The Rust files of the workspace that people write.
fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for rule in RULES {
        for part in ["src", "tests", "benches"] {
            collect(&workspace().join(rule.name).join(part), &mut files);
        }
    }
    let short = |path: &Path| path.strip_prefix(workspace()).map(|it| it.display().to_string());
    files
        .into_iter()
        .filter_map(|path| Some((short(&path).ok()?, fs::read_to_string(&path).ok()?)))
        .filter(|(path, _)| !path.starts_with("proto/src/gen/"))
        .collect()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The code of a file, without comments and without its tests.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let until_tests = text.lines().take_while(|line| *line != "#[cfg(test)]");
    until_tests.filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    let wrong: Vec<String> = sources()
        .into_iter()
        .filter(|(path, _)| !path.starts_with("sys/") && !UNSAFE.contains(&path.as_str()))
        .filter(|(path, _)| path != file!())
        .filter(|(_, text)| {
            code(text).any(|line| {
                let opened = ["expect", "allow"]
                    .iter()
                    .any(|it| line.contains(&format!("{it}(unsafe_code")));
                opened || line.contains("unsafe {") || line.contains("unsafe fn")
            })
        })
        .map(|(path, _)| path)
        .collect();
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn domain_modules_know_neither_wire_nor_runtime() {
    let wrong: Vec<String> = sources()
        .into_iter()
        .filter(|(path, _)| {
            let module =
                path.strip_prefix("engine/src/").and_then(|rest| rest.split(['/', '.']).next());
            module.is_some_and(|module| DOMAIN.contains(&module))
        })
        .filter(|(_, text)| {
            code(text)
                .any(|line| ["tonic::", "proto::", "tokio::"].iter().any(|it| line.contains(it)))
        })
        .map(|(path, _)| path)
        .collect();
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn files_are_short_enough_to_read() {
    let wrong: Vec<String> = sources()
        .into_iter()
        .map(|(path, text)| {
            let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
            (path, lines)
        })
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(path, lines)| format!("{path} has {lines} lines"))
        .collect();
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn each_crate_is_named_in_the_architecture() -> Result<()> {
    let text = fs::read_to_string(workspace().join("ARCHITECTURE.md"))?;
    let missing: Vec<&str> = RULES
        .iter()
        .map(|rule| rule.name)
        .filter(|name| !text.contains(&format!("`{name}`")))
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
    Ok(())
}
