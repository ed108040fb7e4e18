//! What a container's labels ask for, compared with what its task does.
//!
//! | label                                      | value                                            |
//! |--------------------------------------------|--------------------------------------------------|
//! | `containerd.io/restart.status`             | `running`, `stopped`; without it nothing is done |
//! | `containerd.io/restart.policy`             | [`Policy`]; `always` if absent                   |
//! | `containerd.io/restart.count`              | how often the monitor has started the container  |
//! | `containerd.io/restart.explicitly-stopped` | whether a client has stopped the container       |
//! | `containerd.io/restart.loguri`             | where a restarted container's output goes        |
//! | `containerd.io/restart.logpath`            | the same, as a path; of containerd before 2.0    |
//! | `containerd.io/restart.pending`            | `true` while a failed task is being replaced,    |
//! |                                            | `failed` when that failed and is to be tried again |
//!
//! An explicit stop holds under every policy. `always` alone starts such a container again when the
//! daemon starts, as Docker's does. containerd heeds an explicit stop for `unless-stopped` only, so
//! that a client's stop is undone under the others.
//!
//! How a task ended is lost with the task. So before one that failed is deleted under `on-failure`, it
//! is noted that another is to take its place: a daemon that is killed in between is followed by one
//! that knows, and that does not count the same restart twice. When the start fails, it is noted that
//! another try is due, which counts. containerd has no such label.
//!
//! Source: containerd, `core/runtime/restart`, `plugins/restart`.

use std::str::FromStr;

use crate::labels::Labels;

/// What all labels of the monitor begin with.
pub(super) const PREFIX: &str = "containerd.io/restart.";

pub(super) const STATUS: &str = "containerd.io/restart.status";
const POLICY: &str = "containerd.io/restart.policy";
const COUNT: &str = "containerd.io/restart.count";
const EXPLICITLY_STOPPED: &str = "containerd.io/restart.explicitly-stopped";
const LOG_URI: &str = "containerd.io/restart.loguri";
const PENDING: &str = "containerd.io/restart.pending";

/// The values of [`PENDING`].
const REPLACING: &str = "true";
const TO_RETRY: &str = "failed";

const LOG_PATH: &str = "containerd.io/restart.logpath";

/// The policies that clients may name.
pub const POLICIES: [&str; 4] = ["no", "always", "on-failure", "unless-stopped"];

/// When a container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    No,
    Always,
    /// When it ended with another status than 0, at most `max` times; 0 for any number.
    OnFailure {
        max: u32,
    },
    UnlessStopped,
}

impl FromStr for Policy {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let (name, max) = match text.split_once(':') {
            Some((name, max)) => (name, Some(max)),
            None => (text, None),
        };
        let policy = match (name, max) {
            ("" | "always", None) => Self::Always,
            ("no", None) => Self::No,
            ("unless-stopped", None) => Self::UnlessStopped,
            ("on-failure", None) => Self::OnFailure { max: 0 },
            ("on-failure", Some(max)) => {
                let max = max.parse().map_err(|_| LabelError::MaxCount(max.to_owned()))?;
                Self::OnFailure { max }
            }
            ("" | "always" | "no" | "unless-stopped", Some(_)) => {
                return Err(LabelError::NoMaxCount(name.to_owned()));
            }
            _ => return Err(LabelError::Policy(text.to_owned())),
        };
        Ok(policy)
    }
}

/// Why labels say nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LabelError {
    #[error("restart policy {0:?} not supported")]
    Policy(String),
    #[error("restart policy {0:?} not support max retry count")]
    NoMaxCount(String),
    #[error("invalid max retry count: {0}")]
    MaxCount(String),
    #[error("invalid restart count: {0}")]
    Count(String),
}

/// What a container's task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// There is none.
    Absent,
    /// It waits for its start.
    Created,
    /// It runs, or is paused.
    Running,
    /// It has ended.
    Stopped { exit_status: u32 },
    /// Its shim does not say.
    Unknown,
}

/// What is remembered of a container beside its labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// How its last task ended, or 1 after a start that failed.
    pub(super) exit: Option<u32>,
    /// Whether the daemon has just started.
    pub(super) booting: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Leave,
    /// Make a new task in the place of what there is.
    Start,
    /// Kill and delete the task.
    Stop,
}

