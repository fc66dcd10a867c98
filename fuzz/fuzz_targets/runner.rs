//! Files that the experiment runner reads: matrix and batch files, journals, and logs of ffmpeg
//! filters. Arbitrary bytes result in a value or an error.
#![no_main]

use experiment::runner::{
    journal,
    plan::{self, Matrix},
    quality,
    record::Record,
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok((events, length)) = journal::parse(bytes) {
        assert!(length <= bytes.len());
        let _ = Record::from_events(events);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(matrix) = Matrix::parse(text)
        && let Ok(configurations) = matrix.configurations("x")
    {
        assert!(!configurations.is_empty());
    }
    let _ = plan::parse_batch(text, "x");
    let _ = quality::parse_libvmaf_log(text, "");
    let _ = quality::parse_framecrc(text);
    for metric in ["psnr", "ssim", "xpsnr"] {
        assert!(quality::parse_frame_log(text, metric).iter().all(|score| score.is_finite()));
    }
});
