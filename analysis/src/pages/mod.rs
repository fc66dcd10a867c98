//! Metric families of ports 9502, 9503 and 9504.

pub mod cost;
pub mod quality;
pub mod scenario_metrics;
pub mod scenarios;
