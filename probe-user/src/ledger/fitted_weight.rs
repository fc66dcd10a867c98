//! Watts of a package by cycles, instructions and cache misses, fitted to its own power.
//!
//! Cycles are not equal: on one server a compute loop draws 45 % more than a busy loop for the same
//! CPU seconds. A package whose hardware counters run tells what an event costs: its power is
//! `base + step · awake + Σ cost · rate`, where no cost is negative. Base and step are part of the
//! fit, so that it depends on no estimate of idle power.
//!
//! The mix divides the load only if it predicts the power of times that it has not seen clearly
//! better than cycles alone and CPU time alone (cross-validation by blocks of time), in several
//! evaluations in a row. It is given up only after as many without an advantage. Where the rates
//! cannot be separated the costs are unknown, and nothing changes.
//!
//! Everything here follows from ticks, so that a recording gives the same weights again.

use std::collections::{BTreeMap, VecDeque};

use super::basis::Basis;
use crate::cpu::CpuUsage;

/// Minimum length of a sample; shorter ticks are combined. The skew of the readings and the steps
/// of the counters are small in it.
const SAMPLE_NS: u64 = 5_000_000_000;
/// Maximum number of samples, of which the newest are kept: half an hour.
const MAX_SAMPLES: usize = 360;
/// Minimum number of samples of an evaluation.
const MIN_SAMPLES: usize = 72;
/// Number of samples between two evaluations: a minute.
const EVALUATION_INTERVAL: usize = 12;
/// Blocks of time of the cross-validation, and in how many of them the mix must predict better.
const BLOCKS: usize = 8;
const BETTER_BLOCKS: usize = 6;
/// Evaluations in a row that change the weight in use.
const PATIENCE: u32 = 5;
/// Error of the mix relative to that of the better of cycles and time, at most, to be used; and
/// from where on it has no advantage.
const CLEARLY_BETTER: f64 = 0.8;
const NO_ADVANTAGE: f64 = 0.95;
/// Minimum gain, relative to the power of the load.
const MIN_GAIN: f64 = 0.01;
/// Part of a rate's square that the other terms must leave over: below a scatter of 4.5 % its cost
/// is not separable from theirs.
const MIN_SEPARATION: f64 = 0.002;
/// Part of a pivot below which equations are singular.
const SINGULAR: f64 = 1e-9;

/// Number of terms: base, share of time awake, CPU time, cycles, instructions, cache misses.
const TERMS: usize = 6;
const TIME: usize = 2;
const CYCLES: usize = 3;
const INSTRUCTIONS: usize = 4;
const MISSES: usize = 5;
/// The terms of the models that are compared.
const BY_TIME: [usize; 3] = [0, 1, TIME];
const BY_CYCLES: [usize; 3] = [0, 1, CYCLES];
const BY_MIX: [usize; 5] = [0, 1, CYCLES, INSTRUCTIONS, MISSES];

type Terms = [f64; TERMS];

/// Samples of one package, and the weight in use.
#[derive(Clone, Debug, Default)]
pub struct FittedWeight {
    partial: PartialSample,
    samples: VecDeque<Sample>,
    /// Samples since the last evaluation.
    fresh: usize,
    evaluation: Option<Evaluation>,
    /// Evaluations in a row that speak for another weight than the one in use.
    streak: u32,
    /// Joules of each event, with the error relative to the power of the load, while the mix is in
    /// use.
    mix: Option<(Terms, f64)>,
}

/// Ticks that do not make a complete sample yet.
#[derive(Clone, Copy, Debug, Default)]
struct PartialSample {
    ns: u64,
    uj: u64,
    awake_ns: u64,
    /// CPU time, cycles, instructions, misses.
    counts: [u64; 4],
}

/// Mean power in watts, and the rates at which it was drawn: CPUs in use, events per second.
#[derive(Clone, Copy, Debug)]
struct Sample {
    watts: f64,
    rates: Terms,
}

/// What the samples tell.
#[derive(Clone, Copy, Debug)]
struct Evaluation {
    time: Fit,
    cycles: Fit,
    /// `None` where the rates cannot be separated.
    mix: Option<Fit>,
    /// Mean power of the load in watts.
    load_watts: f64,
}

