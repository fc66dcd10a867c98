//! The way out: to probes, databases, price and carbon sources, webhooks, pages of metrics. TLS with one's own authority and certificate, basic auth or a bearer token
//! from files, a time-out on everything, a limit on every answer. A secret is read from its file when it is needed, so it can be changed under a running service,
//! and stands in no message.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD as STANDARD};
use exporter::file::read_whole;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde::Deserialize;
use ureq::{
    Proxy,
    http::{HeaderMap, HeaderValue},
    tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem},
};

/// Where Linux distributions keep the authorities that they trust; the first that is there is read.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// Largest file of authorities.
const MAX_ROOTS: u64 = 16 << 20;
/// Largest secret.
const MAX_SECRET: u64 = 64 << 10;

/// How a service is reached beside its URL; the field names are those of Prometheus' `http_config`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Access {
    /// PEM file of the authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the certificate that we show, where the other side wants one.
    pub cert_file: Option<PathBuf>,
    /// PEM file of its key.
    pub key_file: Option<PathBuf>,
    /// For basic auth.
    pub username: Option<String>,
    /// Its password.
    pub password_file: Option<PathBuf>,
    /// For `Authorization: Bearer`.
    pub bearer_token_file: Option<PathBuf>,
    /// Longest time that an answer may take, `5s`.
    pub timeout: Option<String>,
}

impl Access {
    /// The same without a secret where that could be read on the way to this URL.
    #[must_use]
    pub fn discreet(&self, url: &str) -> Self {
        let mut this = self.clone();
        if would_tell(url) {
            (this.username, this.password_file, this.bearer_token_file) = (None, None, None);
        }
        this
    }
}

/// What kept an answer from coming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Nobody listens there, or no such name, or no way there.
    Nobody,
    /// Not in time.
    Time,
    /// The certificate, or something else of TLS, on either side.
    Tls,
    /// It began, and was no HTTP, or broke off.
    Broken,
}

/// Why something could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The settings are wrong.
    #[error("{0}")]
    Settings(String),
    /// The answer is larger than anything that is wanted.
    #[error("{0}: the answer is too large")]
    TooLarge(String),
    /// Nobody answers there, or not in time, or not to us.
    #[error("{url}: {why}")]
    Unreachable {
        /// Without anything secret.
        url: String,
        /// What the attempt ended with.
        why: String,
        /// The same for programs.
        obstacle: Obstacle,
    },
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    /// Of HTTP.
    pub status: u16,
    /// What was said beside the body.
    pub headers: HeaderMap,
    /// Up to the limit.
    pub body: Vec<u8>,
}

impl Reply {
    /// The first words of an answer that is not what was expected, for a message.
    #[must_use]
    pub fn excerpt(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let words: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(160).collect();
        words.trim().to_owned()
    }
}

/// One service.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    /// As it was given: where the path of a request is empty, a / at its end is part of it.
    whole: String,
    /// Scheme and host: a path can be a secret too, as those of many receivers are.
    shown: String,
    access: Access,
    agent: ureq::Agent,
    limit: u64,
}

