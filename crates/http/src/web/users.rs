//! Basic authentication (RFC 7617) against bcrypt hashes.
//!
//! A bcrypt check takes about 70 ms of CPU time by design, so results are cached under a salted
//! digest that has no value outside this process. Unknown credentials are checked one at a time and
//! always to the end, even if the peer disconnects; the queue is limited in total and per address.
//! Guessing therefore takes at most one CPU, and blocks neither peers with cached credentials nor
//! peers at other addresses.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::http::HeaderValue;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::file;

/// The result of authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthResult {
    /// The request is allowed.
    Allowed,
    /// The user is unknown, or the password missing or wrong.
    Unauthorized,
    /// Too many password checks are waiting.
    TooMany,
}

/// Maximum size of the caches of accepted and of rejected credentials, which are cleared when they
/// are full.
const MAX_CACHED: usize = 128;
/// Maximum number of different credentials that wait for their check: of one address, and of all.
const MAX_WAITING: (usize, usize) = (2, 64);
/// Salt and digest of an unknown password. Names of unknown users are checked against it, so that
/// the response time does not reveal which users exist.
const DUMMY_HASH: &str = "DOWSDz/CyKaJ40hslrk5fe5i2XZGGcHW2eIJ0gGqPZPkbmIsAdxX2";

/// Salted SHA-256 of credentials.
type CredentialDigest = [u8; 32];

#[derive(Default)]
struct AuthCache {
    accepted: HashSet<CredentialDigest>,
    rejected: HashSet<CredentialDigest>,
    /// For each address the credentials that wait for their check, with the number of waiting
    /// requests.
    waiting: HashMap<IpAddr, HashMap<CredentialDigest, usize>>,
}

/// Checks credentials and caches the results.
pub(super) struct Authenticator {
    salt: [u8; 32],
    cache: Arc<Mutex<AuthCache>>,
    check: Arc<Semaphore>,
}

impl Authenticator {
    pub(super) fn new() -> Self {
        let mut salt = [0; 32];
        // A failure leaves the salt empty. That only weakens the digests in a dump of this
        // process's memory, which contains passwords anyway.
        let _ = getrandom::fill(&mut salt);
        Self { salt, cache: Arc::default(), check: Arc::new(Semaphore::new(1)) }
    }

    /// Authenticates a request from `from` with this `Authorization` header against `users`.
    pub(super) async fn authenticate(
        &self,
        users: &file::Users,
        authorization: Option<&HeaderValue>,
        from: IpAddr,
    ) -> AuthResult {
        if users.is_empty() {
            return AuthResult::Allowed;
        }
        let Some((name, password)) = authorization.and_then(credentials) else { return AuthResult::Unauthorized };
        let hash = users.get(&name);
        let digest = self.digest(&name, hash.map_or("", |hash| hash), &password);
        if let Some(result) = self.cached(&digest) {
            return result;
        }
        let Some(slot) = QueueSlot::enter(&self.cache, from, digest) else { return AuthResult::TooMany };
        // The semaphore is never closed.
        let Ok(permit) = self.check.clone().acquire_owned().await else { return AuthResult::TooMany };
        // Another request with the same credentials may have been checked meanwhile.
        if let Some(result) = self.cached(&digest) {
            return result;
        }
        let max = max_cost(users);
        let (is_user, hash) = (hash.is_some(), hash.cloned().unwrap_or_else(|| dummy_hash(max)));
        let cache = self.cache.clone();
        let checked = tokio::task::spawn_blocking(move || {
            // Held until the check is complete: a peer that disconnects does not start another
            // check earlier.
            let (_permit, _slot) = (permit, slot);
            let is_right = bcrypt::verify(&password, &hash).unwrap_or(false) && is_user;
            for cost in padding_costs(&hash, max) {
                let _ = bcrypt::verify(&password, &dummy_hash(cost));
            }
            let mut cache = lock(&cache);
            let results = if is_right { &mut cache.accepted } else { &mut cache.rejected };
            if results.len() >= MAX_CACHED {
                results.clear();
            }
            results.insert(digest);
            is_right
        });
        if checked.await.unwrap_or(false) { AuthResult::Allowed } else { AuthResult::Unauthorized }
    }

    fn cached(&self, digest: &CredentialDigest) -> Option<AuthResult> {
        let cache = lock(&self.cache);
        if cache.accepted.contains(digest) {
            Some(AuthResult::Allowed)
        } else {
            cache.rejected.contains(digest).then_some(AuthResult::Unauthorized)
        }
    }

