//! Frames, requests and responses: the format, without I/O.

use prost::Message;

/// The length of a frame's header, in bytes.
pub const HEADER_LEN: usize = 10;

/// The largest payload of a frame, in bytes. Peers refuse larger ones (ttrpc,
/// `messageLengthMax`).
pub const PAYLOAD_LEN_MAX: usize = 4 << 20;

/// The flag of a streaming call's request or data: its sender sends no more.
pub const REMOTE_CLOSED: u8 = 1;

/// The flag of a streaming call's request: data of the caller's follows.
pub const REMOTE_OPEN: u8 = 2;

/// The flag of data that is no message, only a carrier of flags.
pub const NO_DATA: u8 = 4;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An encoded [`Request`].
    Request,
    /// An encoded [`Response`].
    Response,
    /// A message of a streaming call.
    Data,
}

impl Kind {
    fn from_wire(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Request),
            2 => Some(Self::Response),
            3 => Some(Self::Data),
            _ => None,
        }
    }

    fn to_wire(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Data => 3,
        }
    }
}

/// A frame whose payload is still encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the payload is.
    pub kind: Kind,
    /// The call that the frame belongs to.
    pub stream_id: u32,
    /// Flags of the frame; only streaming calls use them.
    pub flags: u8,
    /// The payload.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Takes the frame at the start of `buffer`, with the number of bytes that it fills, or gives
    /// `None` when the frame is not whole yet.
    ///
    /// # Errors
    ///
    /// The bytes are not a frame. The connection is of no further use.
    pub fn parse(buffer: &'a [u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let Some((header, rest)) = buffer.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = *header;
        let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let stream_id = u32::from_be_bytes([s0, s1, s2, s3]);
        if len > PAYLOAD_LEN_MAX {
            return Err(FrameError::TooLong { len });
        }
        let kind = Kind::from_wire(kind).ok_or(FrameError::UnknownKind { kind })?;
        let frame = rest.get(..len).map(|payload| Self { kind, stream_id, flags, payload });
        Ok(frame.map(|frame| (frame, HEADER_LEN + len)))
    }
}

/// Appends a frame with `message` as its payload to `buffer`.
///
/// # Errors
///
/// The encoded message is longer than [`PAYLOAD_LEN_MAX`]; `buffer` is unchanged.
pub fn append(
    buffer: &mut Vec<u8>,
    kind: Kind,
    stream_id: u32,
    message: &impl Message,
) -> Result<(), FrameError> {
    append_with_flags(buffer, kind, stream_id, 0, message)
}

/// Appends a frame of a streaming call, as [`append`] does, with `flags` in its header.
///
/// # Errors
///
/// As of [`append`].
pub fn append_with_flags(
    buffer: &mut Vec<u8>,
    kind: Kind,
    stream_id: u32,
    flags: u8,
    message: &impl Message,
) -> Result<(), FrameError> {
    let len = message.encoded_len();
    if len > PAYLOAD_LEN_MAX {
        return Err(FrameError::TooLong { len });
    }
    buffer.reserve(HEADER_LEN + len);
    buffer.extend_from_slice(&(len as u32).to_be_bytes());
    buffer.extend_from_slice(&stream_id.to_be_bytes());
    buffer.extend_from_slice(&[kind.to_wire(), flags]);
    message.encode_raw(buffer);
    Ok(())
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum FrameError {
    /// The payload is over [`PAYLOAD_LEN_MAX`].
    #[error("ttrpc payload of {len} bytes is over the limit of {PAYLOAD_LEN_MAX}")]
    TooLong { len: usize },
    /// The header names a frame type that does not exist.
    #[error("unknown ttrpc frame type {kind}")]
    UnknownKind { kind: u8 },
}

/// A call.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// The full name of the service, as in `containerd.task.v3.Task`.
    #[prost(string, tag = "1")]
    pub service: String,
    /// The name of the method, as in `Create`.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The encoded message.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// How long the caller waits for an answer, in nanoseconds; 0 for ever.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
    /// What gRPC calls headers, such as `containerd-namespace-ttrpc`.
    #[prost(message, repeated, tag = "5")]
    pub metadata: Vec<KeyValue>,
}

/// One header of a [`Request`].
#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    /// The key; lower case.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// The answer to a [`Request`].
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// Absent, or with code 0, when the call succeeded.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    /// The encoded message.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// Why a call failed, `google.rpc.Status` on the wire.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Status {
    /// A gRPC code; see [`Code`].
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// A message for people, on which some clients match.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// The gRPC codes that containerd uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are gRPC's")]
#[repr(i32)]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse() {
        let cases = [
            ("empty", &b""[..], Ok(None)),
            ("part of a header", b"\0\0\0\x02\0\0\0\x01\x01", Ok(None)),
            ("part of a payload", b"\0\0\0\x02\0\0\0\x01\x01\0a", Ok(None)),
            (
                "whole, with a byte of the next",
                b"\0\0\0\x02\0\0\0\x01\x01\0abc",
                Ok(Some((
                    Frame { kind: Kind::Request, stream_id: 1, flags: 0, payload: b"ab" },
                    12,
                ))),
            ),
            (
                "over the limit",
                b"\0\x40\0\x01\0\0\0\x01\x01\0",
                Err(FrameError::TooLong { len: (4 << 20) + 1 }),
            ),
            ("unknown type", b"\0\0\0\0\0\0\0\x01\x09\0", Err(FrameError::UnknownKind { kind: 9 })),
        ];
        for (case, bytes, want) in cases {
            assert_eq!(Frame::parse(bytes), want, "{case}");
        }
    }

    #[test]
    fn append_then_parse() {
        let request = Request {
            service: "containerd.task.v3.Task".to_owned(),
            method: "State".to_owned(),
            ..Default::default()
        };
        let mut buffer = Vec::new();
        append(&mut buffer, Kind::Request, 7, &request).expect("short");
        let (frame, used) = Frame::parse(&buffer).expect("well formed").expect("whole");
        assert_eq!((frame.stream_id, used), (7, buffer.len()));
        assert_eq!(Request::decode(frame.payload).expect("well formed"), request);
    }
}
