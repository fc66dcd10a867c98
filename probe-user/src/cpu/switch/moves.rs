//! Gives the run of a task before its move back to the cgroup that it left.
//!
//! A bank contains the whole run of a task that was moved while it ran, because the task is charged
//! to the cgroup that it is in. An eBPF program reports each such move, and the rows are corrected
//! by what it ran before.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::CStr,
};

use probe_ebpf::{CgroupKey, MOVES_BYTES, Move, RunTime};

use crate::{
    cpu::{
        object::{BpfObject, load_error},
        ring::Ring,
    },
    host::{availability::Unavailable, process::clock_ns},
};

/// Hook and program.
const PROGRAMS: [(&CStr, &str); 2] =
    [(c"cgroup_attach_task", "task_attached"), (c"cgroup_transfer_tasks", "tasks_transferred")];

/// Size of the ring in bytes.
pub(super) const RING_BYTES: usize = MOVES_BYTES;

/// The ring of the attached programs, and what follows from the moves up to now.
pub(super) struct Moves {
    ring: Ring,
    corrections: Corrections,
}

impl Moves {
    /// Attaches the programs of `object`.
    ///
    /// # Errors
    /// When the kernel has no such tracepoint, or refuses a program: that for thousands of CPUs is
    /// too long for it.
    pub(super) fn attach(object: &mut BpfObject) -> Result<Self, Unavailable> {
        for (hook, name) in PROGRAMS {
            object
                .attach_raw(name, hook)
                .map_err(|error| load_error(&format!("attach {}", hook.to_string_lossy()), &error))?;
        }
        let ring =
            Ring::new("MOVES", &object.take("MOVES")?).map_err(|error| load_error("open the ring MOVES", &error))?;
        Ok(Self { ring, corrections: Corrections::default() })
    }

    /// Takes the moves since the last call. Call it after the running tasks were charged, and
    /// before the banks are read.
    pub(super) fn drain(&mut self) {
        let new = &mut self.corrections.new;
        self.ring.drain(|record| new.extend(parse(record)));
    }

    /// Corrects `rows`, which contain what the banks contain. `index` has the position of each
    /// cgroup.
    pub(super) fn correct(&mut self, index: &HashMap<CgroupKey, usize>, rows: &mut [(CgroupKey, Vec<RunTime>)]) {
        self.corrections.transfer(index, rows);
        self.corrections.apply(index, rows);
        self.corrections.read_ns = clock_ns(libc::CLOCK_MONOTONIC).unwrap_or(0);
    }

    /// Drops a cgroup whose slot is freed.
    pub(super) fn forget(&mut self, key: &CgroupKey) {
        self.corrections.by_cgroup.remove(key);
    }
}

/// Parses one record of the ring; `None` if it is not whole.
fn parse(record: &[u8]) -> Option<Move> {
    let word = |at: usize| Some(u64::from_ne_bytes(record.get(at * 8..at * 8 + 8)?.try_into().ok()?));
    Some(Move {
        at_ns: word(0)?,
        ran_ns: word(1)?,
        from: word(2)?,
        to: word(3)?,
        to_time: RunTime { alone_ns: word(4)?, shared_ns: word(5)? },
        cpu: word(6)?,
    })
}

/// What a cgroup received from others and gave to others on one CPU. Both only grow.
#[derive(Clone, Copy, Debug, Default)]
struct Correction {
    received: RunTime,
    given: RunTime,
}

/// All moves since the start.
#[derive(Debug, Default)]
struct Corrections {
    /// Moves that are not transferred yet, in order.
    new: Vec<Move>,
    by_cgroup: HashMap<CgroupKey, BTreeMap<usize, Correction>>,
    /// End of the last reading, `CLOCK_MONOTONIC`.
    read_ns: u64,
}

