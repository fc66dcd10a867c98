//! Experiments: run them, compare their results, report them.
//!
//! [`runner`] measures encoders and writes result files; [`compare`] finds significant differences
//! between two results; [`report`] renders a result as HTML.

// System calls and loaded libraries are used in the modules that allow it, and nowhere else.
#![deny(unsafe_code)]

pub mod compare;
pub mod report;
pub mod runner;
