//! The shape of the web configuration (prometheus/exporter-toolkit, `docs/web-configuration.md`), checked word by word. Reads no other file.

use std::{collections::BTreeMap, path::PathBuf, str::FromStr as _, time::Duration};

use axum::http::{HeaderName, HeaderValue};
use serde::Deserialize;

use crate::nearest::explain;

/// Largest file, in bytes.
pub(super) const MAX: u64 = 1 << 20;

/// Users and the bcrypt hashes of their passwords.
pub(super) type Users = BTreeMap<String, String>;

/// What may be set in answers; exporter-toolkit allows no others.
const HEADERS: [&str; 5] = [
    "Content-Security-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    tls_server_config: Option<Tls>,
    http_server_config: Option<Http>,
    basic_auth_users: Option<Users>,
    rate_limit: Option<WrittenRate>,
}

/// How TLS is served; the names and defaults are exporter-toolkit's.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tls {
    pub(super) cert_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
    /// PEM in the file itself, instead.
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

impl Tls {
    fn is_wanted(&self) -> bool {
        let file = |file: &Option<PathBuf>| file.as_ref().is_some_and(|file| !file.as_os_str().is_empty());
        let text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let files = [&self.cert_file, &self.key_file, &self.client_ca_file].into_iter().any(file);
        files || [&self.cert, &self.key, &self.client_ca].into_iter().any(text) || !self.client_auth_type.is_empty()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Http {
    /// Taken, for files that are shared with other exporters; HTTP/1.1 is what we speak.
    #[serde(rename = "http2")]
    _http2: Option<bool>,
    headers: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRate {
    interval: String,
    burst: u32,
}

/// A request every so often, and so many at once before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate {
    pub(super) interval: Duration,
    pub(super) burst: u32,
}

/// What the file says.
#[derive(Debug)]
pub struct File {
    pub(super) tls_server_config: Option<Tls>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) users: Users,
    pub(super) rate: Option<Rate>,
}

/// Reads the text of a file.
///
/// # Errors
/// What is wrong, and where.
pub fn parse_file(text: &str) -> Result<File, String> {
    // An empty document is null in YAML, and says nothing.
    let written: Option<Written> =
        if text.trim().is_empty() { None } else { serde_saphyr::from_str(text).map_err(|error| plain(&error))? };
    let written = written.unwrap_or_default();
    let users = written.basic_auth_users.unwrap_or_default();
    for (number, hash) in users.values().enumerate() {
        let cost = bcrypt::HashParts::from_str(hash).map(|parts| parts.get_cost());
        // Not by name: this stands in logs.
        if !cost.is_ok_and(|cost| (4..=31).contains(&cost)) {
            return Err(format!(
                "basic_auth_users: what stands beside the user who is number {} by name is no bcrypt hash; make one with: \
                 htpasswd -nBC 10 '' | tr -d ':\\n'",
                number + 1
            ));
        }
    }
    let mut headers = Vec::new();
    let http = written.http_server_config.unwrap_or_default();
    for (name, value) in http.headers.unwrap_or_default().into_iter().filter(|(_, value)| !value.is_empty()) {
        let known = HEADERS.iter().find(|known| known.eq_ignore_ascii_case(&name));
        let Some(known) = known else {
            return Err(format!("http_server_config.headers: {name:?} cannot be set; can be: {}", HEADERS.join(", ")));
        };
        let name = HeaderName::from_str(known).map_err(|error| error.to_string())?;
        let value = HeaderValue::from_str(&value)
            .map_err(|_| format!("http_server_config.headers: {known}: not a header's value"))?;
        headers.push((name, value));
    }
    let rate = match written.rate_limit {
        None => None,
        // 0 is no limit, as there.
        Some(WrittenRate { interval, .. }) if interval.trim() == "0" => None,
        Some(WrittenRate { interval, burst }) => {
            let interval = humantime::parse_duration(&interval)
                .map_err(|error| format!("rate_limit: interval {interval:?}: {error}; write 1s"))?;
            match (interval.is_zero(), burst) {
                (true, _) => None,
                (false, 0) => return Err("rate_limit: a burst of 0 lets nobody in".to_owned()),
                (false, burst) => Some(Rate { interval, burst }),
            }
        }
    };
    // Without certificate, key and clients' certificates there is no TLS, whatever else stands there; as exporter-toolkit has it.
    let tls_server_config = written.tls_server_config.filter(Tls::is_wanted);
    Ok(File { tls_server_config, headers, users, rate })
}

/// The message without the lines around the place, which may hold a key.
fn plain(error: &serde_saphyr::Error) -> String {
    let error = error.without_snippet();
    let place = error.location().map(|at| format!("line {}: ", at.line())).unwrap_or_default();
    let text = error.to_string();
    explain(&if text.contains("line ") { text } else { format!("{place}{text}") })
}
