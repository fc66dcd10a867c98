//! Request lines on the socket of cgroup leases.
#![no_main]

libfuzzer_sys::fuzz_target!(|line: &[u8]| {
    if let Some(lease::Request::Enter(name)) = lease::parse_request(line) {
        assert!(!name.is_empty() && line.len() <= lease::MAX_LINE);
    }
});
