//! Requests to the endpoints of one registry.

use std::{sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    header,
};
use serde::Deserialize;
use tokio::{sync::Mutex, time::timeout};

use super::{
    BlobStream, Credentials, Error, Secret,
    auth::{self, Challenge},
    hosts::{Endpoint, HostsError, Tls},
    http::{self, Http},
};
use crate::{
    digest::Digest,
    oci::{DOCUMENT_LEN_MAX, Descriptor, Role, media_type},
    reference::Reference,
};

/// How long the head of an answer may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// How many redirects are followed.
const REDIRECTS_MAX: usize = 10;

/// How often a request that fails in passing is sent.
const ATTEMPTS_MAX: u32 = 4;

/// The longest that a registry's `Retry-After` is heeded.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// The largest answer of a token server, and the part of an error's text that is shown, in bytes.
const TOKEN_LEN_MAX: u64 = 1 << 20;
const DETAIL_LEN_MAX: usize = 512;

/// The media types that a tag may stand for.
const ACCEPT_TAG: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*";

/// The images of one repository.
pub struct Client {
    reference: Reference,
    hosts: Vec<Host>,
    credentials: Arc<dyn Credentials>,
}

/// An endpoint with its connections and what it accepted as authorization.
struct Host {
    endpoint: Endpoint,
    http: Http,
    authorization: Mutex<Option<String>>,
}

impl Client {
    /// A client for the repository of `reference`, which asks `endpoints` in their order.
    ///
    /// # Errors
    ///
    /// An endpoint's certificates cannot be read or used.
    pub fn new(
        reference: Reference,
        endpoints: Vec<Endpoint>,
        credentials: Arc<dyn Credentials>,
    ) -> Result<Self, HostsError> {
        let host = |endpoint: Endpoint| {
            let secure = endpoint.base.starts_with("https:");
            let tls = |source| HostsError::Tls { host: endpoint.host.clone(), source };
            let http = http::client(secure.then_some(&endpoint.tls)).map_err(tls)?;
            Ok(Host { endpoint, http, authorization: Mutex::new(None) })
        };
        let hosts = endpoints.into_iter().map(host).collect::<Result<_, _>>()?;
        Ok(Self { reference, hosts, credentials })
    }

    /// The image that the client is for.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Finds what the reference stands for: a descriptor, and the document that it describes.
    ///
    /// # Errors
    ///
    /// As of [`Error`].
    pub async fn resolve(&self) -> Result<(Descriptor, Bytes), Error> {
        let what = self.reference.to_string();
        let by_digest = self.reference.digest();
        let path = format!("manifests/{}", self.reference.object());
        let hosts = self
            .hosts
            .iter()
            .filter(|host| host.endpoint.resolve || (by_digest.is_some() && host.endpoint.pull));
        let mut failures = Failures::new(&what);
        for host in hosts {
            match self.document(host, &path, ACCEPT_TAG, &what).await {
                Ok(answer) => return answer.describe(by_digest, &what),
                Err(error) => failures.add(error),
            }
        }
        Err(failures.into_error())
    }

    /// Fetches a manifest, an index or a configuration. The bytes are those of the descriptor.
    ///
    /// # Errors
    ///
    /// As of [`Error`].
    pub async fn fetch(&self, descriptor: &Descriptor) -> Result<Bytes, Error> {
        let what = descriptor.digest.to_string();
        let mut failures = Failures::new(&what);
        for host in self.hosts.iter().filter(|host| host.endpoint.pull) {
            match self.document(host, &object_path(descriptor), &descriptor.media_type, &what).await
            {
                Ok(answer) => {
                    let document = |source| Error::Document { what: what.clone(), source };
                    descriptor.check(&answer.bytes).map_err(document)?;
                    return Ok(answer.bytes);
                }
                Err(error) => failures.add(error),
            }
        }
        Err(failures.into_error())
    }

    /// Opens the blob from `offset` on. The stream resumes by itself when a connection breaks;
    /// whoever stores the bytes checks them.
    pub fn blob(self: &Arc<Self>, descriptor: &Descriptor, offset: u64) -> BlobStream {
        BlobStream::new(Arc::clone(self), descriptor.clone(), offset)
    }

