//! Progress display on a terminal: one bar with the progress and remaining time of the run, and
//! below it what the run does or waits for. When stderr is not a terminal, one line per completed
//! step is printed instead.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cli::{
    colour::Meaning,
    number::{short, with_unit},
    terminal::View,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// The progress display.
pub struct Display {
    bar: ProgressBar,
    on_terminal: bool,
    json: bool,
    end: EstimatedEnd,
    step: StepClock,
}

/// The start of a step without progress of its own.
#[derive(Clone, Default)]
struct StepClock(Arc<Mutex<Option<Instant>>>);

impl StepClock {
    fn set(&self, began: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = began;
    }

    /// The duration of the step as text; empty for the first seconds.
    fn text(&self) -> String {
        let began = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = began.map_or(0, |began| began.elapsed().as_secs());
        if seconds < 3 { String::new() } else { format!(" ({seconds} s)") }
    }
}

/// The estimated end of the run, if known.
#[derive(Clone, Default)]
struct EstimatedEnd(Arc<Mutex<Option<Instant>>>);

impl EstimatedEnd {
    fn set(&self, left: Option<f64>) {
        let at = left.and_then(|left| Instant::now().checked_add(Duration::try_from_secs_f64(left).ok()?));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// Remaining time; zero when the estimate has passed.
    fn left(&self) -> Option<Duration> {
        let at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Remaining time as text.
    fn text(&self) -> String {
        match self.left() {
            None => "time left unknown".to_owned(),
            Some(Duration::ZERO) => "longer than estimated".to_owned(),
            Some(left) => format!("{} left", humantime::format_duration(Duration::from_secs(left.as_secs().max(1)))),
        }
    }
}

impl Display {
    /// Shows the bar on a terminal and lines elsewhere; shows neither with `json`.
    #[must_use]
    pub fn new(json: bool) -> Self {
        let on_terminal = std::io::stderr().is_terminal() && !json;
        let target = if on_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        // Without a length the bar is empty; one of length zero would be full.
        let bar = ProgressBar::with_draw_target(None, target);
        let (end, step) = (EstimatedEnd::default(), StepClock::default());
        // The remaining time is our estimate, not indicatif's, which extrapolates the speed of the
        // bar.
        let template = "{bar:24} {percent:>3} %  {end}{prefix}\n  {msg}{step}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            let (estimate, clock) = (end.clone(), step.clone());
            let style = style.with_key("end", move |_: &ProgressState, to: &mut dyn std::fmt::Write| {
                let _ = to.write_str(&estimate.text());
            });
            bar.set_style(style.with_key("step", move |_: &ProgressState, to: &mut dyn std::fmt::Write| {
                let _ = to.write_str(&clock.text());
            }));
        }
        if on_terminal {
            // Redraw once per second, so that the remaining time counts down between steps.
            bar.enable_steady_tick(Duration::from_secs(1));
        }
        Self { bar, on_terminal, json, end, step }
    }

    /// Updates the seconds done and the estimate of the seconds left, after each step. `after`
    /// names what follows and is not included in the estimate.
    pub fn set_progress(&self, done: f64, left: Option<f64>, after: &str) {
        match left {
            Some(left) => {
                let length = round_seconds(done + left).max(1);
                self.bar.set_length(length);
                self.bar.set_position(below_length(round_seconds(done), length));
            }
            // Without an estimate there is no part of the whole.
            None => self.bar.unset_length(),
        }
        self.end.set(left);
        self.bar.set_prefix(if after.is_empty() { String::new() } else { format!(", then {after}") });
    }

    /// Shows what the run does or waits for now.
    pub fn set_step(&self, step: &str) {
        self.step.set(Some(Instant::now()));
        self.bar.set_message(step.to_owned());
    }

    /// Prints a line about a completed step.
    pub fn log(&self, line: &str) {
        // The size of the terminal may have changed.
        let view = View::stderr();
        let line = coloured(&view.fit(line), view);
        if self.on_terminal {
            self.bar.suspend(|| print_line(&line));
        } else if !self.json {
            print_line(&line);
        }
    }

    /// Shows the progress of running encoders: frames since `began`.
    pub fn show_encoders(
        &self,
        name: &str,
        frames: u64,
        began: Instant,
        watts: Option<f64>,
        joules_per_frame: Option<f64>,
    ) {
        if !self.on_terminal {
            return;
        }
        if let (Some(left), Some(length)) = (self.end.left(), self.bar.length()) {
            self.bar.set_position(below_length(length.saturating_sub(left.as_secs()), length));
        }
        self.step.set(None);
        self.bar.set_message(encoder_text(name, frames, began.elapsed(), watts, joules_per_frame));
    }

    /// Removes the bar.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// The line with a colour for its first word, if that is an outcome.
fn coloured(line: &str, view: View) -> String {
    let word = line.split_whitespace().next().unwrap_or_default();
    let meaning = match word {
        "ok" => Meaning::Better,
        "failed" => Meaning::Worse,
        "warning" | "skipped" | "again" | "unknown" => Meaning::Warning,
        _ => return line.to_owned(),
    };
    line.replacen(word, &view.paint(meaning, word), 1)
}

/// Text on running encoders.
fn encoder_text(
    name: &str,
    frames: u64,
    elapsed: Duration,
    watts: Option<f64>,
    joules_per_frame: Option<f64>,
) -> String {
    let fps = results::convert::float(frames) / elapsed.as_secs_f64().max(1e-3);
    let mut text = format!("{name}: {frames} frames, {} fps", short(fps));
    if let Some(watts) = watts {
        text += &format!(", {}", with_unit(watts, "W"));
    }
    // The encoder's energy is known after its first repeat; before that, show the host's.
    match (joules_per_frame, watts) {
        (Some(joules), _) => text += &format!(", {} so far", with_unit(joules, "J/frame")),
        (None, Some(watts)) if fps > 0.0 => {
            text += &format!(", {} of the whole host", with_unit(watts / fps, "J/frame"));
        }
        _ => {}
    }
    text
}

/// A position that is not the end: a run that takes longer than estimated has not ended, and
/// neither has one that waits.
fn below_length(position: u64, length: u64) -> u64 {
    // 99 % at most, because the shown percentage is rounded.
    position.min((length * 99 / 100).min(length.saturating_sub(1)))
}

/// Prints a line to stderr. A closed stderr must not end the run.
fn print_line(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds of a progress bar")]
fn round_seconds(seconds: f64) -> u64 {
    seconds.max(0.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bar was full before the first estimate, and as soon as an estimate had passed.
    #[test]
    fn the_bar_is_not_full_before_the_end() {
        let display = Display::new(true);
        assert_eq!(display.bar.length(), None, "a bar of length zero is full");
        display.set_progress(0.0, None, "");
        assert_eq!(display.bar.length(), None);
        for (done, left) in [(0.0, 0.0), (1.0, 0.0), (10.0, 0.2), (5000.0, 0.0), (3.0, 60.0)] {
            display.set_progress(done, Some(left), "the scores");
            let (position, length) = (display.bar.position(), display.bar.length().unwrap_or_default());
            assert!(position < length && position * 100 <= length * 99, "{done} {left}: {position} of {length}");
        }
        assert_eq!(display.bar.prefix(), ", then the scores");
    }

    #[test]
    fn a_line_without_colours_is_unchanged() {
        for line in ["  ok      x264, repeat 1: 3 J", "  warning place: unknown", "  the probe does not respond"] {
            assert_eq!(coloured(line, View::PLAIN), line);
        }
    }

    #[test]
    fn a_step_says_how_long_it_takes() {
        let clock = StepClock::default();
        assert_eq!(clock.text(), "");
        clock.set(Instant::now().checked_sub(Duration::from_secs(12)));
        assert_eq!(clock.text(), " (12 s)");
    }

    #[test]
    fn encoders_are_shown_with_short_numbers() {
        let elapsed = Duration::from_secs(10);
        assert_eq!(
            encoder_text("x264", 300, elapsed, Some(45.123), Some(0.012_34)),
            "x264: 300 frames, 30 fps, 45.1 W, 12.3 mJ/frame so far"
        );
        assert_eq!(
            encoder_text("x264", 300, elapsed, Some(45.0), None),
            "x264: 300 frames, 30 fps, 45.0 W, 1.50 J/frame of the whole host"
        );
    }
}
