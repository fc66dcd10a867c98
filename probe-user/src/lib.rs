//! The privileged probe, as a library. `main.rs` contains the program.
//!
//! Data flows in one direction, and modules import only from earlier stages:
//!
//! 1. sources: [`host`] (topology, processes, capabilities), [`energy`], [`cgroup`], [`cpu`],
//!    [`containers`], [`jobs`], [`gpu`], [`reference`](mod@reference);
//! 2. [`tick`]: one reading of all sources as raw data, from the machine or from a recording;
//! 3. [`ledger`]: pure arithmetic on integer microjoules (split, totals, idle power, uncertainty,
//!    streams);
//! 4. [`snapshot`]: the result of a tick, with the history of past ticks;
//! 5. [`attribution`]: turns raw ticks into snapshots by means of the ledger, without a clock and
//!    without I/O except for the files of learnt and of calibrated idle power, and of totals;
//! 6. [`sampler`]: the schedule that runs all of it once a tick; [`past`]: the ticks before the
//!    start;
//! 7. [`endpoints`]: metrics pages and the JSON API, rendered from a snapshot;
//! 8. [`config`], [`start`] and [`commands`]: flags, opening the sources, and the subcommands.
//!
//! [`parsers`] exposes parsers of the sources to the fuzz targets.

// System calls and loaded libraries are used in the modules that allow it, and nowhere else.
#![deny(unsafe_code)]
#![allow(missing_docs, reason = "an internal crate, in which most names and types need no comment")]
// Energy arithmetic has no lossy casts. Where output needs one, a comment says why it is safe.
#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]

pub mod attribution;
pub mod cgroup;
pub mod commands;
pub mod config;
pub mod containers;
pub mod cpu;
pub mod endpoints;
pub mod energy;
pub mod gpu;
pub mod host;
pub mod jobs;
pub mod ledger;
pub mod parsers;
pub mod past;
pub mod reference;
pub mod sampler;
pub mod snapshot;
pub mod start;
pub mod tick;
