//! The `--otlp.*`, `--remote-write.*` and `--push.*` flags of both programs, and the variables of
//! OpenTelemetry.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::{
    Args, ValueEnum,
    builder::{EnumValueParser, StringValueParser},
};
use cli::program;
use client::{Access, Client};

use crate::{
    counters::Destination,
    endpoint::{Endpoint, Headers, checked, headers_of_file},
    given::{Given, Lenient},
    series::Kept,
};

/// Largest answer of a receiver, in bytes.
const MAX_ANSWER: u64 = 1 << 20;
/// Variable with headers for OTLP. There is no flag for it: every user can read a command line.
const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
/// Variables that switch off what the environment alone asks for (OpenTelemetry's environment
/// variable specification).
const SDK_DISABLED: &str = "OTEL_SDK_DISABLED";
const METRICS_EXPORTER: &str = "OTEL_METRICS_EXPORTER";
/// Variables of flags. They may be set for other programs, so their values are checked only once a
/// receiver is named.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const METRICS_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";
const TEMPORALITY: &str = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
const COMPRESSION: &str = "OTEL_EXPORTER_OTLP_COMPRESSION";
const INTERVAL: &str = "OTEL_METRIC_EXPORT_INTERVAL";
const TIMEOUT: &str = "OTEL_EXPORTER_OTLP_TIMEOUT";
/// Values for variables that are not valid; the same as the defaults of the flags.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(15);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Variables with the protocol of OTLP.
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

/// Whether OTLP counters are totals or changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Temporality {
    /// Totals since the start of a counter
    // For counters that are read and not counted, OpenTelemetry defines lowmemory as totals.
    #[default]
    #[value(alias = "lowmemory")]
    Cumulative,
    /// Changes since the last request
    Delta,
}

/// Compression of OTLP requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OtlpCompression {
    /// gzip
    #[default]
    Gzip,
    /// None
    None,
}

/// Names and values.
type Attributes = Vec<(String, String)>;

/// Flags of the export.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Push")]
pub struct ExportFlags {
    /// OTLP/HTTP receiver to push metrics to, for example http://collector:4318
    ///
    /// /v1/metrics is appended. Protobuf over HTTP; gRPC (port 4317) is not supported.
    #[arg(long = "otlp.endpoint", value_name = "URL", env = ENDPOINT, value_parser = Lenient(StringValueParser::new()))]
    otlp_endpoint: Option<Given<String>>,