/// A model and its cross-validated error.
#[derive(Clone, Copy, Debug)]
struct Fit {
    /// Watts of the base, of being awake, of a CPU; joules of an event.
    costs: Terms,
    /// Root mean square error in watts, of all blocks and of each.
    error: f64,
    of_block: [f64; BLOCKS],
}

impl FittedWeight {
    /// Adds a tick of `ns`, in which the package drew `uj` and was awake for `awake_ns`, and what
    /// ran on it. The hardware counters ran all the time.
    pub fn observe<K>(
        &mut self,
        (ns, uj, awake_ns): (u64, u64, u64),
        claims: &BTreeMap<K, CpuUsage>,
        shared_milli: u64,
    ) {
        let partial = &mut self.partial;
        partial.ns = partial.ns.saturating_add(ns);
        partial.uj = partial.uj.saturating_add(uj);
        partial.awake_ns = partial.awake_ns.saturating_add(awake_ns);
        for usage in claims.values() {
            let counts = counts(usage, shared_milli);
            partial.counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum = sum.saturating_add(count));
        }
        if partial.ns < SAMPLE_NS {
            return;
        }
        let PartialSample { ns, uj, awake_ns, counts } = std::mem::take(partial);
        let ns = float(ns);
        let [time, events @ ..] = counts.map(float);
        let [cycles, instructions, misses] = events.map(|count| count * 1e9 / ns);
        if self.samples.len() == MAX_SAMPLES {
            self.samples.pop_front();
        }
        let rates = [1.0, float(awake_ns) / ns, time / ns, cycles, instructions, misses];
        self.samples.push_back(Sample { watts: float(uj) * 1e3 / ns, rates });
        self.fresh += 1;
        if self.fresh >= EVALUATION_INTERVAL && self.samples.len() >= MIN_SAMPLES {
            self.fresh = 0;
            // Without variation nothing new is told.
            if let Some(evaluation) = Evaluation::of(&self.samples) {
                self.decide(&evaluation);
                self.evaluation = Some(evaluation);
            }
        }
    }

    /// Drops the incomplete sample after a missing reading.
    pub fn interrupt(&mut self) {
        self.partial = PartialSample::default();
    }

    fn decide(&mut self, evaluation: &Evaluation) {
        let Some(mix) = &evaluation.mix else {
            // The mix in use stays with the error that it had when it was fitted.
            if self.mix.is_none() {
                self.streak = 0;
            }
            return;
        };
        let single = evaluation.best_single();
        let blocks = mix.of_block.iter().zip(single.of_block).filter(|(mix, single)| *mix < single).count();
        let clearly = mix.error <= CLEARLY_BETTER * single.error
            && single.error - mix.error >= MIN_GAIN * evaluation.load_watts
            && blocks >= BETTER_BLOCKS;
        let no_advantage = mix.error > NO_ADVANTAGE * single.error;
        let change = if self.mix.is_some() { no_advantage } else { clearly };
        self.streak = if change { self.streak + 1 } else { 0 };
        let fitted = Some((mix.costs, mix.error / evaluation.load_watts));
        if self.streak >= PATIENCE {
            self.streak = 0;
            self.mix = if self.mix.is_some() { None } else { fitted };
        } else if self.mix.is_some() && !no_advantage {
            self.mix = fitted;
        }
    }

    /// The claims with the weights of the mix; `None` while it is not in use, or nothing was
    /// counted.
    #[must_use]
    pub fn weigh<K: Ord + Copy>(
        &self,
        claims: &BTreeMap<K, CpuUsage>,
        shared_milli: u64,
    ) -> Option<BTreeMap<K, CpuUsage>> {
        let (costs, _) = self.mix?;
        let costs = [CYCLES, INSTRUCTIONS, MISSES].map(|term| u128::from(attojoules(costs[term])));
        let energy = |usage: &CpuUsage| -> u128 {
            let [_, events @ ..] = counts(usage, shared_milli);
            let parts = events.into_iter().zip(costs).map(|(count, cost)| u128::from(count) * cost);
            parts.fold(0, u128::saturating_add)
        };
        let (mut all, mut all_ns) = (0u128, 0u128);
        for usage in claims.values().filter(|usage| usage.counted[0] > 0) {
            all = all.saturating_add(energy(usage));
            all_ns += u128::from(usage.ns());
        }
        if all == 0 || all_ns == 0 {
            return None;
        }
        // The sum of all weights fits into 64 bits, with those of runs without a count.
        let shift = (128 - all.leading_zeros()).saturating_sub(62);
        let weigh = |usage: &CpuUsage| {
            // A run too short to be counted has the mean weight of its time.
            let own = if usage.counted[0] > 0 {
                energy(usage) >> shift
            } else {
                (all >> shift).saturating_mul(u128::from(usage.ns())) / all_ns
            };
            CpuUsage { weight: u64::try_from(own).unwrap_or(u64::MAX), ..*usage }
        };
        Some(claims.iter().map(|(key, usage)| (*key, weigh(usage))).collect())
    }

    /// Error of the power of the load that a weight predicts, relative to it; `None` until it is
    /// known.
    #[must_use]
    pub fn error(&self, basis: Basis) -> Option<f64> {
        let evaluation = self.evaluation.as_ref()?;
        if let (Basis::Mix, Some((_, error))) = (basis, self.mix) {
            let newest = evaluation.mix.map_or(0.0, |fit| fit.error / evaluation.load_watts);
            return Some(error.max(newest));
        }
        let fit = match basis {
            Basis::Time => &evaluation.time,
            Basis::Cycles => &evaluation.cycles,
            Basis::Mix => evaluation.mix.as_ref()?,
            Basis::Misses | Basis::HostMisses | Basis::Nothing => return None,
        };
        Some(fit.error / evaluation.load_watts)
    }

    /// What a weight costs: watts of a CPU, or joules of each event. Empty until it is known.
    #[must_use]
    pub fn costs(&self, basis: Basis) -> Vec<(&'static str, f64)> {
        let all = ["", "", "time", "cycles", "instructions", "misses"];
        let (terms, costs): (&[usize], Option<Terms>) = match basis {
            Basis::Time => (&[TIME], self.evaluation.as_ref().map(|evaluation| evaluation.time.costs)),
            Basis::Cycles => (&[CYCLES], self.evaluation.as_ref().map(|evaluation| evaluation.cycles.costs)),
            Basis::Mix => (&[CYCLES, INSTRUCTIONS, MISSES], self.mix.map(|(costs, _)| costs)),
            Basis::Misses | Basis::HostMisses | Basis::Nothing => (&[], None),
        };
        costs.map_or_else(Vec::new, |costs| terms.iter().map(|term| (all[*term], costs[*term])).collect())
    }
}

