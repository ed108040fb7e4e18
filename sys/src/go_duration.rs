//! Durations as programs in Go write them, and so containerd's configuration, its clients and runc's command
//! line: `1h30m`, `100ms`, `0`.
//!
//! Source: Go, `time.ParseDuration`.

use std::time::Duration;

/// What each unit has in nanoseconds; longer names come before those that they start with.
const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// How many digits a number may have: more say nothing that the result can hold.
const DIGITS_MAX: usize = 30;

/// The duration that `text` says, in nanoseconds; nothing when it is none, or too long.
pub fn parse(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (digits, after) = rest.split_at(number);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let is_none = whole.is_empty() && fraction.is_empty();
        if is_none || fraction.contains('.') || whole.len() > DIGITS_MAX {
            return None;
        }
        let (unit, value) = UNITS.iter().find(|(unit, _)| after.starts_with(unit))?;
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(*value)?)?;
        let mut place = *value;
        for digit in fraction.bytes() {
            // What is below a nanosecond is dropped.
            total += i128::from(digit - b'0') * place / 10;
            place /= 10;
        }
        rest = &after[unit.len()..];
    }
    i64::try_from(sign * total).ok()
}

/// As [`parse`], of a duration that is not negative.
pub fn parse_positive(text: &str) -> Option<Duration> {
    Some(Duration::from_nanos(u64::try_from(parse(text)?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_negative_ones() {
        for (text, want) in [("0", Some(0)), ("1.5s", Some(1500)), ("-1s", None), ("5", None)] {
            assert_eq!(parse_positive(text), want.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn parse() {
        let cases = [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("24h", Some(86_400_000_000_000)),
            ("1h30m0.5s", Some(5_400_500_000_000)),
            ("1.5ms", Some(1_500_000)),
            (".5s", Some(500_000_000)),
            ("2us", Some(2_000)),
            ("2µs", Some(2_000)),
            ("-1ns", Some(-1)),
            ("", None),
            ("-", None),
            ("1", None),
            ("s", None),
            (".s", None),
            ("1.2.3s", None),
            ("1d", None),
            ("=1h", None),
            ("9999999h", None),
            ("99999999999999999999999999999999s", None),
        ];
        for (text, want) in cases {
            assert_eq!(super::parse(text), want, "{text:?}");
        }
    }
}
