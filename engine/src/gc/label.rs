//! What labels say about what is kept.
//!
//! Source: containerd, `core/metadata/gc.go`.

use std::time::SystemTime;

use super::object::Kind;
use sys::go_duration;

/// The prefix of labels that refer to snapshots that were used at a time that fits:
/// `…[.<snapshotter>][/x] = usedat<24h,…|<key>`.
const CONDITIONAL: &str = "containerd.io/gc.cond.snapshot";

/// The prefix of a snapshot's labels that say when it was used (RFC 3339).
const USED: &str = "containerd.io/gc.cond.value-usedat";

/// How many conditions one label may have.
const CONDITIONS_MAX: usize = 64;

/// A label that makes edges.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Label<'a> {
    /// The object with the label keeps the one of this kind that the value names.
    Reference(Kind),
    /// The one that the value names keeps the object with the label.
    Back(Kind),
    /// The object with the label keeps this one if one of the conditions holds for it.
    Conditional { kind: Kind, name: &'a str, conditions: Vec<Condition> },
}

/// How long ago something was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Less than these nanoseconds.
    Within(i64),
    /// More than these nanoseconds.
    Before(i64),
}

impl<'a> Label<'a> {
    pub(super) fn parse(key: &str, value: &'a str) -> Option<Self> {
        if let Some(rest) = key.strip_prefix(CONDITIONAL) {
            let (all, name) = value.split_once('|')?;
            let rest = rest.trim_start_matches(['.', '/']);
            let snapshotter = rest.split_once('/').map_or(rest, |(name, _)| name);
            let conditions = all.split(',').take(CONDITIONS_MAX).filter_map(Condition::parse);
            let kind = Kind::Snapshot(snapshotter.to_owned());
            return Some(Self::Conditional { kind, name, conditions: conditions.collect() });
        }
        let (is_back, rest) = match key.strip_prefix("containerd.io/gc.ref.") {
            Some(rest) => (false, rest),
            None => (true, key.strip_prefix("containerd.io/gc.bref.")?),
        };
        let make = |kind| Some(if is_back { Self::Back(kind) } else { Self::Reference(kind) });
        if let Some(snapshotter) = rest.strip_prefix("snapshot.") {
            let name = snapshotter.split_once('/').map_or(snapshotter, |(name, _)| name);
            return make(Kind::Snapshot(name.to_owned()));
        }
        // What follows the kind only makes the label's key unique.
        match rest.split_once(['.', '/']).map_or(rest, |(kind, _)| kind) {
            "content" => make(Kind::Content),
            "image" => make(Kind::Image),
            "container" if is_back => make(Kind::Container),
            _ => None,
        }
    }
}

impl Condition {
    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("usedat")?;
        let (make, duration): (fn(i64) -> Self, _) = match rest.strip_prefix('<') {
            Some(duration) => (Self::Within, duration),
            None => (Self::Before, rest.strip_prefix('>')?),
        };
        // `<=` and `>=` are not supported for times, and no duration starts so.
        Some(make(go_duration::parse(duration)?))
    }

    pub(super) fn holds(self, time: SystemTime, now: SystemTime) -> bool {
        let nanoseconds = |later: SystemTime, earlier| {
            later.duration_since(earlier).ok().map(|age| age.as_nanos())
        };
        let age = match (nanoseconds(now, time), nanoseconds(time, now)) {
            (Some(age), _) => i128::try_from(age).unwrap_or(i128::MAX),
            (None, Some(ahead)) => -i128::try_from(ahead).unwrap_or(i128::MAX),
            (None, None) => 0,
        };
        match self {
            Self::Within(limit) => age < i128::from(limit),
            Self::Before(limit) => age > i128::from(limit),
        }
    }
}

/// When a snapshot was used, if this label of its says that.
pub(super) fn used(key: &str, value: &str) -> Option<SystemTime> {
    key.strip_prefix(USED)?;
    value.parse::<jiff::Timestamp>().ok().map(Into::into)
}
