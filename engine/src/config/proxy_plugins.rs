//! The `[proxy_plugins]` section, as containerd's.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::platform::Platform;

/// A part of the daemon that is another program.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyPlugin {
    /// What it is for.
    #[serde(rename = "type")]
    pub kind: ProxyKind,
    /// The path of its socket.
    pub address: String,
    /// The platform that it is for; this machine's if none is given.
    #[serde(default, deserialize_with = "platform")]
    pub platform: Option<Platform>,
    /// What clients are told of it.
    #[serde(default)]
    pub exports: BTreeMap<String, String>,
    /// What clients are told that it can do.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

/// What a [`ProxyPlugin`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum ProxyKind {
    /// It keeps snapshots.
    #[serde(rename = "snapshot", alias = "io.containerd.snapshotter.v1")]
    Snapshot,
    /// It applies and makes layers.
    #[serde(rename = "diff", alias = "io.containerd.differ.v1")]
    Diff,
    /// It keeps the bytes of blobs, instead of the folder below the root.
    #[serde(rename = "content", alias = "io.containerd.content.v1")]
    Content,
}

fn platform<'de, D: Deserializer<'de>>(text: D) -> Result<Option<Platform>, D::Error> {
    let text = String::deserialize(text)?;
    if text.is_empty() {
        return Ok(None);
    }
    let platform = Platform::parse(&text);
    platform.map(Some).ok_or_else(|| D::Error::custom(format!("{text:?} is not a platform")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn as_containerds() {
        let text = "[proxy_plugins.remote]\ntype = 'snapshot'\naddress = '/run/r.sock'\n\
                    platform = 'linux/arm64'\ncapabilities = ['rebase']\n\
                    [proxy_plugins.remote.exports]\nroot = '/var/lib/r'\n";
        let want = ProxyPlugin {
            kind: ProxyKind::Snapshot,
            address: "/run/r.sock".to_owned(),
            platform: Platform::parse("linux/arm64"),
            exports: BTreeMap::from([("root".to_owned(), "/var/lib/r".to_owned())]),
            capabilities: vec!["rebase".to_owned()],
        };
        let config = Config::parse(text).expect("parses");
        assert_eq!(config.proxy_plugins, BTreeMap::from([("remote".to_owned(), want)]));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let head = "[proxy_plugins.x]\naddress = '/s'\n";
        let cases = [
            ("no type", head.to_owned(), "missing field `type`"),
            ("other type", format!("{head}type = 'sandbox'"), "line 3"),
            (
                "no address",
                "[proxy_plugins.x]\ntype = 'diff'".to_owned(),
                "missing field `address`",
            ),
            (
                "platform",
                format!("{head}type = 'diff'\nplatform = 'a b'"),
                "\"a b\" is not a platform",
            ),
            ("other key", format!("{head}type = 'diff'\nadress = '/x'"), "unknown field `adress`"),
        ];
        for (case, text, want) in cases {
            let error = Config::parse(&text).expect_err(case).to_string();
            assert!(error.contains(want), "{case}: {error}");
        }
    }
}
