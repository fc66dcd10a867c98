//! One definition per metric, and the rows that a snapshot gives it.

use prometheus::proto::{self, LabelPair};

/// Prometheus' metric types, as far as we use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while its series exists.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Cumulative buckets.
    Histogram,
}

impl Kind {
    /// The word in a `# TYPE` line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Which of the two layers of names a metric belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Follows Prometheus' naming rules; lints clean.
    Primary,
    /// A name that users of the exporters we replace already query.
    Seed,
}

/// The definition of a metric. Its page rows, its documentation and its lint all come from here.
#[derive(Debug)]
pub struct Def {
    /// The full name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// What a row means, with its unit and its source.
    pub help: &'static str,
    /// Label names, in the order in which rows give the values.
    pub labels: &'static [&'static str],
    /// Primary or kept for old users.
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

    /// The same metric, kept for the users of the exporters we replace.
    #[must_use]
    pub const fn seed(self) -> Self {
        Self { layer: Layer::Seed, ..self }
    }
}

/// A histogram's content: upper bounds with how many values fell at or below each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buckets {
    /// `(upper bound, cumulative count)`, ascending; `+Inf` is implied by `count`.
    pub cumulative: Vec<(f64, u64)>,
    /// All values.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
}

/// The families of a page whose rows come one source at a time, and not one family at a time.
pub struct Families {
    defs: &'static [&'static Def],
    all: Vec<Family>,
}

impl Families {
    /// Without rows, in the order of the definitions.
    #[must_use]
    pub fn new(defs: &'static [&'static Def]) -> Self {
        Self { defs, all: defs.iter().map(|def| Family::new(def)).collect() }
    }

    /// Adds a row to the family of one of the definitions. `labels` are values in the order of the definition.
    pub fn push(&mut self, def: &'static Def, labels: &[&str], value: f64) {
        let at = self.defs.iter().position(|known| known.name == def.name);
        debug_assert!(at.is_some(), "{} is not of this page", def.name);
        if let Some(family) = at.and_then(|at| self.all.get_mut(at)) {
            family.push(labels, value);
        }
    }

    /// In the order of the definitions.
    #[must_use]
    pub fn into_vec(self) -> Vec<Family> {
        self.all
    }
}

/// A definition with its rows.
pub struct Family {
    def: &'static Def,
    rows: Vec<proto::Metric>,
}

impl Family {
    /// A family without rows; it is left out of the page while it has none.
    #[must_use]
    pub fn new(def: &'static Def) -> Self {
        Self { def, rows: Vec::new() }
    }

    /// The definition behind the rows.
    #[must_use]
    pub fn def(&self) -> &'static Def {
        self.def
    }

    /// Adds a row. `labels` are values in the order of the definition.
    #[must_use]
    pub fn with(mut self, labels: &[&str], value: f64) -> Self {
        self.push(labels, value);
        self
    }

    /// Adds a row. `labels` are values in the order of the definition.
    pub fn push(&mut self, labels: &[&str], value: f64) {
        self.push_more(labels, &[], value);
    }

    /// Adds a row that has more labels than its family: what only some have would be empty in most.
    pub fn push_more(&mut self, labels: &[&str], more: &[(&'static str, &str)], value: f64) {
        let mut pairs = self.pairs(labels);
        pairs.extend(more.iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        }));
        let mut row = proto::Metric::from_label(pairs);
        match self.def.kind {
            Kind::Counter => {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                row.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                row.set_gauge(gauge);
            }
            Kind::Histogram => debug_assert!(false, "{} is a histogram: push_buckets", self.def.name),
        }
        self.rows.push(row);
    }

    /// Adds a row of a histogram.
    pub fn push_buckets(&mut self, labels: &[&str], buckets: &Buckets) {
        debug_assert_eq!(self.def.kind, Kind::Histogram, "{}", self.def.name);
        let mut row = proto::Metric::from_label(self.pairs(labels));
        let mut histogram = proto::Histogram::default();
        histogram.set_sample_count(buckets.count);
        histogram.set_sample_sum(buckets.sum);
        histogram.set_bucket(
            buckets
                .cumulative
                .iter()
                .map(|(bound, count)| {
                    let mut bucket = proto::Bucket::default();
                    bucket.set_upper_bound(*bound);
                    bucket.set_cumulative_count(*count);
                    bucket
                })
                .collect(),
        );
        row.set_histogram(histogram);
        self.rows.push(row);
    }

    fn pairs(&self, values: &[&str]) -> Vec<LabelPair> {
        debug_assert_eq!(values.len(), self.def.labels.len(), "labels of {}", self.def.name);
        self.def
            .labels
            .iter()
            .zip(values)
            .map(|(name, value)| {
                let mut pair = LabelPair::default();
                pair.set_name((*name).to_owned());
                pair.set_value((*value).to_owned());
                pair
            })
            .collect()
    }

    /// The rows as they will be rendered: values of the family's labels, and the value. Histograms have none.
    pub fn rows(&self) -> impl Iterator<Item = (Vec<&str>, f64)> {
        self.rows.iter().filter(|_| self.def.kind != Kind::Histogram).map(|row| {
            let labels = row.get_label().iter().take(self.def.labels.len()).map(LabelPair::value).collect();
            let value = match self.def.kind {
                Kind::Counter => row.get_counter().get_value(),
                Kind::Gauge | Kind::Histogram => row.get_gauge().get_value(),
            };
            (labels, value)
        })
    }

    /// True while nothing was pushed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn into_proto(self) -> proto::MetricFamily {
        let mut family = proto::MetricFamily::default();
        family.set_name(self.def.name.to_owned());
        family.set_help(self.def.help.to_owned());
        family.set_field_type(match self.def.kind {
            Kind::Counter => proto::MetricType::COUNTER,
            Kind::Gauge => proto::MetricType::GAUGE,
            Kind::Histogram => proto::MetricType::HISTOGRAM,
        });
        family.set_metric(self.rows);
        family
    }
}
