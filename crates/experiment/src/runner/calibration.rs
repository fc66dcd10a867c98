//! Lets the probe find the idle power before the first measurement.
//!
//! While the probe does not know it, the energy of a container includes a part of the idle energy,
//! and repeats before and after are not comparable. The probe finds it by the power at different
//! loads, so waiting without load is not enough.

use std::{
    hint,
    num::NonZero,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use results::energy::probe::{Account, WindowResponse};

use super::{context::Runner, error::RepeatError, process::EncoderError, signals::interruptible_sleep};

/// Most rounds of all loads; a noisy machine may need several.
const ROUNDS: u32 = 3;
/// Time at one load: the probe needs five samples of a second of each.
const STEP: Duration = Duration::from_secs(7);
/// The loads of a round, as a part of the CPUs: none, a quarter, half and all.
const LOADS: [usize; 4] = [0, 4, 2, 1];
/// Time without load over which the result is checked.
const CHECK: Duration = Duration::from_secs(1);

impl Runner<'_> {
    /// Loads the machine in steps until the probe knows the idle power, for at most a minute and a
    /// half. Returns the accounting roots whose idle power is still unknown.
    ///
    /// # Errors
    /// When the probe fails, or a stop is requested.
    pub(super) fn calibrate_idle(&self) -> Result<Vec<String>, RepeatError> {
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        let mut unknown = Vec::new();
        for _ in 0..ROUNDS {
            for part in LOADS {
                let threads = if part == 0 { 0 } else { cpus.div_ceil(part) };
                if !with_load(threads, || interruptible_sleep(STEP)) {
                    return Err(RepeatError::Encoder(EncoderError::Stopped));
                }
            }
            let from = self.probe.mark()?;
            if !interruptible_sleep(CHECK) {
                return Err(RepeatError::Encoder(EncoderError::Stopped));
            }
            let to = self.probe.mark()?;
            unknown = roots_without_idle(&self.probe.window_response(from, to)?);
            if unknown.is_empty() {
                break;
            }
        }
        Ok(unknown)
    }
}

/// The accounting roots whose idle power was not known in the whole window. The power of a GPU at
/// rest is not found by a load of the CPUs.
pub(super) fn roots_without_idle(response: &WindowResponse) -> Vec<String> {
    let unknown = |account: &&Account| account.zone != "gpu" && account.idle_known == Some(false);
    response.accounts.iter().filter(unknown).map(|account| format!("{}-{}", account.zone, account.package)).collect()
}

/// Keeps as many threads busy as long as `during` runs.
fn with_load<T>(threads: usize, during: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..threads {
            // A thread that cannot be started makes the load smaller, which is a load too.
            let _ = thread::Builder::new().spawn_scoped(scope, || {
                while !stop.load(Ordering::Relaxed) {
                    hint::spin_loop();
                }
            });
        }
        let result = during();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_idle_power_of_a_package_is_found() {
        let body = |known: &str| {
            format!(
                r#"{{"accounts":[
                {{"package":"0","zone":"package","source":"perf","measured_joules":10,"edge_error_joules":0,"missing_seconds":0{known}}},
                {{"package":"GPU-1","zone":"gpu","source":"nvml","measured_joules":1,"edge_error_joules":0,"missing_seconds":0,"idle_known":false}}],
                "containers":[]}}"#
            )
        };
        let roots = |known: &str| -> Vec<String> {
            roots_without_idle(&serde_json::from_str::<WindowResponse>(&body(known)).unwrap())
        };
        assert_eq!(roots(r#","idle_known":false"#), ["package-0"]);
        assert_eq!(roots(r#","idle_known":true"#), [""; 0]);
        assert_eq!(roots(""), [""; 0], "an old probe does not say");
    }

    #[test]
    fn a_load_ends_with_its_wait() {
        assert_eq!(with_load(2, || 7), 7);
    }
}
