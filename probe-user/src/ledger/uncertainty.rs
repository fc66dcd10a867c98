//! How far a container's joules may be from the truth.
//!
//! What is bounded: the counter's step, its update up to a millisecond before or after the reading at both ends of a tick, the time
//! between reading energy and reading CPU time, how far the kernel's figure of a running task is behind, the interval of
//! the idle power, and what a second beside a busy hyperthread is worth. What is not: the hardware's own bias (RAPL is partly
//! a model itself), and that a second of one program may cost more than a second of another.

use crate::units::Microjoules;

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
    /// True when they share cores.
    pub smt: bool,
}

impl Conditions {
    /// By how much the energy of the tick itself may be off, in microjoules. Half of it stands for either end.
    #[must_use]
    pub fn measured_bound(&self) -> f64 {
        float(Microjoules::of(self.peak_uw, self.update_ns.saturating_mul(2)).0) + 2.0 * float(self.step_uj)
    }

    /// By how much the share of somebody may be off who ran `own_ns` of the `all_ns` that everybody ran.
    #[must_use]
    pub fn share_bound(&self, own_ns: u64, all_ns: u64) -> Bound {
        if all_ns == 0 || own_ns == 0 {
            return Bound::default();
        }
        let (own, all) = (float(own_ns), float(all_ns));
        let share = own / all;
        let dynamic = float((self.measured - self.idle).0);
        // At either end, each CPU that was busy for somebody may have its running slice counted in the other tick.
        let slices = |ns: u64| float((ns / self.length_ns.max(1) + 1).min(self.cpus.max(1)));
        let late = 2.0 * float(self.skew_ns);
        let (own_off, rest_off) = (late * slices(own_ns), late * slices(all_ns - own_ns));
        let share_off = ((own_off * (1.0 - share) + rest_off * share) / all).min(1.0);
        let random = share * self.measured_bound() + dynamic * share_off;

        let idle_off = float(Microjoules::of(self.idle_off_uw, self.length_ns).0);
        let mut systematic = share * idle_off;
        if self.smt && own_ns < all_ns {
            let rest = all - own;
            let least = SHARED_LEAST * own / (SHARED_LEAST * own + rest);
            let most = own / (own + SHARED_LEAST * rest);
            systematic += dynamic * (share - least).max(most - share);
        }
        Bound { random, systematic }
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
        smt: false,
    };

    #[test]
    fn who_has_everything_bears_the_whole_uncertainty_of_the_counter() {
        let bound = QUIET.share_bound(5, 5);
        // Two milliseconds of 100 W, and two steps.
        assert_eq!(bound, Bound { random: 200_122.0, systematic: 0.0 });
        assert_eq!(QUIET.share_bound(0, 5), Bound::default());
    }

    #[test]
    fn an_unsure_idle_power_and_a_shared_core_do_not_average_out() {
        let unsure = Conditions { idle_off_uw: 5_000_000, ..QUIET };
        assert_eq!(unsure.share_bound(1, 2).systematic, 2_500_000.0);
        let shared = Conditions { smt: true, ..QUIET };
        // Half of everything: between a third and two thirds.
        assert!((shared.share_bound(1, 2).systematic - 80_000_000.0 / 6.0).abs() < 1.0);
        assert_eq!(shared.share_bound(2, 2).systematic, 0.0, "alone there is nobody to share with");
    }

    #[test]
    fn later_readings_blur_shares_not_sums() {
        let late = Conditions { skew_ns: 5_000_000, ..QUIET };
        assert!(late.share_bound(1_000_000_000, 2_000_000_000).random > QUIET.share_bound(1, 2).random);
        let alone = late.share_bound(1_000_000_000, 1_000_000_000).random;
        assert!(alone < 2.0 * QUIET.share_bound(1, 1).random + 1e6, "{alone}");
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
