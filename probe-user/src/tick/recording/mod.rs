//! Recordings: the raw ticks of a machine in a file, and their replay.
//!
//! A gzip stream of JSON lines. The first line names the format and its version, and contains the
//! setup; every other line is one tick. CPU time is written as its growth by cgroup and CPU, so a
//! quiet machine needs little space. `zcat` shows the content, and a file of the same lines without
//! compression can be read too.

mod format;
mod history;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

pub use format::RecordingError;
pub use history::{HISTORY_BYTES, HISTORY_DIR, HistoryRecorder, Segment, segments};
pub use reader::Reader;
pub use writer::Writer;
