//! An HTTP client of both programs.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
pub use metrics::parse::Sample;
use serde_json::Value;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use crate::wait::Deadline;

/// Longer than any response takes on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A client of a program, by base URL.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    agent: ureq::Agent,
    /// Value of the header `Authorization`.
    authorization: Option<String>,
}

impl Client {
    /// A client without TLS. It does not connect yet.
    #[must_use]
    pub fn new(base: impl Into<String>) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build();
        Self { base: base.into(), agent: config.into(), authorization: None }
    }

    /// A client with TLS and a given certificate authority, and optionally a user with a password,
    /// and a client certificate with its key.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn secure(base: &str, ca: &Path, user: Option<(&str, &str)>, own_cert: Option<(&Path, &Path)>) -> Result<Self> {
        let certificate =
            |file: &Path| -> Result<Certificate<'static>> { Ok(Certificate::from_pem(&fs::read(file)?)?) };
        let mut tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&[certificate(ca)?]));
        if let Some((cert, key)) = own_cert {
            let key = PrivateKey::from_pem(&fs::read(key)?)?;
            tls = tls.client_cert(Some(ClientCert::new_with_certs(&[certificate(cert)?], key)));
        }
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .tls_config(tls.build())
            .build();
        let authorization =
            user.map(|(name, password)| format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}"))));
        Ok(Self { base: base.to_owned(), agent: config.into(), authorization })
    }

    /// The full URL of a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// The response body of a path.
    ///
    /// # Errors
    /// Without a response, or with a status of 400 and above.
    pub fn text(&self, path: &str) -> Result<String> {
        let (status, body) = self.get(path)?;
        if status >= 400 {
            bail!("{}: {status}: {body}", self.url(path));
        }
        Ok(body)
    }

    /// Status and body of a path, with any status.
    ///
    /// # Errors
    /// Without a response.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let (status, _, body) = self.get_as(path, "*/*")?;
        Ok((status, body))
    }

    /// Status, content type and body of a path, with a given header `Accept`.
    ///
    /// # Errors
    /// Without a response.
    pub fn get_as(&self, path: &str, accept: &str) -> Result<(u16, String, String)> {
        let url = self.url(path);
        let mut request = self.agent.get(&url).header("Accept", accept);
        if let Some(value) = &self.authorization {
            request = request.header("Authorization", value);
        }
        let mut reply = request.call().with_context(|| url.clone())?;
        let kind =
            reply.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
        Ok((reply.status().as_u16(), kind, reply.body_mut().read_to_string().context(url)?))
    }

    /// Requests `/metrics` as Prometheus does, in OpenMetrics and compressed; returns the number of
    /// bytes received.
    ///
    /// # Errors
    /// Without a response, or with a status other than 200.
    pub fn scrape(&self) -> Result<usize> {
        let url = self.url("/metrics");
        let mut request = self.agent.get(&url).header("Accept", "application/openmetrics-text;version=1.0.0");
        request = request.header("Accept-Encoding", "gzip");
        if let Some(value) = &self.authorization {
            request = request.header("Authorization", value);
        }
        let mut reply = request.call().with_context(|| url.clone())?;
        if reply.status() != 200 {
            bail!("{url}: {}", reply.status());
        }
        Ok(reply.body_mut().read_to_vec().context(url)?.len())
    }

    /// The JSON response of a path.
    ///
    /// # Errors
    /// As [`Client::text`], and when it is not JSON.
    pub fn json(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(path)?)?)
    }

    /// Requests an extra tick; returns its time in Unix seconds.
    ///
    /// # Errors
    /// Without a valid response.
    pub fn mark(&self) -> Result<f64> {
        let url = self.url("/api/v1/mark");
        let mut request = self.agent.post(&url);
        if let Some(value) = &self.authorization {
            request = request.header("Authorization", value);
        }
        let mark: Value = request.send_empty()?.body_mut().read_json().context(url)?;
        mark["time"].as_f64().context("the mark has no time")
    }

    /// Every sample of `/metrics`.
    ///
    /// # Errors
    /// As [`Client::text`].
    pub fn metrics(&self) -> Result<Vec<Sample>> {
        Ok(metrics::parse::parse(&self.text("/metrics")?)?.samples)
    }

    /// Waits until a path responds with success; `alive` fails if the program has ended.
    ///
    /// # Errors
    /// When the program does not respond in time, or has ended.
    pub fn wait(&self, path: &str, timeout: Duration, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        let mut deadline = Deadline::after(timeout);
        while self.text(path).is_err() {
            alive()?;
            if deadline.passed() {
                bail!("{} does not respond", self.url(path));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}
