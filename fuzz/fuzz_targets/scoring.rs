//! Scores: stored ones, and logs of ffmpeg's filters with numbers that are none. What is accepted
//! is finite, and pooling keeps it so.
#![no_main]

use experiment::runner::quality::{parse_frame_log, parse_libvmaf_log, parse_scores, pool};
use results::store::json::strict;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (text, _) = strict(bytes.to_vec());
    if let Ok((pooled, frames)) = parse_scores(&text) {
        assert!(pooled.iter().filter_map(|score| score.value).all(f64::is_finite));
        for (metric, scores) in &frames {
            assert!(pool(metric, scores).iter().all(|(_, value)| value.is_finite()));
        }
    }
    if let Ok((scores, _)) = parse_libvmaf_log(&text, "") {
        assert!(scores.iter().all(|score| score.is_finite()));
    }
    for metric in ["psnr", "ssim", "xpsnr"] {
        let scores = parse_frame_log(&text, metric);
        assert!(pool(metric, &scores).iter().all(|(_, value)| value.is_finite()));
    }
});
