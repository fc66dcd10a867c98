//! Searches with simulated encoders: the winner, the number of encodes, and what ends a search.

use super::*;

/// A simulated host: what each candidate needs, and the noise of its measurements.
struct Host {
    search: EnergySearch,
    /// Value of each candidate at 1000 kbit/s.
    values: Vec<f64>,
    /// Bit rate in kbit/s at which each candidate has VMAF 93.
    needs: Vec<f64>,
    /// Relative spread of a value.
    noise: f64,
    /// Spread of a score, the same in all repeats of an encode.
    wobble: f64,
    random: fastrand::Rng,
    scores: BTreeMap<(usize, usize), f64>,
}

const VALUES: [f64; 10] = [1.0, 1.15, 1.5, 2.2, 3.5, 2.0, 2.6, 3.2, 5.0, 9.0];
const NEEDS: [f64; 10] = [2600.0, 2300.0, 1900.0, 1600.0, 1450.0, 1500.0, 1350.0, 1250.0, 1150.0, 1050.0];

impl Host {
    /// Two encoders with five presets each.
    fn new(seed: u64, values: &[f64]) -> Self {
        let candidate = |at: usize| Candidate {
            encoder: if at < 5 { "libx264" } else { "libx265" }.to_owned(),
            preset: ["ultrafast", "superfast", "veryfast", "fast", "medium"][at % 5].to_owned(),
            ladder: Ladder::kbps(500, 8000),
        };
        let search = EnergySearch {
            objective: Objective::Energy,
            target_vmaf: Some(93.0),
            target_psnr: None,
            max_kbps: None,
            realtime: false,
            candidates: (0..values.len()).map(candidate).collect(),
            looks: 8,
            seed,
        };
        Self {
            search,
            values: values.to_vec(),
            needs: NEEDS[..values.len()].to_vec(),
            noise: 0.03,
            wobble: 0.0,
            random: fastrand::Rng::with_seed(seed),
            scores: BTreeMap::new(),
        }
    }

    /// A normal variable by Box and Muller's method.
    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.random.f64()).ln()).sqrt() * (2.0 * std::f64::consts::PI * self.random.f64()).cos()
    }

    fn kbps(&self, rung: usize) -> f64 {
        let Ladder::Kbps(rates) = &self.search.candidates[0].ladder else { panic!("no bit rates") };
        f64::from(rates[rung])
    }

    fn true_value(&self, candidate: usize, rung: usize) -> f64 {
        self.values[candidate] * (1.0 + 0.12 * (self.kbps(rung) / 1000.0).log2())
    }

    fn true_score(&self, candidate: usize, rung: usize) -> f64 {
        100.0 - 7.0 * (self.needs[candidate] / self.kbps(rung)).powf(0.9)
    }

    fn measure(&mut self, candidate: usize, rung: usize) -> Measurement {
        let (noise, shift) = (self.noise * self.normal(), self.wobble * self.normal());
        let shift = *self.scores.entry((candidate, rung)).or_insert(shift);
        Measurement {
            value: self.true_value(candidate, rung) * noise.exp(),
            vmaf: Some(self.true_score(candidate, rung) + shift),
            psnr: None,
            kbps: self.kbps(rung),
            in_time: true,
        }
    }

    /// Searches to the end.
    fn run(&mut self) -> Planner {
        let mut planner = Planner::new(self.search.clone());
        while let Some(request) = planner.next_request() {
            let measured = self.measure(request.candidate, request.rung);
            planner.record(request, Ok(measured));
            assert!(planner.encodes() < 1000, "the search does not end");
        }
        planner
    }

    /// The winner by three repeats of every rate of every candidate, and their number.
    fn grid(&mut self) -> (Option<usize>, usize) {
        let (mut best, mut encodes) = (None::<(usize, f64)>, 0);
        for candidate in 0..self.values.len() {
            let mut found = false;
            for rung in 0..self.search.candidates[candidate].ladder.len() {
                let all: Vec<Measurement> = (0..GRID_REPEATS).map(|_| self.measure(candidate, rung)).collect();
                encodes += all.len();
                let value = mean(&all.iter().map(|one| one.value).collect::<Vec<_>>()).unwrap();
                if !found && self.search.margin(&all[0]) >= 0.0 {
                    found = true;
                    if best.is_none_or(|(_, least)| value < least) {
                        best = Some((candidate, value));
                    }
                }
            }
        }
        (best.map(|(candidate, _)| candidate), encodes)
    }
}

