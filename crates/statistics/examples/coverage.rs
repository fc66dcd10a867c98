//! Simulates how often intervals hold the true value, and how often tests detect a true difference,
//! next to the methods that they replaced. The random numbers are the same in every run.
//!
//! `cargo run --release -p wattcast-statistics --example coverage [SIMULATIONS]`

#![allow(clippy::unwrap_used, reason = "a simulation that cannot go on has failed")]

use std::time::Instant;

use fastrand::Rng;
use statistics::{
    bjontegaard::{Point, Repeat, delta},
    curve::{Curve, Method},
    inference::{Welch, relative_interval, t_quantile},
    mean, quantile, standard_deviation,
    trend::Trend,
};

const REPEATS: [u32; 3] = [3, 5, 10];

fn main() {
    let simulations = std::env::args().nth(1).map_or(2000, |count| count.parse().unwrap());
    bjontegaard(simulations);
    relative_difference(simulations);
    detectable_difference(simulations);
    forecast(simulations);
}

/// A normal variable by Box and Muller's method.
fn normal(random: &mut Rng) -> f64 {
    (-2.0 * (1.0 - random.f64()).ln()).sqrt() * (2.0 * std::f64::consts::PI * random.f64()).cos()
}

fn sample(random: &mut Rng, count: u32, center: f64, deviation: f64) -> Vec<f64> {
    (0..count).map(|_| center + deviation * normal(random)).collect()
}

/// Counts, as percentages and means.
#[derive(Default)]
struct Tally {
    held: u32,
    width: f64,
    error: f64,
    count: u32,
}

impl Tally {
    fn add(&mut self, (low, high): (f64, f64), wanted: f64) {
        self.held += u32::from((low..=high).contains(&wanted));
        self.width += high - low;
        self.error += f64::midpoint(low, high) / wanted - 1.0;
        self.count += 1;
    }

    fn percent(&self) -> f64 {
        f64::from(self.held) / f64::from(self.count) * 100.0
    }

    fn mean_width(&self) -> f64 {
        self.width / f64::from(self.count)
    }

    fn mean_error(&self) -> f64 {
        self.error / f64::from(self.count) * 100.0
    }
}

/// Qualities and costs of the four points of a curve.
type Curve4 = [(f64, f64); 4];

const ANCHOR: Curve4 = [(62.1, 5.0), (78.4, 10.0), (88.9, 20.0), (94.2, 40.0)];
const TEST: Curve4 = [(65.0, 4.5), (81.2, 9.0), (90.8, 18.0), (95.3, 36.0)];

fn points(random: &mut Rng, curve: &Curve4, noise: f64, repeats: u32) -> Vec<Point> {
    let point = |(quality, cost): &(f64, f64)| {
        let mut repeat = || Repeat { rate: *cost, quality: *quality, cost: cost * (1.0 + noise * normal(random)) };
        (0..repeats).map(|_| repeat()).collect()
    };
    curve.iter().map(point).collect()
}

fn bjontegaard(simulations: u32) {
    println!("Bjontegaard delta, 95 % interval, curves of four points: coverage and width in percentage points");
    println!("noise  repeats  bootstrap         variance          time of the latter");
    let exact = |curve| points(&mut Rng::with_seed(1), curve, 0.0, 1);
    let wanted = delta(&exact(&ANCHOR), &exact(&TEST)).unwrap().pchip;
    for noise in [0.02, 0.05, 0.15] {
        for repeats in REPEATS {
            let mut random = Rng::with_seed(1);
            let (mut before, mut after, mut seconds) = (Tally::default(), Tally::default(), 0.0);
            for number in 0..simulations {
                let a = points(&mut random, &ANCHOR, noise, repeats);
                let b = points(&mut random, &TEST, noise, repeats);
                let start = Instant::now();
                let interval = delta(&a, &b).unwrap().interval.unwrap();
                seconds += start.elapsed().as_secs_f64();
                after.add(interval, wanted);
                // It takes some hundred times as long.
                if number % 10 == 0 {
                    before.add(bootstrap(&mut Rng::with_seed(1), &a, &b), wanted);
                }
            }
            println!(
                "{:4.0} %  {repeats:7}  {:5.1} %  {:6.2}    {:5.1} %  {:6.2}    {:.2} ms",
                noise * 100.0,
                before.percent(),
                before.mean_width(),
                after.percent(),
                after.mean_width(),
                seconds / f64::from(simulations) * 1000.0
            );
        }
    }
}

