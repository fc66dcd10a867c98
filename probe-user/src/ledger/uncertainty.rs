//! How far a container's joules may be from the truth.
//!
//! What is bounded: the counter's step, its update up to a millisecond before or after the reading at both ends of a tick, the time
//! between reading energy and reading CPU time, how far the kernel's figure of a running task is behind, the interval of
//! the idle power, what a second beside a busy hyperthread is worth, and, where a tier cannot tell, which seconds those were or on
//! which package somebody ran. What is not: the hardware's own bias (RAPL is partly
//! a model itself), and that a second of one program may cost more than a second of another.

use crate::{cpu::Share, units::Microjoules};

/// What a second beside a busy sibling is worth lies between half a second alone and a whole one.
const SHARED_LEAST: f64 = 0.5;

/// Microjoules by which a figure may be off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bound {
    /// From reading at the wrong moment: what one tick has too much, its neighbour has too little.
    pub random: f64,
    /// From constants that may be wrong in the same direction every time.
    pub systematic: f64,
}

impl Bound {
    /// All of it.
    #[must_use]
    pub fn total(self) -> f64 {
        self.random + self.systematic
    }
}

/// What one tick of one accounting root was like.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Its energy.
    pub measured: Microjoules,
    /// Of that, nobody's.
    pub idle: Microjoules,
    /// Its length.
    pub length_ns: u64,
    /// The highest power around it, in microwatts: what the counter may have run on with at its ends.
    pub peak_uw: u64,
    /// Microjoules in a step of the counter.
    pub step_uj: u64,
    /// How old a reading may be at either end.
    pub update_ns: u64,
    /// Nanoseconds by which CPU time may belong to another moment than the energy.
    pub skew_ns: u64,
    /// Microwatts by which the idle power may be wrong, at most, either way.
    pub idle_off_uw: u64,
    /// CPUs of the root.
    pub cpus: u64,
    /// CPUs that somebody may have run on instead, because nobody knows who ran where; 0 where that is known.
    pub cpus_elsewhere: u64,
    /// True when they share cores, and nobody knows who ran beside whom.
    pub siblings_untold: bool,
}

impl Conditions {
    /// By how much the energy of the tick itself may be off, in microjoules. Half of it stands for either end.
    #[must_use]
    pub fn measured_bound(&self) -> f64 {
        float(Microjoules::of(self.peak_uw, self.update_ns.saturating_mul(2)).0) + 2.0 * float(self.step_uj)
    }

    /// By how much the share of somebody may be off who ran `own` of what everybody ran.
    #[must_use]
    pub fn share_bound(&self, own: &Share, all: &Share) -> Bound {
        let (own_ns, all_ns) = (own.ns(), all.ns());
        if all_ns == 0 || own_ns == 0 || all.weight == 0 {
            return Bound::default();
        }
        let total = float(all_ns);
        let share = float(own.weight) / float(all.weight);
        let dynamic = float((self.measured - self.idle).0);
        // At either end, each CPU that was busy for somebody may have its running slice counted in the other tick.
        let slices = |ns: u64| float((ns / self.length_ns.max(1) + 1).min(self.cpus.max(1)));
        let late = 2.0 * float(self.skew_ns);
        let (own_off, rest_off) = (late * slices(own_ns), late * slices(all_ns - own_ns));
        let share_off = ((own_off * (1.0 - share) + rest_off * share) / total).min(1.0);
        let random = share * self.measured_bound() + dynamic * share_off;

        let idle_off = float(Microjoules::of(self.idle_off_uw, self.length_ns).0);
        let mut systematic = share * idle_off;
        if own_ns < all_ns {
            let (own_least, own_most) = self.worth(own.time.alone_ns, own.time.shared_ns);
            let (rest_least, rest_most) = self.worth(
                all.time.alone_ns.saturating_sub(own.time.alone_ns),
                all.time.shared_ns.saturating_sub(own.time.shared_ns),
            );
            let part = |own: f64, rest: f64| if own + rest > 0.0 { own / (own + rest) } else { share };
            let (least, most) = (part(own_least, rest_most), part(own_most, rest_least));
            systematic += dynamic * (share - least).max(most - share).max(0.0);
        }
        Bound { random, systematic }
    }

