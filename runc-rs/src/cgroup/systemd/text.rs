//! Values of D-Bus in GVariant's text form, in which annotations give properties of units:
//! `uint64 5000000`, `true`, `'text'`, `['a', 'b']`, `@as []`, `<5>`, `{'a': 1}`.
//!
//! Source: GLib's "GVariant Text Format". What has no type of its own gets one as godbus, runc's
//! library, gives it: whole numbers are `int32`, others `double`.

use super::wire::{Value, split_type};

/// How deep values may be nested.
const DEPTH_MAX: usize = 8;

const KEYWORDS: [(&str, &str); 12] = [
    ("boolean", "b"),
    ("byte", "y"),
    ("int16", "n"),
    ("uint16", "q"),
    ("int32", "i"),
    ("uint32", "u"),
    ("int64", "x"),
    ("uint64", "t"),
    ("double", "d"),
    ("string", "s"),
    ("objectpath", "o"),
    ("signature", "g"),
];

/// Reads one value, the whole text.
///
/// # Errors
///
/// What does not fit, in words.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut parser = Parser { rest: text };
    let value = parser.value(None, DEPTH_MAX)?;
    parser.blanks();
    if parser.rest.is_empty() { Ok(value) } else { Err(parser.unexpected()) }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn unexpected(&self) -> String {
        match self.rest.chars().next() {
            Some(character) => format!("unexpected {character:?}"),
            None => "unexpected end".to_owned(),
        }
    }

    fn eat(&mut self, token: char) -> bool {
        self.blanks();
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn must_eat(&mut self, token: char) -> Result<(), String> {
        if self.eat(token) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn word(&mut self) -> &'a str {
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-' | '_')))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    /// Reads a value, of the type `want` if that is known.
    fn value(&mut self, want: Option<&str>, depth: usize) -> Result<Value, String> {
        let depth = depth.checked_sub(1).ok_or("nested too deep")?;
        self.blanks();
        match self.rest.chars().next() {
            None => Err(self.unexpected()),
            Some('@') => {
                self.rest = &self.rest[1..];
                let (signature, rest) = split_type(self.rest).ok_or("invalid type")?;
                self.rest = rest;
                self.value(Some(signature), depth)
            }
            Some('\'' | '"') => {
                let text = self.string()?;
                text_value(text, want)
            }
            Some('[') => self.array(want, depth),
            Some('{') => self.dictionary(want, depth),
            Some('<') => {
                self.must_eat('<')?;
                let value = self.value(None, depth)?;
                self.must_eat('>')?;
                fits(Value::variant(value), want)
            }
            Some('b') if self.rest.starts_with("b'") || self.rest.starts_with("b\"") => {
                self.rest = &self.rest[1..];
                let mut bytes: Vec<Value> = self.string()?.bytes().map(Value::Byte).collect();
                bytes.push(Value::Byte(0));
                fits(Value::Array("y".to_owned(), bytes), want)
            }
            Some(_) => {
                let word = self.word();
                if let Some((_, signature)) = KEYWORDS.iter().find(|(name, _)| *name == word) {
                    return self.value(Some(signature), depth);
                }
                match word {
                    "true" | "false" => fits(Value::Bool(word == "true"), want),
                    "" => Err(self.unexpected()),
                    number => number_value(number, want),
                }
            }
        }
    }

    fn array(&mut self, want: Option<&str>, depth: usize) -> Result<Value, String> {
        self.must_eat('[')?;
        let mut element = match want {
            None => None,
            Some(want) => {
                Some(want.strip_prefix('a').ok_or(format!("array is no {want}"))?.to_owned())
            }
        };
        let mut values = Vec::new();
        while !self.eat(']') {
            if !values.is_empty() {
                self.must_eat(',')?;
            }
            let value = self.value(element.as_deref(), depth)?;
            element.get_or_insert_with(|| value.signature());
            values.push(value);
        }
        let element = element.ok_or("the type of an empty array is unknown")?;
        Ok(Value::Array(element, values))
    }

    fn dictionary(&mut self, want: Option<&str>, depth: usize) -> Result<Value, String> {
        self.must_eat('{')?;
        let (mut key, mut of) = (None, None);
        if let Some(want) = want {
            let pair = want.strip_prefix("a{").and_then(|rest| rest.strip_suffix('}'));
            let (first, second) =
                pair.and_then(split_type).ok_or(format!("dictionary is no {want}"))?;
            (key, of) = (Some(first.to_owned()), Some(second.to_owned()));
        }
        let mut entries = Vec::new();
        while !self.eat('}') {
            if !entries.is_empty() {
                self.must_eat(',')?;
            }
            let name = self.value(key.as_deref(), depth)?;
            self.must_eat(':')?;
            let value = self.value(of.as_deref(), depth)?;
            key.get_or_insert_with(|| name.signature());
            of.get_or_insert_with(|| value.signature());
            entries.push(Value::Entry(Box::new((name, value))));
        }
        let (key, of) = key.zip(of).ok_or("the type of an empty dictionary is unknown")?;
        Ok(Value::Array(format!("{{{key}{of}}}"), entries))
    }

    /// Reads a text in quotes, with escapes.
    fn string(&mut self) -> Result<String, String> {
        let mut characters = self.rest.chars();
        let quote = characters.next().ok_or("unexpected end")?;
        let mut text = String::new();
        loop {
            match characters.next() {
                None => return Err("text does not end".to_owned()),
                Some(character) if character == quote => break,
                Some('\\') => match characters.next() {
                    None => return Err("text does not end".to_owned()),
                    Some(kind @ ('u' | 'U')) => {
                        let count = if kind == 'u' { 4 } else { 8 };
                        let digits: String = characters.by_ref().take(count).collect();
                        let code = u32::from_str_radix(&digits, 16).ok();
                        text.push(code.and_then(char::from_u32).ok_or("invalid escape")?);
                    }
                    Some('a') => text.push('\u{7}'),
                    Some('b') => text.push('\u{8}'),
                    Some('f') => text.push('\u{c}'),
                    Some('n') => text.push('\n'),
                    Some('r') => text.push('\r'),
                    Some('t') => text.push('\t'),
                    Some('v') => text.push('\u{b}'),
                    Some(other) => text.push(other),
                },
                Some(character) => text.push(character),
            }
        }
        self.rest = characters.as_str();
        Ok(text)
    }
}

/// Takes a value only if it has the wanted type.
fn fits(value: Value, want: Option<&str>) -> Result<Value, String> {
    match want {
        Some(want) if want != value.signature() => {
            Err(format!("type {} is no {want}", value.signature()))
        }
        _ => Ok(value),
    }
}

fn text_value(text: String, want: Option<&str>) -> Result<Value, String> {
    if text.contains('\0') {
        return Err("text contains a null byte".to_owned());
    }
    match want {
        Some("o") => Ok(Value::Path(text)),
        Some("g") => Ok(Value::Signature(text)),
        _ => fits(Value::Text(text), want),
    }
}

fn number_value(text: &str, want: Option<&str>) -> Result<Value, String> {
    let invalid = || format!("invalid number {text:?}");
    let is_hex = text.trim_start_matches('-').starts_with("0x");
    let default = if !is_hex && text.contains(['.', 'e']) { "d" } else { "i" };
    let want = want.unwrap_or(default);
    if want == "d" {
        return text.parse().map(Value::Double).map_err(|_| invalid());
    }
    let whole = whole(text).ok_or_else(invalid)?;
    let value = match want {
        "y" => u8::try_from(whole).map(Value::Byte),
        "n" => i16::try_from(whole).map(Value::Int16),
        "q" => u16::try_from(whole).map(Value::Uint16),
        "i" => i32::try_from(whole).map(Value::Int32),
        "u" => u32::try_from(whole).map(Value::Uint32),
        "x" => i64::try_from(whole).map(Value::Int64),
        "t" => u64::try_from(whole).map(Value::Uint64),
        _ => return Err(format!("number is no {want}")),
    };
    value.map_err(|_| format!("number {text:?} is out of range"))
}

/// A whole number, decimal, hexadecimal or octal.
fn whole(text: &str) -> Option<i128> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let value = match digits.strip_prefix("0x") {
        Some(digits) => i128::from_str_radix(digits, 16),
        None if digits.len() > 1 && digits.starts_with('0') => i128::from_str_radix(digits, 8),
        None => digits.parse(),
    };
    value.ok().map(|value| sign * value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let texts = |list: &[&str]| {
            let list = list.iter().map(|text| Value::text(*text)).collect();
            Value::Array("s".to_owned(), list)
        };
        let cases = [
            ("true", Value::Bool(true)),
            ("5", Value::Int32(5)),
            (" -5 ", Value::Int32(-5)),
            ("0x10", Value::Int32(16)),
            ("010", Value::Int32(8)),
            ("1.5", Value::Double(1.5)),
            ("uint64 5000000", Value::Uint64(5_000_000)),
            ("byte 7", Value::Byte(7)),
            ("double 7", Value::Double(7.0)),
            ("@t 18446744073709551615", Value::Uint64(u64::MAX)),
            ("'a \\'b\\' \\u0041'", Value::text("a 'b' A")),
            ("\"x\"", Value::text("x")),
            ("objectpath '/a'", Value::Path("/a".to_owned())),
            ("['a', 'b']", texts(&["a", "b"])),
            ("@as []", texts(&[])),
            ("[uint32 1, 2]", Value::Array("u".into(), vec![Value::Uint32(1), Value::Uint32(2)])),
            ("<5>", Value::variant(Value::Int32(5))),
            ("b'a'", Value::Array("y".into(), vec![Value::Byte(b'a'), Value::Byte(0)])),
            (
                "{'a': 1}",
                Value::Array(
                    "{si}".into(),
                    vec![Value::Entry(Box::new((Value::text("a"), Value::Int32(1))))],
                ),
            ),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn refuses() {
        let cases = [
            "",
            "yes",
            "'a",
            "[1",
            "[]",
            "{}",
            "[1, 'a']",
            "5 6",
            "byte 256",
            "uint32 -1",
            "@ 5",
            "@s 5",
            "<5",
            "--5",
            "0x",
            "99999999999999999999999999999999999999999",
            "'\\u00zz'",
            "[[[[[[[[[[1]]]]]]]]]]",
            "'a\\u0000'",
            "int32",
            "@as 5",
            "{'a' 1}",
        ];
        for text in cases {
            assert!(parse(text).is_err(), "{text}: {:?}", parse(text));
        }
    }
}
