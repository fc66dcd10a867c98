//! Metrics of both programs. A metric is defined once; pages, documentation and lint checks use
//! that definition.
//!
//! - [`family`]: metric definitions and their rows
//! - [`page`]: rendering of families, as text or as [`openmetrics`]
//! - [`parse`]: strict parser for the pages of other exporters
//! - [`label`]: limits for label values from external input
//! - [`process`]: metrics of the process itself
//! - [`docs`]: metric tables of the documentation

#![forbid(unsafe_code)]

pub mod docs;
pub mod family;
pub mod label;
pub mod openmetrics;
pub mod page;
pub mod parse;
pub mod process;
