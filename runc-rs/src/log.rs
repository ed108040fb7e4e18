//! The log, as runc writes it: clients read errors from the file that `--log` names.
//!
//! There is one per process and it is reached from everywhere, cleanup included, so this is the one
//! global of the program.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use crate::{error::Error, time};

static LOG: OnceLock<Log> = OnceLock::new();

/// How entries are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// `time="..." level=error msg="..."`
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

#[derive(Debug)]
struct Log {
    /// The file; none is standard error.
    file: Option<File>,
    format: Format,
    /// Whether what is only for finding errors is written, too.
    debug: bool,
}

#[derive(Serialize)]
struct Entry<'a> {
    level: &'a str,
    msg: &'a str,
    time: String,
}

/// Opens the log.
///
/// # Errors
///
/// [`Error::System`] when the file cannot be opened for appending.
pub(crate) fn open(path: Option<&Path>, format: Format, debug: bool) -> Result<(), Error> {
    let open = |path: &Path| {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o644).open(path)
    };
    let file = path
        .map(|path| open(path).map_err(|error| Error::file("open", path, error)))
        .transpose()?;
    // A second log is never opened.
    let _ = LOG.set(Log { file, format, debug });
    Ok(())
}

/// Logs an error, and says it on standard error, too, where that is not the log.
pub(crate) fn error(text: &str) {
    write("error", text);
    if LOG.get().is_some_and(|log| log.file.is_some()) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

/// Logs what went wrong without the command failing for it.
pub(crate) fn warn(text: &str) {
    write("warning", text);
}

/// Logs a step, where that was asked for. People grep for some of these, so they are runc's words.
pub(crate) fn debug(text: &str) {
    if LOG.get().is_some_and(|log| log.debug) {
        write("debug", text);
    }
}

fn write(level: &str, text: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let format = LOG.get().map_or(Format::Text, |log| log.format);
    let line = line(format, &Entry { level, msg: text, time: time::rfc3339(now) });
    // Where a log cannot be written, there is nobody to tell.
    let _ = match LOG.get().and_then(|log| log.file.as_ref()) {
        Some(mut file) => file.write_all(line.as_bytes()),
        None => std::io::stderr().write_all(line.as_bytes()),
    };
}

fn line(format: Format, entry: &Entry<'_>) -> String {
    match format {
        Format::Json => {
            let mut line = serde_json::to_string(entry).unwrap_or_default();
            line.push('\n');
            line
        }
        Format::Text => {
            let Entry { level, msg, time } = entry;
            format!("time=\"{time}\" level={level} msg={}\n", quoted(msg))
        }
    }
}

/// Quotes a text unless it is one plain word.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { format!("{text:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let entry = |msg| Entry { level: "error", msg, time: "2026-01-02T03:04:05Z".to_owned() };
        let cases = [
            (
                Format::Json,
                "say \"x\"",
                "{\"level\":\"error\",\"msg\":\"say \\\"x\\\"\",\"time\":\"2026-01-02T03:04:05Z\"}\n",
            ),
            (
                Format::Text,
                "say \"x\"",
                "time=\"2026-01-02T03:04:05Z\" level=error msg=\"say \\\"x\\\"\"\n",
            ),
            (Format::Text, "plain", "time=\"2026-01-02T03:04:05Z\" level=error msg=plain\n"),
        ];
        for (format, text, want) in cases {
            assert_eq!(line(format, &entry(text)), want, "{format:?} {text}");
        }
    }
}
