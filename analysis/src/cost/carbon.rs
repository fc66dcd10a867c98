//! Grams of CO₂-equivalents for a kilowatt hour: a figure that somebody gave, a file of figures over time, or a page that is asked. Each with its origin and its
//! time; a window that no figure is for has no footprint, not an average one.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::Value;
use tracing::warn;

use super::money::{Amount, decimal};
use exporter::file::read_whole;

use crate::client::{Access, Client, Failed, secret, would_tell};

/// Largest file; a line for each hour of ten years is an eighth of it.
const MAX_FILE: u64 = 16 << 20;
/// Largest answer of a source.
const MAX_ANSWER: u64 = 1 << 20;
/// Longest that a source may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Readings of a source that are kept: a month of quarters of an hour.
const MAX_READINGS: usize = 3000;

/// The settings.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Grams for a kilowatt hour, always.
    pub intensity: Option<Amount>,
    /// A file of lines `2026-11-20T13:00:00Z,45`: from when, and how many grams.
    pub file: Option<PathBuf>,
    /// A page that answers with JSON, as Electricity Maps' `/v3/carbon-intensity/latest?zone=SE` does.
    pub url: Option<String>,
    /// Where in the answer the grams are, `data.intensity`; `carbonIntensity` where it is not given.
    pub field: Option<String>,
    /// Where in the answer the time is, in RFC 3339; `datetime` where it is not given. Without it, the moment of asking.
    pub time_field: Option<String>,
    /// Where in the answer it says that the figure is estimated; `isEstimated` where it is not given.
    pub estimated_field: Option<String>,
    /// The header that carries the token, `auth-token`.
    pub token_header: Option<String>,
    /// The file that holds it.
    pub token_file: Option<PathBuf>,
    /// PEM file of the authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The file in which figures of the page are kept, in the form of `file`: without it a restart forgets them, and `advise` and `backfill` know none.
    pub history: Option<PathBuf>,
    /// How often the page is asked; `15m` where it is not given.
    pub every: Option<String>,
    /// How long the last figure holds; `2h` where it is not given.
    pub max_age: Option<String>,
}

/// Where figures are from: the label `origin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On the command line or in the configuration: no time belongs to it.
    Given,
    /// A file.
    File,
    /// A page.
    Http,
}

impl Origin {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::File => "file",
            Self::Http => "http",
        }
    }
}

/// A figure and from when it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// From then on.
    pub at: Timestamp,
    /// For a kilowatt hour.
    pub grams: Decimal,
    /// As the source says.
    pub estimated: bool,
}

/// What is known of the grid.
#[derive(Clone, Debug)]
pub struct Carbon {
    origin: Origin,
    given: Option<Decimal>,
    /// In the order of time.
    readings: Vec<Reading>,
    max_age: SignedDuration,
    /// What is read again when it is written, with the time of its last writing.
    file: Option<(PathBuf, Option<SystemTime>)>,
    /// What gets each figure of a page.
    history: Option<PathBuf>,
}

fn duration(text: Option<&str>, default: Duration) -> Result<Duration, String> {
    text.map_or(Ok(default), |text| humantime::parse_duration(text).map_err(|error| format!("{text:?}: {error}")))
}

impl Carbon {
    /// What the settings bring; `None` where they bring nothing.
    ///
    /// # Errors
    /// When two origins are given, or the file cannot be read.
    pub fn new(settings: &Settings) -> Result<Option<Self>, String> {
        let max_age = duration(settings.max_age.as_deref(), Duration::from_secs(7200))?;
        let max_age = SignedDuration::try_from(max_age).map_err(|error| error.to_string())?;
        let origin = match (&settings.intensity, &settings.file, &settings.url) {
            (None, None, None) => return Ok(None),
            (Some(_), None, None) => Origin::Given,
            (None, Some(_), None) => Origin::File,
            (None, None, Some(_)) => Origin::Http,
            _ => return Err("give one of intensity, file and url".to_owned()),
        };
        let mut readings = settings.file.as_deref().map_or(Ok(Vec::new()), read)?;
        let history = settings.history.clone().filter(|_| origin == Origin::Http);
        if let Some(file) = history.as_deref().filter(|file| file.exists()) {
            readings = read(file)?;
            let surplus = readings.len().saturating_sub(MAX_READINGS);
            readings.drain(..surplus);
        }
        let file = settings.file.clone().map(|file| (file.clone(), written(&file)));
        Ok(Some(Self { origin, given: settings.intensity.map(|amount| amount.0), readings, max_age, file, history }))
    }

