//! The programs, built as they are released, in one directory.
//!
//! Each program is built by a cargo of its own: features are unified over what is built together,
//! and the shim must not get what the client asked of `proto`. Programs that are started once per
//! container, or per command, are static where this machine can link them so: a dynamic loader
//! would be most of what they cost. The daemon is smaller so: musl's allocator gives back what an
//! import took, of which glibc keeps some for each thread. Rust's musl target links without a C
//! toolchain, so for crates without C it is enough that the target is installed; otherwise glibc is
//! linked statically.

use std::{fs, path::Path, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::run::{cargo, must, workspace};

/// How much time the compiler takes: the name of a profile in the workspace's manifest.
pub(crate) type Profile = &'static str;

/// The profile of what is released.
pub(crate) const RELEASE: Profile = "release";

/// The profile of what is only tested.
pub(crate) const QUICK: Profile = "quick";

/// A program, and how it is linked.
struct Program {
    package: &'static str,
    name: &'static str,
    linking: Linking,
    /// Features of the package that only this program needs.
    features: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Linking {
    /// Without a dynamic loader.
    Static,
    /// As the machine does: for programs with C in them that start once.
    Usual,
}

const PROGRAMS: &[Program] = &[
    Program { package: "runc-rs", name: "runc-rs", linking: Linking::Static, features: &[] },
    Program {
        package: "shim",
        name: "containerd-shim-runc-rs-v2",
        linking: Linking::Static,
        features: &[],
    },
    Program { package: "ctr-cli", name: "ctr", linking: Linking::Static, features: &[] },
    Program { package: "integration", name: "probe", linking: Linking::Static, features: &[] },
    Program { package: "integration", name: "floor", linking: Linking::Static, features: &[] },
    Program { package: "engine", name: "gantryd", linking: Linking::Static, features: &[] },
    Program {
        package: "snapshotter",
        name: "gantry-snapshotter",
        linking: Linking::Usual,
        features: &["server"],
    },
];

/// Builds all programs and says how large they are.
pub(crate) fn run(profile: Profile) -> Result<()> {
    some(profile, |_| true)
}

/// Builds those programs whose names are `wanted`.
pub(crate) fn some(profile: Profile, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let directory = directory();
    fs::create_dir_all(&directory)?;
    let musl = musl_is_installed();
    let mut total = 0;
    for program in PROGRAMS.iter().filter(|program| wanted(program.name)) {
        let target = match program.linking {
            Linking::Static if musl => Some(musl_target()),
            // Naming the target keeps the flags away from build scripts and macros.
            Linking::Static => Some(gnu_target()),
            Linking::Usual => None,
        };
        let built = build(program, profile, target.as_deref(), musl)?;
        let placed = directory.join(program.name);
        // A program that runs cannot be written over, but its name can be given to another.
        let fresh = directory.join(format!(".{}", program.name));
        fs::copy(&built, &fresh).with_context(|| format!("copy {}", built.display()))?;
        fs::rename(&fresh, &placed)?;
        let size = fs::metadata(&placed)?.len();
        total += size;
        println!(
            "dist: {:28} {:>8} KiB  {}",
            program.name,
            size / 1024,
            target.as_deref().unwrap_or("host")
        );
    }
    println!("dist: {:28} {:>8} KiB  {}", "all", total / 1024, directory.display());
    Ok(())
}

/// Where the programs are put.
pub(crate) fn directory() -> PathBuf {
    target_directory().join("dist")
}

fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

fn build(program: &Program, profile: Profile, target: Option<&str>, musl: bool) -> Result<PathBuf> {
    let mut command = cargo(&["build", "--quiet", "--package", program.package]);
    command.args(["--bin", program.name, "--profile", profile]);
    command.args(program.features.iter().flat_map(|feature| ["--features", feature]));
    let mut built = target_directory();
    if let Some(target) = target {
        command.args(["--target", target]);
        built.push(target);
        if musl {
            c_for_musl(&mut command);
        } else {
            command.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
        }
    }
    must(&mut command)?;
    Ok(built.join(profile).join(program.name))
}

/// Names a C compiler for the little C that a static program has, where none is for musl.
///
/// The usual compiler does, as long as it calls nothing that only glibc has.
fn c_for_musl(command: &mut Command) {
    let target = musl_target().replace('-', "_");
    let compiler = integration::programs::find("musl-gcc");
    command.env(format!("CC_{target}"), compiler.unwrap_or_else(|| "cc".into()));
    command.env(format!("CFLAGS_{target}"), "-U_FORTIFY_SOURCE -fno-stack-protector");
}

fn musl_target() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

fn gnu_target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

fn musl_is_installed() -> bool {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output();
    let Ok(output) = output else { return false };
    let sysroot = String::from_utf8_lossy(&output.stdout);
    Path::new(sysroot.trim()).join("lib/rustlib").join(musl_target()).join("lib").is_dir()
}
