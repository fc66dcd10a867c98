//! Which cgroups are tasks of containerd, as `ctr` creates them: their paths look like those of any
//! other cgroup, and only the directories of the runtime show it.
//!
//! A separate thread reads these directories. The sampler waits for its answer for a bounded time,
//! and while the thread is stuck it asks nothing more: a cgroup is then named by its path.

use std::{
    collections::HashMap,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};

use super::runtime_files::{RuntimeFiles, task_of};
use crate::cgroup::CgroupKey;

/// Maximum number of answers that are kept, which is that of the cgroups of a scan.
const MAX_KNOWN: usize = 65_536;

/// A cgroup that may be a task.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) key: CgroupKey,
    pub(super) namespace: String,
    pub(super) id: String,
}

impl Question {
    /// The question for a cgroup; `None` when its path cannot be that of a task.
    pub(super) fn new(key: CgroupKey, path: &str) -> Option<Self> {
        let (namespace, id) = task_of(path)?;
        Some(Self { key, namespace: namespace.to_owned(), id: id.to_owned() })
    }
}

type Answers = Vec<(CgroupKey, bool)>;

/// The sampler's handle to the thread, with the answers.
pub(super) struct TaskFinder {
    files: RuntimeFiles,
    /// Started with the first question.
    thread: Option<(Sender<Vec<Question>>, Receiver<Answers>)>,
    /// True while an answer is missing.
    waiting: bool,
    known: HashMap<CgroupKey, bool>,
}

impl TaskFinder {
    pub(super) fn new(files: RuntimeFiles) -> Self {
        Self { files, thread: None, waiting: false, known: HashMap::new() }
    }

    /// Asks, and waits for the answers for at most `timeout`.
    pub(super) fn ask(&mut self, questions: Vec<Question>, timeout: Duration) {
        self.collect(Duration::ZERO);
        if questions.is_empty() || self.waiting {
            return;
        }
        if self.thread.is_none() {
            self.thread = start(self.files.clone());
        }
        self.waiting = self.thread.as_ref().is_some_and(|(ask, _)| ask.send(questions).is_ok());
        self.collect(timeout);
    }

    fn collect(&mut self, timeout: Duration) {
        if self.waiting
            && let Some((_, answers)) = &self.thread
            && let Ok(answers) = answers.recv_timeout(timeout)
        {
            if self.known.len() + answers.len() > MAX_KNOWN {
                self.known.clear();
            }
            self.known.extend(answers);
            self.waiting = false;
        }
    }

    /// Whether a question for this cgroup was answered.
    pub(super) fn is_known(&self, key: &CgroupKey) -> bool {
        self.known.contains_key(key)
    }

    /// Namespace and id of the task of a cgroup, by its path; `None` for another cgroup.
    pub(super) fn task<'a>(&self, key: &CgroupKey, path: &'a str) -> Option<(&'a str, &'a str)> {
        if self.known.get(key) == Some(&true) { task_of(path) } else { None }
    }

    /// Forgets a removed cgroup.
    pub(super) fn forget(&mut self, key: &CgroupKey) {
        self.known.remove(key);
    }
}

/// Starts the thread, which ends with its handle; `None` when the system has no thread left.
fn start(files: RuntimeFiles) -> Option<(Sender<Vec<Question>>, Receiver<Answers>)> {
    let (ask, questions) = channel::<Vec<Question>>();
    let (answer, answers) = channel();
    let run = move || {
        while let Ok(all) = questions.recv() {
            let all: Answers =
                all.into_iter().map(|Question { key, namespace, id }| (key, files.has_task(&namespace, &id))).collect();
            if answer.send(all).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("tasks".into()).spawn(run).ok().map(|_| (ask, answers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::hierarchy;

    #[test]
    fn tasks_are_found_and_forgotten_with_their_cgroups() {
        let dir = tempfile::tempdir().unwrap();
        let task = "run/containerd/io.containerd.runtime.v2.task/default/enc";
        std::fs::create_dir_all(dir.path().join(task)).unwrap();
        let mut finder = TaskFinder::new(RuntimeFiles::new(dir.path()));
        let key = |id| CgroupKey { id, hierarchy: hierarchy::V2 };
        let paths = [(key(1), "/default/enc"), (key(2), "/default/other"), (key(3), "/enc")];
        let questions = paths.iter().filter_map(|(key, path)| Question::new(*key, path)).collect();
        finder.ask(questions, Duration::from_secs(10));
        assert_eq!(paths.map(|(key, _)| finder.is_known(&key)), [true, true, false]);
        assert_eq!(paths.map(|(key, path)| finder.task(&key, path)), [Some(("default", "enc")), None, None]);
        finder.forget(&key(1));
        assert_eq!(finder.task(&key(1), "/default/enc"), None);
    }

    #[test]
    fn nothing_more_is_asked_while_an_answer_is_missing() {
        let (ask, questions) = channel();
        let (answer, answers) = channel();
        let mut finder = TaskFinder::new(RuntimeFiles::new(std::path::Path::new("/nowhere")));
        finder.thread = Some((ask, answers));
        let key = |id| CgroupKey { id, hierarchy: hierarchy::V2 };
        let question = |id| vec![Question::new(key(id), "/default/enc").unwrap()];
        finder.ask(question(1), Duration::from_millis(1));
        finder.ask(question(2), Duration::from_secs(60));
        assert_eq!(questions.try_iter().count(), 1);
        answer.send(vec![(key(1), true)]).unwrap();
        finder.ask(Vec::new(), Duration::ZERO);
        assert!(finder.is_known(&key(1)));
    }
}
