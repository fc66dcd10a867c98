//! A ping-pong through two pipes: nothing but switches.

use std::{
    io::{PipeReader, PipeWriter, Read as _, Write as _, pipe},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};

use crate::program::stay_on;

/// Plays so many turns, each a byte there and a byte back and so two switches, with both ends on one CPU; gives how long it took.
///
/// # Errors
/// When there is no pipe, or the CPU is not ours.
pub fn ping_pong(turns: u32, cpu: usize) -> Result<Duration> {
    let ((near, back), (far, there)) = (pipe()?, pipe()?);
    std::thread::scope(|scope| {
        let other = scope.spawn(move || play(turns, cpu, far, back, false));
        let one = scope.spawn(move || play(turns, cpu, near, there, true));
        let ended =
            |result: std::thread::Result<Result<Duration>>| result.map_err(|_| anyhow!("a player fell over"))?;
        ended(other.join())?;
        ended(one.join())
    })
}

fn play(turns: u32, cpu: usize, mut from: PipeReader, mut to: PipeWriter, first: bool) -> Result<Duration> {
    stay_on(cpu).with_context(|| format!("cannot stay on CPU {cpu}"))?;
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
