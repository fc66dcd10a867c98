//! Command line of both programs.
//!
//! - [`program`]: exit codes, version, shell completions, manual pages
//! - [`colour`]: colours by meaning
//! - [`config_file`]: layered configuration; flags override the environment, which overrides the
//!   file
//! - [`help`]: help texts without the flags of other commands
//! - [`log`]: log lines in logfmt or JSON
//! - [`mod@file`]: files that are read up to a size limit and replaced atomically
//! - [`line_file`]: files to which whole lines are appended
//! - [`number`]: numbers for people
//! - [`signals`]: SIGINT and SIGTERM during the start
//! - [`suggest`]: closest known name of a mistyped one
//! - [`terminal`]: tables and text that fit the width of the terminal
//! - [`yaml`]: YAML files whose format other programs define

#![deny(unsafe_code)]

pub mod colour;
pub mod config_file;
pub mod file;
pub mod help;
pub mod host;
pub mod line_file;
pub mod log;
pub mod number;
pub mod program;
pub mod signals;
pub mod suggest;
pub mod terminal;
pub mod yaml;
