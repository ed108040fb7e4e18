//! Steps of a test run, each a command that starts test programs.
//!
//! Thousands of tests that start real programs on a busy machine meet a wait that was too short now and
//! then. A step that fails is therefore run once more, and what failed first is named at the end either
//! way: a test that needs its second try is a fault to look for, but not one that stops a change.

use std::process::Command;

use anyhow::Result;
use integration::sum::Sum;

use crate::run::watch;

/// What the steps gave so far.
#[derive(Default)]
pub(crate) struct Steps {
    sum: Sum,
    failures: Vec<String>,
    again: Vec<String>,
}

/// Whether a step that fails is run once more.
#[derive(Clone, Copy)]
pub(crate) enum Tries {
    /// Its program does so itself, test by test.
    Once,
    /// All of it.
    Twice,
    /// Those of its tests that failed, by their names: it is cargo's own kind of tests.
    TwiceByName,
}

/// What one try of a step printed.
#[derive(Default)]
struct Try {
    sum: Sum,
    failures: Vec<String>,
}

impl Steps {
    /// Runs a step; `command` gives what starts it.
    pub(crate) fn run(
        &mut self,
        name: &str,
        tries: Tries,
        command: impl Fn() -> Command,
    ) -> Result<()> {
        println!("\ntest: {name}");
        let first = Try::of(name, &mut command())?;
        if first.sum.failed == 0 || matches!(tries, Tries::Once) {
            self.sum.add(first.sum);
            self.failures.extend(first.failures);
            return Ok(());
        }
        println!("\ntest: {name}, once more for: {}", first.failures.join(" "));
        let mut second = command();
        let by_name = matches!(tries, Tries::TwiceByName) && first.are_named();
        if by_name {
            second.args(["--", "--exact"]).args(&first.failures);
        }
        let second = Try::of(name, &mut second)?;
        self.sum.add(if by_name { after_names(first.sum, second.sum) } else { second.sum });
        let again = first.failures.into_iter().filter(|it| !second.failures.contains(it));
        self.again.extend(again);
        self.failures.extend(second.failures);
        Ok(())
    }

    /// Prints what there was to say, the sum last, and gives whether all is good.
    pub(crate) fn end(self) -> bool {
        for name in &self.again {
            println!("only at the second try: {name}");
        }
        for name in &self.failures {
            println!("failed: {name}");
        }
        let Sum { passed, failed, skipped } = self.sum;
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        failed == 0
    }
}

impl Try {
    /// Runs `command`; a program that breaks off counts as a failure.
    fn of(step: &str, command: &mut Command) -> Result<Self> {
        let mut this = Self::default();
        let good = watch(command, |line| {
            this.sum.read(line);
            this.failures.extend(failure(line).map(str::to_owned));
        })?;
        if !good && this.sum.failed == 0 {
            this.sum.failed = 1;
            this.failures.push(format!("{step}: a program broke off"));
        }
        Ok(this)
    }

    /// Whether all that failed is known by name.
    fn are_named(&self) -> bool {
        self.sum.failed == self.failures.len() && !self.failures.iter().any(|it| it.contains(' '))
    }
}

/// The sum of a step of which only what had failed was run a second time. What was not found by its name then
/// has failed still.
fn after_names(first: Sum, second: Sum) -> Sum {
    let good = second.passed.min(first.failed);
    Sum { passed: first.passed + good, failed: first.failed - good, skipped: first.skipped }
}

/// The test that a line of a test program's output says has failed: of cargo's kind of tests (`test a::b ...
/// FAILED`, and `a::b --- FAILED` when they are quiet), of ours (`test cell name ... FAILED`), and of
/// either in a virtual machine, whose name comes first.
fn failure(line: &str) -> Option<&str> {
    if let Some(name) = line.strip_suffix(" --- FAILED") {
        return Some(name);
    }
    let (name, _) = line.split_once(" ... FAILED").or_else(|| line.split_once(": FAILED:"))?;
    Some(name.strip_prefix("test ").unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_failed() {
        for (line, name) in [
            (
                "sockets::tests::nobody_is_waited_for_ever --- FAILED",
                Some("sockets::tests::nobody_is_waited_for_ever"),
            ),
            (
                "test gantryd/own-shim/runc-rs/own-ctr stop ... FAILED",
                Some("gantryd/own-shim/runc-rs/own-ctr stop"),
            ),
            ("vm v2: test exec ... FAILED", Some("vm v2: test exec")),
            ("powercut 3: Plan { at: 2 }: FAILED: a blob", Some("powercut 3: Plan { at: 2 }")),
            ("test stop ... ok", None),
            ("test result: FAILED. 40 passed; 1 failed; 0 ignored", None),
        ] {
            assert_eq!(failure(line), name, "{line}");
        }
    }

    #[test]
    fn what_is_not_found_by_its_name_has_failed() {
        let first = Sum { passed: 40, failed: 2, skipped: 1 };
        for (passed, failed) in [(2, 0), (1, 1), (0, 2)] {
            let second = Sum { passed, failed: 0, skipped: 40 };
            let sum = Sum { passed: 40 + passed, failed, skipped: 1 };
            assert_eq!(after_names(first, second), sum);
        }
    }

    #[test]
    fn tries_again_and_says_so() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        let directory = tempfile::tempdir().expect("a directory");
        let mark = directory.path().join("mark");
        let once = format!(
            "if [ -e {0} ]; then echo 'test result: ok. 1 passed; 0 failed; 9 ignored'; else : >{0}; \
             echo 'test a ... FAILED'; echo 'test result: FAILED. 4 passed; 1 failed; 0 ignored'; exit 1; fi",
            mark.display()
        );
        let mut steps = Steps::default();
        steps.run("flaky", Tries::Twice, || shell(&once)).expect("runs");
        assert_eq!(
            steps.sum,
            Sum { passed: 1, failed: 0, skipped: 9 },
            "of the try that ran it all"
        );
        assert_eq!((&*steps.again, &*steps.failures), (&["a".to_owned()][..], &[][..]));

        let never = "echo 'test b ... FAILED'; echo 'test result: FAILED. 4 passed; 1 failed; 0 ignored'; exit 1";
        steps.run("broken", Tries::Twice, || shell(never)).expect("runs");
        steps.run("gone", Tries::Once, || shell("exit 3")).expect("runs");
        assert_eq!(steps.sum, Sum { passed: 5, failed: 2, skipped: 9 });
        assert_eq!(steps.failures, ["b", "gone: a program broke off"]);
        assert!(!steps.end());
    }
}
