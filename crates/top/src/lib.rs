//! The terminal view of a probe, like btop for energy.
//!
//! - [`source`]: where the answers of `/api/v1/now` come from
//! - [`terminal`]: the loop that reads keys and answers, and the modes of the terminal
//! - `now`: the answer, as far as the view shows it
//! - `state`: what is shown, without a clock, a terminal and I/O
//! - `history`: power of the last minutes
//! - `keys`: what a key changes
//! - `columns`: columns of both tables
//! - `view`: draws the state; `plain` prints it without a terminal
//! - `number`, `text`: figures and names for a column of fixed width

#![forbid(unsafe_code)]

mod columns;
mod history;
mod keys;
mod now;
mod number;
mod plain;
pub mod source;
mod state;
pub mod terminal;
mod text;
mod view;

pub use source::{ProbeSource, Source, SourceError};
