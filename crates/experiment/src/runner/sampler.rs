//! Samples the power of the host once per second during a measurement.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use results::energy::probe::Probe;

/// Sampling interval. The probe's metrics change once per tick.
const INTERVAL: Duration = Duration::from_secs(1);

/// A thread that samples the power until it is dropped. Reading the probe's metrics page does not
/// affect the measurement.
pub struct PowerSampler {
    samples: Arc<Mutex<Vec<f64>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PowerSampler {
    /// Starts sampling.
    #[must_use]
    pub fn start(probe: &Probe) -> Self {
        let (samples, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (probe, written, stopped) = (probe.clone(), samples.clone(), stop.clone());
        let thread = thread::Builder::new().name("watts".into()).spawn(move || {
            let mut due = Instant::now() + INTERVAL;
            while !stopped.load(Ordering::Relaxed) {
                let wait = due.saturating_duration_since(Instant::now());
                if !wait.is_zero() {
                    thread::park_timeout(wait);
                    continue;
                }
                // After a delay, take one sample instead of one per missed interval.
                due = (due + INTERVAL).max(Instant::now());
                if let Some(watts) = probe.watts() {
                    written.lock().unwrap_or_else(PoisonError::into_inner).push(watts);
                }
            }
        });
        Self { samples, stop, thread: thread.ok() }
    }

    /// The latest sample in watts.
    #[must_use]
    pub fn latest(&self) -> Option<f64> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).last().copied()
    }

    /// Stops sampling and returns all samples in watts.
    #[must_use]
    pub fn finish(mut self) -> Vec<f64> {
        self.stop_thread();
        std::mem::take(&mut *self.samples.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn stop_thread(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Drop for PowerSampler {
    fn drop(&mut self) {
        self.stop_thread();
    }
}