/// CPU time in nanoseconds and cycles, both with the weight of time next to a busy sibling, then
/// instructions and misses, which a busy sibling makes fewer by itself.
fn counts(usage: &CpuUsage, shared_milli: u64) -> [u64; 4] {
    let (alone, shared) = (u128::from(usage.time.alone_ns), u128::from(usage.time.shared_ns));
    let (weighted, whole) = (alone * 1000 + shared * u128::from(shared_milli), (alone + shared) * 1000);
    let [cycles, instructions, misses] = usage.counted;
    let time = u64::try_from(weighted / 1000).unwrap_or(u64::MAX);
    // Saturates only with figures that no machine has.
    let part = u128::from(cycles).saturating_mul(weighted) / whole.max(1);
    [time, u64::try_from(part).unwrap_or(u64::MAX), instructions, misses]
}

impl Evaluation {
    /// `None` where the samples have too little variation to compare anything.
    fn of(samples: &VecDeque<Sample>) -> Option<Self> {
        let count = size(samples.len());
        let mut means = [0.0; TERMS];
        for sample in samples {
            means.iter_mut().zip(sample.rates).for_each(|(mean, rate)| *mean += rate / count);
        }
        // Rates of a billion and of a hundred in the same equations: each relative to its mean.
        let scale = means.map(|mean| if mean > 0.0 { mean } else { 1.0 });
        let mut blocks = [Gram::default(); BLOCKS];
        for (at, sample) in samples.iter().enumerate() {
            let mut terms = sample.rates;
            terms.iter_mut().zip(scale).for_each(|(term, scale)| *term /= scale);
            blocks[at * BLOCKS / samples.len()].add(&terms, sample.watts);
        }
        let all = blocks.iter().fold(Gram::default(), |all, block| all.plus(block, 1.0));
        let fit = |terms: &[usize]| {
            let mut fit = Fit::of(&all, &blocks, terms)?;
            fit.costs.iter_mut().zip(scale).for_each(|(cost, scale)| *cost /= scale);
            Some(fit)
        };
        let (time, cycles) = (fit(&BY_TIME)?, fit(&BY_CYCLES)?);
        let watts = samples.iter().map(|sample| sample.watts / count).sum::<f64>();
        let load_watts = watts - cycles.costs[0] - cycles.costs[1] * means[1];
        let enough = load_watts > 0.01 * watts;
        enough.then(|| Self { time, cycles, mix: fit(&BY_MIX), load_watts })
    }

