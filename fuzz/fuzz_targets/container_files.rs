//! Container metadata files of the runtimes. Docker's API answers in the format of its files.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    use probe_user::containers::runtime_files::{parse_docker_config, parse_oci_bundle, parse_storage_list, task_of};
    let all = [
        parse_oci_bundle(bytes),
        parse_storage_list(bytes, "eed2fabdb155f371709055cd0c07757a08c9c1a7904a5339814108dd9560b3d0"),
        parse_docker_config(bytes),
    ];
    assert!(all.iter().flatten().all(|metadata| metadata.labels.len() <= 256));
    if let Some((namespace, id)) = std::str::from_utf8(bytes).ok().and_then(task_of) {
        assert!([namespace, id].iter().all(|name| !name.is_empty() && !name.starts_with('.') && !name.contains('/')));
    }
});
