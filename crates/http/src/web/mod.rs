//! Access control of the HTTP server: TLS, authentication and rate limit from `--web.config.file`,
//! in the format of exporter-toolkit.
//!
//! The file and the files that it names are checked for changes at most once a second, on requests,
//! and reloaded once they are unchanged between two checks. An invalid or unreadable file changes
//! nothing and is retried. A reload cannot turn TLS on or off, and cannot stop requiring passwords
//! or client certificates, so a truncated file never opens access; that needs a restart.

mod file;
mod host;
mod rate;
mod tls;
mod users;

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

pub use self::file::parse_file;
pub(crate) use self::users::AuthResult;
use self::{file::WebConfigFile, rate::RateLimiter, users::Authenticator};

/// Minimum interval between checks for changed files.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// An invalid or unreadable web configuration file, or file that it names.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", file.display())]
pub struct WebConfigError {
    file: PathBuf,
    message: String,
}

/// The loaded configuration.
#[derive(Default)]
struct LoadedConfig {
    tls: Option<TlsAcceptor>,
    headers: Vec<(HeaderName, HeaderValue)>,
    users: file::Users,
    rate_limit: Option<file::RateLimit>,
    /// Names by which browsers may use the server.
    allowed_hosts: Vec<String>,
    /// Client certificates are required and verified.
    requires_client_certificates: bool,
    /// The configuration file and the files that it names.
    files: Vec<PathBuf>,
}

/// Device, inode, size and change time of each file; `None` for a missing one. A difference means a
/// changed file.
type FileStamps = Vec<Option<(u64, u64, u64, i64, i64)>>;

/// The state of checks for changed files.
struct ReloadState {
    last_check: Instant,
    /// The files as loaded.
    loaded: FileStamps,
    /// The files as of the last check.
    checked: FileStamps,
    /// The error of the last reload, until one succeeds.
    error: Option<String>,
}

/// The web configuration of a program, which is reloaded when its files change.
pub struct WebConfig {
    file: Option<PathBuf>,
    current: ArcSwap<LoadedConfig>,
    reload: Mutex<ReloadState>,
    authenticator: Authenticator,
    rate_limiter: RateLimiter,
    /// Name of this machine.
    own_name: String,
}

impl WebConfig {
    /// Loads the file; without a file there is no TLS and no authentication.
    ///
    /// # Errors
    /// If the file is invalid, or it or a file that it names cannot be read.
    pub fn load(file: Option<&Path>) -> Result<Arc<Self>, WebConfigError> {
        let (loaded, stamps) = match file {
            Some(file) => {
                // The first load yields the names of the files. Stamps are taken before the second
                // one, so that no change is missed.
                let stamps = stamps(&load(file)?.files);
                (load(file)?, stamps)
            }
            None => (LoadedConfig::default(), FileStamps::new()),
        };
        if let Some(file) = file
            && loaded.tls.is_none()
            && !loaded.users.is_empty()
        {
            warn!("{}: basic_auth_users without tls_server_config sends passwords unencrypted", file.display());
        }
        let reload = ReloadState { last_check: Instant::now(), checked: stamps.clone(), loaded: stamps, error: None };
        Ok(Arc::new(Self {
            file: file.map(Path::to_owned),
            current: ArcSwap::from_pointee(loaded),
            reload: Mutex::new(reload),
            authenticator: Authenticator::new(),
            rate_limiter: RateLimiter::default(),
            // Unknown is the empty name, which no request has.
            own_name: cli::host::name().unwrap_or_default(),
        }))
    }

