//! Names, units and attributes of OpenTelemetry for the metrics of the pages: those of its semantic
//! conventions where they have one (hardware, container and process metrics), else the name of the
//! page below `wattcast.`.

use metrics::family::{Def, Kind, Layer};

/// How the data points of a metric are to be added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// A sum that never falls.
    Counter,
    /// A sum that falls too: bytes in use.
    UpDownCounter,
    /// Not to be added up.
    Gauge,
    /// A distribution.
    Histogram,
}

/// A metric of OpenTelemetry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// The name, `hw.energy`.
    pub name: String,
    /// The unit in UCUM's notation; empty for none.
    pub unit: &'static str,
    /// The type of the metric.
    pub shape: Shape,
}

/// A row with its metric and its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRow {
    /// The metric.
    pub metric: Named,
    /// Names and values.
    pub attributes: Vec<(String, String)>,
}

/// The container that a row belongs to: the labels `container` and `id`.
pub type ContainerKey = (String, String);

/// The labels that become attributes of the container's resource.
pub(crate) const RESOURCE_LABELS: [(&str, &str); 6] = [
    ("container", "container.name"),
    ("id", "container.id"),
    ("image", "container.image.name"),
    ("runtime", "container.runtime.name"),
    ("pod", "k8s.pod.name"),
    ("namespace", "k8s.namespace.name"),
];

/// Units by the last word of a name.
const UNITS: [(&str, &str); 8] = [
    ("_joules", "J"),
    ("_watts", "W"),
    ("_seconds", "s"),
    ("_bytes", "By"),
    ("_celsius", "Cel"),
    ("_hertz", "Hz"),
    ("_grams", "g"),
    ("_ratio", "1"),
];

/// First words that are namespaces of several metrics.
const NAMESPACES: [&str; 7] = ["container", "export", "gpu", "ingest", "reference", "stream", "target"];

/// Names that keep their unit, because they differ in nothing else.
const KEEP_UNIT: [&str; 1] = ["energy_uncertainty"];

/// Metrics that the conventions name: name on the page, name, unit, type.
const CONVENTIONS: [(&str, &str, &str, Shape); 9] = [
    ("wattcast_container_cpu_seconds_total", "container.cpu.time", "s", Shape::Counter),
    ("wattcast_container_memory_bytes", "container.memory.usage", "By", Shape::UpDownCounter),
    ("wattcast_container_memory_working_set_bytes", "container.memory.working_set", "By", Shape::UpDownCounter),
    ("wattcast_container_network_bytes_total", "container.network.io", "By", Shape::Counter),
    ("wattcast_container_block_bytes_total", "container.disk.io", "By", Shape::Counter),
    ("process_cpu_seconds_total", "process.cpu.time", "s", Shape::Counter),
    ("process_resident_memory_bytes", "process.memory.usage", "By", Shape::UpDownCounter),
    ("process_virtual_memory_bytes", "process.memory.virtual", "By", Shape::UpDownCounter),
    ("process_open_fds", "process.unix.file_descriptor.count", "{file_descriptor}", Shape::UpDownCounter),
];

/// Since when a counter counts that began before this program, which has then sent a part of it
/// already, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// The start of its container.
    Container,
    /// The start of its media server, or of a stream of it.
    Server,
    /// The load of its driver.
    Driver,
    /// The start of an ffmpeg job, which reports totals.
    Job,
}

