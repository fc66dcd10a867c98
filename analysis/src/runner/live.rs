//! What a person sees meanwhile: how far a run is and how long it will take, and one line of what happens now. Nothing of it on a pipe, where a line for each thing
//! that is done is said instead.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::energy::probe::Probe;

/// Between two looks at the probe's page, which changes once a tick.
const EVERY: Duration = Duration::from_secs(1);

/// The bars.
pub struct Live {
    all: ProgressBar,
    now: ProgressBar,
    _both: MultiProgress,
    watched: bool,
    json: bool,
    ends: Ends,
}

/// When the work will be done, as far as that is known.
#[derive(Clone, Default)]
struct Ends(Arc<Mutex<Option<Instant>>>);

impl Ends {
    fn set(&self, left: Option<f64>) {
        let at = left.and_then(|left| Instant::now().checked_add(Duration::try_from_secs_f64(left).ok()?));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// Nothing where it is not known; zero where it takes longer than was thought.
    fn left(&self) -> Option<Duration> {
        let at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// For people.
    fn text(&self) -> String {
        match self.left() {
            None => "time left unknown".to_owned(),
            Some(Duration::ZERO) => "longer than thought".to_owned(),
            Some(left) => format!("{} left", humantime::format_duration(Duration::from_secs(left.as_secs().max(1)))),
        }
    }
}

impl Live {
    /// Bars on a terminal; lines elsewhere, none with `json`, whose output is for programs.
    #[must_use]
    pub fn new(json: bool) -> Self {
        let watched = std::io::stderr().is_terminal() && !json;
        let target = if watched { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let both = MultiProgress::with_draw_target(target);
        let (all, now) = (both.add(ProgressBar::new(0)), both.add(ProgressBar::new_spinner()));
        let ends = Ends::default();
        // Ours, and not what the bar makes of how fast it moved: what is left is known in seconds.
        if let Ok(style) = ProgressStyle::with_template("{bar:32} {percent:>3} %  {ends}{msg}") {
            let shown = ends.clone();
            all.set_style(style.with_key("ends", move |_: &ProgressState, to: &mut dyn std::fmt::Write| {
                let _ = to.write_str(&shown.text());
            }));
        }
        if let Ok(style) = ProgressStyle::with_template("  {msg}") {
            now.set_style(style);
        }
        if watched {
            // What is left grows shorter between two things that happen, too.
            all.enable_steady_tick(Duration::from_secs(1));
        }
        Self { all, now, _both: both, watched, json, ends }
    }

    /// How many seconds of work are done, and how many are left where that is known: said anew after each thing, so that work which took longer than thought makes what is left longer,
    /// too. `after` is what comes then, and is not in it.
    pub fn plan(&self, done: f64, left: Option<f64>, after: &str) {
        self.all.set_length(whole(done + left.unwrap_or(done.max(1.0))));
        self.all.set_position(whole(done));
        self.ends.set(left);
        self.all.set_message(if after.is_empty() { String::new() } else { format!(", then {after}") });
    }

    /// What is done now.
    pub fn now(&self, what: &str) {
        self.now.set_message(what.to_owned());
    }

    /// Something that is done, for whoever reads later.
    pub fn done(&self, what: &str) {
        if self.watched {
            self.all.suspend(|| say(what));
        } else if !self.json {
            say(what);
        }
    }

    /// The line of encoders that run: frames since `began`.
    pub fn line(&self, name: &str, frames: u64, began: Instant, watts: Option<f64>, joules_per_frame: Option<f64>) {
        if !self.watched {
            return;
        }
        if let (Some(left), Some(length)) = (self.ends.left(), self.all.length()) {
            self.all.set_position(length.saturating_sub(left.as_secs()));
        }
        let fps = crate::figures::float(frames) / began.elapsed().as_secs_f64().max(1e-3);
        let mut text = format!("{name}: {frames} frames, {fps:.1} fps");
        if let Some(watts) = watts {
            text += &format!(", {watts:.1} W");
        }
        // Its own joules are known when it has ended; until one has, there are the host's.
        match (joules_per_frame, watts) {
            (Some(joules), _) => text += &format!(", {:.2} mJ a frame before", joules * 1000.0),
            (None, Some(watts)) if fps > 0.0 => {
                text += &format!(", {:.2} mJ a frame of the whole host", watts / fps * 1000.0);
            }
            _ => {}
        }
        self.now.set_message(text);
    }

    /// Takes the bars away.
    pub fn clear(&self) {
        self.now.finish_and_clear();
        self.all.finish_and_clear();
    }
}

/// A reader that went away has read enough; the run goes on.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{what}");
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds of a bar")]
fn whole(seconds: f64) -> u64 {
    seconds.max(0.0).round() as u64
}

/// Watts of the host, read from the probe's page once a second until this is taken. A look changes nothing there.
pub struct Watts {
    samples: Arc<Mutex<Vec<f64>>>,
    enough: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watts {
    /// Begins.
    #[must_use]
    pub fn begin(probe: &Probe) -> Self {
        let (samples, enough) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (probe, kept, done) = (probe.clone(), samples.clone(), enough.clone());
        let thread = thread::Builder::new().name("watts".into()).spawn(move || {
            let mut due = Instant::now() + EVERY;
            while !done.load(Ordering::Relaxed) {
                let wait = due.saturating_duration_since(Instant::now());
                if !wait.is_zero() {
                    thread::park_timeout(wait);
                    continue;
                }
                // One that was put off asks once, and not once for each time.
                due = (due + EVERY).max(Instant::now());
                if let Some(watts) = probe.watts() {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(watts);
                }
            }
        });
        Self { samples, enough, thread: thread.ok() }
    }

    /// The last.
    #[must_use]
    pub fn last(&self) -> Option<f64> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).last().copied()
    }

    /// All of them.
    #[must_use]
    pub fn take(mut self) -> Vec<f64> {
        self.end();
        std::mem::take(&mut *self.samples.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn end(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Drop for Watts {
    fn drop(&mut self) {
        self.end();
    }
}
