//! Metrics of streams by stage: CPU time and energy.

use std::collections::BTreeMap;

use metrics::family::Family;
use units::Microjoules;

use super::metrics as m;
use crate::{
    jobs::stage::StagePart,
    ledger::streams::StreamId,
    snapshot::{Snapshot, history::seconds_of},
};

/// The two families. `container_labels` are the labels `container` and `id` of a stream; `None`
/// where its series have ended.
pub(super) fn families(
    snapshot: &Snapshot,
    container_labels: impl Fn(&StreamId) -> Option<[String; 2]>,
) -> [Family; 2] {
    let mut times: BTreeMap<[String; 7], u64> = BTreeMap::new();
    for (id, parts) in &snapshot.stream_times {
        let Some([container, container_id]) = container_labels(id) else { continue };
        for (part, ns) in parts {
            let [output, stage] = part_labels(part);
            let [name, codec, share] = [&*id.name, &*id.codec, id.basis.as_str()].map(str::to_owned);
            let labels = [name, container.clone(), container_id.clone(), codec, share, output, stage];
            *times.entry(labels).or_default() += ns;
        }
    }
    let mut joules: BTreeMap<[String; 8], Microjoules> = BTreeMap::new();
    for row in &snapshot.streams {
        let Some([container, container_id]) = container_labels(&row.id) else { continue };
        for (part, energy) in &row.parts {
            let [output, stage] = part_labels(part);
            let texts = [&*row.id.name, &*row.id.codec, row.origin.as_str(), row.id.basis.as_str()];
            let [name, codec, source, share] = texts.map(str::to_owned);
            let labels = [name, container.clone(), container_id.clone(), codec, source, share, output, stage];
            *joules.entry(labels).or_default() += *energy;
        }
    }
    let (mut cpu, mut energy) = (Family::new(&m::STREAM_STAGE_CPU), Family::new(&m::STREAM_STAGE_ENERGY));
    for (labels, ns) in &times {
        cpu.push(&labels.each_ref().map(String::as_str), seconds_of(*ns));
    }
    for (labels, joules) in &joules {
        energy.push(&labels.each_ref().map(String::as_str), joules.joules());
    }
    [cpu, energy]
}

/// Values of the labels `output` and `stage`.
fn part_labels(part: &StagePart) -> [String; 2] {
    let output = part.output.map(|output| output.to_string()).unwrap_or_default();
    [output, part.stage.as_str().to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        energy::zone::Origin,
        jobs::stage::Stage,
        ledger::streams::{ShareBasis, StreamContainer},
        snapshot::StreamRow,
    };

    #[test]
    fn parts_of_a_stream_have_its_labels() {
        let stream = |name: &str| StreamId {
            name: name.to_owned(),
            container: StreamContainer::Number(1),
            codec: "h264".to_owned(),
            basis: ShareBasis::Stages,
        };
        let encode = StagePart::of_output(Stage::Encode, 1);
        let row = |name: &str| StreamRow {
            id: stream(name),
            origin: Origin::Perf,
            joules: Microjoules(3_500_000),
            parts: vec![(encode, Microjoules(2_500_000)), (StagePart::OTHER, Microjoules(1_000_000))],
        };
        let snapshot = Snapshot {
            stream_times: vec![
                (stream("hi"), vec![(encode, 1_500_000_000), (StagePart::OTHER, 5)]),
                (stream("gone"), vec![(encode, 9)]),
            ],
            streams: vec![row("hi"), row("gone")],
            ..Snapshot::default()
        };
        let labels = |id: &StreamId| (id.name == "hi").then(|| ["c".to_owned(), "0a".to_owned()]);
        let page = metrics::page::render("test", families(&snapshot, labels)).unwrap();
        let text = String::from_utf8(page.text().to_vec()).unwrap();
        let rows: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(rows.len(), 4, "{text}");
        let value = |name: &str, labels: &[&str]| {
            let found = rows.iter().find(|row| row.starts_with(name) && labels.iter().all(|label| row.contains(label)));
            found.and_then(|row| row.rsplit(' ').next())
        };
        let encode =
            ["stream=\"hi\"", "container=\"c\"", "id=\"0a\"", "codec=\"h264\"", "share=\"stages\"", "output=\"1\""];
        assert_eq!(value("wattcast_stream_stage_cpu_seconds_total", &encode), Some("1.5"));
        assert_eq!(value("wattcast_stream_stage_energy_joules_total", &encode), Some("2.5"));
        let other = ["source=\"perf\"", "output=\"\"", "stage=\"other\""];
        assert_eq!(value("wattcast_stream_stage_energy_joules_total", &other), Some("1"));
        assert!(metrics::page::faults(&text).is_empty(), "{text}");
    }
}
