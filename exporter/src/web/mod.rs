//! Who may ask, and over what: the file of `--web.config.file`, in the shape that exporter-toolkit gave it.
//!
//! The file and what it names are looked at again at most once a second, when somebody asks, so certificates and passwords change under a running
//! program. What has changed is read once it has stood still from one look to the next. What cannot be read then, or makes no sense, changes nothing, and is tried again.
//! Whether there is TLS at all, and whether passwords and whether certificates are asked for, is decided at the start: a file that was cut short opens no door.

mod file;
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
use axum::http::{HeaderName, HeaderValue};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

pub use self::file::parse_file;
use self::{file::File, rate::Bucket, users::Users};

/// How often files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is wrong with the file, or with what it names.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", file.display())]
pub struct WebError {
    file: PathBuf,
    why: String,
}

/// What the file says, read.
#[derive(Default)]
struct Loaded {
    tls: Option<TlsAcceptor>,
    headers: Vec<(HeaderName, HeaderValue)>,
    users: file::Users,
    rate: Option<file::Rate>,
    /// Certificates of clients are asked for, and looked at.
    verifies: bool,
    /// The file, and whatever it names.
    files: Vec<PathBuf>,
}

/// What tells that a file is another, or holds something else: device, number, size, time of change.
type Print = Vec<Option<(u64, u64, u64, i64, i64)>>;

struct Looked {
    at: Instant,
    /// Of what was read last.
    print: Print,
    /// Of what the look before this saw.
    seen: Print,
    trouble: Option<String>,
}

/// What a request has to bring to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is answered.
    Welcome,
    /// Nobody, or nobody with that password.
    Unauthorized,
    /// Too many, or too many guesses at once.
    TooMany,
}

/// The doors of a program.
pub struct Web {
    file: Option<PathBuf>,
    now: ArcSwap<Loaded>,
    looked: Mutex<Looked>,
    users: Users,
    bucket: Bucket,
}

impl Web {
    /// Reads the file; without one everything is open and in the clear.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(file: Option<&Path>) -> Result<Arc<Self>, WebError> {
        let (loaded, print) = match file {
            Some(file) => {
                // What it names is known when it was read; from then on nothing changes unseen.
                let print = print(&load(file)?.files);
                (load(file)?, print)
            }
            None => (Loaded::default(), Print::new()),
        };
        if let Some(file) = file
            && loaded.tls.is_none()
            && !loaded.users.is_empty()
        {
            warn!("{}: passwords without tls_server_config: whoever can listen on the way reads them", file.display());
        }
        let looked = Looked { at: Instant::now(), seen: print.clone(), print, trouble: None };
        Ok(Arc::new(Self {
            file: file.map(Path::to_owned),
            now: ArcSwap::from_pointee(loaded),
            looked: Mutex::new(looked),
            users: Users::new(),
            bucket: Bucket::default(),
        }))
    }

    /// The scheme of URLs.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.now.load().tls.is_some() { "https" } else { "http" }
    }

    /// True when not everybody is answered: users or verified certificates are asked for.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        self.now.load().is_guarded()
    }

    /// Reads everything once more and changes nothing: for a program that has given its privileges away since.
    ///
    /// # Errors
    /// What cannot be read any more.
    pub fn can_be_read_again(&self) -> Result<(), WebError> {
        self.file.as_deref().map_or(Ok(()), |file| load(file).map(|_| ()))
    }

    /// How a connection is taken, as of now; `None` where there is no TLS.
    pub(crate) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.look();
        self.now.load().tls.clone()
    }

    /// Headers that every answer carries.
    pub(crate) fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        self.now.load().headers.clone()
    }

    /// False when there are too many requests, whoever asks.
    pub(crate) fn has_room(&self) -> bool {
        self.look();
        self.now.load().rate.is_none_or(|rate| self.bucket.take(rate.interval, rate.burst))
    }

    /// Whether a request with this `Authorization` from that address is answered.
    pub(crate) async fn judge(&self, authorization: Option<&HeaderValue>, from: IpAddr) -> Verdict {
        let now = self.now.load_full();
        self.users.judge(&now.users, authorization, from).await
    }

    /// Reads again what has changed.
    fn look(&self) {
        let Some(file) = &self.file else { return };
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.at.elapsed() < LOOK_EVERY {
            return;
        }
        looked.at = Instant::now();
        let before = self.now.load();
        // From before anything is read: what changes meanwhile is seen at the next look.
        let print = print(&before.files);
        let stands_still = print == std::mem::replace(&mut looked.seen, print.clone());
        if print == looked.print && looked.trouble.is_none() || !stands_still {
            return;
        }
        let again = load(file).map_err(|error| error.to_string()).and_then(|again| {
            let refused = |what| format!("{}: {what} with a restart only", file.display());
            before.may_become(&again).map_err(refused)?;
            Ok(again)
        });
        match again {
            Ok(again) => {
                info!("{}: read again, with what it names", file.display());
                // Of other files nothing was seen yet, so they are read once more.
                looked.print = if again.files == before.files { print } else { Print::new() };
                looked.trouble = None;
                drop(before);
                self.now.store(Arc::new(again));
            }
            Err(trouble) => {
                if looked.trouble.as_ref() != Some(&trouble) {
                    warn!("{trouble}; what was read before goes on");
                }
                // Tried again at each look: what it names may come later.
                looked.trouble = Some(trouble);
            }
        }
    }
}

impl Loaded {
    /// What may not change under a running program: a file that was cut short would look the same.
    fn may_become(&self, again: &Self) -> Result<(), &'static str> {
        if again.tls.is_some() != self.tls.is_some() {
            Err("TLS begins or ends")
        } else if !self.users.is_empty() && again.users.is_empty() {
            Err("that nobody is asked for a password begins")
        } else if self.verifies && !again.verifies {
            Err("that nobody is asked for a certificate begins")
        } else {
            Ok(())
        }
    }

    fn is_guarded(&self) -> bool {
        !self.users.is_empty() || self.verifies
    }
}

