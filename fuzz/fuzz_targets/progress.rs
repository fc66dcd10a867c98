//! Progress reports of ffmpeg, in pieces of any length.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let mut parser = ffmpeg::Parser::default();
    for piece in &pieces {
        parser.feed(piece, |report| assert!(report.fps.is_none_or(f64::is_finite)));
    }
});
