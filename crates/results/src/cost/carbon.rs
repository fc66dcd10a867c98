//! Carbon intensity of the grid, in grams of CO₂ equivalents per kilowatt hour: a configured
//! constant, a file of values over time, or an HTTP API. Values have an origin and a time. A window
//! without values has no footprint rather than an assumed one.

use std::{
    fs,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::Value;
use tracing::warn;

use super::money::{Amount, decimal};
use cli::{
    file::read_limited,
    line_file::{self, LineFormat},
};

use client::{Access, Client, ClientError, exposes_secrets, secret};

/// Maximum size of a file, in bytes; hourly values of ten years take an eighth of it.
const MAX_FILE: u64 = 16 << 20;
/// Maximum size of a response, in bytes.
const MAX_RESPONSE: u64 = 1 << 20;
/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of readings of an API that are kept: one month of quarter hours.
const MAX_READINGS: usize = 3000;

/// The keys below `[carbon]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CarbonSettings {
    /// Constant intensity in grams per kilowatt hour.
    pub intensity: Option<Amount>,
    /// A CSV file with lines `2026-11-20T13:00:00Z,45`: start time and grams per kilowatt hour.
    pub file: Option<PathBuf>,
    /// URL of a JSON API, for example `/v3/carbon-intensity/latest?zone=SE` of Electricity Maps.
    pub url: Option<String>,
    /// Path of the intensity in the response, `data.intensity`; default `carbonIntensity`.
    pub field: Option<String>,
    /// Path of the time in the response, in RFC 3339; default `datetime`. If absent, the time of
    /// the request is used.
    pub time_field: Option<String>,
    /// Path of a Boolean that marks an estimated value; default `isEstimated`.
    pub estimated_field: Option<String>,
    /// Header of the API token; default `auth-token`.
    pub token_header: Option<String>,
    /// File of the API token.
    pub token_file: Option<PathBuf>,
    /// PEM file of trusted certificate authorities, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// File that keeps the values of the API, in the format of `file`. Without it a restart loses
    /// them, and `advise` and `backfill` have none.
    pub history: Option<PathBuf>,
    /// Interval of requests; default `15m`.
    pub every: Option<String>,
    /// Time for which the last value remains valid; default `2h`.
    pub max_age: Option<String>,
}

/// The origin of carbon intensities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntensityOrigin {
    /// A constant of the command line or the configuration file.
    Configured,
    /// A file of values over time.
    File,
    /// An HTTP API.
    Http,
}

impl IntensityOrigin {
    /// The value of the label `origin`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Configured => "given",
            Self::File => "file",
            Self::Http => "http",
        }
    }
}

/// A carbon intensity with its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Start of validity.
    pub at: Timestamp,
    /// Grams of CO₂ equivalents per kilowatt hour.
    pub grams: Decimal,
    /// True if the source marks the value as estimated.
    pub estimated: bool,
}

/// Carbon intensity of the grid over time.
#[derive(Clone, Debug)]
pub struct Carbon {
    origin: IntensityOrigin,
    constant: Option<Decimal>,
    /// In ascending order of time.
    readings: Vec<Reading>,
    max_age: SignedDuration,
    /// The file of the values, with its modification time when it was read.
    file: Option<(PathBuf, Option<SystemTime>)>,
    /// The file that keeps the readings of an API.
    history: Option<PathBuf>,
}

fn duration(text: Option<&str>, default: Duration) -> Result<Duration, String> {
    text.map_or(Ok(default), |text| humantime::parse_duration(text).map_err(|error| format!("{text:?}: {error}")))
}