    /// What time can be worth here, at least and at most, in nanoseconds alone.
    fn worth(&self, alone_ns: u64, shared_ns: u64) -> (f64, f64) {
        let most = float(alone_ns) + float(shared_ns);
        let least =
            if self.siblings_untold { SHARED_LEAST * most } else { float(alone_ns) + SHARED_LEAST * float(shared_ns) };
        if self.cpus_elsewhere == 0 {
            return (least, most);
        }
        let fits = |cpus: u64| float(cpus.saturating_mul(self.length_ns));
        ((least - fits(self.cpus_elsewhere)).max(0.0), most.min(fits(self.cpus)))
    }
}

/// The bound of a sum over ticks in a row: what lies between them cancels or at worst wanders, what lies at both ends does not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    squares: f64,
    systematic: f64,
    first: Option<f64>,
    last: f64,
}

impl Sum {
    /// Adds the next tick.
    pub fn add(&mut self, bound: Bound) {
        self.squares += bound.random * bound.random;
        self.systematic += bound.systematic;
        self.first.get_or_insert(bound.random);
        self.last = bound.random;
    }

    /// Microjoules by which the sum may be off.
    #[must_use]
    pub fn total(&self) -> f64 {
        let ends = (self.first.unwrap_or(0.0) + self.last) / 2.0;
        self.squares.sqrt() + ends + self.systematic
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
        idle_off_uw: 0,
        cpus: 4,
        cpus_elsewhere: 0,
        siblings_untold: false,
    };

    fn alone(ns: u64) -> Share {
        Share { time: RunTime { alone_ns: ns, shared_ns: 0 }, weight: ns * 1000, counted: [0; 3] }
    }

    #[test]
    fn who_has_everything_bears_the_whole_uncertainty_of_the_counter() {
        let bound = QUIET.share_bound(&alone(5), &alone(5));
        // Two milliseconds of 100 W, and two steps.
        assert_eq!(bound, Bound { random: 200_122.0, systematic: 0.0 });
        assert_eq!(QUIET.share_bound(&alone(0), &alone(5)), Bound::default());
    }

    #[test]
    fn an_unsure_idle_power_and_a_shared_core_do_not_average_out() {
        let unsure = Conditions { idle_off_uw: 5_000_000, ..QUIET };
        assert_eq!(unsure.share_bound(&alone(1), &alone(2)).systematic, 2_500_000.0);
        let untold = Conditions { siblings_untold: true, ..QUIET };
        // Half of everything: between a third and two thirds.
        assert!((untold.share_bound(&alone(1), &alone(2)).systematic - 80_000_000.0 / 6.0).abs() < 1.0);
        assert_eq!(untold.share_bound(&alone(2), &alone(2)).systematic, 0.0, "alone there is nobody to share with");
    }

    #[test]
    fn only_the_time_that_was_beside_a_busy_sibling_is_unsure() {
        let half = |shared_ns| Share {
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

    #[test]
    fn who_may_have_run_on_another_package_is_unsure_of_this_one() {
        let second = 1_000_000_000;
        let (own, all) = (alone(second), alone(4 * second));
        let here = Conditions { cpus: 4, cpus_elsewhere: 4, ..QUIET };
        // Nothing of it here, or all of it and the others' three on the other package.
        assert_eq!(here.share_bound(&own, &all).systematic, 0.75 * 80_000_000.0);
        assert_eq!(QUIET.share_bound(&own, &all).systematic, 0.0);
        // Who ran more than the other package can hold was here for the rest of it.
        let much = Conditions { cpus: 4, cpus_elsewhere: 1, ..QUIET };
        assert!(much.share_bound(&alone(3 * second), &all).systematic < 0.75 * 80_000_000.0);
    }

    #[test]
    fn later_readings_blur_shares_not_sums() {
        let late = Conditions { skew_ns: 5_000_000, ..QUIET };
        assert!(
            late.share_bound(&alone(1_000_000_000), &alone(2_000_000_000)).random
                > QUIET.share_bound(&alone(1), &alone(2)).random
        );
        let whole = late.share_bound(&alone(1_000_000_000), &alone(1_000_000_000)).random;
        assert!(whole < 2.0 * QUIET.share_bound(&alone(1), &alone(1)).random + 1e6, "{whole}");
    }

    #[test]
    fn a_longer_window_is_surer() {
        let relative = |ticks: u32| {
            let mut sum = Sum::default();
            (0..ticks).for_each(|_| sum.add(Bound { random: 10.0, systematic: 1.0 }));
            sum.total() / f64::from(ticks)
        };
        assert_eq!(relative(1), 21.0);
        assert!(relative(10) < relative(1) / 3.0 && relative(1000) < relative(10) / 2.0);
    }
}
