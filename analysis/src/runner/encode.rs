//! Encoders while they run: started in their place, followed by what they report, ended when they hang, when they are to end, or when we are. Only our own children are
//! ever ended, by their process ids while they are our children, or by the name that we gave to their container.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    io::{self, Read},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use exporter::progress::Parser;
use serde::{Deserialize, Serialize};

use super::place::{Place, Seat};

/// Of what an encoder says, the end is kept: it is where the reason stands.
const TAIL: usize = 4096;
/// How long an encoder that was asked to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// How often the last words of one that has ended are looked for, a millisecond apart: by turns, as a machine that stood still meanwhile has given the readers none.
const LAST_WORDS: u32 = 500;
/// Least patience with what nobody measures.
const ASIDE: Duration = Duration::from_secs(30);
/// How often all are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Set by Ctrl-C and SIGTERM; everything that waits looks at it.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// True once somebody wants us to end.
#[must_use]
pub fn stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}

/// From now on signals are noted, and everything is cleaned up before we end. A second Ctrl-C ends us at once.
pub fn heed_signals() {
    extern "C" fn note(signal: libc::c_int) {
        if STOPPED.swap(true, Ordering::Relaxed) {
            // SAFETY: _exit may be called in a handler.
            unsafe { libc::_exit(128 + signal) };
        }
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler does what may be done in one.
        unsafe { libc::signal(signal, note as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// Waits, unless somebody wants us to end; gives whether it waited to the end.
#[must_use]
pub fn pause(time: Duration) -> bool {
    let end = Instant::now() + time;
    while !stopped() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        thread::sleep(left.min(Duration::from_millis(50)));
    }
    false
}

/// Lets a command go when we do, however we end, and be of a group of its own: Ctrl-C is for us, and we end it. To be said before anything else that is done between fork and
/// exec.
pub fn goes_with_us(command: &mut Command) -> &mut Command {
    let ours = libc::pid_t::try_from(std::process::id()).unwrap_or_default();
    // SAFETY: two calls of plain numbers between fork and exec.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // Who died before it was asked for sends no signal any more (prctl(2)).
            if libc::getppid() == ours { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
        })
    }
    .process_group(0)
}

/// What an encoder has said last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Frames encoded.
    pub frames: u64,
    /// Left out.
    pub dropped: u64,
    /// Shown twice.
    pub duplicated: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Media encoded, in microseconds.
    pub media_us: u64,
}

/// How an encoder ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its code.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub code: Option<i32>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signal: Option<i32>,
}

impl Exit {
    fn of(status: ExitStatus) -> Self {
        Self { code: status.code(), signal: status.signal() }
    }
}

/// A program of ours that runs.
pub struct Running {
    child: Child,
    seat: Seat,
    progress: Arc<Mutex<Progress>>,
    tail: Arc<Mutex<VecDeque<u8>>>,
    readers: Vec<JoinHandle<()>>,
    exit: Option<Exit>,
    moved: (u64, Instant),
}

