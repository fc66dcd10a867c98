//! Lists of CPUs in sysfs, and `/proc/cpuinfo`.
#![no_main]

use probe_user::{host::topology::MAX_CPUS, parsers};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Some(cpus) = parsers::cpu_list(text) {
        assert!(cpus.windows(2).all(|pair| pair[0] < pair[1]), "ascending, none twice");
        assert!(cpus.last().is_some_and(|last| *last < MAX_CPUS));
    }
    let name = parsers::cpuinfo(text).name;
    assert!(name.chars().count() <= 80 && !name.contains(char::is_control));
});
