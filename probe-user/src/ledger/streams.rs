//! What jobs and their streams cost: parts of what their container, or row, was given.
//!
//! A job's part is its CPU time over its container's, since the container was last given joules. A process's clock and the
//! container's figure are read a moment apart, so jobs that together seem to have run more than their container share what it has: streams never
//! sum above it. A job with several outputs under no common name divides its part by their pixels.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{AccountId, Closed, Holder, close};
use crate::{energy::zone::Origin, jobs::Job, units::Microjoules};

/// How a stream's part of its container was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum By {
    /// It is a process: by its CPU time.
    Process,
    /// It is one output of a process of several: by the pixels that each delivers.
    Pixels,
    /// The same, and the command line does not tell the pixels: evenly.
    Outputs,
}

impl By {
    /// The label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Pixels => "pixels",
            Self::Outputs => "outputs",
        }
    }
}

/// Weights of who used a GPU: by who is given joules, `None` where nobody is known, and by job.
pub type UseClaims = BTreeMap<(Option<Holder>, Option<u32>), u64>;

/// Where a stream runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// In a container, by the probe's number for it.
    Container(u32),
    /// In a row of its own, by that row's name: the next job of the name has another row, and carries the same series on.
    Own,
    /// In none that has series.
    Nowhere,
}

/// A stream: one series, however many jobs follow each other under its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub place: Place,
    /// What it is encoded with, as far as known.
    pub codec: String,
    /// How its part was found.
    pub by: By,
}

/// A job and what it cost so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// Who.
    pub job: Arc<Job>,
    /// Its streams, with what each weighs and which output it is, the first where it is several.
    pub streams: Vec<(StreamId, u64, usize)>,
    /// What it ran since it began.
    pub ran_ns: u64,
    /// What it was given since then, by how that was obtained.
    pub joules: BTreeMap<Origin, Microjoules>,
    /// When it was seen to have ended, unix nanoseconds.
    pub ended: Option<i64>,
    /// What it, and what its holder, had run when each root was last given out.
    at_root: Vec<(u64, u64)>,
}

/// All jobs, and all streams since the start.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    jobs: BTreeMap<u32, Running>,
    totals: BTreeMap<(StreamId, Origin), Microjoules>,
    /// CPU time since the start, by who is given joules.
    held_ns: HashMap<Holder, u64>,
    limit: usize,
    dropped: u64,
}

impl Streams {
    /// At most `limit` streams have series.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// A job began.
    pub fn begin(&mut self, job: &Job, roots: usize) {
        let holder = job.charged();
        let held = self.held_ns.get(&holder).copied().unwrap_or(0);
        let mut streams = streams(job);
        // A series more for each stream that has none; over the ceiling a job keeps its own figures and has no series.
        let new = streams.iter().filter(|(id, ..)| !self.known(id)).count();
        if new > 0 && self.distinct() + new > self.limit {
            self.dropped += 1;
            streams.clear();
        }
        let running = Running {
            job: Arc::new(job.clone()),
            streams,
            ran_ns: 0,
            joules: BTreeMap::new(),
            ended: None,
            at_root: vec![(0, held); roots],
        };
        self.jobs.insert(job.number, running);
    }

    fn known(&self, id: &StreamId) -> bool {
        self.jobs.values().any(|running| running.streams.iter().any(|(known, ..)| known == id))
    }

    /// Streams that have series, or will.
    fn distinct(&self) -> usize {
        let all = self.jobs.values().flat_map(|running| running.streams.iter().map(|(id, ..)| id));
        all.collect::<std::collections::BTreeSet<_>>().len()
    }

    /// There are more roots now, which have given nothing yet.
    pub fn extend(&mut self, roots: usize) {
        let held = &self.held_ns;
        for running in self.jobs.values_mut().filter(|running| running.at_root.len() < roots) {
            let now = (running.ran_ns, held.get(&running.job.charged()).copied().unwrap_or(0));
            running.at_root.resize(roots, now);
        }
    }

