//! Progress display on a terminal: the progress and remaining time of the run, and the current
//! step. When stderr is not a terminal, one line per completed step is printed instead.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// The progress display.
pub struct Display {
    run: ProgressBar,
    step: ProgressBar,
    _bars: MultiProgress,
    on_terminal: bool,
    json: bool,
    end: EstimatedEnd,
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
    /// Shows bars on a terminal and lines elsewhere; shows neither lines nor bars with `json`.
    #[must_use]
    pub fn new(json: bool) -> Self {
        let on_terminal = std::io::stderr().is_terminal() && !json;
        let target = if on_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bars = MultiProgress::with_draw_target(target);
        let (run, step) = (bars.add(ProgressBar::new(0)), bars.add(ProgressBar::new_spinner()));
        let end = EstimatedEnd::default();
        // The remaining time is our estimate, not indicatif's, which extrapolates the speed of the
        // bar.
        if let Ok(style) = ProgressStyle::with_template("{bar:32} {percent:>3} %  {end}{msg}") {
            let estimate = end.clone();
            run.set_style(style.with_key("end", move |_: &ProgressState, to: &mut dyn std::fmt::Write| {
                let _ = to.write_str(&estimate.text());
            }));
        }
        if let Ok(style) = ProgressStyle::with_template("  {msg}") {
            step.set_style(style);
        }
        if on_terminal {
            // Redraw once per second, so that the remaining time counts down between steps.
            run.enable_steady_tick(Duration::from_secs(1));
        }
        Self { run, step, _bars: bars, on_terminal, json, end }
    }

    /// Updates the seconds done and the estimate of the seconds left, after each step. `after`
    /// names what follows and is not included in the estimate.
    pub fn set_progress(&self, done: f64, left: Option<f64>, after: &str) {
        self.run.set_length(round_seconds(done + left.unwrap_or(done.max(1.0))));
        self.run.set_position(round_seconds(done));
        self.end.set(left);
        self.run.set_message(if after.is_empty() { String::new() } else { format!(", then {after}") });
    }

    /// Shows the current step.
    pub fn set_step(&self, step: &str) {
        self.step.set_message(step.to_owned());
    }

    /// Prints a line about a completed step.
    pub fn log(&self, line: &str) {
        if self.on_terminal {
            self.run.suspend(|| print_line(line));
        } else if !self.json {
            print_line(line);
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
        if let (Some(left), Some(length)) = (self.end.left(), self.run.length()) {
            self.run.set_position(length.saturating_sub(left.as_secs()));
        }
        let fps = results::convert::float(frames) / began.elapsed().as_secs_f64().max(1e-3);
        let mut text = format!("{name}: {frames} frames, {fps:.1} fps");
        if let Some(watts) = watts {
            text += &format!(", {watts:.1} W");
        }
        // The encoder's energy is known after its first repeat; before that, show the host's.
        match (joules_per_frame, watts) {
            (Some(joules), _) => text += &format!(", {:.2} mJ/frame so far", joules * 1000.0),
            (None, Some(watts)) if fps > 0.0 => {
                text += &format!(", {:.2} mJ/frame of the whole host", watts / fps * 1000.0);
            }
            _ => {}
        }
        self.step.set_message(text);
    }

    /// Removes the bars.
    pub fn clear(&self) {
        self.step.finish_and_clear();
        self.run.finish_and_clear();
    }
}

/// Prints a line to stderr. A closed stderr must not end the run.
fn print_line(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds of a progress bar")]
fn round_seconds(seconds: f64) -> u64 {
    seconds.max(0.0).round() as u64
}