impl Corrections {
    /// Transfers the run before each new move.
    ///
    /// A task that was moved several times was charged to its last cgroup, so the last move comes
    /// first: its cgroup gives to the one before, which can then give. None gives more than it was
    /// charged since the move, so no row ever shrinks.
    fn transfer(&mut self, index: &HashMap<CgroupKey, usize>, rows: &[(CgroupKey, Vec<RunTime>)]) {
        let mut charged: HashMap<(CgroupKey, usize), Charged> = HashMap::new();
        for moved in std::mem::take(&mut self.new).into_iter().rev() {
            // During the last reading, right after the task was charged: its run was short, and the
            // last reading may contain it.
            if moved.at_ns <= self.read_ns {
                continue;
            }
            let (from, to) = (CgroupKey::of(moved.from), CgroupKey::of(moved.to));
            let (Ok(cpu), true) = (usize::try_from(moved.cpu), index.contains_key(&from)) else { continue };
            let now = index.get(&to).and_then(|at| rows.get(*at)).and_then(|(_, row)| row.get(cpu));
            let Some(now) = now else { continue };
            let of_target = charged.entry((to, cpu)).or_default();
            of_target.extend_to(moved.to_time, *now);
            let run = of_target.take(moved.ran_ns);
            add(&mut charged.entry((from, cpu)).or_default().time, run);
            add(&mut self.of(to, cpu).given, run);
            add(&mut self.of(from, cpu).received, run);
        }
    }

    fn of(&mut self, key: CgroupKey, cpu: usize) -> &mut Correction {
        self.by_cgroup.entry(key).or_default().entry(cpu).or_default()
    }

    fn apply(&self, index: &HashMap<CgroupKey, usize>, rows: &mut [(CgroupKey, Vec<RunTime>)]) {
        for (key, cpus) in &self.by_cgroup {
            let Some((_, row)) = index.get(key).and_then(|at| rows.get_mut(*at)) else { continue };
            for (cpu, correction) in cpus {
                let Some(time) = row.get_mut(*cpu) else { continue };
                add(time, correction.received);
                time.alone_ns = time.alone_ns.saturating_sub(correction.given.alone_ns);
                time.shared_ns = time.shared_ns.saturating_sub(correction.given.shared_ns);
            }
        }
    }
}

/// What a cgroup can give on one CPU: charged since a move, or received.
#[derive(Clone, Copy, Debug, Default)]
struct Charged {
    time: RunTime,
    /// The bank's content from which on `time` counts; `None` before the first move to the cgroup.
    since: Option<RunTime>,
}

impl Charged {
    /// Counts from the bank's content at an earlier move, up to its content `now`.
    fn extend_to(&mut self, earlier: RunTime, now: RunTime) {
        let until = self.since.unwrap_or(now);
        add(
            &mut self.time,
            RunTime {
                alone_ns: until.alone_ns.saturating_sub(earlier.alone_ns),
                shared_ns: until.shared_ns.saturating_sub(earlier.shared_ns),
            },
        );
        self.since = Some(RunTime {
            alone_ns: until.alone_ns.min(earlier.alone_ns),
            shared_ns: until.shared_ns.min(earlier.shared_ns),
        });
    }

    /// Takes up to `ns` nanoseconds, with and without a busy sibling in proportion.
    fn take(&mut self, ns: u64) -> RunTime {
        let all = self.time.ns();
        let ns = ns.min(all);
        let shared = u128::from(ns) * u128::from(self.time.shared_ns) / u128::from(all.max(1));
        let shared_ns = u64::try_from(shared).unwrap_or(0);
        let taken = RunTime { alone_ns: ns - shared_ns, shared_ns };
        self.time.alone_ns = self.time.alone_ns.saturating_sub(taken.alone_ns);
        self.time.shared_ns = self.time.shared_ns.saturating_sub(taken.shared_ns);
        taken
    }
}

