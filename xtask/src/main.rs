//! The project's chores: `cargo xtask --help`.

use anyhow::Result;
use clap::{Parser, Subcommand};

#[cfg(feature = "codegen")]
mod codegen;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's chores")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Generate the Rust types in proto/src/gen from proto/protos
    Codegen {
        /// Change nothing; fail if what is committed is not what would be generated
        #[arg(long)]
        check: bool,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().chore {
        Chore::Codegen { check } => codegen(check),
    }
}

#[cfg(feature = "codegen")]
fn codegen(check: bool) -> Result<()> {
    codegen::run(check)
}

/// Runs this program again with its generators compiled in.
#[cfg(not(feature = "codegen"))]
fn codegen(check: bool) -> Result<()> {
    let mut command = std::process::Command::new(env!("CARGO"));
    command.args([
        "run",
        "--quiet",
        "--package",
        "xtask",
        "--features",
        "codegen",
        "--",
        "codegen",
    ]);
    if check {
        command.arg("--check");
    }
    anyhow::ensure!(command.status()?.success(), "code generation");
    Ok(())
}
