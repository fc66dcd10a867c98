//! The health checker, port 9600: whether every exporter is reachable and complete, and its data
//! current.
//!
//! [`target`] and [`scrape_config`] define the targets, [`check`] requests one target and evaluates
//! its response, [`checker`] does so for all targets and keeps their status. [`page`] and
//! [`report`] present it, [`alertmanager`] receives alerts, and [`compare`] compares the metrics of
//! two exporters.

pub mod alertmanager;
pub mod check;
pub mod checker;
pub mod compare;
pub mod page;
pub mod report;
pub mod scrape_config;
pub mod target;
