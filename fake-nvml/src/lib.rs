//! A stand-in for NVIDIA's management library: the functions that the probe calls, with NVIDIA's own types, over a scenario in a file.
//!
//! `FAKE_NVML_SCENARIO` names the file ([`scenario`]); it is read again whenever it changes, so a test can let a GPU be lost and come back.
//! Everything that it says of itself says that it is fake: the driver's version begins with `fake`, every model's name too.

mod abi;
pub mod scenario;
mod world;

pub use abi::fake_nvml_own_ns;