impl Carbon {
    /// The carbon intensity of the settings; `None` if they contain none.
    ///
    /// # Errors
    /// If several origins are set, or a file cannot be read or is invalid.
    pub fn new(settings: &CarbonSettings) -> Result<Option<Self>, String> {
        let max_age = duration(settings.max_age.as_deref(), Duration::from_secs(7200))?;
        let max_age = SignedDuration::try_from(max_age).map_err(|error| error.to_string())?;
        let origin = match (&settings.intensity, &settings.file, &settings.url) {
            (None, None, None) => return Ok(None),
            (Some(_), None, None) => IntensityOrigin::Configured,
            (None, Some(_), None) => IntensityOrigin::File,
            (None, None, Some(_)) => IntensityOrigin::Http,
            _ => return Err("set only one of intensity, file and url".to_owned()),
        };
        let mut readings = settings.file.as_deref().map_or(Ok(Vec::new()), read)?;
        let history = settings.history.clone().filter(|_| origin == IntensityOrigin::Http);
        if let Some(file) = history.as_deref().filter(|file| file.exists()) {
            readings = read_history(file)?;
            let surplus = readings.len().saturating_sub(MAX_READINGS);
            readings.drain(..surplus);
        }
        let file = settings.file.clone().map(|file| (file.clone(), modified(&file)));
        let constant = settings.intensity.map(|amount| amount.0);
        Ok(Some(Self { origin, constant, readings, max_age, file, history }))
    }

    /// True if the file was modified since it was read.
    #[must_use]
    pub fn is_outdated(&self) -> bool {
        self.file.as_ref().is_some_and(|(file, before)| modified(file) != *before)
    }

    /// Reads the file again. Returns false, without a change, if there is no file or it is invalid.
    pub fn reload(&mut self) -> bool {
        let Some((file, before)) = &mut self.file else { return false };
        *before = modified(file);
        match read(file) {
            Ok(readings) => {
                self.readings = readings;
                true
            }
            Err(error) => {
                warn!("{error}; the previous carbon intensities stay in effect");
                false
            }
        }
    }

    /// The origin of the values.
    #[must_use]
    pub fn origin(&self) -> IntensityOrigin {
        self.origin
    }

    /// Adds a reading of the API, which replaces one of the same time, and appends it to the
    /// history file if it is new or revised.
    pub fn add(&mut self, reading: Reading) {
        let place = self.readings.binary_search_by_key(&reading.at, |known| known.at);
        if place.is_ok_and(|index| self.readings[index] == reading) {
            return;
        }
        if let Some(file) = &self.history
            && let Err(error) = append(file, &reading)
        {
            warn!("{}: {error}; this carbon intensity is lost at a restart", file.display());
        }
        match place {
            Ok(index) => self.readings[index] = reading,
            Err(index) => self.readings.insert(index, reading),
        }
        let surplus = self.readings.len().saturating_sub(MAX_READINGS);
        self.readings.drain(..surplus);
    }

    /// The intensity at a time in grams per kilowatt hour, and its reading unless it is constant.
    /// `None` if no reading is valid.
    #[must_use]
    pub fn at(&self, moment: Timestamp) -> Option<(Decimal, Option<Reading>)> {
        if let Some(grams) = self.constant {
            return Some((grams, None));
        }
        let next = self.readings.partition_point(|reading| reading.at <= moment);
        let reading = *self.readings.get(next.checked_sub(1)?)?;
        (moment.duration_since(reading.at) <= self.max_age).then_some((reading.grams, Some(reading)))
    }

    /// The mean intensity of a window, weighted by time; `None` if no reading is valid for a part
    /// of it.
    #[must_use]
    pub fn mean(&self, start: Timestamp, end: Timestamp) -> Option<Decimal> {
        if self.constant.is_some() || end <= start {
            return self.at(start).map(|(grams, _)| grams);
        }
        let (mut sum, mut length, mut moment) = (Decimal::ZERO, Decimal::ZERO, start);
        while moment < end {
            let (grams, reading) = self.at(moment)?;
            let expiry = reading?.at.checked_add(self.max_age).ok()?;
            let next = self.readings.partition_point(|reading| reading.at <= moment);
            let next = self.readings.get(next).map_or(expiry, |next| next.at.min(expiry)).min(end);
            // The reading has expired.
            if next <= moment {
                return None;
            }
            let piece = Decimal::from(i64::try_from(next.duration_since(moment).as_nanos()).ok()?);
            sum = sum.checked_add(piece.checked_mul(grams)?)?;
            length += piece;
            moment = next;
        }
        sum.checked_div(length)
    }
}