    /// URL of the OTLP receiver with its whole path, instead of --otlp.endpoint
    #[arg(
        long = "otlp.metrics-endpoint",
        value_name = "URL",
        env = METRICS_ENDPOINT,
        value_parser = Lenient(StringValueParser::new())
    )]
    otlp_metrics_endpoint: Option<Given<String>>,

    /// File with headers for OTLP, one NAME: VALUE in each line
    ///
    /// Read for each request. Headers without secrets can also be in OTEL_EXPORTER_OTLP_HEADERS.
    #[arg(long = "otlp.headers-file", value_name = "FILE")]
    otlp_headers_file: Option<PathBuf>,

    /// Whether OTLP counters are totals or changes
    #[arg(
        long = "otlp.temporality",
        value_name = "TEMPORALITY",
        env = TEMPORALITY,
        ignore_case = true,
        default_value = "cumulative",
        value_parser = Lenient(EnumValueParser::<Temporality>::new())
    )]
    otlp_temporality: Given<Temporality>,

    /// Attributes of the host's OTLP resource, NAME=VALUE,…
    ///
    /// service.name, service.instance.id and host.name replace those of the program.
    #[arg(
        long = "otlp.resource-attributes",
        value_name = "NAME=VALUE",
        env = ATTRIBUTES,
        value_parser = Lenient(parse_attributes)
    )]
    otlp_attributes: Vec<Given<Attributes>>,

    /// Compression of OTLP requests
    #[arg(
        long = "otlp.compression",
        value_name = "COMPRESSION",
        env = COMPRESSION,
        ignore_case = true,
        default_value = "gzip",
        value_parser = Lenient(EnumValueParser::<OtlpCompression>::new())
    )]
    otlp_compression: Given<OtlpCompression>,

    /// PEM file of the CA of the OTLP receiver [default: the system's]
    #[arg(long = "otlp.ca-file", value_name = "FILE", env = "OTEL_EXPORTER_OTLP_CERTIFICATE")]
    otlp_ca_file: Option<PathBuf>,

    /// PEM file of the client certificate for OTLP
    #[arg(long = "otlp.cert-file", value_name = "FILE", env = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE")]
    otlp_cert_file: Option<PathBuf>,

    /// PEM file of the key of --otlp.cert-file
    #[arg(long = "otlp.key-file", value_name = "FILE", env = "OTEL_EXPORTER_OTLP_CLIENT_KEY")]
    otlp_key_file: Option<PathBuf>,

    /// Prometheus remote write receiver to push metrics to
    ///
    /// For example http://prometheus:9090/api/v1/write, for a host that cannot be scraped.
    #[arg(long = "remote-write.url", value_name = "URL")]
    remote_write_url: Option<String>,

    /// Labels of all remote write series [default: job=PROGRAM, instance=HOSTNAME]
    #[arg(
        long = "remote-write.labels",
        value_name = "NAME=VALUE",
        value_delimiter = ',',
        value_parser = parse_label
    )]
    remote_write_labels: Vec<(String, String)>,

    /// User name for remote write
    #[arg(long = "remote-write.username", value_name = "NAME")]
    remote_write_username: Option<String>,

    /// File with the password for remote write
    #[arg(long = "remote-write.password-file", value_name = "FILE")]
    remote_write_password_file: Option<PathBuf>,

    /// File with the bearer token for remote write
    #[arg(long = "remote-write.bearer-token-file", value_name = "FILE")]
    remote_write_token_file: Option<PathBuf>,

    /// PEM file of the CA of the remote write receiver [default: the system's]
    #[arg(long = "remote-write.ca-file", value_name = "FILE")]
    remote_write_ca_file: Option<PathBuf>,

    /// PEM file of the client certificate for remote write
    #[arg(long = "remote-write.cert-file", value_name = "FILE")]
    remote_write_cert_file: Option<PathBuf>,

    /// PEM file of the key of --remote-write.cert-file
    #[arg(long = "remote-write.key-file", value_name = "FILE")]
    remote_write_key_file: Option<PathBuf>,

    /// Time between two pushes: 1s to 1h
    #[arg(
        long = "push.interval",
        value_name = "DURATION",
        env = INTERVAL,
        default_value = "15s",
        value_parser = Lenient(parse_interval)
    )]
    push_interval: Given<Duration>,

    /// Timeout of a request: 100ms to 1m
    #[arg(
        long = "push.timeout",
        value_name = "DURATION",
        env = TIMEOUT,
        default_value = "10s",
        value_parser = Lenient(parse_timeout)
    )]
    push_timeout: Given<Duration>,

    /// Maximum size of what is queued for a receiver that is not available
    ///
    /// For each receiver; the oldest is dropped beyond it, and counted.
    #[arg(long = "push.queue-bytes", value_name = "BYTES", default_value_t = 8 << 20)]
    push_queue_bytes: usize,
}

/// The checked settings of the export.
#[derive(Debug)]
pub struct ExportSettings {
    /// What to log at the start.
    pub(crate) warnings: Vec<String>,
    pub(crate) interval: Duration,
    pub(crate) queue_bytes: usize,
    pub(crate) otlp: Option<OtlpSettings>,
    pub(crate) remote_write: Option<RemoteWriteSettings>,
}

#[derive(Debug)]
pub(crate) struct OtlpSettings {
    pub(crate) endpoint: Endpoint,
    /// What to log at the start.
    pub(crate) warnings: Vec<String>,
    /// Name of the program.
    pub(crate) service: &'static str,
    /// Attributes of the host's resource.
    pub(crate) resource: BTreeMap<String, String>,
    pub(crate) gzip: bool,
    pub(crate) kept: Kept,
}

#[derive(Debug)]
pub(crate) struct RemoteWriteSettings {
    pub(crate) endpoint: Endpoint,
    /// Labels of the target.
    pub(crate) labels: BTreeMap<String, String>,
}