/// The former interval: percentiles of a bootstrap, each of whose means is moved away from the
/// point's by Student's factor of its own repeats.
fn bootstrap(random: &mut Rng, a: &[Point], b: &[Point]) -> (f64, f64) {
    let mut draw = |points: &[Point]| -> Vec<(f64, f64)> {
        let point = |point: &Point| {
            let count = u32::try_from(point.len()).map(f64::from).unwrap();
            let wider = (count / (count - 1.0)).sqrt() * t_quantile(0.975, count - 1.0) / 1.959_963_984_540_054;
            let center = mean(&point.iter().map(|repeat| repeat.cost).collect::<Vec<_>>()).unwrap();
            let drawn: Vec<f64> = point.iter().map(|_| point[random.usize(..point.len())].cost).collect();
            (point[0].quality, center + (mean(&drawn).unwrap() - center) * wider)
        };
        points.iter().map(point).collect()
    };
    // Without the costs that the widening makes negative.
    let deltas: Vec<f64> = (0..1000).filter_map(|_| distance(&draw(a), &draw(b))).collect();
    (quantile(&deltas, 0.025).unwrap(), quantile(&deltas, 0.975).unwrap())
}

fn distance(a: &[(f64, f64)], b: &[(f64, f64)]) -> Option<f64> {
    let curve = |points: &[(f64, f64)]| {
        let logarithms: Vec<(f64, f64)> = points.iter().map(|(quality, cost)| (*quality, cost.ln())).collect();
        Curve::new(&logarithms, Method::Pchip)
    };
    let (a, b) = (curve(a)?, curve(b)?);
    let (low, high) = (a.range().0.max(b.range().0), a.range().1.min(b.range().1));
    Some((((b.integral(low, high)? - a.integral(low, high)?) / (high - low)).exp() - 1.0) * 100.0)
}

fn relative_difference(simulations: u32) {
    println!(
        "\nRelative difference of two means with 10 % noise, 95 % interval: coverage and width in percentage points"
    );
    println!("change  repeats  Welch over the mean  Fieller");
    for change in [-0.6, 0.0, 2.0] {
        for repeats in REPEATS {
            let mut random = Rng::with_seed(2);
            let (mut before, mut after) = (Tally::default(), Tally::default());
            for _ in 0..simulations {
                let a = sample(&mut random, repeats, 10.0, 1.0);
                let b = sample(&mut random, repeats, 10.0 * (1.0 + change), 1.0 + change);
                let (welch, base) = (Welch::of(&a, &b).unwrap(), mean(&a).unwrap());
                before.add((welch.low / base * 100.0, welch.high / base * 100.0), change * 100.0);
                let (low, high) = relative_interval(&a, &b).unwrap();
                after.add((low * 100.0, high * 100.0), change * 100.0);
            }
            println!(
                "{:+4.0} %  {repeats:7}  {:6.1} %  {:7.1}    {:6.1} %  {:7.1}",
                change * 100.0,
                before.percent(),
                before.mean_width(),
                after.percent(),
                after.mean_width()
            );
        }
    }
}

fn detectable_difference(simulations: u32) {
    println!("\nPower at the minimal detectable difference, 80 % promised: of a t test with known degrees of");
    println!("freedom, and of Welch's test at the mean of what is reported");
    println!("repeats  tests   t test: sum of quantiles, noncentral    Welch: sum of quantiles, noncentral");
    for repeats in REPEATS {
        for tests in [1, 8, 24] {
            let freedom = 2.0 * f64::from(repeats - 1);
            let critical = t_quantile(1.0 - 0.025 / f64::from(tests), freedom);
            let exact = Welch { standard_error: 1.0, degrees_of_freedom: freedom, ..no_difference() };
            let shifts = [critical + t_quantile(0.8, freedom), detectable(&exact, tests)];
            let t_test = shifts.map(|shift| t_power(simulations, shift, critical, repeats));
            let mut random = Rng::with_seed(4);
            let samples = simulations.div_ceil(10);
            let (mut before, mut after) = (0.0, 0.0);
            for _ in 0..samples {
                let [a, b] = [0.0; 2].map(|center| sample(&mut random, repeats, center, 1.0));
                let welch = Welch::of(&a, &b).unwrap();
                let tail = 0.025 / f64::from(tests);
                let quantiles = [1.0 - tail, 0.8].map(|part| t_quantile(part, welch.degrees_of_freedom));
                before += (quantiles[0] + quantiles[1]) * welch.standard_error / f64::from(samples);
                after += detectable(&welch, tests) / f64::from(samples);
            }
            let welch = [before, after].map(|difference| welch_power(simulations, difference, tests, repeats));
            println!(
                "{repeats:7}  {tests:5}   {:14.1} %  {:18.1} %    {:17.1} %  {:18.1} %",
                t_test[0], t_test[1], welch[0], welch[1]
            );
        }
    }
}

