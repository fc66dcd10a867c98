//! Encodes samples as OTLP requests. Every container is a resource of its own, with the attributes
//! of its host and those of the container.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    io::Write as _,
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use metrics::family::Layer;
use prost::Message as _;

use crate::{
    message::{
        CUMULATIVE, DELTA, Data, ExportRequest, Gauge, Histogram, HistogramPoint, KeyValue, Metric, Number,
        NumberPoint, Resource, ResourceMetrics, Scope, ScopeMetrics, Sum,
    },
    names::{self, ContainerKey, NamedRow, Shape, Since},
    payload::{Encode, MAX_POINTS, Payload},
    rows::{Distribution, FamilySamples, Labels, Value},
    series::{Kept, Reading, Tracker},
};

/// The page's names of the start of the energy totals, and of the restarts since then.
const TOTALS_START: &str = "wattcast_totals_start_timestamp_seconds";
const TOTALS_RESTARTS: &str = "wattcast_totals_restarts_total";
/// Identity of a resource: receivers with the data model of Prometheus make it the label
/// `instance`, and would mix the series of resources that have it in common.
const INSTANCE: &str = "service.instance.id";

/// Encoder of one destination.
pub(crate) struct OtlpEncoder {
    /// Attributes of the host's resource, by name.
    resource: BTreeMap<String, String>,
    scope: Scope,
    /// Start of the program in unix nanoseconds.
    started_ns: u64,
    gzip: bool,
    kept: Kept,
    tracker: Tracker,
    /// True until the first samples were encoded.
    first: bool,
    /// The energy counters that were read after a restart of the program.
    zones: BTreeSet<Zone>,
    /// The ids of the containers of the collection before; `None` before one had any.
    containers: Option<BTreeSet<String>>,
    /// The media servers that have answered.
    servers: BTreeSet<String>,
    /// True once a collection had reports of ffmpeg.
    has_jobs: bool,
}

/// Package, zone and source.
type Zone = [String; 3];

