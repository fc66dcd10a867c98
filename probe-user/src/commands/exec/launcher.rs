//! The thread that keeps the privileges of the start until the last command is prepared.
//!
//! Capabilities belong to a thread, and a thread starts with those of its parent. The main thread
//! drops its own before the first command runs, so each command's cgroup and thread are made here.
//! This thread does nothing else, and it ends as soon as no command is to come.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io::{PipeReader, PipeWriter},
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{self, Sender},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};

use super::{
    caller::Caller,
    cgroup::{CommandCgroup, Location},
    command::CommandThread,
    progress::{is_ffmpeg, report_to_pipe},
};

type Task = Box<dyn FnOnce() + Send>;

/// What a command needs to start.
pub(super) struct Launch {
    /// The program and its arguments.
    pub(super) words: Vec<OsString>,
    /// Number of the command among all of this `exec`, from 0; its cgroup is named by it.
    pub(super) number: u32,
    /// Mount point of the cgroup trees.
    pub(super) cgroupfs: PathBuf,
    /// The user to run it as; `None` to keep the user of this process.
    pub(super) caller: Option<Caller>,
}

/// A command that is ready to start, in its own cgroup.
pub(super) struct PreparedCommand {
    pub(super) thread: CommandThread,
    pub(super) location: Location,
    /// Pipe of ffmpeg's progress reports.
    pub(super) pipe: Option<(PipeReader, PipeWriter)>,
    /// True if the command is ffmpeg but has its own `-progress`, so that its frames are unknown.
    pub(super) has_own_progress: bool,
}

impl Launch {
    fn prepare(self) -> Result<PreparedCommand> {
        let (program, arguments) = self.words.split_first().context("no command; pass it after --")?;
        let ffmpeg = Path::new(program).file_name().is_some_and(|name| is_ffmpeg(&name.to_string_lossy()));
        let reports = arguments.iter().any(|word| word == "-progress");
        let cgroup = CommandCgroup::create(&self.cgroupfs, self.number)?;
        let location = cgroup.location().clone();
        let mut command = Command::new(program);
        let pipe = if ffmpeg && !reports { Some(report_to_pipe(&mut command)?) } else { None };
        command.args(arguments);
        cgroup.enter(&mut command)?;
        // Last, because entering the cgroup needs root.
        if let Some(caller) = self.caller {
            caller.become_in(&mut command);
        }
        let thread = CommandThread::new(command, cgroup)?;
        Ok(PreparedCommand { thread, location, pipe, has_own_progress: ffmpeg && reports })
    }
}

/// The thread, and the commands that are still to be prepared.
pub(super) struct Launcher {
    launches: VecDeque<Launch>,
    /// Absent once the thread has to end.
    tasks: Option<Sender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl Launcher {
    /// Starts the thread. Call it before the caller's privileges are dropped.
    pub(super) fn start(launches: impl IntoIterator<Item = Launch>) -> Result<Self> {
        let (tasks, received) = mpsc::channel::<Task>();
        let thread = thread::Builder::new()
            .name("launcher".into())
            .spawn(move || received.into_iter().for_each(|task| task()))
            .context("cannot start a thread for the commands")?;
        Ok(Self { launches: launches.into_iter().collect(), tasks: Some(tasks), thread: Some(thread) })
    }

    /// Creates the cgroup of the next command and the thread that starts it; `None` after the last.
    /// The privileges of this thread end with the last command.
    ///
    /// # Errors
    /// When there is no command, or the cgroup or the thread cannot be created.
    pub(super) fn prepare_next(&mut self) -> Result<Option<PreparedCommand>> {
        let Some(launch) = self.launches.pop_front() else { return Ok(None) };
        let (sender, prepared) = mpsc::channel();
        let task: Task = Box::new(move || {
            // This fails only when the main thread has ended.
            let _ = sender.send(launch.prepare());
        });
        let sent = self.tasks.as_ref().is_some_and(|tasks| tasks.send(task).is_ok());
        let prepared = if sent { prepared.recv().ok() } else { None };
        if self.launches.is_empty() {
            self.end();
        }
        prepared.context("the thread that prepares commands has ended")?.map(Some)
    }

    fn end(&mut self) {
        self.tasks = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        self.end();
    }
}
