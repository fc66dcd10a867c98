//! Error bounds of the energy of containers.
//!
//! The bounds include: the counter's step; its update up to a millisecond before or after the
//! reading, at both ends of a tick; the time between the readings of energy and CPU time; the delay
//! of the kernel's CPU time of a running task; the interval of the idle power; the weight of a
//! second next to a busy hyperthread; and, where a tier does not report them, the split between
//! such seconds and others, and between packages. They exclude the bias of the hardware (RAPL is
//! partly a model itself) and, where no hardware counters tell the error of the weight, the
//! different power of different programs.

use std::collections::VecDeque;

use units::Microjoules;

use crate::cpu::CpuUsage;

/// Bound of the delay of a target that seldom runs, in delays and roots of the part of time that it
/// runs. Of delays between nothing and all, at most 5 % are larger, whatever this part.
const RARELY_RUNNING: f64 = 2.5;

/// How many errors of the weight bound the cost of one claimant's weight: two for 95 %, and twice
/// that because programs cancel each other in the sum. Of three programs whose loads vary evenly,
/// at 2.5, 2.1 and 1.2 nJ a cycle, two are inside.
const WEIGHT_ERRORS: f64 = 4.0;

/// Error bound of a figure in microjoules.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bound {
    /// From the time of the readings: a surplus of one tick is a deficit of its neighbour.
    pub random: f64,
    /// From constants, whose error may have the same sign in every tick.
    pub systematic: f64,
}

impl Bound {
    /// Sum of both.
    #[must_use]
    pub fn total(self) -> f64 {
        self.random + self.systematic
    }
}

/// Properties of one tick of one accounting root.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    pub measured: Microjoules,
    /// Idle part of the measured energy.
    pub idle: Microjoules,
    pub length_ns: u64,
    /// Highest power in this and the last tick, in microwatts: a limit of the power at its ends.
    pub peak_uw: u64,
    /// Microjoules per step of the counter.
    pub step_uj: u64,
    /// Maximum age of a reading at either end.
    pub update_ns: u64,
    /// Maximum time between the readings of energy and CPU time.
    pub skew_ns: u64,
    /// Error bound of the idle power in microwatts.
    pub idle_bound_uw: u64,
    /// Number of CPUs of the root.
    pub cpus: u64,
    /// Number of CPUs of other roots that CPU time may belong to; 0 where CPU time is known by
    /// package.
    pub cpus_elsewhere: u64,
    /// True when CPUs share cores, and time next to a busy sibling is unknown.
    pub siblings_unknown: bool,
    /// Least and largest weight of a second next to a busy sibling, in seconds alone.
    pub shared_range: (f64, f64),
    /// Cross-validated error of the weight that divides the load energy, relative to the power of
    /// the load; `None` where it is unknown.
    pub weight_error: Option<f64>,
}

impl Conditions {
    /// Error bound of the measured energy in microjoules, half of it for each end of the tick.
    #[must_use]
    pub fn measured_bound(&self) -> f64 {
        float(Microjoules::from_power(self.peak_uw, self.update_ns.saturating_mul(2)).0) + 2.0 * float(self.step_uj)
    }

    /// Error bound of the share of a target that used `own` of `all` CPU time.
    #[must_use]
    pub fn share_bound(&self, own: &CpuUsage, all: &CpuUsage) -> Bound {
        let (own_ns, all_ns) = (own.ns(), all.ns());
        if all_ns == 0 || own_ns == 0 || all.weight == 0 {
            return Bound::default();
        }
        let total = float(all_ns);
        let share = float(own.weight) / float(all.weight);
        let dynamic = float((self.measured - self.idle).0);
        // At either end, the running time slice of each busy CPU may be counted in the neighbouring
        // tick. What is late at one end is missing, and at the other it is too much, so together
        // they are at most one delay. A target that runs for a small part of the time is seldom
        // running at an end: its delay, up to the whole one, happens with the probability `part` at
        // each. In 95 % of ticks both together are below 2.5 times the root of it.
        let length_ns = self.length_ns.max(1);
        let slices = |ns: u64| float((ns / length_ns + 1).min(self.cpus.max(1)));
        let late = |ns: u64| {
            let part = float(ns) / float(length_ns);
            float(self.skew_ns) * slices(ns).min(RARELY_RUNNING * part.sqrt())
        };
        let (own_bound, others_bound) = (late(own_ns), late(all_ns - own_ns));
        let share_bound = ((own_bound * (1.0 - share) + others_bound * share) / total).min(1.0);
        let random = share * self.measured_bound() + dynamic * share_bound;

        let idle_bound = float(Microjoules::from_power(self.idle_bound_uw, self.length_ns).0);
        let mut systematic = share * idle_bound;
        if own_ns < all_ns {
            let (own_min, own_max) = self.weight_range(own.time.alone_ns, own.time.shared_ns);
            let (others_min, others_max) = self.weight_range(
                all.time.alone_ns.saturating_sub(own.time.alone_ns),
                all.time.shared_ns.saturating_sub(own.time.shared_ns),
            );
            let part = |own: f64, others: f64| if own + others > 0.0 { own / (own + others) } else { share };
            let (min, max) = (part(own_min, others_max), part(own_max, others_min));
            // A share by cycles need not be one that CPU time allows, and where the error of its
            // weight is known it is counted by itself.
            let within = if self.weight_error.is_some() { share.max(min).min(max) } else { share };
            systematic += dynamic * (within - min).max(max - within).max(0.0);
            systematic += dynamic * self.weight_bound(share);
        }
        Bound { random, systematic }
    }

