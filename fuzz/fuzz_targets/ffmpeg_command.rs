//! Command lines of ffmpeg.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    let command = probe_user::jobs::command_line::CommandLine::parse(line);
    assert!(command.outputs.len() <= 16);
});
