//! SIGINT and SIGTERM during the start, until a program handles them itself.
//!
//! Their default action ends a program at once, but the kernel gives the first process of a
//! container no default actions (man 7 `pid_namespaces`): without a handler it ignores a stop.

#![allow(unsafe_code)]

use std::{mem, ptr};

type Handler = extern "C" fn(libc::c_int);

/// Lets SIGINT and SIGTERM end the program, also as the first process of a container. A handler
/// that is installed later replaces this. A signal that the caller ignores stays ignored.
pub fn end_on_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: an all-zero sigaction is valid, and the kernel writes one; the handler uses only
        // async-signal-safe functions.
        unsafe {
            let mut before: libc::sigaction = mem::zeroed();
            if libc::sigaction(signal, ptr::null(), &raw mut before) == 0 && before.sa_sigaction == libc::SIG_DFL {
                libc::signal(signal, end as Handler as libc::sighandler_t);
            }
        }
    }
}

/// Ends the process as the default action does, with 128 plus the number of the signal as the exit
/// code where there is no default action.
extern "C" fn end(signal: libc::c_int) {
    // SAFETY: all functions are async-signal-safe (man 7 signal-safety); all-zero structures are
    // valid, and the pointers are to those.
    unsafe {
        let mut installed: libc::sigaction = mem::zeroed();
        let known = libc::sigaction(signal, ptr::null(), &raw mut installed) == 0;
        if known && installed.sa_sigaction != end as Handler as libc::sighandler_t {
            // The handler that replaced this one also calls it, as that of tokio does.
            return;
        }
        let mut only: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut only);
        libc::sigaddset(&raw mut only, signal);
        libc::signal(signal, libc::SIG_DFL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const only, ptr::null_mut());
        libc::raise(signal);
        libc::_exit(128 + signal);
    }
}