#[test]
fn finds_the_winner_of_the_full_grid_with_a_fifth_of_it() {
    let mut sum = 0;
    for seed in 0..30 {
        let (mut host, mut other) = (Host::new(seed, &VALUES), Host::new(seed + 1000, &VALUES));
        let planner = host.run();
        let (winner, all) = other.grid();
        assert_eq!(planner.verdict(), Verdict::Winner(winner.unwrap()), "seed {seed}");
        assert!(planner.encodes() * 5 <= all, "seed {seed}: {} of {all}", planner.encodes());
        assert_eq!(host.search.estimate().grid, all);
        let estimate = host.search.estimate();
        assert!(planner.encodes() <= estimate.most, "seed {seed}: {} and {estimate:?}", planner.encodes());
        sum += planner.encodes();
    }
    // Also of a grid of eight rates.
    assert!(sum / 30 <= 10 * 8 * GRID_REPEATS / 5, "{sum} in 30 searches");
}

#[test]
fn finds_the_winner_whatever_the_order_of_candidates() {
    for seed in 0..10 {
        let mut host = Host::new(seed, &VALUES);
        host.values.reverse();
        host.needs.reverse();
        let planner = host.run();
        assert_eq!(planner.verdict(), Verdict::Winner(9), "seed {seed}");
    }
}

#[test]
fn names_a_tie_that_the_looks_do_not_resolve() {
    for seed in 0..5 {
        let mut values = VALUES;
        values[1] = values[0];
        let mut host = Host::new(seed, &values);
        host.needs[1] = host.needs[0];
        let planner = host.run();
        let Verdict::Tie(mut tied) = planner.verdict() else { panic!("seed {seed}: {:?}", planner.verdict()) };
        tied.sort_unstable();
        assert_eq!(tied, [0, 1], "seed {seed}");
        assert_eq!(planner.repeats(0), host.search.max_repeats());
    }
}

#[test]
fn ends_when_no_candidate_reaches_the_target() {
    let mut host = Host::new(1, &VALUES);
    host.search.target_vmaf = Some(99.9);
    let planner = host.run();
    assert_eq!(planner.verdict(), Verdict::Nothing);
    // One bisection upwards, then the highest rate of each.
    assert!(planner.encodes() <= 5 + 9, "{}", planner.encodes());
    let why = &planner.exclusion(9).unwrap().text;
    assert!(why.contains("reaches only VMAF") && why.contains("at 8000k"), "{why}");
}

#[test]
fn non_monotone_scores_end_at_a_rate_that_reaches_the_target() {
    for seed in 0..20 {
        let mut host = Host::new(seed, &VALUES);
        host.wobble = 0.6;
        let planner = host.run();
        assert!(planner.encodes() <= 60, "seed {seed}: {}", planner.encodes());
        let Verdict::Winner(winner) = planner.verdict() else { continue };
        let rung = planner.solution(winner).unwrap();
        let score = |rung: usize| host.true_score(winner, rung) + host.scores[&(winner, rung)];
        assert!(score(rung) >= 93.0, "seed {seed}: {}", score(rung));
        assert!(rung == 0 || score(rung - 1) < 93.0, "seed {seed}: the rate below reaches it too");
    }
}

#[test]
fn the_best_candidate_is_rarely_given_up() {
    // All the same: each that is given up is an error of at most 5 % of the searches.
    let mut given_up = 0;
    for seed in 0..60 {
        let mut host = Host::new(seed, &[1.0; 4]);
        host.needs = vec![1500.0; 4];
        let planner = host.run();
        given_up += usize::from((0..4).any(|at| planner.exclusion(at).is_some()));
    }
    assert!(given_up <= 6, "{given_up} of 60");
}

