//! Energy of jobs and of their streams, as parts of the energy of their container or row.
//!
//! A job's part is its CPU time over the CPU time of its container, since the container's last
//! split. The clock of a process and the figure of its container are read at slightly different
//! times, so jobs that together appear to have run longer than their container share what it has:
//! streams never sum above it. A job with several outputs without a common name splits its part by
//! what the threads of each output ran where ffmpeg names them, else by the pixels of the outputs.
//! By pixels, an output whose pictures are copied, or that has none, costs next to nothing where
//! the job encodes another: it weighs a hundredth of the smallest that is encoded.

mod by_stage;
mod continued;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

pub use continued::SavedStream;
use serde::{Deserialize, Serialize};
use units::Microjoules;

use super::{
    split::{Split, split_proportionally},
    stages::{Stages, StreamPart},
    totals::AccountId,
};
use crate::{
    containers::ChargeTarget,
    energy::zone::Origin,
    jobs::{Job, command_line::Output},
};

/// How a stream's part of its container is determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShareBasis {
    /// The stream is a process: CPU time.
    Process,
    /// The stream is one of several outputs of a process: delivered pixels.
    Pixels,
    /// As `Pixels`, but the command line does not contain the pixels: equal parts.
    Outputs,
    /// The stream is one of several outputs of a process: CPU time of its own threads, and its part
    /// of the common ones.
    Stages,
}

impl ShareBasis {
    /// Value of the label `share`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Pixels => "pixels",
            Self::Outputs => "outputs",
            Self::Stages => "stages",
        }
    }
}

/// Weights of GPU use, by charge target (`None` where it is unknown) and job.
pub type EngineClaims = BTreeMap<(Option<ChargeTarget>, Option<u32>), u64>;

/// Number of no job: the part of a target that belongs to none of its jobs.
const NO_JOB: u32 = u32::MAX;

/// The container of a stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamContainer {
    /// A container, by the probe's number for it.
    Number(u32),
    /// A row of the stream's own, which has the stream's name. The next job of this name has
    /// another row and continues the same series.
    Own,
    /// None with series.
    None,
}

/// Identity of a stream. All jobs of this identity, one after another, have one series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamId {
    pub name: String,
    pub container: StreamContainer,
    /// The encoder; empty when it is unknown.
    pub codec: String,
    pub basis: ShareBasis,
}

/// A job, its streams and its energy.
#[derive(Clone, Debug, PartialEq)]
pub struct JobUsage {
    pub job: Arc<Job>,
    /// The streams, with their weights and the index of their (first) output.
    pub streams: Vec<(StreamId, u64, usize)>,
    /// CPU time since the start of the job.
    pub ran_ns: u64,
    /// Energy since the start of the job, by source.
    pub joules: BTreeMap<Origin, Microjoules>,
    /// End of the job in unix nanoseconds, as observed.
    pub ended: Option<i64>,
    /// CPU time of the job and of its target at the last split of each root.
    at_last_split: Vec<(u64, u64)>,
    /// Streams of the containers that the job ran in before. Their series keep what they have until
    /// the job is removed.
    former: Vec<StreamId>,
    /// True from the observation of a move to the next update of the clocks.
    moved: bool,
}

impl JobUsage {
    fn owns(&self, id: &StreamId) -> bool {
        self.streams.iter().any(|(known, ..)| known == id) || self.former.contains(id)
    }
}

/// All jobs, and all streams since the start.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    jobs: BTreeMap<u32, JobUsage>,
    totals: BTreeMap<(StreamId, Origin), Microjoules>,
    stages: Stages<StreamId>,
    /// CPU time since the start, by charge target.
    target_ns: HashMap<ChargeTarget, u64>,
    /// Streams of an earlier probe, whose series stay without a job for a while.
    continued: BTreeSet<StreamId>,
    limit: usize,
    dropped: u64,
}

impl Streams {
    /// At most `limit` streams have series.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Adds a job that started.
    pub fn begin(&mut self, job: &Job, roots: usize) {
        let target_ns = self.target_time(job.charged_to());
        let mut streams = streams(job);
        self.limit_series(&mut streams);
        let usage = JobUsage {
            job: Arc::new(job.clone()),
            streams,
            ran_ns: 0,
            joules: BTreeMap::new(),
            ended: None,
            at_last_split: vec![(0, target_ns); roots],
            former: Vec::new(),
            moved: false,
        };
        self.jobs.insert(job.number, usage);
        self.stages.begin(job.number, roots);
    }

