//! The protobuf messages that are sent, with the fields that are used: of OTLP
//! (opentelemetry-proto 1.x, `metrics.proto`) and of remote write 1.0 (Prometheus'
//! `prompb/remote.proto`). Field numbers never change in protobuf; other fields are skipped when a
//! message is decoded.
//!
//! Not the crates of OpenTelemetry: they come with an SDK that aggregates on its own, and the
//! figures here are final.

use prost::{Message, Oneof};

/// [`Sum::aggregation_temporality`]: changes since the point before.
pub const DELTA: i32 = 1;
/// [`Sum::aggregation_temporality`]: totals since the start time.
pub const CUMULATIVE: i32 = 2;

/// `ExportMetricsServiceRequest`, the body of an OTLP request.
#[derive(Clone, PartialEq, Message)]
pub struct ExportRequest {
    /// The metrics, by resource.
    #[prost(message, repeated, tag = "1")]
    pub resource_metrics: Vec<ResourceMetrics>,
}

/// `ExportMetricsServiceResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct ExportResponse {
    /// Absent if everything was accepted.
    #[prost(message, optional, tag = "1")]
    pub partial_success: Option<PartialSuccess>,
}

/// `ExportMetricsPartialSuccess`.
#[derive(Clone, PartialEq, Message)]
pub struct PartialSuccess {
    /// Data points that the receiver did not accept.
    #[prost(int64, tag = "1")]
    pub rejected_data_points: i64,
    /// The reason, in English.
    #[prost(string, tag = "2")]
    pub error_message: String,
}

/// The metrics of one resource: the host, or a container.
#[derive(Clone, PartialEq, Message)]
pub struct ResourceMetrics {
    /// The resource.
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    /// Its metrics, by instrumentation scope.
    #[prost(message, repeated, tag = "2")]
    pub scope_metrics: Vec<ScopeMetrics>,
}

/// A resource.
#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    /// What identifies it.
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

/// The metrics of one instrumentation scope.
#[derive(Clone, PartialEq, Message)]
pub struct ScopeMetrics {
    /// The scope.
    #[prost(message, optional, tag = "1")]
    pub scope: Option<Scope>,
    /// Its metrics.
    #[prost(message, repeated, tag = "2")]
    pub metrics: Vec<Metric>,
}

/// `InstrumentationScope`.
#[derive(Clone, PartialEq, Message)]
pub struct Scope {
    /// Name of the program.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version.
    #[prost(string, tag = "2")]
    pub version: String,
}

/// An attribute.
#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    /// Its name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its value.
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

impl KeyValue {
    /// An attribute with a text.
    #[must_use]
    pub fn text(key: &str, value: &str) -> Self {
        Self { key: key.to_owned(), value: Some(AnyValue { value: Some(Text::Text(value.to_owned())) }) }
    }

    /// The text; empty for other types of values.
    #[must_use]
    pub fn as_text(&self) -> &str {
        match self.value.as_ref().and_then(|any| any.value.as_ref()) {
            Some(Text::Text(text)) => text,
            None => "",
        }
    }
}

/// The value of an attribute.
#[derive(Clone, PartialEq, Message)]
pub struct AnyValue {
    /// Absent if it is no text.
    #[prost(oneof = "Text", tags = "1")]
    pub value: Option<Text>,
}

/// The only type of value that is used.
#[derive(Clone, PartialEq, Oneof)]
pub enum Text {
    /// A text.
    #[prost(string, tag = "1")]
    Text(String),
}

/// A metric with its data points.
#[derive(Clone, PartialEq, Message)]
pub struct Metric {
    /// The name, `hw.energy`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The meaning.
    #[prost(string, tag = "2")]
    pub description: String,
    /// The unit, in UCUM's notation.
    #[prost(string, tag = "3")]
    pub unit: String,
    /// The data points.
    #[prost(oneof = "Data", tags = "5, 7, 9")]
    pub data: Option<Data>,
}

/// Data points by type of metric.
#[derive(Clone, PartialEq, Oneof)]
pub enum Data {
    /// Values that go up and down and are not added up.
    #[prost(message, tag = "5")]
    Gauge(Gauge),
    /// Values that are added up.
    #[prost(message, tag = "7")]
    Sum(Sum),
    /// Distributions.
    #[prost(message, tag = "9")]
    Histogram(Histogram),
}