/// The counters that can have begun before this program. All others are zero at its start, or
/// continue over a restart with the energy totals.
const OLDER: [(&str, Since); 17] = [
    ("wattcast_container_network_bytes_total", Since::Container),
    ("wattcast_container_block_bytes_total", Since::Container),
    ("wattcast_gpu_pcie_replays_total", Since::Driver),
    ("nginx_rtmp_accepted_connections_total", Since::Server),
    ("nginx_rtmp_received_bytes_total", Since::Server),
    ("nginx_rtmp_sent_bytes_total", Since::Server),
    ("nginx_rtmp_stream_received_bytes_total", Since::Server),
    ("nginx_rtmp_stream_sent_bytes_total", Since::Server),
    ("wattcast_ingest_received_bytes_total", Since::Server),
    ("wattcast_ingest_sent_bytes_total", Since::Server),
    ("wattcast_ingest_stream_received_bytes_total", Since::Server),
    ("wattcast_ingest_stream_sent_bytes_total", Since::Server),
    ("wattcast_stream_frames_total", Since::Job),
    ("wattcast_stream_media_seconds_total", Since::Job),
    ("wattcast_stream_dropped_frames_total", Since::Job),
    ("wattcast_stream_duplicated_frames_total", Since::Job),
    ("wattcast_stream_written_bytes_total", Since::Job),
];

/// Rows that a media server has whenever it answers, also without a stream.
const ANSWERS: [&str; 2] = ["nginx_rtmp_connections", "wattcast_ingest_streams"];

/// Since when a counter counts; `None` for one of this program.
pub(crate) fn since(name: &str) -> Option<Since> {
    OLDER.iter().find(|(known, _)| *known == name).map(|(_, since)| *since)
}

/// The media server of a row.
pub(crate) fn server_of(name: &str, labels: &[(String, String)]) -> String {
    let page = if name.starts_with("nginx_rtmp_") { "nginx_rtmp" } else { "ingest" };
    format!("{page} {}", label(labels, "server"))
}

/// The media server that this row shows to have answered.
pub(crate) fn answered(name: &str, labels: &[(String, String)]) -> Option<String> {
    ANSWERS.contains(&name).then(|| server_of(name, labels))
}

/// Names that this crate treats in a special way and that are no definition of a program; for a
/// test of the definitions of both programs. `prefixes` are those of the names of one program.
#[must_use]
pub fn unknown(defs: &[&Def], prefixes: &[&str]) -> Vec<&'static str> {
    let special = OLDER.iter().map(|(name, _)| *name).chain(ANSWERS);
    let of_program = special.filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
    of_program.filter(|name| defs.iter().all(|def| def.name != *name)).collect()
}

/// The metric and the attributes of a row. Labels of its container are left out: they are
/// attributes of the resource ([`container_of`]).
#[must_use]
pub fn row(def: &Def, labels: &[(String, String)]) -> NamedRow {
    match def.name {
        "wattcast_energy_joules_total" => hardware(def, labels, "energy", "J"),
        "wattcast_power_watts" => hardware(def, labels, "power", "W"),
        "wattcast_reference_energy_joules_total" => meter(def, labels, "hw.host.energy", "J"),
        "wattcast_reference_power_watts" => meter(def, labels, "hw.host.power", "W"),
        _ => NamedRow { metric: named(def), attributes: attributes(def, labels) },
    }
}

/// The metric of a definition whose rows all have the same.
fn named(def: &Def) -> Named {
    if let Some((_, name, unit, shape)) = CONVENTIONS.iter().find(|(page, ..)| *page == def.name) {
        return Named { name: (*name).to_owned(), unit, shape: *shape };
    }
    let (prefix, rest) = match def.name.split_once('_') {
        Some((prefix, rest)) => (prefix, rest),
        None => ("wattcast", def.name),
    };
    let rest = rest.strip_suffix("_total").unwrap_or(rest);
    let unit = UNITS.iter().find_map(|(word, unit)| Some((rest.strip_suffix(*word)?, *unit)));
    let (base, unit) = unit.unwrap_or((rest, ""));
    let base = if KEEP_UNIT.contains(&base) { rest } else { base };
    let namespace = NAMESPACES.iter().find_map(|space| Some((*space, base.strip_prefix(*space)?.strip_prefix('_')?)));
    let name = match namespace {
        Some((space, base)) => format!("{prefix}.{space}.{base}"),
        None => format!("{prefix}.{base}"),
    };
    Named { name, unit, shape: shape(def.kind) }
}

fn shape(kind: Kind) -> Shape {
    match kind {
        Kind::Counter => Shape::Counter,
        Kind::Gauge => Shape::Gauge,
        Kind::Histogram => Shape::Histogram,
    }
}

