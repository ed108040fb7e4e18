//! Generates `proto/src/gen` from `proto/protos`, without protoc.
//!
//! The result is committed: whoever builds the project needs no generator, and a reader can see
//! the types. Messages of all packages are always compiled; clients and servers of the gRPC
//! services stand behind the feature `grpc`. Services that are spoken over ttrpc get no stubs:
//! `proto::ttrpc` dispatches by name.

use std::{fs, path::Path, path::PathBuf};

use anyhow::{Context, Result, ensure};

/// Packages whose services are spoken over ttrpc only.
const TTRPC_ONLY: &[&str] = &[
    "containerd.task.v2",
    "containerd.task.v3",
    "containerd.runtime.sandbox.v1",
    "containerd.services.events.ttrpc.v1",
];

pub(crate) fn run(check: bool) -> Result<()> {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let committed = proto.join("src/gen");
    let fresh = std::env::temp_dir().join(format!("gantry-codegen-{}", std::process::id()));
    fs::create_dir_all(&fresh)?;
    let result = generate(&proto.join("protos"), &fresh).and_then(|()| {
        if check { compare(&fresh, &committed) } else { replace(&fresh, &committed) }
    });
    fs::remove_dir_all(&fresh)?;
    result
}

fn generate(protos: &Path, out: &Path) -> Result<()> {
    let mut files = Vec::new();
    collect(protos, &mut files)?;
    files.sort();
    let mut descriptors = protox::compile(&files, [protos])?;
    fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    for file in &mut descriptors.file {
        if TTRPC_ONLY.contains(&file.package()) {
            file.service.clear();
        }
    }
    let mut config = prost_build::Config::new();
    config.enable_type_names().bytes(["."]).btree_map(["."]).out_dir(out).include_file("all.rs");
    tonic_prost_build::configure()
        .build_transport(true)
        .client_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .out_dir(out)
        .include_file("all.rs")
        .compile_fds_with_config(descriptors, config)
        .context("generate Rust")?;
    Ok(())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}

fn names(directory: &Path) -> Result<Vec<std::ffi::OsString>> {
    let mut names =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn compare(fresh: &Path, committed: &Path) -> Result<()> {
    let advice = "proto/src/gen is stale: run cargo xtask codegen";
    ensure!(names(fresh)? == names(committed)?, advice);
    for name in names(fresh)? {
        ensure!(
            fs::read(fresh.join(&name))? == fs::read(committed.join(&name))?,
            "{}: {advice}",
            name.display()
        );
    }
    Ok(())
}

fn replace(fresh: &Path, committed: &Path) -> Result<()> {
    if committed.exists() {
        fs::remove_dir_all(committed)?;
    }
    fs::create_dir_all(committed)?;
    for name in names(fresh)? {
        fs::copy(fresh.join(&name), committed.join(&name))?;
    }
    Ok(())
}
