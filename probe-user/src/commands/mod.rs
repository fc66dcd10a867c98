//! The subcommands. Without one the probe serves.

pub mod account;
pub mod calibrate;
pub mod doctor;
pub mod exec;
pub mod record;
pub mod serve;
pub mod top;
pub mod view;
