//! Child processes: encoders, generators, servers and ffmpeg runs that are not measured.
//!
//! A process starts in an execution environment. Its progress reports and the end of its stderr are
//! collected. It is killed when it stalls, when it is dropped, and when the runner exits. Only
//! processes of the runner are ever signalled: children by their process id before they are reaped,
//! containers by the name that the runner gave them.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    io::{self, Read},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ffmpeg::Parser;
use serde::{Deserialize, Serialize};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::{
    environment::{ExecutionEnv, SpawnHandle, kill_on_parent_exit},
    signals::stop_requested,
};

/// How many bytes of stderr are kept: the end, which contains the error message.
const STDERR_TAIL: usize = 4096;
/// Time between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// How many milliseconds to wait, after a process exited, for the threads that read its output. It
/// is a count of one millisecond sleeps instead of a deadline, so that the threads get CPU time
/// even if the machine was suspended.
const READERS_WAIT_MS: u32 = 500;
/// Smallest stall timeout of an ffmpeg run that is not measured.
const MIN_UNMEASURED_STALL: Duration = Duration::from_secs(30);
/// Interval between two checks of all processes.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Latest progress of an encoder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Encoded frames.
    pub frames: u64,
    /// Dropped frames.
    pub dropped: u64,
    /// Duplicated frames.
    pub duplicated: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Encoded media in microseconds.
    pub media_us: u64,
}

/// How a process exited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessExit {
    /// Exit code.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub code: Option<i32>,
    /// Signal that killed the process.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signal: Option<i32>,
}

impl From<ExitStatus> for ProcessExit {
    fn from(status: ExitStatus) -> Self {
        Self { code: status.code(), signal: status.signal() }
    }
}

/// A child process.
pub struct Process {
    child: Child,
    handle: SpawnHandle,
    progress: Arc<Mutex<Option<Progress>>>,
    stderr: Arc<Mutex<VecDeque<u8>>>,
    readers: Vec<JoinHandle<()>>,
    exit: Option<ProcessExit>,
    last_progress: (u64, Instant),
}

