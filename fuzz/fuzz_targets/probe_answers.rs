//! Answers of a probe: any bytes give checked values or an error. What is accepted is finite, not
//! negative, and no container has more energy than was measured.
#![no_main]

use results::energy::probe::{parse_jobs, parse_window};

libfuzzer_sys::fuzz_target!(|input: (f64, f64, &[u8])| {
    let (start, end, bytes) = input;
    if let Ok(response) = parse_window(bytes, start, end) {
        let measured: f64 = response.accounts.iter().map(|account| account.measured_joules).sum();
        let edges: f64 = response.accounts.iter().map(|account| account.edge_error_joules).sum();
        let parts = response.containers.iter().flat_map(|container| &container.energy);
        let attributed: f64 = parts.map(|part| part.joules).sum();
        assert!(measured.is_finite() && measured >= 0.0);
        let sources = response.accounts.len() + response.containers.len() + bytes.len();
        assert!(attributed <= (measured + edges) * 1.0011 + 1e-3 * sources as f64);
    }
    if let Ok(jobs) = parse_jobs(bytes) {
        assert!(jobs.jobs.iter().all(|job| job.joules.is_finite() && job.joules >= 0.0 && job.cpu_seconds >= 0.0));
    }
});
