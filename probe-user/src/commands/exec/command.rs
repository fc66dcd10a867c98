//! The thread that starts the command and waits for it.

#![allow(unsafe_code)]

use std::{
    io,
    process::{Command, ExitStatus},
    sync::mpsc::{self, Receiver, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;
use rustix::{
    io::retry_on_intr,
    process::{Pid, WaitId, WaitIdOptions, waitid},
};

use super::cgroup::{CommandCgroup, Leftover};
use crate::host::privileges;

/// The thread that starts the command. Capabilities belong to a thread: this one keeps them until
/// the command has started, while the main thread has dropped its own.
pub(super) struct CommandThread {
    /// Absent once the thread has to end.
    next_step: Option<Sender<()>>,
    started: Receiver<io::Result<u32>>,
    pub(super) exited: Receiver<io::Result<()>>,
    status: Receiver<io::Result<ExitStatus>>,
    left: Receiver<Leftover>,
    thread: Option<JoinHandle<()>>,
}

impl CommandThread {
    pub(super) fn new(mut command: Command, cgroup: CommandCgroup) -> io::Result<Self> {
        let (proceed, next_step) = mpsc::channel::<()>();
        let (exit_sender, exited) = mpsc::channel();
        let (pid_sender, started) = mpsc::channel();
        let (status_sender, status) = mpsc::channel();
        let (left_sender, left) = mpsc::channel();
        let thread = thread::Builder::new().name("command".into()).spawn(move || {
            if next_step.recv().is_err() {
                return;
            }
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let _ = pid_sender.send(Err(error));
                    return;
                }
            };
            drop(command);
            // This thread still has to remove the cgroup. The root of the tree is read-only even
            // for its owner.
            let dropped = privileges::keep_only(&[caps::Capability::CAP_DAC_OVERRIDE].into()).map_err(io::Error::other);
            let _ = pid_sender.send(dropped.map(|()| child.id()));
            let _ = exit_sender.send(wait_for_exit(Pid::from_child(&child)));
            // The pid is not reused before the child is waited for, so a signal in flight cannot
            // reach another process.
            let _ = next_step.recv();
            let _ = status_sender.send(child.wait());
            // The cgroup is removed after the last reading, or when the main thread has failed.
            let _ = next_step.recv();
            let _ = left_sender.send(cgroup.remove());
        })?;
        Ok(Self { next_step: Some(proceed), started, exited, status, left, thread: Some(thread) })
    }

    fn proceed(&self) {
        if let Some(next_step) = &self.next_step {
            let _ = next_step.send(());
        }
    }

    /// Starts the command; returns its pid.
    pub(super) fn start(&self) -> Result<u32> {
        self.proceed();
        Ok(self.started.recv()??)
    }

    /// Waits for the command, which has exited.
    pub(super) fn wait(&self) -> Result<ExitStatus> {
        self.proceed();
        Ok(self.status.recv()??)
    }

    /// Removes the cgroup; returns what is left of the command.
    pub(super) fn finish(mut self) -> Leftover {
        self.next_step = None;
        self.left.recv().unwrap_or_default()
    }
}

/// Waits for the thread, so that the program does not end before the cgroup is removed, whatever
/// has failed.
impl Drop for CommandThread {
    fn drop(&mut self) {
        self.next_step = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// CPU time of the children that this process has waited for, and of those that they have waited
/// for, as `wait4` reports it.
pub(super) fn reaped_cpu() -> Option<Duration> {
    // SAFETY: an all-zero rusage is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one rusage, which is ours.
    let done = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    let time = |time: libc::timeval| {
        let (seconds, micros) = (u64::try_from(time.tv_sec).ok()?, u64::try_from(time.tv_usec).ok()?);
        Some(Duration::from_secs(seconds) + Duration::from_micros(micros))
    };
    if done == 0 { Some(time(usage.ru_utime)? + time(usage.ru_stime)?) } else { None }
}

/// Waits until the child has ended, without reaping it.
fn wait_for_exit(pid: Pid) -> io::Result<()> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    retry_on_intr(|| waitid(WaitId::Pid(pid), options))?;
    Ok(())
}
