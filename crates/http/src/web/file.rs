//! The format of the web configuration file (prometheus/exporter-toolkit,
//! `docs/web-configuration.md`), checked strictly. Files that the configuration names are not read
//! here.

use std::{collections::BTreeMap, path::PathBuf, str::FromStr as _, time::Duration};

use axum::http::{HeaderName, HeaderValue};
use serde::Deserialize;

use cli::{suggest::with_suggestion, yaml};

/// Maximum size of the file, in bytes.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// User names and the bcrypt hashes of their passwords.
pub(super) type Users = BTreeMap<String, String>;

/// Response headers that may be set; exporter-toolkit allows no others.
const HEADERS: [&str; 5] = [
    "Content-Security-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawConfig {
    tls_server_config: Option<TlsSettings>,
    http_server_config: Option<HttpSettings>,
    basic_auth_users: Option<Users>,
    rate_limit: Option<RawRateLimit>,
    /// Names by which browsers may use the server; an extension of the format.
    allowed_hosts: Option<Vec<String>>,
}

/// TLS settings; names and defaults are those of exporter-toolkit.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TlsSettings {
    pub(super) cert_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
    /// Inline PEM, instead of a file.
    pub(super) cert: Option<String>,
    pub(super) key: Option<String>,
    pub(super) client_auth_type: String,
    pub(super) client_ca_file: Option<PathBuf>,
    pub(super) client_ca: Option<String>,
    pub(super) client_allowed_sans: Vec<String>,
    pub(super) min_version: String,
    pub(super) max_version: String,
    pub(super) cipher_suites: Vec<String>,
    pub(super) prefer_server_cipher_suites: Option<bool>,
    pub(super) curve_preferences: Vec<String>,
}

impl TlsSettings {
    /// True if a certificate, a key or client authentication is configured.
    fn is_enabled(&self) -> bool {
        let file = |file: &Option<PathBuf>| file.as_ref().is_some_and(|file| !file.as_os_str().is_empty());
        let text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let files = [&self.cert_file, &self.key_file, &self.client_ca_file].into_iter().any(file);
        files || [&self.cert, &self.key, &self.client_ca].into_iter().any(text) || !self.client_auth_type.is_empty()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HttpSettings {
    /// Accepted for files that are shared with other exporters, and ignored: only HTTP/1.1 is
    /// served.
    #[serde(rename = "http2")]
    _http2: Option<bool>,
    headers: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRateLimit {
    interval: String,
    burst: u32,
}

/// One request per `interval`, with bursts of up to `burst` requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RateLimit {
    pub(super) interval: Duration,
    pub(super) burst: u32,
}

/// The checked content of the file.
#[derive(Debug)]
pub struct WebConfigFile {
    pub(super) tls_server_config: Option<TlsSettings>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) users: Users,
    pub(super) rate_limit: Option<RateLimit>,
    pub(super) allowed_hosts: Vec<String>,
}

/// Parses and checks the text of a web configuration file.
///
/// # Errors
/// The first fault with its location; never a key or a hash of the file.
pub fn parse_file(text: &str) -> Result<WebConfigFile, String> {
    // An empty YAML document is null.
    let raw: Option<RawConfig> = if text.trim().is_empty() {
        None
    } else {
        yaml::from_str(text).map_err(|error| with_suggestion(&error.to_string()))?
    };
    let raw = raw.unwrap_or_default();
    let users = raw.basic_auth_users.unwrap_or_default();
    for (index, hash) in users.values().enumerate() {
        let cost = bcrypt::HashParts::from_str(hash).map(|parts| parts.get_cost());
        // The message goes to the log, so it does not name the user.
        if !cost.is_ok_and(|cost| (4..=31).contains(&cost)) {
            return Err(format!(
                "basic_auth_users: the value of user {} in alphabetical order is not a bcrypt hash; create one with: \
                 htpasswd -nBC 10 '' | tr -d ':\\n'",
                index + 1
            ));
        }
    }
    // Without certificate, key and client authentication TLS is off, whatever else is set, as in
    // exporter-toolkit.
    let tls_server_config = raw.tls_server_config.filter(TlsSettings::is_enabled);
    let headers = response_headers(raw.http_server_config.unwrap_or_default())?;
    let rate_limit = raw.rate_limit.map(rate_limit).transpose()?.flatten();
    let allowed_hosts = raw.allowed_hosts.unwrap_or_default();
    if let Some(host) = allowed_hosts.iter().find(|host| host.is_empty() || host.contains([':', '/', '*', ' '])) {
        return Err(format!("allowed_hosts: {host:?} is not a host name; write it without scheme and port"));
    }
    Ok(WebConfigFile { tls_server_config, headers, users, rate_limit, allowed_hosts })
}

fn response_headers(http: HttpSettings) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let mut headers = Vec::new();
    for (name, value) in http.headers.unwrap_or_default().into_iter().filter(|(_, value)| !value.is_empty()) {
        let Some(known) = HEADERS.iter().find(|known| known.eq_ignore_ascii_case(&name)) else {
            return Err(format!(
                "http_server_config.headers: {name:?} is not allowed; allowed are {}",
                HEADERS.join(", ")
            ));
        };
        let name = HeaderName::from_str(known).map_err(|error| error.to_string())?;
        let value = HeaderValue::from_str(&value)
            .map_err(|_| format!("http_server_config.headers: {known}: invalid header value"))?;
        headers.push((name, value));
    }
    Ok(headers)
}

/// The rate limit; `None` for an interval of 0, which is unlimited in exporter-toolkit.
fn rate_limit(raw: RawRateLimit) -> Result<Option<RateLimit>, String> {
    if raw.interval.trim() == "0" {
        return Ok(None);
    }
    let interval = humantime::parse_duration(&raw.interval)
        .map_err(|error| format!("rate_limit: interval {:?}: {error}; expected a duration like 1s", raw.interval))?;
    match (interval.is_zero(), raw.burst) {
        (true, _) => Ok(None),
        (false, 0) => Err("rate_limit: a burst of 0 rejects every request".to_owned()),
        (false, burst) => Ok(Some(RateLimit { interval, burst })),
    }
}