    /// True when the file was written since it was read.
    #[must_use]
    pub fn is_old(&self) -> bool {
        self.file.as_ref().is_some_and(|(file, before)| written(file) != *before)
    }

    /// Reads the file again. True when other figures are known; a file that is torn meanwhile changes nothing.
    pub fn read_again(&mut self) -> bool {
        let Some((file, before)) = &mut self.file else { return false };
        *before = written(file);
        match read(file) {
            Ok(readings) => {
                self.readings = readings;
                true
            }
            Err(error) => {
                warn!("carbon intensities stay as they were: {error}");
                false
            }
        }
    }

    /// Where figures are from.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Takes a figure of a page.
    pub fn learn(&mut self, reading: Reading) {
        if self.readings.last() != Some(&reading)
            && let Some(file) = &self.history
        {
            let more = if reading.estimated { ",estimated" } else { "" };
            let opened = fs::OpenOptions::new().append(true).create(true).open(file);
            if let Err(error) = opened.and_then(|mut file| writeln!(file, "{},{}{more}", reading.at, reading.grams)) {
                warn!("{}: {error}; a restart will not know this figure", file.display());
            }
        }
        match self.readings.binary_search_by_key(&reading.at, |known| known.at) {
            Ok(at) => self.readings[at] = reading,
            Err(at) => self.readings.insert(at, reading),
        }
        let surplus = self.readings.len().saturating_sub(MAX_READINGS);
        self.readings.drain(..surplus);
    }

    /// The figure that holds at a moment, and from when; without a time where it is always the same.
    #[must_use]
    pub fn at(&self, moment: Timestamp) -> Option<(Decimal, Option<Reading>)> {
        if let Some(grams) = self.given {
            return Some((grams, None));
        }
        let next = self.readings.partition_point(|reading| reading.at <= moment);
        let reading = *self.readings.get(next.checked_sub(1)?)?;
        (moment.duration_since(reading.at) <= self.max_age).then_some((reading.grams, Some(reading)))
    }

    /// The mean over a window, by time. Nothing where no figure is for part of it.
    #[must_use]
    pub fn mean(&self, start: Timestamp, end: Timestamp) -> Option<Decimal> {
        if self.given.is_some() || end <= start {
            return self.at(start).map(|found| found.0);
        }
        let (mut sum, mut long, mut moment) = (Decimal::ZERO, Decimal::ZERO, start);
        while moment < end {
            let (grams, reading) = self.at(moment)?;
            let holds = reading?.at.checked_add(self.max_age).ok()?;
            let next = self.readings.partition_point(|reading| reading.at <= moment);
            let next = self.readings.get(next).map_or(holds, |next| next.at.min(holds)).min(end);
            // A figure holds to the end of its age, and not beyond.
            let next = if next > moment { next } else { return None };
            let piece = Decimal::from(i64::try_from(next.duration_since(moment).as_nanos()).ok()?);
            sum = sum.checked_add(piece.checked_mul(grams)?)?;
            long += piece;
            moment = next;
        }
        sum.checked_div(long)
    }
}

fn written(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).and_then(|meta| meta.modified()).ok()
}

fn read(file: &Path) -> Result<Vec<Reading>, String> {
    let failed = |why: String| format!("{}: {why}", file.display());
    let text = read_whole(file, MAX_FILE).map_err(|error| failed(error.to_string()))?;
    parse(&text).map_err(failed)
}

/// Lines of `TIME,GRAMS`; a first line that is a heading, empty lines and lines that begin with # are passed over.
///
/// # Errors
/// The first line that is wrong.
pub fn parse(text: &str) -> Result<Vec<Reading>, String> {
    let mut all = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut cells = line.split(',').map(str::trim);
        let (time, grams) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
        match (time.parse::<Timestamp>(), decimal(grams)) {
            (Ok(at), Ok(grams)) => all.push(Reading { at, grams, estimated: cells.next() == Some("estimated") }),
            _ if number == 0 => {}
            _ => return Err(format!("line {}: {line:?}; write 2026-11-20T13:00:00Z,45", number + 1)),
        }
    }
    all.sort_by_key(|reading| reading.at);
    all.dedup_by_key(|reading| reading.at);
    if all.is_empty() { Err("no figure in it".to_owned()) } else { Ok(all) }
}

