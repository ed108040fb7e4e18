//! Which hosts to ask for the images of a registry: `hosts.toml`, as containerd reads it.
//!
//! For `registry.example:5000` the first of these that exists counts:
//! `registry.example_5000_/hosts.toml`, `registry.example:5000/hosts.toml`,
//! `_default/hosts.toml`. The directory is read at each pull, so changes need no restart.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// What is known of the hosts beside their configuration.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The directory with a directory for each registry host.
    pub directory: Option<PathBuf>,
    /// `http` or `https`; by default `https`, except for loopback hosts, which get both.
    pub scheme: Option<String>,
    /// Headers for every request to the registry.
    pub headers: Vec<(String, String)>,
}

/// A host that serves the images of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Scheme, host, port and path up to the repository, as in `https://host:5000/v2`.
    pub base: String,
    /// The host with the port, for credentials and messages.
    pub host: String,
    /// The registry's name if this is a mirror of it, sent as the parameter `ns`.
    pub mirror_of: Option<String>,
    /// May give blobs and manifests by digest.
    pub pull: bool,
    /// May say which digest a tag stands for.
    pub resolve: bool,
    /// How to speak TLS.
    pub tls: Tls,
    /// Headers for each request.
    pub headers: Vec<(String, String)>,
}

/// How to speak TLS with a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// Files with further certificate authorities, PEM.
    pub authorities: Vec<PathBuf>,
    /// Files with a certificate and its key, PEM; the same file may hold both.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Whether any certificate is accepted.
    pub skip_verify: bool,
}

/// The endpoints for the registry `host`, in the order in which they are asked.
///
/// # Errors
///
/// A `hosts.toml` cannot be read or understood.
pub fn endpoints(host: &str, options: &Options) -> Result<Vec<Endpoint>, HostsError> {
    if let Some(directory) = &options.directory {
        for name in directory_names(host) {
            let path = directory.join(name).join("hosts.toml");
            match std::fs::read_to_string(&path) {
                Ok(text) => return configured(host, &path, &text, options),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(HostsError::Read { path, source }),
            }
        }
    }
    Ok(default_endpoints(host, options))
}

fn directory_names(host: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((name, port)) = host.rsplit_once(':') {
        names.push(format!("{name}_{port}_"));
    }
    names.push(host.to_owned());
    names.push("_default".to_owned());
    names
}

fn default_endpoints(host: &str, options: &Options) -> Vec<Endpoint> {
    let server = if host == "docker.io" { "registry-1.docker.io" } else { host };
    let schemes: &[&str] = match options.scheme.as_deref() {
        Some("http") => &["http"],
        Some(_) => &["https"],
        None if is_loopback(host) => &["https", "http"],
        None => &["https"],
    };
    let endpoint = |scheme: &&str| Endpoint {
        base: format!("{scheme}://{server}/v2"),
        host: server.to_owned(),
        mirror_of: None,
        pull: true,
        resolve: true,
        tls: Tls::default(),
        headers: options.headers.clone(),
    };
    schemes.iter().map(endpoint).collect()
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The root of a `hosts.toml`: the settings of the server, and further hosts.
#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    settings: Settings,
}

