//! Credentials and tokens.

use std::collections::BTreeMap;

/// What a client knows of itself towards one host.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// A user name and a password.
    Password {
        /// The user's name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token with which tokens are asked for (OAuth 2, "refresh token").
    Refresh(String),
    /// The value of the header `Authorization`, to be sent as it is.
    Header(String),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Where secrets come from: asked at most once for each host, and only when the host demands it.
#[async_trait::async_trait]
pub trait Credentials: Send + Sync {
    /// The secret for `host`, which answered with these challenges; `None` to go on without.
    async fn secret(&self, host: &str, challenges: &[String]) -> Option<Secret>;
}

/// A challenge: the value of a header `WWW-Authenticate` (RFC 7235, section 4.1).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token, to be had from a server.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// Parses the challenge; `None` for other schemes and for nonsense.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = parameters(rest)?;
        Some(Self::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        })
    }
}

/// Parses `key=value, key="quoted value"`.
fn parameters(mut text: &str) -> Option<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    loop {
        text = text.trim_start_matches([' ', ',']);
        if text.is_empty() {
            return Some(found);
        }
        let (key, rest) = text.split_once('=')?;
        let value;
        if let Some(quoted) = rest.strip_prefix('"') {
            let end = closing_quote(quoted)?;
            value = quoted[..end].replace("\\\"", "\"");
            text = &quoted[end + 1..];
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            value = rest[..end].trim().to_owned();
            text = &rest[end..];
        }
        found.insert(key.trim().to_ascii_lowercase(), value);
    }
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

/// The value of `Authorization` for a user name and a password.
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for (at, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let digit = char::from(ALPHABET[(word >> shift & 63) as usize]);
            text.push(if at <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

/// `text` as part of a URL's query (RFC 3986, section 2.3).
pub(super) fn percent(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        let cases = [
            ("basic", "Basic realm=\"r\"", Some(Challenge::Basic)),
            (
                "Docker Hub",
                "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",\
                 scope=\"repository:a/b:pull\"",
                bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:a/b:pull"),
                ),
            ),
            ("comma in quotes", "bearer realm=\"a,b\", scope=c", bearer("a,b", None, Some("c"))),
            ("escaped quote", r#"Bearer realm="a\"b""#, bearer("a\"b", None, None)),
            ("no realm", "Bearer service=x", None),
            ("unclosed", "Bearer realm=\"x", None),
            ("another scheme", "Negotiate", None),
            ("empty", "", None),
        ];
        for (case, header, want) in cases {
            assert_eq!(Challenge::parse(header), want, "{case}");
        }
    }

    #[test]
    fn encodings() {
        let cases =
            [("a", "", "Basic YTo="), ("ab", "", "Basic YWI6"), ("abc", "d", "Basic YWJjOmQ=")];
        for (user, password, want) in cases {
            assert_eq!(basic(user, password), want, "{user}:{password}");
        }
        assert_eq!(percent("repository:a/b"), "repository%3Aa%2Fb");
    }
}
