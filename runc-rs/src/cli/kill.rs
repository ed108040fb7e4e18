//! `kill`.

use super::flags::{Parsed, switch};
use crate::{error::Error, settings::Settings};

pub(super) fn run(settings: &Settings, words: &[String]) -> Result<i32, Error> {
    let parsed = Parsed::new(words, &[switch("all", "a")], 1)?;
    parsed.expect("kill", 1, 2)?;
    let all = parsed.is_on("all")?;
    let container = super::container(settings, &parsed)?;
    let name = parsed.arguments.get(1).map_or("SIGTERM", String::as_str);
    let signal = signal(name)?;
    match container.signal(signal) {
        // There is nothing left to get it, which is what the caller wants.
        Err(Error::Status(_)) if all => Ok(0),
        result => result.map(|()| 0),
    }
}

const SIGNALS: [(&str, i32); 34] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// Reads a signal's number or name, with or without `SIG`.
fn signal(text: &str) -> Result<i32, Error> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    SIGNALS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|&(_, number)| number)
        .ok_or_else(|| Error::Usage(format!("unknown signal {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        let cases = [
            ("9", Some(9)),
            ("KILL", Some(9)),
            ("sigterm", Some(15)),
            ("37", Some(37)),
            ("x", None),
        ];
        for (text, want) in cases {
            assert_eq!(signal(text).ok(), want, "{text}");
        }
    }
}
