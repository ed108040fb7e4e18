//! The programs, built as they are released, in one directory.
//!
//! Each program is built by a cargo of its own: features are unified over what is built together,
//! and the shim must not get what the client asked of `proto`. All are static where this machine can
//! link them so. Of programs that are started once per container, or per command, a dynamic loader
//! would be most of what they cost. The daemon is smaller: musl's allocator gives back what an import
//! took, of which glibc keeps some in an arena for each thread (9 MB after an import of 300 MB, and
//! 20), and neither is the quicker one. Rust's musl target links without a C toolchain, so for crates
//! without C it is enough that the target is installed; otherwise glibc is linked statically.

use std::{fs, path::Path, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::run::{cargo, must, workspace};

/// How much time the compiler takes: the name of a profile in the workspace's manifest.
pub(crate) type Profile = &'static str;

/// The profile of what is released.
pub(crate) const RELEASE: Profile = "release";

/// The profile of what is only tested.
pub(crate) const QUICK: Profile = "quick";

/// A program.
struct Program {
    package: &'static str,
    name: &'static str,
    /// Features of the package that only this program needs.
    features: &'static [&'static str],
}

const PROGRAMS: &[Program] = &[
    Program { package: "runc-rs", name: "runc-rs", features: &[] },
    Program { package: "shim", name: "containerd-shim-runc-rs-v2", features: &[] },
    Program { package: "ctr-cli", name: "ctr", features: &[] },
    Program { package: "integration", name: "probe", features: &[] },
    Program { package: "integration", name: "floor", features: &[] },
    Program { package: "engine", name: "gantryd", features: &[] },
    Program { package: "snapshotter", name: "gantry-snapshotter", features: &["server"] },
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
        // Naming the target keeps the flags away from build scripts and macros.
        let target = if musl { musl_target() } else { gnu_target() };
        let built = build(program, profile, &target, musl)?;
        let placed = directory.join(program.name);
        // A program that runs cannot be written over, but its name can be given to another.
        let fresh = directory.join(format!(".{}", program.name));
        fs::copy(&built, &fresh).with_context(|| format!("copy {}", built.display()))?;
        fs::rename(&fresh, &placed)?;
        let size = fs::metadata(&placed)?.len();
        total += size;
        println!("dist: {:28} {:>8} KiB  {target}", program.name, size / 1024);
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

fn build(program: &Program, profile: Profile, target: &str, musl: bool) -> Result<PathBuf> {
    let mut command = cargo(&["build", "--quiet", "--package", program.package]);
    command.args(["--bin", program.name, "--profile", profile, "--target", target]);
    command.args(program.features.iter().flat_map(|feature| ["--features", feature]));
    if musl {
        c_for_musl(&mut command);
    } else {
        command.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    }
    must(&mut command)?;
    Ok(target_directory().join(target).join(profile).join(program.name))
}

/// Names a C compiler for the little C that the programs have, where none is for musl.
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
