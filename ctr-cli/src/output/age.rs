//! Ages for people.

use super::to_jiff;

/// How long ago a time was, in one unit. Source: docker, `go-units`, `HumanDuration`.
pub(crate) fn age(time: Option<&prost_types::Timestamp>) -> String {
    match time.and_then(to_jiff) {
        Some(time) => words(jiff::Timestamp::now().duration_since(time).as_secs()),
        None => "-".to_owned(),
    }
}

fn words(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match (seconds, minutes, hours) {
        (..1, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, ..60, _) => format!("{minutes} minutes"),
        (.., 1) => "About an hour".to_owned(),
        (.., ..48) => format!("{hours} hours"),
        (.., ..336) => format!("{} days", hours / 24),
        (.., ..1440) => format!("{} weeks", hours / 168),
        (.., ..17520) => format!("{} months", hours / 720),
        _ => format!("{} years", hours / 8760),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        let cases = [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (86_400 * 3, "3 days"),
            (86_400 * 365 * 3, "3 years"),
        ];
        for (seconds, want) in cases {
            assert_eq!(words(seconds), want, "{seconds}");
        }
    }
}
