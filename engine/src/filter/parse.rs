//! Reads a filter.
//!
//! A scanner that knows where values may stand, and a parser of one token ahead; both as simple as
//! the language. Everything is linear in the text, and the text is bounded by the size of a
//! message.

use super::{Selector, Test, unquote::unquote};

/// What is wrong, in words that the parser adds a place to.
pub(super) type Fault = &'static str;

/// Why a text is not a filter, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filters: parse error: [{}]: {message}", self.place())]
pub struct ParseFilterError {
    text: String,
    at: usize,
    message: String,
}

impl ParseFilterError {
    /// The text with the character in question marked.
    fn place(&self) -> String {
        let (before, rest) = self.text.split_at(self.at);
        match rest.chars().next() {
            Some(char) => format!("{before} >|{char}|< {}", &rest[char.len_utf8()..]),
            None => self.text.clone(),
        }
    }
}

/// The selectors of a filter, all of which have to match; of the empty text, none.
pub(super) fn filter(text: &str) -> Result<Vec<Selector>, ParseFilterError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let mut parser = Parser { text, at: 0, value_next: false };
    let mut selectors = vec![parser.selector()?];
    loop {
        match parser.peek() {
            None => return Ok(selectors),
            Some(',') => {
                parser.scan()?;
                selectors.push(parser.selector()?);
            }
            Some(char) => return Err(parser.error(parser.at, format!("unexpected input: {char}"))),
        }
    }
}

enum Token {
    Field,
    Value,
    Quoted,
    Separator,
    Operator,
    /// A character that starts no token, or the end.
    Other,
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    /// An operator was read and its value was not: other characters than a field's may follow.
    value_next: bool,
}

impl<'a> Parser<'a> {
    fn selector(&mut self) -> Result<Selector, ParseFilterError> {
        let path = self.path()?;
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector { path, test: Test::Present });
        }
        let operator = self.operator()?;
        let value = self.value(operator == "~=")?;
        let test = match operator {
            "==" => Test::Equal(value),
            "!=" => Test::NotEqual(value),
            _ => Test::Matches(regex_lite::Regex::new(&value).ok()),
        };
        Ok(Selector { path, test })
    }

    fn path(&mut self) -> Result<Vec<String>, ParseFilterError> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.scan()?;
            path.push(self.field()?);
        }
        Ok(path)
    }

    fn field(&mut self) -> Result<String, ParseFilterError> {
        match self.scan()? {
            (_, Token::Field, text) => Ok(text.to_owned()),
            (at, Token::Quoted, text) => self.unquote(at, text, false),
            (at, ..) => Err(self.error(at, "expected field or quoted")),
        }
    }

    fn operator(&mut self) -> Result<&'a str, ParseFilterError> {
        match self.scan()? {
            (_, Token::Operator, text @ ("==" | "!=" | "~=")) => Ok(text),
            (at, Token::Operator, text) => {
                Err(self.error(at, format!("unsupported operator {text:?}")))
            }
            (at, ..) => Err(self.error(at, r#"expected an operator ("=="|"!="|"~=")"#)),
        }
    }

    fn value(&mut self, any_quote: bool) -> Result<String, ParseFilterError> {
        match self.scan()? {
            (_, Token::Value | Token::Field, text) => Ok(text.to_owned()),
            (at, Token::Quoted, text) => self.unquote(at, text, any_quote),
            (at, ..) => Err(self.error(at, "expected value or quoted")),
        }
    }

    fn unquote(&self, at: usize, text: &str, any_quote: bool) -> Result<String, ParseFilterError> {
        if !any_quote && !text.starts_with('"') {
            return Err(self.error(at, "invalid quote encountered"));
        }
        unquote(text).map_err(|fault| self.error(at, fault))
    }

    fn error(&self, at: usize, message: impl Into<String>) -> ParseFilterError {
        ParseFilterError { text: self.text.to_owned(), at, message: message.into() }
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    /// The next token: where it starts, what it is, and its text.
    fn scan(&mut self) -> Result<(usize, Token, &'a str), ParseFilterError> {
        let skipped = self.text[self.at..].trim_start().len();
        self.at = self.text.len() - skipped;
        let start = self.at;
        let Some(char) = self.peek() else {
            return Ok((start, Token::Other, ""));
        };
        self.at += char.len_utf8();
        let token = match char {
            '\0' => return Err(self.error(start, "unexpected null")),
            '"' | '/' | '|' => {
                self.quoted(start, char)?;
                Token::Quoted
            }
            ',' | '.' => {
                self.value_next = false;
                Token::Separator
            }
            '=' | '!' | '~' => {
                self.skip(|char| matches!(char, '=' | '!' | '~'));
                self.value_next = true;
                Token::Operator
            }
            _ if self.value_next => {
                self.skip(|char| char != ',' && !char.is_whitespace() && !char.is_control());
                self.value_next = false;
                Token::Value
            }
            char if is_field(char) => {
                self.skip(is_field);
                Token::Field
            }
            _ => {
                self.at = start;
                Token::Other
            }
        };
        Ok((start, token, &self.text[start..self.at]))
    }

    fn skip(&mut self, accept: impl Fn(char) -> bool) {
        let rest = &self.text[self.at..];
        self.at += rest.find(|char| !accept(char)).unwrap_or(rest.len());
    }

    /// Moves behind the closing quote; what is between the quotes is checked by [`unquote`].
    fn quoted(&mut self, start: usize, quote: char) -> Result<(), ParseFilterError> {
        let mut escaped = false;
        for (offset, char) in self.text[self.at..].char_indices() {
            match char {
                '\n' => break,
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                char if char == quote => {
                    self.at += offset + 1;
                    return Ok(());
                }
                _ => {}
            }
        }
        Err(self.error(start, "quoted literal not terminated"))
    }
}

fn is_field(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors() {
        let cases = [
            ("space", " ", "[ ]: expected field or quoted"),
            ("no field", "==x", "[ >|=|< =x]: expected field or quoted"),
            ("no value", "a==", "[a==]: expected value or quoted"),
            ("one sign", "a=b", r#"[a >|=|< b]: unsupported operator "=""#),
            ("dangling comma", "a,", "[a,]: expected field or quoted"),
            ("dangling dot", "a.", "[a.]: expected field or quoted"),
            ("no operator", "a b", r#"[a  >|b|< ]: expected an operator ("=="|"!="|"~=")"#),
            ("open quote", "a==\"b", "[a== >|\"|< b]: quoted literal not terminated"),
            ("bars need ~=", "a==|b|", "[a== >|||< b|]: invalid quote encountered"),
            ("two values", "a==b c", "[a==b >| |< c]: unexpected input:  "),
            ("null", "\0", "[ >|\0|< ]: unexpected null"),
        ];
        for (case, text, want) in cases {
            let got = filter(text).map(|_| ()).expect_err(case).to_string();
            assert_eq!(got, format!("filters: parse error: {want}"), "{case}");
        }
    }
}