/// A page that is asked.
pub struct Source {
    client: Client,
    query: String,
    field: String,
    time_field: String,
    estimated_field: String,
    token: Option<(String, PathBuf)>,
    /// How often.
    pub every: Duration,
}

impl Source {
    /// The page of the settings; `None` where there is none. `{region}` in its URL is the region.
    ///
    /// # Errors
    /// When the settings are wrong.
    pub fn new(settings: &Settings, region: &str) -> Result<Option<Self>, Failed> {
        let Some(url) = &settings.url else { return Ok(None) };
        let url = url.replace("{region}", region);
        let (base, query) = match url.split_once('?') {
            Some((base, query)) => (base.to_owned(), format!("?{query}")),
            None => (url.clone(), String::new()),
        };
        let access = Access { ca_file: settings.ca_file.clone(), ..Access::default() };
        let word = |given: &Option<String>, default: &str| given.clone().unwrap_or_else(|| default.to_owned());
        let token = settings.token_file.clone().map(|file| (word(&settings.token_header, "auth-token"), file));
        if token.is_some() && would_tell(&base) {
            return Err(Failed::Settings("the token would go over the network unencrypted; use https".to_owned()));
        }
        let every = duration(settings.every.as_deref(), Duration::from_secs(900)).map_err(Failed::Settings)?;
        Ok(Some(Self {
            client: Client::new(&base, &access, TIMEOUT, MAX_ANSWER)?,
            query,
            field: word(&settings.field, "carbonIntensity"),
            time_field: word(&settings.time_field, "datetime"),
            estimated_field: word(&settings.estimated_field, "isEstimated"),
            token,
            every: every.max(Duration::from_secs(10)),
        }))
    }

    /// Asks for the figure of now.
    ///
    /// # Errors
    /// When there is none.
    pub fn ask(&self, now: Timestamp) -> Result<Reading, String> {
        let token = match &self.token {
            Some((name, file)) => Some((name.as_str(), secret(file).map_err(|error| error.to_string())?)),
            None => None,
        };
        let headers: Vec<(&str, &str)> = token.iter().map(|(name, value)| (*name, &**value)).collect();
        let reply = self.client.get_with(&self.query, &[], &headers).map_err(|error| error.to_string())?;
        if reply.status != 200 {
            return Err(format!("{}: status {}: {}", self.client.shown(), reply.status, reply.excerpt()));
        }
        self.read(&reply.body, now).map_err(|why| format!("{}: {why}", self.client.shown()))
    }

