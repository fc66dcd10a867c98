//! The status page of the RTMP module, the metrics rendered from it, and the sum with a page of
//! another worker.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|page: &[u8]| {
    use analysis::streams::{
        nginx::{StreamLabel, families, parse},
        nginx_workers::Workers,
    };
    use std::time::{Duration, Instant};
    if let Ok(stat) = parse(page) {
        let mut workers = Workers::new(StreamLabel::Hash, Duration::from_secs(1));
        let now = Instant::now();
        let one = workers.add(stat.clone(), now);
        let mut other = stat.clone();
        other.pid = other.pid.wrapping_add(1);
        let both = workers.add(other, now);
        assert!(both.accepted >= one.accepted && both.streams.len() >= one.streams.len());
        assert!(metrics::page::render("nginx", families(&Ok(stat), StreamLabel::Name)).is_ok());
    }
});
