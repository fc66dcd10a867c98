//! Searches for an energy source while the probe runs.
//!
//! A source that was refused at the start may work later: its driver is loaded, its file gets other
//! permissions, its counter starts to move. And a source that was selected may break for good. The
//! search runs on a thread of its own, because it opens devices and waits for counters to move; a
//! tick only takes its result. The probe has dropped its privileges by then, so what needs them
//! (perf, MSR) is denied.

use std::{
    sync::mpsc::{self, Receiver, TryRecvError},
    time::{Duration, Instant},
};

use tracing::warn;

use super::{
    SelectedSource, SourceChoice, choose,
    model::CpuPower,
    open, refused_state, replacement, roots,
    source::{Source, SourcePaths},
    source_state,
    zone::Origin,
};
use crate::host::topology::Topology;

/// Time until the first search, and between two searches.
const INTERVALS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// A source that is broken for this long is given up for another one.
const BROKEN_TIME: Duration = Duration::from_secs(120);

/// The search, between two ticks.
pub struct SourceSearch {
    choice: SourceChoice,
    power: Option<CpuPower>,
    paths: SourcePaths,
    /// The source in use.
    origin: Option<Origin>,
    due: Instant,
    running: Option<Receiver<SelectedSource>>,
    /// Since when the source in use is broken.
    broken_since: Option<Instant>,
    /// The accounting roots of the source in use, with their last values.
    roots: Vec<(usize, Option<u64>)>,
    /// When a root moved last.
    moved: Instant,
}

/// What a search may find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// A measured source, where none is in use.
    Measured,
    /// A source whose roots all move, in place of a broken one.
    Replacement {
        /// Nothing of the broken source moves, so even the model is better.
        or_model: bool,
    },
}

impl SourceSearch {
    /// The search for sources of `choice`; `None` where there is nothing to search for.
    #[must_use]
    pub fn new(
        choice: SourceChoice,
        power: Option<CpuPower>,
        paths: SourcePaths,
        current: Option<&dyn Source>,
    ) -> Option<Self> {
        if matches!(choice, SourceChoice::Model | SourceChoice::Replay) {
            return None;
        }
        let now = Instant::now();
        let mut this = Self {
            choice,
            power,
            paths,
            origin: None,
            due: now + INTERVALS.0,
            running: None,
            broken_since: None,
            roots: Vec::new(),
            moved: now,
        };
        this.follow(current, now);
        Some(this)
    }

    /// Follows another source from now on.
    fn follow(&mut self, source: Option<&dyn Source>, now: Instant) {
        let zones = source.map_or(&[][..], Source::zones);
        self.origin = source.map(Source::origin);
        self.roots = roots(zones).into_iter().map(|zone| (zone, None)).collect();
        (self.broken_since, self.moved) = (None, now);
    }

    /// Notes the readings of a tick, and whether the accountant found them broken in the tick
    /// before.
    pub fn observe(&mut self, values: &[Result<u64, String>], broken: bool, now: Instant) {
        for (zone, last) in &mut self.roots {
            if let Some(Ok(value)) = values.get(*zone)
                && last.replace(*value) != Some(*value)
            {
                self.moved = now;
            }
        }
        self.broken_since = if broken { self.broken_since.or(Some(now)) } else { None };
    }

    fn goal(&self, now: Instant) -> Option<Goal> {
        let long = |since: Instant| now.saturating_duration_since(since) >= BROKEN_TIME;
        match self.origin {
            None | Some(Origin::Model) => Some(Goal::Measured),
            Some(_) if self.broken_since.is_some_and(long) => {
                let or_model = self.choice == SourceChoice::Auto && long(self.moved);
                Some(Goal::Replacement { or_model })
            }
            Some(_) => None,
        }
    }

    /// Starts a search when one is due, and returns the result of one that found a source.
    pub fn advance(&mut self, now: Instant) -> Option<SelectedSource> {
        if let Some(results) = &self.running {
            let found = match results.try_recv() {
                Ok(found) => found,
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => SelectedSource { source: None, tried: Vec::new() },
            };
            self.running = None;
            // The source may have recovered meanwhile.
            if self.goal(now).is_some() && found.source.is_some() {
                self.follow(found.source.as_deref(), now);
                return Some(found);
            }
            return None;
        }
        let goal = self.goal(now)?;
        if now < self.due {
            return None;
        }
        self.due = now + INTERVALS.1;
        let (sender, results) = mpsc::channel();
        let (choice, power, paths) = (self.choice, self.power, self.paths.clone());
        let task = move || {
            // The probe may have ended.
            let _ = sender.send(search(goal, choice, power, &paths));
        };
        match std::thread::Builder::new().name("sources".into()).spawn(task) {
            Ok(_) => self.running = Some(results),
            Err(error) => warn!("cannot start a thread to search for an energy source: {error}"),
        }
        None
    }
}

