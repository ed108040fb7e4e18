//! Quotes what criu says of an error: it writes it to a file of its own, and its answers have next
//! to nothing.

use std::{fs::File, io::Read as _, path::Path};

use crate::log;

/// How many lines before one with an error are shown.
const CONTEXT: usize = 5;

/// The most bytes of the log that are read.
const SIZE_MAX: u64 = 16 << 20;

/// Logs the errors in the file as warnings.
pub(crate) fn quote(path: &Path) {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(SIZE_MAX).read_to_end(&mut text));
    if let Err(error) = read {
        let cause = crate::error::Cause(error);
        return log::warn(&format!("open {}: {cause}", path.display()));
    }
    let lines = errors(&String::from_utf8_lossy(&text));
    if lines.is_empty() {
        return;
    }
    log::warn(&format!("--- Quoting {:?}", path.display().to_string()));
    for line in &lines {
        log::warn(line);
    }
    log::warn("---");
}

/// The lines with an error, and a few before each, with their numbers.
fn errors(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut shown = Vec::new();
    // The first line that was not shown yet.
    let mut next = 0;
    for at in (0..lines.len()).filter(|&at| lines[at].contains("Error")) {
        let from = at.saturating_sub(CONTEXT);
        if from > next && next > 0 {
            shown.push("...".to_owned());
        }
        let new = (from.max(next)..=at).filter(|&at| !lines[at].is_empty());
        shown.extend(new.map(|at| format!("{}:{}", at + 1, lines[at])));
        next = at + 1;
    }
    shown
}

/// Checks what is shown of a log.
pub(super) fn fuzz(text: &str) {
    let lines = errors(text);
    let wrong = text.lines().filter(|line| line.contains("Error")).count();
    assert_eq!(lines.iter().filter(|line| line.contains("Error")).count(), wrong, "{text:?}");
    assert!(lines.len() <= wrong * (CONTEXT + 2), "{text:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_errors() {
        let numbered = |wrong: &[usize], count: usize| -> String {
            let line = |number| if wrong.contains(&number) { "Error\n" } else { "x\n" };
            (1..=count).map(line).collect()
        };
        let cases: [(&str, String, &[&str]); 5] = [
            ("nothing", String::new(), &[]),
            ("no error", numbered(&[], 9), &[]),
            ("first line", numbered(&[1], 9), &["1:Error"]),
            ("near each other", numbered(&[2, 4], 9), &["1:x", "2:Error", "3:x", "4:Error"]),
            (
                "far from each other",
                numbered(&[1, 9], 9),
                &["1:Error", "...", "4:x", "5:x", "6:x", "7:x", "8:x", "9:Error"],
            ),
        ];
        for (case, text, want) in cases {
            assert_eq!(errors(&text), want, "{case}");
        }
    }
}
