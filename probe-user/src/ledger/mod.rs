//! Pure arithmetic: measured joules in, a closed account out. No I/O, no clock.
//!
//! Invariant, per accounting root, every tick and since the start, exact in integer microjoules:
//! `containers + retired + system + idle + unattributed == measured`.

mod account;
mod book;

pub use account::{Closed, close};
pub use book::{Account, AccountId, Book, Holder};