impl ExportFlags {
    /// Checks the flags, and reads the files that they name. `service` is the name of the program.
    /// Without a receiver nothing is checked.
    ///
    /// # Errors
    /// A URL or a file that cannot be used.
    pub fn settings(&self, service: &'static str) -> Result<ExportSettings, String> {
        let mut warnings = Vec::new();
        let timeout = self.push_timeout.or_default(TIMEOUT, DEFAULT_TIMEOUT, &mut warnings);
        let interval = self.push_interval.or_default(INTERVAL, DEFAULT_INTERVAL, &mut warnings);
        let otlp = self.otlp(service, timeout)?;
        let remote_write = self.remote_write(service, timeout)?;
        if otlp.is_none() && remote_write.is_none() {
            warnings.clear();
        }
        Ok(ExportSettings { warnings, interval, queue_bytes: self.push_queue_bytes, otlp, remote_write })
    }

    /// The URL of the OTLP receiver, and the flag or variable that names it. A flag overrides both
    /// variables: otherwise the headers of one receiver would be sent to another.
    fn otlp_url(&self) -> Result<Option<(&'static str, String)>, String> {
        let is_flag = |given: &Given<String>| !given.from_env;
        let base = self.otlp_endpoint.as_ref();
        let whole = self.otlp_metrics_endpoint.as_ref().filter(|whole| is_flag(whole) || !base.is_some_and(is_flag));
        let (flag, variable, given) = match (whole, base) {
            (Some(whole), _) => ("--otlp.metrics-endpoint", METRICS_ENDPOINT, whole),
            (None, Some(base)) => ("--otlp.endpoint", ENDPOINT, base),
            (None, None) => return Ok(None),
        };
        let variables = [SDK_DISABLED, METRICS_EXPORTER].map(|name| std::env::var(name).unwrap_or_default());
        if given.from_env && is_disabled(&variables) {
            return Ok(None);
        }
        let name = if given.from_env { variable } else { flag };
        let url = given.value.as_ref().map_err(|why| format!("{name}: {why}"))?;
        let url = match whole {
            Some(_) => url.clone(),
            None => format!("{}/v1/metrics", url.trim().trim_end_matches('/')),
        };
        Ok(Some((name, url)))
    }

    fn otlp(&self, service: &'static str, timeout: Duration) -> Result<Option<OtlpSettings>, String> {
        let Some((name, url)) = self.otlp_url()? else { return Ok(None) };
        let access = Access {
            ca_file: self.otlp_ca_file.clone(),
            cert_file: self.otlp_cert_file.clone(),
            key_file: self.otlp_key_file.clone(),
            ..Access::default()
        };
        let client = Client::new(&url, &access, timeout, MAX_ANSWER).map_err(|error| format!("{name}: {error}"))?;
        let mut warnings = Vec::new();
        let compression = self.otlp_compression.or_default(COMPRESSION, OtlpCompression::default(), &mut warnings);
        let gzip = compression == OtlpCompression::Gzip;
        let mut headers = common_headers(service, gzip.then_some("gzip"));
        let extra = extra_headers(std::env::var(HEADERS).unwrap_or_default().trim())?;
        if let Some(file) = &self.otlp_headers_file {
            headers_of_file(file).map_err(|why| format!("--otlp.headers-file: {why}"))?;
        }
        if client::exposes_secrets(&url) && (!extra.is_empty() || self.otlp_headers_file.is_some()) {
            warnings.push("headers go over the network unencrypted; use https for secrets".to_owned());
        }
        headers.extend(extra);
        for name in PROTOCOLS {
            let value = std::env::var(name).unwrap_or_default();
            if !["", "http/protobuf"].contains(&value.trim()) {
                warnings.push(format!("{name}={value} is not supported; metrics are sent as http/protobuf"));
            }
        }
        let mut resource: BTreeMap<String, String> = BTreeMap::new();
        let host = host_name();
        for (name, value) in [
            ("service.name", service),
            ("service.version", program::VERSION),
            ("service.instance.id", &*host),
            ("host.name", &*host),
            ("os.type", "linux"),
        ] {
            resource.insert(name.to_owned(), value.to_owned());
        }
        for given in &self.otlp_attributes {
            resource.extend(given.or_default(ATTRIBUTES, Vec::new(), &mut warnings));
        }
        let kept = match self.otlp_temporality.or_default(TEMPORALITY, Temporality::default(), &mut warnings) {
            Temporality::Cumulative => Kept::Totals,
            Temporality::Delta => Kept::Changes,
        };
        let headers_file = self.otlp_headers_file.clone();
        let endpoint = Endpoint { destination: Destination::Otlp, client, headers, headers_file };
        Ok(Some(OtlpSettings { endpoint, warnings, service, resource, gzip, kept }))
    }

