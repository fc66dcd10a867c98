//! Counters of rejected connections and requests. They are process-wide, because a rejected peer
//! leaves no other trace.

use std::sync::atomic::{AtomicU64, Ordering};

use metrics::family::{Def, Family};

/// The reason of a rejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A connection was evicted for a new one.
    NoRoom,
    /// The TLS handshake failed.
    Handshake,
    /// The password is missing or wrong.
    Unauthorized,
    /// More requests than `rate_limit` allows, or too many password checks are waiting.
    TooMany,
    /// More requests in flight than `--web.max-requests`.
    MaxRequests,
    /// A browser used a foreign name for this server.
    Host,
}

const ALL: [(Reason, &str); 6] = [
    (Reason::NoRoom, "no_room"),
    (Reason::Handshake, "handshake"),
    (Reason::Unauthorized, "unauthorized"),
    (Reason::TooMany, "too_many"),
    (Reason::MaxRequests, "max_requests"),
    (Reason::Host, "host"),
];

static COUNTS: [AtomicU64; ALL.len()] = [const { AtomicU64::new(0) }; ALL.len()];

static REFUSED: Def = Def::counter(
    "wattcast_web_refused_total",
    &["reason"],
    "Rejected connections and requests on all ports of this program: no_room (an idle or slow connection was closed for a \
     new one), handshake (TLS), unauthorized, too_many (rate_limit, or waiting password checks), max_requests, \
     host (a browser used a foreign name: DNS rebinding).",
);

/// All metric definitions of this module.
pub static DEFS: &[&Def] = &[&REFUSED];

pub(crate) fn count(reason: Reason, rejections: u64) {
    COUNTS[reason as usize].fetch_add(rejections, Ordering::Relaxed);
}

/// The family `wattcast_web_refused_total`.
#[must_use]
pub fn family() -> Family {
    let mut family = Family::new(&REFUSED);
    for (reason, label) in ALL {
        family.push(&[label], COUNTS[reason as usize].load(Ordering::Relaxed) as f64);
    }
    family
}
