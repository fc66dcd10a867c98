//! Ctrl-C: a flag that long jobs look at, so that everything they started ends in order.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

static STOP: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT, SIGTERM and SIGHUP set the flag instead of ending us.
pub(crate) fn catch_signals() {
    extern "C" fn stop(_: libc::c_int) {
        STOP.store(true, Ordering::Relaxed);
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is allowed in a signal handler.
        unsafe { libc::signal(signal, stop as *const () as libc::sighandler_t) };
    }
}

/// True once such a signal came.
pub(crate) fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Sleeps, but wakes when told to stop.
pub(crate) fn pause(time: Duration) {
    let end = Instant::now() + time;
    while !stopped() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50).min(end.saturating_duration_since(Instant::now())));
    }
}
