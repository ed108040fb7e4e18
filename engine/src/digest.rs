//! Content addresses.

use std::{fmt, str::FromStr};

/// A hash algorithm that containerd knows.
///
/// These are Go's `go-digest` algorithms. BLAKE3, of which the OCI image specification speaks, is an
/// extra module there that containerd does not have, so its clients cannot name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    /// The name, as it stands before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// The length of a hash, in bytes of hex text.
    pub fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha384 => 96,
            Self::Sha512 => 128,
        }
    }

    fn ring(self) -> &'static ring::digest::Algorithm {
        match self {
            Self::Sha256 => &ring::digest::SHA256,
            Self::Sha384 => &ring::digest::SHA384,
            Self::Sha512 => &ring::digest::SHA512,
        }
    }
}

/// The address of a blob: a hash algorithm and the hash of the blob's bytes.
///
/// The text form is `<algorithm>:<lower-case hex>` (OCI image-spec, "Digests"). A `Digest` is
/// always well formed, because parsing and hashing are the only ways to get one: whoever holds it
/// need not check it, and may use [`hex`](Self::hex) as a path component.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

impl Digest {
    /// The SHA-256 address of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The hash algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hash, in [`Algorithm::hex_len`] characters of `0-9a-f`.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, hex) = text.split_once(':').ok_or(ParseDigestError::NoAlgorithm)?;
        let algorithm = Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name);
        let algorithm =
            algorithm.ok_or_else(|| ParseDigestError::UnknownAlgorithm(name.to_owned()))?;
        let want = algorithm.hex_len();
        if hex.len() != want {
            return Err(ParseDigestError::Length { want, got: hex.len() });
        }
        if let Some(at) = hex.bytes().position(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ParseDigestError::NotLowerHex { at });
        }
        Ok(Self { algorithm, hex: hex.into() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

/// Computes a [`Digest`] from bytes as they come.
#[derive(Clone)]
pub struct Hasher {
    algorithm: Algorithm,
    context: ring::digest::Context,
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, context: ring::digest::Context::new(algorithm.ring()) }
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    /// The address of everything seen.
    pub fn finish(self) -> Digest {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let hash = self.context.finish();
        let mut hex = String::with_capacity(self.algorithm.hex_len());
        for byte in hash.as_ref() {
            hex.push(char::from(HEX[usize::from(byte >> 4)]));
            hex.push(char::from(HEX[usize::from(byte & 15)]));
        }
        Digest { algorithm: self.algorithm, hex: hex.into() }
    }
}

/// Why a text is not a digest. The messages are those of Go's `go-digest`, which clients print.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum ParseDigestError {
    /// There is no colon.
    #[error("invalid checksum digest format")]
    NoAlgorithm,
    /// What stands before the colon is not an [`Algorithm`].
    #[error("unsupported digest algorithm")]
    UnknownAlgorithm(String),
    /// The hash does not have the algorithm's length, in bytes of text.
    #[error("invalid checksum digest length")]
    Length { want: usize, got: usize },
    /// The hash has a byte outside `0-9a-f`, first at this offset.
    #[error("invalid checksum digest format")]
    NotLowerHex { at: usize },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse() {
        use ParseDigestError as E;
        let zeros = |n: usize| "0".repeat(n);
        let cases = [
            ("sha256", format!("sha256:{}", zeros(64)), Ok(())),
            ("sha384", format!("sha384:{}", zeros(96)), Ok(())),
            ("sha512", format!("sha512:{}", zeros(128)), Ok(())),
            (
                "blake3",
                format!("blake3:{}", zeros(64)),
                Err(E::UnknownAlgorithm("blake3".to_owned())),
            ),
            ("empty", String::new(), Err(E::NoAlgorithm)),
            ("no algorithm", zeros(64), Err(E::NoAlgorithm)),
            ("unknown algorithm", "md5:0".to_owned(), Err(E::UnknownAlgorithm("md5".to_owned()))),
            ("too short", format!("sha256:{}", zeros(63)), Err(E::Length { want: 64, got: 63 })),
            ("too long", format!("sha256:{}", zeros(65)), Err(E::Length { want: 64, got: 65 })),
            ("upper case", format!("sha256:{}A", zeros(63)), Err(E::NotLowerHex { at: 63 })),
            ("path escape", format!("sha256:../{}", zeros(61)), Err(E::NotLowerHex { at: 0 })),
        ];
        for (case, text, want) in cases {
            let got = text.parse::<Digest>().map(|digest| digest.to_string());
            assert_eq!(got, want.map(|()| text), "{case}");
        }
    }

    #[test]
    fn of_bytes() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
    }
}
