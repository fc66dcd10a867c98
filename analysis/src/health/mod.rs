//! The health checker, port 9600: whether every exporter of the stack can be reached, is what it should be, has data, and whether the data is of now.
//!
//! [`target`] knows what is looked at and where that is said, [`scrape`] what of that a Prometheus' configuration says; [`check`] asks one target and judges what it said, purely; [`round`] does so for all of them at once and
//! remembers; [`page`] shows it to scrapers and people, [`report`] to whoever called `check`; [`compare`] lays two exporters beside each other; [`notices`] takes what an Alertmanager says.

pub mod check;
pub mod compare;
pub mod notices;
pub mod page;
pub mod report;
pub mod round;
pub mod scrape;
pub mod target;