/// Decides what is to be done.
///
/// # Errors
///
/// The labels ask for something that there is not.
pub(super) fn decide(labels: &Labels, seen: Seen, memory: Memory) -> Result<Verdict, LabelError> {
    let verdict = match (labels.get(STATUS).map(String::as_str), seen) {
        (_, Seen::Unknown) => Verdict::Leave,
        (Some("running"), Seen::Absent | Seen::Created | Seen::Stopped { .. })
            if is_wanted(labels, seen, memory)? =>
        {
            Verdict::Start
        }
        (Some("stopped"), Seen::Created | Seen::Running) => Verdict::Stop,
        _ => Verdict::Leave,
    };
    Ok(verdict)
}

fn is_wanted(labels: &Labels, seen: Seen, memory: Memory) -> Result<bool, LabelError> {
    let stopped = is_explicitly_stopped(labels);
    Ok(match text(labels, POLICY).parse()? {
        Policy::No => false,
        Policy::Always => !stopped || memory.booting,
        Policy::UnlessStopped => !stopped,
        Policy::OnFailure { max } => {
            let cut_short = was_cut_short(labels, memory);
            let failed = match seen {
                Seen::Stopped { exit_status } => exit_status != 0,
                _ => {
                    let tried = memory.booting && text(labels, PENDING) == TO_RETRY;
                    cut_short || tried || memory.exit.is_some_and(|status| status != 0)
                }
            };
            !stopped && failed && (max == 0 || cut_short || count(labels)? < max)
        }
    })
}

/// Whether a container that was just started may go on.
pub(super) fn may_run(labels: &Labels) -> bool {
    text(labels, STATUS) == "running" && !is_explicitly_stopped(labels)
}

/// The labels that change when the monitor starts the container.
///
/// # Errors
///
/// `Count`, `Policy`, `MaxCount`, `NoMaxCount`.
pub(super) fn at_start(labels: &Labels, memory: Memory) -> Result<Labels, LabelError> {
    let mut changed = Labels::new();
    if !was_cut_short(labels, memory) {
        changed.insert(COUNT.to_owned(), count(labels)?.saturating_add(1).to_string());
    }
    if matches!(text(labels, POLICY).parse()?, Policy::OnFailure { .. }) {
        changed.insert(PENDING.to_owned(), REPLACING.to_owned());
    }
    if is_explicitly_stopped(labels) {
        changed.insert(EXPLICITLY_STOPPED.to_owned(), "false".to_owned());
    }
    Ok(changed)
}

/// The labels that change when that start is over, if `at_start` changed `changed`.
pub(super) fn after_start(changed: &Labels, succeeded: bool) -> Labels {
    let value = if succeeded { "" } else { TO_RETRY };
    let pending = changed.keys().filter(|key| *key == PENDING);
    pending.map(|key| (key.clone(), value.to_owned())).collect()
}

/// The labels that change when nothing is to be done, although an earlier daemon was killed in a start
/// or before its next try: there are no tries left, or a task was started, and a later end is not the
/// earlier one's failure.
pub(super) fn after_no_start(labels: &Labels, seen: Seen, memory: Memory) -> Labels {
    let pending = text(labels, PENDING);
    let started = pending == TO_RETRY && seen == Seen::Running;
    let stale = started || (memory.booting && [REPLACING, TO_RETRY].contains(&pending));
    stale.then(|| (PENDING.to_owned(), String::new())).into_iter().collect()
}

/// Whether an earlier daemon was killed while it put a new task in the place of a failed one.
fn was_cut_short(labels: &Labels, memory: Memory) -> bool {
    memory.booting && text(labels, PENDING) == REPLACING
}

/// Where output goes: a URI, or empty for nowhere.
pub(super) fn output(labels: &Labels) -> String {
    let (uri, path) = (text(labels, LOG_URI), text(labels, LOG_PATH));
    match (uri, path) {
        ("", "") => String::new(),
        ("", path) => format!("file://{path}"),
        (uri, _) => uri.to_owned(),
    }
}

fn count(labels: &Labels) -> Result<u32, LabelError> {
    match text(labels, COUNT) {
        "" => Ok(0),
        count => count.parse().map_err(|_| LabelError::Count(count.to_owned())),
    }
}

