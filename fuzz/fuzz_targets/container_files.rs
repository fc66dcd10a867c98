//! What container runtimes keep of their containers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    use probe_user::containers::files::{bundle, docker, storage};
    let _ = (bundle(bytes), storage(bytes, "eed2fabdb155f371709055cd0c07757a08c9c1a7904a5339814108dd9560b3d0"), docker(bytes));
});
