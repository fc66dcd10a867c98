//! The privileged probe, as a library; `main.rs` tells its story.
//!
//! Data moves one way. The [`instruments`] read [`energy`], [`cpu`], [`gpu`], [`containers`] and [`jobs`] once a [`tick`], when the [`sampler`] says
//! so; the [`accountant`], which is pure arithmetic, closes the [`ledger`] and makes a [`snapshot`], from which [`pages`], the
//! [`window`] and the [`routes`] are made. A [`recording`] keeps the raw ticks, and can stand for the machine as a [`feed`].
// Energy arithmetic has no lossy casts; where output needs one, it says why it is safe.
#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]

pub mod accountant;
pub mod baselines;
pub mod config;
pub mod containers;
pub mod cpu;
pub mod distribution;
pub mod doctor;
pub mod energy;
pub mod exec;
pub mod feed;
pub mod gpu;
mod gpu_page;
pub use gpu_page::DEFS as GPU_DEFS;
pub mod instruments;
pub mod jobs;
pub mod ledger;
pub mod metrics;
pub mod pages;
mod perf_event;
pub mod privileges;
pub mod recording;
pub mod routes;
pub mod sampler;
pub mod scopes;
pub mod snapshot;
pub mod start;
pub mod state;
mod stats_page;
pub use stats_page::DEFS as STATS_DEFS;
pub mod tick;
pub mod topology;
pub mod window;

pub use exporter::units;