    /// The better of time and cycles.
    fn best_single(&self) -> &Fit {
        if self.time.error < self.cycles.error { &self.time } else { &self.cycles }
    }
}

impl Fit {
    /// `None` where the power does not grow with the rates, or their costs cannot be separated.
    fn of(all: &Gram, blocks: &[Gram; BLOCKS], terms: &[usize]) -> Option<Self> {
        let costs = nonnegative(all, terms)?;
        let used: Vec<usize> = terms.iter().copied().filter(|term| *term >= TIME && costs[*term] > 0.0).collect();
        let with_base: Vec<usize> = terms[..TIME].iter().chain(&used).copied().collect();
        if used.is_empty() || used.iter().any(|term| separation(all, *term, &with_base) < MIN_SEPARATION) {
            return None;
        }
        let mut of_block = [0.0; BLOCKS];
        let mut squares = 0.0;
        for (error, block) in of_block.iter_mut().zip(blocks) {
            let unseen = block.squares(&nonnegative(&all.plus(block, -1.0), terms)?);
            *error = (unseen / block.count.max(1.0)).sqrt();
            squares += unseen;
        }
        Some(Self { costs, error: (squares / all.count).sqrt(), of_block })
    }
}

/// Sums of products over samples: all that least squares need.
#[derive(Clone, Copy, Debug, Default)]
struct Gram {
    products: [Terms; TERMS],
    with_power: Terms,
    power: f64,
    count: f64,
}

impl Gram {
    fn add(&mut self, terms: &Terms, watts: f64) {
        for ((row, sum), term) in self.products.iter_mut().zip(&mut self.with_power).zip(terms) {
            row.iter_mut().zip(terms).for_each(|(sum, other)| *sum += term * other);
            *sum += term * watts;
        }
        self.power += watts * watts;
        self.count += 1.0;
    }

    /// These samples with others, or without them where `sign` is -1.
    fn plus(&self, other: &Self, sign: f64) -> Self {
        let mut sum = *self;
        for (row, others) in sum.products.iter_mut().zip(&other.products) {
            row.iter_mut().zip(others).for_each(|(sum, other)| *sum += sign * other);
        }
        sum.with_power.iter_mut().zip(&other.with_power).for_each(|(sum, other)| *sum += sign * other);
        sum.power += sign * other.power;
        sum.count += sign * other.count;
        sum
    }

    /// Sum of the squares of what `costs` leave over.
    fn squares(&self, costs: &Terms) -> f64 {
        let product = |one: &Terms, other: &Terms| one.iter().zip(other).map(|(one, other)| one * other).sum::<f64>();
        let explained = self.products.map(|row| product(&row, costs));
        (self.power - 2.0 * product(&self.with_power, costs) + product(&explained, costs)).max(0.0)
    }
}

/// The least squares solution in which no cost is negative: the best of the solutions of all
/// subsets of the terms. There are at most five terms.
fn nonnegative(gram: &Gram, terms: &[usize]) -> Option<Terms> {
    let mut best: Option<(f64, Terms)> = None;
    for subset in 1usize..1 << terms.len() {
        let chosen: Vec<usize> =
            terms.iter().enumerate().filter(|(at, _)| (subset >> at) & 1 == 1).map(|(_, term)| *term).collect();
        let Some(costs) = solve(gram, &chosen) else { continue };
        if costs.iter().any(|cost| *cost < 0.0) {
            continue;
        }
        let squares = gram.squares(&costs);
        if best.is_none_or(|(least, _)| squares < least) {
            best = Some((squares, costs));
        }
    }
    best.map(|(_, costs)| costs)
}

