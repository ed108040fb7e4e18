//! Extended headers.

use super::{
    TarError, XATTR_COUNT_MAX,
    header::{Entry, Piece, Time, id},
    numbers::decimal,
};

/// What comes in front of the name of an extended attribute.
pub(super) const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// What an extended header says of the next entry. `None`: nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Time>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparseHeader,
}

/// The records about sparse files, of the three versions of that format.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SparseHeader {
    pub(super) version: (i64, i64),
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Numbers that alternate between offset and length, of versions 0.0 and 0.1.
    pub(super) map: Vec<u64>,
    /// Whether anything was said.
    pub(super) present: bool,
}

impl Extended {
    /// Adds the records in `data`; later ones win.
    pub(super) fn add(&mut self, mut data: &[u8]) -> Result<(), TarError> {
        while !data.is_empty() {
            let (key, value, rest) = record(data).ok_or(TarError::Pax)?;
            self.set(key, value)?;
            data = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        let number = |field| {
            let value = decimal(value).ok_or(TarError::Number { field })?;
            u64::try_from(value).map_err(|_| TarError::Number { field })
        };
        // An empty value takes back what an earlier record said.
        let given = !value.is_empty();
        match key {
            b"path" => self.path = given.then(|| name(value)).transpose()?,
            b"linkpath" => self.link = given.then(|| name(value)).transpose()?,
            b"size" => self.size = given.then(|| number("size")).transpose()?,
            b"uid" => self.uid = given.then(|| pax_id(value, "uid")).transpose()?,
            b"gid" => self.gid = given.then(|| pax_id(value, "gid")).transpose()?,
            b"mtime" => self.mtime = given.then(|| time(value)).transpose()?,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    return self.set_xattr(name, value);
                }
                if let Some(field) = key.strip_prefix(b"GNU.sparse.") {
                    return self.sparse.set(field, value);
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), TarError> {
        self.xattrs.retain(|(known, _)| known != name);
        if self.xattrs.len() == XATTR_COUNT_MAX {
            let max = XATTR_COUNT_MAX as u64;
            return Err(TarError::TooLarge { what: "number of extended attributes", max });
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }

    /// Changes `entry` to what was said of it, except of sizes and sparse files.
    pub(super) fn apply(&mut self, entry: &mut Entry) {
        if let Some(link) = self.link.take() {
            entry.link = link;
        }
        entry.uid = self.uid.unwrap_or(entry.uid);
        entry.gid = self.gid.unwrap_or(entry.gid);
        entry.mtime = self.mtime.unwrap_or(entry.mtime);
        entry.xattrs = std::mem::take(&mut self.xattrs);
    }
}

impl SparseHeader {
    fn set(&mut self, field: &[u8], value: &[u8]) -> Result<(), TarError> {
        let number = || decimal(value).ok_or(TarError::Sparse);
        let size = || u64::try_from(number()?).map_err(|_| TarError::Sparse);
        match field {
            b"major" => self.version.0 = number()?,
            b"minor" => self.version.1 = number()?,
            b"name" => self.name = Some(name(value)?),
            b"size" | b"realsize" => self.real_size = Some(size()?),
            b"offset" | b"numbytes" => self.map.push(size()?),
            b"map" => {
                for number in value.split(|byte| *byte == b',') {
                    let number = decimal(number).and_then(|number| u64::try_from(number).ok());
                    self.map.push(number.ok_or(TarError::Sparse)?);
                }
            }
            _ => return Ok(()),
        }
        self.present = true;
        Ok(())
    }

    /// The pieces that were listed in the header itself.
    pub(super) fn pieces(&self) -> Result<Vec<Piece>, TarError> {
        let (pairs, rest) = self.map.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(TarError::Sparse);
        }
        Ok(pairs.iter().map(|&[offset, len]| Piece { offset, len }).collect())
    }
}

/// The first record, `"<length> <key>=<value>\n"`, and what follows it.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|byte| *byte == b' ')?;
    let len = usize::try_from(decimal(&data[..space])?).ok()?;
    let record = data.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some((key, value, &data[len..]))
}

/// A path, in which there is no zero byte.
fn name(value: &[u8]) -> Result<Vec<u8>, TarError> {
    if value.contains(&0) { Err(TarError::Pax) } else { Ok(value.to_vec()) }
}

fn pax_id(value: &[u8], field: &'static str) -> Result<u32, TarError> {
    id(decimal(value).ok_or(TarError::Number { field })?, field)
}

/// Seconds, perhaps with a fraction, of which nine digits count.
fn time(value: &[u8]) -> Result<Time, TarError> {
    let bad = TarError::Number { field: "mtime" };
    let text = std::str::from_utf8(value).map_err(|_| bad.clone())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| bad.clone())?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad);
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().map_err(|_| bad)?;
    if whole.starts_with('-') && nanoseconds > 0 {
        // -1.25 is two seconds back and 0.75 forward.
        let seconds = seconds.saturating_sub(1);
        return Ok(Time { seconds, nanoseconds: 1_000_000_000 - nanoseconds });
    }
    Ok(Time { seconds, nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(data: &[u8]) -> Result<Extended, TarError> {
        let mut extended = Extended::default();
        extended.add(data).map(|()| extended)
    }

    #[test]
    fn records() {
        let empty = Extended::default;
        let cases: [(&str, &[u8], Result<Extended, TarError>); 12] = [
            ("nothing", b"", Ok(empty())),
            ("path", b"12 path=abc\n", Ok(Extended { path: Some(b"abc".to_vec()), ..empty() })),
            ("unknown key", b"9 key=ab\n", Ok(empty())),
            ("taken back", b"12 path=abc\n8 path=\n", Ok(empty())),
            (
                "value with equals",
                b"9 path==\n",
                Ok(Extended { path: Some(b"=".to_vec()), ..empty() }),
            ),
            ("too long", b"13 path=abc\n", Err(TarError::Pax)),
            ("too short", b"11 path=abc\n", Err(TarError::Pax)),
            ("no length", b"path=abc\n", Err(TarError::Pax)),
            ("huge length", b"99999999999999999999 a=b\n", Err(TarError::Pax)),
            ("negative length", b"-5 path=abc\n", Err(TarError::Pax)),
            ("zero in a path", b"12 path=a\0c\n", Err(TarError::Pax)),
            ("id out of range", b"18 uid=4294967295\n", Err(TarError::Number { field: "uid" })),
        ];
        for (case, data, want) in cases {
            assert_eq!(parsed(data), want, "{case}");
        }
    }

    #[test]
    fn times() {
        let cases = [
            ("0", Some((0, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("-1.25", Some((-2, 750_000_000))),
            ("1.1234567899", Some((1, 123_456_789))),
            ("1.", Some((1, 0))),
            ("1.x", None),
            ("", None),
            ("99999999999999999999", None),
        ];
        for (text, want) in cases {
            let got = time(text.as_bytes()).ok().map(|time| (time.seconds, time.nanoseconds));
            assert_eq!(got, want, "{text:?}");
        }
    }
}