    /// Removes the streams of a job above the limit: it keeps its own figures and has no series.
    fn limit_series(&mut self, streams: &mut Vec<(StreamId, u64, usize)>) {
        let new = streams.iter().filter(|(id, ..)| !self.has_series(id)).count();
        if new > 0 && self.series() + new > self.limit {
            self.dropped += 1;
            streams.clear();
        }
    }

    /// Charges a job to another target from this tick on, with the number of its own row if it has
    /// one there.
    ///
    /// When in the tick the process moved is unknown, so none of the tick's CPU time is moved to
    /// its row: up to one tick of its time stays with the cgroup that it left. Its streams are new,
    /// because a stream belongs to a container.
    pub fn relocate(&mut self, number: u32, target: ChargeTarget, own_container: Option<u32>) {
        let Some(usage) = self.jobs.get(&number) else { return };
        let job = Job { charge_target: target, own_container, ..(*usage.job).clone() };
        let target_ns = self.target_time(job.charged_to());
        let mut new = streams(&job);
        self.limit_series(&mut new);
        let Some(usage) = self.jobs.get_mut(&number) else { return };
        for (id, ..) in std::mem::replace(&mut usage.streams, new) {
            if !usage.owns(&id) {
                usage.former.push(id);
            }
        }
        // What it ran before the move was a part of the target that it left.
        usage.at_last_split.fill((usage.ran_ns, target_ns));
        usage.job = Arc::new(job);
        usage.moved = true;
        self.stages.restart(number);
    }

    fn target_time(&self, target: ChargeTarget) -> u64 {
        self.target_ns.get(&target).copied().unwrap_or(0)
    }

    fn has_series(&self, id: &StreamId) -> bool {
        self.continued.contains(id) || self.jobs.values().any(|usage| usage.owns(id))
    }

    /// Number of streams that have series, or will have.
    fn series(&self) -> usize {
        self.owned().len()
    }

    /// The streams of the jobs.
    fn owned(&self) -> BTreeSet<&StreamId> {
        let all = self.jobs.values().flat_map(|usage| usage.streams.iter().map(|(id, ..)| id).chain(&usage.former));
        all.collect()
    }

    /// Extends every job to `roots` accounting roots. The new roots have had no split yet.
    pub fn add_roots(&mut self, roots: usize) {
        let target_ns = &self.target_ns;
        for usage in self.jobs.values_mut().filter(|usage| usage.at_last_split.len() < roots) {
            let now = (usage.ran_ns, target_ns.get(&usage.job.charged_to()).copied().unwrap_or(0));
            usage.at_last_split.resize(roots, now);
        }
        self.stages.add_roots(roots);
    }

    /// Puts `new` accounting roots, which have had no split yet, in the place of the first `old`.
    pub fn replace_roots(&mut self, old: usize, new: usize) {
        let target_ns = &self.target_ns;
        for usage in self.jobs.values_mut() {
            let now = (usage.ran_ns, target_ns.get(&usage.job.charged_to()).copied().unwrap_or(0));
            let old = old.min(usage.at_last_split.len());
            usage.at_last_split.splice(..old, std::iter::repeat_n(now, new));
        }
        self.stages.replace_roots(old, new);
    }

    /// Marks a job as ended.
    pub fn end(&mut self, number: u32, unix_ns: i64) {
        if let Some(usage) = self.jobs.get_mut(&number) {
            usage.ended = Some(unix_ns);
        }
    }

    /// Removes a job, and its streams unless another job continues them.
    pub fn remove(&mut self, number: u32) {
        let Some(removed) = self.jobs.remove(&number) else { return };
        self.stages.remove_job(number);
        for id in removed.streams.into_iter().map(|(id, ..)| id).chain(removed.former) {
            if !self.has_series(&id) {
                self.totals.retain(|(known, _), _| *known != id);
                self.stages.remove_stream(&id);
            }
        }
    }