fn modified(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).and_then(|meta| meta.modified()).ok()
}

fn read(file: &Path) -> Result<Vec<Reading>, String> {
    let failed = |message: String| format!("{}: {message}", file.display());
    let text = read_limited(file, MAX_FILE).map_err(|error| failed(error.to_string()))?;
    parse(&text).map_err(failed)
}

/// Reads the file that [`Carbon::add`] writes. A crash or a full disk leaves part of a line, which
/// costs this line and not the service's start. A last line without an end is such a part, even if
/// it looks like a value: `45` may have been `450`.
fn read_history(file: &Path) -> Result<Vec<Reading>, String> {
    let bytes = read_end(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().filter(|line| is_content(line));
    let (valid, invalid): (Vec<_>, Vec<_>) = lines.map(parse_line).partition(Option::is_some);
    if !invalid.is_empty() {
        warn!("{}: {} lines are not carbon intensities; they are left out", file.display(), invalid.len());
    }
    Ok(newest(valid.into_iter().flatten().collect()))
}

/// Reads the last [`MAX_FILE`] bytes: the file grows for years.
fn read_end(file: &Path) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(file)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_FILE)))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Appends a reading, after removing part of a line at the end.
fn append(file: &Path, reading: &Reading) -> io::Result<()> {
    let suffix = if reading.estimated { ",estimated" } else { "" };
    let line = format!("{},{}{suffix}\n", reading.at, reading.grams);
    line_file::append(file, 0o644, LineFormat::Text, [line.as_bytes()]).result
}

/// False for empty lines and comments.
fn is_content(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#')
}

fn parse_line(line: &str) -> Option<Reading> {
    let mut fields = line.split(',').map(str::trim);
    let (time, grams) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
    let (at, grams) = (time.parse().ok()?, decimal(grams).ok()?);
    Some(Reading { at, grams, estimated: fields.next() == Some("estimated") })
}

/// Sorts readings by time. Of several with the same time the last one is kept: a source revises its
/// estimates, and a file to which it is appended has the revision below.
fn newest(mut readings: Vec<Reading>) -> Vec<Reading> {
    // The sort keeps the order of equal times.
    readings.sort_by_key(|reading| reading.at);
    readings.dedup_by(|later, kept| {
        let same = later.at == kept.at;
        if same {
            *kept = *later;
        }
        same
    });
    readings
}

/// Parses lines `TIME,GRAMS` or `TIME,GRAMS,estimated` and sorts them by time; of lines with the
/// same time the last one counts. A heading in the first line, empty lines and lines that begin
/// with # are skipped.
///
/// # Errors
/// The first invalid line, or a file without values.
pub fn parse(text: &str) -> Result<Vec<Reading>, String> {
    let mut readings = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| is_content(line)) {
        match parse_line(line) {
            Some(reading) => readings.push(reading),
            None if number == 0 => {}
            None => {
                let line = line.trim();
                return Err(format!("line {}: {line:?}; expected for example 2026-11-20T13:00:00Z,45", number + 1));
            }
        }
    }
    if readings.is_empty() { Err("the file contains no carbon intensity".to_owned()) } else { Ok(newest(readings)) }
}

/// Client of an HTTP API for carbon intensity.
pub struct Api {
    client: Client,
    query: String,
    field: String,
    time_field: String,
    estimated_field: String,
    token: Option<(String, PathBuf)>,
    /// Interval of requests.
    pub every: Duration,
}

