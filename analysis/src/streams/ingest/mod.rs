//! Streams of media servers under one set of names (`wattcast_ingest_*`), and the energy of the
//! encoders that publish them.
//!
//! [`server`] has the form of a stream that all servers share, [`mediamtx`] and [`srs`] parse the
//! answers of two of them, [`sources`] has their addresses, [`totals`] keeps what a server has
//! received and sent, [`encoders`] joins its streams with the probe's, and [`page`] defines the
//! metrics. nginx's page is parsed in [`super::nginx`].

pub mod encoders;
mod json;
pub mod mediamtx;
pub mod page;
pub mod server;
pub mod sources;
pub mod srs;
pub mod totals;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use encoders::Encoders;
use results::energy::jobs::Jobs;
use server::{ServerError, ServerStats};
use totals::ServerTotals;

use super::nginx::StreamLabel;

/// All servers, and the encoders that publish to them.
pub struct Ingest {
    label: StreamLabel,
    /// Longest time between two readings of a server over which its viewers are counted.
    max_gap: Duration,
    /// By the label `server`.
    servers: BTreeMap<&'static str, (Result<(), ServerError>, ServerTotals)>,
    encoders: Encoders,
}

impl Ingest {
    /// Without a reading yet; `interval` is that between readings.
    #[must_use]
    pub fn new(label: StreamLabel, interval: Duration) -> Self {
        let max_gap = interval.saturating_mul(3).max(Duration::from_secs(30));
        Self { label, max_gap, servers: BTreeMap::new(), encoders: Encoders::default() }
    }

    /// Adds what a server says, or why it says nothing, and the jobs that the probe reported last.
    pub fn observe(
        &mut self,
        server: &'static str,
        read: Result<&ServerStats, ServerError>,
        jobs: &Arc<Jobs>,
        now: Instant,
    ) {
        let (state, totals) = self.servers.entry(server).or_insert_with(|| (Ok(()), ServerTotals::default()));
        match read {
            Ok(stats) => {
                *state = Ok(());
                if !totals.add(stats, self.label, now, self.max_gap) {
                    self.encoders.restart();
                }
            }
            Err(why) => {
                *state = Err(why);
                if totals.pause() {
                    self.encoders.restart();
                }
            }
        }
        self.encoders.observe(jobs, self.servers.values().map(|(_, totals)| totals), now);
    }
}