impl Running {
    /// Starts a program in a place. What it reports on its standard output is read as ffmpeg's `-progress`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(place: &Place, program: &Path, args: &[impl AsRef<OsStr>]) -> io::Result<Self> {
        let (mut command, seat) = place.command(program)?;
        let progress = Arc::new(Mutex::new(Progress::default()));
        let known = progress.clone();
        Self::begin(command.args(args), seat, progress, move |stdout| follow(stdout, &known))
    }

    /// Starts a command that is no encoder; `hear` gets its standard output.
    ///
    /// # Errors
    /// As above.
    pub fn listen(command: &mut Command, hear: impl FnOnce(ChildStdout) + Send + 'static) -> io::Result<Self> {
        Self::begin(goes_with_us(command), Seat::Process, Arc::default(), hear)
    }

    fn begin(
        command: &mut Command,
        seat: Seat,
        progress: Arc<Mutex<Progress>>,
        hear: impl FnOnce(ChildStdout) + Send + 'static,
    ) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(thread::spawn(move || hear(stdout)));
        }
        if let Some(stderr) = child.stderr.take() {
            let tail = tail.clone();
            readers.push(thread::spawn(move || keep(stderr, &tail)));
        }
        Ok(Self { child, seat, progress, tail, readers, exit: None, moved: (0, Instant::now()) })
    }

    /// How it is ended, and what it is called there.
    #[must_use]
    pub fn seat(&self) -> &Seat {
        &self.seat
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said last.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How it ended, once it has.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn ended(&mut self) -> io::Result<Option<Exit>> {
        if self.exit.is_none() && self.has_ended()? {
            // While it is not waited for, the group's number is its own: children that it left, as a wrapper may, go with it.
            self.signal(libc::SIGKILL);
            self.exit = Some(Exit::of(self.child.wait()?));
            // What it said last is read before anybody asks; whoever has inherited the pipe for good is not waited for.
            for _ in 0..LAST_WORDS {
                if self.readers.iter().all(JoinHandle::is_finished) {
                    break;
                }
                thread::sleep(Duration::from_millis(1));
            }
            self.readers.clear();
        }
        Ok(self.exit.clone())
    }

    /// True once it has ended, whether or not it was waited for.
    fn has_ended(&self) -> io::Result<bool> {
        // SAFETY: all zero is a valid one.
        let mut found: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: our child's number, and ours to be written.
        let done = unsafe { libc::waitid(libc::P_PID, self.child.id(), &raw mut found, flags) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: filled by waitid, or zero where nothing has ended.
        Ok(unsafe { found.si_pid() } != 0)
    }

    /// What it complains of although it goes on: options that its encoder does not know, which are labels of what was not done.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let tail: Vec<u8> = self.tail.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let text = String::from_utf8_lossy(&tail).into_owned();
        text.lines().find(|line| line.contains("has not been used for any stream")).map(|line| line.trim().to_owned())
    }

    /// For how long it has reported nothing new.
    fn silent(&mut self) -> Duration {
        let media = self.progress().media_us;
        if media != self.moved.0 {
            self.moved = (media, Instant::now());
        }
        self.moved.1.elapsed()
    }

    /// The end of what it said, for a message.
    #[must_use]
    pub fn said(&self) -> String {
        let tail: Vec<u8> = self.tail.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let text = String::from_utf8_lossy(&tail).into_owned();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(3)..].join("; ")
    }

    /// Asks it to end, and kills it if it does not. ffmpeg ends its file on SIGTERM.
    pub fn end(&mut self) {
        if matches!(self.ended(), Ok(Some(_))) {
            return;
        }
        self.signal(libc::SIGTERM);
        let end = Instant::now() + GRACE;
        while Instant::now() < end {
            if !matches!(self.ended(), Ok(None)) {
                return;
            }
            thread::sleep(LOOK_EVERY);
        }
        self.seat.end();
        self.signal(libc::SIGKILL);
        while matches!(self.ended(), Ok(None)) {
            thread::sleep(LOOK_EVERY);
        }
    }

    fn signal(&self, signal: libc::c_int) {
        if let Ok(pid) = libc::pid_t::try_from(self.child.id()) {
            // SAFETY: the group of our child, which is not waited for: the number is nobody else's.
            unsafe { libc::kill(-pid, signal) };
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
        self.seat.end();
    }
}

fn follow(mut from: impl Read, progress: &Mutex<Progress>) {
    let (mut parser, mut buffer) = (Parser::default(), [0; 4096]);
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        parser.feed(&buffer[..length], |report| {
            let mut known = progress.lock().unwrap_or_else(PoisonError::into_inner);
            // What one report leaves out has not gone back.
            known.frames = report.frames.unwrap_or(known.frames);
            known.dropped = report.dropped.unwrap_or(known.dropped);
            known.duplicated = report.duplicated.unwrap_or(known.duplicated);
            known.bytes = report.bytes.unwrap_or(known.bytes);
            known.media_us = report.out_time_us.unwrap_or(known.media_us);
        });
    }
}

fn keep(mut from: ChildStderr, tail: &Mutex<VecDeque<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut known = tail.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(&buffer[..length]);
        let over = known.len().saturating_sub(TAIL);
        known.drain(..over);
    }
}

/// Why encoders did not come to a good end.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Trouble {
    /// Somebody wants us to end.
    #[error("stopped")]
    Stopped,
    /// One ended with an error, or by a signal.
    #[error("stream {stream}: ffmpeg ended with {how}: {said}")]
    Ended {
        /// From 1.
        stream: usize,
        /// `code 1`, `signal 9`.
        how: String,
        /// The end of what it said.
        said: String,
        /// The same for programs.
        exit: Exit,
    },
    /// One reports nothing new.
    #[error(
        "stream {stream}: no progress for {seconds} s (--stall-timeout; a slow encoder reports nothing while it looks ahead); ended. {said}"
    )]
    Hangs {
        /// From 1.
        stream: usize,
        /// For how long.
        seconds: u64,
        /// The end of what it said.
        said: String,
    },
    /// The system refuses.
    #[error("{0}")]
    System(String),
}