#[test]
fn a_bit_rate_above_the_limit_is_a_reason() {
    let mut host = Host::new(3, &VALUES);
    host.search.max_kbps = Some(2000);
    let planner = host.run();
    // The fastest presets need more.
    assert_eq!(planner.verdict(), Verdict::Winner(2));
    for at in [0, 1] {
        let exclusion = planner.exclusion(at).unwrap();
        assert_eq!(exclusion.reason, Reason::Constraint);
        assert!(exclusion.text.contains("at most 2000 are allowed"), "{}", exclusion.text);
    }
}

#[test]
fn an_encoder_that_is_late_twice_is_out() {
    let mut host = Host::new(4, &VALUES[..3]);
    host.search.realtime = true;
    let mut planner = Planner::new(host.search.clone());
    let mut late = 0;
    while let Some(request) = planner.next_request() {
        let mut measured = host.measure(request.candidate, request.rung);
        // The first is always late, the second once.
        measured.in_time = request.candidate == 2 || request.candidate == 1 && late > 0;
        late += usize::from(request.candidate == 1 && !measured.in_time);
        planner.record(request, Ok(measured));
    }
    let why = &planner.exclusion(0).unwrap().text;
    assert!(why.contains("does not keep up with real time"), "{why}");
    assert_eq!(planner.verdict(), Verdict::Winner(1), "one late encode is no reason");
}

#[test]
fn a_candidate_that_fails_twice_is_out() {
    let mut host = Host::new(5, &VALUES[..3]);
    let mut planner = Planner::new(host.search.clone());
    planner.leave_out(2, "ffmpeg has no such encoder");
    while let Some(request) = planner.next_request() {
        let measured = host.measure(request.candidate, request.rung);
        planner.record(request, if request.candidate == 0 { Err("exit code 1".to_owned()) } else { Ok(measured) });
    }
    assert_eq!(planner.verdict(), Verdict::Winner(1));
    assert!(planner.exclusion(0).unwrap().text.ends_with("exit code 1"));
    assert!(planner.points(2).is_empty());
    // A single candidate has an interval.
    assert_eq!(planner.repeats(1), MIN_REPEATS);
}

/// The best candidate was given up for two encodes that failed in a search of dozens.
#[test]
fn failures_that_are_not_in_succession_exclude_none() {
    let mut host = Host::new(5, &VALUES[..2]);
    let mut planner = Planner::new(host.search.clone());
    let mut at = 0;
    while let Some(request) = planner.next_request() {
        at += 1;
        let measured = host.measure(request.candidate, request.rung);
        planner.record(request, if at % 2 == 1 { Err("no energy".to_owned()) } else { Ok(measured) });
    }
    assert!((0..2).all(|one| planner.exclusion(one).is_none_or(|out| out.reason != Reason::Failed)));
}

#[test]
fn the_same_measurements_give_the_same_search() {
    let (a, b) = (Host::new(6, &VALUES).run(), Host::new(6, &VALUES).run());
    assert_eq!((a.verdict(), a.encodes()), (b.verdict(), b.encodes()));
    for at in 0..VALUES.len() {
        assert_eq!(a.exclusion(at), b.exclusion(at));
    }
}

#[test]
fn ladders_are_geometric_and_end_at_their_bounds() {
    let Ladder::Kbps(rates) = Ladder::kbps(500, 8000) else { panic!("no bit rates") };
    assert_eq!((rates.len(), rates[0], rates[4], rates[16]), (17, 500, 1000, 8000));
    assert_eq!(Ladder::kbps(300, 300), Ladder::Kbps(vec![300]));
    assert_eq!(Ladder::kbps(1, 2).len(), 2, "equal rates are one");
    assert_eq!(Ladder::Crf(vec![30, 25]).text(1), "crf 25");
    assert_eq!([between(3, 5, -1.0, 1.0), between(0, 16, -3.0, 1.0), between(0, 16, -1.0, 1.0)], [4, 12, 8]);
}
