//! ffmpeg's `-progress` as it comes: lines of `key=value`, a report's last being `progress=continue` or `progress=end`. Pure.
//!
//! Of ffmpeg 5.1: `out_time_ms` is in microseconds too, so `out_time_us` is taken; a value that is not known is `N/A`;
//! a report of a UDP target comes in one datagram, of a stream in pieces.

/// Longest line that is looked at; ffmpeg's longest has some 30 bytes. What is longer is passed over up to its end.
const MAX_LINE: usize = 256;

/// What one report says. Absent is what it does not say, or says as `N/A`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Frames of the first video output since the start.
    pub frames: Option<u64>,
    /// Frames a second, as ffmpeg's own mean since the start.
    pub fps: Option<f64>,
    /// Media time over time on the wall.
    pub speed: Option<f64>,
    /// Bits a second, as ffmpeg's own mean since the start.
    pub bitrate: Option<f64>,
    /// Bytes written.
    pub bytes: Option<u64>,
    /// Microseconds of media written.
    pub out_time_us: Option<u64>,
    /// Frames left out since the start.
    pub dropped: Option<u64>,
    /// Frames shown twice since the start.
    pub duplicated: Option<u64>,
    /// Quantizer of the first video stream's last frame.
    pub quantizer: Option<f64>,
    /// True in the last report of a job.
    pub end: bool,
}

/// Puts reports together from whatever pieces they come in. Bounded: holds a part of one line.
#[derive(Clone, Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    /// The line is too long to be one of ours, and its end has not come yet.
    skips: bool,
    report: Report,
}

impl Parser {
    /// Takes a piece, and gives each report that it completes.
    pub fn feed(&mut self, piece: &[u8], mut give: impl FnMut(Report)) {
        for byte in piece {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                if !std::mem::take(&mut self.skips) && self.take(&line) {
                    give(std::mem::take(&mut self.report));
                }
                self.line = line;
                self.line.clear();
            } else if self.line.len() < MAX_LINE {
                self.line.push(*byte);
            } else {
                self.skips = true;
            }
        }
    }

    /// Takes a line; true when it ends a report.
    fn take(&mut self, line: &[u8]) -> bool {
        let Ok(line) = std::str::from_utf8(line) else { return false };
        let Some((key, value)) = line.trim().split_once('=') else { return false };
        let value = value.trim();
        let report = &mut self.report;
        match key.trim() {
            "frame" => report.frames = value.parse().ok(),
            "fps" => report.fps = amount(value),
            "speed" => report.speed = amount(value.trim_end_matches('x').trim()),
            "bitrate" => {
                report.bitrate = amount(value.trim_end_matches("kbits/s").trim()).map(|kilobits| kilobits * 1000.0);
            }
            "total_size" => report.bytes = value.parse().ok(),
            "out_time_us" => report.out_time_us = value.parse().ok(),
            "drop_frames" => report.dropped = value.parse().ok(),
            "dup_frames" => report.duplicated = value.parse().ok(),
            // The first of them: the streams are numbered by output and stream.
            "stream_0_0_q" => report.quantizer = value.parse().ok().filter(|q: &f64| q.is_finite() && *q >= 0.0),
            "progress" => {
                report.end = value == "end";
                return true;
            }
            _ => {}
        }
        false
    }
}

/// A number of something that there can be.
fn amount(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite() && (0.0..1e15).contains(number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As ffmpeg 5.1 writes a report in the middle and its last; analysis/tests/streams.rs takes real ones.
    const SAID: &str = "frame=76\nfps=25.30\nstream_0_0_q=28.0\nbitrate= 812.4kbits/s\ntotal_size=204800\nout_time_us=2016000\nout_time_ms=2016000\n\
                        out_time=00:00:02.016000\ndup_frames=1\ndrop_frames=2\nspeed=1.01x\nprogress=continue\n\
                        frame=100\nfps=25.00\nstream_0_0_q=-1.0\nbitrate=N/A\ntotal_size=N/A\nout_time_us=4000000\ndup_frames=1\ndrop_frames=2\nspeed=1x\nprogress=end\n";

    fn reports(pieces: &[&[u8]]) -> Vec<Report> {
        let (mut parser, mut all) = (Parser::default(), Vec::new());
        for piece in pieces {
            parser.feed(piece, |report| all.push(report));
        }
        all
    }

    #[test]
    fn what_ffmpeg_says_is_understood() {
        let all = reports(&[SAID.as_bytes()]);
        let first = Report {
            frames: Some(76),
            fps: Some(25.3),
            speed: Some(1.01),
            bitrate: Some(812_400.0),
            bytes: Some(204_800),
            out_time_us: Some(2_016_000),
            dropped: Some(2),
            duplicated: Some(1),
            quantizer: Some(28.0),
            end: false,
        };
        assert_eq!(all[0], first);
        assert_eq!(
            (all[1].frames, all[1].bitrate, all[1].bytes, all[1].quantizer, all[1].end),
            (Some(100), None, None, None, true)
        );
    }

    #[test]
    fn a_line_that_never_ends_is_passed_over() {
        let endless = vec![b'x'; 1 << 20];
        let all = reports(&[b"frame=1\n", &endless, b"\nfps=2\nprogress=continue\n"]);
        assert_eq!((all[0].frames, all[0].fps), (Some(1), Some(2.0)));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(cut in prop::collection::vec(0usize..400, 0..20)) {
            let mut pieces: Vec<&[u8]> = Vec::new();
            let mut rest = SAID.as_bytes();
            for at in cut {
                let (piece, after) = rest.split_at(at.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(reports(&pieces), reports(&[SAID.as_bytes()]));
        }

        #[test]
        fn no_bytes_make_it_panic_or_grow(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..500), 0..10)) {
            let mut parser = Parser::default();
            for piece in &pieces {
                parser.feed(piece, |report| {
                    assert!(report.fps.is_none_or(f64::is_finite) && report.bitrate.is_none_or(f64::is_finite));
                });
                prop_assert!(parser.line.len() <= MAX_LINE);
            }
        }
    }
}
