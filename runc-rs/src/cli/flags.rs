//! Flags as Go programs take them: `-name`, `--name`, `--name=value`, `--name value`.

use crate::error::Error;

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing, or `=true` and `=false`.
    Switch,
    /// A value.
    Value,
}

/// A flag that a command has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    /// Its name, by which its value is asked for.
    pub(super) name: &'static str,
    /// Another, short name; may be empty.
    pub(super) short: &'static str,
    pub(super) kind: Kind,
}

/// A flag without a value.
pub(super) const fn switch(name: &'static str, short: &'static str) -> Flag {
    Flag { name, short, kind: Kind::Switch }
}

/// A flag with a value.
pub(super) const fn value(name: &'static str, short: &'static str) -> Flag {
    Flag { name, short, kind: Kind::Value }
}

/// After how many arguments flags end: what follows belongs to somebody else.
pub(super) const ANYWHERE: usize = usize::MAX;

/// A command line, taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    flags: Vec<(&'static str, String)>,
    /// What is not a flag, in order.
    pub(super) arguments: Vec<String>,
}

impl Parsed {
    /// Takes `words` apart; after `stop` arguments there are no more flags.
    pub(super) fn new(words: &[String], flags: &[Flag], stop: usize) -> Result<Self, Error> {
        let mut parsed = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if parsed.arguments.len() >= stop {
                parsed.arguments.push(word.clone());
                parsed.arguments.extend(words.by_ref().cloned());
                break;
            }
            if word == "--" {
                parsed.arguments.extend(words.by_ref().cloned());
                break;
            }
            let Some(text) = word.strip_prefix('-').filter(|text| !text.is_empty()) else {
                parsed.arguments.push(word.clone());
                continue;
            };
            let text = text.strip_prefix('-').unwrap_or(text);
            let (name, inline) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (text, None),
            };
            let known =
                |flag: &&Flag| name == flag.name || (!flag.short.is_empty() && name == flag.short);
            let Some(flag) = flags.iter().find(known) else {
                if matches!(name, "help" | "h") {
                    return Err(Error::Help);
                }
                return Err(Error::CommandLine(format!("flag provided but not defined: -{name}")));
            };
            let value = match (flag.kind, inline) {
                (Kind::Switch, None) => "true".to_owned(),
                (_, Some(value)) => value,
                (Kind::Value, None) => words.next().cloned().ok_or_else(|| {
                    Error::CommandLine(format!("flag needs an argument: -{name}"))
                })?,
            };
            parsed.flags.push((flag.name, value));
        }
        Ok(parsed)
    }

    /// The value of a flag; of several, the last.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.flags.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// All values of a flag that may be there several times.
    pub(super) fn values(&self, name: &str) -> Vec<&str> {
        let with_name = self.flags.iter().filter(|(known, _)| *known == name);
        with_name.map(|(_, value)| value.as_str()).collect()
    }

    /// Whether a switch is on.
    pub(super) fn is_on(&self, name: &str) -> Result<bool, Error> {
        match self.value(name) {
            None => Ok(false),
            Some(text) => match text {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
                _ => Err(invalid(name, text)),
            },
        }
    }

    /// A flag's value as a number.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Error> {
        let number = |text: &str| text.parse().map_err(|_| invalid(name, text));
        self.value(name).map(number).transpose()
    }

    /// Checks how many arguments there are.
    pub(super) fn expect(&self, command: &str, least: usize, most: usize) -> Result<(), Error> {
        let count = self.arguments.len();
        let wrong = |how: &str, number: usize| {
            let text = format!("runc: {command:?} requires {how} {number} argument(s)");
            Err(Error::CommandLine(text))
        };
        match () {
            () if least == most && count != least => wrong("exactly", least),
            () if count < least => wrong("a minimum of", least),
            () if count > most => wrong("a maximum of", most),
            () => Ok(()),
        }
    }
}

fn invalid(name: &str, text: &str) -> Error {
    Error::CommandLine(format!("invalid value {text:?} for flag -{name}: parse error"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: [Flag; 3] = [value("bundle", "b"), switch("force", "f"), value("env", "e")];

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn parse() {
        let flags = |flags: &[(&'static str, &str)]| {
            flags.iter().map(|&(name, value)| (name, value.to_owned())).collect::<Vec<_>>()
        };
        let cases = [
            ("short", "-b x id", ANYWHERE, flags(&[("bundle", "x")]), "id"),
            ("long", "--bundle x id", ANYWHERE, flags(&[("bundle", "x")]), "id"),
            ("long with one dash", "-bundle x id", ANYWHERE, flags(&[("bundle", "x")]), "id"),
            ("equals", "--bundle=a=b id", ANYWHERE, flags(&[("bundle", "a=b")]), "id"),
            ("empty value", "--bundle= id", ANYWHERE, flags(&[("bundle", "")]), "id"),
            ("switch", "--force id", ANYWHERE, flags(&[("force", "true")]), "id"),
            ("switch off", "-f=false id", ANYWHERE, flags(&[("force", "false")]), "id"),
            ("flag after", "id -f", ANYWHERE, flags(&[("force", "true")]), "id"),
            ("no flag after", "id sh -f", 1, flags(&[]), "id sh -f"),
            ("double dash", "-f -- -b", ANYWHERE, flags(&[("force", "true")]), "-b"),
            ("dash alone", "-", ANYWHERE, flags(&[]), "-"),
            (
                "several",
                "-e a=1 -e b=2 id",
                ANYWHERE,
                flags(&[("env", "a=1"), ("env", "b=2")]),
                "id",
            ),
        ];
        for (case, text, stop, flags, arguments) in cases {
            let parsed = Parsed::new(&words(text), &FLAGS, stop).expect(case);
            assert_eq!(parsed, Parsed { flags, arguments: words(arguments) }, "{case}");
        }
    }

    #[test]
    fn refuse() {
        let cases = [
            ("--nothing", "flag provided but not defined: -nothing"),
            ("-b", "flag needs an argument: -b"),
            ("--help", "help was asked for"),
            ("id -h", "help was asked for"),
        ];
        for (text, want) in cases {
            let error = Parsed::new(&words(text), &FLAGS, ANYWHERE).expect_err(text);
            assert_eq!(error.to_string(), want, "{text}");
        }
    }
}
