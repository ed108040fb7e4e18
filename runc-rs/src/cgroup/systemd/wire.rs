//! Values of D-Bus, as bytes.
//!
//! Source: the D-Bus specification, "Type System" and "Marshaling". Whatever comes in is checked
//! against the end of its message and a depth, so that no peer can make this program read or nest
//! without bound.

/// How deep values may be nested.
const DEPTH_MAX: usize = 16;

/// A value, which knows its type.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Byte(u8),
    Bool(bool),
    Int16(i16),
    Uint16(u16),
    Int32(i32),
    Uint32(u32),
    Int64(i64),
    Uint64(u64),
    Double(f64),
    Text(String),
    Path(String),
    Signature(String),
    /// The elements, after their signature, which an empty array has, too.
    Array(String, Vec<Value>),
    Struct(Vec<Value>),
    Entry(Box<(Value, Value)>),
    Variant(Box<Value>),
}

impl Value {
    /// A text.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A value whose type is told with it.
    pub(super) fn variant(value: Self) -> Self {
        Self::Variant(Box::new(value))
    }

    /// The type, in D-Bus's letters.
    pub(super) fn signature(&self) -> String {
        match self {
            Self::Byte(_) => "y".to_owned(),
            Self::Bool(_) => "b".to_owned(),
            Self::Int16(_) => "n".to_owned(),
            Self::Uint16(_) => "q".to_owned(),
            Self::Int32(_) => "i".to_owned(),
            Self::Uint32(_) => "u".to_owned(),
            Self::Int64(_) => "x".to_owned(),
            Self::Uint64(_) => "t".to_owned(),
            Self::Double(_) => "d".to_owned(),
            Self::Text(_) => "s".to_owned(),
            Self::Path(_) => "o".to_owned(),
            Self::Signature(_) => "g".to_owned(),
            Self::Array(element, _) => format!("a{element}"),
            Self::Struct(fields) => format!("({})", signature_of(fields)),
            Self::Entry(entry) => format!("{{{}{}}}", entry.0.signature(), entry.1.signature()),
            Self::Variant(_) => "v".to_owned(),
        }
    }
}

/// The types of values one after the other.
pub(super) fn signature_of(values: &[Value]) -> String {
    values.iter().map(Value::signature).collect()
}

/// Splits the first whole type off a signature.
pub(super) fn split_type(signature: &str) -> Option<(&str, &str)> {
    let mut depth = 0_usize;
    for (at, letter) in signature.bytes().enumerate() {
        match letter {
            b'(' | b'{' => depth += 1,
            b')' | b'}' => depth = depth.checked_sub(1)?,
            b'a' => continue,
            b'y' | b'b' | b'n' | b'q' | b'i' | b'u' | b'x' | b't' | b'd' | b's' | b'o' | b'g'
            | b'v' | b'h' => {}
            _ => return None,
        }
        if depth == 0 {
            return Some(signature.split_at(at + 1));
        }
    }
    None
}

/// To how many bytes a type is aligned.
fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'y' | b'g' | b'v') => 1,
        Some(b'n' | b'q') => 2,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 4,
    }
}

