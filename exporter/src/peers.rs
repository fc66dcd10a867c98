//! Who is connected, and who has to leave when there is no room: whoever has waited for longest without asking, then whoever has begun to send and stopped,
//! then whoever does not take its answer.
//! A scraper asks as soon as it is connected and takes what it gets, so no number of others keeps it out.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// An answer takes milliseconds in a machine room, and seconds over a poor line. Who takes longer leaves, but only when somebody else wants the place.
const SLOW: Duration = Duration::from_millis(250);
/// Who has only come is given time to ask, TLS included.
const NEW: Duration = Duration::from_millis(50);
/// So much longer than others it may wait before it matters less than they: who was put off between connecting and asking loses what one who rests does not.
const AHEAD: Duration = Duration::from_secs(1);
/// A request whose body brings nothing for so long has stopped, as far as others who want the place are concerned; ffmpeg reports twice a second.
const QUIET: Duration = Duration::from_secs(2);
/// How often it is seen again who has become too slow, or has had its time.
const AGAIN: Duration = Duration::from_millis(10);

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It is new, or shakes hands: it has asked nothing yet.
    New,
    /// It was answered, and asks nothing. Where it has to leave, it loses nothing.
    Resting,
    /// It asked, and the answer is being made; its body may still come, for hours where it is a stream's progress. It counts from when something came for the last time.
    Working,
    /// It is being answered.
    Answering,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) from: IpAddr,
    /// Those it is one of.
    pub(crate) peers: Weak<Peers>,
    /// What is given back when the answer has gone out.
    held: Mutex<Option<Held>>,
    phase: Mutex<(Phase, Instant)>,
    told: AtomicBool,
    leave: Notify,
}

impl Peer {
    pub(crate) fn set(&self, phase: Phase) {
        *lock(&self.phase) = (phase, Instant::now());
    }

    /// Something came.
    pub(crate) fn heard(&self) {
        let mut phase = lock(&self.phase);
        if phase.0 == Phase::Working {
            phase.1 = Instant::now();
        }
    }

    /// Keeps something until the answer has gone out, or the connection has ended.
    pub(crate) fn hold(&self, held: Held) {
        *lock(&self.held) = Some(held);
    }

    /// The answer has gone out.
    pub(crate) fn flushed(&self) {
        let mut phase = lock(&self.phase);
        if phase.0 == Phase::Answering {
            *phase = (Phase::Resting, Instant::now());
            drop(lock(&self.held).take());
        }
    }

    /// Until somebody else needs the place.
    pub(crate) async fn told_to_leave(&self) {
        self.leave.notified().await;
    }
}

/// A place among requests that are answered at once.
#[derive(Debug)]
pub(crate) struct Held(pub(crate) Arc<AtomicUsize>);

impl Held {
    /// Takes a place, and tells how many are taken now.
    pub(crate) fn take(count: &Arc<AtomicUsize>) -> (Self, usize) {
        let now = count.fetch_add(1, Ordering::Relaxed) + 1;
        (Self(count.clone()), now)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All connections of a listener.
#[derive(Debug)]
pub(crate) struct Peers {
    most: usize,
    all: Mutex<Vec<Arc<Peer>>>,
    left: Notify,
}

impl Peers {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: most.max(1), all: Mutex::default(), left: Notify::new() })
    }

    /// Waits for room. Tells somebody to leave where there is none; gives how many were told.
    pub(crate) async fn room(&self) -> u64 {
        let mut told = 0;
        loop {
            let left = self.left.notified();
            if lock(&self.all).len() < self.most {
                return told;
            }
            told += u64::from(self.tell_one(Instant::now()));
            let _ = tokio::time::timeout(AGAIN, left).await;
        }
    }

    /// Tells the one that matters least to leave; false when all matter, or one has been told and has not left yet.
    pub(crate) fn tell_one(&self, now: Instant) -> bool {
        let all = lock(&self.all);
        if all.iter().any(|peer| peer.told.load(Ordering::Relaxed)) {
            return false;
        }
        tell(
            &all,
            |phase, lasts| match phase {
                Phase::Resting => true,
                Phase::New => lasts > NEW,
                Phase::Answering => lasts > SLOW,
                Phase::Working => lasts > QUIET,
            },
            now,
        )
    }

    /// Tells the slowest of those who do not take their answers to leave; false when none is slow.
    pub(crate) fn tell_slow(&self, now: Instant) -> bool {
        tell(&lock(&self.all), |phase, lasts| phase == Phase::Answering && lasts > SLOW, now)
    }

    /// Takes a place; [`Peers::room`] says when there is one.
    pub(crate) fn enter(self: &Arc<Self>, from: IpAddr) -> Place {
        let (phase, held) = (Mutex::new((Phase::New, Instant::now())), Mutex::new(None));
        let peer = Arc::new(Peer {
            from,
            peers: Arc::downgrade(self),
            held,
            phase,
            told: AtomicBool::new(false),
            leave: Notify::new(),
        });
        lock(&self.all).push(peer.clone());
        Place { peers: self.clone(), peer }
    }
}