    /// Updates the CPU time of each job since its start. For every job with a row of its own that
    /// ran, returns the target that includes its CPU time, its row, and the nanoseconds that it
    /// ran.
    pub fn update_clocks(&mut self, clocks: &[(u32, u64)]) -> Vec<(ChargeTarget, u32, u64)> {
        let mut own = Vec::new();
        for (number, ran_ns) in clocks {
            let Some(usage) = self.jobs.get_mut(number) else { continue };
            let grown = ran_ns.saturating_sub(usage.ran_ns);
            usage.ran_ns = usage.ran_ns.max(*ran_ns);
            self.stages.advance(*number, grown, &usage.streams, &usage.owners());
            let moved = std::mem::take(&mut usage.moved);
            if let (Some(container), true) = (usage.job.own_container, grown > 0 && !moved) {
                own.push((usage.job.charge_target, container, grown));
            }
        }
        own
    }

    /// As [`Self::update_clocks`], at the first reading: what ran before it is in no split.
    pub fn start_clocks(&mut self, clocks: &[(u32, u64)]) {
        self.update_clocks(clocks);
        for (number, usage) in &mut self.jobs {
            let ran_ns = usage.ran_ns;
            usage.at_last_split.iter_mut().for_each(|last| last.0 = ran_ns);
            self.stages.restart(*number);
        }
    }

    /// Adds CPU time of a charge target.
    pub fn add_target_time(&mut self, target: ChargeTarget, ns: u64) {
        let sum = self.target_ns.entry(target).or_default();
        *sum = sum.saturating_add(ns);
    }

    /// Removes a container whose series end.
    pub fn remove_container(&mut self, number: u32) {
        self.target_ns.remove(&ChargeTarget::Container(number));
    }

    /// Splits the shares of one root's split among the jobs of each target, by CPU time.
    pub fn split_by_cpu_time(&mut self, root: usize, id: AccountId, split: &Split<ChargeTarget>) {
        if self.jobs.is_empty() {
            return;
        }
        let shares: HashMap<ChargeTarget, Microjoules> = split.shares.iter().copied().collect();
        let mut claims: BTreeMap<ChargeTarget, Vec<(u32, u64)>> = BTreeMap::new();
        let mut target_ns: HashMap<ChargeTarget, u64> = HashMap::new();
        let mut parts: HashMap<u32, Vec<(StreamPart, u64)>> = HashMap::new();
        for (number, usage) in &mut self.jobs {
            let target = usage.job.charged_to();
            let now = self.target_ns.get(&target).copied().unwrap_or(0);
            let Some(last) = usage.at_last_split.get_mut(root) else { continue };
            let (job_ns, all_ns) = (usage.ran_ns.saturating_sub(last.0), now.saturating_sub(last.1));
            *last = (usage.ran_ns, now);
            // Taken even if no energy follows: it belongs to this split.
            let of_job = self.stages.take(*number, root);
            if job_ns > 0 {
                parts.insert(*number, of_job);
                claims.entry(target).or_default().push((*number, job_ns));
                target_ns.entry(target).and_modify(|most| *most = all_ns.max(*most)).or_insert(all_ns);
            }
        }
        for (target, jobs) in claims {
            let (Some(energy), Some(all_ns)) = (shares.get(&target), target_ns.get(&target)) else { continue };
            let jobs_ns = jobs.iter().fold(0, |sum: u64, (_, ns)| sum.saturating_add(*ns));
            // The other processes of the target: a shell, another program.
            let mut weights: Vec<(u32, u64)> = jobs;
            weights.push((NO_JOB, all_ns.saturating_sub(jobs_ns)));
            self.attribute(*energy, &weights, id.origin, &mut parts);
        }
    }

    /// Splits the shares of a GPU's split among the jobs of each target, by engine use.
    pub fn split_by_engine_use(&mut self, origin: Origin, split: &Split<ChargeTarget>, claims: &EngineClaims) {
        if self.jobs.is_empty() {
            return;
        }
        for (target, energy) in &split.shares {
            let of_target = claims.range((Some(*target), None)..=(Some(*target), Some(u32::MAX)));
            let weights: Vec<(u32, u64)> =
                of_target.map(|((_, job), weight)| (job.unwrap_or(NO_JOB), *weight)).collect();
            if weights.iter().any(|(job, _)| *job != NO_JOB) {
                self.attribute(*energy, &weights, origin, &mut HashMap::new());
            }
        }
    }