    /// The digest of name, hash and password together, so that a changed hash invalidates cached
    /// results.
    fn digest(&self, name: &str, hash: &str, password: &[u8]) -> CredentialDigest {
        let mut digest = Sha256::new();
        digest.update(self.salt);
        for part in [name.as_bytes(), hash.as_bytes(), password] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }
}

/// A slot of the queue of checks. It is freed when the check is complete, or when the request ends
/// before its check begins.
struct QueueSlot {
    cache: Arc<Mutex<AuthCache>>,
    from: IpAddr,
    digest: CredentialDigest,
}

impl QueueSlot {
    /// Enters the queue; `None` if it is full. Requests with equal credentials of one address share
    /// a slot, because all scrapers of a host have the same address.
    fn enter(cache: &Arc<Mutex<AuthCache>>, from: IpAddr, digest: CredentialDigest) -> Option<Self> {
        let mut state = lock(cache);
        let total: usize = state.waiting.values().map(HashMap::len).sum();
        let of_address = state.waiting.entry(from).or_default();
        let is_full = total >= MAX_WAITING.1 || of_address.len() >= MAX_WAITING.0;
        if !of_address.contains_key(&digest) && is_full {
            if of_address.is_empty() {
                state.waiting.remove(&from);
            }
            return None;
        }
        *of_address.entry(digest).or_default() += 1;
        Some(Self { cache: cache.clone(), from, digest })
    }
}

impl Drop for QueueSlot {
    fn drop(&mut self) {
        let mut state = lock(&self.cache);
        let Some(of_address) = state.waiting.get_mut(&self.from) else { return };
        if let Some(count) = of_address.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                of_address.remove(&self.digest);
            }
        }
        if of_address.is_empty() {
            state.waiting.remove(&self.from);
        }
    }
}

/// The cost of a bcrypt hash; `None` if it is none. Each step of the cost doubles the work.
fn hash_cost(hash: &str) -> Option<u32> {
    hash.parse::<bcrypt::HashParts>().ok().map(|parts| parts.get_cost())
}

/// The highest cost of all users.
fn max_cost(users: &file::Users) -> u32 {
    users.values().filter_map(|hash| hash_cost(hash)).max().unwrap_or(bcrypt::DEFAULT_COST)
}

/// A hash of this cost that no known password has.
fn dummy_hash(cost: u32) -> String {
    format!("$2b${cost:02}${DUMMY_HASH}")
}

/// The costs of the checks after that of `hash` that make up for a lower cost than `max`: a check
/// of cost c is 2^c of work, and 2^c + 2^c + 2^(c+1) + … + 2^(max-1) = 2^max. So the response time
/// reveals neither whether the user exists nor the cost of the hash.
fn padding_costs(hash: &str, max: u32) -> std::ops::Range<u32> {
    hash_cost(hash).unwrap_or(max)..max
}

fn lock(cache: &Mutex<AuthCache>) -> MutexGuard<'_, AuthCache> {
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}

