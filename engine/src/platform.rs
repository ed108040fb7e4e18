//! Platforms: what an image is for, and what this machine can run.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An operating system and a processor architecture (OCI image-spec, "platform").
///
/// The names are Go's. [`parse`](Self::parse) and [`normalize`](Self::normalize) turn the usual
/// synonyms (`x86_64`, `aarch64`, `armhf`) into them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// Such as `amd64`.
    pub architecture: String,
    /// Such as `linux`.
    pub os: String,
    /// The version of the operating system; only Windows images have it.
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Such as `v7` of `arm`; empty when there is one only.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            other => other,
        };
        Self::parse(&format!("linux/{architecture}")).expect("two components")
    }

    /// Parses `os/architecture[/variant]`, or an architecture alone, which is Linux's.
    pub fn parse(text: &str) -> Option<Self> {
        let word = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(word) {
            return None;
        }
        let (os, architecture, variant) = match parts[..] {
            [architecture] => ("linux", architecture, ""),
            [os, architecture] => (os, architecture, ""),
            [os, architecture, variant] => (os, architecture, variant),
            _ => return None,
        };
        let platform = Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            os_version: String::new(),
        };
        Some(platform.normalize())
    }

    /// With Go's names, and without a variant that says nothing.
    #[must_use]
    pub fn normalize(mut self) -> Self {
        self.os = match self.os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let architecture = self.architecture.to_ascii_lowercase();
        let variant = self.variant.to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            (architecture, variant) => (architecture, variant),
        };
        (self.architecture, self.variant) = (architecture.to_owned(), variant.to_owned());
        self
    }

    /// How well a machine of this platform runs what is made for `image`: smaller is better,
    /// `None` is not at all.
    ///
    /// A machine runs its own architecture and lower variants of it; `amd64` also runs `386`, and
    /// `arm64` runs `arm` (containerd/platforms, `Only`).
    pub fn rank(&self, image: &Self) -> Option<u32> {
        let (mine, image) = (self.clone().normalize(), image.clone().normalize());
        if mine.os != image.os {
            return None;
        }
        let level = |platform: &Self| variant_level(&platform.architecture, &platform.variant);
        match (mine.architecture.as_str(), image.architecture.as_str()) {
            (a, b) if a == b => match (level(&mine)?, level(&image)?) {
                (mine, image) if image <= mine => Some(mine - image),
                _ => None,
            },
            ("arm64", "arm") => Some(100 + 8 - level(&image)?.min(8)),
            ("amd64", "386") => Some(200),
            _ => None,
        }
    }
}

/// The number in a variant; the lowest of the architecture when it has none.
fn variant_level(architecture: &str, variant: &str) -> Option<u32> {
    if variant.is_empty() {
        return Some(match architecture {
            "arm" => 7,
            "arm64" => 8,
            _ => 1,
        });
    }
    variant.strip_prefix('v')?.split('.').next()?.parse().ok()
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse() {
        let cases = [
            ("architecture", "x86_64", Some("linux/amd64")),
            ("both", "linux/aarch64", Some("linux/arm64")),
            ("arm64 v8 is plain", "linux/arm64/v8", Some("linux/arm64")),
            ("arm has a variant", "linux/arm", Some("linux/arm/v7")),
            ("amd64 v3", "linux/amd64/v3", Some("linux/amd64/v3")),
            ("empty", "", None),
            ("four parts", "a/b/c/d", None),
            ("space", "linux/a b", None),
        ];
        for (case, text, want) in cases {
            assert_eq!(Platform::parse(text).map(|p| p.to_string()).as_deref(), want, "{case}");
        }
    }

    #[test]
    fn rank() {
        let cases = [
            ("same", "linux/amd64", "linux/amd64", Some(0)),
            ("another system", "linux/amd64", "windows/amd64", None),
            ("another architecture", "linux/amd64", "linux/arm64", None),
            ("32 bits", "linux/amd64", "linux/386", Some(200)),
            ("lower variant", "linux/arm/v7", "linux/arm/v6", Some(1)),
            ("higher variant", "linux/arm/v6", "linux/arm/v7", None),
            ("level of amd64", "linux/amd64", "linux/amd64/v3", None),
            ("arm on arm64", "linux/arm64", "linux/arm/v7", Some(101)),
        ];
        for (case, machine, image, want) in cases {
            let platform = |text| Platform::parse(text).expect("well formed");
            assert_eq!(platform(machine).rank(&platform(image)), want, "{case}");
        }
    }
}