/// Appends values to bytes that begin at a multiple of eight in their message; little-endian.
#[derive(Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    /// Fills up with zeros.
    pub(super) fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    /// Appends a value.
    pub(super) fn put(&mut self, value: &Value) {
        self.align(alignment(&value.signature()));
        match value {
            Value::Byte(number) => self.0.push(*number),
            Value::Bool(yes) => self.0.extend(u32::from(*yes).to_le_bytes()),
            Value::Int16(number) => self.0.extend(number.to_le_bytes()),
            Value::Uint16(number) => self.0.extend(number.to_le_bytes()),
            Value::Int32(number) => self.0.extend(number.to_le_bytes()),
            Value::Uint32(number) => self.0.extend(number.to_le_bytes()),
            Value::Int64(number) => self.0.extend(number.to_le_bytes()),
            Value::Uint64(number) => self.0.extend(number.to_le_bytes()),
            Value::Double(number) => self.0.extend(number.to_le_bytes()),
            Value::Text(text) | Value::Path(text) => {
                self.length(text.len());
                self.0.extend(text.as_bytes());
                self.0.push(0);
            }
            Value::Signature(text) => self.signature(text),
            Value::Array(element, values) => {
                let at = self.0.len();
                self.length(0);
                self.align(alignment(element));
                let start = self.0.len();
                for value in values {
                    self.put(value);
                }
                let length = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
                self.0[at..at + 4].copy_from_slice(&length.to_le_bytes());
            }
            Value::Struct(fields) => fields.iter().for_each(|field| self.put(field)),
            Value::Entry(entry) => {
                self.put(&entry.0);
                self.put(&entry.1);
            }
            Value::Variant(value) => {
                self.signature(&value.signature());
                self.put(value);
            }
        }
    }

    fn length(&mut self, length: usize) {
        // A length that does not fit is longer than any message may be, and refused as one.
        self.0.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }
}

/// Takes values from bytes that begin at a multiple of eight in their message.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big_endian: bool,
}

impl<'a> Reader<'a> {
    /// A reader at the beginning of `bytes`.
    pub(super) fn new(bytes: &'a [u8], big_endian: bool) -> Self {
        Self { bytes, at: 0, big_endian }
    }

    /// Takes all values of a signature; nothing if the bytes are not such values.
    pub(super) fn take_all(&mut self, signature: &str) -> Option<Vec<Value>> {
        self.several(signature, DEPTH_MAX)
    }

    fn several(&mut self, signature: &str, depth: usize) -> Option<Vec<Value>> {
        let mut values = Vec::new();
        let mut rest = signature;
        while !rest.is_empty() {
            let (first, after) = split_type(rest)?;
            values.push(self.take(first, depth)?);
            rest = after;
        }
        Some(values)
    }