/// Data points of a gauge.
#[derive(Clone, PartialEq, Message)]
pub struct Gauge {
    /// The points.
    #[prost(message, repeated, tag = "1")]
    pub data_points: Vec<NumberPoint>,
}

/// Data points of a sum.
#[derive(Clone, PartialEq, Message)]
pub struct Sum {
    /// The points.
    #[prost(message, repeated, tag = "1")]
    pub data_points: Vec<NumberPoint>,
    /// [`DELTA`] or [`CUMULATIVE`].
    #[prost(int32, tag = "2")]
    pub aggregation_temporality: i32,
    /// True if it never falls.
    #[prost(bool, tag = "3")]
    pub is_monotonic: bool,
}

/// Data points of a histogram.
#[derive(Clone, PartialEq, Message)]
pub struct Histogram {
    /// The points.
    #[prost(message, repeated, tag = "1")]
    pub data_points: Vec<HistogramPoint>,
    /// [`DELTA`] or [`CUMULATIVE`].
    #[prost(int32, tag = "2")]
    pub aggregation_temporality: i32,
}

/// `NumberDataPoint`. Times are in unix nanoseconds.
#[derive(Clone, PartialEq, Message)]
pub struct NumberPoint {
    /// The attributes.
    #[prost(message, repeated, tag = "7")]
    pub attributes: Vec<KeyValue>,
    /// Start of the sum; 0 for a gauge.
    #[prost(fixed64, tag = "2")]
    pub start_time_unix_nano: u64,
    /// Time of the value.
    #[prost(fixed64, tag = "3")]
    pub time_unix_nano: u64,
    /// The value. A oneof, because 0 is a value here and not the default of the field.
    #[prost(oneof = "Number", tags = "4")]
    pub value: Option<Number>,
}

/// The value of a [`NumberPoint`].
#[derive(Clone, Copy, PartialEq, Oneof)]
pub enum Number {
    /// A double.
    #[prost(double, tag = "4")]
    Double(f64),
}

/// `HistogramDataPoint`. Times are in unix nanoseconds.
#[derive(Clone, PartialEq, Message)]
pub struct HistogramPoint {
    /// The attributes.
    #[prost(message, repeated, tag = "9")]
    pub attributes: Vec<KeyValue>,
    /// Start of the counts.
    #[prost(fixed64, tag = "2")]
    pub start_time_unix_nano: u64,
    /// Time of the counts.
    #[prost(fixed64, tag = "3")]
    pub time_unix_nano: u64,
    /// Number of observations.
    #[prost(fixed64, tag = "4")]
    pub count: u64,
    /// Sum of the observations.
    #[prost(double, optional, tag = "5")]
    pub sum: Option<f64>,
    /// Observations in each bucket, one bucket more than bounds.
    #[prost(fixed64, repeated, tag = "6")]
    pub bucket_counts: Vec<u64>,
    /// Upper bounds, ascending.
    #[prost(double, repeated, tag = "7")]
    pub explicit_bounds: Vec<f64>,
}

/// `prometheus.WriteRequest`, the body of a remote write request.
#[derive(Clone, PartialEq, Message)]
pub struct WriteRequest {
    /// The series.
    #[prost(message, repeated, tag = "1")]
    pub timeseries: Vec<TimeSeries>,
    /// Types and HELP texts.
    #[prost(message, repeated, tag = "3")]
    pub metadata: Vec<MetricMetadata>,
}

/// A series with its samples.
#[derive(Clone, PartialEq, Message)]
pub struct TimeSeries {
    /// The labels, sorted by name; `__name__` is the metric name.
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<Label>,
    /// The samples, oldest first.
    #[prost(message, repeated, tag = "2")]
    pub samples: Vec<Sample>,
}

/// A label.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Message)]
pub struct Label {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A sample.
#[derive(Clone, PartialEq, Message)]
pub struct Sample {
    /// The value.
    #[prost(double, tag = "1")]
    pub value: f64,
    /// Unix milliseconds.
    #[prost(int64, tag = "2")]
    pub timestamp: i64,
}

/// Type and HELP text of a metric family.
#[derive(Clone, PartialEq, Message)]
pub struct MetricMetadata {
    /// 1 counter, 2 gauge, 3 histogram.
    #[prost(int32, tag = "1")]
    pub r#type: i32,
    /// Name of the family.
    #[prost(string, tag = "2")]
    pub metric_family_name: String,
    /// The HELP text.
    #[prost(string, tag = "4")]
    pub help: String,
}