impl Process {
    /// Starts a program in an environment. Its stdout is parsed as ffmpeg's `-progress` reports.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(env: &ExecutionEnv, program: &Path, args: &[impl AsRef<OsStr>]) -> io::Result<Self> {
        let (mut command, handle) = env.command(program)?;
        let progress = Arc::new(Mutex::new(None));
        let latest = progress.clone();
        Self::start(command.args(args), handle, progress, move |stdout| follow_progress(stdout, &latest))
    }

    /// Starts a command that does not report progress. A thread passes its stdout to `read_stdout`.
    ///
    /// # Errors
    /// When the command cannot be started.
    pub fn spawn_reading(
        command: &mut Command,
        read_stdout: impl FnOnce(ChildStdout) + Send + 'static,
    ) -> io::Result<Self> {
        Self::start(kill_on_parent_exit(command), SpawnHandle::Process, Arc::default(), read_stdout)
    }

    fn start(
        command: &mut Command,
        handle: SpawnHandle,
        progress: Arc<Mutex<Option<Progress>>>,
        read_stdout: impl FnOnce(ChildStdout) + Send + 'static,
    ) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let stderr_tail = Arc::new(Mutex::new(VecDeque::new()));
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(thread::spawn(move || read_stdout(stdout)));
        }
        if let Some(stderr) = child.stderr.take() {
            let tail = stderr_tail.clone();
            readers.push(thread::spawn(move || keep_tail(stderr, &tail)));
        }
        let last_progress = (0, Instant::now());
        Ok(Self { child, handle, progress, stderr: stderr_tail, readers, exit: None, last_progress })
    }

    /// How to stop the program, and the name of its container.
    #[must_use]
    pub fn handle(&self) -> &SpawnHandle {
        &self.handle
    }

    /// Process id of the child.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Latest progress.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
    }

    /// True after the first report, which ffmpeg writes when it has opened its inputs and outputs.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// True if [`Process::try_wait`] has told how the process exited.
    #[must_use]
    pub fn is_reaped(&self) -> bool {
        self.exit.is_some()
    }

    /// How the process exited; `None` while it runs.
    ///
    /// # Errors
    /// When the system cannot wait for it.
    pub fn try_wait(&mut self) -> io::Result<Option<ProcessExit>> {
        if self.exit.is_none() && self.has_exited()? {
            // The process group id is ours until the child is reaped; kill what a wrapper script
            // left running in it.
            self.signal_group(Signal::KILL);
            self.exit = Some(self.child.wait()?.into());
            // Wait for the last output, but not for ever: another process may have inherited the
            // pipe.
            for _ in 0..READERS_WAIT_MS {
                if self.readers.iter().all(JoinHandle::is_finished) {
                    break;
                }
                thread::sleep(Duration::from_millis(1));
            }
            self.readers.clear();
        }
        Ok(self.exit.clone())
    }

    /// True when the child has exited; does not reap it.
    fn has_exited(&self) -> io::Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::Pid(Pid::from_child(&self.child)), options)?.is_some())
    }

    fn stderr_text(&self) -> String {
        let tail: Vec<u8> = self.stderr.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        String::from_utf8_lossy(&tail).into_owned()
    }

    /// ffmpeg's warning about an option that the encoder does not know. ffmpeg goes on without the
    /// option, so the configuration's labels would be wrong.
    #[must_use]
    pub fn unused_option_warning(&self) -> Option<String> {
        let text = self.stderr_text();
        text.lines().find(|line| line.contains("has not been used for any stream")).map(|line| line.trim().to_owned())
    }

    fn time_without_progress(&mut self) -> Duration {
        let media = self.progress().media_us;
        if media != self.last_progress.0 {
            self.last_progress = (media, Instant::now());
        }
        self.last_progress.1.elapsed()
    }

    /// The last three lines of stderr, for an error message.
    #[must_use]
    pub fn stderr_tail(&self) -> String {
        let text = self.stderr_text();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(3)..].join("; ")
    }

    /// Sends SIGTERM, on which ffmpeg finishes its file, and SIGKILL after `GRACE`.
    pub fn stop(&mut self) {
        if matches!(self.try_wait(), Ok(Some(_))) {
            return;
        }
        self.signal_group(Signal::TERM);
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if !matches!(self.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(POLL_INTERVAL);
        }
        self.handle.remove_container();
        self.signal_group(Signal::KILL);
        while matches!(self.try_wait(), Ok(None)) {
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Kills the program without waiting for it, and without the end of its file.
    pub fn kill(&mut self) {
        if matches!(self.try_wait(), Ok(None)) {
            self.signal_group(Signal::KILL);
        }
    }

    /// The child is not reaped yet, so the id of its process group cannot have been reused.
    fn signal_group(&self, signal: Signal) {
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
        self.handle.remove_container();
    }
}

fn follow_progress(mut stdout: impl Read, progress: &Mutex<Option<Progress>>) {
    let (mut parser, mut buffer) = (Parser::default(), [0; 4096]);
    while let Ok(length @ 1..) = stdout.read(&mut buffer) {
        parser.feed(&buffer[..length], |report| {
            let mut latest = progress.lock().unwrap_or_else(PoisonError::into_inner);
            let latest = latest.get_or_insert_default();
            // A value that a report omits keeps its last value.
            latest.frames = report.frames.unwrap_or(latest.frames);
            latest.dropped = report.dropped.unwrap_or(latest.dropped);
            latest.duplicated = report.duplicated.unwrap_or(latest.duplicated);
            latest.bytes = report.bytes.unwrap_or(latest.bytes);
            latest.media_us = report.out_time_us.unwrap_or(latest.media_us);
        });
    }
}

fn keep_tail(mut stderr: ChildStderr, tail: &Mutex<VecDeque<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stderr.read(&mut buffer) {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(&buffer[..length]);
        let excess = tail.len().saturating_sub(STDERR_TAIL);
        tail.drain(..excess);
    }
}

/// Why encoders failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EncoderError {
    /// The run was stopped by a signal.
    #[error("stopped")]
    Stopped,
    /// An encoder exited with an error or was killed.
    #[error("stream {stream}: ffmpeg ended with {cause}: {stderr}")]
    Exited {
        /// Number of the stream, from 1.
        stream: usize,
        /// `code 1` or `signal 9`.
        cause: String,
        /// The last lines of its stderr.
        stderr: String,
        /// Exit code or signal.
        exit: ProcessExit,
    },
    /// An encoder made no progress.
    #[error(
        "stream {stream}: no progress for {seconds} s (--stall-timeout; a slow encoder reports nothing during look-ahead); killed. {stderr}"
    )]
    Stalled {
        /// Number of the stream, from 1.
        stream: usize,
        /// Seconds without progress.
        seconds: u64,
        /// The last lines of its stderr.
        stderr: String,
    },
    /// A system call failed.
    #[error("{0}")]
    System(String),
}