    fn read(&self, body: &[u8], now: Timestamp) -> Result<Reading, String> {
        let answer: Value = serde_json::from_slice(body).map_err(|error| format!("no JSON ({error})"))?;
        let find = |path: &str| path.split('.').try_fold(&answer, |value, name| value.get(name));
        let grams = match find(&self.field) {
            Some(Value::Number(number)) => decimal(&number.to_string()),
            Some(Value::String(text)) => decimal(text),
            _ => Err(format!("nothing at {:?} in the answer; name another with field", self.field)),
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

    fn of(text: &str) -> Carbon {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("grid.csv");
        fs::write(&file, text).unwrap();
        Carbon::new(&Settings { file: Some(file), ..Settings::default() }).unwrap().unwrap()
    }

    #[test]
    fn a_window_has_the_mean_of_its_hours_and_none_beyond_the_file() {
        let carbon = of("from,grams\n2026-11-20T00:00:00Z,40\n2026-11-20T01:00:00Z,100,estimated\n");
        let mean = |start: &str, end: &str| carbon.mean(at(start), at(end)).map(|grams| grams.normalize().to_string());
        assert_eq!(mean("2026-11-20T00:30:00Z", "2026-11-20T01:30:00Z").as_deref(), Some("70"));
        assert_eq!(mean("2026-11-20T00:45:00Z", "2026-11-20T01:45:00Z").as_deref(), Some("85"));
        assert_eq!(mean("2026-11-19T23:30:00Z", "2026-11-20T00:30:00Z"), None, "before the first");
        assert_eq!(mean("2026-11-20T01:30:00Z", "2026-11-20T03:30:00Z"), None, "two hours after the last");
        assert!(carbon.at(at("2026-11-20T01:10:00Z")).unwrap().1.unwrap().estimated);
        let always = Carbon::new(&Settings { intensity: Some(Amount(Decimal::from(30))), ..Settings::default() });
        let always = always.unwrap().unwrap();
        assert_eq!(always.mean(at("2000-01-01T00:00:00Z"), at("2001-01-01T00:00:00Z")), Some(Decimal::from(30)));
    }

    #[test]
    fn a_file_that_is_written_again_is_read_again_and_a_torn_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("grid.csv");
        // Times of writing that differ however coarse the file system's clock is.
        let put = |text: &str, second: u64| {
            fs::write(&file, text).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            fs::File::options().write(true).open(&file).unwrap().set_modified(at).unwrap();
        };
        put("2026-11-20T00:00:00Z,40\n", 1);
        let mut carbon = Carbon::new(&Settings { file: Some(file.clone()), ..Settings::default() }).unwrap().unwrap();
        let grams = |carbon: &Carbon| carbon.at(at("2026-11-20T00:30:00Z")).map(|found| found.0);
        assert!(!carbon.is_old());
        put("2026-11-20T00:00:00Z,50\n", 2);
        assert!(carbon.is_old() && carbon.read_again() && !carbon.is_old());
        assert_eq!(grams(&carbon), Some(Decimal::from(50)));
        put("2026-11-20T00:00:00Z,", 3);
        assert!(carbon.is_old() && !carbon.read_again() && !carbon.is_old());
        assert_eq!(grams(&carbon), Some(Decimal::from(50)));
    }

    #[test]
    fn what_a_page_said_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let history = Some(dir.path().join("kept.csv"));
        let settings = Settings { url: Some("http://127.0.0.1:1/".into()), history, ..Settings::default() };
        let mut carbon = Carbon::new(&settings).unwrap().unwrap();
        let reading = Reading { at: at("2026-11-20T13:00:00Z"), grams: Decimal::new(315, 1), estimated: true };
        carbon.learn(reading);
        carbon.learn(reading);
        let text = fs::read_to_string(dir.path().join("kept.csv")).unwrap();
        assert_eq!(text, "2026-11-20T13:00:00Z,31.5,estimated\n", "once, though it was told twice");
        let again = Carbon::new(&settings).unwrap().unwrap();
        assert_eq!(again.at(at("2026-11-20T13:10:00Z")), Some((reading.grams, Some(reading))));
    }

    #[test]
    fn a_wrong_line_is_named() {
        assert!(parse("2026-11-20T00:00:00Z,40\n2026-11-20T01:00:00Z,green").unwrap_err().contains("line 2"));
        assert!(parse("a,b\n").unwrap_err().contains("no figure"));
        let both = Settings { intensity: Some(Amount(Decimal::ONE)), url: Some("x".into()), ..Settings::default() };
        assert!(Carbon::new(&both).unwrap_err().contains("one of"));
    }

    #[test]
    fn an_answer_is_read_where_the_settings_say() {
        let url = Some("http://127.0.0.1:1/latest?zone={region}".to_owned());
        let source = Source::new(&Settings { url: url.clone(), ..Settings::default() }, "SE").unwrap().unwrap();
        let body = br#"{"zone":"SE","carbonIntensity":31,"datetime":"2026-11-20T13:00:00.000Z","isEstimated":true}"#;
        let reading = source.read(body, at("2026-11-20T13:20:00Z")).unwrap();
        assert_eq!(reading, Reading { at: at("2026-11-20T13:00:00Z"), grams: Decimal::from(31), estimated: true });
        assert_eq!(source.query, "?zone=SE");
        let field = Some("data.intensity.actual".to_owned());
        let source = Source::new(&Settings { url, field, ..Settings::default() }, "").unwrap().unwrap();
        let now = at("2026-11-20T13:20:00Z");
        let reading = source.read(br#"{"data":{"intensity":{"actual":212.5}}}"#, now).unwrap();
        assert_eq!((reading.grams, reading.at), (Decimal::new(2125, 1), now));
        assert!(source.read(b"{}", now).unwrap_err().contains("data.intensity.actual"));
    }
}
