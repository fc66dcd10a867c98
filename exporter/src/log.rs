//! Lines of the log, in the two forms that exporter-toolkit has: logfmt and JSON, with its keys `time`, `level` and `msg`.

use std::fmt;

use serde_json::{Map, Value};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// key=value
    #[default]
    Logfmt,
    /// An object a line
    Json,
}

/// Logs go to standard error, in `level` and above. Where that is the usual one, `RUST_LOG` may say more, by module, for one's own digging.
pub fn start(level: &str, format: LogFormat) {
    let dug = std::env::var("RUST_LOG").ok().filter(|text| level == "info" && !text.trim().is_empty());
    let filter = dug.and_then(|text| EnvFilter::try_new(text).ok()).unwrap_or_else(|| EnvFilter::new(level));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second initialisation happens in tests only, and the first one serves.
    let _ = lines.event_format(Lines(format)).try_init();
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

/// Keys that stand first, the first of them always.
const ORDER: [&str; 4] = ["time", "level", "source", "msg"];

fn pair(out: &mut Writer<'_>, first: bool, key: &str, value: &Value) -> fmt::Result {
    if !first {
        out.write_char(' ')?;
    }
    match value {
        Value::String(text) if plain(text) => write!(out, "{key}={text}"),
        // Quotes and escapes of JSON are those of logfmt.
        other => write!(out, "{key}={other}"),
    }
}

fn plain(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '"' && c != '=')
}

/// What an event says; values of unknown kinds as text.
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
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, say: impl FnOnce()) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let lines = tracing_subscriber::fmt().with_writer(move || writer.clone()).event_format(Lines(format)).finish();
        with_default(lines, say);
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_line_is_a_line_whatever_it_says() {
        let say = || tracing::warn!(tries = 2, file = "a b", "a \"name\"\nof two lines");
        let line = logged(LogFormat::Logfmt, say);
        assert!(line.starts_with("time=20") && line.lines().count() == 1, "{line}");
        assert!(line.ends_with("Z level=WARN msg=\"a \\\"name\\\"\\nof two lines\" file=\"a b\" tries=2\n"), "{line}");
        let line = logged(LogFormat::Json, say);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&value["level"], &value["msg"]), (&"WARN".into(), &"a \"name\"\nof two lines".into()));
    }
}
