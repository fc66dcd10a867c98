//! Parser of the reports that ffmpeg writes with `-progress`.
//!
//! A report is a sequence of `key=value` lines that ends with `progress=continue` or
//! `progress=end`. Unknown values are `N/A`; a UDP target receives each report in one datagram, and
//! a stream receives it in chunks.
//!
//! The media time is `out_time_us` since ffmpeg 4.1 (fftools, `print_report`). Older versions have
//! `out_time`, `HH:MM:SS.ffffff`, and `out_time_ms`, which is in microseconds in spite of its name.
//! It is a position: with `-copyts` that of the source. [`media`] calculates what was written.

#![forbid(unsafe_code)]

pub mod media;

/// Longest line that is parsed. ffmpeg's longest has about 30 bytes; the rest of a longer line is
/// ignored.
const MAX_LINE: usize = 256;
/// Media times in microseconds that are believed: from three years before zero to 3000 years after.
/// Before the first packet some versions print `i64::MIN`, scaled or not.
const TIMES: std::ops::RangeInclusive<i64> = -100_000_000_000_000..=100_000_000_000_000_000;

/// One report. A field is `None` when the report omits it or says `N/A`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Frames of the first video output since the start.
    pub frames: Option<u64>,
    /// Mean frames per second since the start, as ffmpeg computes it.
    pub fps: Option<f64>,
    /// Media time divided by wall-clock time.
    pub speed: Option<f64>,
    /// Mean bits per second since the start, as ffmpeg computes it.
    pub bitrate: Option<f64>,
    /// Bytes written.
    pub bytes: Option<u64>,
    /// Position in the output, in microseconds; `None` if it is before zero.
    pub out_time_us: Option<u64>,
    /// Distance from zero in microseconds of a position before zero.
    pub before_zero_us: Option<u64>,
    /// Frames dropped since the start.
    pub dropped: Option<u64>,
    /// Frames duplicated since the start.
    pub duplicated: Option<u64>,
    /// Quantizer of the last frame of the first video stream.
    pub quantizer: Option<f64>,
    /// True in the last report of a job.
    pub end: bool,
}

impl Report {
    /// The position in the output in microseconds, negative before zero.
    #[must_use]
    pub fn position_us(&self) -> Option<i64> {
        let signed = |us: u64| i64::try_from(us).ok();
        self.out_time_us.and_then(signed).or_else(|| self.before_zero_us.and_then(signed).map(|us| -us))
    }

    fn set_position(&mut self, us: Option<i64>) {
        self.out_time_us = us.and_then(|us| u64::try_from(us).ok());
        self.before_zero_us = us.filter(|us| *us < 0).map(i64::unsigned_abs);
    }
}

/// The same media time under its three keys; the first that is known is used.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    out_time_us: Option<i64>,
    out_time: Option<i64>,
    out_time_ms: Option<i64>,
}

/// Assembles reports from chunks of any size. Memory is bounded: the parser holds part of one line.
#[derive(Clone, Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    /// The current line is longer than [`MAX_LINE`] and is ignored up to its end.
    skipping: bool,
    report: Report,
    times: Times,
}

impl Parser {
    /// Parses a chunk and calls `on_report` for each report that the chunk completes.
    pub fn feed(&mut self, chunk: &[u8], mut on_report: impl FnMut(Report)) {
        for byte in chunk {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                if !std::mem::take(&mut self.skipping) && self.parse_line(&line) {
                    on_report(std::mem::take(&mut self.report));
                }
                self.line = line;
                self.line.clear();
            } else if self.line.len() < MAX_LINE {
                self.line.push(*byte);
            } else {
                self.skipping = true;
            }
        }
    }

    /// Parses a line; returns true when it ends a report.
    fn parse_line(&mut self, line: &[u8]) -> bool {
        let Ok(line) = std::str::from_utf8(line) else { return false };
        let Some((key, value)) = line.trim().split_once('=') else { return false };
        let value = value.trim();
        let (report, times) = (&mut self.report, &mut self.times);
        match key.trim() {
            "frame" => report.frames = value.parse().ok(),
            "fps" => report.fps = plausible(value),
            "speed" => report.speed = plausible(value.trim_end_matches('x').trim()),
            "bitrate" => {
                report.bitrate = plausible(value.trim_end_matches("kbits/s").trim()).map(|kilobits| kilobits * 1000.0);
            }
            "total_size" => report.bytes = value.parse().ok(),
            "out_time_us" => times.out_time_us = microseconds(value),
            "out_time" => times.out_time = clock_time(value),
            "out_time_ms" => times.out_time_ms = microseconds(value),
            "drop_frames" => report.dropped = value.parse().ok(),
            "dup_frames" => report.duplicated = value.parse().ok(),
            // Streams are numbered by output and stream; this is the first.
            "stream_0_0_q" => report.quantizer = value.parse().ok().filter(|q: &f64| q.is_finite() && *q >= 0.0),
            "progress" => {
                let times = std::mem::take(times);
                report.set_position(times.out_time_us.or(times.out_time).or(times.out_time_ms));
                report.end = value == "end";
                return true;
            }
            _ => {}
        }
        false
    }
}

