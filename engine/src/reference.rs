//! Image references.

use std::{fmt, str::FromStr};

use crate::digest::{Digest, ParseDigestError};

/// The host of references that name none.
const DEFAULT_HOST: &str = "docker.io";

/// The longest name (host and path), in bytes (distribution, `NameTotalLengthMax`).
const NAME_LEN_MAX: usize = 255;

/// The longest tag, in bytes.
const TAG_LEN_MAX: usize = 128;

/// Where an image is found: `host/path[:tag][@digest]`.
///
/// The grammar is that of the distribution project: the host is a domain name or an address with
/// an optional port, the path is lower-case components separated by slashes. A `Reference` has at
/// least one of tag and digest: a text without either means the tag `latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    host: Box<str>,
    path: Box<str>,
    tag: Option<Box<str>>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses a name as people type it: `nginx` means `docker.io/library/nginx:latest`.
    ///
    /// # Errors
    ///
    /// The text does not follow the grammar; the error says where.
    pub fn parse_short(text: &str) -> Result<Self, ParseReferenceError> {
        let (first, rest) = text.split_once('/').unwrap_or(("", text));
        let is_host = first.contains(['.', ':']) || first == "localhost" || has_upper(first);
        if is_host && !rest.is_empty() {
            return text.parse();
        }
        let library = if text.contains('/') { "" } else { "library/" };
        format!("{DEFAULT_HOST}/{library}{text}").parse()
    }

    /// The registry's name, with the port if there is one.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What to ask the registry for: the digest if there is one, or else the tag.
    pub fn object(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_string(),
            (None, None) => unreachable!("parsing supplies a tag"),
        }
    }
}

fn has_upper(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_uppercase())
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |problem| ParseReferenceError { reference: text.to_owned(), problem };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                (name, Some(digest.parse().map_err(|e| error(Problem::Digest(e)))?))
            }
            None => (text, None),
        };
        let (host, rest) = name.split_once('/').ok_or_else(|| error(Problem::NoHost))?;
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if host.len() + 1 + path.len() > NAME_LEN_MAX {
            return Err(error(Problem::NameTooLong));
        }
        check_host(host).map_err(error)?;
        check_path(path).map_err(error)?;
        if let Some(tag) = tag {
            check_tag(tag).map_err(error)?;
        }
        let tag = if tag.is_none() && digest.is_none() { Some("latest") } else { tag };
        Ok(Self { host: host.into(), path: path.into(), tag: tag.map(Into::into), digest })
    }
}

fn check_host(host: &str) -> Result<(), Problem> {
    let bad = || Problem::Host(host.to_owned());
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or_else(bad)?;
        let port = port.strip_prefix(':').or_else(|| port.is_empty().then_some("0"));
        let address = address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
        let _ = address;
        ("ipv6", Some(port.ok_or_else(bad)?))
    } else {
        match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        }
    };
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let port_ok =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if name.split('.').all(label_ok) && port.is_none_or(port_ok) { Ok(()) } else { Err(bad()) }
}

fn check_path(path: &str) -> Result<(), Problem> {
    for component in path.split('/') {
        if !is_path_component(component.as_bytes()) {
            return Err(Problem::PathComponent(component.to_owned()));
        }
    }
    Ok(())
}

/// Runs of `[a-z0-9]`, separated by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(mut bytes: &[u8]) -> bool {
    loop {
        let run = bytes.iter().take_while(|b| b.is_ascii_lowercase() || b.is_ascii_digit()).count();
        if run == 0 {
            return false;
        }
        bytes = &bytes[run..];
        let separator = match bytes {
            [] => return true,
            [b'_', b'_', ..] => 2,
            [b'.' | b'_', ..] => 1,
            [b'-', ..] => bytes.iter().take_while(|&&b| b == b'-').count(),
            _ => return false,
        };
        bytes = &bytes[separator..];
    }
}

fn check_tag(tag: &str) -> Result<(), Problem> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let ok = tag.len() <= TAG_LEN_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if ok { Ok(()) } else { Err(Problem::Tag(tag.to_owned())) }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Why a text is not a reference.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference {reference:?}")]
pub struct ParseReferenceError {
    /// The text.
    pub reference: String,
    /// What is wrong with it.
    #[source]
    pub problem: Problem,
}

/// What is wrong with a reference.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Problem {
    #[error("it names no registry; docker.io images start with docker.io/library/")]
    NoHost,
    #[error("{0:?} is not a host name or address with an optional port")]
    Host(String),
    #[error(
        "{0:?} is not a repository path component: lower-case letters and digits, separated by ., _, __ or -"
    )]
    PathComponent(String),
    #[error("{0:?} is not a tag: up to 128 letters, digits, _, . and -, the first no . or -")]
    Tag(String),
    #[error("digest")]
    Digest(#[source] ParseDigestError),
    #[error("host and path are over 255 bytes long")]
    NameTooLong,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_short() {
        let hex = "0".repeat(64);
        let cases = [
            ("name", "nginx", "docker.io/library/nginx:latest"),
            ("name and tag", "nginx:1.21.6", "docker.io/library/nginx:1.21.6"),
            ("user", "user/app", "docker.io/user/app:latest"),
            ("host", "quay.io/a/b:x", "quay.io/a/b:x"),
            ("port", "localhost:5000/a", "localhost:5000/a:latest"),
            ("localhost", "localhost/a", "localhost/a:latest"),
            ("address", "127.0.0.1:5000/a:b", "127.0.0.1:5000/a:b"),
            ("IPv6", "[::1]:5000/a", "[::1]:5000/a:latest"),
            ("separators", "h.io/a__b/c-----d/e.f_g", "h.io/a__b/c-----d/e.f_g:latest"),
        ];
        for (case, text, want) in cases {
            assert_eq!(
                Reference::parse_short(text).map(|r| r.to_string()),
                Ok(want.to_owned()),
                "{case}"
            );
        }
        let pinned = format!("nginx:1@sha256:{hex}");
        let reference = Reference::parse_short(&pinned).expect("well formed");
        assert_eq!(reference.to_string(), format!("docker.io/library/{pinned}"));
        assert_eq!(reference.object(), format!("sha256:{hex}"));
    }

    #[test]
    fn refuse() {
        let component = |text: &str| Problem::PathComponent(text.to_owned());
        let cases = [
            ("no host", "nginx", Problem::NoHost),
            ("upper case", "docker.io/Nginx", component("Nginx")),
            ("empty component", "docker.io/a//b", component("")),
            ("dots", "docker.io/../etc", component("..")),
            ("double dot", "docker.io/a..b", component("a..b")),
            ("trailing separator", "docker.io/a-", component("a-")),
            ("empty tag", "docker.io/a:", Problem::Tag(String::new())),
            ("tag with a dot first", "docker.io/a:.b", Problem::Tag(".b".to_owned())),
            ("port", "h:99999/a", Problem::Host("h:99999".to_owned())),
            ("host", "-h/a", Problem::Host("-h".to_owned())),
            ("line break", "docker.io/a\n", component("a\n")),
            ("digest", "docker.io/a@sha256", Problem::Digest(ParseDigestError::NoAlgorithm)),
        ];
        for (case, text, problem) in cases {
            let reference = text.to_owned();
            assert_eq!(
                text.parse::<Reference>(),
                Err(ParseReferenceError { reference, problem }),
                "{case}"
            );
        }
    }
}
