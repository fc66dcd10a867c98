//! The path of a cgroup, whose components any user with delegated cgroups can choose.
#![no_main]

libfuzzer_sys::fuzz_target!(|path: &str| {
    if let probe_user::containers::path::Workload::Container { id, .. } = probe_user::containers::path::classify(path) {
        assert_eq!(id.len(), 64);
        assert!(path.contains(id));
    }
});
