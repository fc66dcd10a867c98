//! One tick of raw data: its types, the collectors that read it, its recordings.

pub mod collect;
mod raw;
pub mod recording;
mod source;

pub use collect::{CollectorRow, Collectors};
pub use raw::{CpuTierInfo, RawTick, Setup, SourceChange, TickChanges};
pub use source::{Replay, TickSource};