/// Waits until all processes have exited successfully. `on_poll` is called about 50 times per
/// second and returns whether to go on. The first failure is returned; the caller stops the others
/// by dropping them.
///
/// # Errors
/// When a process fails or stalls, or a stop is requested.
pub fn wait_all(
    all: &mut [Process],
    stall: Duration,
    on_poll: &mut dyn FnMut(&[Process]) -> bool,
) -> Result<(), EncoderError> {
    loop {
        let mut running = 0;
        for (at, process) in all.iter_mut().enumerate() {
            let stream = at + 1;
            match process.try_wait().map_err(|error| EncoderError::System(error.to_string()))? {
                Some(ProcessExit { code: Some(0), .. }) => {}
                Some(exit) => {
                    let cause = match (exit.code, exit.signal) {
                        (Some(code), _) => format!("code {code}"),
                        (None, signal) => format!("signal {}", signal.unwrap_or_default()),
                    };
                    return Err(EncoderError::Exited { stream, cause, stderr: process.stderr_tail(), exit });
                }
                None if process.time_without_progress() > stall => {
                    let stderr = process.stderr_tail();
                    return Err(EncoderError::Stalled { stream, seconds: stall.as_secs(), stderr });
                }
                None => running += 1,
            }
        }
        if stop_requested() {
            return Err(EncoderError::Stopped);
        }
        if running == 0 || !on_poll(all) {
            return Ok(());
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Runs an ffmpeg that is not measured: to prepare sources, count frames or score quality. Its
/// stall timeout is at least 30 s because it may wait for the disk.
///
/// # Errors
/// When ffmpeg fails; the message is its own where it wrote one.
pub fn run_ffmpeg(program: &Path, args: &[&OsStr], stall: Duration) -> Result<(), String> {
    let common = ["-nostdin", "-hide_banner", "-loglevel", "error", "-progress", "pipe:1"].map(OsStr::new);
    let process = Process::spawn(&ExecutionEnv::None, program, &[&common, args].concat())
        .map_err(|error| format!("{}: {error}", program.display()))?;
    wait_all(&mut [process], stall.max(MIN_UNMEASURED_STALL), &mut |_| true).map_err(|error| match error {
        EncoderError::Exited { stderr, .. } if !stderr.is_empty() => stderr,
        EncoderError::Exited { cause, .. } => format!("ffmpeg ended with {cause}"),
        EncoderError::Stalled { seconds, stderr, .. } => {
            format!("ffmpeg made no progress for {seconds} s; killed. {stderr}")
        }
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use testkit::{eventually, wait::eventually_ok};

    use super::*;

    fn shell(script: &str) -> Process {
        Process::spawn(&ExecutionEnv::None, Path::new("/bin/sh"), &["-c".to_owned(), script.to_owned()]).unwrap()
    }

    #[test]
    fn the_last_progress_report_is_kept() {
        let mut all =
            [shell("printf 'frame=7\\ntotal_size=99\\nout_time_us=280000\\ndrop_frames=1\\nprogress=end\\n'")];
        wait_all(&mut all, Duration::from_secs(60), &mut |_| true).unwrap();
        let progress = all[0].progress();
        assert_eq!((progress.frames, progress.bytes, progress.media_us, progress.dropped), (7, 99, 280_000, 1));
    }

    #[test]
    fn a_failing_process_ends_the_wait_with_its_stderr() {
        let mut all = [shell("sleep 3600"), shell("echo No space left on device >&2; exit 3")];
        let error = wait_all(&mut all, Duration::from_secs(60), &mut |_| true).unwrap_err();
        assert!(
            matches!(&error, EncoderError::Exited { stream: 2, cause, stderr, .. } if cause == "code 3" && stderr.contains("No space")),
            "{error}"
        );
        let other = all[0].pid();
        drop(all);
        assert!(!Path::new(&format!("/proc/{other}")).exists(), "the other child is killed");
    }

    #[test]
    fn a_stalled_process_is_killed() {
        let mut stalled = [shell("trap '' TERM; sleep 60")];
        let error = wait_all(&mut stalled, Duration::from_millis(200), &mut |_| true).unwrap_err();
        assert!(matches!(error, EncoderError::Stalled { stream: 1, .. }), "{error}");
        let pid = stalled[0].pid();
        drop(stalled);
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the child is killed");
    }

    #[test]
    fn the_child_of_a_stalled_wrapper_is_killed_with_it() {
        let mut wrapper = [shell("trap '' TERM; sleep 3601 & echo $! >&2; wait")];
        let grandchild: u32 = eventually_ok(30.0, "the wrapper's child has a pid", || wrapper[0].stderr_tail().parse());
        wait_all(&mut wrapper, Duration::from_millis(300), &mut |_| true).unwrap_err();
        drop(wrapper);
        // It would run for an hour by itself.
        let line = || std::fs::read_to_string(format!("/proc/{grandchild}/cmdline"));
        eventually(30.0, "the wrapper's child has exited", || !line().is_ok_and(|line| line.contains("3601")));
    }

    #[test]
    fn a_killed_process_reports_its_signal() {
        let mut killed = [shell("kill -9 $$")];
        let error = wait_all(&mut killed, Duration::from_secs(60), &mut |_| true).unwrap_err();
        assert!(error.to_string().contains("signal 9"), "{error}");
    }
}
