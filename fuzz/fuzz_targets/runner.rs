//! What the runner reads of others: matrix and batch files, journals, and the logs of ffmpeg's filters. Any bytes give something, or a reason.
#![no_main]

use analysis::runner::{
    journal,
    plan::{self, Matrix},
    quality,
    record::Record,
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok((events, whole)) = journal::parse(bytes) {
        assert!(whole <= bytes.len());
        let _ = Record::of(events);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(matrix) = Matrix::parse(text)
        && let Ok(cells) = matrix.cells("x")
    {
        assert!(!cells.is_empty());
    }
    let _ = plan::batch(text, "x");
    let _ = quality::of_libvmaf(text, "");
    let _ = quality::of_framecrc(text);
    for metric in ["psnr", "ssim", "xpsnr"] {
        assert!(quality::of_lines(text, metric).iter().all(|score| score.is_finite()));
    }
});
