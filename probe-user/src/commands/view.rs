//! `view`: shows a recording in the live page.

use std::{
    fmt::Write as _,
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use cli::terminal::printable;
use http::{
    flags::ServerOptions,
    server::{self, Port},
};

use super::serve::end_events;
use crate::{
    attribution::Accountant,
    config::{Config, SHORTEST_TICK},
    endpoints::{
        ShownRecording,
        routes::{self, Published},
    },
    host::{availability::SourceState, privileges},
    snapshot::{Snapshot, history::Ring},
    tick::recording::{Reader, RecordingError},
};

/// Memory of the ticks that are shown: some hours of a busy machine.
const RING_BYTES: usize = 128 << 20;

/// Replays the recording in `file` and serves its page until a signal. Of a recording that was cut
/// off, everything up to there is shown.
///
/// # Errors
/// When the file is not a recording or has no tick, the address cannot be bound, or the privileges
/// cannot be dropped.
pub fn run(config: &Config, serving: &ServerOptions, file: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listeners = server::bind(&config.view_addresses(), "--web.listen-address")?;
        let Recording { snapshot, shown, tick } = Recording::replay(config, file)?;
        // Root may read the recording; its page needs no rights.
        privileges::drop_all(None::<fn() -> bool>).context("cannot drop the privileges of the start")?;
        eprintln!("{}", printable(&shown.about));
        let (requests, _) = mpsc::channel();
        let published = Arc::new(Published::of_recording(tick, shown, config.energy_price(), requests));
        published.publish(Arc::new(snapshot));
        for address in server::addresses(&listeners) {
            eprintln!("  {}://{address}/  until Ctrl-C", serving.web.scheme());
        }
        tokio::spawn(end_events(published.clone()));
        let extra_routes = routes::routes(published.clone(), &serving.telemetry_path);
        let port = Port { extra_routes, ..Port::new(listeners, published) };
        server::serve(serving, vec![port], "page", std::future::pending::<()>()).await?;
        Ok(())
    })
}

/// A recording that was replayed to its end.
struct Recording {
    /// The last tick, with the history of those before it.
    snapshot: Snapshot,
    /// Its host, and the sentence about it.
    shown: ShownRecording,
    /// The usual length of its ticks.
    tick: Duration,
}

impl Recording {
    fn replay(config: &Config, file: &Path) -> Result<Self> {
        let mut reader = Reader::open(file)?;
        let (origin, probe) = reader.recorded();
        let from = origin.map_or("nothing", |origin| origin.as_str());
        let detail = format!("{}, recorded from {from} by probe {probe}", file.display());
        let bytes = config.limits.window_bytes.max(RING_BYTES);
        let host = reader.setup().host.clone();
        let mut accountant = Accountant::new(reader.setup().clone(), config.rules(), bytes);
        accountant.set_sample_age(config.energy.sample_age * 3600);
        let (mut last, mut first_ns, mut cut_off) = (None, None, None);
        loop {
            match reader.next_tick() {
                Ok(Some(tick)) => {
                    first_ns.get_or_insert(tick.unix_ns);
                    last = Some(accountant.tick(&tick));
                }
                Ok(None) => break,
                Err(error) => {
                    cut_off = Some(error);
                    break;
                }
            }
        }
        let (Some(mut snapshot), Some(first_ns)) = (last, first_ns) else {
            return match cut_off {
                Some(error) => Err(error).context("no tick can be read"),
                None => bail!("{}: no tick in it", file.display()),
            };
        };
        snapshot.sources = vec![SourceState::new("replay", Ok(detail), false)].into();
        let about = sentence(file, &host, first_ns, &snapshot, cut_off.as_ref());
        Ok(Self { tick: usual_tick(&snapshot.ring), snapshot, shown: ShownRecording { host, about } })
    }
}

