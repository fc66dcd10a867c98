//! Basic auth (RFC 7617) against bcrypt hashes. A check takes some 70 ms of CPU by design, so what was found is kept, under a digest that is worth
//! nothing outside of this process. Guesses are checked one at a time, to the end, whether somebody still waits for the answer or not; and only so many wait, of each address
//! few, so that they take one CPU at most and do not keep out whose password is known, or who comes from elsewhere.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::http::HeaderValue;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::{Verdict, file};

/// Right passwords that are kept, and wrong ones; more make room by being forgotten.
const KEPT: usize = 128;
/// Guesses that may wait for their check: of one address, and of all.
const MOST_WAITING: (usize, usize) = (2, 64);
/// Salt and digest of a password that nobody has: who is no user waits as long as who is one.
const NOBODY: &str = "DOWSDz/CyKaJ40hslrk5fe5i2XZGGcHW2eIJ0gGqPZPkbmIsAdxX2";

type Mark = [u8; 32];

#[derive(Default)]
struct Known {
    right: HashSet<Mark>,
    wrong: HashSet<Mark>,
    /// Guesses that wait, by address, and how many wait for each.
    waiting: HashMap<IpAddr, HashMap<Mark, usize>>,
}

/// What is known of passwords.
pub(super) struct Users {
    salt: Mark,
    known: Arc<Mutex<Known>>,
    turn: Arc<Semaphore>,
}

impl Users {
    pub(super) fn new() -> Self {
        let mut salt = Mark::default();
        // Without randomness digests would be guessable; an empty salt only shows in a dump of our own memory, where passwords pass anyway.
        let _ = getrandom::fill(&mut salt);
        Self { salt, known: Arc::default(), turn: Arc::new(Semaphore::new(1)) }
    }

    /// Whether these users let somebody from that address in with that header.
    pub(super) async fn judge(
        &self,
        users: &file::Users,
        authorization: Option<&HeaderValue>,
        from: IpAddr,
    ) -> Verdict {
        if users.is_empty() {
            return Verdict::Welcome;
        }
        let Some((name, password)) = authorization.and_then(credentials) else { return Verdict::Unauthorized };
        let hash = users.get(&name);
        let mark = self.mark(&name, hash.map_or("", |hash| hash), &password);
        if let Some(verdict) = self.remembered(&mark) {
            return verdict;
        }
        let Some(waiting) = Waiting::enter(&self.known, from, mark) else { return Verdict::TooMany };
        // Never closed.
        let Ok(turn) = self.turn.clone().acquire_owned().await else { return Verdict::TooMany };
        // Whoever waited behind the same guess knows by now.
        if let Some(verdict) = self.remembered(&mark) {
            return verdict;
        }
        let (is_user, hash) = (hash.is_some(), hash.cloned().unwrap_or_else(|| nobody(users)));
        let known = self.known.clone();
        let checked = tokio::task::spawn_blocking(move || {
            // Held until the work is done: who hangs up meanwhile gets no other turn by it.
            let (_turn, _waiting) = (turn, waiting);
            let right = bcrypt::verify(password, &hash).unwrap_or(false) && is_user;
            let mut known = lock(&known);
            let kept = if right { &mut known.right } else { &mut known.wrong };
            if kept.len() >= KEPT {
                kept.clear();
            }
            kept.insert(mark);
            right
        });
        verdict(checked.await.unwrap_or(false))
    }

    fn remembered(&self, mark: &Mark) -> Option<Verdict> {
        let known = lock(&self.known);
        if known.right.contains(mark) {
            Some(Verdict::Welcome)
        } else {
            known.wrong.contains(mark).then_some(Verdict::Unauthorized)
        }
    }

    /// Of name, hash and password together: with another hash for the same name everything is checked anew.
    fn mark(&self, name: &str, hash: &str, password: &[u8]) -> Mark {
        let mut digest = Sha256::new();
        digest.update(self.salt);
        for part in [name.as_bytes(), hash.as_bytes(), password] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }
}

/// A place among those who wait; given back when the check is done, or nobody waits for it before it begins.
struct Waiting {
    known: Arc<Mutex<Known>>,
    from: IpAddr,
    mark: Mark,
}

impl Waiting {
    /// Whoever brings what somebody waits for already waits for the same check, and takes no place: scrapers of one host all come from one address.
    fn enter(known: &Arc<Mutex<Known>>, from: IpAddr, mark: Mark) -> Option<Self> {
        let mut all = lock(known);
        let guesses: usize = all.waiting.values().map(HashMap::len).sum();
        let own = all.waiting.entry(from).or_default();
        if !own.contains_key(&mark) && (guesses >= MOST_WAITING.1 || own.len() >= MOST_WAITING.0) {
            if own.is_empty() {
                all.waiting.remove(&from);
            }
            return None;
        }
        *own.entry(mark).or_default() += 1;
        Some(Self { known: known.clone(), from, mark })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut all = lock(&self.known);
        let Some(own) = all.waiting.get_mut(&self.from) else { return };
        if let Some(count) = own.get_mut(&self.mark) {
            *count -= 1;
            if *count == 0 {
                own.remove(&self.mark);
            }
        }
        if own.is_empty() {
            all.waiting.remove(&self.from);
        }
    }
}

