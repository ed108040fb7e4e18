//! JSON as stock `ctr` prints it.

use serde::Serialize;

use super::outln;

/// Prints a value with an indent of four.
pub(crate) fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))?;
    Ok(outln!("{}", String::from_utf8_lossy(&bytes))?)
}

/// Prints a value on one line.
pub(crate) fn json_line<T: Serialize>(value: &T) -> anyhow::Result<()> {
    Ok(outln!("{}", serde_json::to_string(value)?)?)
}
