//! Signals: those that this program gets and passes on, and those that people name.

use std::{fmt, future::Future};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What is passed on to a container's process, besides the window size.
const FORWARDED: [i32; 6] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];

/// The signals that have arrived since this was made. From then on they no longer end the
/// program, so whatever was started can be ended in order.
pub(crate) struct Signals {
    streams: Vec<(i32, Signal)>,
}

/// A signal arrived before the container's process could get it.
#[derive(Debug)]
pub(crate) struct Interrupted(pub(crate) i32);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interrupted by signal {}", self.0)
    }
}

impl std::error::Error for Interrupted {}

impl Signals {
    /// Takes over the signals.
    pub(crate) fn take() -> anyhow::Result<Self> {
        let own = FORWARDED.into_iter().chain([libc::SIGWINCH]);
        let stream = |number| Ok((number, signal(SignalKind::from_raw(number))?));
        Ok(Self { streams: own.map(stream).collect::<anyhow::Result<_>>()? })
    }

    /// The next signal. Dropping the future loses none.
    pub(crate) async fn next(&mut self) -> i32 {
        let next = std::future::poll_fn(|context| {
            for (number, stream) in &mut self.streams {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        });
        next.await
    }

    /// Runs one step of a start. A signal takes effect after the step, so that it is known what
    /// there is to undo; a second one does not wait.
    pub(crate) async fn step<T>(
        &mut self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let mut work = std::pin::pin!(work);
        let mut first = None;
        loop {
            tokio::select! {
                biased;
                result = &mut work => {
                    return match first {
                        Some(number) => Err(result.err().unwrap_or_else(|| Interrupted(number).into())),
                        None => result,
                    };
                }
                number = self.next() => match first {
                    _ if number == libc::SIGWINCH => {}
                    Some(_) => return Err(Interrupted(number).into()),
                    None => first = Some(number),
                }
            }
        }
    }
}

/// Names of signals, without `SIG`, on all architectures that the project knows.
const NAMES: [(&str, i32); 31] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
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
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// The first and last real-time signals that programs may use.
const REAL_TIME: std::ops::RangeInclusive<u32> = 34..=64;

/// Parses a signal: a number, a name with or without `SIG`, or `RTMIN+n` and `RTMAX-n`.
pub(crate) fn parse_signal(text: &str) -> Result<u32, String> {
    let unknown = || format!("unknown signal {text:?}");
    if let Ok(number) = text.parse::<u32>() {
        return if (1..=*REAL_TIME.end()).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(own, _)| *own == name) {
        return u32::try_from(*number).map_err(|_| unknown());
    }
    let offset = |text: &str, sign: char| match text {
        "" => Some(0),
        _ => text.strip_prefix(sign)?.parse::<u32>().ok(),
    };
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => offset(rest, '+').and_then(|n| REAL_TIME.start().checked_add(n)),
        (_, Some(rest)) => offset(rest, '-').and_then(|n| REAL_TIME.end().checked_sub(n)),
        _ => None,
    };
    real_time.filter(|number| REAL_TIME.contains(number)).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let cases = [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMAX-31", None),
            ("0", None),
            ("65", None),
            ("-9", None),
            ("SIGFOO", None),
            ("", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse_signal(text).ok(), want, "{text:?}");
        }
    }
}
