//! Records of the rings of the eBPF programs: command lines and cgroup paths, which any user can
//! choose.
#![no_main]

use probe_user::{cpu::ExecEvent, host::topology::MAX_CPUS, parsers};

/// Size of the part of an exec event before its command line.
const HEAD: usize = 40;

libfuzzer_sys::fuzz_target!(|record: &[u8]| {
    if let Some(ExecEvent::Started { args, .. }) = parsers::exec_record(record) {
        assert!(args.len() <= 4096 && record[HEAD..].starts_with(&args));
    }
    if let Some(thread) = parsers::thread_record(record) {
        // A byte that is no text becomes a character of three bytes.
        assert!(record.len() >= 56 && thread.name.len() <= 3 * 16);
    }
    if let Some(text) = parsers::log_record(record) {
        // Numbers of 4 bytes and more become at most 20 characters.
        assert!(text.len() <= 5 * record.len());
    }
    let changes = parsers::cgroup_record(record);
    assert_eq!(changes.created.len() + changes.removed.len() + usize::from(changes.incomplete), 1);
    // A byte that is no text becomes a character of three bytes.
    assert!(changes.created.iter().all(|(_, path)| path.len() < 3 * 512));
    assert!(changes.removed.iter().all(|removed| removed.cpu < MAX_CPUS));
});