/// Tells the one that matters least of those that may be told, and have not been.
fn tell(all: &[Arc<Peer>], may: impl Fn(Phase, Duration) -> bool, now: Instant) -> bool {
    let standing = all.iter().filter(|peer| !peer.told.load(Ordering::Relaxed)).map(|peer| (*lock(&peer.phase), peer));
    let least = standing
        .filter(|((phase, since), _)| may(*phase, now.saturating_duration_since(*since)))
        .min_by_key(|((phase, since), _)| (rank(*phase), *since + ahead(*phase)));
    let Some((_, peer)) = least else { return false };
    peer.told.store(true, Ordering::Relaxed);
    peer.leave.notify_one();
    true
}

fn rank(phase: Phase) -> u8 {
    match phase {
        Phase::New | Phase::Resting => 0,
        Phase::Working => 1,
        Phase::Answering => 2,
    }
}

fn ahead(phase: Phase) -> Duration {
    if phase == Phase::New { AHEAD } else { Duration::ZERO }
}

/// A place that is taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    peers: Arc<Peers>,
    pub(crate) peer: Arc<Peer>,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.peers.all).retain(|peer| !Arc::ptr_eq(peer, &self.peer));
        self.peers.left.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(places: &[Place]) -> Vec<usize> {
        let told = |(_, place): &(usize, &Place)| place.peer.told.load(Ordering::Relaxed);
        places.iter().enumerate().filter(told).map(|(at, _)| at).collect()
    }

    #[test]
    fn whoever_matters_least_leaves_first() {
        let peers = Peers::new(4);
        let mut places: Vec<Place> = (0..4).map(|_| peers.enter(std::net::Ipv4Addr::LOCALHOST.into())).collect();
        places[0].peer.set(Phase::Answering);
        places[1].peer.set(Phase::Working);
        let now = Instant::now();
        assert!(!peers.tell_one(now), "the two that have only come may ask");
        places[3].peer.set(Phase::Answering);
        places[3].peer.flushed();
        assert!(peers.tell_one(now));
        assert_eq!(told(&places), [3], "whoever rests, at once");
        assert!(!peers.tell_one(now + NEW * 2), "one at a time");
        places.remove(3);
        assert!(peers.tell_one(now + NEW * 2));
        assert_eq!(told(&places), [2]);
        places.remove(2);
        assert!(!peers.tell_one(now), "its answer has only begun, and the other still works");
        assert!(!peers.tell_slow(now));
        assert!(peers.tell_slow(now + SLOW * 2));
        assert_eq!(told(&places), [0]);
        assert!(!peers.tell_slow(now + SLOW * 2), "it was told already");
        places.remove(0);
        assert!(!peers.tell_one(now + QUIET / 2), "a stream's progress lasts as long as the stream");
        places[0].peer.heard();
        assert!(!peers.tell_one(now + QUIET / 2));
        assert!(peers.tell_one(Instant::now() + QUIET * 2), "one that brings nothing has stopped");
        assert_eq!((told(&places), lock(&peers.all).len()), (vec![0], 1));
    }
}
