//! Encodes samples as remote write 1.0 requests: the series of the pages with the labels that a
//! scrape would add.

use std::collections::{BTreeMap, BTreeSet};

use metrics::family::Kind;
use prost::Message as _;
use tracing::error;

use crate::{
    message::{Label, MetricMetadata, Sample, TimeSeries, WriteRequest},
    payload::{Encode, MAX_POINTS, Payload},
    rows::FamilySamples,
};

/// The value of a sample after the last one of a series (`model/value.StaleNaN` of Prometheus):
/// queries then do not show the last value for five more minutes.
const STALE: f64 = f64::from_bits(0x7ff0_0000_0000_0002);

/// Types and HELP texts are sent with the first samples and each time after this number.
const METADATA_INTERVAL: u64 = 40;

/// Encoder of one destination.
pub(crate) struct RemoteWriteEncoder {
    /// Labels of the target, by name: `job`, `instance`.
    target: BTreeMap<String, String>,
    /// The series of the last samples.
    series: BTreeSet<Vec<Label>>,
    collections: u64,
}

impl RemoteWriteEncoder {
    pub(crate) fn new(target: BTreeMap<String, String>) -> Self {
        Self { target, series: BTreeSet::new(), collections: 0 }
    }

    /// The labels of a series, sorted by name. An empty label is no label. One that the target has
    /// too is renamed, as Prometheus does with the labels of a page.
    fn labels(&self, sample: &metrics::parse::Sample) -> Vec<Label> {
        let mut all: BTreeMap<String, String> = self.target.clone();
        for (name, value) in &sample.labels {
            let name = if self.target.contains_key(name) { format!("exported_{name}") } else { name.clone() };
            all.insert(name, value.clone());
        }
        all.insert("__name__".to_owned(), sample.name.clone());
        all.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| Label { name, value }).collect()
    }
}

impl Encode for RemoteWriteEncoder {
    fn encode(&mut self, families: &[FamilySamples], at_ns: u64) -> Vec<Payload> {
        let timestamp = milliseconds(at_ns);
        let mut samples: Vec<(Vec<Label>, f64)> = Vec::new();
        for sample in families.iter().flat_map(|family| &family.samples) {
            samples.push((self.labels(sample), sample.value));
        }
        let series: BTreeSet<Vec<Label>> = samples.iter().map(|(labels, _)| labels.clone()).collect();
        let ended = self.series.difference(&series).map(|labels| (labels.clone(), STALE));
        samples.extend(ended);
        self.series = series;
        let metadata = if self.collections.is_multiple_of(METADATA_INTERVAL) { metadata(families) } else { Vec::new() };
        self.collections += 1;
        payloads(samples, metadata, timestamp)
    }

    fn end(&mut self, at_ns: u64) -> Vec<Payload> {
        let ended = std::mem::take(&mut self.series).into_iter().map(|labels| (labels, STALE)).collect();
        // After the last samples: two samples of one time are a conflict.
        payloads(ended, Vec::new(), milliseconds(at_ns).saturating_add(1))
    }
}

fn payloads(samples: Vec<(Vec<Label>, f64)>, metadata: Vec<MetricMetadata>, timestamp: i64) -> Vec<Payload> {
    let mut metadata = Some(metadata);
    let chunks = samples.chunks(MAX_POINTS).map(|chunk| {
        let series = chunk.iter().map(|(labels, value)| TimeSeries {
            labels: labels.clone(),
            samples: vec![Sample { value: *value, timestamp }],
        });
        let request = WriteRequest { timeseries: series.collect(), metadata: metadata.take().unwrap_or_default() };
        (compressed(&request.encode_to_vec()), chunk.len())
    });
    let chunks = chunks.filter_map(|(body, points)| Some((body?, u64::try_from(points).unwrap_or(u64::MAX))));
    chunks.map(|(body, points)| Payload { body, points }).collect()
}

/// The block format of snappy, without frames.
fn compressed(plain: &[u8]) -> Option<Vec<u8>> {
    match snap::raw::Encoder::new().compress_vec(plain) {
        Ok(body) => Some(body),
        Err(error) => {
            // Only above 4 GiB.
            error!("cannot compress {} bytes for remote write: {error}", plain.len());
            None
        }
    }
}

