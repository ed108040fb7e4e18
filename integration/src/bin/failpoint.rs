//! Stands in for a runtime or a shim, and kills it, or others, at a step of what it does: see
//! [`integration::failpoint`].
//!
//! Under the name of a program it becomes that program. As `failpoint` it is a tracer:
//! `attach <pid> <name>` traces a process, `trace <pid> <name>` starts a tracer and ends.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use integration::failpoint;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    let words: Vec<OsString> = words.collect();
    let name = Path::new(&name).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let texts: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    let result = match (&*name, texts.as_slice()) {
        ("failpoint", ["attach", pid, what]) => failpoint::attach(pid, what),
        ("failpoint", ["trace", pid, what]) => failpoint::trace_parent(pid, what),
        ("failpoint", _) => Err(anyhow::anyhow!("attach or trace, a process and a name")),
        _ => failpoint::stand_in(&name, &words),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "failpoint: {error:#}");
            ExitCode::FAILURE
        }
    }
}