    /// Splits energy among jobs, and each job's part among its streams. `parts` is what the jobs
    /// ran by part of their streams, where it is known.
    fn attribute(
        &mut self,
        energy: Microjoules,
        weights: &[(u32, u64)],
        origin: Origin,
        parts: &mut HashMap<u32, Vec<(StreamPart, u64)>>,
    ) {
        for (number, energy) in split_proportionally(energy, Microjoules::ZERO, weights).shares {
            self.attribute_to_streams(number, energy, origin, parts.remove(&number));
        }
    }

    /// Energy of every stream with series since the start.
    pub fn totals(&self) -> impl Iterator<Item = (&StreamId, Origin, Microjoules)> {
        self.totals.iter().map(|((id, origin), energy)| (id, *origin, *energy))
    }

    /// All jobs, by number.
    pub fn jobs(&self) -> impl Iterator<Item = &JobUsage> {
        self.jobs.values()
    }

    /// Number of jobs without series because of the limit.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// The streams of a job, with their weights and output indices.
fn streams(job: &Job) -> Vec<(StreamId, u64, usize)> {
    let container = match (job.own_container, job.charge_target) {
        (Some(_), _) => StreamContainer::Own,
        (None, ChargeTarget::Container(number)) => StreamContainer::Number(number),
        (None, _) => StreamContainer::None,
    };
    let outputs = &job.command.outputs;
    let codec = || outputs.iter().map(|output| &*output.codec).find(|codec| !codec.is_empty()).unwrap_or_default();
    let id = |name: &str, codec: &str, basis| StreamId {
        name: name.to_owned(),
        container: container.clone(),
        codec: codec.to_owned(),
        basis,
    };
    if let Some(name) = job.command.stream() {
        return vec![(id(name, codec(), ShareBasis::Process), 1, 0)];
    }
    if outputs.is_empty() {
        return vec![(id("unnamed", "", ShareBasis::Process), 1, 0)];
    }
    // An output without a frame rate has the rate of another output, which is the rate of the
    // source.
    let rate = outputs.iter().find_map(|output| output.millifps).unwrap_or(25_000);
    let (basis, weights) = output_weights(outputs, rate);
    let mut all: Vec<(StreamId, u64, usize)> = Vec::new();
    for (at, (output, weight)) in outputs.iter().zip(weights).enumerate() {
        let id = id(&output.name, &output.codec, basis);
        match all.iter_mut().find(|(known, ..)| *known == id) {
            Some((_, sum, _)) => *sum = sum.saturating_add(weight),
            None => all.push((id, weight, at)),
        }
    }
    all
}

/// Weight of an encoded output in units of one that is not encoded.
const ENCODED_WEIGHT: u64 = 100;

/// The weight of each output of a job. `rate` is the frame rate of outputs that have none, in
/// frames per 1000 seconds.
fn output_weights(outputs: &[Output], rate: u32) -> (ShareBasis, Vec<u64>) {
    // Where no output is encoded, the outputs differ in nothing but their pixels.
    let mixed = outputs.iter().any(Output::encodes_no_picture) && !outputs.iter().all(Output::encodes_no_picture);
    let counts = |output: &&Output| !(mixed && output.encodes_no_picture());
    let pixels: Option<Vec<u64>> = outputs.iter().filter(counts).map(|output| output.pixels(Some(rate))).collect();
    let (basis, counted) = match pixels {
        Some(pixels) => (ShareBasis::Pixels, pixels),
        None => (ShareBasis::Outputs, vec![1; outputs.iter().filter(counts).count()]),
    };
    if !mixed {
        return (basis, counted);
    }
    let least = counted.iter().copied().min().unwrap_or(1);
    let mut encoded = counted.into_iter().map(|weight| weight.saturating_mul(ENCODED_WEIGHT));
    let weight = |output: &Output| if output.encodes_no_picture() { least } else { encoded.next().unwrap_or(least) };
    let weights = outputs.iter().map(weight).collect();
    (basis, weights)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        energy::zone::{ZoneId, ZoneKind},
        host::topology::PackageId,
        jobs::command_line::CommandLine,
    };

