//! The media that one job has written, from the positions in its reports.
//!
//! ffmpeg reports where the output is, not how much of it was written. Both are the same only if
//! the output begins at zero: with `-copyts` it begins where the source does (hours after `-ss`,
//! years for a live source), and a source may jump. So what lies before the first report counts
//! only as far as frames or bytes allow it, and later on only what goes beyond the furthest
//! position counts.

use crate::{Report, TIMES};

/// Media before the first report that needs no evidence: audio is ahead of the video by the frames
/// that an encoder keeps back, up to the 10 s that ffmpeg's muxer waits (`-max_interleave_delta`).
const SLACK_US: i64 = 10_000_000;
/// Longest time of a frame that is believed without a second report to compare with.
const MAX_FRAME_US: i64 = 200_000;
/// Longest time of a byte that is believed for the same reason: 2 kbit/s; speech codecs have more.
const MAX_BYTE_US: i64 = 4000;
/// Between two reports the position moves by at most this, plus this for each frame, or as far as
/// the bytes allow (audio with a cover has one frame); more is a jump of the source.
const JUMP_US: (i64, i64) = (60_000_000, 10_000_000);

/// What a report says about the amount of media.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mark {
    position: i64,
    frames: Option<u64>,
    bytes: Option<u64>,
}

/// The media written by one job.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct JobMedia {
    first: Option<Mark>,
    last_frames: Option<u64>,
    last_bytes: Option<u64>,
    /// The furthest position.
    furthest: i64,
    /// Microseconds of jumps, which were not written.
    jumped: i64,
    /// Microseconds written before the first report; `None` while that is unknown.
    before_first: Option<i64>,
}

impl JobMedia {
    /// Adds the next report of the job; a report without a position changes nothing.
    pub fn add(&mut self, report: &Report) {
        let Some(position) = report.position_us().filter(|us| TIMES.contains(us)) else { return };
        let mark = Mark { position, frames: report.frames, bytes: report.bytes };
        match self.first {
            None => (self.first, self.furthest) = (Some(mark), position),
            Some(first) => {
                self.advance(&mark);
                if self.before_first.is_none() && self.jumped == 0 {
                    // At its end an encoder returns the frames that it kept back: no rate.
                    let at_end = if report.end { alone(&Mark { position: first.position, ..mark }) } else { None };
                    self.before_first = at_end.or_else(|| before_first(&first, &mark));
                }
            }
        }
        self.last_frames = report.frames.or(self.last_frames);
        self.last_bytes = report.bytes.or(self.last_bytes);
        if report.end {
            self.settle();
        }
    }

    fn advance(&mut self, mark: &Mark) {
        let moved = mark.position.saturating_sub(self.furthest);
        if moved <= 0 {
            return;
        }
        self.furthest = mark.position;
        if let Some((now, before)) = mark.frames.zip(self.last_frames) {
            let by_frames = multiply(now.saturating_sub(before), JUMP_US.1).saturating_add(JUMP_US.0);
            let bytes = mark.bytes.zip(self.last_bytes).map_or(0, |(now, before)| now.saturating_sub(before));
            if moved > by_frames.max(multiply(bytes, MAX_BYTE_US)) {
                self.jumped = self.jumped.saturating_add(moved);
            }
        }
    }

    /// Decides about the time before the first report when no further one is expected.
    pub fn settle(&mut self) {
        if let (Some(first), None) = (self.first, self.before_first) {
            self.before_first = alone(&Mark { frames: self.last_frames, bytes: self.last_bytes, ..first });
        }
    }

    /// Microseconds of media written; `None` while unknown. Never decreases.
    #[must_use]
    pub fn written_us(&self) -> Option<u64> {
        let first = self.first?;
        let since = self.furthest.saturating_sub(first.position).saturating_sub(self.jumped);
        // One position alone says nothing.
        let written = match self.before_first {
            None if since == 0 => return None,
            before => before.unwrap_or(0).saturating_add(since),
        };
        Some(u64::try_from(written).unwrap_or(0))
    }
}

/// The time before the first report by the rate from it to a later one; `None` if nothing has
/// advanced yet.
fn before_first(first: &Mark, now: &Mark) -> Option<i64> {
    let moved = now.position.saturating_sub(first.position);
    if moved <= 0 {
        return None;
    }
    let position = first.position.max(0);
    let (frames, bytes) = (first.frames.zip(now.frames), first.bytes.zip(now.bytes));
    if frames.is_none() && bytes.is_none() {
        // Reports are equally spaced, so the first one covers little more than the next.
        let allowed = moved.saturating_mul(4).saturating_add(SLACK_US);
        return Some(if position <= allowed { position } else { 0 });
    }
    let has_grown = |(before, after): &(u64, u64)| after > before;
    let (before, after) = frames.filter(has_grown).or(bytes.filter(has_grown))?;
    let product = i128::from(moved) * i128::from(before) / i128::from(after - before);
    let allowed = i64::try_from(product).unwrap_or(i64::MAX);
    let is_plausible = position <= allowed.saturating_mul(2).saturating_add(SLACK_US);
    Some(if is_plausible { position } else { allowed })
}

