//! A command line of ffmpeg's.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    let command = probe_user::jobs::command::Command::parse(line);
    assert!(command.outputs.len() <= 16);
});
