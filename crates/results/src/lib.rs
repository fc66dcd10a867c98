//! Results of runs: the metrics that every page, report and comparison shows.
//!
//! - [`store`]: reads result files into the types of [`run`]
//! - [`energy`]: energy of a run's window, from the file, the probe or a database
//! - [`derived`]: metrics derived from a scenario and its energy
//! - [`cost`]: money and carbon, tariffs, budgets
//! - [`bill`]: energy, cost and carbon of a period by stream, container, label or namespace
//! - [`model`]: all scenarios with energy, derived metrics and cost
//! - [`repeats`]: scenarios grouped by configuration
//! - [`figures`]: the figures of a configuration, with scope, interval, rank and Pareto front
//! - [`headroom`]: how many more streams of a kind a host carries in real time
//! - [`estimate`]: means with intervals, ranks with ties
//! - [`settings`]: flags and configuration keys for results, prices and data sources

#![forbid(unsafe_code)]

pub mod bill;
pub mod convert;
pub mod cost;
pub mod derived;
pub mod energy;
pub mod estimate;
pub mod figures;
pub mod headroom;
pub mod model;
pub mod repeats;
pub mod run;
pub mod settings;
pub mod store;