/// A hash that takes as long as the slowest of these.
fn nobody(users: &file::Users) -> String {
    let cost = |hash: &String| hash.parse::<bcrypt::HashParts>().ok().map(|parts| parts.get_cost());
    format!("$2b${:02}${NOBODY}", users.values().filter_map(cost).max().unwrap_or(bcrypt::DEFAULT_COST))
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

fn verdict(right: bool) -> Verdict {
    if right { Verdict::Welcome } else { Verdict::Unauthorized }
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

    async fn judge(all: &Users, users: &file::Users, name: &str, password: &str) -> Verdict {
        all.judge(users, Some(&header(name, password)), HERE).await
    }

    fn waits(guess: &mut Pin<Box<impl Future>>) -> bool {
        guess.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    #[tokio::test]
    async fn who_knows_the_password_comes_in() {
        let hash = bcrypt::hash("right:colon", 4).unwrap();
        let (users, all) = (file::Users::from([("me".to_owned(), hash)]), Users::new());
        for _ in 0..2 {
            assert_eq!(judge(&all, &users, "me", "right:colon").await, Verdict::Welcome);
            assert_eq!(judge(&all, &users, "me", "wrong").await, Verdict::Unauthorized);
            assert_eq!(judge(&all, &users, "you", "right:colon").await, Verdict::Unauthorized);
        }
        let known = |all: &Users| {
            let known = lock(&all.known);
            (known.right.len(), known.wrong.len())
        };
        assert_eq!(known(&all), (1, 2), "each is checked once");
        assert_eq!(all.judge(&users, None, HERE).await, Verdict::Unauthorized);
        let bearer = HeaderValue::from_static("Bearer x");
        assert_eq!(all.judge(&users, Some(&bearer), HERE).await, Verdict::Unauthorized);
        let other = file::Users::from([("me".to_owned(), bcrypt::hash("new", 4).unwrap())]);
        assert_eq!(judge(&all, &other, "me", "right:colon").await, Verdict::Unauthorized, "it changed");
        assert_eq!(all.judge(&file::Users::new(), None, HERE).await, Verdict::Welcome, "nobody asks for one");
    }

    #[tokio::test]
    async fn all_who_bring_the_same_wait_for_one_check() {
        let users = file::Users::from([("me".to_owned(), bcrypt::hash("right", 8).unwrap())]);
        let all = Users::new();
        let mut scrapers: Vec<_> = (0..6).map(|_| Box::pin(judge(&all, &users, "me", "right"))).collect();
        assert!(scrapers.iter_mut().all(waits), "none of them is turned away");
        for scraper in scrapers {
            assert_eq!(scraper.await, Verdict::Welcome);
        }
        assert!(lock(&all.known).waiting.is_empty());
    }

    #[tokio::test]
    async fn guesses_are_bounded_and_keep_nobody_out_who_is_known_or_elsewhere() {
        let hash = bcrypt::hash("right", 4).unwrap();
        let (users, all) = (file::Users::from([("me".to_owned(), hash)]), Users::new());
        assert_eq!(judge(&all, &users, "me", "right").await, Verdict::Welcome);
        let turn = all.turn.clone().acquire_owned().await.unwrap();
        let headers: Vec<_> = (0..=MOST_WAITING.0).map(|number| header("me", &number.to_string())).collect();
        let mut guesses: Vec<_> =
            headers.iter().map(|header| Box::pin(all.judge(&users, Some(header), HERE))).collect();
        let last = guesses.pop().unwrap();
        assert!(guesses.iter_mut().all(waits));
        assert_eq!(last.await, Verdict::TooMany);
        assert_eq!(judge(&all, &users, "me", "right").await, Verdict::Welcome, "not behind them");
        let elsewhere = header("me", "x");
        let mut other = Box::pin(all.judge(&users, Some(&elsewhere), IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))));
        assert!(waits(&mut other), "another address has a place of its own");
        drop((guesses, turn));
        assert_eq!(other.await, Verdict::Unauthorized);
        assert!(lock(&all.known).waiting.is_empty());
    }

    #[tokio::test]
    async fn who_hangs_up_has_had_the_turn_all_the_same() {
        // A cost that takes a moment.
        let hash = bcrypt::hash("right", 9).unwrap();
        let (users, all) = (file::Users::from([("me".to_owned(), hash)]), Users::new());
        let guess = header("me", "guess");
        let mut judged = Box::pin(all.judge(&users, Some(&guess), HERE));
        assert!(waits(&mut judged));
        drop(judged);
        assert_eq!(all.turn.available_permits(), 0, "the check goes on, and nobody else's begins");
        while lock(&all.known).wrong.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(all.turn.acquire().await.unwrap());
        assert!(lock(&all.known).waiting.is_empty());
    }

    #[test]
    fn nobody_takes_as_long_as_the_slowest() {
        let hash = |cost| bcrypt::hash("x", cost).unwrap();
        let users = file::Users::from([("a".to_owned(), hash(4)), ("b".to_owned(), hash(5))]);
        let parts: bcrypt::HashParts = nobody(&users).parse().unwrap();
        assert_eq!(parts.get_cost(), 5);
        assert!(bcrypt::verify("anything", &nobody(&users)).is_ok());
    }
}
