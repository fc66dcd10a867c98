//! Experiments: run them, compare their results, report them.
//!
//! [`runner`] measures encoders and writes result files; [`search`] decides what a search measures
//! next; [`compare`] finds significant differences between two results; [`report`] renders a result
//! as HTML.

// Only the modules that make unsafe system calls allow unsafe code.
#![deny(unsafe_code)]

pub mod compare;
pub mod report;
pub mod runner;
pub mod search;
