//! Where a task's standard streams go, as clients write it.
//!
//! | text | meaning |
//! |---|---|
//! | empty | nowhere |
//! | `/path`, `fifo:///path` | a fifo; where it is a regular file, that |
//! | `file:///path` | a file, made if needed, appended to |
//! | `binary:///program?name=value` | a program that gets stdout and stderr as descriptors 3 and 4 |
//! | `binary-v2:///program?...` | the same, and it must say that it is ready |
//! | `ttrpc+unix:///socket?streaming_id=x` | the stream `x`, which a client opens at the shim |
//!
//! Sources: containerd `core/runtime/v2/README.md` ("Logging"), `pkg/cio`, `internal/cri/io`.

use std::path::PathBuf;

/// Where a stream goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Uri {
    /// Nowhere.
    Null,
    /// A fifo, or what else is at the path.
    Path(PathBuf),
    /// A file to append to.
    File(PathBuf),
    /// A logging program.
    Binary {
        /// The program.
        program: PathBuf,
        /// Its arguments: names and values of the query, in order.
        arguments: Vec<String>,
        /// Whether the program must write a byte when it is ready, not just close descriptor 5.
        must_report: bool,
    },
    /// A stream of ttrpc.
    Stream {
        /// The socket of the shim.
        socket: PathBuf,
        /// The ID under which a client opens the stream.
        id: String,
    },
}

/// How long the ID of a stream may be, in bytes.
pub(crate) const STREAM_ID_LEN_MAX: usize = 512;

impl Uri {
    /// Reads a stream's text.
    ///
    /// # Errors
    ///
    /// The scheme is unknown, an escape is broken, or a stream has no ID that may be.
    pub(crate) fn parse(text: &str) -> Result<Self, UriError> {
        if text.is_empty() {
            return Ok(Self::Null);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Path(text.into()));
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = PathBuf::from(unescape(path, false)?);
        Ok(match scheme {
            "fifo" => Self::Path(path),
            "file" => Self::File(path),
            "binary" | "binary-v2" => Self::Binary {
                program: path,
                arguments: arguments(query)?,
                must_report: scheme == "binary-v2",
            },
            "ttrpc+unix" => Self::Stream { socket: path, id: stream_id(query)? },
            _ => return Err(UriError::Scheme { scheme: scheme.to_owned() }),
        })
    }
}

fn arguments(query: &str) -> Result<Vec<String>, UriError> {
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        arguments.push(unescape(name, true)?);
        arguments.push(unescape(value, true)?);
    }
    Ok(arguments)
}

fn stream_id(query: &str) -> Result<String, UriError> {
    let ids = query.split('&').find_map(|pair| pair.strip_prefix("streaming_id="));
    let id = unescape(ids.unwrap_or_default(), true)?;
    if id.is_empty() || id.len() > STREAM_ID_LEN_MAX {
        return Err(UriError::StreamId { len: id.len() });
    }
    Ok(id)
}

/// Replaces `%41` and, in a query, `+`.
fn unescape(text: &str, in_query: bool) -> Result<String, UriError> {
    let broken = || UriError::Escape { text: text.to_owned() };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next()), digit(rest.next()));
                let value = high.zip(low).ok_or_else(broken)?;
                u8::try_from(value.0 * 16 + value.1).map_err(|_| broken())?
            }
            b'+' if in_query => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| broken())
}

/// Why a text is no place for a stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UriError {
    /// No such scheme.
    #[error("unknown STDIO scheme {scheme}")]
    Scheme { scheme: String },
    /// A `%` without two hex digits, or bytes that are not UTF-8.
    #[error("broken escape in {text:?}")]
    Escape { text: String },
    /// The ID of a stream is missing, or has too many bytes.
    #[error("streaming_id of {len} bytes, not 1 to {STREAM_ID_LEN_MAX}")]
    StreamId { len: usize },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse() {
        let long = format!("ttrpc+unix:///s?streaming_id={}", "a".repeat(STREAM_ID_LEN_MAX + 1));
        let stream = |id: &str| Ok(Uri::Stream { socket: "/run/s".into(), id: id.to_owned() });
        let cases = [
            ("empty", "", Ok(Uri::Null)),
            ("path", "/run/f", Ok(Uri::Path("/run/f".into()))),
            ("fifo", "fifo:///run/f", Ok(Uri::Path("/run/f".into()))),
            ("file", "file:///a%20b", Ok(Uri::File("/a b".into()))),
            (
                "binary",
                "binary:///bin/log?--out=/a%2Fb&-v&x=a+b",
                Ok(Uri::Binary {
                    program: "/bin/log".into(),
                    arguments: ["--out", "/a/b", "-v", "", "x", "a b"].map(str::to_owned).into(),
                    must_report: false,
                }),
            ),
            (
                "binary that reports",
                "binary-v2:///bin/log",
                Ok(Uri::Binary {
                    program: "/bin/log".into(),
                    arguments: Vec::new(),
                    must_report: true,
                }),
            ),
            ("stream", "ttrpc+unix:///run/s?streaming_id=c1-stdin", stream("c1-stdin")),
            ("stream, more to it", "ttrpc+unix:///run/s?x=y&streaming_id=a%2Fb+c", stream("a/b c")),
            ("stream without ID", "ttrpc+unix:///run/s", Err(UriError::StreamId { len: 0 })),
            (
                "stream with an empty ID",
                "ttrpc+unix:///run/s?streaming_id=",
                Err(UriError::StreamId { len: 0 }),
            ),
            (
                "stream with a long ID",
                long.as_str(),
                Err(UriError::StreamId { len: STREAM_ID_LEN_MAX + 1 }),
            ),
            (
                "stream of gRPC",
                "grpc+unix:///run/s?streaming_id=x",
                Err(UriError::Scheme { scheme: "grpc+unix".to_owned() }),
            ),
            ("unknown", "http://x", Err(UriError::Scheme { scheme: "http".to_owned() })),
            ("broken escape", "file:///%4", Err(UriError::Escape { text: "/%4".to_owned() })),
        ];
        for (case, text, want) in cases {
            assert_eq!(Uri::parse(text), want, "{case}");
        }
    }
}
