//! Streams whose totals continue across a restart of the probe.

use serde::{Deserialize, Serialize};
use units::Microjoules;

use super::{StreamId, Streams};
use crate::{energy::zone::Origin, ledger::stages::SavedStages};

/// The totals of one stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedStream {
    pub id: StreamId,
    pub energy: Vec<(Origin, Microjoules)>,
    stages: SavedStages,
}

impl SavedStream {
    /// Keeps the energy of the sources for which `keep` is true. Returns false if there is none.
    pub fn retain_sources(&mut self, keep: impl Fn(Origin) -> bool) -> bool {
        self.energy.retain(|(origin, _)| keep(*origin));
        self.stages.retain_sources(&keep);
        !self.energy.is_empty()
    }
}

impl Streams {
    /// The totals of every stream with series.
    #[must_use]
    pub fn saved(&self) -> Vec<SavedStream> {
        let mut all: Vec<SavedStream> = Vec::new();
        // In the order of streams.
        for ((id, origin), joules) in &self.totals {
            match all.last_mut().filter(|last| last.id == *id) {
                Some(last) => last.energy.push((*origin, *joules)),
                None => all.push(SavedStream {
                    id: id.clone(),
                    energy: vec![(*origin, *joules)],
                    stages: self.stages.saved(id),
                }),
            }
        }
        all
    }

    /// Continues the totals of an earlier probe. Their series stay without a job until
    /// [`Self::end_continued`], and a job with the same stream continues them.
    pub fn continue_totals(&mut self, saved: Vec<SavedStream>) {
        for SavedStream { id, energy, stages } in saved {
            if self.continued.len() >= self.limit && !self.continued.contains(&id) {
                self.dropped += 1;
                continue;
            }
            for (origin, joules) in energy {
                *self.totals.entry((id.clone(), origin)).or_default() += joules;
            }
            self.stages.continue_stream(&id, stages);
            self.continued.insert(id);
        }
    }

    /// Ends the series of continued streams without a job.
    pub fn end_continued(&mut self) {
        for id in std::mem::take(&mut self.continued) {
            if !self.has_series(&id) {
                self.totals.retain(|(known, _), _| *known != id);
                self.stages.remove_stream(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        containers::ChargeTarget,
        jobs::{Job, command_line::CommandLine},
        ledger::streams::{ShareBasis, StreamContainer},
    };

    fn saved(name: &str, energy: &[(Origin, u64)]) -> SavedStream {
        let (name, codec) = (name.to_owned(), "h264".to_owned());
        let id = StreamId { name, container: StreamContainer::Number(7), codec, basis: ShareBasis::Process };
        let energy = energy.iter().map(|(origin, uj)| (*origin, Microjoules(*uj))).collect();
        SavedStream { id, energy, stages: SavedStages::default() }
    }

    #[test]
    fn continued_streams_end_without_a_job_and_are_limited() {
        let mut streams = Streams::new(1);
        let mut all = vec![saved("cam", &[(Origin::Perf, 5), (Origin::Nvml, 7)]), saved("more", &[(Origin::Perf, 9)])];
        streams.continue_totals(all.clone());
        assert_eq!((streams.saved(), streams.dropped()), (all[..1].to_vec(), 1), "both sources of the only stream");
        streams.end_continued();
        assert!(streams.saved().is_empty());
        assert!(all[0].retain_sources(|origin| origin == Origin::Nvml) && all[0].energy.len() == 1);
        assert!(!all[1].retain_sources(|origin| origin == Origin::Nvml));
    }

    /// Its CPU time by stage was absent until a job was found, while its energy was shown.
    #[test]
    fn a_continued_stream_has_its_times_before_its_job_is_found() {
        let stages = serde_json::from_str(r#"{"ns":[[{"stage":"encode","output":0},7]],"energy":[]}"#).unwrap();
        let mut streams = Streams::new(10);
        streams.continue_totals(vec![SavedStream { stages, ..saved("cam", &[(Origin::Perf, 5)]) }]);
        assert_eq!(streams.stage_times().count(), 1);
        streams.end_continued();
        assert_eq!(streams.stage_times().count(), 0);
    }

    #[test]
    fn a_job_continues_the_stream_of_the_probe_before() {
        let command = CommandLine::parse(b"ffmpeg\0-i\0a\0cam.mp4");
        let job =
            Job { number: 1, charge_target: ChargeTarget::Container(7), own_container: None, unix_ns: 0, command };
        let mut streams = Streams::new(10);
        streams.begin(&job, 1);
        let id = streams.jobs().next().unwrap().streams[0].0.clone();
        let mut streams = Streams::new(10);
        streams.continue_totals(vec![SavedStream { id, ..saved("cam", &[(Origin::Perf, 5)]) }]);
        streams.begin(&job, 1);
        streams.end_continued();
        assert_eq!(streams.totals().map(|(_, _, joules)| joules.0).collect::<Vec<_>>(), [5]);
        streams.remove(1);
        assert_eq!(streams.totals().count(), 0);
    }
}
