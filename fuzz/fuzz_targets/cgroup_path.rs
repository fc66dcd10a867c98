//! The path of a cgroup, whose names anybody who may make cgroups chooses.
#![no_main]

libfuzzer_sys::fuzz_target!(|path: &str| {
    if let probe_user::containers::path::Workload::Container { id, .. } =
        probe_user::containers::path::classify(path)
    {
        assert_eq!(id.len(), 64);
        assert!(path.contains(id));
    }
});