/// One search.
fn search(goal: Goal, choice: SourceChoice, power: Option<CpuPower>, paths: &SourcePaths) -> SelectedSource {
    let topology = Topology::read(&paths.sysfs);
    let Goal::Replacement { or_model } = goal else {
        let SelectedSource { source, tried } = choose(choice, power, paths, &topology);
        return SelectedSource { source: source.filter(|source| source.origin() != Origin::Model), tried };
    };
    let mut tried = Vec::new();
    for origin in choice.origins() {
        if *origin == Origin::Model && !or_model {
            continue;
        }
        match open(*origin, power, paths, &topology).and_then(replacement) {
            Ok(source) => {
                tried.push(source_state(&*source));
                return SelectedSource { source: Some(source), tried };
            }
            Err(why) => tried.push(refused_state(*origin, why, choice)),
        }
    }
    SelectedSource { source: None, tried }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::energy::tests::MovingZone;

    fn search_in(sysfs: &Path, choice: SourceChoice) -> SourceSearch {
        let paths = SourcePaths { sysfs: sysfs.into(), procfs: "/proc".into(), dev: "/nowhere".into(), host: None };
        let current =
            (choice == SourceChoice::Auto).then(|| open(Origin::Model, None, &paths, &Topology::read(sysfs)).unwrap());
        SourceSearch::new(choice, None, paths, current.as_deref()).unwrap()
    }

    /// Waits for the result of the search that is due at `now`.
    fn result(search: &mut SourceSearch, now: Instant) -> Option<SelectedSource> {
        assert!(search.advance(now).is_none());
        for _ in 0..500 {
            let found = search.advance(now);
            if found.is_some() || search.running.is_none() {
                return found;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the search does not end");
    }

    #[test]
    fn a_source_that_was_refused_at_the_start_is_found_later() {
        let live = MovingZone::start();
        for choice in [SourceChoice::Auto, SourceChoice::Powercap] {
            let mut search = search_in(live.path(), choice);
            let start = Instant::now();
            assert!(search.advance(start).is_none() && search.running.is_none(), "it is not due yet");
            let found = result(&mut search, start + INTERVALS.0).unwrap();
            assert_eq!(found.source.unwrap().origin(), Origin::Powercap);
            assert_eq!(search.goal(start), None, "a source that works is kept");
        }
    }

    #[test]
    fn the_model_is_no_result_of_a_search_for_a_measured_source() {
        let dir = tempfile::tempdir().unwrap();
        let mut search = search_in(dir.path(), SourceChoice::Auto);
        let now = Instant::now() + INTERVALS.0;
        assert!(result(&mut search, now).is_none());
        assert!(search.advance(now).is_none() && search.running.is_none(), "the next one is due a minute later");
        assert!(result(&mut search, now + INTERVALS.1).is_none());
    }

    #[test]
    fn a_source_that_stays_broken_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let zone = dir.path().join("class/powercap/intel-rapl:0");
        fs::create_dir_all(&zone).unwrap();
        fs::write(zone.join("name"), "package-0\n").unwrap();
        fs::write(zone.join("energy_uj"), "5\n").unwrap();
        let mut search = search_in(dir.path(), SourceChoice::Auto);
        let broken = open(Origin::Powercap, None, &search.paths, &Topology::read(dir.path())).unwrap();
        let start = Instant::now();
        search.follow(Some(&*broken), start);
        search.observe(&[Ok(5)], true, start);
        assert_eq!(search.goal(start + BROKEN_TIME / 2), None);
        let late = start + BROKEN_TIME;
        search.observe(&[Ok(5)], true, late);
        assert_eq!(search.goal(late), Some(Goal::Replacement { or_model: true }));
        assert_eq!(result(&mut search, late).unwrap().source.unwrap().origin(), Origin::Model);
        // One of several packages still moves.
        search.follow(Some(&*broken), start);
        search.observe(&[Ok(5)], true, start);
        search.observe(&[Ok(6)], true, late);
        assert_eq!(search.goal(late), Some(Goal::Replacement { or_model: false }));
        search.observe(&[Ok(7)], false, late);
        assert_eq!(search.goal(late), None, "it has recovered");
    }
}