fn no_difference() -> Welch {
    Welch {
        difference: 0.0,
        low: 0.0,
        high: 0.0,
        p: 1.0,
        effect_size: None,
        standard_error: 0.0,
        degrees_of_freedom: 1.0,
    }
}

fn detectable(welch: &Welch, tests: u32) -> f64 {
    welch.minimal_detectable_difference(usize::try_from(tests).unwrap())
}

/// Percentage of t statistics beyond `critical`.
fn t_power(simulations: u32, shift: f64, critical: f64, repeats: u32) -> f64 {
    let mut random = Rng::with_seed(3);
    let count = 2 * (repeats - 1);
    let mut detected = 0;
    for _ in 0..simulations * 5 {
        let squares: f64 = (0..count).map(|_| normal(&mut random).powi(2)).sum();
        let t = (normal(&mut random) + shift) / (squares / f64::from(count)).sqrt();
        detected += u32::from(t.abs() > critical);
    }
    f64::from(detected) / f64::from(simulations * 5) * 100.0
}

/// Percentage of Welch's tests that are significant after the correction for the number of tests.
fn welch_power(simulations: u32, difference: f64, tests: u32, repeats: u32) -> f64 {
    let mut random = Rng::with_seed(5);
    let mut detected = 0;
    for _ in 0..simulations {
        let [a, b] = [0.0, difference].map(|center| sample(&mut random, repeats, center, 1.0));
        detected += u32::from(Welch::of(&a, &b).unwrap().p * f64::from(tests) < 0.05);
    }
    f64::from(detected) / f64::from(simulations) * 100.0
}

/// The mean use of a day.
type Use<'a> = &'a dyn Fn(i32) -> f64;

fn forecast(simulations: u32) {
    println!(
        "\nForecast of a month of 30 days with 20 % noise, 90 % interval: coverage, width relative to the month's"
    );
    println!("total, and mean error of the middle");
    println!("use                      day  week's mean, one-day errors   trend");
    let cases: [(&str, i32, Use<'_>); 6] = [
        ("even", 33, &|_| 1.0),
        ("even, without history", 0, &|_| 1.0),
        ("quiet weekends", 33, &|day| if day.rem_euclid(7) < 5 { 1.0 } else { 0.5 }),
        ("growing 1 % linearly", 33, &|day| 1.0 + 0.01 * f64::from(day)),
        ("growing 2 % linearly", 33, &|day| 1.0 + 0.02 * f64::from(day)),
        ("growing 1 % compound", 33, &|day| 1.01_f64.powi(day)),
    ];
    for (what, history, use_of) in cases {
        for day in [5, 10, 20] {
            let mut random = Rng::with_seed(6);
            let (mut before, mut after) = (Tally::default(), Tally::default());
            for _ in 0..simulations {
                let days: Vec<(i32, f64)> = (1 - history..=30)
                    .map(|day| (day, use_of(day) * (1.0 + 0.2 * normal(&mut random)).max(0.0)))
                    .collect();
                let month: f64 = days.iter().filter(|(day, _)| *day > 0).map(|(_, total)| total).sum();
                let (past, future) = days.split_at(usize::try_from(history + day - 1).unwrap());
                let spent = month - future.iter().map(|(_, total)| total).sum::<f64>();
                let relative = |(middle, half): (f64, f64)| {
                    ((spent + (middle - half).max(0.0)) / month, (spent + middle + half) / month)
                };
                before.add(relative(of_one_day_errors(past, future.len())), 1.0);
                let whole: Vec<(i32, f64)> = future.iter().map(|(day, _)| (*day, 1.0)).collect();
                let trend = Trend::fit(past).unwrap().sum(&whole);
                after.add(relative((trend.middle, trend.half_width.unwrap())), 1.0);
            }
            let text = |tally: &Tally| {
                format!(
                    "{:5.1} %  {:5.1} %  {:+5.1} %",
                    tally.percent(),
                    tally.mean_width() * 100.0,
                    tally.mean_error()
                )
            };
            println!("{what:24} {day:3}  {}     {}", text(&before), text(&after));
        }
    }
}

/// The former forecast: the mean of the last seven days, and two standard deviations of past
/// one-day errors times the root of the days to come.
fn of_one_day_errors(past: &[(i32, f64)], future: usize) -> (f64, f64) {
    let predicted = |until: usize| {
        let week: Vec<f64> = past[until.saturating_sub(7)..until].iter().map(|(_, total)| *total).collect();
        mean(&week).unwrap()
    };
    let errors: Vec<f64> = (1..past.len()).map(|at| predicted(at) - past[at].1).collect();
    let left = f64::from(u32::try_from(future).unwrap());
    (predicted(past.len()) * left, 2.0 * standard_deviation(&errors).unwrap() * left.sqrt())
}