/// The metrics of a resource, by name.
type Metrics = BTreeMap<names::Named, (&'static str, Data)>;

impl OtlpEncoder {
    pub(crate) fn new(
        resource: BTreeMap<String, String>,
        scope: Scope,
        started_ns: u64,
        gzip: bool,
        kept: Kept,
    ) -> Self {
        Self {
            resource,
            scope,
            started_ns,
            gzip,
            kept,
            tracker: Tracker::new(kept),
            first: true,
            zones: BTreeSet::new(),
            containers: None,
            servers: BTreeSet::new(),
            has_jobs: false,
        }
    }

    /// True for a row of a counter that began before this program, as far as is known: what was
    /// counted until its first collection was sent by an earlier program, or was never seen. A
    /// container, a stream of a known server, or another job, that appears later is new with all
    /// that it counts.
    fn is_older(&self, since: Option<Since>, name: &str, labels: &[(String, String)]) -> bool {
        match since {
            None => false,
            Some(Since::Driver) => true,
            Some(Since::Job) => !self.has_jobs,
            Some(Since::Server) => !self.servers.contains(&names::server_of(name, labels)),
            Some(Since::Container) => self
                .containers
                .as_ref()
                .is_none_or(|known| names::container_of(labels).is_some_and(|(_, id)| known.contains(&id))),
        }
    }

    /// When a counter of this name was zero. Energy totals continue over a restart.
    fn zero_ns(&self, name: &str, totals_start_ns: Option<u64>) -> u64 {
        let continues = name.ends_with("_joules_total") && !name.starts_with("wattcast_reference_");
        totals_start_ns.filter(|_| continues).map_or(self.started_ns, |start| start.min(self.started_ns))
    }

    /// Adds a row to the metrics of its resource. `continues`: see [`Reading`].
    fn add(
        &mut self,
        metrics: &mut Metrics,
        family: &FamilySamples,
        (labels, value): (Labels, Value),
        at_ns: u64,
        zero_ns: u64,
        continues: bool,
    ) {
        let NamedRow { metric, attributes } = names::row(family.def, &labels);
        let attributes = attributes.iter().map(|(name, value)| KeyValue::text(name, value)).collect();
        let (start_ns, value) = match metric.shape {
            Shape::Gauge | Shape::UpDownCounter => (0, value),
            Shape::Counter | Shape::Histogram => {
                let ends =
                    ["container", "id", "stream"].iter().any(|name| labels.iter().any(|(label, _)| label == name));
                let key = series_key(family.def.name, &labels);
                let reading = Reading { key, at_ns, zero_ns, value: &value, ends, continues };
                match self.tracker.point(reading) {
                    Some(point) => (point.start_ns, point.value),
                    None => return,
                }
            }
        };
        let shape = metric.shape;
        let (_, data) = match metrics.entry(metric) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert((family.def.help, empty(shape, self.kept))),
        };
        match (data, value) {
            (Data::Gauge(Gauge { data_points }) | Data::Sum(Sum { data_points, .. }), Value::Number(number)) => {
                data_points.push(NumberPoint {
                    attributes,
                    start_time_unix_nano: start_ns,
                    time_unix_nano: at_ns,
                    value: Some(Number::Double(number)),
                });
            }
            (Data::Histogram(histogram), Value::Distribution(row)) => {
                histogram.data_points.push(histogram_point(attributes, start_ns, at_ns, row));
            }
            // A family has rows of its type only.
            _ => {}
        }
    }

    /// The attributes of a resource.
    fn resource(&self, container: Option<&ContainerKey>, details: &BTreeMap<&'static str, String>) -> Resource {
        let mut all = self.resource.clone();
        if let Some((name, id)) = container {
            let host = all.get(INSTANCE).cloned().unwrap_or_default();
            all.insert(INSTANCE.to_owned(), format!("{host}/{}", if id.is_empty() { name } else { id }));
        }
        all.extend(details.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        Resource { attributes: all.iter().map(|(name, value)| KeyValue::text(name, value)).collect() }
    }

    fn payload(&self, resources: Vec<ResourceMetrics>, points: usize) -> Payload {
        let body = ExportRequest { resource_metrics: resources }.encode_to_vec();
        let body = if self.gzip { compressed(&body) } else { body };
        Payload { body, points: u64::try_from(points).unwrap_or(u64::MAX) }
    }

    /// The requests for the metrics of all resources.
    fn payloads(
        &self,
        by_resource: BTreeMap<Option<ContainerKey>, Metrics>,
        details: &BTreeMap<ContainerKey, BTreeMap<&'static str, String>>,
    ) -> Vec<Payload> {
        let (mut payloads, mut resources, mut points) = (Vec::new(), Vec::new(), 0);
        let none = BTreeMap::new();
        for (container, metrics) in by_resource {
            let known = container.as_ref().and_then(|key| details.get(key)).unwrap_or(&none);
            let resource = self.resource(container.as_ref(), known);
            let of_resource = |metrics: Vec<Metric>| ResourceMetrics {
                resource: Some(resource.clone()),
                scope_metrics: vec![ScopeMetrics { scope: Some(self.scope.clone()), metrics }],
            };
            let mut open = Vec::new();
            for (named, (help, data)) in metrics {
                points += points_of(&data);
                open.push(Metric {
                    name: named.name,
                    description: help.to_owned(),
                    unit: named.unit.to_owned(),
                    data: Some(data),
                });
                if points >= MAX_POINTS {
                    resources.push(of_resource(std::mem::take(&mut open)));
                    payloads.push(self.payload(std::mem::take(&mut resources), points));
                    points = 0;
                }
            }
            if !open.is_empty() {
                resources.push(of_resource(open));
            }
        }
        if points > 0 {
            payloads.push(self.payload(resources, points));
        }
        payloads
    }
}

impl Encode for OtlpEncoder {
    fn encode(&mut self, families: &[FamilySamples], at_ns: u64) -> Vec<Payload> {
        let totals_start_ns = FamilySamples::single(families, TOTALS_START).and_then(nanoseconds);
        let restarted = FamilySamples::single(families, TOTALS_RESTARTS).is_some_and(|restarts| restarts > 0.0);
        let first = std::mem::take(&mut self.first);
        let (mut zones, mut servers, mut has_jobs) = (BTreeSet::new(), Vec::new(), false);
        let mut by_resource: BTreeMap<Option<ContainerKey>, Metrics> = BTreeMap::new();
        let mut details: BTreeMap<ContainerKey, BTreeMap<&'static str, String>> = BTreeMap::new();
        for family in families.iter().filter(|family| family.def.layer == Layer::Primary) {
            let zero_ns = self.zero_ns(family.def.name, totals_start_ns);
            let since = names::since(family.def.name);
            for (labels, value) in family.rows() {
                let container = names::container_of(&labels);
                if let Some(key) = &container {
                    details.entry(key.clone()).or_default().extend(names::container_attributes(&labels));
                }
                // After a restart totals continue; those of a board only once it is found.
                let zone = if restarted { zone_of(&labels) } else { None };
                let is_new = zone.as_ref().is_some_and(|zone| !self.zones.contains(zone));
                zones.extend(zone);
                servers.extend(names::answered(family.def.name, &labels));
                has_jobs |= since == Some(Since::Job);
                let continues = (restarted && (first || is_new)) || self.is_older(since, family.def.name, &labels);
                let metrics = by_resource.entry(container).or_default();
                self.add(metrics, family, (labels, value), at_ns, zero_ns, continues);
            }
        }
        self.zones.extend(zones);
        self.servers.extend(servers);
        self.has_jobs |= has_jobs;
        if self.containers.is_some() || !details.is_empty() {
            self.containers = Some(details.keys().map(|(_, id)| id.clone()).collect());
        }
        self.tracker.end(at_ns);
        by_resource.retain(|_, metrics| !metrics.is_empty());
        self.payloads(by_resource, &details)
    }

    /// A receiver sees that points have ended.
    fn end(&mut self, _at_ns: u64) -> Vec<Payload> {
        Vec::new()
    }
}

/// Identity of a series of a page. Of a container only its id counts: its name, its image and its
/// pod may become known later, while its totals continue.
fn series_key(name: &str, labels: &[(String, String)]) -> String {
    let has_id = labels.iter().any(|(label, value)| label == "id" && !value.is_empty());
    let counts = |label: &str| {
        !has_id || label == "id" || names::RESOURCE_LABELS.iter().all(|(of_container, _)| *of_container != label)
    };
    let own = labels.iter().filter(|(label, _)| counts(label));
    own.fold(name.to_owned(), |key, (label, value)| key + "\u{1}" + label + "\u{1}" + value)
}

/// The energy counter that a row is a part of.
fn zone_of(labels: &[(String, String)]) -> Option<Zone> {
    let of = |name: &str| labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.clone());
    Some([of("package")?, of("zone")?, of("source")?])
}

