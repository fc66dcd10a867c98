//! Metric definitions, and families: a definition with the rows of one snapshot.

use std::ops::Range;

use prometheus::proto::{self, LabelPair};

/// The Prometheus metric types that Wattcast uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A value that only grows while its series exists.
    Counter,
    /// A value that goes up and down.
    Gauge,
    /// Cumulative buckets.
    Histogram,
}

impl Kind {
    /// The type as written in a `# TYPE` line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The naming layer of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// A name that follows the Prometheus naming rules and passes `promtool check metrics`.
    Primary,
    /// A name of the legacy exporters, kept for existing queries (compat layer).
    Compat,
}

/// The definition of a metric: the only source of its page rows, its documentation and its lint
/// checks.
#[derive(Debug)]
pub struct Def {
    /// The full metric name, `wattcast_power_watts`.
    pub name: &'static str,
    /// The metric type.
    pub kind: Kind,
    /// The HELP text: what a row means, with its unit and its source.
    pub help: &'static str,
    /// Label names, in the order in which rows pass their values.
    pub labels: &'static [&'static str],
    /// The naming layer.
    pub layer: Layer,
}

impl Def {
    /// A counter of the primary layer.
    #[must_use]
    pub const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Self {
        Self { name, kind: Kind::Counter, help, labels, layer: Layer::Primary }
    }

    /// A gauge of the primary layer.
    #[must_use]
    pub const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Self {
        Self { name, kind: Kind::Gauge, help, labels, layer: Layer::Primary }
    }

    /// A histogram of the primary layer.
    #[must_use]
    pub const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Self {
        Self { name, kind: Kind::Histogram, help, labels, layer: Layer::Primary }
    }

    /// Moves the definition to the compat layer.
    #[must_use]
    pub const fn compat(self) -> Self {
        Self { layer: Layer::Compat, ..self }
    }
}

/// The content of one histogram row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buckets {
    /// `(upper bound, cumulative count)`, ascending; `+Inf` is implied by `count`.
    pub cumulative: Vec<(f64, u64)>,
    /// Number of observations.
    pub count: u64,
    /// Sum of the observations.
    pub sum: f64,
}

/// The families of a page whose rows arrive source by source instead of family by family.
///
/// ```
/// use metrics::family::{Def, Families};
///
/// static UP: Def = Def::gauge("source_up", &["source"], "1 if the source is available.");
/// static TEMPERATURE: Def =
///     Def::gauge("source_celsius", &["source"], "Temperature of the source.");
///
/// static DEFS: [&Def; 2] = [&UP, &TEMPERATURE];
///
/// let mut families = Families::new(&DEFS);
/// families.push(&UP, &["perf"], 1.0);
/// families.push(&TEMPERATURE, &["perf"], 54.0);
/// families.push(&UP, &["msr"], 0.0);
/// let rows: Vec<usize> = families.into_vec().iter().map(|family| family.rows().count()).collect();
/// assert_eq!(rows, [2, 1]);
/// ```
pub struct Families {
    defs: &'static [&'static Def],
    families: Vec<Family>,
}

impl Families {
    /// One empty family for each definition, in that order.
    #[must_use]
    pub fn new(defs: &'static [&'static Def]) -> Self {
        Self { defs, families: defs.iter().map(|def| Family::new(def)).collect() }
    }

    /// Adds a row to the family of `def`, which must be one of the definitions. `labels` are the
    /// label values in the order of the definition.
    pub fn push(&mut self, def: &'static Def, labels: &[&str], value: f64) {
        self.push_with_extra(def, labels, &[], value);
    }

    /// Adds a row with labels beyond those of the definition, see [`Family::push_with_extra`].
    pub fn push_with_extra(&mut self, def: &'static Def, labels: &[&str], extra: &[(&'static str, &str)], value: f64) {
        let index = self.defs.iter().position(|known| known.name == def.name);
        debug_assert!(index.is_some(), "{} is not a definition of this page", def.name);
        if let Some(family) = index.and_then(|index| self.families.get_mut(index)) {
            family.push_with_extra(labels, extra, value);
        }
    }

    /// The families, in the order of the definitions.
    #[must_use]
    pub fn into_vec(self) -> Vec<Family> {
        self.families
    }
}

/// A definition with its rows.
///
/// ```
/// use metrics::{family::{Def, Family}, page};
///
/// static POWER: Def =
///     Def::gauge("power_watts", &["zone"], "Mean power of the zone in the last tick.");
///
/// let family = Family::new(&POWER).with(&["package"], 12.5);
/// let page = page::render("energy", [family])?;
/// assert!(page.text().ends_with(b"\npower_watts{zone=\"package\"} 12.5\n"));
/// # Ok::<(), page::Error>(())
/// ```
pub struct Family {
    def: &'static Def,
    /// The label values of all rows, one after another: one allocation for thousands of them.
    text: String,
    /// The end of each value in it.
    ends: Vec<usize>,
    /// Names of the labels beyond those of the definition, of all rows.
    extra: Vec<&'static str>,
    /// The buckets of all rows.
    cumulative: Vec<(f64, u64)>,
    rows: Vec<Row>,
}

/// A row. It begins where the one before ends, in each list of its family.
struct Row {
    ends: usize,
    extra: usize,
    cumulative: usize,
    /// The value; of a histogram the sum of the observations.
    value: f64,
    /// Number of observations of a histogram.
    count: u64,
}