    /// A job ended at this moment.
    pub fn end(&mut self, number: u32, unix_ns: i64) {
        if let Some(running) = self.jobs.get_mut(&number) {
            running.ended = Some(unix_ns);
        }
    }

    /// A job is shown no more; neither are streams that no other job carries on.
    pub fn forget(&mut self, number: u32) {
        let Some(gone) = self.jobs.remove(&number) else { return };
        for (id, ..) in gone.streams {
            if !self.known(&id) {
                self.totals.retain(|(known, _), _| *known != id);
            }
        }
    }

    /// What each job ran since it began. Gives what those ran now that have rows of their own: the row's holder before, the row, and how long.
    pub fn ran(&mut self, clocks: &[(u32, u64)]) -> Vec<(Holder, u32, u64)> {
        let mut own = Vec::new();
        for (number, ran_ns) in clocks {
            let Some(running) = self.jobs.get_mut(number) else { continue };
            let grown = ran_ns.saturating_sub(running.ran_ns);
            running.ran_ns = running.ran_ns.max(*ran_ns);
            if let (Some(container), true) = (running.job.own, grown > 0) {
                own.push((running.job.holder, container, grown));
            }
        }
        own
    }

    /// Adds CPU time of somebody who is given joules.
    pub fn hold(&mut self, holder: Holder, ns: u64) {
        let held = self.held_ns.entry(holder).or_default();
        *held = held.saturating_add(ns);
    }

    /// A container's series end.
    pub fn release(&mut self, number: u32) {
        self.held_ns.remove(&Holder::Container(number));
    }

    /// Divides what one root gave among the jobs of those it gave it to.
    pub fn divide(&mut self, root: usize, id: AccountId, closed: &Closed<Holder>) {
        if self.jobs.is_empty() {
            return;
        }
        let given: HashMap<Holder, Microjoules> = closed.shares.iter().copied().collect();
        let mut claims: BTreeMap<Holder, Vec<(u32, u64)>> = BTreeMap::new();
        let mut held: HashMap<Holder, u64> = HashMap::new();
        for (number, running) in &mut self.jobs {
            let holder = running.job.charged();
            let now = self.held_ns.get(&holder).copied().unwrap_or(0);
            let Some(at) = running.at_root.get_mut(root) else { continue };
            let (ran, held_ns) = (running.ran_ns.saturating_sub(at.0), now.saturating_sub(at.1));
            *at = (running.ran_ns, now);
            if ran > 0 {
                claims.entry(holder).or_default().push((*number, ran));
                held.entry(holder).and_modify(|most| *most = held_ns.max(*most)).or_insert(held_ns);
            }
        }
        for (holder, jobs) in claims {
            let (Some(all), Some(held)) = (given.get(&holder), held.get(&holder)) else { continue };
            let ran = jobs.iter().fold(0, |sum: u64, (_, ns)| sum.saturating_add(*ns));
            // What of the holder ran that is no job: a shell, another program.
            let mut weights: Vec<(u32, u64)> = jobs;
            weights.push((u32::MAX, held.saturating_sub(ran)));
            self.give(*all, &weights, id.origin);
        }
    }

    /// Divides what one GPU gave among the jobs of those it gave it to, by what each used of its engines.
    pub fn divide_by_use(&mut self, origin: Origin, closed: &Closed<Holder>, claims: &UseClaims) {
        if self.jobs.is_empty() {
            return;
        }
        for (holder, all) in &closed.shares {
            let of_holder = claims.range((Some(*holder), None)..=(Some(*holder), Some(u32::MAX)));
            // Who is no job keeps its part under a number that no job has.
            let weights: Vec<(u32, u64)> =
                of_holder.map(|((_, job), weight)| (job.unwrap_or(u32::MAX), *weight)).collect();
            if weights.iter().any(|(job, _)| *job != u32::MAX) {
                self.give(*all, &weights, origin);
            }
        }
    }