fn label<'a>(labels: &'a [(String, String)], name: &str) -> &'a str {
    labels.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// A zone of the machine. The conventions keep the energy of the whole host apart from that of its
/// components, so that the components can be added up; zones that a component contains (core,
/// uncore) are therefore no `hw.energy`.
fn hardware(def: &Def, labels: &[(String, String)], what: &str, unit: &'static str) -> NamedRow {
    let (package, zone) = (label(labels, "package"), label(labels, "zone"));
    let (name, kind, id) = match zone {
        "package" => (format!("hw.{what}"), "cpu", format!("package-{package}")),
        "dram" => (format!("hw.{what}"), "memory", format!("dram-{package}")),
        "gpu" => (format!("hw.{what}"), "gpu", package.to_owned()),
        "psys" | "machine" => (format!("hw.host.{what}"), "", zone.to_owned()),
        _ => return NamedRow { metric: named(def), attributes: attributes(def, labels) },
    };
    let mut attributes = vec![pair("hw.id", &id), pair("wattcast.source", label(labels, "source"))];
    if !kind.is_empty() {
        attributes.push(pair("hw.type", kind));
    }
    NamedRow { metric: Named { name, unit, shape: shape(def.kind) }, attributes }
}

/// A meter of the whole machine.
fn meter(def: &Def, labels: &[(String, String)], name: &str, unit: &'static str) -> NamedRow {
    let attributes = vec![pair("hw.id", label(labels, "meter")), pair("wattcast.source", label(labels, "source"))];
    NamedRow { metric: Named { name: name.to_owned(), unit, shape: shape(def.kind) }, attributes }
}

/// The labels as attributes; empty ones are absent.
fn attributes(def: &Def, labels: &[(String, String)]) -> Vec<(String, String)> {
    let in_resource = container_of(labels).is_some();
    let is_own = |label: &str| !in_resource || RESOURCE_LABELS.iter().all(|(known, _)| *known != label);
    let own = labels.iter().filter(|(label, value)| is_own(label) && !value.is_empty());
    own.map(|(label, value)| (attribute(def, label), value.clone())).collect()
}

fn attribute(def: &Def, label: &str) -> String {
    match (def.name, label) {
        ("wattcast_container_network_bytes_total", "direction") => "network.io.direction".to_owned(),
        ("wattcast_container_block_bytes_total", "direction") => "disk.io.direction".to_owned(),
        _ => format!("wattcast.{label}"),
    }
}

/// The container of a row; `None` for a row of the host.
#[must_use]
pub fn container_of(labels: &[(String, String)]) -> Option<ContainerKey> {
    let key = (label(labels, "container").to_owned(), label(labels, "id").to_owned());
    (!key.0.is_empty() || !key.1.is_empty()).then_some(key)
}

/// The attributes of a container's resource that this row knows.
#[must_use]
pub fn container_attributes(labels: &[(String, String)]) -> Vec<(&'static str, String)> {
    let known = RESOURCE_LABELS.iter().map(|(name, attribute)| (*attribute, label(labels, name)));
    known.filter(|(_, value)| !value.is_empty()).map(|(attribute, value)| (attribute, value.to_owned())).collect()
}