fn print(files: &[PathBuf]) -> Print {
    let one = |file: &PathBuf| {
        let meta = fs::metadata(file).ok()?;
        Some((meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()))
    };
    files.iter().map(one).collect()
}

fn load(path: &Path) -> Result<Loaded, WebError> {
    let wrong = |why: String| WebError { file: path.to_owned(), why };
    let text = crate::file::read_whole(path, file::MAX).map_err(|error| wrong(error.to_string()))?;
    let file: File = parse_file(&text).map_err(wrong)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut files = vec![path.to_owned()];
    let tls = match &file.tls_server_config {
        Some(settings) => {
            let (config, named) =
                tls::config(settings, dir).map_err(|why| wrong(format!("tls_server_config: {why}")))?;
            files.extend(named);
            Some(TlsAcceptor::from(config))
        }
        None => None,
    };
    let verifies =
        file.tls_server_config.as_ref().is_some_and(|tls| tls.client_auth_type == "RequireAndVerifyClientCert");
    Ok(Loaded { verifies, tls, headers: file.headers, users: file.users, rate: file.rate, files })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<Arc<Web>, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.yml");
        fs::write(&file, text).unwrap();
        Web::open(Some(&file)).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_opens_every_door_and_a_wrong_one_none() {
        assert_eq!(open("").unwrap().scheme(), "http");
        for nothing in [
            "{}",
            "basic_auth_users:\nhttp_server_config:\n",
            "tls_server_config: {min_version: TLS13}",
            "rate_limit: {interval: 0, burst: 0}",
        ] {
            let web = open(nothing).unwrap();
            assert!(web.scheme() == "http" && !web.is_guarded(), "{nothing}");
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
            let error = open(text).err().unwrap_or_else(|| panic!("{text} was taken"));
            assert!(error.contains(word) && !error.contains("secret"), "{text}: {error}");
        }
        assert!(Web::open(Some(Path::new("/nowhere/web.yml"))).is_err());
    }

    #[test]
    fn what_makes_no_sense_later_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.yml");
        fs::write(&file, "http_server_config: {headers: {X-Frame-Options: deny}}").unwrap();
        let web = Web::open(Some(&file)).unwrap();
        let shown = |web: &Web| {
            // Seen, and seen to stand still.
            for _ in 0..2 {
                web.looked.lock().unwrap().at = Instant::now() - LOOK_EVERY;
                web.look();
            }
            web.headers().first().map(|(_, value)| value.to_str().unwrap().to_owned())
        };
        assert_eq!(shown(&web).as_deref(), Some("deny"));
        fs::write(&file, "http_server_config: {hea").unwrap();
        assert_eq!(shown(&web).as_deref(), Some("deny"));
        fs::remove_file(&file).unwrap();
        assert_eq!(shown(&web).as_deref(), Some("deny"));
        assert!(web.looked.lock().unwrap().trouble.is_some());
        fs::write(&file, "http_server_config: {headers: {X-Frame-Options: sameorigin}}").unwrap();
        assert_eq!(shown(&web).as_deref(), Some("sameorigin"));
    }

    #[test]
    fn a_file_that_was_cut_short_opens_no_door() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.yml");
        let whole = "basic_auth_users: {me: $2b$10$DOWSDz/CyKaJ40hslrk5fe5i2XZGGcHW2eIJ0gGqPZPkbmIsAdxX2}";
        fs::write(&file, whole).unwrap();
        let web = Web::open(Some(&file)).unwrap();
        for cut in ["", "{}", "basic_auth_users:\n"] {
            fs::write(&file, cut).unwrap();
            for _ in 0..3 {
                web.looked.lock().unwrap().at = Instant::now() - LOOK_EVERY;
                web.look();
                assert!(web.is_guarded(), "{cut:?}");
            }
        }
    }

    #[test]
    fn a_file_that_was_cut_short_asks_for_no_less() {
        let loaded = |users: bool, verifies| {
            let user = ("me".to_owned(), String::new());
            Loaded { users: users.then_some(user).into_iter().collect(), verifies, ..Loaded::default() }
        };
        for (before, after, wanted) in [
            ((true, true), (true, false), false),
            ((true, true), (false, true), false),
            ((false, true), (true, false), false),
            ((true, true), (true, true), true),
            ((false, false), (true, true), true),
            ((true, false), (true, true), true),
        ] {
            let (before, after) = (loaded(before.0, before.1), loaded(after.0, after.1));
            assert_eq!(before.may_become(&after).is_ok(), wanted);
        }
    }

    #[test]
    fn what_it_names_may_come_later() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.yml");
        fs::write(&file, "http_server_config: {headers: {X-Frame-Options: deny}}").unwrap();
        let web = Web::open(Some(&file)).unwrap();
        let look = || {
            web.looked.lock().unwrap().at = Instant::now() - LOOK_EVERY;
            web.look();
        };
        // TLS cannot begin, so this is refused for as long as it stands there, and tried again at each look.
        fs::write(&file, "tls_server_config: {cert_file: a, key_file: b}").unwrap();
        (0..3).for_each(|_| look());
        let trouble = |web: &Web| web.looked.lock().unwrap().trouble.clone().unwrap_or_default();
        assert!(trouble(&web).contains("a: No such file"), "{}", trouble(&web));
        fs::write(dir.path().join("a"), "x").unwrap();
        (0..3).for_each(|_| look());
        assert!(trouble(&web).contains("no certificate"), "{}", trouble(&web));
    }
}