    fn root() -> AccountId {
        AccountId { zone: ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package }, origin: Origin::Perf }
    }

    fn job(number: u32, container: u32, line: &str) -> Job {
        let command = CommandLine::parse(line.replace(' ', "\0").as_bytes());
        Job { number, charge_target: ChargeTarget::Container(container), own_container: None, unix_ns: 0, command }
    }

    fn split(container: u32, uj: u64) -> Split<ChargeTarget> {
        split_proportionally(Microjoules(uj), Microjoules::ZERO, &[(ChargeTarget::Container(container), 1)])
    }

    fn totals(streams: &Streams) -> Vec<(String, &'static str, u64)> {
        streams.totals().map(|(id, _, joules)| (id.name.clone(), id.basis.as_str(), joules.0)).collect()
    }

    #[test]
    fn jobs_get_their_share_and_a_shell_keeps_its_own() {
        let mut streams = Streams::new(10);
        streams.begin(&job(1, 7, "ffmpeg -i a a.mp4"), 1);
        streams.begin(&job(2, 7, "ffmpeg -i b b.mp4"), 1);
        streams.update_clocks(&[(1, 300), (2, 600)]);
        streams.add_target_time(ChargeTarget::Container(7), 1000);
        streams.split_by_cpu_time(0, root(), &split(7, 10_000));
        assert_eq!(totals(&streams), [("a".into(), "process", 3000), ("b".into(), "process", 6000)]);
    }

    #[test]
    fn a_ladder_is_split_by_pixels_or_evenly_without_them() {
        let mut streams = Streams::new(10);
        streams.begin(&job(1, 7, "ffmpeg -i a -s 1280x720 hi.mp4 -s 640x360 lo.mp4"), 1);
        streams.begin(&job(2, 8, "ffmpeg -i a x.mp4 y.mp4"), 1);
        streams.update_clocks(&[(1, 100), (2, 100)]);
        streams.add_target_time(ChargeTarget::Container(7), 100);
        streams.add_target_time(ChargeTarget::Container(8), 100);
        streams.split_by_cpu_time(0, root(), &split(7, 10_000));
        streams.split_by_cpu_time(0, root(), &split(8, 10_000));
        assert_eq!(totals(&streams)[..2], [("hi".into(), "pixels", 8000), ("lo".into(), "pixels", 2000)]);
    }

    #[test]
    fn copies_and_sound_weigh_a_hundredth_of_the_smallest_encoded_output() {
        let weights = |line: &str| {
            let streams = streams(&job(1, 7, line));
            let weights: Vec<u64> = streams.iter().map(|(_, weight, _)| *weight).collect();
            (streams[0].0.basis, weights)
        };
        let camera = "ffmpeg -i a -c:v copy rec.mp4 -r 5 -f rawvideo pipe:";
        assert_eq!(weights(camera), (ShareBasis::Outputs, vec![1, 100]));
        let sound = "ffmpeg -i a -c:v libx265 a.mp4 -vn b.m4a -map 0:a c.mka";
        assert_eq!(weights(sound), (ShareBasis::Outputs, vec![100, 1, 1]));
        let ladder = "ffmpeg -i a -r 1 -s 20x10 a.mp4 -r 1 -s 10x10 b.mp4 -c copy c.mp4";
        assert_eq!(weights(ladder), (ShareBasis::Pixels, vec![20_000_000, 10_000_000, 100_000]));
        assert_eq!(weights("ffmpeg -i a -c copy a.mp4 -c copy b.mkv"), (ShareBasis::Outputs, vec![1, 1]), "all copies");
        assert_eq!(weights("ffmpeg -i a -s 2x1 -r 1 x.mp4 -s 1x1 -r 1 y.mp4"), (ShareBasis::Pixels, vec![2000, 1000]));
    }

    #[test]
    fn a_series_continues_across_jobs_and_ends_with_the_last() {
        let mut streams = Streams::new(1);
        for number in 0..2 {
            streams.begin(&job(number, 7, "ffmpeg -i a cam.mp4"), 1);
            streams.update_clocks(&[(number, 100)]);
            streams.add_target_time(ChargeTarget::Container(7), 100);
            streams.split_by_cpu_time(0, root(), &split(7, 500));
        }
        assert_eq!(totals(&streams), [("cam".into(), "process", 1000)]);
        streams.begin(&job(2, 7, "ffmpeg -i a other.mp4"), 1);
        assert_eq!(streams.dropped(), 1, "above the limit");
        streams.remove(0);
        assert_eq!(totals(&streams).len(), 1);
        streams.remove(1);
        assert!(totals(&streams).is_empty());
    }

    #[test]
    fn a_job_that_moved_is_charged_where_it_runs_and_keeps_what_it_had() {
        let mut streams = Streams::new(2);
        let (system, shown) = (ChargeTarget::System, ChargeTarget::Container(7));
        let mut cam = job(1, 0, "ffmpeg -i a cam.mp4");
        (cam.charge_target, cam.own_container) = (system, Some(3));
        streams.begin(&cam, 1);
        assert_eq!(streams.update_clocks(&[(1, 100)]), [(system, 3, 100)]);
        streams.add_target_time(ChargeTarget::Container(3), 100);
        streams.split_by_cpu_time(0, root(), &split(3, 500));
        // Into a container: nothing is moved to its row any more.
        streams.relocate(1, shown, None);
        assert!(streams.update_clocks(&[(1, 300)]).is_empty());
        streams.add_target_time(shown, 200);
        streams.split_by_cpu_time(0, root(), &split(7, 900));
        let energy = |streams: &Streams| -> Vec<(StreamContainer, u64)> {
            streams.totals().map(|(id, _, energy)| (id.container.clone(), energy.0)).collect()
        };
        let both = energy(&streams);
        assert_eq!(both, [(StreamContainer::Number(7), 900), (StreamContainer::Own, 500)]);
        assert_eq!(streams.jobs().map(|usage| usage.joules[&Origin::Perf].0).sum::<u64>(), 1400);
        // And out of it: the tick of the move stays with the system.
        streams.relocate(1, system, Some(4));
        assert!(streams.update_clocks(&[(1, 400)]).is_empty());
        assert_eq!(streams.update_clocks(&[(1, 450)]), [(system, 4, 50)]);
        assert_eq!((streams.dropped(), streams.series()), (0, 2), "both series existed");
        // A third container is above the limit; the job keeps its own figures.
        streams.relocate(1, ChargeTarget::Container(8), None);
        assert_eq!((streams.dropped(), energy(&streams)), (1, both));
        streams.remove(1);
        assert_eq!(streams.totals().count(), 0);
    }

    #[test]
    fn gpu_energy_follows_engine_use_and_not_cpu_time() {
        let mut streams = Streams::new(10);
        streams.begin(&job(1, 7, "ffmpeg -i a a.mp4"), 1);
        streams.begin(&job(2, 7, "ffmpeg -i b b.mp4"), 1);
        streams.add_roots(2);
        let container = Some(ChargeTarget::Container(7));
        let claims = [((container, None), 1), ((container, Some(2)), 3), ((None, None), 9)].into();
        streams.split_by_engine_use(Origin::Nvml, &split(7, 4000), &claims);
        assert_eq!(totals(&streams), [("b".into(), "process", 3000)]);
    }

    proptest! {
        /// For any clock values, streams never sum above the energy of their container.
        #[test]
        fn streams_never_sum_above_their_container(
            ticks in prop::collection::vec((0u64..5000, prop::collection::vec(0u64..4000, 3), 0u64..1_000_000), 1..20),
        ) {
            let mut streams = Streams::new(10);
            for number in 0..3 {
                streams.begin(&job(number, 7, &format!("ffmpeg -i a s{number}.mp4")), 1);
            }
            let (mut clocks, mut energy) = ([0u64; 3], 0);
            for (target_ns, ran, uj) in ticks {
                clocks.iter_mut().zip(&ran).for_each(|(sum, ran)| *sum += ran);
                streams.update_clocks(&[(0, clocks[0]), (1, clocks[1]), (2, clocks[2])]);
                streams.add_target_time(ChargeTarget::Container(7), target_ns);
                streams.split_by_cpu_time(0, root(), &split(7, uj));
                energy += uj;
            }
            let sum: u64 = streams.totals().map(|(_, _, joules)| joules.0).sum();
            let of_jobs: u64 = streams.jobs().flat_map(|usage| usage.joules.values()).map(|joules| joules.0).sum();
            prop_assert!(sum <= energy && sum == of_jobs, "{} {} {}", sum, of_jobs, energy);
        }
    }
}