impl Family {
    /// A family without rows. A page leaves empty families out.
    #[must_use]
    pub fn new(def: &'static Def) -> Self {
        let (text, ends, extra) = (String::new(), Vec::new(), Vec::new());
        Self { def, text, ends, extra, cumulative: Vec::new(), rows: Vec::new() }
    }

    /// The definition of the family.
    #[must_use]
    pub fn def(&self) -> &'static Def {
        self.def
    }

    /// Adds a row and returns the family. `labels` are the label values in the order of the
    /// definition.
    #[must_use]
    pub fn with(mut self, labels: &[&str], value: f64) -> Self {
        self.push(labels, value);
        self
    }

    /// Adds a row. `labels` are the label values in the order of the definition.
    pub fn push(&mut self, labels: &[&str], value: f64) {
        self.push_with_extra(labels, &[], value);
    }

    /// Adds a row with labels beyond those of the definition, which most rows would leave empty.
    pub fn push_with_extra(&mut self, labels: &[&str], extra: &[(&'static str, &str)], value: f64) {
        debug_assert_ne!(self.def.kind, Kind::Histogram, "{} is a histogram: use push_buckets", self.def.name);
        self.push_row(labels, extra, value, 0);
    }

    /// Adds a row of a histogram. `labels` are the label values in the order of the definition.
    pub fn push_buckets(&mut self, labels: &[&str], buckets: &Buckets) {
        self.push_buckets_with_extra(labels, &[], buckets);
    }

    /// Adds a row of a histogram with labels beyond those of the definition.
    pub fn push_buckets_with_extra(&mut self, labels: &[&str], extra: &[(&'static str, &str)], buckets: &Buckets) {
        debug_assert_eq!(self.def.kind, Kind::Histogram, "{}", self.def.name);
        self.cumulative.extend_from_slice(&buckets.cumulative);
        self.push_row(labels, extra, buckets.sum, buckets.count);
    }

    fn push_row(&mut self, values: &[&str], extra: &[(&'static str, &str)], value: f64, count: u64) {
        debug_assert_eq!(values.len(), self.def.labels.len(), "labels of {}", self.def.name);
        for value in values.iter().chain(extra.iter().map(|(_, value)| value)) {
            self.text.push_str(value);
            self.ends.push(self.text.len());
        }
        self.extra.extend(extra.iter().map(|(name, _)| *name));
        let (ends, extra, cumulative) = (self.ends.len(), self.extra.len(), self.cumulative.len());
        self.rows.push(Row { ends, extra, cumulative, value, count });
    }

    /// The rows: values of the labels of the definition, and the value. Empty for a histogram.
    pub fn rows(&self) -> impl Iterator<Item = (Vec<&str>, f64)> {
        let rows = (0..self.rows.len()).filter(|_| self.def.kind != Kind::Histogram);
        rows.map(|at| (self.values(at).take(self.def.labels.len()).collect(), self.rows[at].value))
    }

    /// The label values of a row, with those beyond the definition.
    fn values(&self, at: usize) -> impl Iterator<Item = &str> {
        let first = self.before(at, |row| row.ends);
        (first..self.rows[at].ends).map(|value| {
            let start = value.checked_sub(1).map_or(0, |before| self.ends[before]);
            &self.text[start..self.ends[value]]
        })
    }

    /// Where a row begins in a list.
    fn before(&self, at: usize, end: impl Fn(&Row) -> usize) -> usize {
        at.checked_sub(1).map_or(0, |before| end(&self.rows[before]))
    }

    /// True if the family has no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Some of the rows, as the encoder wants them, which takes an allocation for each label.
    pub(crate) fn to_proto(&self, rows: Range<usize>) -> proto::MetricFamily {
        let mut family = proto::MetricFamily::default();
        family.set_name(self.def.name.to_owned());
        family.set_field_type(match self.def.kind {
            Kind::Counter => proto::MetricType::COUNTER,
            Kind::Gauge => proto::MetricType::GAUGE,
            Kind::Histogram => proto::MetricType::HISTOGRAM,
        });
        family.set_metric(rows.map(|at| self.metric(at)).collect());
        family
    }

    fn metric(&self, at: usize) -> proto::Metric {
        let row = &self.rows[at];
        let extra = &self.extra[self.before(at, |row| row.extra)..row.extra];
        let names = self.def.labels.iter().chain(extra);
        let pairs = names.zip(self.values(at)).map(|(name, value)| label_pair(name, value));
        let mut metric = proto::Metric::from_label(pairs.collect());
        match self.def.kind {
            Kind::Counter => {
                let mut counter = proto::Counter::default();
                counter.set_value(row.value);
                metric.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(row.value);
                metric.set_gauge(gauge);
            }
            Kind::Histogram => {
                let buckets = &self.cumulative[self.before(at, |row| row.cumulative)..row.cumulative];
                let mut histogram = proto::Histogram::default();
                histogram.set_sample_count(row.count);
                histogram.set_sample_sum(row.value);
                histogram.set_bucket(buckets.iter().map(bucket).collect());
                metric.set_histogram(histogram);
            }
        }
        metric
    }
}

fn bucket((bound, count): &(f64, u64)) -> proto::Bucket {
    let mut bucket = proto::Bucket::default();
    bucket.set_upper_bound(*bound);
    bucket.set_cumulative_count(*count);
    bucket
}

fn label_pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}
