//! Log lines in the formats of exporter-toolkit: logfmt and JSON, with its keys `time`, `level` and
//! `msg`.

use std::{
    fmt, io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Map, Value};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

/// The `--log.*` flags.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Logs")]
pub struct LogFlags {
    /// Least severe level to log: error, warn, info, debug, trace
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info",
          value_parser = ["error", "warn", "info", "debug", "trace"])]
    pub level: String,

    /// Format of log lines
    #[arg(long = "log.format", value_name = "FORMAT", value_enum, default_value_t)]
    pub format: LogFormat,
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// key=value pairs
    #[default]
    Logfmt,
    /// One JSON object per line
    Json,
}

/// Starts logging to standard error, at `level` and above. With the default level `RUST_LOG`
/// selects levels by module instead, for debugging.
pub fn start(level: &str, format: LogFormat) {
    let rust_log = std::env::var("RUST_LOG").ok();
    let lines = tracing_subscriber::fmt::layer().with_writer(move || StandardError(format));
    // It would report a closed standard error on standard error, which ends the program.
    let lines = lines.log_internal_errors(false).event_format(Lines(format));
    // A second initialisation happens in tests only, where the first one stays in effect.
    let _ = tracing_subscriber::registry().with(levels(level, rust_log.as_deref())).with(lines).try_init();
}

/// The levels by module: those of `RUST_LOG`, which are separated by commas and have the forms
/// `LEVEL`, `MODULE` and `MODULE=LEVEL`, with the default `level`, and `level` otherwise.
///
/// Values of fields are not compared: that takes a library of regular expressions.
fn levels(level: &str, rust_log: Option<&str>) -> Targets {
    let parts = rust_log.filter(|_| level == "info").unwrap_or_default().split(',').map(str::trim);
    // An empty part would be the module of everything.
    let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    let by_module = if parts.is_empty() { None } else { parts.join(",").parse().ok() };
    by_module.unwrap_or_else(|| Targets::new().with_default(level.parse().unwrap_or(LevelFilter::INFO)))
}

/// Standard error. Writing never fails and never waits: a closed pipe, a full disk, a stopped
/// reader or a stopped terminal costs log lines, not ticks.
struct StandardError(LogFormat);

/// Held while a line is written, because the free space of a pipe is checked before.
static WRITING: Mutex<()> = Mutex::new(());
/// Lines that were not written.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// A pipe that is ready for writing takes this many bytes without waiting (man 7 pipe, `PIPE_BUF`).
const ATOMIC: usize = 4096;

impl io::Write for StandardError {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stderr = io::stderr();
        let whole = line.chunks(ATOMIC).all(|part| is_ready(&stderr) && stderr.write_all(part).is_ok());
        let dropped = DROPPED.load(Ordering::Relaxed);
        if !whole {
            DROPPED.store(dropped + 1, Ordering::Relaxed);
        } else if dropped > 0 && is_ready(&stderr) {
            DROPPED.store(0, Ordering::Relaxed);
            let message = format!("standard error was not read: {dropped} log lines were dropped");
            let _ = match self.0 {
                LogFormat::Json => writeln!(stderr, "{}", serde_json::json!({ "level": "WARN", "msg": message })),
                LogFormat::Logfmt => writeln!(stderr, "level=WARN msg=\"{message}\""),
            };
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_ready(stderr: &io::Stderr) -> bool {
    let mut descriptors = [PollFd::new(stderr, PollFlags::OUT)];
    poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
        && !descriptors[0].revents().contains(PollFlags::ERR)
}

struct Lines(LogFormat);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields(Map::new());
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        fields.0.insert("time".to_owned(), time.into());
        fields.0.insert("level".to_owned(), event.metadata().level().as_str().into());
        if *event.metadata().level() >= Level::DEBUG {
            fields.0.insert("source".to_owned(), event.metadata().target().into());
        }
        event.record(&mut fields);
        match self.0 {
            LogFormat::Json => writeln!(out, "{}", Value::Object(fields.0)),
            LogFormat::Logfmt => {
                for (number, key) in ORDER.iter().enumerate() {
                    if let Some(value) = fields.0.remove(*key) {
                        pair(&mut out, number == 0, key, &value)?;
                    }
                }
                for (key, value) in &fields.0 {
                    pair(&mut out, false, key, value)?;
                }
                writeln!(out)
            }
        }
    }
}

/// Keys at the start of a logfmt line, in this order; `time` is always present.
const ORDER: [&str; 4] = ["time", "level", "source", "msg"];

fn pair(out: &mut Writer<'_>, first: bool, key: &str, value: &Value) -> fmt::Result {
    if !first {
        out.write_char(' ')?;
    }
    match value {
        Value::String(text) if plain(text) => write!(out, "{key}={text}"),
        // logfmt has the quotes and escapes of JSON.
        other => write!(out, "{key}={other}"),
    }
}

fn plain(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '"' && c != '=')
}

/// The fields of an event; values of other types as text.
struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let key = if field.name() == "message" { "msg" } else { field.name() };
        self.0.insert(key.to_owned(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::subscriber::with_default;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, emit: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let lines = tracing_subscriber::fmt().with_writer(move || writer.clone()).event_format(Lines(format)).finish();
        with_default(lines, emit);
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn rust_log_selects_levels_by_module_at_the_default_level() {
        let enabled = |level: &str, rust_log: Option<&str>, module: &str| {
            let of = levels(level, rust_log);
            [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE]
                .into_iter()
                .filter(|level| of.would_enable(module, level))
                .count()
        };
        assert_eq!((enabled("info", None, "http"), enabled("error", None, "http")), (3, 1));
        let by_module = Some("warn,probe_user::cpu=debug");
        assert_eq!(enabled("info", by_module, "http"), 2);
        assert_eq!(enabled("info", by_module, "probe_user::cpu::switch"), 4);
        assert_eq!(enabled("error", by_module, "probe_user::cpu"), 1, "a level was given");
        for empty_or_wrong in [" ", ",", "http=loud"] {
            assert_eq!(enabled("info", Some(empty_or_wrong), "http"), 3);
        }
        assert_eq!(enabled("info", Some("warn, "), "http"), 2);
    }

    #[test]
    fn event_is_one_line_with_escaped_content() {
        let emit = || tracing::warn!(tries = 2, file = "a b", "a \"name\"\nof two lines");
        let line = logged(LogFormat::Logfmt, emit);
        assert!(line.starts_with("time=20") && line.lines().count() == 1, "{line}");
        assert!(line.ends_with("Z level=WARN msg=\"a \\\"name\\\"\\nof two lines\" file=\"a b\" tries=2\n"), "{line}");
        let line = logged(LogFormat::Json, emit);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&value["level"], &value["msg"]), (&"WARN".into(), &"a \"name\"\nof two lines".into()));
    }
}
