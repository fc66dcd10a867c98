//! Health targets from the static targets of a Prometheus configuration.
//!
//! Jobs that cannot be requested in the same way as Prometheus does are skipped.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use cli::{file::read_limited, suggest::with_suggestion, yaml};
use metrics::label;
use serde::Deserialize;

use super::target::{Target, clean_name, is_default, parse_url};
use client::Access;

/// Largest configuration file in bytes.
const MAX_CONFIG: u64 = 4 << 20;

/// The parts of a Prometheus configuration that are read.
#[derive(Debug, Deserialize)]
struct ScrapeConfig {
    #[serde(default)]
    scrape_configs: Vec<Job>,
}

#[derive(Debug, Deserialize)]
struct Job {
    job_name: String,
    metrics_path: Option<String>,
    scheme: Option<String>,
    #[serde(default)]
    static_configs: Vec<StaticConfig>,
    #[serde(default)]
    params: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    relabel_configs: Vec<RelabelConfig>,
    basic_auth: Option<BasicAuth>,
    authorization: Option<Authorization>,
    bearer_token: Option<String>,
    bearer_token_file: Option<PathBuf>,
    tls_config: Option<TlsConfig>,
}

#[derive(Debug, Deserialize)]
struct StaticConfig {
    #[serde(default)]
    targets: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct RelabelConfig {
    #[serde(default)]
    target_label: String,
}

#[derive(Debug, Deserialize)]
struct BasicAuth {
    username: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Authorization {
    #[serde(rename = "type")]
    kind: Option<String>,
    credentials: Option<String>,
    credentials_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
struct TlsConfig {
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    server_name: Option<String>,
    #[serde(default)]
    insecure_skip_verify: bool,
}

impl Job {
    /// Reason to skip the job: with unsupported settings, requests would go to a wrong target or
    /// lack credentials.
    fn unsupported(&self) -> Option<&'static str> {
        let auth = self.basic_auth.as_ref();
        let authorization = self.authorization.as_ref();
        let tls = self.tls_config.as_ref();
        if self.static_configs.iter().all(|one| one.targets.is_empty()) {
            Some("has service discovery instead of static targets")
        } else if auth.is_some_and(|auth| auth.password.is_some())
            || authorization.is_some_and(|authorization| authorization.credentials.is_some())
            || self.bearer_token.is_some()
        {
            Some("has an inline secret; use password_file or credentials_file")
        } else if authorization
            .and_then(|one| one.kind.as_deref())
            .is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer"))
        {
            Some("has an authorization type other than Bearer")
        } else if tls.is_some_and(|tls| tls.insecure_skip_verify || tls.server_name.is_some()) {
            Some("has a tls_config with insecure_skip_verify or server_name")
        } else if !self.params.is_empty() {
            Some("has params")
        } else if self.relabel_configs.iter().any(|one| one.target_label.starts_with("__")) {
            Some("has relabel_configs that change its targets")
        } else {
            None
        }
    }
}

/// Reads the targets of a scrape configuration, and the skipped jobs with the reasons.
///
/// # Errors
/// The file is unreadable, or has no usable target.
pub fn read(file: &Path, max_age: Duration) -> Result<(Vec<Target>, Vec<String>), String> {
    let text = read_limited(file, MAX_CONFIG).map_err(|error| format!("{}: {error}", file.display()))?;
    let dir = file.parent().unwrap_or(Path::new("."));
    parse(&text, dir, max_age).map_err(|why| format!("{}: {why}", file.display()))
}

/// Parses a scrape configuration; its paths are relative to `dir`.
///
/// # Errors
/// See [`read`].
pub fn parse(text: &str, dir: &Path, max_age: Duration) -> Result<(Vec<Target>, Vec<String>), String> {
    let config: ScrapeConfig = yaml::from_str(text).map_err(|error| with_suggestion(&error.to_string()))?;
    let (mut all, mut skipped): (Vec<Target>, Vec<String>) = (Vec::new(), Vec::new());
    for job in &config.scrape_configs {
        if let Some(why) = job.unsupported() {
            skipped.push(format!("{} {why}", label::sanitize(&job.job_name)));
            continue;
        }
        let resolve = |file: &Option<PathBuf>| file.as_ref().map(|file| dir.join(file));
        let tls = job.tls_config.as_ref();
        let bearer = job.authorization.as_ref().and_then(|authorization| authorization.credentials_file.clone());
        let access = Access {
            ca_file: tls.and_then(|tls| resolve(&tls.ca_file)),
            cert_file: tls.and_then(|tls| resolve(&tls.cert_file)),
            key_file: tls.and_then(|tls| resolve(&tls.key_file)),
            username: job.basic_auth.as_ref().and_then(|auth| auth.username.clone()),
            password_file: job.basic_auth.as_ref().and_then(|auth| resolve(&auth.password_file)),
            bearer_token_file: resolve(&bearer.or(job.bearer_token_file.clone())),
            timeout: None,
        };
        let mut addresses: Vec<&String> = job.static_configs.iter().flat_map(|one| &one.targets).collect();
        // A target may be in several groups of labels.
        addresses.sort_unstable();
        addresses.dedup();
        for address in &addresses {
            let scheme = job.scheme.as_deref().unwrap_or("http");
            let path = job.metrics_path.as_deref().unwrap_or("/metrics");
            let known = if is_default(&job.job_name) { &*job.job_name } else { "" };
            let target = parse_url(known, &format!("{scheme}://{address}{path}"), false, &access, max_age)?;
            // A job with several targets needs their addresses in the names.
            let name = if addresses.len() == 1 { job.job_name.clone() } else { format!("{} {address}", job.job_name) };
            // With its own credentials: sending them unencrypted is an error, not a request without
            // them.
            all.push(Target { name: clean_name(&name)?, access: access.clone(), ..target });
        }
    }
    if all.is_empty() {
        return Err(format!(
            "no usable target: {}",
            if skipped.is_empty() { "no static_configs".to_owned() } else { skipped.join("; ") }
        ));
    }
    Ok((all, skipped))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::health::target::{Expected, MAX_AGE, check_unique};

    #[test]
    fn the_shipped_scrape_configuration_is_read() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus/prometheus.yml");
        let (all, skipped) = read(&file, MAX_AGE).unwrap();
        check_unique(&all).unwrap();
        assert_eq!(skipped, Vec::<String>::new());
        let probe = all.iter().find(|target| target.name == "rapl-power").unwrap();
        assert_eq!(probe.url, "http://127.0.0.1:9500/metrics");
    }

