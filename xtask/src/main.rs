//! The project's chores: `cargo xtask --help`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "chores tell a person")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use integration::cell::Choice;

mod check;
#[cfg(feature = "codegen")]
mod codegen;
mod demo;
mod dist;
mod needs;
mod run;
mod steps;
mod test;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's chores")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Format, lints, documentation, unit tests, architecture: what must hold for each commit
    Check,
    /// Build the programs into target/dist
    #[command(visible_alias = "build")]
    Dist {
        /// Build faster programs to link, a little larger and slower ones to run
        #[arg(long)]
        quick: bool,
    },
    /// Run every test, as root: units, crates against the kernel, programs end to end
    Test {
        /// Install nothing, only say what is missing
        #[arg(long)]
        no_install: bool,
        /// Run end-to-end cells whose name has this part, and only those
        #[arg(long)]
        cells: Vec<String>,
        /// Build the programs as they are released, which takes longer
        #[arg(long)]
        release: bool,
    },
    /// Show a container run, from an empty machine to an empty machine, as root
    Demo {
        /// Pull this image instead of making one on the spot
        #[arg(long, value_name = "REFERENCE")]
        pull: Option<String>,
        /// Show Debian's programs instead of ours, for comparison
        #[arg(long)]
        stock: bool,
    },
    /// Measure the programs against their Debian peers, as root
    Bench {
        /// Arguments of the bench: `--rounds <n>`, `--json <file>`, parts of rows' names
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Do the same again and again, and see that nothing grows, as root
    Soak {
        /// How many containers are made, started, used and removed, eight at a time
        #[arg(long, default_value_t = 5_000)]
        cycles: usize,
        /// How many processes are started in one container, eight at a time
        #[arg(long, default_value_t = 200_000)]
        execs: usize,
    },
    /// Generate the Rust types in proto/src/gen from proto/protos
    Codegen {
        /// Change nothing; fail if what is committed is not what would be generated
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().chore {
        Chore::Check => check::run(),
        Chore::Dist { quick } => dist::run(if quick { dist::QUICK } else { dist::RELEASE }),
        Chore::Test { no_install, cells, release } => {
            let profile = if release { dist::RELEASE } else { dist::QUICK };
            test::run(!no_install, &cells, profile)
        }
        Chore::Demo { pull, stock } => {
            demo::run(pull.as_deref(), if stock { Choice::STOCK } else { Choice::OWN })
        }
        Chore::Bench { arguments } => test::bench(&arguments),
        Chore::Soak { cycles, execs } => test::soak(cycles, execs),
        Chore::Codegen { check } => codegen(check),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(feature = "codegen")]
fn codegen(check: bool) -> anyhow::Result<()> {
    codegen::run(check)
}

/// Runs this program again with its generators compiled in.
#[cfg(not(feature = "codegen"))]
fn codegen(check: bool) -> anyhow::Result<()> {
    let words = ["run", "--quiet", "--package", "xtask", "--features", "codegen", "--", "codegen"];
    let mut command = run::cargo(&words);
    if check {
        command.arg("--check");
    }
    run::must(&mut command)
}