impl Api {
    /// The API of the settings; `None` without a URL. `{region}` in the URL is replaced.
    ///
    /// # Errors
    /// If a setting is invalid, or a token would be sent unencrypted.
    pub fn new(settings: &CarbonSettings, region: &str) -> Result<Option<Self>, ClientError> {
        let Some(url) = &settings.url else { return Ok(None) };
        let url = url.replace("{region}", region);
        let (base, query) = match url.split_once('?') {
            Some((base, query)) => (base.to_owned(), format!("?{query}")),
            None => (url.clone(), String::new()),
        };
        let access = Access { ca_file: settings.ca_file.clone(), ..Access::default() };
        let word = |setting: &Option<String>, default: &str| setting.clone().unwrap_or_else(|| default.to_owned());
        let token = settings.token_file.clone().map(|file| (word(&settings.token_header, "auth-token"), file));
        if token.is_some() && exposes_secrets(&base) {
            return Err(ClientError::Settings("the token would go over the network unencrypted; use https".to_owned()));
        }
        let every = duration(settings.every.as_deref(), Duration::from_secs(900)).map_err(ClientError::Settings)?;
        Ok(Some(Self {
            client: Client::new(&base, &access, TIMEOUT, MAX_RESPONSE)?,
            query,
            field: word(&settings.field, "carbonIntensity"),
            time_field: word(&settings.time_field, "datetime"),
            estimated_field: word(&settings.estimated_field, "isEstimated"),
            token,
            every: every.max(Duration::from_secs(10)),
        }))
    }

    /// Requests the current carbon intensity.
    ///
    /// # Errors
    /// If the request fails, or the response contains no intensity.
    pub fn fetch(&self, now: Timestamp) -> Result<Reading, String> {
        let token = match &self.token {
            Some((name, file)) => Some((name.as_str(), secret(file).map_err(|error| error.to_string())?)),
            None => None,
        };
        let headers: Vec<(&str, &str)> = token.iter().map(|(name, value)| (*name, &**value)).collect();
        let reply = self.client.get_with(&self.query, &[], &headers).map_err(|error| error.to_string())?;
        if reply.status != 200 {
            return Err(format!("{}: status {}: {}", self.client.display_url(), reply.status, reply.excerpt()));
        }
        self.read(&reply.body, now).map_err(|why| format!("{}: {why}", self.client.display_url()))
    }

