//! Command line of both programs.
//!
//! - [`program`]: exit codes, version, shell completions, manual pages
//! - [`config_file`]: layered configuration; flags override the environment, which overrides the
//!   file
//! - [`log`]: log lines in logfmt or JSON
//! - [`mod@file`]: files that are read up to a size limit and replaced atomically
//! - [`number`]: numbers for people
//! - [`signals`]: SIGINT and SIGTERM during the start
//! - [`suggest`]: closest known name of a mistyped one

#![deny(unsafe_code)]

pub mod config_file;
pub mod file;
pub mod log;
pub mod number;
pub mod program;
pub mod signals;
pub mod suggest;
