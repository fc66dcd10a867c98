//! The CPU time of a job by stage: its running threads are read from `/proc` at every tick, and
//! eBPF reports those that exit.
//!
//! A thread's time since its last reading goes to the stage that its name has now, because a thread
//! may be named after it was created. Once counted it stays there, so every part only grows.
//! Without eBPF the time of a thread after its last reading is in no part.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    io::Read as _,
    path::Path,
};

use super::stage::{Role, Roles, StagePart, StageTimes};
use crate::{
    cpu::{EndedThread, ThreadCreator},
    host::process::ran_of,
};

/// Maximum number of threads of one job that are read.
const MAX_THREADS: usize = 512;
/// Maximum number of threads of all jobs that are read in one tick. Those of further jobs are
/// counted when they exit.
pub(super) const MAX_READS: usize = 8192;
/// Number of readings without another name after which a thread's name is not read again. A thread
/// has its creator's name until it sets its own, which it does first of all.
const NAME_READS: u8 = 3;

/// A running thread.
#[derive(Debug)]
struct Thread {
    creator: ThreadCreator,
    name: String,
    role: Role,
    /// Readings since the name changed.
    same_name: u8,
    /// Run time that was counted.
    counted_ns: u64,
    /// Number of readings of the process without this thread. The report of its end may come one
    /// tick later.
    absent: u8,
}

/// The CPU time of one job by stage, since its start.
#[derive(Debug)]
pub(super) struct StageClock {
    tgid: u32,
    threads: HashMap<u32, Thread>,
    roles: Roles,
    times: BTreeMap<StagePart, u64>,
    /// The main thread has exited, but its entry in `/proc` stays until the last thread has.
    main_ended: bool,
    /// True when `times` changed since it was taken.
    changed: bool,
}

impl StageClock {
    /// The clock of a job that starts now. Its main thread ran for `before_ns` before.
    pub(super) fn new(tgid: u32, before_ns: u64) -> Self {
        let main = Thread {
            creator: ThreadCreator::Unknown,
            name: String::new(),
            role: Role::Other,
            same_name: 0,
            counted_ns: before_ns,
            absent: 0,
        };
        Self {
            tgid,
            threads: HashMap::from([(tgid, main)]),
            roles: Roles::default(),
            times: BTreeMap::new(),
            main_ended: false,
            changed: false,
        }
    }

    /// Counts from now on what the threads of the process run that exist already. `process` is its
    /// directory in procfs.
    pub(super) fn skip_past(&mut self, process: &Path) {
        let mut reads = MAX_THREADS;
        // The main thread counts from zero, as the others do.
        self.threads.clear();
        let _ = self.read(process, &HashSet::new(), |_| ThreadCreator::Unknown, &mut reads);
    }

    /// Adds what ran since the last call: `ended` are the threads that exited, and the others are
    /// read from `process` if it runs. `reads` is the number of threads that may still be read in
    /// this tick.
    pub(super) fn advance(
        &mut self,
        process: Option<&Path>,
        ended: &[EndedThread],
        creator_of: impl Fn(u32) -> ThreadCreator,
        reads: &mut usize,
    ) {
        let mut grown: Vec<(Role, u64)> = ended.iter().map(|thread| self.end(thread)).collect();
        if let Some(process) = process {
            let exited: HashSet<u32> = ended.iter().map(|thread| thread.tid).collect();
            grown.extend(self.read(process, &exited, creator_of, reads));
        }
        for (role, ns) in grown.into_iter().filter(|(_, ns)| *ns > 0) {
            let sum = self.times.entry(self.roles.part(role)).or_default();
            *sum = sum.saturating_add(ns);
            self.changed = true;
        }
    }

    /// Frees the memory of the threads of a job that has ended.
    pub(super) fn finish(&mut self) {
        self.threads = HashMap::new();
    }

    /// The CPU nanoseconds of every part, if they changed since the last call and any thread has a
    /// stage.
    pub(super) fn take_changed(&mut self) -> Option<StageTimes> {
        let known = self.times.keys().any(|part| *part != StagePart::OTHER);
        (known && std::mem::take(&mut self.changed)).then(|| self.times.iter().map(|(part, ns)| (*part, *ns)).collect())
    }

    /// The role of a thread that exited, and what it ran since it was counted.
    fn end(&mut self, ended: &EndedThread) -> (Role, u64) {
        self.main_ended |= ended.tid == self.tgid;
        let counted_ns = self.threads.remove(&ended.tid).map_or(0, |thread| thread.counted_ns);
        let role = self.roles.of(ended.tid, &ended.name, &ended.creator);
        (role, ended.ran_ns.saturating_sub(counted_ns))
    }