    /// The intensity in a response of the API.
    ///
    /// # Errors
    /// If it is not JSON, or has no number at the configured path.
    pub fn read(&self, body: &[u8], now: Timestamp) -> Result<Reading, String> {
        let response: Value = serde_json::from_slice(body).map_err(|error| format!("not JSON ({error})"))?;
        let find = |path: &str| path.split('.').try_fold(&response, |value, name| value.get(name));
        let grams = match find(&self.field) {
            Some(Value::Number(number)) => decimal(&number.to_string()),
            Some(Value::String(text)) => decimal(text),
            _ => Err(format!("no number at {:?} in the response; set its path with field", self.field)),
        }?;
        let at = find(&self.time_field).and_then(Value::as_str).and_then(|text| text.parse().ok()).unwrap_or(now);
        Ok(Reading { at, grams, estimated: find(&self.estimated_field) == Some(&Value::Bool(true)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn from_csv(text: &str) -> Carbon {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("grid.csv");
        fs::write(&file, text).unwrap();
        Carbon::new(&CarbonSettings { file: Some(file), ..CarbonSettings::default() }).unwrap().unwrap()
    }

    #[test]
    fn mean_is_weighted_by_time_and_needs_valid_readings() {
        let carbon = from_csv("from,grams\n2026-11-20T00:00:00Z,40\n2026-11-20T01:00:00Z,100,estimated\n");
        let mean = |start: &str, end: &str| carbon.mean(at(start), at(end)).map(|grams| grams.normalize().to_string());
        assert_eq!(mean("2026-11-20T00:30:00Z", "2026-11-20T01:30:00Z").as_deref(), Some("70"));
        assert_eq!(mean("2026-11-20T00:45:00Z", "2026-11-20T01:45:00Z").as_deref(), Some("85"));
        assert_eq!(mean("2026-11-19T23:30:00Z", "2026-11-20T00:30:00Z"), None, "before the first reading");
        assert_eq!(mean("2026-11-20T01:30:00Z", "2026-11-20T03:30:00Z"), None, "two hours after the last reading");
        assert!(carbon.at(at("2026-11-20T01:10:00Z")).unwrap().1.unwrap().estimated);
        let always =
            Carbon::new(&CarbonSettings { intensity: Some(Amount(Decimal::from(30))), ..CarbonSettings::default() });
        let always = always.unwrap().unwrap();
        assert_eq!(always.mean(at("2000-01-01T00:00:00Z"), at("2001-01-01T00:00:00Z")), Some(Decimal::from(30)));
    }

    #[test]
    fn changed_file_is_reloaded_and_invalid_one_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("grid.csv");
        // Explicit modification times, because the clock of the file system may be coarse.
        let put = |text: &str, second: u64| {
            fs::write(&file, text).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            fs::File::options().write(true).open(&file).unwrap().set_modified(at).unwrap();
        };
        put("2026-11-20T00:00:00Z,40\n", 1);
        let mut carbon =
            Carbon::new(&CarbonSettings { file: Some(file.clone()), ..CarbonSettings::default() }).unwrap().unwrap();
        let grams = |carbon: &Carbon| carbon.at(at("2026-11-20T00:30:00Z")).map(|(grams, _)| grams);
        assert!(!carbon.is_outdated());
        put("2026-11-20T00:00:00Z,50\n", 2);
        assert!(carbon.is_outdated() && carbon.reload() && !carbon.is_outdated());
        assert_eq!(grams(&carbon), Some(Decimal::from(50)));
        put("2026-11-20T00:00:00Z,", 3);
        assert!(carbon.is_outdated() && !carbon.reload() && !carbon.is_outdated());
        assert_eq!(grams(&carbon), Some(Decimal::from(50)));
    }

    #[test]
    fn readings_of_the_api_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let history = Some(dir.path().join("kept.csv"));
        let settings = CarbonSettings { url: Some("http://127.0.0.1:1/".into()), history, ..CarbonSettings::default() };
        let mut carbon = Carbon::new(&settings).unwrap().unwrap();
        let reading = Reading { at: at("2026-11-20T13:00:00Z"), grams: Decimal::new(315, 1), estimated: true };
        carbon.add(reading);
        carbon.add(reading);
        let text = fs::read_to_string(dir.path().join("kept.csv")).unwrap();
        assert_eq!(text, "2026-11-20T13:00:00Z,31.5,estimated\n", "a repeated reading is written once");
        let restarted = Carbon::new(&settings).unwrap().unwrap();
        assert_eq!(restarted.at(at("2026-11-20T13:10:00Z")), Some((reading.grams, Some(reading))));
    }

    #[test]
    fn revised_value_wins_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let history = Some(dir.path().join("kept.csv"));
        let settings = CarbonSettings { url: Some("http://127.0.0.1:1/".into()), history, ..CarbonSettings::default() };
        let mut carbon = Carbon::new(&settings).unwrap().unwrap();
        let reading = |hour: u8, grams: i64, estimated: bool| Reading {
            at: at(&format!("2026-11-20T{hour:02}:00:00Z")),
            grams: Decimal::from(grams),
            estimated,
        };
        // The first hour is revised after the second has begun, and the second twice, back to its
        // first value. Repetitions change nothing.
        for (hour, grams, estimated) in
            [(13, 40, true), (14, 50, true), (13, 90, false), (13, 90, false), (14, 55, true), (14, 50, true)]
        {
            carbon.add(reading(hour, grams, estimated));
        }
        let restarted = Carbon::new(&settings).unwrap().unwrap();
        for carbon in [&carbon, &restarted] {
            assert_eq!(carbon.readings, [reading(13, 90, false), reading(14, 50, true)]);
            assert_eq!(carbon.mean(at("2026-11-20T13:30:00Z"), at("2026-11-20T14:30:00Z")), Some(Decimal::from(70)));
        }
        let text = fs::read_to_string(dir.path().join("kept.csv")).unwrap();
        assert_eq!(text.lines().count(), 5, "{text}");
        // In a file of the user the last line of an hour counts as well.
        let file = from_csv("2026-11-20T13:00:00Z,40\n2026-11-20T14:00:00Z,50\n2026-11-20T13:00:00Z,90\n");
        assert_eq!(file.at(at("2026-11-20T13:30:00Z")).map(|(grams, _)| grams), Some(Decimal::from(90)));
    }

    #[test]
    fn torn_history_costs_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kept.csv");
        fs::write(&file, "2026-11-20T12:00:00Z,4\u{fffd}\n2026-11-20T13:00:00Z,40\n2026-11-20T14:00:00Z,4").unwrap();
        let history = Some(file.clone());
        let settings = CarbonSettings { url: Some("http://127.0.0.1:1/".into()), history, ..CarbonSettings::default() };
        let mut carbon = Carbon::new(&settings).unwrap().unwrap();
        assert_eq!(carbon.readings.len(), 1, "neither the torn nor the broken line");
        carbon.add(Reading { at: at("2026-11-20T15:00:00Z"), grams: Decimal::from(60), estimated: false });
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.ends_with("\n2026-11-20T13:00:00Z,40\n2026-11-20T15:00:00Z,60\n"), "{text}");
        assert_eq!(Carbon::new(&settings).unwrap().unwrap().readings, carbon.readings);
        // Bytes that are no text, too.
        fs::write(&file, b"2026-11-20T12:00:00Z,4\xff\n2026-11-20T13:00:00Z,40\n").unwrap();
        assert_eq!(Carbon::new(&settings).unwrap().unwrap().readings.len(), 1);
        // A file with nothing else, too.
        fs::write(&file, "2026").unwrap();
        assert!(Carbon::new(&settings).unwrap().unwrap().readings.is_empty());
    }

    #[test]
    fn invalid_line_is_named() {
        assert!(parse("2026-11-20T00:00:00Z,40\n2026-11-20T01:00:00Z,green").unwrap_err().contains("line 2"));
        assert!(parse("a,b\n").unwrap_err().contains("no carbon intensity"));
        let both = CarbonSettings {
            intensity: Some(Amount(Decimal::ONE)),
            url: Some("x".into()),
            ..CarbonSettings::default()
        };
        assert!(Carbon::new(&both).unwrap_err().contains("one of"));
    }

    #[test]
    fn response_fields_are_read_at_configured_paths() {
        let url = Some("http://127.0.0.1:1/latest?zone={region}".to_owned());
        let source =
            Api::new(&CarbonSettings { url: url.clone(), ..CarbonSettings::default() }, "SE").unwrap().unwrap();
        let body = br#"{"zone":"SE","carbonIntensity":31,"datetime":"2026-11-20T13:00:00.000Z","isEstimated":true}"#;
        let reading = source.read(body, at("2026-11-20T13:20:00Z")).unwrap();
        assert_eq!(reading, Reading { at: at("2026-11-20T13:00:00Z"), grams: Decimal::from(31), estimated: true });
        assert_eq!(source.query, "?zone=SE");
        let field = Some("data.intensity.actual".to_owned());
        let source = Api::new(&CarbonSettings { url, field, ..CarbonSettings::default() }, "").unwrap().unwrap();
        let now = at("2026-11-20T13:20:00Z");
        let reading = source.read(br#"{"data":{"intensity":{"actual":212.5}}}"#, now).unwrap();
        assert_eq!((reading.grams, reading.at), (Decimal::new(2125, 1), now));
        assert!(source.read(b"{}", now).unwrap_err().contains("data.intensity.actual"));
    }
}
