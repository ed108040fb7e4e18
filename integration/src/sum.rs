//! How many tests there were, as their programs' own summaries say: the one line that test programs
//! write and that whoever runs them looks for.

use std::fmt;

/// What begins a test program's summary.
pub const MARK: &str = "test result: ";

/// How many tests there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Those that held.
    pub passed: usize,
    /// Those that did not.
    pub failed: usize,
    /// Those that were left out, by their own mark or by a filter.
    pub skipped: usize,
}

impl Sum {
    /// Takes a line of a test program's output, and says whether it is the summary: `test result:
    /// ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; ...`.
    pub fn read(&mut self, line: &str) -> bool {
        let Some((_, counts)) = line.split_once(MARK) else { return false };
        for part in counts.split([';', '.']) {
            let Some((count, what)) = part.trim().split_once(' ') else { continue };
            let count: usize = count.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" | "filtered out" => self.skipped += count,
                _ => {}
            }
        }
        true
    }

    /// Counts a test, and prints how it ended as test programs do: `test a_name ... ok`.
    #[expect(clippy::print_stdout, reason = "test programs report there")]
    pub fn take(&mut self, name: &str, result: &anyhow::Result<()>) {
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("test {name} ... ok");
            }
            Err(why) => {
                self.failed += 1;
                println!("test {name} ... FAILED\n    {why:#}");
            }
        }
    }

    /// Adds what another program counted.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// The summary of a test program, as [`Sum::read`] finds it.
impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped } = self;
        let word = if *failed == 0 { "ok" } else { "FAILED" };
        write!(f, "{MARK}{word}. {passed} passed; {failed} failed; {skipped} ignored")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_summaries() {
        let mut sum = Sum::default();
        for (line, is_summary) in [
            ("running 3 tests", false),
            ("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out", true),
            ("test result: FAILED. 10 passed; 2 failed; 0 ignored; 4 filtered out; 0.1s", true),
        ] {
            assert_eq!(sum.read(line), is_summary, "{line}");
        }
        assert_eq!(sum, Sum { passed: 13, failed: 2, skipped: 5 });
        let mut again = Sum::default();
        assert!(again.read(&sum.to_string()));
        assert_eq!(again, sum);
    }
}
