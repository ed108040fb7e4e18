//! The shim's command line, which containerd dictates.
//!
//! Flags are spelled as Go's `flag` package reads them: one dash or two, a value after `=` or as
//! the next argument. Flags come before the action; what stands behind the action is ignored.

use std::path::PathBuf;

/// What the command line asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `-namespace`: the containerd namespace that the shim works for.
    pub namespace: String,
    /// `-id`: the container.
    pub id: String,
    /// `-address`: containerd's gRPC socket.
    pub address: String,
    /// `-publish-binary`: containerd's own program, which publishes events.
    pub publish_binary: String,
    /// `-bundle`: the bundle, where it is not the working directory.
    pub bundle: Option<PathBuf>,
    /// `-socket`: where to listen, in place of an inherited socket.
    pub socket: Option<PathBuf>,
    /// `-debug`: log more.
    pub debug: bool,
    /// What to do.
    pub action: Action,
}

/// What to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Serve the task API: no action on the command line.
    #[default]
    Serve,
    /// `start`: start a shim that serves, print where.
    Start,
    /// `delete`: clean up after a shim that is gone.
    Delete,
    /// `-v`, `-version`: print the version.
    Version,
    /// `-info`: print what the runtime can do.
    Info,
}

impl Args {
    /// Reads the arguments that follow the program's name.
    ///
    /// # Errors
    ///
    /// A flag is unknown or lacks its value, or the action is unknown.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, ArgsError> {
        let mut args = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix("--").or(argument.strip_prefix('-')) else {
                args.action = Action::from_word(&argument, args.action)?;
                break;
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if args.set_switch(name, inline.as_deref()) {
                continue;
            }
            let missing = || ArgsError::NoValue { flag: name.to_owned() };
            let target = args.value_of(name)?;
            target.set(inline.or_else(|| arguments.next()).ok_or_else(missing)?);
        }
        Ok(args)
    }

    /// Sets the flag `name` if it is one without a value.
    fn set_switch(&mut self, name: &str, value: Option<&str>) -> bool {
        let on = !matches!(value, Some("false" | "0" | "f"));
        match name {
            "debug" => self.debug = on,
            "v" | "version" if on => self.action = Action::Version,
            "info" if on => self.action = Action::Info,
            "v" | "version" | "info" => {}
            _ => return false,
        }
        true
    }

    fn value_of(&mut self, name: &str) -> Result<Target<'_>, ArgsError> {
        Ok(match name {
            "namespace" => Target::Text(&mut self.namespace),
            "id" => Target::Text(&mut self.id),
            "address" => Target::Text(&mut self.address),
            "publish-binary" => Target::Text(&mut self.publish_binary),
            "bundle" => Target::Path(&mut self.bundle),
            "socket" => Target::Path(&mut self.socket),
            "debug-socket" => Target::Ignored,
            _ => return Err(ArgsError::UnknownFlag { flag: name.to_owned() }),
        })
    }
}

impl Action {
    /// The action that `word` names, unless a flag such as `-v` has decided already.
    fn from_word(word: &str, decided: Self) -> Result<Self, ArgsError> {
        match (word, decided) {
            (_, Self::Version | Self::Info) => Ok(decided),
            ("start", _) => Ok(Self::Start),
            ("delete", _) => Ok(Self::Delete),
            _ => Err(ArgsError::UnknownAction { action: word.to_owned() }),
        }
    }
}

/// Where a flag's value goes.
enum Target<'a> {
    Text(&'a mut String),
    Path(&'a mut Option<PathBuf>),
    Ignored,
}

impl Target<'_> {
    fn set(self, value: String) {
        match self {
            Self::Text(text) => *text = value,
            Self::Path(path) => *path = (!value.is_empty()).then(|| value.into()),
            Self::Ignored => {}
        }
    }
}

/// Why a command line makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum ArgsError {
    /// No such flag.
    #[error("flag provided but not defined: -{flag}")]
    UnknownFlag { flag: String },
    /// The flag stands last and needs a value.
    #[error("flag needs an argument: -{flag}")]
    NoValue { flag: String },
    /// No such action.
    #[error("unknown action {action:?}")]
    UnknownAction { action: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse() {
        let named = Args { namespace: "moby".to_owned(), id: "c1".to_owned(), ..Args::default() };
        let cases = [
            ("serve", "-namespace moby -id c1", Ok(named.clone())),
            (
                "start as containerd calls it",
                "-namespace moby -address /a.sock -publish-binary /c -id c1 -debug start",
                Ok(Args {
                    address: "/a.sock".to_owned(),
                    publish_binary: "/c".to_owned(),
                    debug: true,
                    action: Action::Start,
                    ..named.clone()
                }),
            ),
            (
                "two dashes and equals signs",
                "--namespace=moby --id=c1 --bundle=/b delete",
                Ok(Args { bundle: Some("/b".into()), action: Action::Delete, ..named.clone() }),
            ),
            ("version", "-v", Ok(Args { action: Action::Version, ..Args::default() })),
            ("info", "-info", Ok(Args { action: Action::Info, ..Args::default() })),
            ("debug off", "-debug=false", Ok(Args::default())),
            ("unknown flag", "-x", Err(ArgsError::UnknownFlag { flag: "x".to_owned() })),
            ("no value", "-id", Err(ArgsError::NoValue { flag: "id".to_owned() })),
            ("unknown action", "stop", Err(ArgsError::UnknownAction { action: "stop".to_owned() })),
        ];
        for (case, line, want) in cases {
            let got = Args::parse(line.split(' ').map(str::to_owned));
            assert_eq!(got, want, "{case}");
        }
    }
}