fn metadata(families: &[FamilySamples]) -> Vec<MetricMetadata> {
    let of = |family: &FamilySamples| MetricMetadata {
        r#type: match family.def.kind {
            Kind::Counter => 1,
            Kind::Gauge => 2,
            Kind::Histogram => 3,
        },
        metric_family_name: family.def.name.to_owned(),
        help: family.def.help.to_owned(),
    };
    families.iter().map(of).collect()
}

fn milliseconds(ns: u64) -> i64 {
    i64::try_from(ns / 1_000_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use metrics::{
        family::{Buckets, Def, Family},
        page::{Page, render},
    };

    use super::*;
    use crate::rows;

    static ENERGY: Def = Def::counter("energy_joules_total", &["zone", "job", "pod"], "Energy.");
    static WAIT: Def = Def::histogram("wait_seconds", &[], "Wait.");

    fn page(zones: &[&str]) -> Page {
        let mut wait = Family::new(&WAIT);
        wait.push_buckets(&[], &Buckets { cumulative: vec![(0.5, 1)], count: 2, sum: 3.5 });
        let mut energy = Family::new(&ENERGY);
        zones.iter().for_each(|zone| energy.push(&[*zone, "own", ""], 0.1 + 0.2));
        render("t", [energy, wait]).unwrap()
    }

    fn encoder() -> RemoteWriteEncoder {
        let target = [("job", "wattcast-probe"), ("instance", "enc-1")];
        RemoteWriteEncoder::new(target.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
    }

    /// The samples as text, in the order of the request.
    fn decode(payloads: &[Payload]) -> (Vec<String>, WriteRequest) {
        let [payload] = payloads else { panic!("{payloads:?}") };
        let plain = snap::raw::Decoder::new().decompress_vec(&payload.body).unwrap();
        let request = WriteRequest::decode(&*plain).unwrap();
        let text = |series: &TimeSeries| {
            let labels = series.labels.iter().map(|label| format!("{}={}", label.name, label.value));
            let sample = &series.samples[0];
            let value =
                if sample.value.to_bits() == STALE.to_bits() { "stale".to_owned() } else { sample.value.to_string() };
            format!("{} {value} {}", labels.collect::<Vec<_>>().join(","), sample.timestamp)
        };
        (request.timeseries.iter().map(text).collect(), request)
    }

    #[test]
    fn series_have_the_labels_of_a_scrape_sorted_by_name() {
        let (text, request) = decode(&encoder().encode(&rows::read([&page(&["core"])]).unwrap(), 7_000_000));
        assert_eq!(
            text,
            [
                "__name__=energy_joules_total,exported_job=own,instance=enc-1,job=wattcast-probe,zone=core \
                 0.30000000000000004 7",
                "__name__=wait_seconds_bucket,instance=enc-1,job=wattcast-probe,le=0.5 1 7",
                "__name__=wait_seconds_bucket,instance=enc-1,job=wattcast-probe,le=+Inf 2 7",
                "__name__=wait_seconds_sum,instance=enc-1,job=wattcast-probe 3.5 7",
                "__name__=wait_seconds_count,instance=enc-1,job=wattcast-probe 2 7",
            ]
        );
        let kinds: Vec<(i32, &str)> =
            request.metadata.iter().map(|family| (family.r#type, &*family.metric_family_name)).collect();
        assert_eq!(kinds, [(1, "energy_joules_total"), (3, "wait_seconds")]);
    }

    #[test]
    fn a_series_that_ends_is_marked_once() {
        let mut encoder = encoder();
        let mut stale = |zones: &[&str], at_ns| {
            let (text, _) = decode(&encoder.encode(&rows::read([&page(zones)]).unwrap(), at_ns));
            text.iter().filter(|line| line.contains("stale")).count()
        };
        assert_eq!(stale(&["core", "dram"], 1_000_000), 0);
        assert_eq!(stale(&["core"], 2_000_000), 1);
        assert_eq!(stale(&["core"], 3_000_000), 0);
        let (text, _) = decode(&encoder.end(3_000_000));
        assert_eq!(text.len(), 5);
        assert!(text.iter().all(|line| line.ends_with("stale 4")), "{text:?}");
        assert!(encoder.end(3_000_000).is_empty());
    }
}
