//! What clients are told of messages that are too large, which is what containerd tells them.
//!
//! Such a message meets the limits in the library that serves the calls, which says so by a code and a text of
//! its own. Clients were written against those of Go's library: they know by the code that a list is to be
//! asked for piece by piece. So the status is exchanged on its way out, with the headers or behind the body.
//!
//! Source: grpc-go, `server.go` and `rpc_util.go`.

use http::{HeaderMap, HeaderValue, Response};
use http_body_util::BodyExt as _;
use tonic::{Status, body::Body};

/// The library's code for them, as it is sent.
const OUT_OF_RANGE: &str = "11";

/// What the two libraries say, before the sizes.
const TEXTS: [(&str, &str); 2] = [
    ("Error, encoded message length too large: found ", "trying to send"),
    ("Error, decoded message length too large: found ", "received"),
];

/// Has the answer to a call tell of messages that are too large as containerd does.
pub(super) fn translate(mut response: Response<Body>) -> Response<Body> {
    exchange(response.headers_mut());
    response.map(|body| {
        Body::new(body.map_frame(|mut frame| {
            frame.trailers_mut().into_iter().for_each(exchange);
            frame
        }))
    })
}

fn exchange(headers: &mut HeaderMap) {
    // Most calls end well, and need no copy of what is in there.
    let is_suspect = |value: &HeaderValue| value == OUT_OF_RANGE;
    if !headers.get(Status::GRPC_STATUS).is_some_and(is_suspect) {
        return;
    }
    let Some(status) = Status::from_header_map(headers) else { return };
    if let Some(text) = as_go(status.message()) {
        // It cannot fail: the text is one of ours with two numbers in it.
        let _ = Status::resource_exhausted(text).add_header(headers);
    }
}

/// The text of Go's library for one of the other's, if it is about a size.
fn as_go(text: &str) -> Option<String> {
    let (sizes, what) =
        TEXTS.iter().find_map(|(theirs, what)| Some((text.strip_prefix(theirs)?, what)))?;
    let (found, limit) = sizes.strip_suffix(" bytes")?.split_once(" bytes, the limit is: ")?;
    Some(format!("grpc: {what} message larger than max ({found} vs. {limit})"))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn texts() {
        let cases = [
            (
                "an answer",
                "Error, encoded message length too large: found 20 bytes, the limit is: 16 bytes",
                Some("grpc: trying to send message larger than max (20 vs. 16)"),
            ),
            (
                "a request",
                "Error, decoded message length too large: found 20 bytes, the limit is: 16 bytes",
                Some("grpc: received message larger than max (20 vs. 16)"),
            ),
            ("an offset", "cannot write at 5: out of range", None),
            ("no sizes", "Error, encoded message length too large: found", None),
        ];
        for (case, text, want) in cases {
            assert_eq!(as_go(text).as_deref(), want, "{case}");
        }
    }

    #[test]
    fn only_such_a_status_is_exchanged() {
        const LARGE: &str =
            "Error, encoded message length too large: found 20 bytes, the limit is: 16 bytes";
        let go = "grpc: trying to send message larger than max (20 vs. 16)";
        let cases = [
            ("too large", Status::out_of_range(LARGE), (Code::ResourceExhausted, go)),
            ("out of range", Status::out_of_range("offset 5"), (Code::OutOfRange, "offset 5")),
            ("another code", Status::internal(LARGE), (Code::Internal, LARGE)),
        ];
        for (case, status, want) in cases {
            let mut headers = HeaderMap::new();
            status.add_header(&mut headers).expect("is text");
            exchange(&mut headers);
            let status = Status::from_header_map(&headers).expect("has one");
            assert_eq!((status.code(), status.message()), want, "{case}");
        }
        let mut none = HeaderMap::new();
        exchange(&mut none);
        assert!(none.is_empty(), "a body is behind these");
    }
}
