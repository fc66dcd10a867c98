//! Metrics of the export itself. They are process-wide, because they are on the program's own page
//! while the export has no part in it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use metrics::family::{Def, Family};

/// A protocol, and what is counted for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// OTLP over HTTP.
    Otlp,
    /// Prometheus remote write.
    RemoteWrite,
}

impl Destination {
    const ALL: [Self; 2] = [Self::Otlp, Self::RemoteWrite];

    /// Value of the label `destination`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Otlp => "otlp",
            Self::RemoteWrite => "remote_write",
        }
    }

    /// The counters of this program for the protocol.
    pub(crate) fn counters(self) -> &'static Counters {
        match self {
            Self::Otlp => &OTLP,
            Self::RemoteWrite => &REMOTE_WRITE,
        }
    }
}

/// Why points are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The queue was full.
    QueueFull,
    /// The receiver does not accept them.
    Rejected,
    /// The program ended before they were delivered.
    Shutdown,
}

const LOSSES: [(Loss, &str); 3] =
    [(Loss::QueueFull, "queue_full"), (Loss::Rejected, "rejected"), (Loss::Shutdown, "shutdown")];

/// The counters of one destination.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    configured: AtomicBool,
    delivered: AtomicU64,
    lost: [AtomicU64; LOSSES.len()],
    failed_requests: AtomicU64,
    queued_points: AtomicU64,
    queued_bytes: AtomicU64,
    /// Unix milliseconds; 0 before the first success.
    last_success_ms: AtomicU64,
}

static OTLP: Counters = Counters::new();
static REMOTE_WRITE: Counters = Counters::new();

impl Counters {
    const fn new() -> Self {
        Self {
            configured: AtomicBool::new(false),
            delivered: AtomicU64::new(0),
            lost: [const { AtomicU64::new(0) }; LOSSES.len()],
            failed_requests: AtomicU64::new(0),
            queued_points: AtomicU64::new(0),
            queued_bytes: AtomicU64::new(0),
            last_success_ms: AtomicU64::new(0),
        }
    }

    /// Shows the counters on the page.
    pub(crate) fn configure(&self) {
        self.configured.store(true, Ordering::Relaxed);
    }

    pub(crate) fn count_delivered(&self, points: u64, unix_ms: u64) {
        self.delivered.fetch_add(points, Ordering::Relaxed);
        self.last_success_ms.store(unix_ms, Ordering::Relaxed);
    }

    pub(crate) fn count_lost(&self, why: Loss, points: u64) {
        self.lost[why as usize].fetch_add(points, Ordering::Relaxed);
    }

    pub(crate) fn count_failed_request(&self) {
        self.failed_requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set_queued(&self, points: u64, bytes: u64) {
        self.queued_points.store(points, Ordering::Relaxed);
        self.queued_bytes.store(bytes, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn lost(&self, why: Loss) -> u64 {
        self.lost[why as usize].load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn queued_points(&self) -> u64 {
        self.queued_points.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn failed_requests(&self) -> u64 {
        self.failed_requests.load(Ordering::Relaxed)
    }
}

static SENT: Def = Def::counter(
    "wattcast_export_sent_points_total",
    &["destination"],
    "Data points that a receiver has accepted. destination: otlp, remote_write.",
);
static LOST: Def = Def::counter(
    "wattcast_export_dropped_points_total",
    &["destination", "reason"],
    "Data points that were not delivered: queue_full (--push.queue-bytes), rejected (the receiver does not accept \
     them), shutdown (the program ended while the receiver was not available).",
);
static FAILED: Def = Def::counter(
    "wattcast_export_failed_requests_total",
    &["destination"],
    "Requests that failed and are repeated. No point is lost by them.",
);
static QUEUED: Def = Def::gauge(
    "wattcast_export_queued_points",
    &["destination"],
    "Data points in the queue, without those of a request in flight.",
);
static QUEUED_BYTES: Def = Def::gauge(
    "wattcast_export_queued_bytes",
    &["destination"],
    "Size of the queue in bytes, compressed; its limit is --push.queue-bytes.",
);
static LAST_SUCCESS: Def = Def::gauge(
    "wattcast_export_last_success_timestamp_seconds",
    &["destination"],
    "Time of the last accepted request in unix seconds; absent before the first.",
);

/// All metric definitions of this module.
pub static DEFS: &[&Def] = &[&SENT, &LOST, &FAILED, &QUEUED, &QUEUED_BYTES, &LAST_SUCCESS];

/// The families of the configured destinations; empty ones without any.
#[must_use]
pub fn families() -> Vec<Family> {
    let [mut sent, mut lost, mut failed, mut queued, mut bytes, mut last] =
        [&SENT, &LOST, &FAILED, &QUEUED, &QUEUED_BYTES, &LAST_SUCCESS].map(Family::new);
    for destination in Destination::ALL {
        let (name, counters) = (destination.as_str(), destination.counters());
        if !counters.configured.load(Ordering::Relaxed) {
            continue;
        }
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        sent.push(&[name], value(&counters.delivered));
        for (why, reason) in LOSSES {
            lost.push(&[name, reason], value(&counters.lost[why as usize]));
        }
        failed.push(&[name], value(&counters.failed_requests));
        queued.push(&[name], value(&counters.queued_points));
        bytes.push(&[name], value(&counters.queued_bytes));
        let success = value(&counters.last_success_ms);
        if success > 0.0 {
            last.push(&[name], success / 1000.0);
        }
    }
    vec![sent, lost, failed, queued, bytes, last]
}
