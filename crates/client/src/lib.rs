//! HTTP client for probes, databases, price and carbon sources, webhooks and metrics pages.
//!
//! It supports TLS with a custom CA and client certificate, and basic or bearer authentication with
//! secrets from files. Every request has a timeout and every response a size limit. A secret is
//! read from its file for each request, so it can be rotated while the service runs. No secret
//! appears in an error message.

#![forbid(unsafe_code)]

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD as STANDARD};
use cli::file::read_limited;
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

/// CA bundles of common Linux distributions; the first file that exists is used.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// Maximum size of a CA file in bytes.
const MAX_ROOTS: u64 = 16 << 20;
/// Maximum size of a secret file in bytes.
const MAX_SECRET: u64 = 64 << 10;

/// How to connect to a service. The field names are those of Prometheus' `http_config`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Access {
    /// PEM file of the CAs to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client certificate's private key.
    pub key_file: Option<PathBuf>,
    /// User name for basic authentication.
    pub username: Option<String>,
    /// File with the password for basic authentication.
    pub password_file: Option<PathBuf>,
    /// File with the token for `Authorization: Bearer`.
    pub bearer_token_file: Option<PathBuf>,
    /// Maximum duration of a request, `5s`.
    pub timeout: Option<String>,
}

impl Access {
    /// A copy without credentials where this URL would send them unencrypted over the network.
    #[must_use]
    pub fn without_exposed_secrets(&self, url: &str) -> Self {
        let mut this = self.clone();
        if exposes_secrets(url) {
            (this.username, this.password_file, this.bearer_token_file) = (None, None, None);
        }
        this
    }
}

/// Why no complete response was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// Connection refused, host unreachable, or host name not found.
    Unreachable,
    /// The request timed out.
    Timeout,
    /// TLS failed, for example because of an untrusted certificate on either side.
    Tls,
    /// The response is not HTTP, or the connection closed in the middle.
    Protocol,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The settings are invalid.
    #[error("{0}")]
    Settings(String),
    /// The response exceeds the size limit.
    #[error("{0}: the response is too large")]
    TooLarge(String),
    /// No complete response was received.
    #[error("{url}: {why}")]
    Unreachable {
        /// Scheme and host; contains no secret.
        url: String,
        /// The error message of the HTTP library.
        why: String,
        /// The kind of failure.
        cause: ConnectError,
    },
}

/// An HTTP response.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status code.
    pub status: u16,
    /// The response headers.
    pub headers: HeaderMap,
    /// The body, up to the size limit.
    pub body: Vec<u8>,
}

impl Reply {
    /// The first 160 characters of an unexpected response, for an error message.
    #[must_use]
    pub fn excerpt(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let words: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(160).collect();
        words.trim().to_owned()
    }
}

/// A client for one service.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    /// The URL as configured. A request with an empty path uses it unchanged, with a trailing `/`
    /// if it has one.
    configured: String,
    /// Scheme and host, for messages. The path is left out because webhook URLs contain secrets in
    /// it.
    display_url: String,
    access: Access,
    agent: ureq::Agent,
    limit: u64,
}