    fn remote_write(&self, service: &'static str, timeout: Duration) -> Result<Option<RemoteWriteSettings>, String> {
        let Some(url) = &self.remote_write_url else { return Ok(None) };
        let access = Access {
            ca_file: self.remote_write_ca_file.clone(),
            cert_file: self.remote_write_cert_file.clone(),
            key_file: self.remote_write_key_file.clone(),
            username: self.remote_write_username.clone(),
            password_file: self.remote_write_password_file.clone(),
            bearer_token_file: self.remote_write_token_file.clone(),
            timeout: None,
        };
        let client =
            Client::new(url, &access, timeout, MAX_ANSWER).map_err(|error| format!("--remote-write.url: {error}"))?;
        let secrets = [&self.remote_write_password_file, &self.remote_write_token_file];
        for file in secrets.into_iter().flatten() {
            client::secret(file).map_err(|error| error.to_string())?;
        }
        let mut headers = common_headers(service, Some("snappy"));
        headers.push(("X-Prometheus-Remote-Write-Version".to_owned(), "0.1.0".to_owned()));
        let mut labels: BTreeMap<String, String> = BTreeMap::new();
        labels.insert("job".to_owned(), service.to_owned());
        labels.insert("instance".to_owned(), host_name());
        labels.extend(self.remote_write_labels.iter().cloned());
        let endpoint = Endpoint { destination: Destination::RemoteWrite, client, headers, headers_file: None };
        Ok(Some(RemoteWriteSettings { endpoint, labels }))
    }
}

/// The headers of every request.
fn common_headers(service: &str, encoding: Option<&str>) -> Headers {
    let agent = format!("{service}/{}", program::VERSION);
    let all = [
        ("Content-Type", Some("application/x-protobuf")),
        ("Content-Encoding", encoding),
        ("User-Agent", Some(&*agent)),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect()
}

/// The headers of the variable, `name=value,name=value` with percent-encoded values.
fn extra_headers(text: &str) -> Result<Headers, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let header = |part: &str| {
        let (name, value) = part.split_once('=')?;
        checked(name.trim(), &percent_decoded(value.trim())?)
    };
    let all: Option<Headers> = parts.map(header).collect();
    all.ok_or_else(|| format!("{HEADERS}: expected NAME=VALUE,NAME=VALUE"))
}

/// Decodes `%20`; `None` if what follows a percent sign is no byte, or the bytes are not UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok().filter(|digits| !digits.starts_with('+'))?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// Parses `name=value,name=value` with percent-encoded values; a comma may follow the last one.
fn parse_attributes(text: &str) -> Result<Attributes, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let attribute = |part: &str| {
        let (name, value) = part.split_once('=')?;
        let name = name.trim();
        Some((name.to_owned(), percent_decoded(value.trim())?)).filter(|_| !name.is_empty())
    };
    let all: Option<Attributes> = parts.map(attribute).collect();
    all.ok_or_else(|| "expected NAME=VALUE, for example deployment.environment.name=production".to_owned())
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let valid = |name: &str| {
        let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
        name.chars().all(letters) && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
    };
    match text.split_once('=') {
        Some((name, value)) if valid(name) && !name.starts_with("__") => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE, for example site=berlin".to_owned()),
    }
}

/// Parses a duration. A number without a unit is in milliseconds, as in variables of OpenTelemetry.
fn parse_duration(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(ms) => Ok(Duration::from_millis(ms)),
        Err(_) => humantime::parse_duration(text).map_err(|error| format!("{error}; write 15s")),
    }
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    let allowed = Duration::from_secs(1)..=Duration::from_secs(3600);
    if allowed.contains(&interval) {
        Ok(interval)
    } else {
        Err("1s to 1h; a number without unit is milliseconds".into())
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let timeout = parse_duration(text)?;
    let allowed = Duration::from_millis(100)..=Duration::from_secs(60);
    if allowed.contains(&timeout) {
        Ok(timeout)
    } else {
        Err("100ms to 1m; a number without unit is milliseconds".into())
    }
}

