//! The order in which containers lose their series when there are too many: first those that ended,
//! then those that never ran, then cgroups that are made by hand and idle.
//!
//! Any process that may create cgroups can create one that looks like a container, so a workload is
//! ranked by what it did and by what its runtime says. Each change takes logarithmic time.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

/// A container that did not run for this long is idle.
const IDLE: Duration = Duration::from_secs(10);

/// How certain it is that a workload belongs to a container runtime, ascending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// A cgroup without a runtime, or one that its runtime does not know.
    Plain,
    /// A cgroup with the name of a container, or a job.
    Likely,
    /// A container that its runtime described.
    Confirmed,
}

/// The state of a container that decides its rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It was removed at this time, and its last reading was posted.
    Over(Instant),
    /// It exists: whether it ever ran, and when it ran last.
    Live { ran: bool, class: Class, last_ran: Instant },
    /// It was removed, and its last reading is still to come.
    Ending,
}

/// All containers, ranked.
#[derive(Debug, Default)]
pub(super) struct Ranking {
    standings: HashMap<u32, Standing>,
    over: BTreeSet<(Instant, u32)>,
    live: BTreeSet<(Standing, u32)>,
}

impl Ranking {
    /// Sets the state of a container.
    pub(super) fn set(&mut self, number: u32, standing: Standing) {
        if self.standings.get(&number) == Some(&standing) {
            return;
        }
        self.remove(number);
        match standing {
            Standing::Over(at) => _ = self.over.insert((at, number)),
            Standing::Live { .. } => _ = self.live.insert((standing, number)),
            Standing::Ending => {}
        }
        self.standings.insert(number, standing);
    }

    /// Removes a container.
    pub(super) fn remove(&mut self, number: u32) {
        match self.standings.remove(&number) {
            Some(Standing::Over(at)) => _ = self.over.remove(&(at, number)),
            Some(standing @ Standing::Live { .. }) => _ = self.live.remove(&(standing, number)),
            Some(Standing::Ending) | None => {}
        }
    }

    /// Containers that were removed at or before `at`, the first one first.
    pub(super) fn over_until(&self, at: Instant) -> Vec<u32> {
        self.over.iter().take_while(|(gone, _)| *gone <= at).map(|(_, number)| *number).collect()
    }

    /// The container that gives way to a new one: one that ended; for a new one that runs, one that
    /// never ran, or an idle one of a lower class.
    pub(super) fn replaceable(&self, runs: bool, class: Class, now: Instant) -> Option<u32> {
        if let Some((_, number)) = self.over.first() {
            return Some(*number);
        }
        let (standing, number) = self.live.first()?;
        let Standing::Live { ran, class: lowest, last_ran } = standing else { return None };
        let idle = now.saturating_duration_since(*last_ran) >= IDLE;
        (runs && (!ran || *lowest < class && idle)).then_some(*number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(ran: bool, class: Class, last_ran: Instant) -> Standing {
        Standing::Live { ran, class, last_ran }
    }

    #[test]
    fn ended_containers_give_way_first_then_idle_ones_of_a_lower_class() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut ranking = Ranking::default();
        ranking.set(1, live(true, Class::Plain, at(0)));
        ranking.set(2, live(true, Class::Plain, at(15)));
        ranking.set(3, live(true, Class::Confirmed, at(0)));
        let first = |ranking: &Ranking, class| ranking.replaceable(true, class, at(20));
        assert_eq!(first(&ranking, Class::Plain), None, "a cgroup does not replace one of its own class");
        assert_eq!(first(&ranking, Class::Likely), Some(1));
        assert_eq!(ranking.replaceable(false, Class::Likely, at(20)), None, "a new one must run");
        ranking.set(1, live(true, Class::Plain, at(19)));
        assert_eq!(first(&ranking, Class::Likely), None, "both ran a moment ago");
        ranking.set(4, live(false, Class::Likely, at(20)));
        assert_eq!(first(&ranking, Class::Plain), Some(4), "it never ran");
        ranking.set(5, Standing::Ending);
        ranking.set(3, Standing::Over(at(18)));
        assert_eq!(ranking.replaceable(false, Class::Plain, at(20)), Some(3));
        assert_eq!((ranking.over_until(at(17)), ranking.over_until(at(18))), (vec![], vec![3]));
        for number in 1..=5 {
            ranking.remove(number);
        }
        assert_eq!((ranking.standings.len(), ranking.over.len(), ranking.live.len()), (0, 0, 0));
    }
}
