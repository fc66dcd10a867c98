//! The unprivileged service: turns runs into results.
//!
//! [`store`] reads result files into the model of [`run`]; [`energy`] finds the joules of a run's window, in the file, at the probe or in a database; [`cost`] knows
//! prices; [`figures`] works every number out, once. Pages of it are [`results`], [`qoe`] and [`cost::page`], which [`serve`] keeps fresh, with what [`follow`] learns; [`advise`], [`alerts`]
//! and [`backfill`] read the same numbers. [`streams`] takes what encoders and RTMP servers say of themselves.

pub mod advise;
pub mod alerts;
pub mod backfill;
pub mod client;
pub mod columns;
pub mod config;
pub mod cost;
pub mod energy;
pub mod figures;
pub mod file;
pub mod follow;
pub mod qoe;
pub mod results;
pub mod run;
pub mod serve;
pub mod settings;
pub mod sheet;
pub mod statistics;
pub mod store;
pub mod streams;
