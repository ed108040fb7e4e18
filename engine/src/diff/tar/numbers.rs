//! Numbers in headers.

use super::TarError;

/// A number in octal text, or in base 256 with the highest bit of the first byte set.
pub(super) fn parse(bytes: &[u8], field: &'static str) -> Result<i64, TarError> {
    let bad = TarError::Number { field };
    match bytes.first() {
        Some(first) if first & 0x80 != 0 => base_256(bytes).ok_or(bad),
        _ => octal(bytes).ok_or(bad),
    }
}

/// Two's complement over all bits but the mark; a negative number has the bit below it set.
fn base_256(bytes: &[u8]) -> Option<i64> {
    let negative = bytes[0] & 0x40 != 0;
    let start = if negative { -1_i64 } else { 0 };
    let first = if negative { bytes[0] } else { bytes[0] & 0x7f };
    let mut value = start;
    for byte in std::iter::once(first).chain(bytes[1..].iter().copied()) {
        let high = value >> 55;
        if high != start {
            return None;
        }
        value = (value << 8) | i64::from(byte);
    }
    Some(value)
}

fn octal(bytes: &[u8]) -> Option<i64> {
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = bytes.iter().position(|byte| !is_padding(byte)).unwrap_or(bytes.len());
    let bytes = &bytes[start..];
    let len = bytes.iter().position(is_padding).unwrap_or(bytes.len());
    bytes[..len].iter().try_fold(0_i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

/// A decimal number.
pub(super) fn decimal(bytes: &[u8]) -> Option<i64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let cases: [(&str, &[u8], Option<i64>); 13] = [
            ("plain", b"0000644\0", Some(0o644)),
            ("spaces", b"  644 \0 ", Some(0o644)),
            ("no end", b"77777777", Some(0o77_777_777)),
            ("empty", b"\0\0\0\0\0\0\0\0", Some(0)),
            ("junk behind the end", b"644\0zzzz", Some(0o644)),
            ("not octal", b"0000648\0", None),
            ("sign", b"-000644\0", None),
            ("base 256", b"\x80\0\0\0\0\0\x01\x02", Some(0x102)),
            ("minus one", b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            ("12 bytes", b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            ("too large", b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", None),
            ("far too large", b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
            ("12 bytes, negative", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
        ];
        for (case, bytes, want) in cases {
            assert_eq!(parse(bytes, "x").ok(), want, "{case}");
        }
    }
}
