//! The unprivileged service: turns runs into results.
//!
//! [`store`] reads result files into the model of [`run`]; [`energy`] finds the joules of a run's window, in the file, at the probe or in a database; [`cost`] knows
//! prices; [`figures`] works every number out, once. Pages of it are [`results`], [`qoe`] and [`cost::page`], which [`serve`] keeps fresh, with what [`follow`] learns; [`advise`], [`alerts`]
//! and [`backfill`] read the same numbers.
//! [`runner`] makes such files; [`cells`] takes repeats together, [`compare`] and [`report`] say what is in them, and how sure that is. [`streams`] takes what encoders and RTMP servers say of themselves, and [`health`] looks after every exporter of the stack.

pub mod advise;
pub mod alerts;
pub mod backfill;
pub mod cells;
pub mod client;
pub mod columns;
pub mod compare;
pub mod config;
pub mod cost;
pub mod energy;
pub mod figures;
pub mod follow;
pub mod health;
pub mod qoe;
pub mod report;
pub mod results;
pub mod run;
pub mod runner;
pub mod serve;
pub mod settings;
pub mod sheet;
pub mod statistics;
pub mod store;
pub mod streams;
