//! What an image's configuration says about its containers.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Spec, defaults::DEFAULT_ENV, set_env};

/// The `config` of an image configuration, which is written by whoever built the image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ImageConfig {
    pub(crate) user: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) cmd: Vec<String>,
    pub(crate) working_dir: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) stop_signal: String,
}

/// Reads `null`, which Go writes for what is empty, as the default.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Takes command, environment and working directory from the image. What `spec` has in its
/// environment wins. The user is not taken: that needs the image's files.
pub(crate) fn apply_image(spec: &mut Spec, config: &ImageConfig) {
    let own = std::mem::take(&mut spec.process.env);
    let mut env = config.env.clone();
    if env.is_empty() {
        env.push(DEFAULT_ENV.to_owned());
    }
    set_env(&mut env, &own);
    spec.process.env = env;
    spec.process.args = config.entrypoint.iter().chain(&config.cmd).cloned().collect();
    let cwd = if config.working_dir.is_empty() { "/" } else { &config.working_dir };
    cwd.clone_into(&mut spec.process.cwd);
}

/// Prefixes of labels that change what a daemon does. An image must not set them
/// (CVE-2026-53488: a restart monitor ran the program that an image's label named).
const RESERVED_PREFIXES: [&str; 4] =
    ["containerd.io/", "io.containerd.", "io.cri-containerd", "gantry.io/"];

/// The label that says which signal stops the container.
pub(crate) const STOP_SIGNAL_LABEL: &str = "io.containerd.image.config.stop-signal";

/// The greatest length of a label's key and value together.
const LABEL_BYTES_MAX: usize = 4096;

/// The labels of a container: the image's unless reserved or too long, the stop signal, and
/// those of the command line, which win.
pub(crate) fn container_labels(
    config: &ImageConfig,
    flags: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let harmless = |(key, value): &(&String, &String)| {
        !RESERVED_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
            && key.len() + value.len() <= LABEL_BYTES_MAX
    };
    let copied = config.labels.iter().filter(harmless);
    let mut labels: BTreeMap<_, _> =
        copied.map(|(key, value)| (key.clone(), value.clone())).collect();
    let signal =
        if config.stop_signal.is_empty() { "SIGTERM" } else { config.stop_signal.as_str() };
    labels.insert(STOP_SIGNAL_LABEL.to_owned(), signal.to_owned());
    labels.extend(flags);
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> ImageConfig {
        serde_json::from_str(json).expect("well formed")
    }

    #[test]
    fn nulls_are_empty() {
        let config = parse(r#"{"Env":null,"Entrypoint":null,"Cmd":["sh"],"Labels":null}"#);
        assert_eq!(config, ImageConfig { cmd: vec!["sh".to_owned()], ..ImageConfig::default() });
    }

    #[test]
    fn command_and_environment() {
        let cases = [
            ("both", r#"{"Entrypoint":["a"],"Cmd":["b"],"Env":["X=1"]}"#, "a b", "X=2"),
            ("command", r#"{"Cmd":["b","c"],"Env":["X=1","Y=1"]}"#, "b c", "X=2 Y=1"),
            ("none", "{}", "", &format!("{DEFAULT_ENV} X=2")),
        ];
        for (case, json, args, env) in cases {
            let mut spec = Spec::new("default", "c");
            spec.process.env = vec!["X=2".to_owned()];
            apply_image(&mut spec, &parse(json));
            assert_eq!(spec.process.args.join(" "), args, "{case}");
            assert_eq!(spec.process.env.join(" "), env, "{case}");
        }
    }

    #[test]
    fn labels() {
        let config = parse(
            r#"{"Labels":{"a":"image","b":"image","containerd.io/restart.loguri":"binary:///x",
            "io.cri-containerd.kind":"sandbox","io.containerd.image.config.stop-signal":"SIGKILL"},
            "StopSignal":"SIGQUIT"}"#,
        );
        let flags = crate::names::labels(&["b=flag", "containerd.io/own=1"]);
        let want = crate::names::labels(&[
            "a=image",
            "b=flag",
            "containerd.io/own=1",
            "io.containerd.image.config.stop-signal=SIGQUIT",
        ]);
        assert_eq!(container_labels(&config, flags), want);
    }
}
