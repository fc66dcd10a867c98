//! Streams of one job that are divided by what its threads do.

use std::borrow::Cow;

use units::Microjoules;

use super::{JobUsage, ShareBasis, StreamId, Streams, streams};
use crate::{
    energy::zone::Origin,
    jobs::stage::{StagePart, StageTimes},
    ledger::{split::split_proportionally, stages::StreamPart},
};

impl Streams {
    /// Notes the CPU time by part of jobs, where it changed. Call it before
    /// [`Self::update_clocks`].
    pub fn note_stages(&mut self, stages: &[(u32, StageTimes)]) {
        let mut has_room = true;
        for (number, parts) in stages {
            // A refused job is tried again in the next tick. Each trial counts the series of all.
            if self.stages.note(*number, parts) && has_room {
                has_room = self.divide_by_stage(*number);
            }
        }
    }

    /// Divides a job with several streams by stages from now on. The streams are new, because what
    /// they had before was divided by weights. Returns false without room for their series: then
    /// nothing changes.
    fn divide_by_stage(&mut self, number: u32) -> bool {
        let Some(usage) = self.jobs.get_mut(&number) else { return true };
        if usage.streams.len() < 2 || usage.streams.iter().any(|(id, ..)| id.basis == ShareBasis::Stages) {
            return true;
        }
        let (former, old) = (usage.former.clone(), usage.streams.clone());
        usage.streams.iter_mut().for_each(|(id, ..)| id.basis = ShareBasis::Stages);
        let began = usage.ran_ns == 0 && usage.joules.is_empty();
        if !began {
            let ids = old.iter().map(|(id, ..)| id.clone()).filter(|id| !former.contains(id));
            usage.former.extend(ids);
        }
        if self.series() > self.limit
            && let Some(usage) = self.jobs.get_mut(&number)
        {
            (usage.former, usage.streams) = (former, old);
            return false;
        }
        true
    }

    /// Attributes energy of one job to its streams: by `parts` of them, or by their weights if
    /// there are none.
    pub(super) fn attribute_to_streams(
        &mut self,
        number: u32,
        energy: Microjoules,
        origin: Origin,
        parts: Option<Vec<(StreamPart, u64)>>,
    ) {
        let weighted = if parts.as_ref().is_none_or(Vec::is_empty) { self.weighted_streams(number) } else { None };
        let Some(usage) = self.jobs.get_mut(&number) else { return };
        *usage.joules.entry(origin).or_default() += energy;
        let by_weight = |streams: &[(StreamId, u64, usize)]| -> Vec<(StreamPart, u64)> {
            streams.iter().enumerate().map(|(at, (_, weight, _))| ((at, StagePart::OTHER), *weight)).collect()
        };
        let by_stage = usage.streams.iter().any(|(id, ..)| id.basis == ShareBasis::Stages);
        let (ids, parts) = match parts.filter(|parts| !parts.is_empty()) {
            Some(parts) => (Cow::Borrowed(&*usage.streams), parts),
            None if by_stage => {
                // Without room for series the job keeps its own figures, as one without streams.
                let Some(divided) = weighted else { return };
                let parts = by_weight(&divided);
                (Cow::Owned(divided), parts)
            }
            None => (Cow::Borrowed(&*usage.streams), by_weight(&usage.streams)),
        };
        for ((stream, part), energy) in split_proportionally(energy, Microjoules::ZERO, &parts).shares {
            let Some((id, ..)) = ids.get(stream) else { continue };
            *self.totals.entry((id.clone(), origin)).or_default() += energy;
            self.stages.add_energy(id, origin, part, energy);
        }
    }

    /// The streams of a job that is divided by stages, as its weights divide it: use of a GPU is
    /// not known by stage, so it has series of its own. `None` for other jobs, and without room for
    /// these series.
    fn weighted_streams(&mut self, number: u32) -> Option<Vec<(StreamId, u64, usize)>> {
        let usage = self.jobs.get(&number)?;
        if !usage.streams.iter().any(|(id, ..)| id.basis == ShareBasis::Stages) {
            return None;
        }
        let divided = streams(&usage.job);
        let new: Vec<StreamId> = divided.iter().map(|(id, ..)| id).filter(|id| !usage.owns(id)).cloned().collect();
        let unknown = new.iter().filter(|id| !self.has_series(id)).count();
        if unknown > 0 && self.series() + unknown > self.limit {
            return None;
        }
        if let Some(usage) = self.jobs.get_mut(&number) {
            usage.former.extend(new);
        }
        Some(divided)
    }

    /// Energy of one stream by part, which sum to its total; empty while no part is known.
    #[must_use]
    pub fn stage_energy(&self, id: &StreamId, origin: Origin) -> Vec<(StagePart, Microjoules)> {
        self.stages.energy(id, origin)
    }

    /// CPU nanoseconds of every stream with series by part, without streams of which no part is
    /// known.
    pub fn stage_times(&self) -> impl Iterator<Item = (&StreamId, StageTimes)> {
        let owned = self.owned();
        self.stages.times().filter(move |(id, _)| owned.contains(id) || self.continued.contains(*id))
    }
}

