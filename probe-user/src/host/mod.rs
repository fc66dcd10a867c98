//! The host itself: which sources are available, CPU topology, performance events,
//! processes, capabilities, memory of this process.

pub mod availability;
pub mod gpu_id;
pub(crate) mod memory;
pub(crate) mod perf_event;
pub mod privileges;
pub mod process;
pub mod topology;
