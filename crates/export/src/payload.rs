//! The encoded body of a request, and what encodes it.

use crate::rows::FamilySamples;

/// Most data points of one request. Receivers limit its size, often to a few MiB before it is
/// compressed.
pub(crate) const MAX_POINTS: usize = 5000;

/// The encoded and compressed body of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Payload {
    pub(crate) body: Vec<u8>,
    /// Number of data points in it.
    pub(crate) points: u64,
}

/// Encodes the samples of the pages for one protocol.
pub(crate) trait Encode: Send {
    /// The requests for the samples of one time, in unix nanoseconds.
    fn encode(&mut self, families: &[FamilySamples], at_ns: u64) -> Vec<Payload>;

    /// The requests that end all series, shortly after the last samples.
    fn end(&mut self, at_ns: u64) -> Vec<Payload>;
}
