//! Times on the wire.

use prost_types::Timestamp;

/// What containerd sends where there is no time: the zero of Go's times, the start of the year 1.
///
/// Clients that were written for containerd read a time that is absent as the start of 1970, which
/// they take for a time.
pub const NO_TIME: Timestamp = Timestamp { seconds: -62_135_596_800, nanos: 0 };

/// The time, if it is one: neither absent nor [`NO_TIME`].
pub fn known(time: Option<Timestamp>) -> Option<Timestamp> {
    time.filter(|time| *time != NO_TIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_time() {
        // As Go's library prints its zero.
        assert_eq!(NO_TIME.to_string(), "0001-01-01T00:00:00Z");
        let epoch = Timestamp::default();
        for (case, time, want) in [
            ("absent", None, None),
            ("Go's zero", Some(NO_TIME), None),
            ("1970", Some(epoch), Some(epoch)),
        ] {
            assert_eq!(known(time), want, "{case}");
        }
    }
}
