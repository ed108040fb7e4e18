//! Which field of a JSON text an error is about.
//!
//! The parser says where in the text it stopped, which is little help in a file without line breaks.
//! The way there is looked up when there is an error, so that parsing costs no more.

use std::fmt;

/// The way to a value, as in `process.args[0]`; empty for the whole text.
///
/// Displayed as what stands between the name of a file and the reason: `: process.args[0]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place(String);

impl Place {
    /// Where `error` is in `text`, in which it was found.
    pub(crate) fn of(error: &serde_json::Error, text: &[u8]) -> Self {
        // Lines are numbered from one; none is an error that has no place.
        let Some(before) = error.line().checked_sub(1) else { return Self::default() };
        let breaks = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let start = match before {
            0 => Some(0),
            _ => breaks.map(|(at, _)| at + 1).nth(before - 1),
        };
        // What is no JSON is the last byte itself; a value that is of no use is what ends there.
        let column = error.column().saturating_sub(usize::from(error.is_syntax()));
        let end = start.and_then(|start| start.checked_add(column));
        end.and_then(|end| text.get(..end)).map_or_else(Self::default, at_the_end)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

/// An object or array that has begun: the key or the number of the value in it that was begun last.
enum Level<'t> {
    Object(&'t [u8]),
    Array(usize),
}

/// The place of the value that was begun last in `text`, which may end anywhere.
fn at_the_end(text: &[u8]) -> Place {
    let mut levels = Vec::new();
    let mut at = 0;
    // The string before the next colon is a key.
    let mut string: &[u8] = &[];
    while let Some(byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => {
                let length = string_length(&text[at..]);
                string = &text[at..at + length];
                at += length + 1;
            }
            b'{' => levels.push(Level::Object(&[])),
            b'[' => levels.push(Level::Array(0)),
            b'}' | b']' => drop(levels.pop()),
            b':' => {
                if let Some(Level::Object(key)) = levels.last_mut() {
                    *key = string;
                }
            }
            b',' => {
                if let Some(Level::Array(number)) = levels.last_mut() {
                    *number += 1;
                }
            }
            _ => {}
        }
    }
    let mut place = String::new();
    for level in levels {
        match level {
            Level::Object([]) => {}
            Level::Object(key) => {
                let dot = if place.is_empty() { "" } else { "." };
                place += dot;
                // Control characters would break the line, and bytes that are no text the message.
                place.extend(String::from_utf8_lossy(key).chars().flat_map(char::escape_debug));
            }
            Level::Array(number) => place += &format!("[{number}]"),
        }
    }
    Place(place)
}

/// The number of bytes until the quote that ends a string, or the end.
fn string_length(text: &[u8]) -> usize {
    let mut escaped = false;
    let end = text.iter().position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    });
    end.unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use crate::spec::Spec;

    use super::*;

    #[test]
    fn the_field_is_named() {
        let cases = [
            ("a number in a list", r#"{"process":{"cwd":"/","args":["a",1]}}"#, "process.args[1]"),
            ("an object for a text", r#"{"process":{"cwd": {"a":1}}}"#, "process.cwd"),
            ("a text for a number", r#"{"process":{"user":{"uid":"0"}}}"#, "process.user.uid"),
            ("too large", r#"{"process":{"user":{"uid":4294967296}}}"#, "process.user.uid"),
            ("negative", r#"{"process":{"user":{"uid":-1}}}"#, "process.user.uid"),
            ("a text for an object", r#"{"linux":"x"}"#, "linux"),
            (
                "in an object of a list",
                r#"{"mounts":[{"destination":"/a"},{"destination":2}]}"#,
                "mounts[1].destination",
            ),
            ("on another line", "{\n  \"linux\": {\n    \"sysctl\": [7]\n  }\n}", "linux.sysctl"),
            (
                "quotes and braces in a text",
                r#"{"hostname":"\"}{\\","domainname":1}"#,
                "domainname",
            ),
            ("no JSON after a field", r#"{"hostname":"a","domainname":}"#, "domainname"),
            ("the whole", "7", ""),
            ("nothing", "", ""),
        ];
        for (case, text, want) in cases {
            let error = serde_json::from_slice::<Spec>(text.as_bytes()).expect_err(case);
            assert_eq!(Place::of(&error, text.as_bytes()).0, want, "{case}: {error}");
        }
    }

    #[test]
    fn any_end_is_a_place() {
        let text = br#"{"a":[{"b\"":[1,{"c":"d"}]},[[]]],"\u0007\n":{"x":[]}}"#;
        for end in 0..=text.len() {
            assert!(!at_the_end(&text[..end]).to_string().contains('\n'), "{end}");
        }
        assert_eq!(at_the_end(b"]}]}").to_string(), "");
        assert_eq!(at_the_end(b"{\"a\nb\":").to_string(), ": a\\nb");
    }
}
