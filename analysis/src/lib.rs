//! The unprivileged service: turns runs into results.
//!
//! [`store`] reads result files into the model of [`run`], [`window`] asks the probe for the joules of a run's window,
//! [`results`] makes the pages of port 9502, [`serve`] keeps them fresh. [`streams`] takes what encoders and RTMP servers say of themselves.

pub mod config;
pub mod results;
pub mod run;
pub mod serve;
pub mod sheet;
pub mod store;
pub mod streams;
pub mod window;
