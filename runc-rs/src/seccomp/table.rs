//! Turns rules by name into ranges of call numbers, for each architecture.

use super::{
    architecture::{Architecture, Multiplexed, X32_BIT},
    numbers::{self, TABLES},
    profile::{Action, Condition, Operator, Profile},
};

/// What happens to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The same whatever the arguments are.
    Always(Action),
    /// The action of the first case that holds, or else the default.
    Depends(Vec<Case>),
}

/// An action and the conditions for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
    /// Whether the conditions look at 64 bits.
    pub(super) wide: bool,
}

/// Calls from this number on, up to the next range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u32,
    pub(super) verdict: Verdict,
}

/// The verdicts on all call numbers that come with one audit token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) token: u32,
    /// By `start`, the first of which is 0; neighbours differ.
    pub(super) ranges: Vec<Range>,
}

/// The table of each token that the profile lets in, the native one first.
pub(super) fn tables(profile: &Profile<'_>) -> Vec<Table> {
    let named = resolve(profile);
    let x32 = profile.architectures.iter().find(|architecture| architecture.is_x32());
    let mut tables = Vec::with_capacity(profile.architectures.len());
    for &architecture in &profile.architectures {
        if architecture.is_x32() {
            continue;
        }
        let mut ranges = Ranges::new(profile.default);
        ranges.add(profile, &named, architecture);
        if architecture.is_x86_64() {
            if let Some(&x32) = x32 {
                ranges.push(X32_BIT, Verdict::Always(profile.default));
                ranges.add(profile, &named, x32);
            } else {
                // A tracer skips a call by making its number -1: that is no foreign call.
                ranges.push(X32_BIT, Verdict::Always(Action::KILL_THREAD));
                ranges.push(u32::MAX, Verdict::Always(profile.default));
            }
        }
        tables.push(Table { token: architecture.token, ranges: ranges.list });
    }
    tables
}

/// A name of a rule, looked up.
struct Named {
    row: &'static [u16; TABLES],
    /// Index into the profile's rules.
    rule: usize,
    multiplexed: Option<Multiplexed>,
}

fn resolve(profile: &Profile<'_>) -> Vec<Named> {
    let mut list = Vec::with_capacity(512);
    for (rule, content) in profile.rules.iter().enumerate() {
        for name in content.names {
            let Some(row) = numbers::row(name) else { continue };
            list.push(Named { row, rule, multiplexed: Multiplexed::of(name) });
        }
    }
    list
}

/// That a rule speaks of a call number.
struct Mention {
    number: u32,
    rule: usize,
    /// The function of a multiplexer that the rule is limited to.
    function: Option<u32>,
}

fn mentions(profile: &Profile<'_>, named: &[Named], architecture: Architecture) -> Vec<Mention> {
    let mut mentions = Vec::with_capacity(named.len() + 32);
    for Named { row, rule, multiplexed } in named {
        if profile.rules[*rule].action == profile.default {
            continue;
        }
        if let Some(number) = architecture.number(row) {
            mentions.push(Mention { number, rule: *rule, function: None });
        }
        let through = multiplexed.and_then(|multiplexed| {
            let number = architecture.number(numbers::row(multiplexed.through)?)?;
            Some(Mention { number, rule: *rule, function: Some(multiplexed.function) })
        });
        mentions.extend(through);
    }
    mentions.sort_by_key(|mention| (mention.number, mention.rule));
    mentions
}

/// Ranges under construction.
struct Ranges {
    default: Action,
    list: Vec<Range>,
}

impl Ranges {
    fn new(default: Action) -> Self {
        let first = Range { start: 0, verdict: Verdict::Always(default) };
        let mut list = Vec::with_capacity(256);
        list.push(first);
        Self { default, list }
    }

    /// Adds the calls of an architecture, which are above all calls so far.
    fn add(&mut self, profile: &Profile<'_>, named: &[Named], architecture: Architecture) {
        if architecture.unknown_calls_are_zero() && !self.default.passes() {
            self.push(0, Verdict::Always(Action::NO_SUCH_CALL));
            self.push(1, Verdict::Always(self.default));
        }
        let mentions = mentions(profile, named, architecture);
        for same in mentions.chunk_by(|a, b| a.number == b.number) {
            let number = same[0].number;
            self.push(number, verdict(profile, same, architecture.wide));
            self.push(number + 1, Verdict::Always(self.default));
        }
        if self.default.passes() {
            return;
        }
        let last = named.iter().filter_map(|named| architecture.number(named.row)).max();
        if let Some(last) = last {
            self.push(last + 1, Verdict::Always(Action::NO_SUCH_CALL));
        }
    }

    /// Begins a range; if one begins at the same number, it was empty.
    fn push(&mut self, start: u32, verdict: Verdict) {
        while self.list.last().is_some_and(|last| last.start == start) {
            self.list.pop();
        }
        if self.list.last().is_none_or(|last| last.verdict != verdict) {
            self.list.push(Range { start, verdict });
        }
    }
}

fn verdict(profile: &Profile<'_>, mentions: &[Mention], wide: bool) -> Verdict {
    let mut cases = Vec::new();
    for mention in mentions {
        let rule = &profile.rules[mention.rule];
        for alternative in &rule.alternatives {
            let mut conditions: Vec<Condition> = alternative
                .iter()
                .copied()
                .filter(|condition| !holds_always(*condition, wide))
                .collect();
            if let Some(function) = mention.function {
                // The other arguments of a multiplexer are not those of the call, but
                // libseccomp compares them all the same, and so must we.
                conditions.retain(|condition| condition.argument != 0);
                let value = u64::from(function);
                let selects = Condition { argument: 0, operator: Operator::Equal, value };
                conditions.insert(0, selects);
            }
            if conditions.is_empty() {
                return Verdict::Always(rule.action);
            }
            cases.push(Case { conditions, action: rule.action, wide });
        }
    }
    Verdict::Depends(cases)
}

/// Whether a condition compares no bit at all.
fn holds_always(condition: Condition, wide: bool) -> bool {
    match condition.operator {
        Operator::MaskedEqual(mask) if wide => mask == 0,
        Operator::MaskedEqual(mask) => mask & 0xffff_ffff == 0,
        _ => false,
    }
}
