//! The encoding of protocol buffers, as much of it as criu's messages need: numbers as varints,
//! texts and messages with their length before them.
//!
//! Source: protobuf.dev, "Encoding".

/// How many bits of a field's tag are its type.
const TYPE_BITS: u32 = 3;

/// The most bytes of a varint.
const VARINT_LEN_MAX: usize = 10;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// Writes a message's fields.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// The encoded message.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// A number; negative ones as 64 bits wide, as protocol buffers want it.
    pub(super) fn number(&mut self, field: u32, number: impl Into<i64>) {
        self.tag(field, VARINT);
        self.varint(number.into().cast_unsigned());
    }

    /// A switch.
    pub(super) fn switch(&mut self, field: u32, on: bool) {
        self.number(field, i32::from(on));
    }

    /// A text.
    pub(super) fn text(&mut self, field: u32, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    /// A message, whose fields `write` writes.
    pub(super) fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.tag(field, BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn tag(&mut self, field: u32, kind: u64) {
        self.varint(u64::from(field) << TYPE_BITS | kind);
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A number; its width and sign are the reader's to know.
    Number(u64),
    /// A text or a message.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// A 32-bit number.
    pub(super) fn number(self) -> i32 {
        match self {
            // Negative ones are extended to 64 bits, which is undone here.
            Self::Number(number) => number as i32,
            Self::Bytes(_) => 0,
        }
    }

    /// A switch.
    pub(super) fn is_on(self) -> bool {
        self.number() != 0
    }

    /// A text; what is not UTF-8 is replaced.
    pub(super) fn text(self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }

    /// A message's bytes.
    pub(super) fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(_) => &[],
        }
    }
}

/// The bytes are not a message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed message")]
pub(super) struct Malformed;

/// Takes a message apart into its fields, in the order in which they come; those of types that
/// criu does not use are left out.
pub(super) fn fields(mut bytes: &[u8]) -> Result<Vec<(u32, Value<'_>)>, Malformed> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let field = u32::try_from(tag >> TYPE_BITS).map_err(|_| Malformed)?;
        match tag & ((1 << TYPE_BITS) - 1) {
            VARINT => found.push((field, Value::Number(varint(&mut bytes)?))),
            BYTES => {
                let length = usize::try_from(varint(&mut bytes)?).map_err(|_| Malformed)?;
                found.push((field, Value::Bytes(take(&mut bytes, length)?)));
            }
            FIXED64 => drop(take(&mut bytes, 8)?),
            FIXED32 => drop(take(&mut bytes, 4)?),
            _ => return Err(Malformed),
        }
    }
    Ok(found)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (taken, rest) = bytes.split_at_checked(length).ok_or(Malformed)?;
    *bytes = rest;
    Ok(taken)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0;
    for place in 0..VARINT_LEN_MAX {
        let byte = *take(bytes, 1)?.first().ok_or(Malformed)?;
        number |= u64::from(byte & 0x7f) << (7 * place as u32).min(63);
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes() {
        type Write = fn(&mut Writer);
        let cases: [(&str, Write, &[u8]); 6] = [
            ("zero", |w| w.number(1, 0), &[0x08, 0]),
            ("two bytes", |w| w.number(1, 150), &[0x08, 0x96, 1]),
            (
                "negative",
                |w| w.number(1, -1),
                &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            ),
            ("switch, field of two bytes", |w| w.switch(16, true), &[0x80, 1, 1]),
            ("text", |w| w.text(2, "ab"), &[0x12, 2, b'a', b'b']),
            ("message", |w| w.message(3, |w| w.number(1, 150)), &[0x1a, 3, 0x08, 0x96, 1]),
        ];
        for (case, write, want) in cases {
            let mut writer = Writer::default();
            write(&mut writer);
            assert_eq!(writer.into_bytes(), want, "{case}");
        }
    }

    #[test]
    fn reads() {
        use Value::{Bytes, Number};
        type Fields = Result<Vec<(u32, Value<'static>)>, Malformed>;
        let cases: [(&str, &[u8], Fields); 11] = [
            ("nothing", &[], Ok(vec![])),
            ("number", &[0x08, 0x96, 1], Ok(vec![(1, Number(150))])),
            ("text", &[0x12, 2, b'a', b'b'], Ok(vec![(2, Bytes(b"ab"))])),
            ("empty text", &[0x12, 0], Ok(vec![(2, Bytes(b""))])),
            ("fixed widths are skipped", &[9, 1, 2, 3, 4, 5, 6, 7, 8, 13, 1, 2, 3, 4], Ok(vec![])),
            ("cut in a tag", &[0x88], Err(Malformed)),
            ("cut before a value", &[0x08], Err(Malformed)),
            ("cut in a text", &[0x12, 2, b'a'], Err(Malformed)),
            (
                "endless length",
                &[0x12, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
                Err(Malformed),
            ),
            (
                "endless number",
                &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
                Err(Malformed),
            ),
            ("group", &[0x0b], Err(Malformed)),
        ];
        for (case, bytes, want) in cases {
            assert_eq!(fields(bytes), want, "{case}");
        }
    }

    #[test]
    fn negative_numbers() {
        let bytes = [0x08, 0xcc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(fields(&bytes).expect("well formed")[0].1.number(), -52);
    }
}