    /// Reads the running threads, without those that exited: the role of each, and what it ran
    /// since it was counted.
    fn read(
        &mut self,
        process: &Path,
        exited: &HashSet<u32>,
        creator_of: impl Fn(u32) -> ThreadCreator,
        reads: &mut usize,
    ) -> Vec<(Role, u64)> {
        let mut grown = Vec::new();
        // All threads of a job or none: a thread that is not read would count as gone.
        if *reads < self.threads.len() {
            return grown;
        }
        // In the order of creation (fs/proc/base.c, proc_task_readdir), which is that of
        // `Roles::of` for threads whose creator is unknown.
        let Ok(entries) = fs::read_dir(process.join("task")) else { return grown };
        self.threads.values_mut().for_each(|thread| thread.absent = thread.absent.saturating_add(1));
        for entry in entries.flatten() {
            let Some(tid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let is_new = !self.threads.contains_key(&tid);
            if exited.contains(&tid)
                || (self.main_ended && tid == self.tgid)
                || (is_new && (self.threads.len() >= MAX_THREADS || *reads == 0))
            {
                continue;
            }
            *reads = reads.saturating_sub(1);
            grown.extend(self.read_thread(tid, &entry.path(), &creator_of));
        }
        self.threads.retain(|_, thread| thread.absent < 2);
        grown
    }

    /// Reads one thread by its directory in procfs.
    fn read_thread(
        &mut self,
        tid: u32,
        directory: &Path,
        creator_of: &impl Fn(u32) -> ThreadCreator,
    ) -> Option<(Role, u64)> {
        let ran_ns = ran_of(&read_text(&directory.join("schedstat"))?)?;
        // A run time below the last one belongs to another thread with the same number.
        if tid != self.tgid && self.threads.get(&tid).is_some_and(|thread| thread.counted_ns > ran_ns) {
            self.threads.remove(&tid);
        }
        let thread = self.threads.entry(tid).or_insert_with(|| Thread {
            creator: creator_of(tid),
            name: String::new(),
            role: Role::Other,
            same_name: 0,
            counted_ns: 0,
            absent: 0,
        });
        thread.absent = 0;
        if thread.same_name < NAME_READS
            && let Some(name) = read_text(&directory.join("comm"))
        {
            let name = name.trim_end_matches('\n');
            thread.same_name = if thread.name == name { thread.same_name + 1 } else { 0 };
            if thread.same_name == 0 {
                name.clone_into(&mut thread.name);
                thread.role = self.roles.of(tid, name, &thread.creator);
            }
        }
        let grown = (thread.role, ran_ns.saturating_sub(thread.counted_ns));
        thread.counted_ns = thread.counted_ns.max(ran_ns);
        Some(grown)
    }
}

/// A short file of procfs.
fn read_text(path: &Path) -> Option<String> {
    let mut bytes = [0; 128];
    let length = File::open(path).ok()?.read(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(bytes.get(..length)?).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::create_dir_all;

    use super::*;
    use crate::jobs::stage::Stage;

    const MAIN: u32 = 100;

    /// The directory of a process in procfs, and the clock of its job.
    struct Process {
        dir: tempfile::TempDir,
        clock: StageClock,
        reads: usize,
    }

    impl Process {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), clock: StageClock::new(MAIN, 0), reads: MAX_READS }
        }

        /// The thread has this name and run time.
        fn put(&self, tid: u32, name: &str, ns: u64) {
            let thread = self.dir.path().join("task").join(tid.to_string());
            create_dir_all(&thread).unwrap();
            fs::write(thread.join("comm"), format!("{name}\n")).unwrap();
            fs::write(thread.join("schedstat"), format!("{ns} 0 1\n")).unwrap();
        }

        fn remove(&self, tid: u32) {
            fs::remove_dir_all(self.dir.path().join("task").join(tid.to_string())).unwrap();
        }

