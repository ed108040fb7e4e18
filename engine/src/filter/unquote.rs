//! Reads Go's string literals, in double quotes, slashes or bars.

use super::parse::Fault;

const SYNTAX: Fault = "unquoting failed: quote syntax error";

/// The text that `literal` stands for; its first and last character are the quotes.
///
/// Bytes given by `\x` or octal numbers that make no UTF-8 become replacement characters, which
/// equal nothing that a client can have stored.
pub(super) fn unquote(literal: &str) -> Result<String, Fault> {
    let mut chars = literal.chars();
    let quote = chars.next().ok_or(SYNTAX)?;
    if chars.next_back() != Some(quote) {
        return Err(SYNTAX);
    }
    let mut text = Vec::with_capacity(literal.len());
    while let Some(char) = chars.next() {
        match char {
            '\\' => escape(&mut chars, quote, &mut text)?,
            '\n' => return Err(SYNTAX),
            char if char == quote => return Err(SYNTAX),
            char => push(char, &mut text),
        }
    }
    Ok(String::from_utf8(text)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

fn push(char: char, text: &mut Vec<u8>) {
    text.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
}

fn escape(chars: &mut std::str::Chars<'_>, quote: char, text: &mut Vec<u8>) -> Result<(), Fault> {
    let char = chars.next().ok_or(SYNTAX)?;
    match char {
        'a' => text.push(7),
        'b' => text.push(8),
        't' => text.push(9),
        'n' => text.push(10),
        'v' => text.push(11),
        'f' => text.push(12),
        'r' => text.push(13),
        '\\' => text.push(b'\\'),
        'x' => text.push(byte(number(chars, 0, 2, 16)?)?),
        'u' => push(unicode(number(chars, 0, 4, 16)?)?, text),
        'U' => push(unicode(number(chars, 0, 8, 16)?)?, text),
        '0'..='7' => {
            let first = char.to_digit(8).ok_or(SYNTAX)?;
            text.push(byte(number(chars, first, 2, 8)?)?);
        }
        char if char == quote => push(char, text),
        _ => return Err(SYNTAX),
    }
    Ok(())
}

fn number(
    chars: &mut std::str::Chars<'_>,
    mut value: u32,
    digits: usize,
    radix: u32,
) -> Result<u32, Fault> {
    for _ in 0..digits {
        let digit = chars.next().and_then(|char| char.to_digit(radix)).ok_or(SYNTAX)?;
        value = value.wrapping_mul(radix).wrapping_add(digit);
    }
    Ok(value)
}

fn byte(value: u32) -> Result<u8, Fault> {
    u8::try_from(value).map_err(|_| SYNTAX)
}

fn unicode(value: u32) -> Result<char, Fault> {
    if value > 0x10_FFFF {
        return Err(SYNTAX);
    }
    // A surrogate is no character; Go writes the replacement for it.
    Ok(char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals() {
        let cases = [
            ("plain", r#""abc""#, Some("abc")),
            ("empty", r#""""#, Some("")),
            ("quote", r#""a\"b""#, Some("a\"b")),
            ("slash in slashes", r"/a\/b/", Some("a/b")),
            ("other quote", r#""a\/b""#, None),
            ("letters", r#""\a\b\f\n\r\t\v\\""#, Some("\u{7}\u{8}\u{c}\n\r\t\u{b}\\")),
            ("numbers", r#""\x41\102\u0043\U00000044""#, Some("ABCD")),
            ("too large", r#""\400""#, None),
            ("too few digits", r#""\x4""#, None),
            ("beyond Unicode", r#""\U00110000""#, None),
            ("unknown", r#""\q""#, None),
            ("no end", r#""a"#, None),
            ("one quote", "\"", None),
        ];
        for (case, literal, want) in cases {
            assert_eq!(unquote(literal).ok().as_deref(), want, "{case}");
        }
    }
}
