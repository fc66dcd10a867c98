//! What the probe serves: pages of metrics, and the JSON API.

mod gpu_page;
pub mod metrics;
pub mod pages;
pub mod routes;
mod stats_page;

pub use gpu_page::DEFS as GPU_DEFS;
pub use stats_page::DEFS as STATS_DEFS;