/// The least squares solution with these terms; `None` where they depend on each other.
fn solve(gram: &Gram, terms: &[usize]) -> Option<Terms> {
    let row = |term: usize| -> Vec<f64> {
        terms.iter().map(|other| gram.products[term][*other]).chain([gram.with_power[term]]).collect()
    };
    let mut rows: Vec<Vec<f64>> = terms.iter().map(|term| row(*term)).collect();
    for (at, term) in terms.iter().enumerate() {
        let pivot = rows[at][at];
        if pivot <= SINGULAR * gram.products[*term][*term] {
            return None;
        }
        let scaled: Vec<f64> = rows[at].iter().map(|value| value / pivot).collect();
        for row in &mut rows {
            let factor = row[at];
            row.iter_mut().zip(&scaled).for_each(|(value, scaled)| *value -= factor * scaled);
        }
        rows[at] = scaled;
    }
    let mut costs = [0.0; TERMS];
    terms.iter().zip(&rows).for_each(|(term, row)| costs[*term] = row[terms.len()]);
    Some(costs)
}

/// The part of a term's square that the others do not explain.
fn separation(gram: &Gram, term: usize, terms: &[usize]) -> f64 {
    let mut products = gram.products;
    for other in terms.iter().filter(|other| **other != term) {
        let pivot = products[*other];
        let square = pivot[*other];
        if square <= SINGULAR * gram.products[*other][*other] {
            continue;
        }
        for row in &mut products {
            let factor = row[*other] / square;
            row.iter_mut().zip(pivot).for_each(|(value, pivot)| *value -= factor * pivot);
        }
    }
    let square = gram.products[term][term];
    if square > 0.0 { products[term][term] / square } else { 0.0 }
}

/// Joules of an event in attojoules, at most a millijoule.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 1e15")]
fn attojoules(joules: f64) -> u64 {
    (joules * 1e18).round().clamp(0.0, 1e15) as u64
}

#[expect(clippy::cast_precision_loss, reason = "statistics; no joule is counted here")]
fn float(count: u64) -> f64 {
    count as f64
}

fn size(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "synthetic figures, positive and small"
)]
mod tests {
    use super::*;
    use crate::cpu::RunTime;

    const HERTZ: f64 = 3e9;
    /// Joules of a cycle, an instruction, a miss.
    const COSTS: [f64; 3] = [1e-9, 0.5e-9, 30e-9];
    /// Instructions and misses of a cycle of three programs, which then cost 2.5, 2.1 and 1.2 nJ.
    const PROGRAMS: [[f64; 2]; 3] = [[3.0, 0.0005], [1.0, 0.02], [0.4, 0.0]];

    impl FittedWeight {
        /// The weight in use where the hardware counters ran all the time.
        fn basis(&self) -> Basis {
            if self.mix.is_some() { Basis::Mix } else { Basis::Cycles }
        }
    }