/// The time before a report by all frames and bytes of its job; `None` if nothing speaks for its
/// position.
fn alone(only: &Mark) -> Option<i64> {
    let position = only.position.max(0);
    let by_frames = only.frames.map(|frames| multiply(frames, MAX_FRAME_US));
    // Bytes say less: they are many for few frames of video.
    let by_bytes = only.bytes.filter(|_| only.frames.is_none_or(|frames| frames <= 1));
    let allowed = by_frames.max(by_bytes.map(|bytes| multiply(bytes, MAX_BYTE_US))).unwrap_or(0);
    (position <= allowed.saturating_add(SLACK_US)).then_some(position)
}

fn multiply(count: u64, us: i64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX).saturating_mul(us)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn report(frames: Option<u64>, seconds: f64) -> Report {
        let mut report = Report { frames, ..Report::default() };
        report.set_position(Some((seconds * 1e6).round() as i64));
        report
    }

    fn seconds(reports: &[Report]) -> Option<f64> {
        let mut media = JobMedia::default();
        for report in reports {
            media.add(report);
        }
        media.settle();
        media.written_us().map(|us| us as f64 / 1e6)
    }

    #[test]
    fn a_position_in_the_source_is_not_what_was_written() {
        // -copyts after -ss: two hours for 2522 frames.
        let some = seconds(&[report(Some(2135), 7176.0), report(Some(2522), 7192.16)]).unwrap();
        assert!((some - 105.3).abs() < 0.1, "{some}");
        assert_eq!(seconds(&[report(None, 7176.0), report(None, 7192.0)]), Some(16.0), "audio only");
        assert_eq!(seconds(&[report(Some(50), 7176.0)]), None, "a single report");
        assert_eq!(seconds(&[report(None, 7176.0)]), None);
    }

    #[test]
    fn positions_from_zero_are_what_was_written() {
        assert_eq!(seconds(&[report(Some(50), 2.0)]), Some(2.0));
        assert_eq!(seconds(&[report(Some(12), 1.5), report(Some(24), 2.0)]), Some(2.0), "audio is ahead");
        assert_eq!(seconds(&[report(None, 10.0), report(None, 20.0)]), Some(20.0));
        assert_eq!(seconds(&[report(Some(0), 0.0), report(Some(25), 1.0)]), Some(1.0));
        let sized = Report { bytes: Some(4_800_000), ..report(None, 300.0) };
        assert_eq!(seconds(&[sized]), Some(300.0), "a short job at high speed");
        assert_eq!(seconds(&[Report { bytes: Some(4800), ..report(None, 7200.0) }]), None);
        let cover = |seconds: f64| Report { bytes: Some((seconds * 16_000.0) as u64), ..report(Some(1), seconds) };
        assert_eq!(seconds(&[cover(250.0), cover(500.0), cover(750.0)]), Some(750.0), "audio with a cover");
        assert_eq!(seconds(&[Report { frames: Some(9), ..Report::default() }]), None, "no position is not zero");
    }

    #[test]
    fn frames_that_an_encoder_keeps_back_cost_no_media() {
        let end = |frames, at| Report { end: true, ..report(Some(frames), at) };
        assert_eq!(seconds(&[report(Some(1190), 50.0), end(1260, 50.4)]), Some(50.4), "returned at the end");
        assert_eq!(seconds(&[report(Some(0), 6.0), end(150, 6.0)]), Some(6.0), "a clip that is kept back whole");
        assert_eq!(seconds(&[report(Some(0), 2.7), report(Some(25), 3.7)]), Some(3.7), "audio is ahead");
        let copyts = seconds(&[report(Some(2135), 7176.0), end(2522, 7192.16)]).unwrap();
        assert!((copyts - 105.3).abs() < 0.1, "{copyts}");
    }

    #[test]
    fn times_before_zero_swings_and_jumps_do_not_add_up() {
        assert_eq!(seconds(&[report(Some(1), -3600.0), report(Some(51), -3598.0)]), Some(2.0));
        let swinging: Vec<Report> =
            (0..50).map(|at| report(Some(at), at as f64 / 25.0 + if at % 2 == 0 { 0.5 } else { 0.0 })).collect();
        assert!(seconds(&swinging).unwrap() < 3.0);
        let jump = [report(Some(25), 1.0), report(Some(50), 2.0), report(Some(62), 7200.0), report(Some(75), 7200.5)];
        assert_eq!(seconds(&jump), Some(2.5));
    }

    proptest! {
        #[test]
        fn written_media_never_decreases(
            reports in prop::collection::vec(
                (prop::option::of(any::<u64>()), prop::option::of(any::<u64>()), TIMES, any::<bool>()),
                0..30,
            ),
        ) {
            let (mut media, mut before) = (JobMedia::default(), 0);
            for (frames, bytes, us, end) in reports {
                let mut report = Report { frames, bytes, end, ..Report::default() };
                report.set_position(Some(us));
                media.add(&report);
                let now = media.written_us().unwrap_or(before);
                prop_assert!(now >= before);
                before = now;
            }
        }
    }
}