impl Client {
    /// Connects to nothing yet. `url` is the part before the path of a request.
    ///
    /// # Errors
    /// When the URL or the settings are wrong, or the authorities cannot be read.
    pub fn new(url: &str, access: &Access, timeout: Duration, limit: u64) -> Result<Self, Failed> {
        let wrong = |what: String| Failed::Settings(what);
        let base = url.trim().trim_end_matches('/');
        let schemed = base.strip_prefix("http://").or_else(|| base.strip_prefix("https://"));
        let host = schemed.unwrap_or(base).split(['/', '?']).next().unwrap_or_default();
        if host.contains('@') {
            return Err(wrong(
                "a URL with a password in it would stand in logs; use username and password_file".into(),
            ));
        }
        // The host alone: a path can be a secret.
        let rest =
            schemed.ok_or_else(|| wrong(format!("{host:?} is no URL; write http://HOST:PORT or https://HOST")))?;
        if access.bearer_token_file.is_some() && access.username.is_some() {
            return Err(wrong(format!("{base}: give a bearer token or a user, not both")));
        }
        let secret = access.bearer_token_file.is_some() || access.password_file.is_some();
        if secret && would_tell(base) {
            return Err(wrong("a secret would go over the network unencrypted; use https".to_owned()));
        }
        let timeout = match &access.timeout {
            None => timeout,
            Some(text) => {
                humantime::parse_duration(text).map_err(|error| wrong(format!("timeout {text:?}: {error}")))?
            }
        };
        // A thousand probes by plain HTTP need no authorities.
        let wanted = base.starts_with("https") || access.ca_file.is_some();
        let roots = if wanted { roots(access.ca_file.as_deref())? } else { RootCerts::WebPki };
        let own = match (&access.cert_file, &access.key_file) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some(identity(cert, key)?),
            _ => return Err(wrong(format!("{base}: cert_file and key_file, both or neither"))),
        };
        let tls = TlsConfig::builder().root_certs(roots).client_cert(own).build();
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            // What is on this machine is not behind a proxy.
            .proxy(if is_here(base) { None } else { Proxy::try_from_env() })
            // A redirect would take secrets, and webhooks' bodies, to wherever it points.
            .max_redirects(0)
            .tls_config(tls)
            .build();
        let scheme = if base.starts_with("https") { "https" } else { "http" };
        let shown = format!("{scheme}://{}", rest.split(['/', '?']).next().unwrap_or_default());
        let whole = url.trim().to_owned();
        Ok(Self { base: base.to_owned(), whole, shown, access: access.clone(), agent: agent.into(), limit })
    }

    /// The URL that paths are added to; what tells services apart, and not for people.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Scheme and host, for people.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }

    fn url(&self, path: &str) -> String {
        if path.is_empty() { self.whole.clone() } else { format!("{}{path}", self.base) }
    }

    /// Asks for a page.
    ///
    /// # Errors
    /// When there is no whole answer; a status that is an error is an answer.
    pub fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Reply, Failed> {
        self.get_with(path, query, &[])
    }

    /// Asks for a page, with headers.
    ///
    /// # Errors
    /// As of [`Client::get`].
    pub fn get_with(&self, path: &str, query: &[(&str, &str)], headers: &[(&str, &str)]) -> Result<Reply, Failed> {
        let mut request = self.agent.get(self.url(path));
        for (name, value) in query {
            request = request.query(*name, *value);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(secret) = self.authorization()? {
            request = request.header("Authorization", secret);
        }
        self.read(request.call())
    }

    /// Posts a body.
    ///
    /// # Errors
    /// As of [`Client::get`].
    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply, Failed> {
        let mut request = self.agent.post(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(secret) = self.authorization()? {
            request = request.header("Authorization", secret);
        }
        self.read(request.send(body))
    }

    fn read(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Reply, Failed> {
        let failed = |error: ureq::Error| match error {
            ureq::Error::BodyExceedsLimit(_) => Failed::TooLarge(self.shown.clone()),
            error => {
                Failed::Unreachable { url: self.shown.clone(), why: error.to_string(), obstacle: obstacle(&error) }
            }
        };
        let mut response = answer.map_err(failed)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(self.limit).read_to_vec().map_err(failed)?;
        let (parts, _) = response.into_parts();
        Ok(Reply { status, headers: parts.headers, body })
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, Failed> {
        let text = if let Some(file) = &self.access.bearer_token_file {
            format!("Bearer {}", secret(file)?)
        } else if let Some(user) = &self.access.username {
            let password = match &self.access.password_file {
                Some(file) => secret(file)?,
                None => String::new(),
            };
            format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
        } else {
            return Ok(None);
        };
        let mut value = HeaderValue::from_str(&text)
            .map_err(|_| Failed::Settings("a secret with characters that no header holds".into()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// True when what is sent to this URL can be read on the way: plain HTTP to another host.
#[must_use]
pub fn would_tell(url: &str) -> bool {
    url.trim().starts_with("http://") && !is_here(url)
}

/// True for this machine's loopback.
fn is_here(url: &str) -> bool {
    let rest = url.trim().split_once("://").map_or("", |(_, rest)| rest);
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let host = if host.starts_with('[') { host.split_inclusive(']').next() } else { host.split(':').next() };
    ["127.0.0.1", "localhost", "[::1]"].contains(&host.unwrap_or_default())
}

/// What a file holds, without the space around it.
///
/// # Errors
/// When it cannot be read, or is empty: an empty secret is an accident.
pub fn secret(file: &Path) -> Result<String, Failed> {
    let failed = |error: io::Error| Failed::Settings(format!("{}: {error}", file.display()));
    let text = read_whole(file, MAX_SECRET).map_err(failed)?;
    let secret = text.trim();
    if secret.is_empty() { Err(failed(io::Error::other("an empty secret"))) } else { Ok(secret.to_owned()) }
}

fn obstacle(error: &ureq::Error) -> Obstacle {
    use io::ErrorKind as Kind;
    match error {
        ureq::Error::Timeout(_) => Obstacle::Time,
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::Pem(_) => Obstacle::Tls,
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => Obstacle::Nobody,
        ureq::Error::Io(error) => {
            // What rustls finds wrong while bytes go through it comes as an error of those.
            let of_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
            match error.kind() {
                _ if of_tls => Obstacle::Tls,
                Kind::TimedOut | Kind::WouldBlock => Obstacle::Time,
                Kind::ConnectionRefused | Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::AddrNotAvailable => {
                    Obstacle::Nobody
                }
                // The standard library gives what getaddrinfo says a kind that cannot be named (std/src/sys/net/connection/socket.rs).
                _ if error.to_string().starts_with("failed to lookup address") => Obstacle::Nobody,
                _ => Obstacle::Broken,
            }
        }
        _ => Obstacle::Broken,
    }
}

/// What we show to who asks for a certificate.
fn identity(cert: &Path, key: &Path) -> Result<ClientCert, Failed> {
    let wrong = |file: &Path, why: String| Failed::Settings(format!("{}: {why}", file.display()));
    let chain = certificates(cert)?;
    let text = read_whole(key, MAX_SECRET).map_err(|error| wrong(key, error.to_string()))?;
    let no_key = |_| wrong(key, "no private key in PEM".to_owned());
    // ureq would find out at the first handshake, and panic.
    let own = chain.iter().map(|one| CertificateDer::from(one.der().to_vec())).collect();
    let same =
        PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| wrong(key, "no private key in PEM".to_owned()))?;
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_root_certificates(RootCertStore::empty()).with_client_auth_cert(own, same))
        .map_err(|error| wrong(cert, format!("with {}: {error}", key.display())))?;
    Ok(ClientCert::new_with_certs(&chain, PrivateKey::from_pem(text.as_bytes()).map_err(no_key)?))
}

fn certificates(file: &Path) -> Result<Vec<Certificate<'static>>, Failed> {
    let failed = |why: String| Failed::Settings(format!("{}: {why}", file.display()));
    let text = read_whole(file, MAX_ROOTS).map_err(|error| failed(error.to_string()))?;
    let mut all: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(text.as_bytes()) {
        if let PemItem::Certificate(one) = item.map_err(|error| failed(error.to_string()))? {
            all.push(one);
        }
    }
    if all.is_empty() { Err(failed("no certificate in it; it must be PEM".to_owned())) } else { Ok(all) }
}

fn roots(own: Option<&Path>) -> Result<RootCerts, Failed> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let system = named.into_iter().chain(SYSTEM_ROOTS.iter().map(PathBuf::from)).find(|file| file.exists());
    let Some(file) = own.map(Path::to_owned).or(system) else {
        // An image without any: what Mozilla trusts, as of the build.
        return Ok(RootCerts::WebPki);
    };
    let all = certificates(&file)?;
    if own.is_some() {
        // Of the system's some may be of no use; of one's own, each was meant.
        for one in &all {
            let taken = RootCertStore::empty().add(CertificateDer::from(one.der().to_vec()));
            taken.map_err(|error| Failed::Settings(format!("{}: {error}", file.display())))?;
        }
    }
    Ok(RootCerts::Specific(Arc::new(all)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn settings_that_would_leak_or_mislead_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        fs::write(&token, "t").unwrap();
        let with_token = Access { bearer_token_file: Some(token.clone()), ..Access::default() };
        let both = Access { username: Some("u".into()), ..with_token.clone() };
        let no_ca = Access { ca_file: Some(token), ..Access::default() };
        for (url, access, word) in [
            ("localhost:9090", &Access::default(), "http://"),
            ("https://u:p@host", &Access::default(), "password_file"),
            ("u:p@host:8428", &Access::default(), "password_file"),
            ("hooks.example/u:p", &Access::default(), "hooks.example\" is no URL"),
            ("http://db.example", &with_token, "unencrypted"),
            ("http://localhost.example", &with_token, "unencrypted"),
            ("http://127.0.0.1.example/x", &with_token, "unencrypted"),
            ("https://db.example", &both, "not both"),
            ("https://db.example", &no_ca, "no certificate"),
        ] {
            let error = Client::new(url, access, SECOND, 1).unwrap_err().to_string();
            assert!(error.contains(word) && !error.contains("u:p"), "{url}: {error}");
        }
        for url in ["http://127.0.0.1:8428", "http://[::1]:8428/x/", "https://db.example"] {
            Client::new(url, &with_token, SECOND, 1).unwrap();
        }
    }
}
