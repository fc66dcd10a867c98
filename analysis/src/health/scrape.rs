//! The static targets of a Prometheus' configuration, as far as they can be asked as Prometheus asks them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use exporter::{file::read_whole, label, nearest::explain};
use serde::Deserialize;

use super::target::{Target, at, is_known, named};
use crate::client::Access;

/// Largest configuration, in bytes.
const MAX_CONFIG: u64 = 4 << 20;

/// What of a Prometheus' configuration is read; the rest of it is Prometheus' own.
#[derive(Debug, Deserialize)]
struct Scrape {
    #[serde(default)]
    scrape_configs: Vec<Job>,
}

#[derive(Debug, Deserialize)]
struct Job {
    job_name: String,
    metrics_path: Option<String>,
    scheme: Option<String>,
    #[serde(default)]
    static_configs: Vec<Static>,
    #[serde(default)]
    params: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    relabel_configs: Vec<Relabel>,
    basic_auth: Option<BasicAuth>,
    authorization: Option<Authorization>,
    bearer_token: Option<String>,
    bearer_token_file: Option<PathBuf>,
    tls_config: Option<TlsConfig>,
}

#[derive(Debug, Deserialize)]
struct Static {
    #[serde(default)]
    targets: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Relabel {
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
    /// Why its targets cannot be asked as Prometheus asks them; half of what it says would ask somebody else, or with half of a password.
    fn why_not(&self) -> Option<&'static str> {
        let auth = self.basic_auth.as_ref();
        let authorization = self.authorization.as_ref();
        let tls = self.tls_config.as_ref();
        if self.static_configs.iter().all(|one| one.targets.is_empty()) {
            Some("finds its targets by discovery")
        } else if auth.is_some_and(|auth| auth.password.is_some())
            || authorization.is_some_and(|authorization| authorization.credentials.is_some())
            || self.bearer_token.is_some()
        {
            Some("has its secret in the configuration; password_file and credentials_file are read")
        } else if authorization
            .and_then(|one| one.kind.as_deref())
            .is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer"))
        {
            Some("has an authorization that is no bearer token")
        } else if tls.is_some_and(|tls| tls.insecure_skip_verify || tls.server_name.is_some()) {
            Some("has a tls_config with insecure_skip_verify or server_name")
        } else if !self.params.is_empty() {
            Some("has params")
        } else if self.relabel_configs.iter().any(|one| one.target_label.starts_with("__")) {
            Some("asks others than its targets, by relabel_configs")
        } else {
            None
        }
    }
}

/// Targets of a scrape configuration, and the jobs that are left out, each with the reason.
///
/// # Errors
/// When it cannot be read, or has nothing to look at.
pub fn scraped(file: &Path, max_age: Duration) -> Result<(Vec<Target>, Vec<String>), String> {
    let text = read_whole(file, MAX_CONFIG).map_err(|error| format!("{}: {error}", file.display()))?;
    let dir = file.parent().unwrap_or(Path::new("."));
    scraped_text(&text, dir, max_age).map_err(|why| format!("{}: {why}", file.display()))
}

