//! What the probe serves: pages of metrics, and the JSON API.

mod error;
mod gpu_page;
pub mod guests;
mod live;
pub mod metrics;
pub mod pages;
mod price;
pub mod routes;
mod stats_page;
mod stream_stages;

pub use gpu_page::DEFS as GPU_DEFS;
pub use live::ShownRecording;
pub use price::EnergyPrice;
pub use stats_page::DEFS as STATS_DEFS;