    /// The URL scheme: `https` with TLS, else `http`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.current.load().tls.is_some() { "https" } else { "http" }
    }

    /// True if requests need a password or a verified client certificate.
    #[must_use]
    pub fn requires_credentials(&self) -> bool {
        self.current.load().requires_credentials()
    }

    /// Loads the files again without applying them, to check that they are still readable after
    /// privileges were dropped.
    ///
    /// # Errors
    /// As of [`WebConfig::load`].
    pub fn check_readable(&self) -> Result<(), WebConfigError> {
        self.file.as_deref().map_or(Ok(()), |file| load(file).map(|_| ()))
    }

    /// The TLS acceptor of the current configuration; `None` without TLS.
    pub(crate) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.reload_if_changed();
        self.current.load().tls.clone()
    }

    /// The configured headers of every response.
    pub(crate) fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        self.current.load().headers.clone()
    }

    /// Counts a request against the rate limit, which applies to all peers together; false if it
    /// exceeds the limit.
    pub(crate) fn within_rate_limit(&self) -> bool {
        self.reload_if_changed();
        self.current.load().rate_limit.is_none_or(|limit| self.rate_limiter.allow(limit.interval, limit.burst))
    }

    /// Checks the `Host` header of a request from `from` against DNS rebinding; see
    /// SECURITY.md. Credentials and certificates protect by themselves: a page of another site has
    /// neither a password of this server nor a certificate for its own name here.
    ///
    /// # Errors
    /// The text of the refusal, for status 421.
    pub fn check_host(&self, headers: &HeaderMap, from: IpAddr) -> Result<(), String> {
        let current = self.current.load();
        if current.tls.is_some() || current.requires_credentials() {
            return Ok(());
        }
        match host::foreign_host(headers, from, &self.own_name, &current.allowed_hosts) {
            Some(name) => Err(host::refusal(&name)),
            None => Ok(()),
        }
    }

    /// Authenticates a request from `from` by its `Authorization` header.
    pub(crate) async fn authenticate(&self, authorization: Option<&HeaderValue>, from: IpAddr) -> AuthResult {
        let current = self.current.load_full();
        self.authenticator.authenticate(&current.users, authorization, from).await
    }

    /// Reloads the files if they have changed and the last check is long enough ago.
    fn reload_if_changed(&self) {
        let Some(file) = &self.file else { return };
        let mut state = self.reload.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last_check.elapsed() < CHECK_INTERVAL {
            return;
        }
        state.last_check = Instant::now();
        let current = self.current.load();
        // Taken before the files are read, so that a change while they are read is found by the
        // next check.
        let stamps = stamps(&current.files);
        let is_stable = stamps == std::mem::replace(&mut state.checked, stamps.clone());
        if stamps == state.loaded && state.error.is_none() || !is_stable {
            return;
        }
        let loaded = load(file).map_err(|error| error.to_string()).and_then(|loaded| {
            let rejected = |change| format!("{}: {change} needs a restart", file.display());
            current.check_reload(&loaded).map_err(rejected)?;
            Ok(loaded)
        });
        match loaded {
            Ok(loaded) => {
                info!("{}: reloaded, with the files that it names", file.display());
                // Files that are named for the first time have no stamps yet, so everything is
                // loaded once more.
                state.loaded = if loaded.files == current.files { stamps } else { FileStamps::new() };
                state.error = None;
                drop(current);
                self.current.store(Arc::new(loaded));
            }
            Err(error) => {
                if state.error.as_ref() != Some(&error) {
                    warn!("{error}; the previous configuration stays in effect");
                }
                // Retried at each check, because a missing file may be created later.
                state.error = Some(error);
            }
        }
    }
}

impl LoadedConfig {
    /// Rejects changes that a truncated file could cause.
    fn check_reload(&self, new: &Self) -> Result<(), &'static str> {
        if new.tls.is_some() != self.tls.is_some() {
            Err("turning TLS on or off")
        } else if !self.users.is_empty() && new.users.is_empty() {
            Err("turning off password authentication")
        } else if self.requires_client_certificates && !new.requires_client_certificates {
            Err("turning off client certificate authentication")
        } else {
            Ok(())
        }
    }

    fn requires_credentials(&self) -> bool {
        !self.users.is_empty() || self.requires_client_certificates
    }
}

fn stamps(files: &[PathBuf]) -> FileStamps {
    let stamp = |file: &PathBuf| {
        let meta = fs::metadata(file).ok()?;
        Some((meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()))
    };
    files.iter().map(stamp).collect()
}