        /// A tick, in which these threads exited: number, last name, run time.
        fn tick(&mut self, ended: &[(u32, &str, u64)]) -> StageTimes {
            let main = |(tid, name, ran_ns): &(u32, &str, u64)| EndedThread {
                tgid: MAIN,
                tid: *tid,
                ran_ns: *ran_ns,
                name: (*name).to_owned(),
                creator: ThreadCreator::Main,
            };
            let ended: Vec<EndedThread> = ended.iter().map(main).collect();
            self.clock.advance(Some(self.dir.path()), &ended, |_| ThreadCreator::Main, &mut self.reads);
            self.clock.times.iter().map(|(part, ns)| (*part, *ns)).collect()
        }
    }

    const ENCODE: StagePart = StagePart { stage: Stage::Encode, output: Some(0) };

    #[test]
    fn a_thread_counts_for_the_name_that_it_got_last() {
        let mut process = Process::new();
        process.put(MAIN, "ffmpeg", 1000);
        process.put(101, "ffmpeg", 5);
        assert_eq!(process.tick(&[]), [(StagePart::OTHER, 1005)]);
        assert_eq!(process.clock.take_changed(), None, "no thread has a stage");
        process.put(101, "enc0:0:libx264", 100);
        assert_eq!(process.tick(&[]), [(ENCODE, 95), (StagePart::OTHER, 1005)]);
        assert_eq!(process.clock.take_changed().map(|parts| parts.len()), Some(2));
        process.tick(&[]);
        assert_eq!(process.clock.take_changed(), None, "nothing ran");
    }

    #[test]
    fn the_last_run_of_an_exited_thread_is_counted_once() {
        let mut process = Process::new();
        process.put(101, "enc0:0:libx264", 50);
        process.put(102, "enc0:0:libx264", 7);
        process.tick(&[]);
        // It is still in procfs when its end is reported.
        assert_eq!(process.tick(&[(101, "enc0:0:libx264", 80)]), [(ENCODE, 87)]);
        process.remove(101);
        assert_eq!(process.tick(&[]), [(ENCODE, 87)]);
        // It is gone from procfs a tick before its end is reported.
        process.remove(102);
        assert_eq!(process.tick(&[]), [(ENCODE, 87)]);
        assert_eq!(process.tick(&[(102, "enc0:0:libx264", 10)]), [(ENCODE, 90)]);
        // One that was never seen.
        assert_eq!(process.tick(&[(103, "mux1:mp4", 3)])[1], (StagePart::of_output(Stage::Mux, 1), 3));
        // The process is gone, and the ends of its threads are reported.
        process.put(104, "dmx0:lavfi", 5);
        process.tick(&[]);
        let end = EndedThread {
            tgid: MAIN,
            tid: 104,
            ran_ns: 6,
            name: "dmx0:lavfi".to_owned(),
            creator: ThreadCreator::Main,
        };
        process.clock.advance(None, &[end], |_| ThreadCreator::Main, &mut 0);
        let parts = process.clock.take_changed().unwrap_or_default();
        assert_eq!(parts.first(), Some(&(StagePart::common(Stage::Demux), 6)));
    }

    #[test]
    fn the_main_thread_that_exited_first_is_not_counted_again() {
        let mut process = Process::new();
        process.put(MAIN, "ffmpeg", 40);
        process.put(101, "dmx0:lavfi", 1);
        process.tick(&[(MAIN, "ffmpeg", 60)]);
        let demux = (StagePart::common(Stage::Demux), 1);
        assert_eq!(process.tick(&[]), [demux, (StagePart::OTHER, 60)]);
    }

    #[test]
    fn what_ran_before_the_job_was_found_is_not_counted() {
        let mut process = Process::new();
        process.put(MAIN, "ffmpeg", 500);
        process.put(101, "enc0:0:libx264", 900);
        let dir = process.dir.path().to_owned();
        process.clock.skip_past(&dir);
        assert!(process.tick(&[]).is_empty());
        process.put(101, "enc0:0:libx264", 930);
        assert_eq!(process.tick(&[]), [(ENCODE, 30)]);
        // The main thread of a process that was executed with a past of its own.
        process.clock = StageClock::new(MAIN, 400);
        assert_eq!(process.tick(&[]).last(), Some(&(StagePart::OTHER, 100)));
    }

    #[test]
    fn a_reused_thread_number_starts_at_zero() {
        let mut process = Process::new();
        process.put(101, "enc0:0:libx264", 900);
        process.tick(&[]);
        process.put(101, "dec0:0:h264", 4);
        assert_eq!(process.tick(&[]), [(StagePart::common(Stage::Decode), 4), (ENCODE, 900)]);
    }

    #[test]
    fn threads_over_the_limits_are_not_read() {
        let mut process = Process::new();
        for tid in 0..u32::try_from(MAX_THREADS).unwrap() + 88 {
            process.put(1000 + tid, "enc0:0:libx264", 1);
        }
        process.reads = 10;
        // The entry of the main thread is one of the limit.
        assert_eq!(process.tick(&[]), [(ENCODE, 10)]);
        process.reads = 5;
        assert_eq!(process.tick(&[]), [(ENCODE, 10)], "all known threads or none");
        process.reads = MAX_READS;
        process.tick(&[]);
        let parts = process.tick(&[]);
        assert!(parts.len() == 1 && usize::try_from(parts[0].1).unwrap() <= MAX_THREADS, "{parts:?}");
        assert!(process.clock.threads.len() <= MAX_THREADS);
    }
}