/// Pairs of definitions that have the same name here, so that a receiver would mix their rows; for
/// a test of the definitions of a program. Legacy names are not exported.
#[must_use]
pub fn conflicts(defs: &[&Def]) -> Vec<String> {
    let mut known: Vec<(Named, &str)> = Vec::new();
    let mut found = Vec::new();
    for def in defs.iter().filter(|def| def.layer == Layer::Primary) {
        let new = named(def);
        if let Some((_, other)) = known.iter().find(|(old, other)| old.name == new.name && *other != def.name) {
            found.push(format!("{} and {other} are both {}", def.name, new.name));
        }
        known.push((new, def.name));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZONE: &[&str] = &["package", "zone", "source"];
    static ENERGY: Def = Def::counter("wattcast_energy_joules_total", ZONE, "Energy.");
    static POWER: Def = Def::gauge("wattcast_power_watts", ZONE, "Power.");
    static CONTAINER: Def = Def::counter("wattcast_container_energy_joules_total", &["container", "id", "zone"], "E.");

    fn labels(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| pair(name, value)).collect()
    }

    #[test]
    fn parts_of_the_host_are_never_added_to_the_host() {
        let name = |def: &Def, zone: &str| {
            row(def, &labels(&[("package", "0"), ("zone", zone), ("source", "perf")])).metric.name
        };
        for (zone, energy, power) in [
            ("package", "hw.energy", "hw.power"),
            ("dram", "hw.energy", "hw.power"),
            ("gpu", "hw.energy", "hw.power"),
            ("psys", "hw.host.energy", "hw.host.power"),
            ("machine", "hw.host.energy", "hw.host.power"),
            ("core", "wattcast.energy", "wattcast.power"),
            ("a zone of a later version", "wattcast.energy", "wattcast.power"),
        ] {
            assert_eq!((name(&ENERGY, zone), name(&POWER, zone)), (energy.to_owned(), power.to_owned()), "{zone}");
        }
        let cpu = row(&ENERGY, &labels(&[("package", "1"), ("zone", "package"), ("source", "model")]));
        assert_eq!((cpu.metric.unit, cpu.metric.shape), ("J", Shape::Counter));
        let expected = [pair("hw.id", "package-1"), pair("wattcast.source", "model"), pair("hw.type", "cpu")];
        assert_eq!(cpu.attributes, expected);
    }

    #[test]
    fn labels_of_the_container_are_attributes_of_its_resource() {
        let all = labels(&[("container", "cam"), ("id", "0a"), ("zone", "package"), ("pod", "p"), ("namespace", "n")]);
        let named = row(&CONTAINER, &all);
        assert_eq!((&*named.metric.name, named.metric.unit), ("wattcast.container.energy", "J"));
        assert_eq!(named.attributes, [pair("wattcast.zone", "package")]);
        assert_eq!(container_of(&all), Some(("cam".to_owned(), "0a".to_owned())));
        let names: Vec<&str> = container_attributes(&all).iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["container.name", "container.id", "k8s.pod.name", "k8s.namespace.name"]);
        assert_eq!(container_of(&labels(&[("container", ""), ("id", "")])), None);
    }

    #[test]
    fn units_are_fields_and_not_parts_of_names() {
        for (page, kind, name, unit) in [
            ("wattcast_tick_seconds", Kind::Gauge, "wattcast.tick", "s"),
            ("wattcast_gpu_power_limit_watts", Kind::Gauge, "wattcast.gpu.power_limit", "W"),
            ("wattcast_package_awake_ratio", Kind::Gauge, "wattcast.package_awake", "1"),
            ("wattcast_energy_uncertainty_ratio", Kind::Gauge, "wattcast.energy_uncertainty_ratio", "1"),
            ("wattcast_energy_uncertainty_watts", Kind::Gauge, "wattcast.energy_uncertainty_watts", "W"),
            ("wattcast_source_up", Kind::Gauge, "wattcast.source_up", ""),
            ("process_max_fds", Kind::Gauge, "process.max_fds", ""),
            ("process_cpu_seconds_total", Kind::Counter, "process.cpu.time", "s"),
        ] {
            let def = Def { kind, ..Def::gauge(page, &[], "") };
            let named = named(&def);
            assert_eq!((&*named.name, named.unit), (name, unit), "{page}");
        }
    }

    #[test]
    fn a_shared_name_is_reported() {
        static JOULES: Def = Def::gauge("wattcast_spent_joules", &[], "");
        static WATTS: Def = Def::gauge("wattcast_spent_watts", &[], "");
        assert_eq!(
            conflicts(&[&JOULES, &JOULES, &WATTS]),
            ["wattcast_spent_watts and wattcast_spent_joules are both wattcast.spent"]
        );
    }
}
