//! What commands print to standard output.

mod age;
mod json;
mod size;
mod table;

pub(crate) use age::age;
pub(crate) use json::{json, json_line};
pub(crate) use size::{binary_size, decimal_size};
pub(crate) use table::Table;

use std::{
    fmt,
    io::{self, Write as _},
};

use clap::{Args, ValueEnum};
use proto::time::known;

/// Prints a line.
macro_rules! outln {
    ($($argument:tt)*) => { crate::output::print_line(format_args!($($argument)*)) };
}
pub(crate) use outln;

/// Writes a line to standard output.
///
/// # Errors
///
/// The write failed; a closed pipe ends the program quietly ([`crate::error::report`]).
pub(crate) fn print_line(line: fmt::Arguments<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_fmt(line)?;
    out.write_all(b"\n")
}

/// How a list is printed.
#[derive(Args, Clone, Debug)]
pub(crate) struct ListFormat {
    /// Print only the identifiers
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Print a table, or JSON for programs
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

/// For whom the output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// A time as RFC 3339 in UTC, as JSON documents have it.
pub(crate) fn timestamp(time: Option<&prost_types::Timestamp>) -> Option<String> {
    to_jiff(&known(time.copied())?).map(|time| time.to_string())
}

/// A time as RFC 3339 in UTC in whole seconds, as tables have it.
pub(crate) fn seconds(time: Option<&prost_types::Timestamp>) -> String {
    time.and_then(to_jiff)
        .map_or_else(|| "-".to_owned(), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn to_jiff(time: &prost_types::Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(time.seconds, time.nanos).ok()
}
