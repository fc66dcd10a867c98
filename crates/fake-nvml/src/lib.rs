//! Replacement for NVIDIA's management library (NVML): the functions that the probe calls, with
//! NVIDIA's types, driven by a scenario file.
//!
//! `FAKE_NVML_SCENARIO` names the file ([`scenario`]). It is read again whenever it changes, so
//! that a test can simulate the loss and return of a GPU. The driver version and all model names
//! begin with `fake`.

mod abi;
pub mod scenario;
mod state;

pub use abi::fake_nvml_own_ns;
