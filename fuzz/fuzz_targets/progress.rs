//! Progress reports of ffmpeg, in pieces of any length, and the media of a job with these reports,
//! which never decreases.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let mut parser = ffmpeg::Parser::default();
    let (mut media, mut written) = (ffmpeg::media::JobMedia::default(), 0);
    for piece in &pieces {
        parser.feed(piece, |report| {
            assert!(report.fps.is_none_or(f64::is_finite));
            media.add(&report);
            let now = media.written_us().unwrap_or(written);
            assert!(now >= written);
            written = now;
        });
    }
});