/// The sentence about a recording: its file, its host, its time, and what is not shown of it.
fn sentence(file: &Path, host: &str, first_ns: i64, snapshot: &Snapshot, cut_off: Option<&RecordingError>) -> String {
    let (from, to) = (time(first_ns), time(snapshot.unix_ns));
    let host = if host.is_empty() { String::new() } else { format!(" of host {host}") };
    let mut text = format!("RECORDING {}{host}, from {from} to {to}", file.display());
    if let Some(oldest) = snapshot.ring.ticks().next().filter(|oldest| oldest.unix_ns > first_ns) {
        let _ = write!(text, ". It is longer than what can be shown, which begins at {}", time(oldest.unix_ns));
    }
    if let Some(why) = cut_off {
        let _ = write!(text, ". It is cut off: {why}");
    }
    text
}

/// A time for people, in UTC to the second.
fn time(unix_ns: i64) -> String {
    let since = Duration::from_nanos(u64::try_from(unix_ns).unwrap_or(0));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

/// The median length of the ticks, in whole tenths of a second.
fn usual_tick(ring: &Ring) -> Duration {
    let ends: Vec<i64> = ring.ticks().map(|tick| tick.monotonic_ns).collect();
    let mut lengths: Vec<i64> = ends.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
    lengths.sort_unstable();
    let median = lengths.get(lengths.len() / 2).copied().unwrap_or(0);
    let tenths = u64::try_from(median).unwrap_or(0).saturating_add(50_000_000) / 100_000_000;
    Duration::from_millis(tenths.saturating_mul(100)).max(SHORTEST_TICK)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _};

    use flate2::read::MultiGzDecoder;

    use super::*;

    fn config() -> Config {
        clap::Parser::try_parse_from(["wattcast-probe"]).unwrap()
    }

    fn golden() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recordings/two-containers.rec"))
    }

    #[test]
    fn a_recording_is_shown_with_its_time() {
        let recording = Recording::replay(&config(), golden()).unwrap();
        assert!(recording.shown.about.starts_with("RECORDING /"), "{}", recording.shown.about);
        assert!(
            recording.shown.about.contains(", from ") && !recording.shown.about.contains("cut off"),
            "{}",
            recording.shown.about
        );
        let ring = &recording.snapshot.ring;
        assert!(ring.ticks().count() > 1 && ring.ticks().any(|tick| !tick.energy.is_empty()));
        assert!(recording.tick >= SHORTEST_TICK);
    }

    #[test]
    fn a_recording_names_its_host_and_not_the_one_that_shows_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.rec");
        let mut plain = String::new();
        MultiGzDecoder::new(File::open(golden()).unwrap()).read_to_string(&mut plain).unwrap();
        let named = plain.replacen("\"setup\":{", "\"setup\":{\"host\":\"edge-7\",", 1);
        std::fs::write(&file, &named).unwrap();
        let shown = Recording::replay(&config(), &file).unwrap().shown;
        assert_eq!(shown.host, "edge-7");
        assert!(shown.about.contains("a.rec of host edge-7, from "), "{}", shown.about);
        let older = Recording::replay(&config(), golden()).unwrap().shown;
        assert!(older.host.is_empty() && !older.about.contains("of host"), "{}", older.about);
        std::fs::write(&file, named.replacen("edge-7", &"x".repeat(2000), 1)).unwrap();
        assert!(Recording::replay(&config(), &file).is_err());
    }

    #[test]
    fn a_recording_that_is_cut_off_shows_what_is_whole_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.rec");
        let whole = std::fs::read(golden()).unwrap();
        std::fs::write(&file, &whole[..whole.len() - whole.len() / 4]).unwrap();
        let recording = Recording::replay(&config(), &file).unwrap();
        assert!(recording.shown.about.contains("cut off"), "{}", recording.shown.about);
        let ticks = |recording: &Recording| recording.snapshot.ring.ticks().count();
        assert!((1..ticks(&Recording::replay(&config(), golden()).unwrap())).contains(&ticks(&recording)));
        std::fs::write(&file, "no recording").unwrap();
        assert!(Recording::replay(&config(), &file).is_err());
    }

    #[test]
    fn times_of_any_recording_are_printed() {
        assert_eq!(time(1_700_000_000_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!((time(i64::MIN), &time(i64::MAX)[..4]), ("1970-01-01T00:00:00Z".to_owned(), "2262"));
    }
}