impl Client {
    /// Creates a client; does not connect. `url` is prefixed to the path of each request.
    ///
    /// # Errors
    /// When the URL or the settings are invalid, or the CA file cannot be read.
    pub fn new(url: &str, access: &Access, timeout: Duration, limit: u64) -> Result<Self, ClientError> {
        let invalid = ClientError::Settings;
        let base = url.trim().trim_end_matches('/');
        let schemed = base.strip_prefix("http://").or_else(|| base.strip_prefix("https://"));
        let host = schemed.unwrap_or(base).split(['/', '?']).next().unwrap_or_default();
        if host.contains('@') {
            return Err(invalid("a password in the URL would appear in logs; use username and password_file".into()));
        }
        // The message shows only the host, because the path can contain a secret.
        let rest =
            schemed.ok_or_else(|| invalid(format!("{host:?} is no URL; write http://HOST:PORT or https://HOST")))?;
        if access.bearer_token_file.is_some() && access.username.is_some() {
            return Err(invalid(format!("{host}: set either bearer_token_file or username, not both")));
        }
        let secret = access.bearer_token_file.is_some() || access.password_file.is_some();
        if secret && exposes_secrets(base) {
            return Err(invalid("a secret would go over the network unencrypted; use https".to_owned()));
        }
        let timeout = match &access.timeout {
            None => timeout,
            Some(text) => {
                humantime::parse_duration(text).map_err(|error| invalid(format!("timeout {text:?}: {error}")))?
            }
        };
        // Thousands of plain HTTP clients should not each load the CA bundle.
        let wanted = base.starts_with("https") || access.ca_file.is_some();
        let roots = if wanted { roots(access.ca_file.as_deref())? } else { RootCerts::WebPki };
        let own = match (&access.cert_file, &access.key_file) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some(identity(cert, key)?),
            _ => return Err(invalid(format!("{host}: set both cert_file and key_file, or neither"))),
        };
        let tls = TlsConfig::builder().root_certs(roots).client_cert(own).build();
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            // A proxy cannot reach loopback addresses of this machine.
            .proxy(if is_loopback(base) { None } else { Proxy::try_from_env() })
            // A redirect would forward credentials and webhook bodies to an arbitrary host.
            .max_redirects(0)
            .tls_config(tls)
            .build();
        let scheme = if base.starts_with("https") { "https" } else { "http" };
        let display_url = format!("{scheme}://{}", rest.split(['/', '?']).next().unwrap_or_default());
        let configured = url.trim().to_owned();
        Ok(Self { base: base.to_owned(), configured, display_url, access: access.clone(), agent: agent.into(), limit })
    }

    /// The URL that request paths are appended to. It identifies the service and may contain
    /// secrets: do not show it.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Scheme and host, safe to show.
    #[must_use]
    pub fn display_url(&self) -> &str {
        &self.display_url
    }

    fn url(&self, path: &str) -> String {
        if path.is_empty() { self.configured.clone() } else { format!("{}{path}", self.base) }
    }

    /// Sends a GET request.
    ///
    /// # Errors
    /// When no complete response is received. An HTTP error status is returned as a response.
    pub fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Reply, ClientError> {
        self.get_with(path, query, &[])
    }

    /// Sends a GET request with headers.
    ///
    /// # Errors
    /// As for [`Client::get`].
    pub fn get_with(&self, path: &str, query: &[(&str, &str)], headers: &[(&str, &str)]) -> Result<Reply, ClientError> {
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

    /// Sends a POST request.
    ///
    /// # Errors
    /// As for [`Client::get`].
    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply, ClientError> {
        let mut request = self.agent.post(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(secret) = self.authorization()? {
            request = request.header("Authorization", secret);
        }
        self.read(request.send(body))
    }

    fn read(&self, response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Reply, ClientError> {
        let failed = |error: ureq::Error| match error {
            ureq::Error::BodyExceedsLimit(_) => ClientError::TooLarge(self.display_url.clone()),
            error => {
                ClientError::Unreachable { url: self.display_url.clone(), why: error.to_string(), cause: cause(&error) }
            }
        };
        let mut response = response.map_err(failed)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(self.limit).read_to_vec().map_err(failed)?;
        let (parts, _) = response.into_parts();
        Ok(Reply { status, headers: parts.headers, body })
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, ClientError> {
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
        let mut value = HeaderValue::from_str(&text).map_err(|_| {
            ClientError::Settings("the secret contains characters that an HTTP header cannot hold".into())
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// True when a request to this URL sends credentials in clear text: plain HTTP to another host.
#[must_use]
pub fn exposes_secrets(url: &str) -> bool {
    url.trim().starts_with("http://") && !is_loopback(url)
}

/// True when the URL's host is a loopback address.
fn is_loopback(url: &str) -> bool {
    let rest = url.trim().split_once("://").map_or("", |(_, rest)| rest);
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let host = if host.starts_with('[') { host.split_inclusive(']').next() } else { host.split(':').next() };
    ["127.0.0.1", "localhost", "[::1]"].contains(&host.unwrap_or_default())
}

/// Reads a secret from a file and trims surrounding white space.
///
/// # Errors
/// When the file cannot be read or is empty.
pub fn secret(file: &Path) -> Result<String, ClientError> {
    let failed = |error: io::Error| ClientError::Settings(format!("{}: {error}", file.display()));
    let text = read_limited(file, MAX_SECRET).map_err(failed)?;
    let secret = text.trim();
    if secret.is_empty() { Err(failed(io::Error::other("the file is empty"))) } else { Ok(secret.to_owned()) }
}

fn cause(error: &ureq::Error) -> ConnectError {
    use io::ErrorKind as Kind;
    match error {
        ureq::Error::Timeout(_) => ConnectError::Timeout,
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::Pem(_) => ConnectError::Tls,
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => ConnectError::Unreachable,
        ureq::Error::Io(error) => {
            // rustls reports errors of an established connection as I/O errors.
            let is_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
            match error.kind() {
                _ if is_tls => ConnectError::Tls,
                Kind::TimedOut | Kind::WouldBlock => ConnectError::Timeout,
                Kind::ConnectionRefused | Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::AddrNotAvailable => {
                    ConnectError::Unreachable
                }
                // Errors of getaddrinfo have an ErrorKind that cannot be named
                // (std/src/sys/net/connection/socket.rs).
                _ if error.to_string().starts_with("failed to lookup address") => ConnectError::Unreachable,
                _ => ConnectError::Protocol,
            }
        }
        _ => ConnectError::Protocol,
    }
}

/// Reads the client certificate and its key.
fn identity(cert: &Path, key: &Path) -> Result<ClientCert, ClientError> {
    let invalid = |file: &Path, why: String| ClientError::Settings(format!("{}: {why}", file.display()));
    let chain = certificates(cert)?;
    let text = read_limited(key, MAX_SECRET).map_err(|error| invalid(key, error.to_string()))?;
    let no_key = || invalid(key, "contains no PEM private key".to_owned());
    // ureq panics at the first handshake if the key does not match the certificate, so rustls
    // checks them here.
    let own = chain.iter().map(|one| CertificateDer::from(one.der().to_vec())).collect();
    let private_key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| no_key())?;
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder.with_root_certificates(RootCertStore::empty()).with_client_auth_cert(own, private_key)
        })
        .map_err(|error| invalid(cert, format!("with {}: {error}", key.display())))?;
    Ok(ClientCert::new_with_certs(&chain, PrivateKey::from_pem(text.as_bytes()).map_err(|_| no_key())?))
}

fn certificates(file: &Path) -> Result<Vec<Certificate<'static>>, ClientError> {
    let failed = |why: String| ClientError::Settings(format!("{}: {why}", file.display()));
    let text = read_limited(file, MAX_ROOTS).map_err(|error| failed(error.to_string()))?;
    let mut all: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(text.as_bytes()) {
        if let PemItem::Certificate(one) = item.map_err(|error| failed(error.to_string()))? {
            all.push(one);
        }
    }
    if all.is_empty() { Err(failed("contains no certificate; the file must be PEM".to_owned())) } else { Ok(all) }
}

fn roots(own: Option<&Path>) -> Result<RootCerts, ClientError> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let system = named.into_iter().chain(SYSTEM_ROOTS.iter().map(PathBuf::from)).find(|file| file.exists());
    let Some(file) = own.map(Path::to_owned).or(system) else {
        // Images without a CA bundle use Mozilla's roots as of the build.
        return Ok(RootCerts::WebPki);
    };
    let all = certificates(&file)?;
    if own.is_some() {
        // System bundles may contain unusable certificates; in a configured CA file each must be
        // valid.
        for one in &all {
            let taken = RootCertStore::empty().add(CertificateDer::from(one.der().to_vec()));
            taken.map_err(|error| ClientError::Settings(format!("{}: {error}", file.display())))?;
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
    fn settings_that_expose_secrets_are_refused() {
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
            ("https://db.example/x?key=u:p", &both, "not both"),
            ("https://db.example", &no_ca, "contains no certificate"),
        ] {
            let error = Client::new(url, access, SECOND, 1).unwrap_err().to_string();
            assert!(error.contains(word) && !error.contains("u:p"), "{url}: {error}");
        }
        for url in ["http://127.0.0.1:8428", "http://[::1]:8428/x/", "https://db.example"] {
            Client::new(url, &with_token, SECOND, 1).unwrap();
        }
    }
}