    #[test]
    fn a_job_named_as_a_default_target_has_its_expectation() {
        let text = "scrape_configs:\n- job_name: node-exporter\n  static_configs: [{targets: ['n:9100']}]\n- job_name: mine\n  static_configs: [{targets: ['n:1']}]\n";
        let (all, _) = parse(text, Path::new("."), MAX_AGE).unwrap();
        let expects =
            |at: usize| matches!(&all[at].expected, Expected::Metrics { families, .. } if !families.is_empty());
        assert!(expects(0) && !expects(1));
    }

    #[test]
    fn credentials_are_read_and_unsupported_jobs_skipped() {
        let text = "global: {scrape_interval: 5s}\nscrape_configs:\n- job_name: a\n  scheme: https\n  basic_auth: {username: u, password_file: p}\n  \
                    tls_config: {ca_file: ca.pem}\n  static_configs: [{targets: ['h:1', 'h:2'], labels: {l: v}}]\n- job_name: b\n  \
                    kubernetes_sd_configs: [{role: pod}]\n- job_name: c\n  basic_auth: {username: u, password: hunter2}\n  static_configs: [{targets: ['h:3']}]\n- job_name: d\n  \
                    relabel_configs: [{target_label: __address__}]\n  static_configs: [{targets: ['h:4']}]\n";
        let (all, skipped) = parse(text, Path::new("/etc/p"), MAX_AGE).unwrap();
        assert_eq!((all.len(), &*all[1].name), (2, "a h:2"));
        for (job, word) in
            skipped.iter().zip(["b has service discovery", "c has an inline secret", "d has relabel_configs"])
        {
            assert!(job.starts_with(word) && !job.contains("hunter2"), "{job}");
        }
        assert_eq!(skipped.len(), 3);
        assert_eq!(all[0].url, "https://h:1/metrics");
        assert_eq!(all[0].access.ca_file.as_deref(), Some(Path::new("/etc/p/ca.pem")));
        assert_eq!(all[0].access.password_file.as_deref(), Some(Path::new("/etc/p/p")));
        assert!(parse("scrape_configs: []", Path::new(""), MAX_AGE).is_err());
        assert!(parse("scrape_configs: {", Path::new(""), MAX_AGE).is_err());
    }

    proptest! {
        #[test]
        fn any_text_gives_targets_or_an_error(text in any::<String>()) {
            let _ = parse(&text, Path::new("."), MAX_AGE);
        }
    }
}
