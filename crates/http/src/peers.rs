//! The connections of a listener, and which one is evicted at the limit: first the one that has
//! been idle longest, then one whose request has stalled, then one that reads its response slowly.
//!
//! A scraper sends its request as soon as it is connected and reads its response, so other
//! connections cannot block it.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// A peer that takes longer to read its response may be evicted. A response takes milliseconds in a
/// data centre.
const SLOW_RESPONSE: Duration = Duration::from_millis(250);
/// A new connection has this long to send a request, TLS handshake included.
const NEW_GRACE: Duration = Duration::from_millis(50);
/// A new connection ranks as if it were this much younger than an idle one: it loses its request,
/// an idle one nothing.
const NEW_BONUS: Duration = Duration::from_secs(1);
/// A request whose body is silent for this long has stalled; ffmpeg reports progress twice a
/// second.
const STALLED_REQUEST: Duration = Duration::from_secs(2);
/// Interval of checks for peers that may be evicted, while a connection waits for a slot.
const RECHECK_INTERVAL: Duration = Duration::from_millis(10);

/// The phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Before the first request, TLS handshake included.
    New,
    /// Between a response and the next request. An eviction loses nothing.
    Idle,
    /// A request is being received or processed; the body of a progress report can take hours. The
    /// phase counts from the last data received.
    Processing,
    /// A response is being sent.
    Responding,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) from: IpAddr,
    /// All connections of the listener.
    pub(crate) peers: Weak<Peers>,
    /// Counts the request until its response was sent.
    in_flight: Mutex<Option<InFlight>>,
    phase: Mutex<(Phase, Instant)>,
    is_evicted: AtomicBool,
    eviction: Notify,
}

impl Peer {
    pub(crate) fn set_phase(&self, phase: Phase) {
        *lock(&self.phase) = (phase, Instant::now());
    }

    /// Records that data of a request arrived.
    pub(crate) fn received(&self) {
        let mut phase = lock(&self.phase);
        if phase.0 == Phase::Processing {
            phase.1 = Instant::now();
        }
    }

    /// Keeps `in_flight` until the response was sent or the connection has ended.
    pub(crate) fn hold_until_sent(&self, in_flight: InFlight) {
        *lock(&self.in_flight) = Some(in_flight);
    }

    /// Records that the response was sent.
    pub(crate) fn sent(&self) {
        let mut phase = lock(&self.phase);
        if phase.0 == Phase::Responding {
            *phase = (Phase::Idle, Instant::now());
            drop(lock(&self.in_flight).take());
        }
    }

    /// Completes when the connection is evicted.
    pub(crate) async fn evicted(&self) {
        self.eviction.notified().await;
    }
}

