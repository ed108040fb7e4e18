//! The program `containerd-shim-runc-rs-v2`; see the library.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use shim::{
    args::{Action, Args},
    commands::{self, CommandError},
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to report a failure of this to.
            let _ = writeln!(io::stderr(), "{}: {}", commands::NAME, sys::error::Chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), CommandError> {
    let args = Args::parse(std::env::args().skip(1))?;
    let output = match args.action {
        Action::Version => commands::version(),
        Action::Info => commands::info()?,
        Action::Start => commands::start(&args)?,
        Action::Delete => commands::delete(&args)?,
        Action::Serve => return commands::serve(&args),
    };
    io::stdout().write_all(&output).map_err(|source| CommandError::Io { what: "write", source })
}