#[derive(Deserialize, Default)]
struct Settings {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany<PathBuf>>,
    client: Option<toml::Value>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    header: std::collections::BTreeMap<String, OneOrMany<String>>,
    #[serde(default)]
    override_path: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

fn configured(
    host: &str,
    path: &Path,
    text: &str,
    options: &Options,
) -> Result<Vec<Endpoint>, HostsError> {
    let parse = |source| HostsError::Parse { path: path.to_owned(), source: Box::new(source) };
    let file: File = toml::from_str(text).map_err(parse)?;
    let mut endpoints = Vec::new();
    for (url, settings) in file.host {
        let settings: Settings = settings.try_into().map_err(parse)?;
        endpoints.push(endpoint(host, path, &url, settings, options)?);
    }
    match file.server {
        Some(server) => endpoints.push(endpoint(host, path, &server, file.settings, options)?),
        None => {
            let tls = tls(path, &file.settings)?;
            let own = default_endpoints(host, options);
            endpoints.extend(own.into_iter().map(|own| Endpoint { tls: tls.clone(), ..own }));
        }
    }
    Ok(endpoints)
}

fn endpoint(
    registry: &str,
    path: &Path,
    url: &str,
    settings: Settings,
    options: &Options,
) -> Result<Endpoint, HostsError> {
    let bad = || HostsError::Url { path: path.to_owned(), url: url.to_owned() };
    let with_scheme = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let uri: hyper::Uri = with_scheme.parse().map_err(|_| bad())?;
    let (scheme, authority) = uri.scheme_str().zip(uri.authority()).ok_or_else(bad)?;
    if !matches!(scheme, "http" | "https") {
        return Err(bad());
    }
    let host =
        if authority.as_str() == "docker.io" { "registry-1.docker.io" } else { authority.as_str() };
    let prefix = uri.path().trim_end_matches('/');
    let version = if settings.override_path || prefix.ends_with("/v2") { "" } else { "/v2" };
    let capable = |what: &str| match &settings.capabilities {
        None => true,
        Some(list) => list.iter().any(|capability| capability == what),
    };
    let same = authority.as_str() == registry
        || (registry == "docker.io" && host == "registry-1.docker.io");
    let mut headers = options.headers.clone();
    let (pull, resolve) = (capable("pull"), capable("resolve"));
    let tls = tls(path, &settings)?;
    for (name, values) in settings.header {
        headers.extend(values.into_vec().into_iter().map(|value| (name.clone(), value)));
    }
    Ok(Endpoint {
        base: format!("{scheme}://{host}{prefix}{version}"),
        host: host.to_owned(),
        mirror_of: (!same).then(|| registry.to_owned()),
        pull,
        resolve,
        tls,
        headers,
    })
}

fn tls(path: &Path, settings: &Settings) -> Result<Tls, HostsError> {
    let beside = |file: &Path| path.parent().unwrap_or(path).join(file);
    let authorities = match &settings.ca {
        None => Vec::new(),
        Some(OneOrMany::One(file)) => vec![beside(file)],
        Some(OneOrMany::Many(files)) => files.iter().map(|file| beside(file)).collect(),
    };
    let client = match &settings.client {
        None => None,
        Some(value) => {
            let bad = || HostsError::Client { path: path.to_owned() };
            let (certificate, key) = client_files(value).ok_or_else(bad)?;
            Some((beside(&certificate), beside(&key)))
        }
    };
    Ok(Tls { authorities, client, skip_verify: settings.skip_verify })
}

/// A path, a list whose first element is a path, or a list whose first element is a pair of
/// certificate and key, of which the key may be empty.
fn client_files(value: &toml::Value) -> Option<(PathBuf, PathBuf)> {
    let both = |file: &str| (PathBuf::from(file), PathBuf::from(file));
    if let Some(file) = value.as_str() {
        return Some(both(file));
    }
    match value.as_array()?.first()? {
        toml::Value::String(file) => Some(both(file)),
        toml::Value::Array(pair) => {
            let certificate = pair.first()?.as_str()?;
            match pair.get(1).and_then(toml::Value::as_str) {
                None | Some("") => Some(both(certificate)),
                Some(key) => Some((certificate.into(), key.into())),
            }
        }
        _ => None,
    }
}

/// Why the configuration of a registry's hosts is of no use.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are named by the messages")]
pub enum HostsError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{}: {url:?} is no http or https URL", path.display())]
    Url { path: PathBuf, url: String },
    #[error("{}: client is neither a path nor a list of paths or pairs", path.display())]
    Client { path: PathBuf },
    #[error("TLS for {host}")]
    Tls { host: String, source: Box<dyn std::error::Error + Send + Sync> },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(endpoints: &[Endpoint]) -> Vec<&str> {
        endpoints.iter().map(|endpoint| endpoint.base.as_str()).collect()
    }

    #[test]
    fn defaults() {
        let plain = Options { scheme: Some("http".to_owned()), ..Options::default() };
        let none = Options::default();
        let cases: [(&str, &str, &Options, &[&str]); 5] = [
            ("docker.io", "docker.io", &none, &["https://registry-1.docker.io/v2"]),
            ("other", "quay.io", &none, &["https://quay.io/v2"]),
            ("plain", "quay.io:80", &plain, &["http://quay.io:80/v2"]),
            (
                "loopback",
                "127.0.0.1:5",
                &none,
                &["https://127.0.0.1:5/v2", "http://127.0.0.1:5/v2"],
            ),
            ("IPv6 loopback", "[::1]:5", &none, &["https://[::1]:5/v2", "http://[::1]:5/v2"]),
        ];
        for (case, host, options, want) in cases {
            let got = endpoints(host, options).expect("no file is read");
            assert_eq!(bases(&got), want, "{case}");
        }
    }

    #[test]
    fn file() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."http://mirror:5000"]
            capabilities = ["pull"]
            ca = "ca.pem"
            [host."https://other/prefix"]
            override_path = true
            skip_verify = true
            client = [["c.pem", "k.pem"]]
            [host."https://other/prefix".header]
            x-a = ["1", "2"]
        "#;
        let path = Path::new("/etc/certs.d/docker.io/hosts.toml");
        let got = configured("docker.io", path, text, &Options::default()).expect("well formed");
        assert_eq!(
            bases(&got),
            ["http://mirror:5000/v2", "https://other/prefix", "https://registry-1.docker.io/v2"]
        );
        assert_eq!((got[0].pull, got[0].resolve), (true, false));
        assert_eq!(got[0].mirror_of.as_deref(), Some("docker.io"));
        assert_eq!(got[0].tls.authorities, [Path::new("/etc/certs.d/docker.io/ca.pem")]);
        assert!(got[1].tls.skip_verify);
        assert_eq!(got[1].headers.len(), 2);
        assert_eq!(got[2].mirror_of, None);
    }

    #[test]
    fn refuse() {
        let cases = [
            ("no TOML", "server = ", "/x: TOML parse error"),
            ("a wrong type", "server = 1", "/x: TOML parse error"),
            ("no URL", "server = \"ftp://x\"", "/x: \"ftp://x\" is no http or https URL"),
            ("client", "client = 1\n", "/x: client is neither a path nor a list of paths or pairs"),
        ];
        for (case, text, want) in cases {
            let error =
                configured("h", Path::new("/x"), text, &Options::default()).expect_err(case);
            let got = sys::error::Chain(&error).to_string();
            assert!(got.starts_with(want), "{case}: {got}");
        }
    }
}
