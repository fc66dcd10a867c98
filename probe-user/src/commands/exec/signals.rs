//! Signals while a command is prepared and runs.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicI32, Ordering};

/// A signal ended the program before its command started.
#[derive(Debug, thiserror::Error)]
#[error("ended by signal {0} before the command started")]
pub(super) struct EndedAtStart(pub(super) libc::c_int);

/// The process id of the command; 0 before its start.
static COMMAND_PID: AtomicI32 = AtomicI32::new(0);
/// The value of [`COMMAND_PID`] after the end of the command.
const ENDED: libc::pid_t = -1;
/// The last signal received while no command ran.
static PENDING_SIGNAL: AtomicI32 = AtomicI32::new(0);
/// The last signal received at any time; 0 before the first.
static RECEIVED_SIGNAL: AtomicI32 = AtomicI32::new(0);

/// The handlers of signals, from before the cgroup is created until after it is removed.
///
/// SIGTERM and SIGHUP are forwarded to the command; the probe ends when the command does. Ctrl-C,
/// which the terminal also sends to the command, is not forwarded. Before the command has started
/// each of them ends the probe, which then removes the cgroup; see [`end_if_signalled`].
pub(super) struct CaughtSignals;

impl CaughtSignals {
    pub(super) fn new() -> Self {
        type Handler = extern "C" fn(libc::c_int);
        extern "C" fn pass(signal: libc::c_int) {
            RECEIVED_SIGNAL.store(signal, Ordering::SeqCst);
            let command = COMMAND_PID.load(Ordering::SeqCst);
            if command > 0 {
                // SAFETY: kill is async-signal-safe; the pid is our child's, which is not reaped
                // while COMMAND_PID is set.
                unsafe { libc::kill(command, signal) };
            } else {
                PENDING_SIGNAL.store(signal, Ordering::SeqCst);
            }
        }
        extern "C" fn interrupted(signal: libc::c_int) {
            RECEIVED_SIGNAL.store(signal, Ordering::SeqCst);
            if COMMAND_PID.load(Ordering::SeqCst) <= 0 {
                PENDING_SIGNAL.store(signal, Ordering::SeqCst);
            }
        }
        let (pass, interrupted) = (pass as Handler, interrupted as Handler);
        for (signal, handler) in
            [(libc::SIGTERM, pass), (libc::SIGHUP, pass), (libc::SIGINT, interrupted), (libc::SIGQUIT, interrupted)]
        {
            // SAFETY: the handlers use only async-signal-safe operations. They are handlers instead
            // of SIG_IGN because exec would keep the latter for the command.
            unsafe { libc::signal(signal, handler as libc::sighandler_t) };
        }
        Self
    }
}

impl Drop for CaughtSignals {
    fn drop(&mut self) {
        for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
            // SAFETY: SIG_DFL is a valid handler.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

/// # Errors
/// When a signal has arrived and the command has not started.
pub(super) fn end_if_signalled() -> Result<(), EndedAtStart> {
    match PENDING_SIGNAL.load(Ordering::SeqCst) {
        0 => Ok(()),
        signal => Err(EndedAtStart(signal)),
    }
}

/// The last signal that this process received; a series of commands ends with it.
pub(super) fn received_signal() -> Option<libc::c_int> {
    Some(RECEIVED_SIGNAL.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
}

/// A command is about to be prepared: a signal ends the probe again, until the command has a pid.
pub(super) fn expect_command() {
    COMMAND_PID.store(0, Ordering::SeqCst);
}

/// Sets the pid of the command, and forwards a signal that arrived while it was started.
pub(super) fn forward_signals_to(pid: libc::pid_t) {
    COMMAND_PID.store(pid, Ordering::SeqCst);
    let pending = PENDING_SIGNAL.load(Ordering::SeqCst);
    if pending != 0 {
        // SAFETY: the pid is our child's, which is not reaped yet.
        unsafe { libc::kill(pid, pending) };
    }
}

/// Stops forwarding. Call it before the command is waited for, after which its pid may be reused.
pub(super) fn stop_forwarding() {
    COMMAND_PID.store(ENDED, Ordering::SeqCst);
}