/// The name of this host, which is never empty.
fn host_name() -> String {
    cli::host::name().unwrap_or_else(|| "localhost".to_owned())
}

/// Whether values of [`SDK_DISABLED`] and [`METRICS_EXPORTER`] switch metrics off.
fn is_disabled([sdk, exporter]: &[String; 2]) -> bool {
    sdk.trim().eq_ignore_ascii_case("true") || exporter.trim().eq_ignore_ascii_case("none")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        export: ExportFlags,
    }

    fn parse(args: &[&str]) -> Result<ExportFlags, String> {
        let line = Line::try_parse_from([&["x"], args].concat()).map_err(|error| error.to_string())?;
        Ok(line.export)
    }

    fn settings(args: &[&str]) -> Result<ExportSettings, String> {
        parse(args)?.settings("wattcast-test")
    }

    #[test]
    fn nothing_is_pushed_by_default() {
        let none = settings(&[]).unwrap();
        assert!(none.otlp.is_none() && none.remote_write.is_none());
        assert_eq!(none.interval, Duration::from_secs(15));
    }

    #[test]
    fn the_environment_can_switch_off_what_it_asks_for() {
        let disabled = |sdk: &str, exporter: &str| is_disabled(&[sdk.to_owned(), exporter.to_owned()]);
        assert!(disabled("true", "") && disabled("True", "otlp") && disabled("", "none"));
        assert!(!disabled("", "") && !disabled("false", "otlp") && !disabled("1", "prometheus"));
    }

    #[test]
    fn the_path_is_appended_to_the_base_alone() {
        let url = |args: &[&str]| settings(args).unwrap().otlp.unwrap().endpoint.client.base().to_owned();
        for base in ["http://127.0.0.1:4318", "http://127.0.0.1:4318/"] {
            assert_eq!(url(&["--otlp.endpoint", base]), "http://127.0.0.1:4318/v1/metrics");
        }
        let whole = ["--otlp.endpoint=http://127.0.0.1:1", "--otlp.metrics-endpoint=http://127.0.0.1:2/opentelemetry"];
        assert_eq!(url(&whole), "http://127.0.0.1:2/opentelemetry");
    }

    #[test]
    fn attributes_replace_those_of_the_program() {
        let args = ["--otlp.endpoint=http://127.0.0.1:1", "--otlp.resource-attributes=host.name=enc%201,site=b"];
        let resource = settings(&args).unwrap().otlp.unwrap().resource;
        assert_eq!((&*resource["host.name"], &*resource["site"]), ("enc 1", "b"));
        assert_eq!(&*resource["service.name"], "wattcast-test");
    }

    #[test]
    fn remote_write_series_have_job_and_instance() {
        let args =
            ["--remote-write.url=http://127.0.0.1:1/api/v1/write", "--remote-write.labels=instance=enc-1,site=b"];
        let labels = settings(&args).unwrap().remote_write.unwrap().labels;
        assert_eq!((&*labels["job"], &*labels["instance"], &*labels["site"]), ("wattcast-test", "enc-1", "b"));
    }

    #[test]
    fn numbers_of_opentelemetry_are_milliseconds() {
        let flags = parse(&["--push.interval=60000", "--push.timeout=250", "--otlp.temporality=DELTA"]).unwrap();
        assert_eq!(flags.push_interval.value, Ok(Duration::from_secs(60)));
        assert_eq!(flags.push_timeout.value, Ok(Duration::from_millis(250)));
        assert_eq!(flags.otlp_temporality.value, Ok(Temporality::Delta));
        let low_memory = parse(&["--otlp.temporality=lowmemory"]).unwrap().otlp_temporality;
        assert_eq!(low_memory.value, Ok(Temporality::Cumulative));
    }

    fn of_env<T>(value: Result<T, &str>) -> Given<T> {
        Given { value: value.map_err(ToOwned::to_owned), from_env: true }
    }

    /// They ended the program, also one that pushes nothing.
    #[test]
    fn variables_that_are_not_valid_are_ignored_with_a_warning() {
        let with_env = |args: &[&str]| {
            let mut flags = parse(args).unwrap();
            flags.push_interval = of_env(Err("1s to 1h"));
            flags.push_timeout = of_env(Err("100ms to 1m"));
            flags.otlp_attributes = vec![of_env(Err("expected NAME=VALUE"))];
            flags.otlp_compression = of_env(Err("zstd"));
            flags.otlp_temporality = of_env(Err("sometimes"));
            flags.settings("wattcast-test").unwrap()
        };
        assert!(with_env(&[]).warnings.is_empty());
        let settings = with_env(&["--otlp.endpoint=http://127.0.0.1:1"]);
        assert_eq!(settings.interval, DEFAULT_INTERVAL);
        assert_eq!(settings.warnings.len(), 2);
        assert!(settings.warnings[1].contains("OTEL_METRIC_EXPORT_INTERVAL") && settings.warnings[1].contains("1h"));
        let otlp = settings.otlp.unwrap();
        assert_eq!((otlp.gzip, otlp.kept), (true, Kept::Totals));
        assert_eq!(otlp.warnings.len(), 3, "{:?}", otlp.warnings);
    }

    /// The receiver of the variable got the metrics and the headers of the flags.
    #[test]
    fn an_endpoint_of_the_command_line_overrides_every_variable() {
        let mut flags = parse(&["--otlp.endpoint=http://127.0.0.1:1"]).unwrap();
        flags.otlp_metrics_endpoint = Some(of_env(Ok("http://127.0.0.1:2/v1/metrics".to_owned())));
        let url = |flags: &ExportFlags| flags.otlp_url().unwrap().unwrap();
        assert_eq!(url(&flags), ("--otlp.endpoint", "http://127.0.0.1:1/v1/metrics".to_owned()));
        flags.otlp_endpoint = Some(of_env(Ok("http://127.0.0.1:1".to_owned())));
        assert_eq!(url(&flags), (METRICS_ENDPOINT, "http://127.0.0.1:2/v1/metrics".to_owned()));
        flags.otlp_metrics_endpoint = None;
        assert_eq!(url(&flags), (ENDPOINT, "http://127.0.0.1:1/v1/metrics".to_owned()));
    }

    #[test]
    fn defaults_of_flags_are_those_of_variables() {
        let flags = parse(&[]).unwrap();
        assert_eq!(flags.push_interval.value, Ok(DEFAULT_INTERVAL));
        assert_eq!(flags.push_timeout.value, Ok(DEFAULT_TIMEOUT));
        assert_eq!(flags.otlp_temporality.value, Ok(Temporality::default()));
        assert_eq!(flags.otlp_compression.value, Ok(OtlpCompression::default()));
        assert_eq!(parse_attributes("a=b,").unwrap(), [("a".to_owned(), "b".to_owned())]);
    }

    #[test]
    fn headers_are_percent_decoded() {
        let expected = [("a".to_owned(), "b c=".to_owned()), ("x-key".to_owned(), "1".to_owned())];
        assert_eq!(extra_headers("a=b%20c=, x-key=1,").unwrap(), expected);
        assert!(extra_headers("").unwrap().is_empty());
        for wrong in ["a", "a=%2", "a=%zz", "a=%+1", "a b=1", "a=%0A"] {
            assert!(extra_headers(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_setting_is_reported_with_its_flag() {
        for (args, word) in [
            (&["--otlp.endpoint=collector:4318"][..], "--otlp.endpoint"),
            (&["--otlp.endpoint=http://127.0.0.1:1", "--otlp.headers-file=/nowhere"], "--otlp.headers-file"),
            (&["--otlp.endpoint=http://127.0.0.1:1", "--otlp.ca-file=/nowhere"], "/nowhere"),
            (&["--remote-write.url=https://db/x", "--remote-write.bearer-token-file=/nowhere"], "/nowhere"),
            (&["--remote-write.url=http://db/x", "--remote-write.bearer-token-file=/t"], "unencrypted"),
            (&["--remote-write.labels=9=1"], "NAME=VALUE"),
            (&["--otlp.resource-attributes=site"], "NAME=VALUE"),
            (&["--push.interval=15"], "milliseconds"),
            (&["--push.interval=2h"], "1s to 1h"),
        ] {
            let error = settings(args).unwrap_err();
            assert!(error.contains(word), "{args:?}: {error}");
        }
    }
}
