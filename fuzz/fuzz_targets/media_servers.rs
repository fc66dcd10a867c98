//! Answers of MediaMTX and SRS: any bytes give streams or an error, and their page can be rendered.
#![no_main]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use analysis::streams::{
    ingest::{Ingest, mediamtx, server::ServerStats, srs},
    nginx::StreamLabel,
};

libfuzzer_sys::fuzz_target!(|input: (&[u8], &[u8])| {
    let (first, second) = input;
    let mut ingest = Ingest::new(StreamLabel::Hash, Duration::from_secs(1));
    let (jobs, now) = (Arc::default(), Instant::now());
    for (step, answer) in [first, second].into_iter().enumerate() {
        let clients = srs::parse_clients(second).ok();
        let stats = [
            mediamtx::parse_paths(answer).ok().map(|page| ServerStats { streams: page.streams, unread: 0 }),
            mediamtx::parse_metrics(answer).ok(),
            srs::parse_streams(answer)
                .ok()
                .map(|streams| ServerStats { streams: srs::with_clients(streams, clients), unread: 0 }),
        ];
        let now = now + Duration::from_secs(step as u64);
        for stats in stats.iter().flatten() {
            ingest.observe("fuzzed", Ok(stats), &jobs, now);
        }
        assert!(metrics::page::render("nginx", ingest.families(now)).is_ok());
    }
});
