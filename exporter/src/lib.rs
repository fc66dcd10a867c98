//! What both programs share as exporters.
//!
//! [`family`] defines a metric once: name, type, labels, help; pages and documentation come from that definition. [`page`] renders families to bytes, as text or, by
//! [`openmetrics`], in the other format; [`parse`] reads pages of others. [`server`] hands the bytes out as [`negotiate`] finds the scraper wants them, behind the doors of
//! [`web`]; [`connections`] and [`peers`] bound who holds one, and [`refused`] counts whom that left out. [`landing`] is the page for people.
//! [`program`] holds the habits of the command line, [`flags`] what both take there, [`layers`] how a file stands behind it, [`log`] what is said.
//! [`label`] bounds what comes from outside, [`process`] measures ourselves, [`docs`] makes the tables of the documentation, [`progress`] reads what ffmpeg says of itself, [`file`] is files whole or not
//! at all, [`units`] what energy is counted in.

mod connections;
pub mod docs;
pub mod family;
pub mod file;
pub mod flags;
pub mod healthcheck;
pub mod label;
pub mod landing;
pub mod layers;
pub mod listen;
pub mod log;
pub mod nearest;
pub mod negotiate;
pub mod openmetrics;
pub mod page;
pub mod parse;
mod peers;
pub mod process;
pub mod program;
pub mod progress;
pub mod refused;
pub mod scope;
pub mod server;
pub mod units;
pub mod web;
