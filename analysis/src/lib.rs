//! The unprivileged service: results, quality and cost of runs, live streams, and the health of
//! every exporter.
//!
//! [`loader`] reads the runs and renders their [`pages`], with data of [`live`] sources;
//! [`index_tables`] has their tables for the index page, and [`rendered_page`] is the page that the
//! server reads. [`qoe`] and [`curves`] derive the score and the rate-energy curves. [`advise`]
//! recommends configurations, [`bill`] charges energy to its users, [`alerts`] evaluates rules, and
//! [`backfill`] writes the history.
//! [`streams`] receives progress reports of encoders and statistics of RTMP servers, and [`health`]
//! checks every exporter. [`config`] is the command line, and [`settings`] the configuration file.
//! [`web`] has the HTML pages for people.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "no API: for its own binary, tests and fuzz targets")]

pub mod advise;
pub mod alerts;
pub mod backfill;
pub mod bill;
pub mod config;
pub mod curves;
pub mod health;
pub mod index_tables;
pub mod live;
pub mod loader;
pub mod pages;
pub mod qoe;
pub mod rendered_page;
pub mod settings;
pub mod streams;
pub mod web;