    /// Asks each endpoint for the blob from `offset` on, and tells from where the answer goes.
    pub(super) async fn open_blob(
        &self,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<(Incoming, u64), Error> {
        let what = descriptor.digest.to_string();
        let mut failures = Failures::new(&what);
        for host in self.hosts.iter().filter(|host| host.endpoint.pull) {
            let path = object_path(descriptor);
            match self.get(host, &path, &descriptor.media_type, offset, &what).await {
                Ok(response) => {
                    let partial = response.status() == StatusCode::PARTIAL_CONTENT;
                    let from = if partial { offset } else { 0 };
                    return Ok((response.into_body(), from));
                }
                Err(error) => failures.add(error),
            }
        }
        Err(failures.into_error())
    }

    async fn document(
        &self,
        host: &Host,
        path: &str,
        accept: &str,
        what: &str,
    ) -> Result<Answer, Error> {
        let response = self.get(host, path, accept, 0, what).await?;
        let text = |name| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(value.split(';').next().unwrap_or(value).trim().to_owned())
        };
        let media_type = text(header::CONTENT_TYPE.as_str()).unwrap_or_default();
        let digest = text("docker-content-digest").and_then(|text| text.parse().ok());
        let name = &host.endpoint.host;
        let bytes = read(response.into_body(), DOCUMENT_LEN_MAX, what, name).await?;
        Ok(Answer { media_type, digest, bytes })
    }

    /// Sends a request until it is answered with success, or fails for good.
    async fn get(
        &self,
        host: &Host,
        path: &str,
        accept: &str,
        offset: u64,
        what: &str,
    ) -> Result<Response<Incoming>, Error> {
        let repository = self.reference.path();
        let namespace = match &host.endpoint.mirror_of {
            Some(registry) => format!("?ns={}", auth::percent(registry)),
            None => String::new(),
        };
        let url = format!("{}/{repository}/{path}{namespace}", host.endpoint.base);
        let call = Call { host, accept, offset, what };
        let mut attempt = 1;
        loop {
            let error = match self.send(&call, &url).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => call.refusal(response).await,
                Err(error) => (error, None),
            };
            let (error, retry_after) = error;
            // A host that cannot be reached is the next endpoint's chance, not worth a wait.
            let again = error.is_passing() && !matches!(error, Error::Connection { .. });
            if !again || attempt == ATTEMPTS_MAX {
                return Err(error);
            }
            let pause = retry_after.unwrap_or(Duration::from_millis(250) * 2u32.pow(attempt));
            tracing::debug!(what, attempt, ?pause, error = %sys::error::Chain(&error), "retry");
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// Sends a request, with authorization when it is demanded, and follows redirects.
    async fn send(&self, call: &Call<'_>, url: &str) -> Result<Response<Incoming>, Error> {
        let before = call.host.authorization.lock().await.clone();
        let response = call.follow(url, before.as_deref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenges: Vec<String> = response
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        let Some(fresh) = self.authorize(call, before, &challenges).await? else {
            return Ok(response);
        };
        call.follow(url, Some(&fresh)).await
    }

    /// Gets what satisfies the challenges. The lock makes parallel requests share one token.
    async fn authorize(
        &self,
        call: &Call<'_>,
        before: Option<String>,
        challenges: &[String],
    ) -> Result<Option<String>, Error> {
        let mut authorization = call.host.authorization.lock().await;
        if *authorization != before {
            return Ok(authorization.clone());
        }
        let secret = self.credentials.secret(&call.host.endpoint.host, challenges).await;
        let fresh = match (challenges.iter().find_map(|text| Challenge::parse(text)), secret) {
            (_, Some(Secret::Header(value))) => Some(value),
            (Some(Challenge::Basic), Some(Secret::Password { user, password })) => {
                Some(auth::basic(&user, &password))
            }
            (Some(Challenge::Bearer { realm, service, scope }), secret) => {
                let scope =
                    scope.unwrap_or_else(|| format!("repository:{}:pull", self.reference.path()));
                let query = TokenQuery { realm, service, scope };
                Some(format!("Bearer {}", query.token(call, secret).await?))
            }
            _ => None,
        };
        authorization.clone_from(&fresh);
        Ok(fresh)
    }
}

fn object_path(descriptor: &Descriptor) -> String {
    let kind = match descriptor.role() {
        Role::Index | Role::Manifest => "manifests",
        Role::Config | Role::Layer | Role::Other => "blobs",
    };
    format!("{kind}/{}", descriptor.digest)
}

/// A document as it came.
struct Answer {
    media_type: String,
    digest: Option<Digest>,
    bytes: Bytes,
}

impl Answer {
    /// Describes the document that a reference stands for.
    fn describe(self, want: Option<&Digest>, what: &str) -> Result<(Descriptor, Bytes), Error> {
        let mut descriptor = Descriptor::of(&self.media_type, &self.bytes);
        if let Some(want) = want.or(self.digest.as_ref()) {
            descriptor.digest = want.clone();
            if descriptor.check(&self.bytes).is_err() {
                let got = Digest::of(&self.bytes);
                return Err(Error::Digest { what: what.to_owned(), want: want.clone(), got });
            }
        }
        if descriptor.role() == Role::Other {
            // Some registries send a generic type; the document then says what it is.
            #[derive(Deserialize)]
            #[serde(rename_all = "camelCase")]
            struct Own {
                #[serde(default)]
                media_type: String,
            }
            let own: Option<Own> = serde_json::from_slice(&self.bytes).ok();
            let is_schema1 = descriptor.media_type == media_type::DOCKER_SCHEMA1;
            if let Some(own) = own.filter(|own| !own.media_type.is_empty() && !is_schema1) {
                descriptor.media_type = own.media_type;
            }
        }
        Ok((descriptor, self.bytes))
    }
}

/// One request, for messages and for the headers that all its tries share.
struct Call<'a> {
    host: &'a Host,
    accept: &'a str,
    offset: u64,
    what: &'a str,
}

impl Call<'_> {
    fn name(&self) -> String {
        self.host.endpoint.host.clone()
    }

