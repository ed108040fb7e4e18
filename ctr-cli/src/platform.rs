//! Platforms: what images are built for.

use std::{fmt, str::FromStr};

use proto::containerd::types;
use serde::Deserialize;

/// An operating system, an architecture and its variant, in their normal spelling.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: String,
}

impl Platform {
    /// The platform that this program runs on.
    pub(crate) fn host() -> Self {
        Self {
            os: std::env::consts::OS.to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            variant: String::new(),
        }
        .normalised()
    }

    /// Whether a host of this platform runs what was built for `other`.
    pub(crate) fn runs(&self, other: &Self) -> bool {
        let other = other.clone().normalised();
        self.os == other.os
            && self.architecture == other.architecture
            && (self.variant.is_empty()
                || self.variant == other.variant
                // Lower variants of arm run on higher ones.
                || (self.architecture == "arm" && other.variant < self.variant)
                || other.variant.is_empty())
    }

    fn normalised(mut self) -> Self {
        self.os.make_ascii_lowercase();
        self.architecture.make_ascii_lowercase();
        self.variant.make_ascii_lowercase();
        let (architecture, variant) = match (self.architecture.as_str(), self.variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("i386" | "i486" | "i586" | "i686" | "x86" | "386", _) => ("386", ""),
            ("aarch64" | "arm64", "" | "8" | "v8") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("powerpc64le", _) => ("ppc64le", ""),
            (architecture, variant) => (architecture, variant),
        };
        (self.architecture, self.variant) = (architecture.to_owned(), variant.to_owned());
        self
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    /// Parses `os/architecture[/variant]`, or one of the first two alone.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || ParsePlatformError(text.to_owned());
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
        };
        if !parts.iter().all(word) {
            return Err(invalid());
        }
        let host = Self::host();
        let (os, architecture, variant) = match parts.as_slice() {
            ["linux" | "windows" | "darwin" | "freebsd"] => {
                (parts[0], host.architecture.as_str(), host.variant.as_str())
            }
            [architecture] => (host.os.as_str(), *architecture, ""),
            [os, architecture] => (*os, *architecture, ""),
            [os, architecture, variant] => (*os, *architecture, *variant),
            _ => return Err(invalid()),
        };
        let platform = Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        };
        Ok(platform.normalised())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl From<Platform> for types::Platform {
    fn from(platform: Platform) -> Self {
        Self {
            os: platform.os,
            architecture: platform.architecture,
            variant: platform.variant,
            ..Default::default()
        }
    }
}

/// The text is not a platform.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("platform {0:?} is not os/architecture[/variant]")]
pub(crate) struct ParsePlatformError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse() {
        let cases = [
            ("full", "linux/arm64/v8", Ok("linux/arm64")),
            ("arm", "linux/arm", Ok("linux/arm/v7")),
            ("alias", "linux/x86_64", Ok("linux/amd64")),
            ("variant", "linux/amd64/v3", Ok("linux/amd64/v3")),
            ("upper case", "Linux/AMD64", Ok("linux/amd64")),
            ("empty", "", Err(())),
            ("too many", "a/b/c/d", Err(())),
            ("hole", "linux//v8", Err(())),
        ];
        for (case, text, want) in cases {
            let got = text.parse::<Platform>().map(|platform| platform.to_string());
            assert_eq!(got.map_err(|_| ()), want.map(str::to_owned), "{case}");
        }
    }
}