fn credentials(header: &HeaderValue) -> Option<(String, Vec<u8>)> {
    let (scheme, rest) = header.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let both = BASE64_STANDARD.decode(rest.trim()).ok()?;
    let colon = both.iter().position(|byte| *byte == b':')?;
    Some((String::from_utf8(both[..colon].to_vec()).ok()?, both[colon + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        pin::Pin,
        task::{Context, Waker},
        time::Duration,
    };

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn header(name: &str, password: &str) -> HeaderValue {
        HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")))).unwrap()
    }

    async fn check(authenticator: &Authenticator, users: &file::Users, name: &str, password: &str) -> AuthResult {
        authenticator.authenticate(users, Some(&header(name, password)), HERE).await
    }

    fn is_pending(request: &mut Pin<Box<impl Future>>) -> bool {
        request.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    #[tokio::test]
    async fn only_the_right_password_is_accepted() {
        let hash = bcrypt::hash("right:colon", 4).unwrap();
        let (users, authenticator) = (file::Users::from([("me".to_owned(), hash)]), Authenticator::new());
        for _ in 0..2 {
            assert_eq!(check(&authenticator, &users, "me", "right:colon").await, AuthResult::Allowed);
            assert_eq!(check(&authenticator, &users, "me", "wrong").await, AuthResult::Unauthorized);
            assert_eq!(check(&authenticator, &users, "you", "right:colon").await, AuthResult::Unauthorized);
        }
        let cached = |authenticator: &Authenticator| {
            let cache = lock(&authenticator.cache);
            (cache.accepted.len(), cache.rejected.len())
        };
        assert_eq!(cached(&authenticator), (1, 2), "each is checked once");
        assert_eq!(authenticator.authenticate(&users, None, HERE).await, AuthResult::Unauthorized);
        let bearer = HeaderValue::from_static("Bearer x");
        assert_eq!(authenticator.authenticate(&users, Some(&bearer), HERE).await, AuthResult::Unauthorized);
        let other = file::Users::from([("me".to_owned(), bcrypt::hash("new", 4).unwrap())]);
        assert_eq!(
            check(&authenticator, &other, "me", "right:colon").await,
            AuthResult::Unauthorized,
            "the hash has changed"
        );
        assert_eq!(
            authenticator.authenticate(&file::Users::new(), None, HERE).await,
            AuthResult::Allowed,
            "no passwords configured"
        );
    }

    #[tokio::test]
    async fn requests_with_equal_credentials_share_one_check() {
        let users = file::Users::from([("me".to_owned(), bcrypt::hash("right", 8).unwrap())]);
        let authenticator = Authenticator::new();
        let mut scrapers: Vec<_> = (0..6).map(|_| Box::pin(check(&authenticator, &users, "me", "right"))).collect();
        assert!(scrapers.iter_mut().all(is_pending), "none of them is rejected");
        for scraper in scrapers {
            assert_eq!(scraper.await, AuthResult::Allowed);
        }
        assert!(lock(&authenticator.cache).waiting.is_empty());
    }

    #[tokio::test]
    async fn guesses_do_not_block_cached_users_or_other_peers() {
        let hash = bcrypt::hash("right", 4).unwrap();
        let (users, authenticator) = (file::Users::from([("me".to_owned(), hash)]), Authenticator::new());
        assert_eq!(check(&authenticator, &users, "me", "right").await, AuthResult::Allowed);
        let permit = authenticator.check.clone().acquire_owned().await.unwrap();
        let headers: Vec<_> = (0..=MAX_WAITING.0).map(|number| header("me", &number.to_string())).collect();
        let mut guesses: Vec<_> =
            headers.iter().map(|header| Box::pin(authenticator.authenticate(&users, Some(header), HERE))).collect();
        let last = guesses.pop().unwrap();
        assert!(guesses.iter_mut().all(is_pending));
        assert_eq!(last.await, AuthResult::TooMany);
        assert_eq!(
            check(&authenticator, &users, "me", "right").await,
            AuthResult::Allowed,
            "cached, so it does not wait"
        );
        let elsewhere = header("me", "x");
        let mut other =
            Box::pin(authenticator.authenticate(&users, Some(&elsewhere), IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))));
        assert!(is_pending(&mut other), "another address has its own slots");
        drop((guesses, permit));
        assert_eq!(other.await, AuthResult::Unauthorized);
        assert!(lock(&authenticator.cache).waiting.is_empty());
    }

    #[tokio::test]
    async fn check_continues_after_a_disconnect() {
        // A cost that takes a few milliseconds.
        let hash = bcrypt::hash("right", 9).unwrap();
        let (users, authenticator) = (file::Users::from([("me".to_owned(), hash)]), Authenticator::new());
        let guess = header("me", "guess");
        let mut request = Box::pin(authenticator.authenticate(&users, Some(&guess), HERE));
        assert!(is_pending(&mut request));
        drop(request);
        assert_eq!(authenticator.check.available_permits(), 0, "the check continues, and no other one starts");
        while lock(&authenticator.cache).rejected.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(authenticator.check.acquire().await.unwrap());
        assert!(lock(&authenticator.cache).waiting.is_empty());
    }

    #[test]
    fn dummy_hash_has_the_highest_cost() {
        let hash = |cost| bcrypt::hash("x", cost).unwrap();
        let users = file::Users::from([("a".to_owned(), hash(4)), ("b".to_owned(), hash(5))]);
        let dummy = dummy_hash(max_cost(&users));
        let parts: bcrypt::HashParts = dummy.parse().unwrap();
        assert_eq!(parts.get_cost(), 5);
        assert!(bcrypt::verify("anything", &dummy).is_ok());
    }

    /// With hashes of different costs, the time of a refusal showed which users exist.
    #[test]
    fn every_check_takes_the_work_of_the_highest_cost() {
        let with_cost = |cost: u32| format!("$2b${cost:02}${DUMMY_HASH}");
        let costs = [4, 5, 9, 12];
        let users: file::Users = costs.iter().map(|cost| (format!("user {cost}"), with_cost(*cost))).collect();
        let max = max_cost(&users);
        let work = |hash: &str| {
            let own = 1u64 << hash_cost(hash).unwrap();
            own + padding_costs(hash, max).map(|cost| 1u64 << cost).sum::<u64>()
        };
        assert_eq!(work(&dummy_hash(max)), 1 << 12, "an unknown user");
        for hash in users.values() {
            assert_eq!(work(hash), 1 << 12, "{hash}");
        }
    }
}