fn add(sum: &mut RunTime, one: RunTime) {
    sum.alone_ns = sum.alone_ns.saturating_add(one.alone_ns);
    sum.shared_ns = sum.shared_ns.saturating_add(one.shared_ns);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::hierarchy;

    fn key(id: u64) -> CgroupKey {
        CgroupKey { id, hierarchy: hierarchy::V2 }
    }

    /// On CPU 1, when the bank of `to` contained `to_ns`.
    fn moved(at_ns: u64, from: u64, to: u64, ran_ns: u64, to_ns: u64) -> Move {
        Move { at_ns, ran_ns, from: key(from).tag(), to: key(to).tag(), to_time: RunTime::alone(to_ns), cpu: 1 }
    }

    /// The corrected run time of cgroups 1, 2, … on CPU 1, from the content of their banks.
    fn corrected(corrections: &mut Corrections, banks: &[RunTime]) -> Vec<RunTime> {
        let keys = (1..).map(key);
        let mut rows: Vec<_> = keys.zip(banks).map(|(key, time)| (key, vec![RunTime::alone(7), *time])).collect();
        let index = rows.iter().enumerate().map(|(at, (key, _))| (*key, at)).collect();
        corrections.transfer(&index, &rows);
        corrections.apply(&index, &mut rows);
        assert!(rows.iter().all(|(_, row)| row[0] == RunTime::alone(7)), "the other CPU is unchanged");
        rows.into_iter().map(|(_, row)| row[1]).collect()
    }

    fn alone(ns: &[u64]) -> Vec<RunTime> {
        ns.iter().copied().map(RunTime::alone).collect()
    }

    #[test]
    fn run_before_a_move_stays_with_the_cgroup_that_was_left() {
        let mut corrections = Corrections::default();
        corrections.new.push(moved(5, 1, 2, 600, 50));
        assert_eq!(corrected(&mut corrections, &alone(&[100, 1050])), alone(&[700, 450]));
        // It stays corrected.
        assert_eq!(corrected(&mut corrections, &alone(&[100, 1250])), alone(&[700, 650]));
    }

    /// Twice moved and moved back between two readings: the task was charged to the last cgroup.
    #[test]
    fn several_moves_of_one_run_are_all_counted() {
        let mut corrections = Corrections::default();
        corrections.new.extend([moved(5, 1, 2, 600, 0), moved(6, 2, 1, 970, 0), moved(7, 1, 2, 1600, 0)]);
        assert_eq!(corrected(&mut corrections, &alone(&[0, 2000])), alone(&[1230, 770]));
        let mut back = Corrections::default();
        back.new.extend([moved(5, 1, 2, 600, 0), moved(6, 2, 1, 970, 0)]);
        assert_eq!(corrected(&mut back, &alone(&[1500, 0])), alone(&[1130, 370]));
    }

    #[test]
    fn time_with_a_busy_sibling_is_moved_in_proportion() {
        let mut corrections = Corrections::default();
        corrections.new.push(moved(5, 1, 2, 500, 0));
        let banks = [RunTime::default(), RunTime { alone_ns: 750, shared_ns: 250 }];
        assert_eq!(corrected(&mut corrections, &banks), [RunTime { alone_ns: 375, shared_ns: 125 }; 2]);
    }

    #[test]
    fn no_row_shrinks_and_no_time_is_invented() {
        let mut corrections = Corrections { read_ns: 10, ..Corrections::default() };
        // Charged 30 since the move; moved during the last reading; without a row.
        corrections.new.extend([moved(11, 1, 2, 600, 70), moved(10, 1, 2, 5, 0), moved(12, 1, 9, 5, 0)]);
        assert_eq!(corrected(&mut corrections, &alone(&[100, 100])), alone(&[130, 70]));
    }

    #[test]
    fn records_of_the_ring_are_parsed() {
        let words: [u64; 7] = [1, 2, 3, 4, 5, 6, 7];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let to_time = RunTime { alone_ns: 5, shared_ns: 6 };
        assert_eq!(parse(&bytes), Some(Move { at_ns: 1, ran_ns: 2, from: 3, to: 4, to_time, cpu: 7 }));
        assert_eq!(parse(&bytes[..55]), None);
    }
}