    /// Bound of a share because a unit of weight does not cost all claimants the same. In the power
    /// of a package, by which the error of the weight is known, the claimants partly cancel each
    /// other.
    fn weight_bound(&self, share: f64) -> f64 {
        let error = self.weight_error.unwrap_or(0.0);
        (WEIGHT_ERRORS * error * share * (1.0 - share)).min(share.max(1.0 - share))
    }

    /// Minimum and maximum weight of CPU time on this root, in nanoseconds alone.
    fn weight_range(&self, alone_ns: u64, shared_ns: u64) -> (f64, f64) {
        let (least, most) = self.shared_range;
        let (alone, shared) = (float(alone_ns), float(shared_ns));
        let (min, max) = if self.siblings_unknown {
            (least * (alone + shared), alone + shared)
        } else {
            (alone + least * shared, alone + most * shared)
        };
        if self.cpus_elsewhere == 0 {
            return (min, max);
        }
        let capacity = |cpus: u64| float(cpus.saturating_mul(self.length_ns));
        ((min - capacity(self.cpus_elsewhere)).max(0.0), max.min(capacity(self.cpus)))
    }
}

/// Bound of a sum over consecutive ticks. What one tick has too much between two ticks the other
/// lacks: only the difference of their watts is left, at most half of it as a random walk. Those at
/// both ends do not cancel, and have opposite signs.
#[derive(Clone, Copy, Debug, Default)]
pub struct BoundSum {
    /// Squares of all but the first.
    squares: f64,
    systematic: f64,
    first: Option<f64>,
    last: f64,
}

impl BoundSum {
    /// Adds the next tick.
    pub fn add(&mut self, bound: Bound) {
        if self.first.is_some() {
            self.squares += bound.random * bound.random;
        }
        self.systematic += bound.systematic;
        self.first.get_or_insert(bound.random);
        self.last = bound.random;
    }

    /// Adds the sum over the ticks that follow.
    fn append(&mut self, next: &Self) {
        let Some(first) = next.first else { return };
        if self.first.is_some() {
            self.squares += first * first;
        }
        self.squares += next.squares;
        self.systematic += next.systematic;
        self.first.get_or_insert(first);
        self.last = next.last;
    }

    /// Bound of the sum in microjoules.
    #[must_use]
    pub fn total(&self) -> f64 {
        let ends = (self.first.unwrap_or(0.0) + self.last) / 2.0;
        self.squares.sqrt() / 2.0 + ends + self.systematic
    }
}

/// Time of one slot, and number of the slots of the last minute.
const SLOT_NS: u64 = 5_000_000_000;
const SLOTS: usize = 12;
const MINUTE_NS: u64 = 60_000_000_000;

/// Energy of one container in the last minute, with its bound.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    slots: VecDeque<Slot>,
}

/// Consecutive ticks of at least [`SLOT_NS`].
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    ns: u64,
    uj: f64,
    bound: BoundSum,
}

/// Energy of a minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecentSum {
    pub ns: u64,
    /// Energy and bound in microjoules.
    pub uj: f64,
    pub bound_uj: f64,
}

impl RecentSum {
    /// Relative uncertainty, at most 1: more than all of it says no more than that nothing is
    /// known.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        (self.bound_uj / self.uj).min(1.0)
    }
}