/// Waits until all have ended well. `look` is called about fifty times a second with what all have done, and says whether to go on. The first that ends badly ends all.
///
/// # Errors
/// What went wrong first; then none runs any more.
pub fn wait(all: &mut [Running], stall: Duration, look: &mut dyn FnMut(&[Running]) -> bool) -> Result<(), Trouble> {
    loop {
        let mut running = 0;
        for (at, one) in all.iter_mut().enumerate() {
            let stream = at + 1;
            match one.ended().map_err(|error| Trouble::System(error.to_string()))? {
                Some(Exit { code: Some(0), .. }) => {}
                Some(exit) => {
                    let how = match (exit.code, exit.signal) {
                        (Some(code), _) => format!("code {code}"),
                        (None, signal) => format!("signal {}", signal.unwrap_or_default()),
                    };
                    return Err(Trouble::Ended { stream, how, said: one.said(), exit });
                }
                None if one.silent() > stall => {
                    let trouble = Trouble::Hangs { stream, seconds: stall.as_secs(), said: one.said() };
                    return Err(trouble);
                }
                None => running += 1,
            }
        }
        if stopped() {
            return Err(Trouble::Stopped);
        }
        if running == 0 || !look(all) {
            return Ok(());
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Runs an ffmpeg that nobody measures to its end, and ends it where it hangs: what makes sources, counts frames and scores. It may wait for a disk longer than
/// encoders may: 30 s at least.
///
/// # Errors
/// Why it did not end well, in its own words where it said any.
pub fn aside(program: &Path, args: &[&OsStr], stall: Duration) -> Result<(), String> {
    let progress = ["-nostdin", "-hide_banner", "-loglevel", "error", "-progress", "pipe:1"].map(OsStr::new);
    let one = Running::start(&Place::None, program, &[&progress, args].concat())
        .map_err(|error| format!("{}: {error}", program.display()))?;
    wait(&mut [one], stall.max(ASIDE), &mut |_| true).map_err(|trouble| match trouble {
        Trouble::Ended { said, .. } if !said.is_empty() => said,
        Trouble::Ended { how, .. } => format!("ffmpeg ended with {how}"),
        Trouble::Hangs { seconds, said, .. } => format!("ffmpeg made no progress for {seconds} s; ended. {said}"),
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use testkit::{eventually, wait::eventually_ok};

    use super::*;

    fn shell(script: &str) -> Running {
        Running::start(&Place::None, Path::new("/bin/sh"), &["-c".to_owned(), script.to_owned()]).unwrap()
    }

    #[test]
    fn what_an_encoder_says_last_is_kept_with_how_it_ended() {
        let mut all =
            [shell("printf 'frame=7\\ntotal_size=99\\nout_time_us=280000\\ndrop_frames=1\\nprogress=end\\n'")];
        wait(&mut all, Duration::from_secs(60), &mut |_| true).unwrap();
        let progress = all[0].progress();
        assert_eq!((progress.frames, progress.bytes, progress.media_us, progress.dropped), (7, 99, 280_000, 1));
    }

    #[test]
    fn one_that_fails_ends_all_and_says_why() {
        let mut all = [shell("sleep 3600"), shell("echo No space left on device >&2; exit 3")];
        let trouble = wait(&mut all, Duration::from_secs(60), &mut |_| true).unwrap_err();
        assert!(
            matches!(&trouble, Trouble::Ended { stream: 2, how, said, .. } if how == "code 3" && said.contains("No space")),
            "{trouble}"
        );
        let other = all[0].pid();
        drop(all);
        assert!(!Path::new(&format!("/proc/{other}")).exists(), "our child is gone");
    }

    #[test]
    fn one_that_hangs_is_ended() {
        let mut hangs = [shell("trap '' TERM; sleep 60")];
        let trouble = wait(&mut hangs, Duration::from_millis(200), &mut |_| true).unwrap_err();
        assert!(matches!(trouble, Trouble::Hangs { stream: 1, .. }), "{trouble}");
        let hung = hangs[0].pid();
        drop(hangs);
        assert!(!Path::new(&format!("/proc/{hung}")).exists(), "our child is gone");
    }

    #[test]
    fn the_child_of_a_wrapper_that_hangs_is_ended_with_it() {
        let mut wrapper = [shell("trap '' TERM; sleep 3601 & echo $! >&2; wait")];
        let grandchild: u32 = eventually_ok(30.0, "the wrapper's child has a number", || wrapper[0].said().parse());
        wait(&mut wrapper, Duration::from_millis(300), &mut |_| true).unwrap_err();
        drop(wrapper);
        // An hour is what it would take by itself.
        let line = || std::fs::read_to_string(format!("/proc/{grandchild}/cmdline"));
        eventually(30.0, "the wrapper's child has ended", || !line().is_ok_and(|line| line.contains("3601")));
    }

    #[test]
    fn one_that_was_killed_says_the_signal() {
        let mut killed = [shell("kill -9 $$")];
        let trouble = wait(&mut killed, Duration::from_secs(60), &mut |_| true).unwrap_err();
        assert!(trouble.to_string().contains("signal 9"), "{trouble}");
    }
}
