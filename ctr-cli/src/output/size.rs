//! Sizes for people, in the two spellings that stock `ctr` has.

/// A size in binary units, as `images` and `snapshots` print it: `1.9 MiB`.
///
/// Source: containerd, `pkg/progress`.
pub(crate) fn binary_size(bytes: i64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (value, unit) = scale(bytes, 1024.0, &UNITS);
    if unit == "B" { format!("{bytes}.0 B") } else { format!("{value:.1} {unit}") }
}

/// A size in decimal units with four digits, as `content` prints it: `1.085MB`.
///
/// Source: docker, `go-units`, `HumanSize`.
pub(crate) fn decimal_size(bytes: i64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (value, unit) = scale(bytes, 1000.0, &UNITS);
    let digits = match value {
        v if v >= 1000.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 10.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

#[expect(clippy::cast_precision_loss, reason = "shown with four digits")]
fn scale(bytes: i64, base: f64, units: &[&'static str]) -> (f64, &'static str) {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    (value, units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            (0, "0.0 B", "0B"),
            (349, "349.0 B", "349B"),
            (1024, "1.0 KiB", "1.024kB"),
            (1_084_733, "1.0 MiB", "1.085MB"),
            (2_000_896, "1.9 MiB", "2.001MB"),
            (5 << 30, "5.0 GiB", "5.369GB"),
        ];
        for (bytes, binary, decimal) in cases {
            assert_eq!(binary_size(bytes), binary, "{bytes}");
            assert_eq!(decimal_size(bytes), decimal, "{bytes}");
        }
    }
}