/// Counts one concurrent request until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    /// Counts a request; also returns the new number of concurrent requests.
    pub(crate) fn new(count: &Arc<AtomicUsize>) -> (Self, usize) {
        let now = count.fetch_add(1, Ordering::Relaxed) + 1;
        (Self(count.clone()), now)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The listeners of this process.
static LISTENERS: Mutex<Vec<Weak<Peers>>> = Mutex::new(Vec::new());

/// All connections of a listener.
#[derive(Debug)]
pub(crate) struct Peers {
    max_connections: usize,
    all: Mutex<Vec<Arc<Peer>>>,
    removed: Notify,
}

impl Peers {
    pub(crate) fn new(max_connections: usize) -> Arc<Self> {
        let peers =
            Arc::new(Self { max_connections: max_connections.max(1), all: Mutex::default(), removed: Notify::new() });
        let mut listeners = lock(&LISTENERS);
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(Arc::downgrade(&peers));
        peers
    }

    /// Waits for a free slot, and evicts connections at the limit. Returns the number of evictions.
    pub(crate) async fn wait_for_slot(&self) -> u64 {
        let mut evictions = 0;
        loop {
            let removed = self.removed.notified();
            if lock(&self.all).len() < self.max_connections {
                return evictions;
            }
            evictions += u64::from(self.evict_one(Instant::now()));
            let _ = tokio::time::timeout(RECHECK_INTERVAL, removed).await;
        }
    }

    /// Evicts the least important connection; false if none may be evicted, or an eviction has not
    /// completed yet.
    pub(crate) fn evict_one(&self, now: Instant) -> bool {
        evict_allowed(&lock(&self.all), now)
    }

    /// Evicts the least important connection of all listeners: descriptors belong to the process,
    /// and the listener that lacks one may have no connection itself. False as for
    /// [`Self::evict_one`].
    pub(crate) fn evict_one_of_any_listener(now: Instant) -> bool {
        let listeners: Vec<Arc<Self>> = lock(&LISTENERS).iter().filter_map(Weak::upgrade).collect();
        Self::evict_one_of(&listeners, now)
    }

    fn evict_one_of(listeners: &[Arc<Self>], now: Instant) -> bool {
        let all: Vec<Arc<Peer>> = listeners.iter().flat_map(|peers| lock(&peers.all).clone()).collect();
        evict_allowed(&all, now)
    }

    /// Evicts the connection that has read its response for longest; false if none is slow.
    pub(crate) fn evict_slow(&self, now: Instant) -> bool {
        evict(&lock(&self.all), |phase, duration| phase == Phase::Responding && duration > SLOW_RESPONSE, now)
    }

    /// Adds a connection; [`Peers::wait_for_slot`] keeps the limit.
    pub(crate) fn add(self: &Arc<Self>, from: IpAddr) -> ConnectionSlot {
        let peer = Arc::new(Peer {
            from,
            peers: Arc::downgrade(self),
            in_flight: Mutex::default(),
            phase: Mutex::new((Phase::New, Instant::now())),
            is_evicted: AtomicBool::new(false),
            eviction: Notify::new(),
        });
        lock(&self.all).push(peer.clone());
        ConnectionSlot { peers: self.clone(), peer }
    }
}

/// Evicts the least important connection; false if none may be evicted, or an eviction has not
/// completed yet.
fn evict_allowed(all: &[Arc<Peer>], now: Instant) -> bool {
    if all.iter().any(|peer| peer.is_evicted.load(Ordering::Relaxed)) {
        return false;
    }
    evict(
        all,
        |phase, duration| match phase {
            Phase::Idle => true,
            Phase::New => duration > NEW_GRACE,
            Phase::Responding => duration > SLOW_RESPONSE,
            Phase::Processing => duration > STALLED_REQUEST,
        },
        now,
    )
}

/// Evicts the least important connection among those that `may_evict` allows by phase and its
/// duration.
fn evict(all: &[Arc<Peer>], may_evict: impl Fn(Phase, Duration) -> bool, now: Instant) -> bool {
    let candidates =
        all.iter().filter(|peer| !peer.is_evicted.load(Ordering::Relaxed)).map(|peer| (*lock(&peer.phase), peer));
    let least_important = candidates
        .filter(|((phase, since), _)| may_evict(*phase, now.saturating_duration_since(*since)))
        .min_by_key(|((phase, since), _)| (rank(*phase), *since + bonus(*phase)));
    let Some((_, peer)) = least_important else { return false };
    peer.is_evicted.store(true, Ordering::Relaxed);
    peer.eviction.notify_one();
    true
}

fn rank(phase: Phase) -> u8 {
    match phase {
        Phase::New | Phase::Idle => 0,
        Phase::Processing => 1,
        Phase::Responding => 2,
    }
}

fn bonus(phase: Phase) -> Duration {
    if phase == Phase::New { NEW_BONUS } else { Duration::ZERO }
}

/// A slot of the connection limit, occupied until it is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionSlot {
    peers: Arc<Peers>,
    pub(crate) peer: Arc<Peer>,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        lock(&self.peers.all).retain(|peer| !Arc::ptr_eq(peer, &self.peer));
        self.peers.removed.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evicted(slots: &[ConnectionSlot]) -> Vec<usize> {
        let evicted = |(_, slot): &(usize, &ConnectionSlot)| slot.peer.is_evicted.load(Ordering::Relaxed);
        slots.iter().enumerate().filter(evicted).map(|(index, _)| index).collect()
    }

    #[test]
    fn idle_connection_of_another_listener_frees_a_descriptor() {
        let (without, other) = (Peers::new(4), Peers::new(4));
        let slots: Vec<ConnectionSlot> = (0..2).map(|_| other.add(std::net::Ipv4Addr::LOCALHOST.into())).collect();
        slots[1].peer.set_phase(Phase::Idle);
        let (now, both) = (Instant::now(), [without.clone(), other]);
        assert!(!without.evict_one(now) && Peers::evict_one_of(&both, now));
        assert_eq!(evicted(&slots), [1]);
        let known = lock(&LISTENERS).iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        assert!(both.iter().all(|peers| known.iter().any(|known| Arc::ptr_eq(known, peers))));
    }

    #[test]
    fn least_important_connection_is_evicted_first() {
        let peers = Peers::new(4);
        let mut slots: Vec<ConnectionSlot> = (0..4).map(|_| peers.add(std::net::Ipv4Addr::LOCALHOST.into())).collect();
        slots[0].peer.set_phase(Phase::Responding);
        slots[1].peer.set_phase(Phase::Processing);
        let now = Instant::now();
        assert!(!peers.evict_one(now), "the two new ones have time to send a request");
        slots[3].peer.set_phase(Phase::Responding);
        slots[3].peer.sent();
        assert!(peers.evict_one(now));
        assert_eq!(evicted(&slots), [3], "an idle one, at once");
        assert!(!peers.evict_one(now + NEW_GRACE * 2), "one at a time");
        slots.remove(3);
        assert!(peers.evict_one(now + NEW_GRACE * 2));
        assert_eq!(evicted(&slots), [2]);
        slots.remove(2);
        assert!(!peers.evict_one(now), "one response has just begun, the other request is in progress");
        assert!(!peers.evict_slow(now));
        assert!(peers.evict_slow(now + SLOW_RESPONSE * 2));
        assert_eq!(evicted(&slots), [0]);
        assert!(!peers.evict_slow(now + SLOW_RESPONSE * 2), "already evicted");
        slots.remove(0);
        assert!(!peers.evict_one(now + STALLED_REQUEST / 2), "a progress report lasts as long as its stream");
        slots[0].peer.received();
        assert!(!peers.evict_one(now + STALLED_REQUEST / 2));
        assert!(peers.evict_one(Instant::now() + STALLED_REQUEST * 2), "a silent request has stalled");
        assert_eq!((evicted(&slots), lock(&peers.all).len()), (vec![0], 1));
    }
}