    fn take(&mut self, signature: &str, depth: usize) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        self.at = self.at.checked_next_multiple_of(alignment(signature))?;
        let inner = || signature.get(1..signature.len() - 1);
        Some(match signature.as_bytes().first()? {
            b'y' => Value::Byte(self.fixed::<1>()?[0]),
            b'b' => Value::Bool(self.number()? == 1),
            b'n' => Value::Int16(i16::from_le_bytes(self.fixed()?)),
            b'q' => Value::Uint16(u16::from_le_bytes(self.fixed()?)),
            b'i' => Value::Int32(i32::from_le_bytes(self.fixed()?)),
            b'u' | b'h' => Value::Uint32(self.number()?),
            b'x' => Value::Int64(i64::from_le_bytes(self.fixed()?)),
            b't' => Value::Uint64(u64::from_le_bytes(self.fixed()?)),
            b'd' => Value::Double(f64::from_le_bytes(self.fixed()?)),
            b's' => Value::Text(self.string()?),
            b'o' => Value::Path(self.string()?),
            b'g' => Value::Signature(self.short_string()?),
            b'a' => self.array(signature.get(1..)?, depth)?,
            b'(' => Value::Struct(self.several(inner()?, depth)?),
            b'{' => {
                let mut pair = self.several(inner()?, depth)?.into_iter();
                Value::Entry(Box::new((pair.next()?, pair.next()?)))
            }
            b'v' => {
                let signature = self.short_string()?;
                let (first, rest) = split_type(&signature)?;
                let value = rest.is_empty().then(|| self.take(first, depth))??;
                Value::variant(value)
            }
            _ => return None,
        })
    }

    fn array(&mut self, element: &str, depth: usize) -> Option<Value> {
        let length = self.number()? as usize;
        self.at = self.at.checked_next_multiple_of(alignment(element))?;
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len())?;
        let mut values = Vec::new();
        while self.at < end {
            values.push(self.take(element, depth)?);
        }
        (self.at == end).then(|| Value::Array(element.to_owned(), values))
    }

    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let slice = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(slice)
    }

    /// The bytes of a number, the lowest first.
    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes: [u8; N] = self.slice(N)?.try_into().ok()?;
        if self.big_endian {
            bytes.reverse();
        }
        Some(bytes)
    }

    fn number(&mut self) -> Option<u32> {
        self.fixed().map(u32::from_le_bytes)
    }

    fn string(&mut self) -> Option<String> {
        let length = self.number()? as usize;
        self.ended(length)
    }

    fn short_string(&mut self) -> Option<String> {
        let length = self.fixed::<1>()?[0].into();
        self.ended(length)
    }

    fn ended(&mut self, length: usize) -> Option<String> {
        let text = self.slice(length)?;
        (self.slice(1)? == [0]).then(|| String::from_utf8(text.to_owned()).ok())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[Value]) -> Vec<u8> {
        let mut writer = Writer::default();
        values.iter().for_each(|value| writer.put(value));
        writer.0
    }

    #[test]
    fn what_is_written_is_read() {
        let property = |name: &str, value| Value::Struct(vec![Value::text(name), value]);
        let cases = [
            vec![Value::Byte(1), Value::Uint64(2), Value::Bool(true), Value::Int16(-3)],
            vec![Value::text("x.scope"), Value::text(""), Value::Double(0.5)],
            vec![Value::Array("(ss)".to_owned(), Vec::new()), Value::Byte(1)],
            vec![Value::Array(
                "(sv)".to_owned(),
                vec![
                    property("Delegate", Value::variant(Value::Bool(true))),
                    property(
                        "PIDs",
                        Value::variant(Value::Array("u".to_owned(), vec![Value::Uint32(7)])),
                    ),
                ],
            )],
            vec![Value::Array(
                "{sv}".to_owned(),
                vec![Value::Entry(Box::new((
                    Value::text("k"),
                    Value::variant(Value::Path("/o".to_owned())),
                )))],
            )],
        ];
        for values in cases {
            let bytes = bytes(&values);
            let got = Reader::new(&bytes, false).take_all(&signature_of(&values));
            assert_eq!(got.as_ref(), Some(&values), "{values:?}");
            for end in 0..bytes.len() {
                let cut = Reader::new(&bytes[..end], false).take_all(&signature_of(&values));
                assert_eq!(cut, None, "{values:?} cut at {end}");
            }
        }
    }

    #[test]
    fn layout() {
        let value = Value::Array(
            "(sv)".to_owned(),
            vec![Value::Struct(vec![Value::text("A"), Value::variant(Value::Uint64(5))])],
        );
        let want = [
            24, 0, 0, 0, 0, 0, 0, 0, // the length, and up to where a structure may begin
            1, 0, 0, 0, b'A', 0, 1, b't', // a text of one letter, a signature of one letter
            0, 0, 0, 0, 0, 0, 0, 0, // its end, and up to where the number may begin
            5, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(bytes(&[value]), want);
    }

    #[test]
    fn big_endian_numbers() {
        let got = Reader::new(&[0, 0, 1, 2, 0, 5], true).take_all("uq");
        assert_eq!(got, Some(vec![Value::Uint32(258), Value::Uint16(5)]));
    }

    #[test]
    fn nothing_is_read_without_bound() {
        // A variant in a variant, and so on.
        let nested = [1, b'v', 0].repeat(1000);
        let long = [0xff_u8, 0xff, 0xff, 0x7f, 0];
        assert_eq!(Reader::new(&nested, false).take_all("v"), None, "depth");
        assert_eq!(Reader::new(&long, false).take_all("as"), None, "length of an array");
        assert_eq!(Reader::new(&long, false).take_all("s"), None, "length of a text");
        assert_eq!(Reader::new(&[2, b'v', b'v', 0, 0], false).take_all("v"), None, "two types");
        for bad in ["(", ")", "a", "z", "(s", "a{s"] {
            assert_eq!(split_type(bad), None, "{bad}");
        }
    }
}