impl JobUsage {
    /// The index of the stream of each output.
    pub(super) fn owners(&self) -> Vec<usize> {
        let owner = |name: &str, codec: &str| {
            self.streams.iter().position(|(id, ..)| id.name == name && id.codec == codec).unwrap_or(0)
        };
        self.job.command.outputs.iter().map(|output| owner(&output.name, &output.codec)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        containers::ChargeTarget,
        energy::zone::{ZoneId, ZoneKind},
        host::topology::PackageId,
        jobs::{Job, command_line::CommandLine, stage::Stage},
        ledger::AccountId,
    };

    const HERE: ChargeTarget = ChargeTarget::Container(7);

    fn encode(output: u8) -> StagePart {
        StagePart::of_output(Stage::Encode, output)
    }

    /// A ladder of a 720p and a 360p stream in container 7.
    fn ladder(limit: usize) -> Streams {
        let mut streams = Streams::new(limit);
        let line = "ffmpeg -i a -s 1280x720 hi.mp4 -s 640x360 lo.mp4".replace(' ', "\0");
        let command = CommandLine::parse(line.as_bytes());
        streams.begin(&Job { number: 1, charge_target: HERE, own_container: None, unix_ns: 0, command }, 1);
        streams
    }

    /// The job has run for `ran_ns`, its threads for `parts`, and the container used `uj`.
    fn tick(streams: &mut Streams, ran_ns: u64, parts: &[(StagePart, u64)], uj: u64) {
        let zone = ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package };
        streams.note_stages(&[(1, parts.to_vec())]);
        streams.update_clocks(&[(1, ran_ns)]);
        streams.add_target_time(HERE, 1);
        let split = split_proportionally(Microjoules(uj), Microjoules::ZERO, &[(HERE, 1)]);
        streams.split_by_cpu_time(0, AccountId { zone, origin: Origin::Perf }, &split);
    }

    fn totals(streams: &Streams) -> Vec<(&str, &'static str, u64)> {
        streams.totals().map(|(id, _, joules)| (&*id.name, id.basis.as_str(), joules.0)).collect()
    }

    /// Asserts that the parts of every stream with stages sum to its energy.
    fn assert_parts_sum(streams: &Streams) {
        for (id, origin, joules) in streams.totals().filter(|(id, ..)| id.basis == ShareBasis::Stages) {
            let parts = streams.stage_energy(id, origin);
            assert_eq!(parts.iter().map(|(_, energy)| *energy).sum::<Microjoules>(), joules, "{}", id.name);
        }
    }

    #[test]
    fn outputs_of_a_ladder_have_what_their_threads_ran() {
        let mut streams = ladder(10);
        let decode = StagePart::common(Stage::Decode);
        tick(&mut streams, 1100, &[(encode(0), 700), (encode(1), 300), (decode, 100)], 11_003);
        assert_eq!(totals(&streams), [("hi", "stages", 7702), ("lo", "stages", 3301)]);
        assert_parts_sum(&streams);
        let times: Vec<u64> = streams.stage_times().flat_map(|(_, times)| times).map(|(_, ns)| ns).collect();
        assert_eq!(times, [70, 700, 30, 300]);
        assert_eq!(streams.series(), 2);
        streams.remove(1);
        assert_eq!((streams.totals().count(), streams.stage_times().count()), (0, 0));
    }

    #[test]
    fn what_was_divided_by_pixels_stays_in_its_series() {
        let mut streams = ladder(4);
        tick(&mut streams, 1000, &[], 10_000);
        assert_eq!(totals(&streams), [("hi", "pixels", 8000), ("lo", "pixels", 2000)]);
        tick(&mut streams, 2000, &[(encode(0), 500), (encode(1), 500)], 10_000);
        let both = [("hi", "pixels", 8000), ("hi", "stages", 5000), ("lo", "pixels", 2000), ("lo", "stages", 5000)];
        assert_eq!(totals(&streams), both);
        assert_parts_sum(&streams);
        assert_eq!(streams.series(), 4);
        streams.remove(1);
        assert_eq!(streams.totals().count(), 0);
    }

    #[test]
    fn without_room_for_series_the_division_stays_by_pixels() {
        let mut streams = ladder(3);
        tick(&mut streams, 1000, &[], 10_000);
        tick(&mut streams, 2000, &[(encode(0), 500), (encode(1), 500)], 10_000);
        let bases: Vec<&str> = totals(&streams).iter().map(|(_, basis, _)| *basis).collect();
        assert_eq!((bases, streams.series()), (vec!["pixels"; 2], 2));
    }

    #[test]
    fn gpu_energy_of_a_ladder_is_divided_by_pixels() {
        let mut streams = ladder(10);
        tick(&mut streams, 1000, &[(encode(0), 500), (encode(1), 500)], 10_000);
        let split = split_proportionally(Microjoules(500), Microjoules::ZERO, &[(HERE, 1)]);
        streams.split_by_engine_use(Origin::Nvml, &split, &[((Some(HERE), Some(1)), 1)].into());
        let expected = [("hi", "pixels", 400), ("hi", "stages", 5000), ("lo", "pixels", 100), ("lo", "stages", 5000)];
        assert_eq!(totals(&streams), expected);
        assert_parts_sum(&streams);
        streams.remove(1);
        assert_eq!(streams.totals().count(), 0);
    }

    /// The series of a GPU's energy were above the limit, two more for each ladder.
    #[test]
    fn gpu_energy_without_room_for_series_is_that_of_the_job_alone() {
        let mut streams = ladder(3);
        tick(&mut streams, 1000, &[(encode(0), 500), (encode(1), 500)], 10_000);
        let split = split_proportionally(Microjoules(500), Microjoules::ZERO, &[(HERE, 1)]);
        streams.split_by_engine_use(Origin::Nvml, &split, &[((Some(HERE), Some(1)), 1)].into());
        assert_eq!(totals(&streams), [("hi", "stages", 5000), ("lo", "stages", 5000)]);
        assert_eq!(streams.series(), 2);
        let of_job: Microjoules = streams.jobs[&1].joules.values().copied().sum();
        assert_eq!(of_job, Microjoules(10_500));
    }
}
