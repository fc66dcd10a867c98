//! The privileged probe, as a library; `main.rs` tells its story.
//!
//! Data moves one way: [`energy`] and [`cpu`] are read once a tick by the [`sampler`], the [`ledger`] closes the account,
//! [`containers`] says who is who, and a [`snapshot`] leaves, from which [`pages`], the [`window`] and the [`routes`] are
//! made.
// Energy arithmetic has no lossy casts; where output needs one, it says why it is safe.
#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]

pub mod config;
pub mod containers;
pub mod cpu;
pub mod energy;
pub mod ledger;
pub mod metrics;
pub mod pages;
pub mod privileges;
pub mod routes;
pub mod sampler;
pub mod snapshot;
pub mod start;
pub mod state;
pub mod topology;
pub mod units;
pub mod window;