/// Data without points. A sum that falls has no changes: with changes too, receivers expect its
/// total.
fn empty(shape: Shape, kept: Kept) -> Data {
    let temporality = if kept == Kept::Changes { DELTA } else { CUMULATIVE };
    let sum = |aggregation_temporality, is_monotonic| {
        Data::Sum(Sum { data_points: Vec::new(), aggregation_temporality, is_monotonic })
    };
    match shape {
        Shape::Counter => sum(temporality, true),
        Shape::UpDownCounter => sum(CUMULATIVE, false),
        Shape::Gauge => Data::Gauge(Gauge::default()),
        Shape::Histogram => {
            Data::Histogram(Histogram { data_points: Vec::new(), aggregation_temporality: temporality })
        }
    }
}

fn points_of(data: &Data) -> usize {
    match data {
        Data::Gauge(Gauge { data_points }) | Data::Sum(Sum { data_points, .. }) => data_points.len(),
        Data::Histogram(Histogram { data_points, .. }) => data_points.len(),
    }
}

/// A point with the counts of single buckets; the last one is above all bounds.
fn histogram_point(attributes: Vec<KeyValue>, start_ns: u64, at_ns: u64, row: Distribution) -> HistogramPoint {
    let mut below = 0;
    let mut bucket_counts: Vec<u64> = Vec::with_capacity(row.cumulative.len() + 1);
    for cumulative in row.cumulative.iter().chain([&row.count]) {
        bucket_counts.push(cumulative.saturating_sub(below));
        below = *cumulative;
    }
    HistogramPoint {
        attributes,
        start_time_unix_nano: start_ns,
        time_unix_nano: at_ns,
        count: row.count,
        sum: Some(row.sum),
        bucket_counts,
        explicit_bounds: row.bounds,
    }
}