fn load(path: &Path) -> Result<LoadedConfig, WebConfigError> {
    let invalid = |message: String| WebConfigError { file: path.to_owned(), message };
    let text = cli::file::read_limited(path, file::MAX_BYTES).map_err(|error| invalid(error.to_string()))?;
    let file: WebConfigFile = parse_file(&text).map_err(invalid)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut files = vec![path.to_owned()];
    let tls = match &file.tls_server_config {
        Some(settings) => {
            let (config, named_files) =
                tls::config(settings, dir).map_err(|error| invalid(format!("tls_server_config: {error}")))?;
            files.extend(named_files);
            Some(TlsAcceptor::from(config))
        }
        None => None,
    };
    let requires_client_certificates =
        file.tls_server_config.as_ref().is_some_and(|tls| tls.client_auth_type == "RequireAndVerifyClientCert");
    Ok(LoadedConfig {
        requires_client_certificates,
        tls,
        headers: file.headers,
        users: file.users,
        rate_limit: file.rate_limit,
        allowed_hosts: file.allowed_hosts,
        files,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<Arc<WebConfig>, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.yml");
        fs::write(&file, text).unwrap();
        WebConfig::load(Some(&file)).map_err(|error| error.to_string())
    }

    /// Runs a check for changed files now.
    fn check(web: &WebConfig) {
        web.reload.lock().unwrap().last_check = Instant::now() - CHECK_INTERVAL;
        web.reload_if_changed();
    }

    #[test]
    fn empty_file_allows_everything_and_invalid_one_fails() {
        assert_eq!(open("").unwrap().scheme(), "http");
        for nothing in [
            "{}",
            "basic_auth_users:\nhttp_server_config:\n",
            "tls_server_config: {min_version: TLS13}",
            "rate_limit: {interval: 0, burst: 0}",
        ] {
            let web = open(nothing).unwrap();
            assert!(web.scheme() == "http" && !web.requires_credentials(), "{nothing}");
        }
        for (text, word) in [
            ("tls_server_conf: {}", "did you mean tls_server_config?"),
            ("tls_server_config: {cert_file: a.pem}", "key_file"),
            ("tls_server_config: {cert_file: a.pem, key_file: b.pem}", "a.pem"),
            ("tls_server_config: {cert_file: a, key_file: b, min_version: TLS10}", "TLS12"),
            ("basic_auth_users: {me: secret}", "bcrypt"),
            ("http_server_config: {headers: {Set-Cookie: x}}", "Strict-Transport-Security"),
            ("rate_limit: {interval: 1s, burst: 0}", "burst"),
            ("[1", "line 1"),
            ("basic_auth_users: {me: $2b$99$DOWSDz/CyKaJ40hslrk5fe5i2XZGGcHW2eIJ0gGqPZPkbmIsAdxX2}", "bcrypt"),
            ("tls_server_config: {cert_file: a, key_file: b, client_auth_type: Requir}", "a: No such file"),
        ] {
            let error = open(text).err().unwrap_or_else(|| panic!("{text} was accepted"));
            assert!(error.contains(word) && !error.contains("secret"), "{text}: {error}");
        }
        assert!(WebConfig::load(Some(Path::new("/nowhere/web.yml"))).is_err());
    }

    #[test]
    fn invalid_reload_keeps_the_previous_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.yml");
        fs::write(&file, "http_server_config: {headers: {X-Frame-Options: deny}}").unwrap();
        let web = WebConfig::load(Some(&file)).unwrap();
        let header = |web: &WebConfig| {
            // A changed file is loaded when it is unchanged between two checks.
            (0..2).for_each(|_| check(web));
            web.headers().first().map(|(_, value)| value.to_str().unwrap().to_owned())
        };
        assert_eq!(header(&web).as_deref(), Some("deny"));
        fs::write(&file, "http_server_config: {hea").unwrap();
        assert_eq!(header(&web).as_deref(), Some("deny"));
        fs::remove_file(&file).unwrap();
        assert_eq!(header(&web).as_deref(), Some("deny"));
        assert!(web.reload.lock().unwrap().error.is_some());
        fs::write(&file, "http_server_config: {headers: {X-Frame-Options: sameorigin}}").unwrap();
        assert_eq!(header(&web).as_deref(), Some("sameorigin"));
    }

    #[test]
    fn truncated_file_still_requires_passwords() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.yml");
        let whole = "basic_auth_users: {me: $2b$10$DOWSDz/CyKaJ40hslrk5fe5i2XZGGcHW2eIJ0gGqPZPkbmIsAdxX2}";
        fs::write(&file, whole).unwrap();
        let web = WebConfig::load(Some(&file)).unwrap();
        for cut in ["", "{}", "basic_auth_users:\n"] {
            fs::write(&file, cut).unwrap();
            for _ in 0..3 {
                check(&web);
                assert!(web.requires_credentials(), "{cut:?}");
            }
        }
    }

    #[test]
    fn reload_cannot_reduce_required_credentials() {
        let loaded = |users: bool, requires_client_certificates| {
            let user = ("me".to_owned(), String::new());
            LoadedConfig {
                users: users.then_some(user).into_iter().collect(),
                requires_client_certificates,
                ..LoadedConfig::default()
            }
        };
        for (before, after, allowed) in [
            ((true, true), (true, false), false),
            ((true, true), (false, true), false),
            ((false, true), (true, false), false),
            ((true, true), (true, true), true),
            ((false, false), (true, true), true),
            ((true, false), (true, true), true),
        ] {
            let (before, after) = (loaded(before.0, before.1), loaded(after.0, after.1));
            assert_eq!(before.check_reload(&after).is_ok(), allowed);
        }
    }

    #[test]
    fn missing_files_are_retried_at_each_check() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.yml");
        fs::write(&file, "http_server_config: {headers: {X-Frame-Options: deny}}").unwrap();
        let web = WebConfig::load(Some(&file)).unwrap();
        // A reload cannot turn on TLS, so this file is rejected at each check.
        fs::write(&file, "tls_server_config: {cert_file: a, key_file: b}").unwrap();
        (0..3).for_each(|_| check(&web));
        let error = |web: &WebConfig| web.reload.lock().unwrap().error.clone().unwrap_or_default();
        assert!(error(&web).contains("a: No such file"), "{}", error(&web));
        fs::write(dir.path().join("a"), "x").unwrap();
        (0..3).for_each(|_| check(&web));
        assert!(error(&web).contains("no certificate"), "{}", error(&web));
    }
}
