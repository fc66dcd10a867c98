//! Shared by tests, the demo and the benchmarks: programs as child processes, HTTP clients,
//! cgroups, containers, databases, a simulated powercap tree, and for tests only: requirements,
//! deadlines, locks.
//!
//! For development only: no shipped program depends on this crate.

pub mod account;
pub mod api;
pub mod browser;
pub mod certs;
pub mod cgroup;
pub mod databases;
pub mod docker;
pub mod fixture;
pub mod lock;
pub mod netns;
pub mod nginx;
pub mod ping_pong;
pub mod ports;
pub mod program;
pub mod receiver;
pub mod require;
pub mod shell;
pub mod simulator;
pub mod wait;

pub use wait::{eventually, sleep};
