//! What answers say about the program.

use std::time::Duration;

use crate::endpoints::price::EnergyPrice;

/// A recording that is shown instead of this machine.
#[derive(Clone, Debug)]
pub struct ShownRecording {
    /// The host that it is of; empty where it is not known.
    pub host: String,
    /// The sentence about it.
    pub about: String,
}

/// What does not change while the program runs.
pub(super) struct About {
    /// Name of the host that is shown; empty where it is not known.
    pub(super) host: String,
    /// Unix seconds.
    pub(super) started: f64,
    pub(super) tick: Duration,
    /// The sentence about the recording that is shown; `None` for this machine.
    pub(super) recording: Option<String>,
    /// `None` without a configured price.
    pub(super) price: Option<EnergyPrice>,
}
