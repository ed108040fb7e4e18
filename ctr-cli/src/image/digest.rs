//! Content addresses.

use std::{fmt, str::FromStr};

use ring::digest::{Context, SHA256, digest};

/// The address of a blob, `sha256:<lower-case hex>`. Parsing and hashing are the only ways to
/// get one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Digest(Box<str>);

impl Digest {
    /// The address of `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::from_hash(digest(&SHA256, bytes).as_ref())
    }

    /// The text form.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    fn from_hash(hash: &[u8]) -> Self {
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(format!("sha256:{hex}").into())
    }
}

/// Hashes what arrives in pieces.
pub(crate) struct Hasher(Context);

impl Hasher {
    pub(crate) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        Digest::from_hash(self.0.finish().as_ref())
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = match text.split_once(':') {
            Some(("sha256", hex)) if hex.len() == 64 => hex,
            Some(("sha512", hex)) if hex.len() == 128 => hex,
            _ => return Err(ParseDigestError(text.to_owned())),
        };
        if hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(text.into()))
        } else {
            Err(ParseDigestError(text.to_owned()))
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is not a digest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest such as sha256:<64 hex digits>")]
pub(crate) struct ParseDigestError(String);

/// The chain ID of a stack of layers, by the diff IDs from the bottom up: the first is its own
/// diff ID, each other the hash of the one below, a space, and its diff ID.
///
/// Source: OCI image-spec, "Layer ChainID".
pub(crate) fn chain_id(diff_ids: &[Digest]) -> Option<Digest> {
    let (first, rest) = diff_ids.split_first()?;
    let step =
        |below: Digest, diff_id: &Digest| Digest::of(format!("{below} {diff_id}").as_bytes());
    Some(rest.iter().fold(first.clone(), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains() {
        let [a, b] = ["a", "b"].map(|text| Digest::of(text.as_bytes()));
        assert_eq!(chain_id(&[]), None);
        assert_eq!(chain_id(std::slice::from_ref(&a)), Some(a.clone()));
        let both = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(chain_id(&[a.clone(), b.clone()]), Some(both.clone()));
        let three = Digest::of(format!("{both} {a}").as_bytes());
        assert_eq!(chain_id(&[a.clone(), b, a]), Some(three));
    }

    #[test]
    fn parse() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), empty);
        let cases = [
            ("good", empty.to_owned(), true),
            ("upper case", empty.to_uppercase(), false),
            ("short", empty[..70].to_owned(), false),
            ("path", format!("sha256:../{}", "0".repeat(61)), false),
            ("no algorithm", "0".repeat(64), false),
        ];
        for (case, text, want) in cases {
            assert_eq!(text.parse::<Digest>().is_ok(), want, "{case}");
        }
    }
}
