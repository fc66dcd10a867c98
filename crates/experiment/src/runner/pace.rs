//! Whether streams keep up with real time, by their lag: the time on the clock without the media
//! that they have encoded.
//!
//! The lag itself says little. A stream starts late, an encoder looks ahead, and the frames that it
//! holds back are encoded after the source has ended: all of it delays the stream once, and by more
//! where many start or end at a time. A stream that the host does not carry falls ever further
//! behind. So the lag of a first part of the time is compared with that of the last one, each its
//! smallest value: reports are late at random, and a burst of other load that a stream makes up for
//! is no lack of capacity.

use serde::{Deserialize, Serialize};

/// Part of the time by which a stream in real time may fall behind.
const MOST_BEHIND: f64 = 0.02;
/// Seconds by which it may in any case: a report shows a whole group of pictures at once.
const GROUP: f64 = 0.1;
/// The first and the last part of the time that are compared.
const PART: f64 = 1.0 / 3.0;
/// Shortest time in seconds that tells whether a stream falls behind.
const SHORTEST: f64 = 1.0;

/// By how much the lag of a stream grew.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// Growth in seconds; negative for a stream that catches up.
    pub grew_seconds: f64,
    /// In this time, in seconds.
    pub in_seconds: f64,
}

impl Lag {
    /// True if the stream runs in real time.
    #[must_use]
    pub fn keeps_up(self) -> bool {
        self.part_of_tolerance() <= 1.0
    }

    fn part_of_tolerance(self) -> f64 {
        self.grew_seconds / (most_behind(self.in_seconds) * self.in_seconds)
    }
}

/// Part of a time in seconds by which the lag of a stream in real time may grow in it.
fn most_behind(seconds: f64) -> f64 {
    (GROUP / seconds).max(MOST_BEHIND)
}

/// Part of the time by which streams in real time may fall behind if they are followed for so many
/// seconds.
pub(super) fn tolerance(seconds: f64) -> f64 {
    most_behind(seconds * (1.0 - PART))
}

/// Follows the lag of streams.
#[derive(Debug)]
pub(super) struct Pace {
    streams: Vec<Stream>,
    until: f64,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// When the stream is first followed: from its first media.
    from: Option<f64>,
    /// Smallest lag in the first and in the last part.
    first: f64,
    last: f64,
}

impl Pace {
    /// Follows streams from their first media until a point in time, in seconds.
    pub(super) fn new(streams: usize, until: f64) -> Self {
        Self { streams: vec![Stream { from: None, first: f64::INFINITY, last: f64::INFINITY }; streams], until }
    }

    /// The media in seconds that each stream has encoded up to a point in time.
    pub(super) fn observe(&mut self, at: f64, media: impl Iterator<Item = f64>) {
        if at > self.until {
            return;
        }
        for (stream, media) in self.streams.iter_mut().zip(media).filter(|(_, media)| *media > 0.0) {
            let from = *stream.from.get_or_insert(at);
            let (part, lag) = ((self.until - from) * PART, at - media);
            if at <= from + part {
                stream.first = stream.first.min(lag);
            } else if at >= self.until - part {
                stream.last = stream.last.min(lag);
            }
        }
    }

    /// The lag of the stream that fell behind most, by what is tolerated in its time. `None` if
    /// that of a stream is not known: it encoded nothing, or for too short a time.
    pub(super) fn slowest(&self) -> Option<Lag> {
        let lags: Option<Vec<Lag>> = self.streams.iter().map(|stream| stream.lag(self.until)).collect();
        lags?.into_iter().max_by(|a, b| a.part_of_tolerance().total_cmp(&b.part_of_tolerance()))
    }
}

impl Stream {
    fn lag(&self, until: f64) -> Option<Lag> {
        let time = until - self.from?;
        // The distance of two points at the same place in their parts.
        let lag = Lag { grew_seconds: self.last - self.first, in_seconds: time * (1.0 - PART) };
        (time >= SHORTEST && lag.grew_seconds.is_finite()).then_some(lag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows streams at each hundredth of a second; `media` are those of one at a time.
    fn follow(until: f64, streams: &[&dyn Fn(f64) -> f64]) -> Option<Lag> {
        let mut pace = Pace::new(streams.len(), until);
        for step in 0..=3000_u32 {
            let at = f64::from(step) / 100.0;
            pace.observe(at, streams.iter().map(|media| media(at)));
        }
        pace.slowest()
    }

    /// The last report of a stream, every 0.2 s, of pictures in groups of eight at 60 fps.
    fn reported(media: f64) -> f64 {
        let group = 8.0 / 60.0;
        ((media / 0.2).floor() * 0.2 / group).floor() * group
    }

    #[test]
    fn short_time_tells_less_of_the_pace() {
        let rounded = |seconds: f64| (1e3 * tolerance(seconds)).round();
        assert_eq!([2.0, 5.0, 7.5, 60.0].map(rounded), [75.0, 30.0, 20.0, 20.0]);
    }

    /// 32 streams that started at once took 1.25 s longer than 3 s of media, and 1.1 s longer than
    /// 10 s: they had started late, and kept up.
    #[test]
    fn stream_that_starts_late_keeps_up() {
        for delay in [0.0, 0.9, 3.0] {
            let lag = follow(10.0, &[&|at| reported(at - delay)]).unwrap();
            assert!(lag.keeps_up() && lag.grew_seconds.abs() < 0.1, "{delay}: {lag:?}");
        }
    }

    #[test]
    fn stream_that_falls_behind_does_not_keep_up() {
        for (speed, keeps_up) in [(1.0, true), (0.99, true), (0.95, false), (0.8, false), (0.0, false)] {
            for until in [5.0, 10.0, 30.0] {
                let lag = follow(until, &[&|at| reported(at - 0.5), &|at| 0.4 + reported(speed * at)]).unwrap();
                assert_eq!(lag.keeps_up(), keeps_up, "{speed} for {until} s: {lag:?}");
            }
        }
    }

    #[test]
    fn stream_with_little_time_does_not_hide_a_slow_one() {
        let late = |at: f64| 0.95 * (at - 8.4);
        assert!(follow(10.0, &[&late]).unwrap().keeps_up(), "too little time to tell");
        assert!(!follow(10.0, &[&late, &|at| 0.97 * at]).unwrap().keeps_up());
    }

    #[test]
    fn pause_that_is_made_up_for_is_no_lag() {
        let paused = |from: f64, until: f64| move |at: f64| if (from..until).contains(&at) { from } else { at };
        for (from, until) in [(1.0, 2.5), (4.0, 6.0), (8.0, 9.5)] {
            let lag = follow(10.0, &[&paused(from, until)]).unwrap();
            assert!(lag.keeps_up(), "{from} to {until}: {lag:?}");
        }
        // It does not come back.
        assert!(!follow(10.0, &[&|at| at.min(6.0)]).unwrap().keeps_up());
        // One that makes up for its start gains on the clock.
        assert!(follow(10.0, &[&|at| (1.2 * at).min(at + 2.0)]).unwrap().grew_seconds < -1.0);
    }

    #[test]
    fn short_or_silent_stream_has_no_lag() {
        assert_eq!(follow(10.0, &[&|at| at, &|_| 0.0]), None);
        assert_eq!(follow(10.0, &[&|at| at - 9.2]), None);
        assert_eq!(follow(0.5, &[&|at| at + 1.0]), None);
    }
}