    /// Reproducible numbers between 0 and 1.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 11) as f64 / (1_u64 << 53) as f64
        }
    }

    /// A program on so many CPUs for five seconds, and its joules above those of an awake package.
    fn run(program: [f64; 2], cpus: f64) -> (CpuUsage, f64) {
        let cycles = cpus * 5.0 * HERTZ;
        let [instructions, misses] = program.map(|of_cycle| of_cycle * cycles);
        let ns = (cpus * 5e9) as u64;
        let usage = CpuUsage {
            time: RunTime { alone_ns: ns, shared_ns: 0 },
            weight: ns * 1000,
            counted: [cycles as u64, instructions as u64, misses as u64],
        };
        (usage, COSTS[0] * cycles + COSTS[1] * instructions + COSTS[2] * misses)
    }

    /// Adds samples of a package with 20 W of sleep power and a step of 8 W, on which the programs
    /// run on up to four CPUs each. Their loads change twice a minute.
    fn feed(fitted: &mut FittedWeight, random: &mut Random, programs: &[[f64; 2]; 3], samples: usize) {
        let mut cpus = [0.0; 3];
        for sample in 0..samples {
            if sample % 6 == 0 {
                cpus = [0.0; 3].map(|_: f64| 4.0 * random.next());
            }
            let mut joules = 5.0 * (28.0 + random.next() - 0.5);
            let mut claims = BTreeMap::new();
            for (number, (program, cpus)) in programs.iter().zip(cpus).enumerate() {
                let (usage, own) = run(*program, cpus);
                claims.insert(number, usage);
                joules += own;
            }
            fitted.observe((SAMPLE_NS, (joules * 1e6) as u64, SAMPLE_NS), &claims, 575);
        }
    }

    /// The largest error of a program's share when all three use two CPUs.
    fn worst_share(weights: &BTreeMap<usize, CpuUsage>) -> f64 {
        let truth = PROGRAMS.map(|program| run(program, 2.0).1);
        let (all_true, all) =
            (truth.iter().sum::<f64>(), weights.values().map(|usage| float(usage.weight)).sum::<f64>());
        let errors = weights.values().zip(truth).map(|(usage, truth)| {
            let share = float(usage.weight) / all;
            (share / (truth / all_true) - 1.0).abs()
        });
        errors.fold(0.0, f64::max)
    }

    fn claims() -> BTreeMap<usize, CpuUsage> {
        PROGRAMS.iter().enumerate().map(|(number, program)| (number, run(*program, 2.0).0)).collect()
    }

    #[test]
    fn a_mix_divides_programs_with_unequal_cycles() {
        let (mut fitted, mut random) = (FittedWeight::default(), Random(1));
        feed(&mut fitted, &mut random, &PROGRAMS, 240);
        assert_eq!(fitted.basis(), Basis::Mix, "{:?}", fitted.evaluation);
        let by_cycles = worst_share(&claims());
        let by_mix = worst_share(&fitted.weigh(&claims(), 575).unwrap());
        assert!(by_cycles > 0.2 && by_mix < 0.05, "{by_cycles} {by_mix}");
        let (cycles, mix) = (fitted.error(Basis::Cycles).unwrap(), fitted.error(Basis::Mix).unwrap());
        assert!(mix < 0.03 && cycles > 0.05 && fitted.error(Basis::Time).unwrap() > 0.05, "{cycles} {mix}");
        let costs = fitted.costs(Basis::Mix);
        assert_eq!(costs.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["cycles", "instructions", "misses"]);
        for ((_, cost), truth) in costs.iter().zip(COSTS) {
            assert!((cost / truth - 1.0).abs() < 0.15, "{costs:?}");
        }
    }

    /// Two programs do not tell three costs, but their own.
    #[test]
    fn two_programs_are_enough_for_their_own_shares() {
        let (mut fitted, mut random) = (FittedWeight::default(), Random(5));
        let programs = [PROGRAMS[0], PROGRAMS[2], PROGRAMS[2]];
        feed(&mut fitted, &mut random, &programs, 240);
        assert_eq!(fitted.basis(), Basis::Mix, "{:?}", fitted.evaluation);
        let claims = BTreeMap::from([(0, run(programs[0], 2.0).0), (1, run(programs[1], 2.0).0)]);
        let weights = fitted.weigh(&claims, 575).unwrap();
        let ratio = float(weights[&0].weight) / float(weights[&1].weight);
        let truth = run(programs[0], 2.0).1 / run(programs[1], 2.0).1;
        assert!((ratio / truth - 1.0).abs() < 0.05, "{ratio} {truth}");
    }

    #[test]
    fn the_same_ticks_give_the_same_weights() {
        let fitted = || {
            let (mut fitted, mut random) = (FittedWeight::default(), Random(7));
            feed(&mut fitted, &mut random, &PROGRAMS, 400);
            fitted
        };
        let (one, other) = (fitted(), fitted());
        assert_eq!((one.mix, one.weigh(&claims(), 575)), (other.mix, other.weigh(&claims(), 575)));
    }

    #[test]
    fn programs_with_equal_cycles_are_refused() {
        let (mut fitted, mut random) = (FittedWeight::default(), Random(2));
        feed(&mut fitted, &mut random, &[PROGRAMS[1]; 3], 400);
        assert_eq!((fitted.basis(), fitted.weigh(&claims(), 575)), (Basis::Cycles, None));
        let [cycles, mix] = [Basis::Cycles, Basis::Mix].map(|basis| fitted.error(basis));
        assert!(cycles.is_some_and(|error| error < 0.02), "{:?}", fitted.evaluation);
        assert!(mix.is_none_or(|mix| mix > 0.95 * cycles.unwrap()), "{:?}", fitted.evaluation);
    }

    #[test]
    fn an_even_load_tells_nothing() {
        let mut fitted = FittedWeight::default();
        for _ in 0..400 {
            fitted.observe((SAMPLE_NS, 250_000_000, SAMPLE_NS), &claims(), 575);
        }
        assert_eq!((fitted.basis(), fitted.error(Basis::Cycles)), (Basis::Cycles, None));
    }

    /// One program is left, from which three costs cannot be separated.
    #[test]
    fn a_mix_in_use_keeps_its_error() {
        let (mut fitted, mut random) = (FittedWeight::default(), Random(1));
        feed(&mut fitted, &mut random, &PROGRAMS, 240);
        let error = fitted.error(Basis::Mix);
        let evaluation = fitted.evaluation.map(|evaluation| Evaluation { mix: None, ..evaluation });
        fitted.decide(&evaluation.unwrap());
        fitted.evaluation = evaluation;
        assert!(error.is_some() && fitted.error(fitted.basis()) == error, "{error:?}");
    }

    #[test]
    fn too_little_data_leaves_cycles() {
        let (mut fitted, mut random) = (FittedWeight::default(), Random(3));
        feed(&mut fitted, &mut random, &PROGRAMS, MIN_SAMPLES - 1);
        assert!(fitted.evaluation.is_none() && fitted.costs(Basis::Cycles).is_empty());
        feed(&mut fitted, &mut random, &PROGRAMS, EVALUATION_INTERVAL);
        assert_eq!(
            (fitted.evaluation.is_some(), fitted.basis()),
            (true, Basis::Cycles),
            "one evaluation is not enough"
        );
    }

    #[test]
    fn a_mix_without_an_advantage_is_given_up_slowly() {
        let (mut fitted, mut random) = (FittedWeight::default(), Random(4));
        feed(&mut fitted, &mut random, &PROGRAMS, 240);
        assert_eq!(fitted.basis(), Basis::Mix);
        // Programs whose instructions and misses differ, and cost nothing.
        let mut cycles_only = |samples: usize| {
            for sample in 0..samples {
                let cpus = 1.0 + 6.0 * random.next();
                let (usage, _) = run([1.0 + 2.0 * random.next(), 0.01 * random.next()], cpus);
                let joules = 5.0 * (28.0 + 6.0 * cpus + random.next() - 0.5);
                let claims = BTreeMap::from([(sample, usage)]);
                fitted.observe((SAMPLE_NS, (joules * 1e6) as u64, SAMPLE_NS), &claims, 575);
            }
            fitted.basis()
        };
        assert_eq!(cycles_only(EVALUATION_INTERVAL), Basis::Mix);
        assert_eq!(cycles_only(MAX_SAMPLES + (1 + PATIENCE as usize) * EVALUATION_INTERVAL), Basis::Cycles);
    }

    #[test]
    fn weights_are_bounded_and_short_runs_have_some() {
        let costs = [0.0, 0.0, 0.0, 1e-9, 0.5e-9, 30e-9];
        let fitted = FittedWeight { mix: Some((costs, 0.01)), ..FittedWeight::default() };
        let all = |counted: [u64; 3], ns| CpuUsage { time: RunTime { alone_ns: ns, shared_ns: 0 }, weight: 0, counted };
        let claims = BTreeMap::from([(1, all([3_000, 3_000, 0], 1000)), (2, all([0; 3], 10)), (3, all([0, 0, 0], 0))]);
        let weights: Vec<u64> = fitted.weigh(&claims, 575).unwrap().values().map(|usage| usage.weight).collect();
        // 4500 nJ in 1000 ns.
        assert_eq!(weights, [4_500_000_000_000, 45_000_000_000, 0]);
        assert_eq!(fitted.weigh(&BTreeMap::from([(1, all([0; 3], 10))]), 575), None, "nothing was counted");
        let most = all([u64::MAX; 3], u64::MAX);
        let weights = fitted.weigh(&BTreeMap::from([(1, most), (2, most)]), 575).unwrap();
        assert!(weights.values().all(|usage| usage.weight > 1 << 58 && usage.weight < 1 << 62));
    }

    #[test]
    fn time_next_to_a_busy_sibling_has_its_weight() {
        let usage = CpuUsage { time: RunTime { alone_ns: 1000, shared_ns: 1000 }, weight: 0, counted: [4000, 5000, 6] };
        assert_eq!(counts(&usage, 575), [1575, 3150, 5000, 6]);
        assert_eq!(counts(&CpuUsage::default(), 575), [0; 4]);
    }
}
