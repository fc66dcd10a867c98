//! Sends the requests of a queue in their order, and repeats those that a receiver cannot accept
//! now.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::{info, warn};

use crate::{
    counters::{Counters, Loss},
    endpoint::{Endpoint, Outcome},
    queue::Queue,
};

/// Time between two log lines about the same receiver.
const LOG_INTERVAL: Duration = Duration::from_secs(300);

/// Waiting times after failed requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

impl Backoff {
    /// One second, doubled up to half a minute.
    pub(crate) const DEFAULT: Self = Self { first: Duration::from_secs(1), longest: Duration::from_secs(30) };

    /// Up to a quarter less than the doubled time, so that many hosts do not return at once.
    fn after(self, failures: u32) -> Duration {
        let doubled = self.first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
        doubled.min(self.longest).mul_f64(1.0 - fastrand::f64() / 4.0)
    }
}

/// Sends until the queue is closed and empty. Once it is closed, the first failure ends it too.
pub(crate) fn run(endpoint: &Endpoint, queue: &Queue, counters: &Counters, backoff: Backoff) {
    let mut log = Log { url: endpoint.display_url(), failing_since: None, logged: None };
    let mut failures = 0_u32;
    while let Some(payload) = queue.pop() {
        match endpoint.send(&payload.body) {
            Outcome::Delivered { rejected, why } => {
                let rejected = rejected.min(payload.points);
                counters.count_delivered(payload.points - rejected, unix_ms());
                failures = 0;
                log.delivered();
                if rejected > 0 {
                    counters.count_lost(Loss::Rejected, rejected);
                    log.rejected(rejected, &why);
                }
            }
            Outcome::Rejected(why) => {
                counters.count_lost(Loss::Rejected, payload.points);
                failures = 0;
                log.rejected(payload.points, &why);
            }
            Outcome::Later { after, why } => {
                counters.count_failed_request();
                failures = failures.saturating_add(1);
                log.failed(&why);
                let closed = queue.is_closed();
                queue.put_back(payload);
                if closed {
                    break;
                }
                // Not at once, although a receiver may say so.
                queue.wait(after.map_or_else(|| backoff.after(failures), |after| after.max(backoff.first)));
            }
        }
    }
    let lost = queue.clear();
    if lost > 0 {
        warn!("{}: {lost} data points were not delivered before the end", endpoint.display_url());
    }
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Logs changes of state, and a state that lasts from time to time.
struct Log<'a> {
    url: &'a str,
    failing_since: Option<Instant>,
    logged: Option<Instant>,
}

impl Log<'_> {
    fn is_due(&mut self) -> bool {
        let due = self.logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL);
        if due {
            self.logged = Some(Instant::now());
        }
        due
    }

    fn failed(&mut self, why: &str) {
        self.failing_since.get_or_insert_with(Instant::now);
        if self.is_due() {
            warn!("{}: cannot push metrics: {why}; they are queued and sent again", self.url);
        }
    }

    fn rejected(&mut self, points: u64, why: &str) {
        if self.is_due() {
            warn!("{}: {points} data points were rejected: {why}", self.url);
        }
    }

    fn delivered(&mut self) {
        if let Some(since) = self.failing_since.take() {
            info!("{}: metrics are delivered again, after {:.0} s", self.url, since.elapsed().as_secs_f64());
            self.logged = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use client::{Access, Client};
    use testkit::{eventually, receiver::Receiver};

    use super::*;
    use crate::{counters::Destination, payload::Payload};

    #[test]
    fn waiting_times_double_up_to_the_longest() {
        let backoff = Backoff::DEFAULT;
        for (failures, seconds) in [(1, 1.0), (2, 2.0), (5, 16.0), (6, 30.0), (u32::MAX, 30.0)] {
            let wait = backoff.after(failures).as_secs_f64();
            assert!(wait <= seconds && wait >= seconds * 0.75, "{failures}: {wait}");
        }
    }

    /// Sends three requests of ten points from a queue that is closed; the counters.
    fn send(receiver: &Receiver, endpoint: &Endpoint) -> &'static Counters {
        let counters: &'static Counters = Box::leak(Box::<Counters>::default());
        let queue = Queue::new(1000, counters);
        for number in 0..3 {
            queue.push(Payload { body: vec![number; 10], points: 10 });
        }
        queue.close();
        let before = receiver.posted().len();
        run(endpoint, &queue, counters, Backoff::DEFAULT);
        assert!(receiver.posted().len() > before && counters.queued_points() == 0);
        counters
    }

    fn endpoint(receiver: &Receiver) -> Endpoint {
        let client = Client::new(receiver.url(), &Access::default(), Duration::from_secs(20), 1 << 20).unwrap();
        Endpoint { destination: Destination::Otlp, client, headers: Vec::new(), headers_file: None }
    }

    #[test]
    fn a_rejected_request_does_not_stop_those_behind_it() {
        let receiver = Receiver::start().unwrap();
        receiver.fail(400, "", 1);
        let counters = send(&receiver, &endpoint(&receiver));
        assert_eq!((counters.delivered(), counters.lost(Loss::Rejected)), (20, 10));
        assert_eq!(receiver.accepted().len(), 2);
    }

    #[test]
    fn the_end_is_not_delayed_by_a_receiver_that_fails() {
        let receiver = Receiver::start().unwrap();
        receiver.fail(503, "", 9);
        let counters = send(&receiver, &endpoint(&receiver));
        assert_eq!((counters.delivered(), counters.lost(Loss::Shutdown), counters.failed_requests()), (0, 30, 1));
    }

    #[test]
    fn a_receiver_that_wants_no_pause_is_not_asked_at_once() {
        let receiver = Receiver::start().unwrap();
        receiver.fail(503, "Retry-After: 0\r\n", 2);
        let counters: &'static Counters = Box::leak(Box::<Counters>::default());
        let queue = Arc::new(Queue::new(1000, counters));
        queue.push(Payload { body: vec![0; 10], points: 10 });
        let backoff = Backoff { first: Duration::from_millis(50), ..Backoff::DEFAULT };
        let (began, endpoint, sending) = (Instant::now(), endpoint(&receiver), queue.clone());
        let sender = std::thread::spawn(move || run(&endpoint, &sending, counters, backoff));
        eventually(20.0, "a delivery", || !receiver.accepted().is_empty());
        assert!(began.elapsed() >= Duration::from_millis(100));
        queue.close();
        sender.join().unwrap();
    }

    #[test]
    fn a_changed_secret_is_used_without_a_restart() {
        let receiver = Receiver::start().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let headers = vec![("User-Agent".to_owned(), "test/1".to_owned())];
        let endpoint = Endpoint { headers, headers_file: Some(file.path().to_owned()), ..endpoint(&receiver) };
        for secret in ["first", "second"] {
            std::fs::write(file.path(), format!("Authorization: Bearer {secret}\n")).unwrap();
            send(&receiver, &endpoint);
        }
        let seen: Vec<String> =
            receiver.posted().iter().map(|posted| posted.headers["authorization"].clone()).collect();
        assert_eq!(seen, ["Bearer first"; 3].into_iter().chain(["Bearer second"; 3]).collect::<Vec<_>>());
        assert_eq!(receiver.posted()[0].headers["user-agent"], "test/1");
    }
}
