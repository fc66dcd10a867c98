//! Talking to the two programs as any other client would: their pages and their feed.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
pub use exporter::parse::Sample;
use serde_json::Value;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use crate::wait::Deadline;

/// How long one answer may take: longer than any does on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program by its base URL.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    agent: ureq::Agent,
    /// What `Authorization` says.
    user: Option<String>,
}

impl Client {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(base: impl Into<String>) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build();
        Self { base: base.into(), agent: config.into(), user: None }
    }

    /// The same over TLS, by an authority of one's own, as a user with a password, and with a certificate where one is given.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn secure(base: &str, ca: &Path, user: Option<(&str, &str)>, own: Option<(&Path, &Path)>) -> Result<Self> {
        let certificate =
            |file: &Path| -> Result<Certificate<'static>> { Ok(Certificate::from_pem(&fs::read(file)?)?) };
        let mut tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&[certificate(ca)?]));
        if let Some((cert, key)) = own {
            let key = PrivateKey::from_pem(&fs::read(key)?)?;
            tls = tls.client_cert(Some(ClientCert::new_with_certs(&[certificate(cert)?], key)));
        }
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .tls_config(tls.build())
            .build();
        let user =
            user.map(|(name, password)| format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}"))));
        Ok(Self { base: base.to_owned(), agent: config.into(), user })
    }

    /// The full URL of a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// The body behind a path.
    ///
    /// # Errors
    /// When there is no answer, or one of 400 and above.
    pub fn text(&self, path: &str) -> Result<String> {
        let (status, body) = self.get(path)?;
        if status >= 400 {
            bail!("{}: {status}: {body}", self.url(path));
        }
        Ok(body)
    }

    /// Status and body behind a path, whatever the status.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let (status, _, body) = self.get_as(path, "*/*")?;
        Ok((status, body))
    }

    /// Status, content type and body behind a path, for whoever takes something else than the usual.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn get_as(&self, path: &str, accept: &str) -> Result<(u16, String, String)> {
        let url = self.url(path);
        let mut request = self.agent.get(&url).header("Accept", accept);
        if let Some(user) = &self.user {
            request = request.header("Authorization", user);
        }
        let mut reply = request.call().with_context(|| url.clone())?;
        let kind =
            reply.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
        Ok((reply.status().as_u16(), kind, reply.body_mut().read_to_string().context(url)?))
    }

    /// Asks for `/metrics` as Prometheus does, in OpenMetrics and compressed; gives the bytes that came, which are not looked at.
    ///
    /// # Errors
    /// When there is no answer, or one that is no page.
    pub fn scrape(&self) -> Result<usize> {
        let url = self.url("/metrics");
        let mut request = self.agent.get(&url).header("Accept", "application/openmetrics-text;version=1.0.0");
        request = request.header("Accept-Encoding", "gzip");
        if let Some(user) = &self.user {
            request = request.header("Authorization", user);
        }
        let mut reply = request.call().with_context(|| url.clone())?;
        if reply.status() != 200 {
            bail!("{url}: {}", reply.status());
        }
        Ok(reply.body_mut().read_to_vec().context(url)?.len())
    }

    /// The JSON behind a path.
    ///
    /// # Errors
    /// As [`Client::text`], and when it is not JSON.
    pub fn json(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(path)?)?)
    }

    /// Asks for an extra tick; gives its time in unix seconds.
    ///
    /// # Errors
    /// When the probe does not answer, or refuses.
    pub fn mark(&self) -> Result<f64> {
        let url = self.url("/api/v1/mark");
        let answer: Value = self.agent.post(&url).send_empty()?.body_mut().read_json().context(url)?;
        answer["time"].as_f64().context("the mark has no time")
    }

    /// Every sample of `/metrics`.
    ///
    /// # Errors
    /// As [`Client::text`].
    pub fn metrics(&self) -> Result<Vec<Sample>> {
        Ok(exporter::parse::parse(&self.text("/metrics")?)?.samples)
    }

    /// Waits until the program answers; `alive` says whether that makes sense still.
    ///
    /// # Errors
    /// When it does not answer in time, or is not alive.
    pub fn wait(&self, patience: Duration, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        let mut deadline = Deadline::after(patience);
        while self.text("/metrics").is_err() {
            alive()?;
            if deadline.passed() {
                bail!("{} does not answer", self.url("/metrics"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}
