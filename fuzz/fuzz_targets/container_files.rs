//! Container metadata files of the runtimes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    use probe_user::containers::runtime_files::{parse_docker_config, parse_oci_bundle, parse_storage_list};
    let _ = (
        parse_oci_bundle(bytes),
        parse_storage_list(bytes, "eed2fabdb155f371709055cd0c07757a08c9c1a7904a5339814108dd9560b3d0"),
        parse_docker_config(bytes),
    );
});