    /// Divides joules among jobs, and what each gets among its streams.
    fn give(&mut self, all: Microjoules, weights: &[(u32, u64)], origin: Origin) {
        for (number, joules) in close(all, Microjoules::ZERO, weights).shares {
            let Some(running) = self.jobs.get_mut(&number) else { continue };
            *running.joules.entry(origin).or_default() += joules;
            let weights: Vec<_> =
                running.streams.iter().enumerate().map(|(at, (_, weight, _))| (at, *weight)).collect();
            for (at, joules) in close(joules, Microjoules::ZERO, &weights).shares {
                *self.totals.entry((running.streams[at].0.clone(), origin)).or_default() += joules;
            }
        }
    }

    /// Every stream with series, and its joules since the start.
    pub fn totals(&self) -> impl Iterator<Item = (&StreamId, Origin, Microjoules)> {
        self.totals.iter().map(|((id, origin), joules)| (id, *origin, *joules))
    }

    /// Every job that is shown, by number.
    pub fn jobs(&self) -> impl Iterator<Item = &Running> {
        self.jobs.values()
    }

    /// Jobs without series, because there were too many streams.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// The streams of a job, with what each weighs.
fn streams(job: &Job) -> Vec<(StreamId, u64, usize)> {
    let place = match (job.own, job.holder) {
        (Some(_), _) => Place::Own,
        (None, Holder::Container(number)) => Place::Container(number),
        (None, _) => Place::Nowhere,
    };
    let outputs = &job.command.outputs;
    let codec = || outputs.iter().map(|output| &*output.codec).find(|codec| !codec.is_empty()).unwrap_or_default();
    let id = |name: &str, codec: &str, by| StreamId {
        name: name.to_owned(),
        place: place.clone(),
        codec: codec.to_owned(),
        by,
    };
    if let Some(name) = job.command.stream() {
        return vec![(id(name, codec(), By::Process), 1, 0)];
    }
    if outputs.is_empty() {
        return vec![(id("unnamed", "", By::Process), 1, 0)];
    }
    // An output without a rate of its own has that of another: the source's.
    let rate = outputs.iter().find_map(|output| output.millifps).unwrap_or(25_000);
    let pixels: Option<Vec<u64>> = outputs.iter().map(|output| output.pixels(Some(rate))).collect();
    let (by, weights) = match pixels {
        Some(pixels) => (By::Pixels, pixels),
        None => (By::Outputs, vec![1; outputs.len()]),
    };
    let mut all: Vec<(StreamId, u64, usize)> = Vec::new();
    for (at, (output, weight)) in outputs.iter().zip(weights).enumerate() {
        let id = id(&output.name, &output.codec, by);
        match all.iter_mut().find(|(known, ..)| *known == id) {
            Some((_, sum, _)) => *sum = sum.saturating_add(weight),
            None => all.push((id, weight, at)),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        energy::zone::{ZoneId, ZoneKind},
        jobs::command::Command,
        topology::PackageId,
    };

    fn root() -> AccountId {
        AccountId { zone: ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package }, origin: Origin::Perf }
    }

    fn job(number: u32, container: u32, line: &str) -> Job {
        let command = Command::parse(line.replace(' ', "\0").as_bytes());
        Job { number, holder: Holder::Container(container), own: None, unix_ns: 0, command }
    }

    fn closed(container: u32, uj: u64) -> Closed<Holder> {
        close(Microjoules(uj), Microjoules::ZERO, &[(Holder::Container(container), 1)])
    }

    fn told(streams: &Streams) -> Vec<(String, &'static str, u64)> {
        streams.totals().map(|(id, _, joules)| (id.name.clone(), id.by.as_str(), joules.0)).collect()
    }

    #[test]
    fn jobs_get_their_time_s_part_and_the_shell_beside_them_keeps_its_own() {
        let mut streams = Streams::new(10);
        streams.begin(&job(1, 7, "ffmpeg -i a a.mp4"), 1);
        streams.begin(&job(2, 7, "ffmpeg -i b b.mp4"), 1);
        streams.ran(&[(1, 300), (2, 600)]);
        streams.hold(Holder::Container(7), 1000);
        streams.divide(0, root(), &closed(7, 10_000));
        assert_eq!(told(&streams), [("a".into(), "process", 3000), ("b".into(), "process", 6000)]);
    }

    #[test]
    fn a_ladder_is_divided_by_its_pixels_or_evenly_where_they_are_not_told() {
        let mut streams = Streams::new(10);
        streams.begin(&job(1, 7, "ffmpeg -i a -s 1280x720 hi.mp4 -s 640x360 lo.mp4"), 1);
        streams.begin(&job(2, 8, "ffmpeg -i a x.mp4 y.mp4"), 1);
        streams.ran(&[(1, 100), (2, 100)]);
        streams.hold(Holder::Container(7), 100);
        streams.hold(Holder::Container(8), 100);
        streams.divide(0, root(), &closed(7, 10_000));
        streams.divide(0, root(), &closed(8, 10_000));
        assert_eq!(told(&streams)[..2], [("hi".into(), "pixels", 8000), ("lo".into(), "pixels", 2000)]);
    }

    #[test]
    fn a_series_goes_on_from_job_to_job_and_ends_with_the_last() {
        let mut streams = Streams::new(1);
        for number in 0..2 {
            streams.begin(&job(number, 7, "ffmpeg -i a cam.mp4"), 1);
            streams.ran(&[(number, 100)]);
            streams.hold(Holder::Container(7), 100);
            streams.divide(0, root(), &closed(7, 500));
        }
        assert_eq!(told(&streams), [("cam".into(), "process", 1000)]);
        streams.begin(&job(2, 7, "ffmpeg -i a other.mp4"), 1);
        assert_eq!(streams.dropped(), 1, "beyond the ceiling");
        streams.forget(0);
        assert_eq!(told(&streams).len(), 1);
        streams.forget(1);
        assert!(told(&streams).is_empty());
    }

    #[test]
    fn a_gpu_s_joules_go_to_the_jobs_that_used_it_whatever_they_ran() {
        let mut streams = Streams::new(10);
        streams.begin(&job(1, 7, "ffmpeg -i a a.mp4"), 1);
        streams.begin(&job(2, 7, "ffmpeg -i b b.mp4"), 1);
        streams.extend(2);
        let container = Some(Holder::Container(7));
        let claims = [((container, None), 1), ((container, Some(2)), 3), ((None, None), 9)].into();
        streams.divide_by_use(Origin::Nvml, &closed(7, 4000), &claims);
        assert_eq!(told(&streams), [("b".into(), "process", 3000)]);
    }

    proptest! {
        /// Whatever the clocks say, streams never sum above what their container was given.
        #[test]
        fn streams_never_sum_above_their_container(
            ticks in prop::collection::vec((0u64..5000, prop::collection::vec(0u64..4000, 3), 0u64..1_000_000), 1..20),
        ) {
            let mut streams = Streams::new(10);
            for number in 0..3 {
                streams.begin(&job(number, 7, &format!("ffmpeg -i a s{number}.mp4")), 1);
            }
            let (mut clocks, mut given) = ([0u64; 3], 0);
            for (held, ran, uj) in ticks {
                clocks.iter_mut().zip(&ran).for_each(|(sum, ran)| *sum += ran);
                streams.ran(&[(0, clocks[0]), (1, clocks[1]), (2, clocks[2])]);
                streams.hold(Holder::Container(7), held);
                streams.divide(0, root(), &closed(7, uj));
                given += uj;
            }
            let sum: u64 = streams.totals().map(|(_, _, joules)| joules.0).sum();
            let of_jobs: u64 = streams.jobs().flat_map(|running| running.joules.values()).map(|joules| joules.0).sum();
            prop_assert!(sum <= given && sum == of_jobs, "{} {} {}", sum, of_jobs, given);
        }
    }
}