    fn protocol(&self, problem: impl Into<String>) -> Error {
        Error::Protocol { what: self.what.to_owned(), host: self.name(), problem: problem.into() }
    }

    async fn follow(
        &self,
        url: &str,
        authorization: Option<&str>,
    ) -> Result<Response<Incoming>, Error> {
        let start: Uri =
            url.parse().map_err(|_| self.protocol(format!("{url:?} is no valid URL")))?;
        let mut uri = start.clone();
        for _ in 0..=REDIRECTS_MAX {
            let own = uri.authority() == start.authority() && uri.scheme() == start.scheme();
            let response = self.exchange(self.request(&uri, own, authorization)?).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION);
            let Some(location) = location.and_then(|value| value.to_str().ok()) else {
                return Ok(response);
            };
            uri = join(&uri, location)
                .ok_or_else(|| self.protocol(format!("redirect to {location:?}")))?;
            if start.scheme_str() == Some("https") && uri.scheme_str() != Some("https") {
                return Err(self.protocol(format!("redirect from https to {uri}")));
            }
        }
        Err(self.protocol(format!("more than {REDIRECTS_MAX} redirects")))
    }

    /// A request for `uri`; headers of the registry only if it is the registry's `own`.
    fn request(
        &self,
        uri: &Uri,
        own: bool,
        authorization: Option<&str>,
    ) -> Result<Request<Full<Bytes>>, Error> {
        let mut request = Request::builder()
            .method(Method::GET)
            .uri(uri)
            .header(header::USER_AGENT, concat!("gantryd/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, self.accept);
        if self.offset > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", self.offset));
        }
        if own {
            for (name, value) in &self.host.endpoint.headers {
                request = request.header(name, value);
            }
            if let Some(authorization) = authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
        }
        request.body(Full::default()).map_err(|error| self.protocol(error.to_string()))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        match timeout(HEAD_TIMEOUT, self.host.http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Error::Connection {
                what: self.what.to_owned(),
                host: self.name(),
                source: error.into(),
            }),
            Err(_) => Err(Error::Silent {
                what: self.what.to_owned(),
                host: self.name(),
                seconds: HEAD_TIMEOUT.as_secs(),
            }),
        }
    }

    /// The error that a response without success stands for, and when to try again.
    async fn refusal(&self, response: Response<Incoming>) -> (Error, Option<Duration>) {
        let status = response.status();
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
        let (what, host) = (self.what.to_owned(), self.name());
        let error = match status {
            StatusCode::NOT_FOUND => Error::NotFound { what },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Error::Denied { what, host, status }
            }
            _ => {
                let body = read(response.into_body(), TOKEN_LEN_MAX, self.what, &host).await;
                let detail = body.map(|bytes| detail(&bytes)).unwrap_or_default();
                Error::Status { what, host, status, detail }
            }
        };
        (error, retry_after)
    }
}

/// The start of what a registry says of an error, in one line.
fn detail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(DETAIL_LEN_MAX)]);
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.trim().is_empty() { String::new() } else { format!(": {}", line.trim()) }
}

/// Resolves `location` against the page that sent it (RFC 3986, section 5, without `.` and `..`).
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let scheme = location.split_once("://").map(|(scheme, _)| scheme);
    if scheme.is_some_and(|scheme| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
        return location.parse().ok();
    }
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{scheme}://{rest}").parse().ok();
    }
    let path = if location.starts_with('/') {
        location.to_owned()
    } else {
        let directory = base.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{directory}/{location}")
    };
    format!("{scheme}://{authority}{path}").parse().ok()
}

