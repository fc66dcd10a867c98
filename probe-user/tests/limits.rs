//! The probe within limits of memory and descriptors.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Command,
};

use support::{Probe, ebpf};
use testkit::{api::Client, or_skip, sleep};

/// A value in kB of `/proc/PID/status`, in MB.
fn status_mb(pid: u32, key: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.split_whitespace().next());
    value.unwrap_or_else(|| panic!("no {key} in {text}")).parse::<f64>().unwrap() * 1024.0 / 1e6
}

#[test]
fn start_with_ebpf_peaks_below_twenty_megabytes() {
    const MAX_MB: f64 = 20.0;
    or_skip!(ebpf());
    let probe = Probe::start(&["--energy.source=model"]);
    probe.first_regular_tick();
    let (state, detail) = probe.source("cpu");
    assert!(state == "usable" && detail.contains("eBPF"), "{state}: {detail}");
    let (_, jobs) = probe.source("jobs");
    let pid = probe.program.pid();
    let [peak, now, file] = ["VmHWM", "VmRSS", "RssFile"].map(|key| status_mb(pid, key));
    // The code of a build without optimization is several times that of the shipped program. Its
    // pages are not what a start allocates.
    let code = if cfg!(debug_assertions) { file } else { 0.0 };
    assert!(
        peak - code <= MAX_MB,
        "peak {peak:.1} MB, now {now:.1} MB, of it files {file:.1} MB; cpu: {detail}; jobs: {jobs}"
    );
}

/// The probe also wakes for containers and jobs of other tests.
mod whole_machine {
    use testkit::lock::{Resource, hold};

    use super::*;

    /// Each wake-up may end the sleep of a package. Its threads wait for the tick, and nothing
    /// polls.
    #[test]
    fn an_idle_probe_wakes_a_few_times_a_second() {
        const MAX_PER_SECOND: f64 = 20.0;
        const SECONDS: f64 = 5.0;
        let _cpus = hold(Resource::Cpus);
        let probe = Probe::start(&["--energy.source=model"]);
        probe.first_regular_tick();
        // Drivers of GPUs are opened in the first seconds.
        sleep(3.0);
        let wakeups = || probe.metrics().get("wattcast_self_wakeups_total", &[]);
        let before = wakeups();
        sleep(SECONDS);
        let per_second = (wakeups() - before) / SECONDS;
        println!("{per_second} wake-ups per second");
        assert!(per_second <= MAX_PER_SECOND, "{per_second} wake-ups per second");
    }
}

/// Opens a connection, completes a request on it, and keeps it.
fn idle_connection(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let _ = stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    let _ = stream.read(&mut [0; 512]);
    stream
}

#[test]
fn idle_connections_keep_no_scraper_out_at_few_descriptors() {
    const DESCRIPTORS: usize = 64;
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {DESCRIPTORS} && exec \"$0\" \"$@\"")]).arg(support::binary());
    let probe = Probe::start_command(&mut command, &["--energy.source=model", "--no-collector.cpu"]);
    let url = probe.client.url("");
    let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let mut idle = Vec::new();
    for _ in 0..2 * DESCRIPTORS {
        idle.push(idle_connection(&address));
        // A new connection each time, as after a restart of Prometheus.
        assert_eq!(Client::new(format!("http://{address}")).get("/health").unwrap().0, 200);
    }
    sleep(0.5);
    let open = fs::read_dir(format!("/proc/{}/fd", probe.program.pid())).unwrap().count();
    assert!(open < DESCRIPTORS, "{open} of {DESCRIPTORS} descriptors are open");
    let log = probe.program.log();
    assert_eq!(log.matches("limit of open files leaves").count(), 1, "{log}");
    assert!(log.matches("cannot accept connections").count() <= 1, "{log}");
    assert!(log.matches("connections are accepted again").count() <= 1, "{log}");
    drop(idle);
}