fn nanoseconds(seconds: f64) -> Option<u64> {
    u64::try_from(Duration::try_from_secs_f64(seconds).ok()?.as_nanos()).ok()
}

fn compressed(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 8), Compression::fast());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(plain);
    encoder.finish().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use metrics::{
        family::{Buckets, Def, Family},
        page::{Page, render},
    };

    use super::*;
    use crate::rows;

    const CONTAINER: &[&str] = &["container", "id", "image", "zone"];
    static ZONES: Def = Def::counter("wattcast_energy_joules_total", &["package", "zone", "source"], "Energy.");
    static ENERGY: Def = Def::counter("wattcast_container_energy_joules_total", CONTAINER, "Container energy.");
    static CPU: Def = Def::counter("wattcast_container_cpu_seconds_total", &["container", "id"], "CPU.");
    static MEMORY: Def = Def::gauge("wattcast_container_memory_bytes", &["container", "id"], "Memory.");
    static JITTER: Def = Def::histogram("wattcast_tick_jitter_seconds", &[], "Jitter.");
    static START: Def = Def::gauge(TOTALS_START, &[], "Start.");
    static RESTARTS: Def = Def::counter(TOTALS_RESTARTS, &[], "Restarts.");
    static LEGACY: Def = Def::counter("rapl_energy_joules_total", &["zone"], "Legacy.").compat();

    fn page(joules: f64, restarts: f64) -> Page {
        let mut jitter = Family::new(&JITTER);
        jitter.push_buckets(&[], &Buckets { cumulative: vec![(0.5, 1), (1.0, 3)], count: 4, sum: 2.5 });
        let families = [
            Family::new(&ZONES).with(&["0", "package", "perf"], joules * 2.0),
            Family::new(&ENERGY).with(&["cam", "0a", "nginx:1", "package"], joules),
            Family::new(&CPU).with(&["cam", "0a"], 7.5),
            Family::new(&MEMORY).with(&["cam", "0a"], 4096.0),
            jitter,
            Family::new(&START).with(&[], 1.5),
            Family::new(&RESTARTS).with(&[], restarts),
            Family::new(&LEGACY).with(&["package"], joules),
        ];
        render("t", families).unwrap()
    }

    fn encoder(gzip: bool, kept: Kept) -> OtlpEncoder {
        let resource = [("host.name", "enc-1"), (INSTANCE, "enc-1")];
        let resource = resource.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        OtlpEncoder::new(resource, Scope::default(), 5_000_000_000, gzip, kept)
    }

    fn request(encoder: &mut OtlpEncoder, page: &Page, at_ns: u64) -> ExportRequest {
        let payloads = encoder.encode(&rows::read([page]).unwrap(), at_ns);
        assert_eq!(payloads.len(), 1);
        ExportRequest::decode(&*payloads[0].body).unwrap()
    }

    /// The metrics of a resource by name; the resource is that of the container if `container`.
    fn metrics_of(request: &ExportRequest, container: bool) -> BTreeMap<String, Metric> {
        let is_wanted = |resource: &&ResourceMetrics| {
            let attributes = &resource.resource.as_ref().unwrap().attributes;
            attributes.iter().any(|attribute| attribute.key == "container.id") == container
        };
        let found = request.resource_metrics.iter().find(is_wanted).unwrap();
        found.scope_metrics[0].metrics.iter().map(|metric| (metric.name.clone(), metric.clone())).collect()
    }

    fn point(metric: &Metric) -> (u64, f64) {
        let Some(Data::Sum(Sum { data_points, .. }) | Data::Gauge(Gauge { data_points })) = &metric.data else {
            panic!("{metric:?}")
        };
        let Some(Number::Double(value)) = data_points[0].value else { panic!("{metric:?}") };
        (data_points[0].start_time_unix_nano, value)
    }

    #[test]
    fn figures_and_starts_are_those_of_the_page() {
        let request = request(&mut encoder(false, Kept::Totals), &page(0.1 + 0.2, 1.0), 9_000_000_000);
        let (host, container) = (metrics_of(&request, false), metrics_of(&request, true));
        assert_eq!(point(&host["hw.energy"]), (1_500_000_000, 0.6000000000000001));
        assert_eq!(point(&container["wattcast.container.energy"]), (1_500_000_000, 0.1 + 0.2));
        assert_eq!(point(&container["container.cpu.time"]), (5_000_000_000, 7.5));
        assert_eq!(point(&container["container.memory.usage"]).1, 4096.0);
        assert!(!host.contains_key("rapl.energy"), "a legacy name");
        let Some(Data::Histogram(jitter)) = &host["wattcast.tick_jitter"].data else { panic!("{host:?}") };
        let point = &jitter.data_points[0];
        assert_eq!((&*point.bucket_counts, &*point.explicit_bounds), (&[1, 2, 1][..], &[0.5, 1.0][..]));
        assert_eq!((point.count, point.sum), (4, Some(2.5)));
    }

    #[test]
    fn a_container_is_a_resource_with_an_instance_of_its_own() {
        let request = request(&mut encoder(false, Kept::Totals), &page(1.0, 0.0), 9_000_000_000);
        let attributes = |at: usize| -> Vec<(&str, &str)> {
            let all = &request.resource_metrics[at].resource.as_ref().unwrap().attributes;
            all.iter().map(|attribute| (&*attribute.key, attribute.as_text())).collect()
        };
        assert_eq!(attributes(0), [("host.name", "enc-1"), (INSTANCE, "enc-1")]);
        assert_eq!(
            attributes(1),
            [
                ("container.id", "0a"),
                ("container.image.name", "nginx:1"),
                ("container.name", "cam"),
                ("host.name", "enc-1"),
                (INSTANCE, "enc-1/0a"),
            ]
        );
    }

    #[test]
    fn changes_begin_at_the_totals_of_the_program_before() {
        let mut encoder = encoder(false, Kept::Changes);
        let first = request(&mut encoder, &page(100.0, 1.0), 9_000_000_000);
        assert!(!metrics_of(&first, false).contains_key("hw.energy"), "no change is known yet");
        assert_eq!(point(&metrics_of(&first, true)["container.memory.usage"]).1, 4096.0);
        let second = request(&mut encoder, &page(101.5, 1.0), 10_000_000_000);
        let metrics = metrics_of(&second, true);
        let energy = &metrics["wattcast.container.energy"];
        assert_eq!(point(energy), (9_000_000_000, 1.5));
        let Some(Data::Sum(sum)) = &energy.data else { panic!("{energy:?}") };
        assert_eq!((sum.aggregation_temporality, sum.is_monotonic), (DELTA, true));
        let Some(Data::Sum(memory)) = &metrics["container.memory.usage"].data else { panic!("{metrics:?}") };
        assert_eq!((memory.aggregation_temporality, memory.is_monotonic), (CUMULATIVE, false));
    }

    /// The values of all sums, ascending.
    fn changes(payloads: &[Payload]) -> Vec<f64> {
        let requests = payloads.iter().map(|payload| ExportRequest::decode(&*payload.body).unwrap());
        let metrics = requests.flat_map(|request| request.resource_metrics);
        let metrics = metrics.flat_map(|resource| resource.scope_metrics).flat_map(|scope| scope.metrics);
        let points = metrics.filter_map(|metric| match metric.data {
            Some(Data::Sum(sum)) => Some(sum.data_points),
            _ => None,
        });
        let value = |point: NumberPoint| point.value.map(|Number::Double(value)| value);
        let mut all: Vec<f64> = points.flatten().filter_map(value).collect();
        all.sort_unstable_by(f64::total_cmp);
        all
    }

    /// Each restart sent once more what the running jobs had reported.
    #[test]
    fn jobs_that_ran_before_are_counted_from_their_first_collection() {
        static FRAMES: Def = Def::counter("wattcast_stream_frames_total", &["stream"], "Frames.");
        let mut encoder = encoder(false, Kept::Changes);
        let mut at_s = 0;
        let mut collect = |jobs: &[(&str, f64)]| -> Vec<f64> {
            at_s += 10;
            let mut frames = Family::new(&FRAMES);
            jobs.iter().for_each(|(stream, count)| frames.push(&[*stream], *count));
            let page = render("t", [frames]).unwrap();
            changes(&encoder.encode(&rows::read([&page]).unwrap(), at_s * 1_000_000_000))
        };
        assert_eq!(collect(&[]), [0.0; 0]);
        assert_eq!(collect(&[("a", 9000.0)]), [0.0; 0], "it began earlier");
        assert_eq!(collect(&[("a", 9250.0), ("b", 100.0)]), [100.0, 250.0]);
    }

    /// Each restart sent once more what containers and servers had counted since their own start.
    #[test]
    fn older_counters_are_counted_from_their_first_collection() {
        static NETWORK: Def = Def::counter("wattcast_container_network_bytes_total", &["container", "id"], "Bytes.");
        static STREAMS: Def = Def::gauge("wattcast_ingest_streams", &["server"], "Streams.");
        static SENT: Def =
            Def::counter("wattcast_ingest_stream_sent_bytes_total", &["server", "app", "stream"], "Bytes.");
        let mut encoder = encoder(false, Kept::Changes);
        let mut at_s = 0;
        let mut collect = |containers: &[(&str, f64)], streams: &[(&str, &str, f64)]| -> Vec<f64> {
            at_s += 10;
            let (mut network, mut sent, mut servers) =
                (Family::new(&NETWORK), Family::new(&SENT), Family::new(&STREAMS));
            containers.iter().for_each(|(id, bytes)| network.push(&["cam", *id], *bytes));
            streams.iter().for_each(|(server, stream, bytes)| sent.push(&[*server, "live", *stream], *bytes));
            let names: BTreeSet<&str> = streams.iter().map(|(server, ..)| *server).collect();
            names.iter().for_each(|server| servers.push(&[*server], 1.0));
            let page = render("t", [network, servers, sent]).unwrap();
            changes(&encoder.encode(&rows::read([&page]).unwrap(), at_s * 1_000_000_000))
        };
        assert_eq!(collect(&[], &[]), [0.0; 0]);
        assert_eq!(collect(&[("0a", 500.0)], &[("srs", "a", 900.0)]), [0.0; 0], "they began earlier");
        // A container and a stream that are new, and a server that answers for the first time.
        let now =
            collect(&[("0a", 501.0), ("0b", 30.0)], &[("srs", "a", 902.0), ("srs", "b", 40.0), ("mtx", "c", 7.0)]);
        assert_eq!(now, [1.0, 2.0, 30.0, 40.0]);
        assert_eq!(collect(&[("0b", 31.0)], &[("mtx", "c", 10.0)]), [1.0, 3.0]);
    }

    /// Its whole total was sent as a change.
    #[test]
    fn a_board_that_is_found_after_a_restart_continues_its_total() {
        let mut encoder = encoder(false, Kept::Changes);
        let page = |boards: &[f64]| {
            let mut zones = Family::new(&ZONES).with(&["0", "package", "perf"], 1.0);
            boards.iter().for_each(|joules| zones.push(&["GPU-1", "gpu", "nvml"], *joules));
            let memory = Family::new(&MEMORY).with(&["cam", "0a"], 4096.0);
            render("t", [zones, memory, Family::new(&RESTARTS).with(&[], 1.0)]).unwrap()
        };
        let joules = |request: &ExportRequest| -> Vec<f64> {
            let metrics = metrics_of(request, false);
            let Some(Data::Sum(sum)) = &metrics["hw.energy"].data else { panic!("{metrics:?}") };
            let value = |point: &NumberPoint| match point.value {
                Some(Number::Double(joules)) => joules,
                None => panic!("{point:?}"),
            };
            sum.data_points.iter().map(value).collect()
        };
        request(&mut encoder, &page(&[]), 9_000_000_000);
        assert_eq!(joules(&request(&mut encoder, &page(&[500.0]), 10_000_000_000)), [0.0]);
        assert_eq!(joules(&request(&mut encoder, &page(&[502.0]), 11_000_000_000)), [0.0, 2.0]);
    }

    /// Its whole total was sent as a change once more.
    #[test]
    fn an_image_that_becomes_known_later_starts_no_total() {
        let mut encoder = encoder(false, Kept::Changes);
        let page = |name: &str, image: &str, joules: f64| {
            render("t", [Family::new(&ENERGY).with(&[name, "0a", image, "package"], joules)]).unwrap()
        };
        request(&mut encoder, &page("0a", "", 100.0), 9_000_000_000);
        let second = request(&mut encoder, &page("cam", "nginx:1", 101.5), 10_000_000_000);
        assert_eq!(point(&metrics_of(&second, true)["wattcast.container.energy"]), (9_000_000_000, 1.5));
    }

    #[test]
    fn body_is_compressed_and_split() {
        let mut family = Family::new(&ENERGY);
        for id in 0..2 * MAX_POINTS {
            family.push(&["cam", &id.to_string(), "", "package"], 1.0);
        }
        let page = render("t", [family]).unwrap();
        let families = rows::read([&page]).unwrap();
        let payloads = encoder(true, Kept::Totals).encode(&families, 9_000_000_000);
        assert_eq!(payloads.iter().map(|payload| payload.points).collect::<Vec<_>>(), [5000, 5000]);
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&*payloads[1].body).read_to_end(&mut plain).unwrap();
        assert_eq!(ExportRequest::decode(&*plain).unwrap().resource_metrics.len(), MAX_POINTS);
    }

    #[test]
    fn the_metrics_of_one_resource_are_split_too() {
        static WATTS: Def = Def::gauge("wattcast_scenario_watts", &["scenario"], "Power.");
        static COST: Def = Def::gauge("wattcast_scenario_cost", &["scenario"], "Cost.");
        let families = [&WATTS, &COST].map(|def| {
            let mut family = Family::new(def);
            (0..MAX_POINTS).for_each(|scenario| family.push(&[&scenario.to_string()], 1.0));
            family
        });
        let page = render("t", families).unwrap();
        let payloads = encoder(false, Kept::Totals).encode(&rows::read([&page]).unwrap(), 9_000_000_000);
        assert_eq!(payloads.iter().map(|payload| payload.points).collect::<Vec<_>>(), [5000, 5000]);
        for payload in &payloads {
            let request = ExportRequest::decode(&*payload.body).unwrap();
            assert_eq!(metrics_of(&request, false).len(), 1);
        }
    }
}