/// A finite, plausible, non-negative number.
fn plausible(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite() && (0.0..1e15).contains(number))
}

/// A whole number of microseconds.
fn microseconds(text: &str) -> Option<i64> {
    text.parse().ok().filter(|us| TIMES.contains(us))
}

/// Microseconds of `[-]HH:MM:SS[.ffffff]`; the hours may have any number of digits.
fn clock_time(text: &str) -> Option<i64> {
    let digits = |text: &str| -> Option<i64> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
    };
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (hours, rest) = unsigned.split_once(':')?;
    let (minutes, seconds) = rest.split_once(':')?;
    let (seconds, fraction) = seconds.split_once('.').unwrap_or((seconds, "0"));
    let fraction = digits(format!("{fraction:0<6}").get(..6)?)?;
    let minutes = digits(hours)?.checked_mul(60)?.checked_add(digits(minutes)?)?;
    let seconds = minutes.checked_mul(60)?.checked_add(digits(seconds)?)?;
    let us = seconds.checked_mul(1_000_000)?.checked_add(fraction)?;
    Some(if unsigned.len() == text.len() { us } else { -us }).filter(|us| TIMES.contains(us))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A report in the middle of a job and the last one, as ffmpeg 5.1 writes them.
    const REPORTS: &str = "frame=76\nfps=25.30\nstream_0_0_q=28.0\nbitrate= 812.4kbits/s\ntotal_size=204800\nout_time_us=2016000\nout_time_ms=2016000\n\
                        out_time=00:00:02.016000\ndup_frames=1\ndrop_frames=2\nspeed=1.01x\nprogress=continue\n\
                        frame=100\nfps=25.00\nstream_0_0_q=-1.0\nbitrate=N/A\ntotal_size=N/A\nout_time_us=4000000\ndup_frames=1\ndrop_frames=2\nspeed=1x\nprogress=end\n";

    fn reports(chunks: &[&[u8]]) -> Vec<Report> {
        let (mut parser, mut all) = (Parser::default(), Vec::new());
        for chunk in chunks {
            parser.feed(chunk, |report| all.push(report));
        }
        all
    }

    #[test]
    fn all_fields_of_a_report_are_parsed() {
        let all = reports(&[REPORTS.as_bytes()]);
        let first = Report {
            frames: Some(76),
            fps: Some(25.3),
            speed: Some(1.01),
            bitrate: Some(812_400.0),
            bytes: Some(204_800),
            out_time_us: Some(2_016_000),
            before_zero_us: None,
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
    fn media_times_of_older_versions_are_read() {
        for (lines, expected) in [
            ("out_time_us=2016000\nout_time_ms=9\nout_time=00:00:09.000000", Some(2_016_000)),
            ("out_time_ms=2016000\nout_time=00:00:02.016000", Some(2_016_000)),
            ("out_time_ms=2016000", Some(2_016_000)),
            ("out_time=01:59:36.5", Some(7_176_500_000)),
            ("out_time=100:00:00", Some(360_000_000_000)),
            ("out_time_us=N/A\nout_time_ms=N/A\nout_time=-00:00:00.080000", Some(-80_000)),
            ("out_time_us=-80000", Some(-80_000)),
            ("out_time_us=0", Some(0)),
            ("out_time_us=N/A\nout_time_ms=N/A\nout_time=N/A", None),
            ("out_time_us=-9223372036854775807\nout_time=-577014:32:22.77", None),
            ("out_time=00:00:-0.02", None),
            ("out_time=2.5", None),
            ("out_time=::", None),
            ("frame=7", None),
        ] {
            let all = reports(&[format!("{lines}\nprogress=continue\nprogress=end\n").as_bytes()]);
            assert_eq!(all[0].position_us(), expected, "{lines}");
            assert_eq!(all[1].position_us(), None, "a time belongs to its own report");
        }
    }

    #[test]
    fn an_endless_line_is_skipped() {
        let endless = vec![b'x'; 1 << 20];
        let all = reports(&[b"frame=1\n", &endless, b"\nfps=2\nprogress=continue\n"]);
        assert_eq!((all[0].frames, all[0].fps), (Some(1), Some(2.0)));
    }

    proptest! {
        #[test]
        fn chunking_makes_no_difference(cut in prop::collection::vec(0usize..400, 0..20)) {
            let mut chunks: Vec<&[u8]> = Vec::new();
            let mut rest = REPORTS.as_bytes();
            for at in cut {
                let (chunk, after) = rest.split_at(at.min(rest.len()));
                chunks.push(chunk);
                rest = after;
            }
            chunks.push(rest);
            prop_assert_eq!(reports(&chunks), reports(&[REPORTS.as_bytes()]));
        }

        #[test]
        fn arbitrary_bytes_neither_panic_nor_grow_the_parser(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..500), 0..10)) {
            let mut parser = Parser::default();
            for chunk in &chunks {
                parser.feed(chunk, |report| {
                    assert!(report.fps.is_none_or(f64::is_finite) && report.bitrate.is_none_or(f64::is_finite));
                });
                prop_assert!(parser.line.len() <= MAX_LINE);
            }
        }
    }
}
