//! What was not answered, and why: counted for the whole process, since a peer that is refused leaves no other trace.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::family::{Def, Family};

/// Why somebody was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// A connection had to make room for another.
    NoRoom,
    /// TLS could not be agreed on.
    Handshake,
    /// No password, or a wrong one.
    Unauthorized,
    /// More requests than `rate_limit` allows, or too many guesses at once.
    TooMany,
    /// More requests in flight than `--web.max-requests`.
    MaxRequests,
}

const ALL: [(Why, &str); 5] = [
    (Why::NoRoom, "no_room"),
    (Why::Handshake, "handshake"),
    (Why::Unauthorized, "unauthorized"),
    (Why::TooMany, "too_many"),
    (Why::MaxRequests, "max_requests"),
];

static COUNTS: [AtomicU64; ALL.len()] = [const { AtomicU64::new(0) }; ALL.len()];

static REFUSED: Def = Def::counter(
    "wattcast_web_refused_total",
    &["reason"],
    "Connections and requests, on all ports of this program, that were not answered: no_room (a connection that asked nothing, or did not take its answer, made \
     room for another), handshake (TLS), unauthorized, too_many (rate_limit, or guesses at passwords), max_requests.",
);

/// Every metric of this module.
pub static DEFS: &[&Def] = &[&REFUSED];

pub(crate) fn count(why: Why, times: u64) {
    COUNTS[why as usize].fetch_add(times, Ordering::Relaxed);
}

/// `wattcast_web_refused_total`.
#[must_use]
pub fn family() -> Family {
    let mut family = Family::new(&REFUSED);
    for (why, reason) in ALL {
        family.push(&[reason], COUNTS[why as usize].load(Ordering::Relaxed) as f64);
    }
    family
}
