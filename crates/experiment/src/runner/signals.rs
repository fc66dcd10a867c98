//! The stop request: SIGINT, SIGTERM and SIGHUP set a flag that all waits of the runner check.

#![allow(unsafe_code)]

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

static STOP_REQUESTED: AtomicBool = AtomicBool::new(false);

/// True after the first SIGINT, SIGTERM or SIGHUP.
#[must_use]
pub fn stop_requested() -> bool {
    STOP_REQUESTED.load(Ordering::Relaxed)
}

/// Installs handlers that record the first signal, so that the runner can clean up. A second signal
/// exits at once.
pub fn install_signal_handlers() {
    extern "C" fn record(signal: libc::c_int) {
        if STOP_REQUESTED.swap(true, Ordering::Relaxed) {
            // SAFETY: _exit is async-signal-safe.
            unsafe { libc::_exit(128 + signal) };
        }
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler uses only an atomic and _exit, which are async-signal-safe.
        unsafe { libc::signal(signal, record as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// Sleeps until `time` is over or a stop is requested. Returns true when it slept to the end.
#[must_use]
pub fn interruptible_sleep(time: Duration) -> bool {
    let end = Instant::now() + time;
    while !stop_requested() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        thread::sleep(left.min(Duration::from_millis(50)));
    }
    false
}
