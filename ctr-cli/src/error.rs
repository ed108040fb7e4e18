//! What a failed command says, and its exit status.

use std::{error::Error, fmt, process::ExitCode};

use tonic::{Code, Status};

use crate::task::Interrupted;

/// Ends the program with the status of the process that it ran, and no message.
#[derive(Debug)]
pub(crate) struct Exit(pub(crate) u8);

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit status {}", self.0)
    }
}

impl Error for Exit {}

/// Turns the exit status of a process into the result of the command that ran it.
pub(crate) fn exit_with(status: u32) -> anyhow::Result<()> {
    match status {
        0 => Ok(()),
        // Only the low byte of a status reaches the caller; a failure must not become a success.
        status => Err(Exit(u8::try_from(status).unwrap_or(255)).into()),
    }
}

/// Prints `error` as one line and gives the exit status.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(Exit(status)) = error.downcast_ref() {
        return ExitCode::from(*status);
    }
    if let Some(Interrupted(number)) = error.downcast_ref() {
        return ExitCode::from(u8::try_from(128 + number).unwrap_or(u8::MAX));
    }
    if is_unread(error) {
        return ExitCode::SUCCESS;
    }
    warn(&text(error));
    ExitCode::FAILURE
}

/// Prints a line to standard error.
#[expect(clippy::print_stderr, reason = "the place where messages are printed")]
pub(crate) fn warn(message: &str) {
    eprintln!("ctr: {message}");
}

/// The messages of an error and its causes, from the outermost on.
pub(crate) fn text(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        if let Some(status) = cause.downcast_ref::<Status>() {
            parts.push(status_text(status));
            // What is below a status is how the transport put it.
            break;
        }
        parts.push(cause.to_string());
    }
    parts.dedup();
    parts.join(": ").replace('\n', "; ")
}

/// Whether the daemon answered with `code`.
pub(crate) fn has_code(error: &anyhow::Error, code: Code) -> bool {
    error.downcast_ref::<Status>().is_some_and(|status| status.code() == code)
}

/// Whether nobody reads any more what is printed. A daemon that has gone away is a broken pipe, too, but below a
/// status, or below an error of the transport when it went before the first call.
fn is_unread(error: &anyhow::Error) -> bool {
    let is_broken_pipe = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    error
        .chain()
        .take_while(|cause| !cause.is::<Status>() && !cause.is::<tonic::transport::Error>())
        .any(|cause| cause.downcast_ref().is_some_and(is_broken_pipe))
}

/// A status as containerd's clients print it: the message ends in the class of the error.
pub(crate) fn status_text(status: &Status) -> String {
    let class = match status.code() {
        Code::NotFound => "not found",
        Code::AlreadyExists => "already exists",
        Code::FailedPrecondition => "failed precondition",
        Code::InvalidArgument => "invalid argument",
        Code::Unimplemented => "not implemented",
        Code::Unavailable => "unavailable",
        Code::PermissionDenied => "permission denied",
        Code::ResourceExhausted => "resource exhausted",
        Code::DeadlineExceeded => "deadline exceeded",
        Code::Cancelled => "canceled",
        Code::Aborted => "aborted",
        Code::DataLoss => "data loss",
        Code::OutOfRange => "out of range",
        Code::Unauthenticated => "unauthenticated",
        Code::Ok | Code::Unknown | Code::Internal => "",
    };
    let message = status.message();
    if class.is_empty() || message.contains(class) {
        message.to_owned()
    } else if message.is_empty() {
        class.to_owned()
    } else {
        format!("{message}: {class}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain() {
        let cases = [
            ("status", Err(Status::not_found("image \"a\": not found")), "image \"a\": not found"),
            (
                "class added",
                Err(Status::already_exists("container c")),
                "container c: already exists",
            ),
            ("no message", Err(Status::unavailable("")), "unavailable"),
            ("unknown", Err(Status::unknown("runc: no such file")), "runc: no such file"),
        ];
        for (case, result, want) in cases {
            let result: Result<(), Status> = result;
            let error = anyhow::Error::from(result.expect_err("every row fails"));
            assert_eq!(text(&error), want, "{case}");
            assert_eq!(text(&error.context("remove")), format!("remove: {want}"), "{case}");
        }
    }

    /// What the transport makes of an error with which a connection ends at once.
    async fn unconnected(error: std::io::Error) -> anyhow::Error {
        type Connection = hyper_util::rt::TokioIo<tokio::net::UnixStream>;
        let mut error = Some(error);
        let connector = tower::service_fn(move |_: tonic::transport::Uri| {
            let error = error.take().expect("called once");
            std::future::ready(Err::<Connection, _>(error))
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
        endpoint.connect_with_connector(connector).await.expect_err("fails").into()
    }

    #[tokio::test]
    async fn only_output_that_nobody_reads_is_no_failure() {
        let broken = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let cases = [
            ("printed", anyhow::Error::from(broken()), true),
            ("printed, as a part", anyhow::Error::from(broken()).context("print"), true),
            ("the daemon's", Status::from_error(Box::new(broken())).into(), false),
            (
                "the daemon's, as a part",
                anyhow::Error::from(Status::from_error(Box::new(broken()))).context("import"),
                false,
            ),
            ("the daemon's, before a call", unconnected(broken()).await, false),
            ("another", std::io::Error::from(std::io::ErrorKind::NotFound).into(), false),
        ];
        for (case, error, want) in cases {
            assert_eq!(is_unread(&error), want, "{case}");
        }
    }
}
