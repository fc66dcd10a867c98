//! Pushes the metrics of a program to receivers that do not scrape it: OTLP over HTTP with
//! protobuf, and Prometheus remote write 1.0.
//!
//! What is sent is read from the rendered pages, the bytes that `/metrics` serves, so a receiver
//! stores the figures of the page. Nothing here is part of a tick: one thread reads and encodes the
//! pages, and one for each destination sends what is queued.
//!
//! - [`flags`]: `--otlp.*`, `--remote-write.*`, `--push.*`, and the variables of OpenTelemetry
//! - [`exporter`]: the threads
//! - [`counters`]: metrics of the export itself
//! - [`message`]: the protobuf messages of both protocols
//! - [`names`]: names and attributes by OpenTelemetry's semantic conventions

#![forbid(unsafe_code)]

pub mod counters;
mod delivery;
mod endpoint;
pub mod exporter;
pub mod flags;
mod given;
pub mod message;
pub mod names;
mod otlp;
mod payload;
mod queue;
mod remote_write;
mod rows;
mod series;
