//! Messages of D-Bus: a header and values.

use super::wire::{Reader, Value, Writer, signature_of};

/// The most bytes of a message that is taken: those of systemd have some hundreds.
pub(super) const SIZE_MAX: usize = 1 << 20;

/// The bytes at the beginning that say how long the message is.
pub(super) const PREFIX: usize = 16;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// Codes of header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A call of a method.
pub(super) struct Call<'a> {
    /// Who is called; nobody has a name on a connection with two ends.
    pub(super) destination: Option<&'a str>,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    pub(super) body: &'a [Value],
}

impl Call<'_> {
    /// The message's bytes.
    pub(super) fn encode(&self, serial: u32) -> Vec<u8> {
        let field = |code, value| Value::Struct(vec![Value::Byte(code), Value::variant(value)]);
        let mut fields = vec![
            field(PATH, Value::Path(self.path.to_owned())),
            field(INTERFACE, Value::text(self.interface)),
            field(MEMBER, Value::text(self.member)),
        ];
        if let Some(destination) = self.destination {
            fields.push(field(DESTINATION, Value::text(destination)));
        }
        if !self.body.is_empty() {
            fields.push(field(SIGNATURE, Value::Signature(signature_of(self.body))));
        }
        let mut body = Writer::default();
        self.body.iter().for_each(|value| body.put(value));
        let mut message = Writer(vec![b'l', METHOD_CALL, 0, 1]);
        message.put(&Value::Uint32(u32::try_from(body.0.len()).unwrap_or(u32::MAX)));
        message.put(&Value::Uint32(serial));
        message.put(&Value::Array("(yv)".to_owned(), fields));
        message.align(8);
        message.0.extend(body.0);
        message.0
    }
}

/// A message that came in, so far as it matters here.
#[derive(Debug, PartialEq)]
pub(super) enum Incoming {
    /// The answer to the call with this number.
    Answer { serial: u32, body: Vec<Value> },
    /// The refusal of the call with this number.
    Refusal { serial: u32, name: String, text: String },
    /// A signal.
    Signal { member: String, body: Vec<Value> },
    /// Anything else.
    Other,
}

/// How many bytes the message has that begins with `prefix`; nothing if it is none, or too long.
pub(super) fn length(prefix: &[u8; PREFIX]) -> Option<usize> {
    let number = |at: usize| {
        let mut bytes: [u8; 4] = prefix[at..at + 4].try_into().ok()?;
        match prefix[0] {
            b'l' => {}
            b'B' => bytes.reverse(),
            _ => return None,
        }
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let (body, fields) = (number(4)?, number(12)?);
    if body > SIZE_MAX || fields > SIZE_MAX {
        return None;
    }
    let length = (PREFIX + fields).next_multiple_of(8) + body;
    (length <= SIZE_MAX).then_some(length)
}

/// Reads a whole message.
pub(super) fn decode(bytes: &[u8]) -> Option<Incoming> {
    if length(bytes.first_chunk()?)? != bytes.len() {
        return None;
    }
    let big_endian = bytes[0] == b'B';
    let mut header = Reader::new(bytes, big_endian).take_all("yyyyuua(yv)")?;
    let Some(Value::Array(_, fields)) = header.pop() else { return None };
    let Value::Uint32(body_length) = header[4] else { return None };
    let body = bytes.get(bytes.len().checked_sub(body_length as usize)?..)?;
    let (mut member, mut name, mut reply, mut signature) = (None, None, None, String::new());
    for field in fields {
        let Value::Struct(pair) = field else { return None };
        let [Value::Byte(code), Value::Variant(value)] = pair.as_slice() else { return None };
        match (*code, &**value) {
            (MEMBER, Value::Text(text)) => member = Some(text.clone()),
            (ERROR_NAME, Value::Text(text)) => name = Some(text.clone()),
            (REPLY_SERIAL, Value::Uint32(number)) => reply = Some(*number),
            (SIGNATURE, Value::Signature(text)) => signature.clone_from(text),
            _ => {}
        }
    }
    let body = Reader::new(body, big_endian).take_all(&signature)?;
    Some(match header[1] {
        Value::Byte(METHOD_RETURN) => Incoming::Answer { serial: reply?, body },
        Value::Byte(ERROR) => {
            let text = match body.into_iter().next() {
                Some(Value::Text(text)) => text,
                _ => String::new(),
            };
            Incoming::Refusal { serial: reply?, name: name?, text }
        }
        Value::Byte(SIGNAL) => Incoming::Signal { member: member?, body },
        _ => Incoming::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_a_message() {
        let call = Call {
            destination: Some("a.b"),
            path: "/c",
            interface: "d.e",
            member: "F",
            body: &[Value::text("x"), Value::Bool(true)],
        };
        let bytes = call.encode(9);
        let prefix: &[u8; PREFIX] = bytes[..PREFIX].try_into().expect("is long enough");
        assert_eq!(length(prefix), Some(bytes.len()));
        assert_eq!(decode(&bytes), Some(Incoming::Other), "a call is nothing that we take");
    }

    /// An answer, as systemd has sent it.
    fn answer(kind: u8, fields: Vec<Value>, body: &[Value]) -> Vec<u8> {
        let mut text = Writer::default();
        body.iter().for_each(|value| text.put(value));
        let mut message = Writer(vec![b'l', kind, 1, 1]);
        message.put(&Value::Uint32(text.0.len() as u32));
        message.put(&Value::Uint32(5));
        message.put(&Value::Array("(yv)".to_owned(), fields));
        message.align(8);
        message.0.extend(text.0);
        message.0
    }

    #[test]
    fn incoming() {
        let field = |code, value| Value::Struct(vec![Value::Byte(code), Value::variant(value)]);
        let signature = |text: &str| field(SIGNATURE, Value::Signature(text.to_owned()));
        let body = vec![Value::Path("/job/1".to_owned())];
        let fields = vec![field(REPLY_SERIAL, Value::Uint32(3)), signature("o")];
        let bytes = answer(METHOD_RETURN, fields, &body);
        assert_eq!(decode(&bytes), Some(Incoming::Answer { serial: 3, body }));
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end]), None, "cut at {end}");
        }
        let fields = vec![
            field(REPLY_SERIAL, Value::Uint32(4)),
            field(ERROR_NAME, Value::text("a.Error")),
            signature("s"),
        ];
        let bytes = answer(ERROR, fields, &[Value::text("why")]);
        let want = Incoming::Refusal { serial: 4, name: "a.Error".into(), text: "why".into() };
        assert_eq!(decode(&bytes), Some(want));
    }

    #[test]
    fn lengths() {
        let with = |endian, body: u32, fields: u32| {
            let mut prefix = [0; PREFIX];
            prefix[0] = endian;
            prefix[4..8].copy_from_slice(&body.to_le_bytes());
            prefix[12..16].copy_from_slice(&fields.to_le_bytes());
            length(&prefix)
        };
        assert_eq!(with(b'l', 5, 3), Some(29));
        assert_eq!(with(b'l', u32::MAX, 0), None, "body");
        assert_eq!(with(b'l', 0, u32::MAX), None, "fields");
        assert_eq!(with(b'x', 0, 0), None, "no message");
    }
}