/// The words are those of Go's `ParseBool`.
fn is_explicitly_stopped(labels: &Labels) -> bool {
    matches!(text(labels, EXPLICITLY_STOPPED), "1" | "t" | "T" | "true" | "TRUE" | "True")
}

fn text<'a>(labels: &'a Labels, key: &str) -> &'a str {
    labels.get(key).map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `status=running policy=no` as labels.
    fn labels(text: &str) -> Labels {
        let pairs = text.split_whitespace().filter_map(|word| word.split_once('='));
        pairs.map(|(key, value)| (format!("{PREFIX}{key}"), value.to_owned())).collect()
    }

    const ENDED: Seen = Seen::Stopped { exit_status: 0 };
    const FAILED: Seen = Seen::Stopped { exit_status: 1 };

    #[test]
    fn verdicts() {
        use Verdict::{Leave, Start, Stop};

        let none = Memory::default();
        let boot = Memory { booting: true, ..none };
        let cases = [
            ("no labels", "", ENDED, none, Leave),
            ("no status", "policy=always", ENDED, none, Leave),
            ("odd status", "status=paused", ENDED, none, Leave),
            ("no policy, ended", "status=running", ENDED, none, Start),
            ("no policy, no task", "status=running", Seen::Absent, none, Start),
            ("no policy, never started", "status=running", Seen::Created, none, Start),
            ("no policy, runs", "status=running", Seen::Running, none, Leave),
            ("no policy, shim is silent", "status=running", Seen::Unknown, none, Leave),
            ("no", "status=running policy=no", FAILED, boot, Leave),
            ("always", "status=running policy=always", ENDED, none, Start),
            (
                "always, stopped",
                "status=running policy=always explicitly-stopped=true",
                ENDED,
                none,
                Leave,
            ),
            (
                "always, stopped, daemon starts",
                "status=running policy=always explicitly-stopped=true",
                ENDED,
                boot,
                Start,
            ),
            ("unless-stopped", "status=running policy=unless-stopped", ENDED, none, Start),
            (
                "unless-stopped, not stopped",
                "status=running policy=unless-stopped explicitly-stopped=false",
                Seen::Absent,
                boot,
                Start,
            ),
            (
                "unless-stopped, stopped, daemon starts",
                "status=running policy=unless-stopped explicitly-stopped=1",
                Seen::Absent,
                boot,
                Leave,
            ),
            ("to stop, runs", "status=stopped", Seen::Running, none, Stop),
            ("to stop, created", "status=stopped", Seen::Created, none, Stop),
            ("to stop, ended", "status=stopped", FAILED, boot, Leave),
            ("to stop, no task", "status=stopped", Seen::Absent, boot, Leave),
        ];
        for (case, text, seen, memory, want) in cases {
            assert_eq!(decide(&labels(text), seen, memory), Ok(want), "{case}");
        }
    }

    #[test]
    fn verdicts_on_failures() {
        use Verdict::{Leave, Start};

        let none = Memory::default();
        let boot = Memory { booting: true, ..none };
        let failed = Memory { exit: Some(1), ..none };
        let ended = Memory { exit: Some(0), ..none };
        let cases = [
            ("on-failure, ended", "status=running policy=on-failure", ENDED, failed, Leave),
            ("on-failure, failed", "status=running policy=on-failure", FAILED, none, Start),
            (
                "on-failure, stopped",
                "status=running policy=on-failure explicitly-stopped=true",
                FAILED,
                none,
                Leave,
            ),
            (
                "on-failure, failed and deleted",
                "status=running policy=on-failure",
                Seen::Absent,
                failed,
                Start,
            ),
            (
                "on-failure, ended and deleted",
                "status=running policy=on-failure",
                Seen::Absent,
                ended,
                Leave,
            ),
            (
                "on-failure, nothing known",
                "status=running policy=on-failure",
                Seen::Absent,
                boot,
                Leave,
            ),
            ("tries left", "status=running policy=on-failure:2 count=1", FAILED, none, Start),
            ("no tries left", "status=running policy=on-failure:2 count=2", FAILED, none, Leave),
        ];
        for (case, text, seen, memory, want) in cases {
            assert_eq!(decide(&labels(text), seen, memory), Ok(want), "{case}");
        }
    }

    #[test]
    fn verdicts_after_a_kill() {
        use Verdict::{Leave, Start};

        let boot = Memory { booting: true, exit: None };
        let failed = Memory { booting: false, exit: Some(1) };
        let once = "on-failure:1 count=1 pending=true";
        let (twice, last) =
            ("on-failure:2 count=1 pending=failed", "on-failure:1 count=1 pending=failed");
        let stopped = "on-failure pending=true explicitly-stopped=true";
        let cases = [
            ("killed while it was replaced", once, Seen::Absent, boot, Start),
            ("killed before it was deleted", once, FAILED, boot, Start),
            ("killed before its place was started", once, Seen::Created, boot, Start),
            ("its place ended well", once, ENDED, boot, Leave),
            ("not killed", once, Seen::Absent, failed, Leave),
            ("killed before the next try", twice, Seen::Absent, boot, Start),
            ("killed after the last try", last, Seen::Absent, boot, Leave),
            ("killed after a client's task ended well", twice, ENDED, boot, Leave),
            ("stopped while it was replaced", stopped, Seen::Absent, boot, Leave),
        ];
        for (case, policy, seen, memory, want) in cases {
            let labels = labels(&format!("status=running policy={policy}"));
            assert_eq!(decide(&labels, seen, memory), Ok(want), "{case}");
        }
    }

    #[test]
    fn labels_that_say_nothing() {
        let cases = [
            ("policy", "policy=sometimes", r#"restart policy "sometimes" not supported"#),
            (
                "always:3",
                "policy=always:3",
                r#"restart policy "always" not support max retry count"#,
            ),
            ("max", "policy=on-failure:x", "invalid max retry count: x"),
            ("negative max", "policy=on-failure:-1", "invalid max retry count: -1"),
            ("count", "policy=on-failure:3 count=many", "invalid restart count: many"),
        ];
        for (case, text, want) in cases {
            let labels = labels(&format!("status=running {text}"));
            let error = decide(&labels, FAILED, Memory::default()).expect_err(case);
            assert_eq!(error.to_string(), want, "{case}");
        }
    }

    #[test]
    fn changes_at_a_start() {
        let none = Memory::default();
        let boot = Memory { booting: true, ..none };
        let cases = [
            ("first", "status=running", boot, "count=1", ""),
            ("later", "count=41 explicitly-stopped=false", none, "count=42", ""),
            (
                "was stopped",
                "count=1 explicitly-stopped=t",
                boot,
                "count=2 explicitly-stopped=false",
                "",
            ),
            ("failed", "policy=on-failure count=1", none, "count=2 pending=true", "pending="),
            (
                "cut short",
                "policy=on-failure count=1 pending=true",
                boot,
                "pending=true",
                "pending=",
            ),
            (
                "after a try that failed",
                "policy=on-failure count=1 pending=failed",
                boot,
                "count=2 pending=true",
                "pending=",
            ),
        ];
        for (case, text, memory, want, after) in cases {
            let changed = at_start(&labels(text), memory).expect(case);
            assert_eq!(changed, labels(want), "{case}");
            assert_eq!(after_start(&changed, true), labels(after), "{case}");
            let failed = if after.is_empty() { "" } else { "pending=failed" };
            assert_eq!(after_start(&changed, false), labels(failed), "{case}");
        }
    }

    #[test]
    fn changes_without_a_start() {
        let none = Memory::default();
        let boot = Memory { booting: true, ..none };
        let cases = [
            ("killed in a start", "pending=true", Seen::Running, boot, "pending="),
            ("no tries left", "pending=failed", Seen::Absent, boot, "pending="),
            ("nothing to forget", "pending=", Seen::Running, boot, ""),
            ("in a start", "pending=true", Seen::Running, none, ""),
            ("before the next try", "pending=failed", Seen::Absent, none, ""),
            ("a client has started it", "pending=failed", Seen::Running, none, "pending="),
        ];
        for (case, text, seen, memory, want) in cases {
            assert_eq!(after_no_start(&labels(text), seen, memory), labels(want), "{case}");
        }
    }

    #[test]
    fn outputs() {
        let cases = [
            ("none", "", ""),
            ("uri", "loguri=binary:///bin/log?x logpath=/y", "binary:///bin/log?x"),
            ("path", "logpath=/var/log/c1", "file:///var/log/c1"),
        ];
        for (case, text, want) in cases {
            assert_eq!(output(&labels(text)), want, "{case}");
        }
    }
}
