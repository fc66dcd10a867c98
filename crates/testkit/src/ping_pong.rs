//! A ping-pong of two threads through pipes, as a load of context switches.

use std::{
    io::{PipeReader, PipeWriter, Read as _, Write as _, pipe},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};

use crate::program::pin_thread;

/// Sends a byte back and forth `turns` times, with both threads on one CPU: two context switches
/// per turn. Returns the elapsed time.
///
/// # Errors
/// When a pipe cannot be created, or the CPU is not available.
pub fn ping_pong(turns: u32, cpu: usize) -> Result<Duration> {
    let ((near, back), (far, there)) = (pipe()?, pipe()?);
    std::thread::scope(|scope| {
        let other = scope.spawn(move || play(turns, cpu, far, back, false));
        let one = scope.spawn(move || play(turns, cpu, near, there, true));
        let join = |result: std::thread::Result<Result<Duration>>| {
            result.map_err(|_| anyhow!("a ping-pong thread panicked"))?
        };
        join(other.join())?;
        join(one.join())
    })
}

fn play(turns: u32, cpu: usize, mut from: PipeReader, mut to: PipeWriter, first: bool) -> Result<Duration> {
    pin_thread(cpu).with_context(|| format!("cannot run on CPU {cpu}"))?;
    let start = Instant::now();
    let mut byte = [0];
    for _ in 0..turns {
        if first {
            to.write_all(&byte)?;
        }
        from.read_exact(&mut byte)?;
        if !first {
            to.write_all(&byte)?;
        }
    }
    Ok(start.elapsed())
}