async fn read(body: Incoming, limit: u64, what: &str, host: &str) -> Result<Bytes, Error> {
    let limited = http_body_util::Limited::new(body, usize::try_from(limit).unwrap_or(usize::MAX));
    match timeout(HEAD_TIMEOUT, limited.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(source)) if source.is::<http_body_util::LengthLimitError>() => {
            Err(Error::Protocol {
                what: what.to_owned(),
                host: host.to_owned(),
                problem: format!("the answer is longer than {limit} bytes"),
            })
        }
        Ok(Err(source)) => {
            Err(Error::Connection { what: what.to_owned(), host: host.to_owned(), source })
        }
        Err(_) => Err(Error::Silent {
            what: what.to_owned(),
            host: host.to_owned(),
            seconds: HEAD_TIMEOUT.as_secs(),
        }),
    }
}

/// A request for a token.
struct TokenQuery {
    realm: String,
    service: Option<String>,
    scope: String,
}

/// What a token server answers; the two names mean the same.
#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl TokenQuery {
    /// Asks the token server (distribution, "Token Authentication Specification").
    async fn token(&self, call: &Call<'_>, secret: Option<Secret>) -> Result<String, Error> {
        let bad = |problem: &str| call.protocol(format!("token server {}: {problem}", self.realm));
        let secure = call.host.endpoint.base.starts_with("https:");
        if secure && !self.realm.starts_with("https:") {
            return Err(bad("not https"));
        }
        let request = self.request(secret).map_err(|error| bad(&error.to_string()))?;
        let tls = Tls { client: None, ..call.host.endpoint.tls.clone() };
        let tls = self.realm.starts_with("https:").then_some(&tls);
        let http = http::client(tls).map_err(|error| bad(&error.to_string()))?;
        let connection = |source| Error::Connection {
            what: call.what.to_owned(),
            host: self.realm.clone(),
            source,
        };
        let response = match timeout(HEAD_TIMEOUT, http.request(request)).await {
            Ok(result) => result.map_err(|error| connection(error.into()))?,
            Err(elapsed) => return Err(connection(elapsed.into())),
        };
        let status = response.status();
        if status.is_client_error() {
            return Err(Error::Denied {
                what: call.what.to_owned(),
                host: self.realm.clone(),
                status,
            });
        }
        let body = read(response.into_body(), TOKEN_LEN_MAX, call.what, &self.realm).await?;
        let answer: TokenAnswer =
            serde_json::from_slice(&body).map_err(|error| bad(&error.to_string()))?;
        let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
        if token.is_empty() { Err(bad("the answer has no token")) } else { Ok(token) }
    }

    fn request(&self, secret: Option<Secret>) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let mut query = format!("scope={}", auth::percent(&self.scope));
        if let Some(service) = &self.service {
            query.push_str(&format!("&service={}", auth::percent(service)));
        }
        if let Some(Secret::Refresh(token)) = secret {
            let token = auth::percent(&token);
            query.push_str(&format!(
                "&grant_type=refresh_token&client_id=gantryd&refresh_token={token}"
            ));
            return Request::post(&self.realm)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(Full::from(query));
        }
        let separator = if self.realm.contains('?') { '&' } else { '?' };
        let mut request = Request::get(format!("{}{separator}{query}", self.realm));
        if let Some(Secret::Password { user, password }) = secret {
            request = request.header(header::AUTHORIZATION, auth::basic(&user, &password));
        }
        request.body(Full::default())
    }
}

/// What the endpoints said, of which the most telling one is reported.
struct Failures {
    what: String,
    error: Option<Error>,
}

impl Failures {
    fn new(what: &str) -> Self {
        Self { what: what.to_owned(), error: None }
    }

    /// Keeps the error unless an earlier one says more: "not found" says least, since any mirror
    /// may lack an image.
    fn add(&mut self, error: Error) {
        tracing::debug!(error = %sys::error::Chain(&error), "endpoint");
        let telling = |error: &Error| match error {
            Error::NotFound { .. } => 1,
            Error::Connection { .. } => 2,
            _ => 3,
        };
        if self.error.as_ref().is_none_or(|kept| telling(&error) >= telling(kept)) {
            self.error = Some(error);
        }
    }

    fn into_error(self) -> Error {
        self.error.unwrap_or(Error::NotFound { what: self.what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects() {
        let base: Uri = "https://h:1/v2/a/blobs/x?ns=y".parse().expect("a URL");
        let cases = [
            ("absolute", "http://cdn/x?a=b", Some("http://cdn/x?a=b")),
            ("path", "/y", Some("https://h:1/y")),
            ("relative", "y", Some("https://h:1/v2/a/blobs/y")),
            ("path that holds a URL", "/y?u=http://cdn/x", Some("https://h:1/y?u=http://cdn/x")),
            ("same scheme", "//cdn/x", Some("https://cdn/x")),
            ("nonsense", "http://[", None),
        ];
        for (case, location, want) in cases {
            assert_eq!(join(&base, location).map(|uri| uri.to_string()).as_deref(), want, "{case}");
        }
    }
}