impl Recent {
    /// Adds a tick.
    pub fn add(&mut self, ns: u64, uj: f64, bound: Bound) {
        if self.slots.back().is_none_or(|slot| slot.ns >= SLOT_NS) {
            if self.slots.len() > SLOTS {
                self.slots.pop_front();
            }
            self.slots.push_back(Slot::default());
        }
        if let Some(slot) = self.slots.back_mut() {
            slot.ns = slot.ns.saturating_add(ns);
            slot.uj += uj;
            slot.bound.add(bound);
        }
    }

    /// The sum over the newest slots that last a minute; `None` before there are so many.
    #[must_use]
    pub fn minute(&self) -> Option<RecentSum> {
        let mut ns = 0u64;
        let mut used = 0;
        for slot in self.slots.iter().rev() {
            if ns >= MINUTE_NS {
                break;
            }
            ns = ns.saturating_add(slot.ns);
            used += 1;
        }
        if ns < MINUTE_NS {
            return None;
        }
        let (mut uj, mut bound) = (0.0, BoundSum::default());
        for slot in self.slots.iter().skip(self.slots.len() - used) {
            uj += slot.uj;
            bound.append(&slot.bound);
        }
        Some(RecentSum { ns, uj, bound_uj: bound.total() })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a bound; no joule is counted here")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::RunTime;

    const QUIET: Conditions = Conditions {
        measured: Microjoules(100_000_000),
        idle: Microjoules(20_000_000),
        length_ns: 1_000_000_000,
        peak_uw: 100_000_000,
        step_uj: 61,
        update_ns: 1_000_000,
        skew_ns: 0,
        idle_bound_uw: 0,
        cpus: 4,
        cpus_elsewhere: 0,
        siblings_unknown: false,
        shared_range: (0.5, 1.0),
        weight_error: None,
    };

    fn alone(ns: u64) -> CpuUsage {
        CpuUsage { time: RunTime { alone_ns: ns, shared_ns: 0 }, weight: ns * 1000, counted: [0; 3] }
    }

    #[test]
    fn a_single_user_has_the_whole_bound_of_the_counter() {
        let bound = QUIET.share_bound(&alone(5), &alone(5));
        // Two milliseconds of 100 W, and two steps.
        assert_eq!(bound, Bound { random: 200_122.0, systematic: 0.0 });
        assert_eq!(QUIET.share_bound(&alone(0), &alone(5)), Bound::default());
    }

    #[test]
    fn bounds_of_idle_power_and_shared_cores_are_systematic() {
        let uncertain = Conditions { idle_bound_uw: 5_000_000, ..QUIET };
        assert_eq!(uncertain.share_bound(&alone(1), &alone(2)).systematic, 2_500_000.0);
        let unknown = Conditions { siblings_unknown: true, ..QUIET };
        // Half of everything: between a third and two thirds.
        assert!((unknown.share_bound(&alone(1), &alone(2)).systematic - 80_000_000.0 / 6.0).abs() < 1.0);
        assert_eq!(unknown.share_bound(&alone(2), &alone(2)).systematic, 0.0, "a single user shares with no other");
    }

    #[test]
    fn the_error_of_the_weight_is_systematic_and_not_that_of_a_single_user() {
        let known = |error| Conditions { weight_error: Some(error), ..QUIET };
        let bound = |error| known(error).share_bound(&alone(1), &alone(2)).systematic;
        // A tenth of the 20 J at stake, four times.
        assert!((bound(0.1) - 8_000_000.0).abs() < 1.0 && bound(0.0) == 0.0, "{}", bound(0.1));
        assert_eq!(bound(9.0), 40_000_000.0, "at most all");
        assert_eq!(known(0.1).share_bound(&alone(2), &alone(2)).systematic, 0.0);
    }

    #[test]
    fn only_time_next_to_a_busy_sibling_adds_to_the_bound() {
        let half = |shared_ns| CpuUsage {
            time: RunTime { alone_ns: 1000 - shared_ns, shared_ns },
            weight: (1000 - shared_ns) * 1000 + shared_ns * 575,
            counted: [0; 3],
        };
        let bound = |shared: u64| {
            let (own, mut all) = (half(shared), half(shared));
            all.add(&half(shared));
            QUIET.share_bound(&own, &all).systematic
        };
        assert_eq!(bound(0), 0.0);
        assert!(bound(100) > 0.0 && bound(100) < bound(500) && bound(500) < bound(1000));
    }

    /// The own second was next to a busy sibling, and that of the other was not.
    #[test]
    fn a_measured_weight_of_shared_time_narrows_the_bound() {
        let own = CpuUsage { time: RunTime { alone_ns: 0, shared_ns: 1000 }, weight: 600_000, counted: [0; 3] };
        let mut all = alone(1000);
        all.add(&own);
        let bound = |shared_range| Conditions { shared_range, ..QUIET }.share_bound(&own, &all).systematic;
        // The larger of 0.6 / 1.6 - 0.55 / 1.55 and 0.65 / 1.65 - 0.6 / 1.6, of 80 J.
        assert!((bound((0.55, 0.65)) - 1_612_903.2).abs() < 1.0, "{}", bound((0.55, 0.65)));
        assert!((bound((0.5, 1.0)) - 10_000_000.0).abs() < 1.0, "{}", bound((0.5, 1.0)));
        assert_eq!(bound((0.6, 0.6)), 0.0);
    }

    #[test]
    fn cpu_time_of_an_unknown_package_adds_to_the_bound() {
        let second = 1_000_000_000;
        let (own, all) = (alone(second), alone(4 * second));
        let here = Conditions { cpus: 4, cpus_elsewhere: 4, ..QUIET };
        // Either none of it ran here, or all of it, with the three seconds of the others on the
        // other package.
        assert_eq!(here.share_bound(&own, &all).systematic, 0.75 * 80_000_000.0);
        assert_eq!(QUIET.share_bound(&own, &all).systematic, 0.0);
        // More time than the other package can hold must have run here.
        let much = Conditions { cpus: 4, cpus_elsewhere: 1, ..QUIET };
        assert!(much.share_bound(&alone(3 * second), &all).systematic < 0.75 * 80_000_000.0);
    }

    #[test]
    fn late_readings_affect_shares_and_not_sums() {
        let late = Conditions { skew_ns: 5_000_000, ..QUIET };
        assert!(
            late.share_bound(&alone(1_000_000_000), &alone(2_000_000_000)).random
                > QUIET.share_bound(&alone(1), &alone(2)).random
        );
        let whole = late.share_bound(&alone(1_000_000_000), &alone(1_000_000_000)).random;
        assert!(whole < 2.0 * QUIET.share_bound(&alone(1), &alone(1)).random + 1e6, "{whole}");
    }

    /// A container that ran 0.5 ms of a second was unsure by 2800 %.
    #[test]
    fn a_container_that_seldom_runs_is_seldom_late() {
        let late = Conditions { skew_ns: 4_100_000, step_uj: 0, update_ns: 0, cpus: 16, ..QUIET };
        for own in [500_000, 2_000_000, 5_000_000] {
            let (own, all) = (alone(own), alone(4_000_000_000));
            let energy = 80_000_000.0 * float(own.ns()) / float(all.ns());
            let bound = late.share_bound(&own, &all).random;
            assert!(bound > 0.1 * energy && bound < energy, "{bound} of {energy}");
        }
    }

    #[test]
    fn a_minute_is_complete_after_a_minute_and_bounded_in_memory() {
        let mut recent = Recent::default();
        let second = |recent: &mut Recent| recent.add(1_000_000_000, 100.0, Bound { random: 10.0, systematic: 1.0 });
        (0..59).for_each(|_| second(&mut recent));
        assert_eq!(recent.minute(), None);
        second(&mut recent);
        let mut ticks = BoundSum::default();
        (0..60).for_each(|_| ticks.add(Bound { random: 10.0, systematic: 1.0 }));
        let minute = recent.minute().unwrap();
        assert_eq!((minute.ns, minute.uj), (60_000_000_000, 6000.0));
        assert!((minute.bound_uj - ticks.total()).abs() < 1e-6, "{minute:?} {ticks:?}");
        (0..1000).for_each(|_| second(&mut recent));
        assert!(recent.slots.len() <= SLOTS + 1);
        assert!((60..=65).contains(&(recent.minute().unwrap().ns / 1_000_000_000)));
    }

    #[test]
    fn a_longer_window_has_a_smaller_relative_bound() {
        let relative = |ticks: u32| {
            let mut sum = BoundSum::default();
            (0..ticks).for_each(|_| sum.add(Bound { random: 10.0, systematic: 1.0 }));
            sum.total() / f64::from(ticks)
        };
        assert_eq!(relative(1), 11.0);
        assert!(relative(10) < relative(1) / 3.0 && relative(1000) < relative(10) / 2.0);
    }
}