/// The same of a text, whose paths are below `dir`.
///
/// # Errors
/// As of [`scraped`].
pub fn scraped_text(text: &str, dir: &Path, max_age: Duration) -> Result<(Vec<Target>, Vec<String>), String> {
    let scrape: Scrape = serde_saphyr::from_str(text).map_err(|error| explain(&error.without_snippet().to_string()))?;
    let (mut all, mut left_out): (Vec<Target>, Vec<String>) = (Vec::new(), Vec::new());
    for job in &scrape.scrape_configs {
        if let Some(why) = job.why_not() {
            left_out.push(format!("{} {why}", label::clean(&job.job_name)));
            continue;
        }
        let below = |file: &Option<PathBuf>| file.as_ref().map(|file| dir.join(file));
        let tls = job.tls_config.as_ref();
        let bearer = job.authorization.as_ref().and_then(|authorization| authorization.credentials_file.clone());
        let access = Access {
            ca_file: tls.and_then(|tls| below(&tls.ca_file)),
            cert_file: tls.and_then(|tls| below(&tls.cert_file)),
            key_file: tls.and_then(|tls| below(&tls.key_file)),
            username: job.basic_auth.as_ref().and_then(|auth| auth.username.clone()),
            password_file: job.basic_auth.as_ref().and_then(|auth| below(&auth.password_file)),
            bearer_token_file: below(&bearer.or(job.bearer_token_file.clone())),
            timeout: None,
        };
        let mut addresses: Vec<&String> = job.static_configs.iter().flat_map(|one| &one.targets).collect();
        // One of several groups of labels is the same target.
        addresses.sort_unstable();
        addresses.dedup();
        for address in &addresses {
            let scheme = job.scheme.as_deref().unwrap_or("http");
            let path = job.metrics_path.as_deref().unwrap_or("/metrics");
            let known = if is_known(&job.job_name) { &*job.job_name } else { "" };
            let usual = at(known, &format!("{scheme}://{address}{path}"), false, &access, max_age)?;
            // Jobs of one target go by their own name; of several, by the addresses too.
            let name = if addresses.len() == 1 { job.job_name.clone() } else { format!("{} {address}", job.job_name) };
            // What would tell a secret on the way says so, instead of asking without it.
            all.push(Target { name: named(&name)?, access: access.clone(), ..usual });
        }
    }
    if all.is_empty() {
        return Err(format!(
            "nothing to look at; {}",
            if left_out.is_empty() { "no static_configs".to_owned() } else { left_out.join("; ") }
        ));
    }
    Ok((all, left_out))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::health::target::{MAX_AGE, Shows, distinct};

    #[test]
    fn the_repository_s_own_scrape_configuration_is_read() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus/prometheus.yml");
        let (all, otherwise) = scraped(&file, MAX_AGE).unwrap();
        distinct(&all).unwrap();
        assert_eq!(otherwise, Vec::<String>::new());
        let probe = all.iter().find(|target| target.name == "rapl-power").unwrap();
        assert_eq!(probe.url, "http://127.0.0.1:9500/metrics");
    }

    #[test]
    fn a_job_that_is_called_as_a_target_we_know_must_show_what_that_shows() {
        let text = "scrape_configs:\n- job_name: node-exporter\n  static_configs: [{targets: ['n:9100']}]\n- job_name: mine\n  static_configs: [{targets: ['n:1']}]\n";
        let (all, _) = scraped_text(text, Path::new("."), MAX_AGE).unwrap();
        let expects = |at: usize| matches!(&all[at].shows, Shows::Metrics { expect, .. } if !expect.is_empty());
        assert!(expects(0) && !expects(1));
    }

    #[test]
    fn secrets_and_discovery_of_a_scrape_configuration_are_understood() {
        let text = "global: {scrape_interval: 5s}\nscrape_configs:\n- job_name: a\n  scheme: https\n  basic_auth: {username: u, password_file: p}\n  \
                    tls_config: {ca_file: ca.pem}\n  static_configs: [{targets: ['h:1', 'h:2'], labels: {l: v}}]\n- job_name: b\n  \
                    kubernetes_sd_configs: [{role: pod}]\n- job_name: c\n  basic_auth: {username: u, password: hunter2}\n  static_configs: [{targets: ['h:3']}]\n- job_name: d\n  \
                    relabel_configs: [{target_label: __address__}]\n  static_configs: [{targets: ['h:4']}]\n";
        let (all, otherwise) = scraped_text(text, Path::new("/etc/p"), MAX_AGE).unwrap();
        assert_eq!((all.len(), &*all[1].name), (2, "a h:2"));
        for (left_out, word) in otherwise.iter().zip(["b finds", "c has its secret", "d asks others"]) {
            assert!(left_out.starts_with(word) && !left_out.contains("hunter2"), "{left_out}");
        }
        assert_eq!(otherwise.len(), 3);
        assert_eq!(all[0].url, "https://h:1/metrics");
        assert_eq!(all[0].access.ca_file.as_deref(), Some(Path::new("/etc/p/ca.pem")));
        assert_eq!(all[0].access.password_file.as_deref(), Some(Path::new("/etc/p/p")));
        assert!(scraped_text("scrape_configs: []", Path::new(""), MAX_AGE).is_err());
        assert!(scraped_text("scrape_configs: {", Path::new(""), MAX_AGE).is_err());
    }

    proptest! {
        #[test]
        fn any_text_gives_targets_or_a_reason(text in any::<String>()) {
            let _ = scraped_text(&text, Path::new("."), MAX_AGE);
        }
    }
}
