//! The subcommands. Without one the probe serves.

pub mod account;
pub mod doctor;
pub mod exec;
pub mod record;
pub mod serve;
