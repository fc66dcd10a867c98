//! The start of a run: lock of the host, preflight checks, and a new or a resumed journal.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    path::Path,
};

use cli::program;
use results::energy::{self, probe::Probe};

use super::{
    context::{unix_ns, wait_for_probe},
    display::Display,
    environment::EnvConfig,
    error::{Exit, RunError},
    flags::Run,
    journal::{self, Event, Journal, RunHeader},
    plan::{Isolation, Plan, short_digest},
    preflight::{self, Check, CheckState},
    record::Record,
    tool::Tool,
};

/// A run that is ready to measure.
pub(super) struct Session {
    pub(super) journal: Journal,
    pub(super) record: Record,
    pub(super) checks: Vec<Check>,
    pub(super) ffmpeg: Tool,
    pub(super) scorer: Option<Tool>,
}

impl Session {
    /// Resumes or creates a journal, waits for the probe, and runs the preflight checks.
    ///
    /// # Errors
    /// When flags conflict with the run to resume, or the journal cannot be read or written.
    pub(super) fn prepare(
        flags: &Run,
        dir: &Path,
        env_config: &EnvConfig,
        probe: &Probe,
        display: &Display,
    ) -> Result<Self, RunError> {
        let resumed = resume(flags, dir)?;
        let (plan, notes) = match &resumed {
            Some((_, record)) => (record.plan().clone(), Vec::new()),
            None => flags.plan().map_err(usage)?,
        };
        for note in notes {
            display.log(&format!("  note    {note}"));
        }
        if !flags.protocol.skip_wait {
            display.set_step("waiting for the probe");
            wait_for_probe(probe, flags.protocol.wait_timeout);
        }
        display.set_step("running preflight checks");
        let mut checks = preflight::machine();
        checks.extend(preflight::probe(probe));
        let (ffmpeg, scorer) = find_tools(flags, &plan, dir, env_config, &mut checks);
        if let Some((mut journal, mut record)) = resumed {
            check_same_machine_and_tools(&record.header, &ffmpeg, scorer.as_ref()).map_err(usage)?;
            let event = Event::Resumed { unix_ns: unix_ns() };
            journal.write(&event)?;
            record.apply(event);
            return Ok(Self { journal, record, checks, ffmpeg, scorer });
        }
        let header = RunHeader {
            id: ulid(),
            started_unix_ns: unix_ns(),
            version: program::version().to_owned(),
            host: hostname(),
            machine: preflight::machine_facts(),
            ffmpeg: ffmpeg.clone(),
            scorer: scorer.clone(),
            plan,
        };
        let mut journal = Journal::create(dir, &unused_stem(dir))?;
        let event = Event::Run(Box::new(header));
        journal.write(&event)?;
        let record = Record::from_events(vec![event]).map_err(|why| RunError::new(Exit::Unwritable, why))?;
        Ok(Self { journal, record, checks, ffmpeg, scorer })
    }
}

fn usage(why: String) -> RunError {
    RunError::new(Exit::Usage, why)
}

/// Opens the journal of the run to resume; `None` without --resume.
fn resume(flags: &Run, dir: &Path) -> Result<Option<(Journal, Record)>, RunError> {
    let Some(named) = &flags.protocol.resume else { return Ok(None) };
    let path = match named {
        Some(path) => path.clone(),
        None => journal::newest_unfinished(dir).map_err(|error| usage(error.to_string()))?,
    };
    let failed = |why: String| usage(format!("{}: {why}", path.display()));
    let (journal, events) = Journal::resume(&path).map_err(|error| failed(error.to_string()))?;
    let record = Record::from_events(events).map_err(failed)?;
    if record.plan().search && record.plan().energy_search.is_none() {
        return Err(failed(
            "a search cannot be resumed, because each step depends on the earlier ones; start it again".to_owned(),
        ));
    }
    let mut conflicts = flags.differences_from(record.plan()).map_err(usage)?;
    conflicts.extend(flags.conflicts_with(record.plan()));
    if conflicts.is_empty() {
        return Ok(Some((journal, record)));
    }
    let conflicts = conflicts.join(", ");
    Err(usage(format!(
        "--resume continues with the plan of the run; leave out what differs ({conflicts}), or start a new run"
    )))
}

/// Finds the ffmpegs that encode and score, and adds checks of both.
fn find_tools(
    flags: &Run,
    plan: &Plan,
    dir: &Path,
    env_config: &EnvConfig,
    checks: &mut Vec<Check>,
) -> (Tool, Option<Tool>) {
    let host = Tool::find(&flags.encode.ffmpeg);
    // In containers the ffmpeg of the image encodes; that of the host prepares sources and scores.
    let encoding = match env_config.resolve(plan.isolation) {
        Isolation::Container => host.clone().and_then(|host| {
            let inside = Tool::in_container(env_config).map_err(|why| format!("ffmpeg in the image: {why}"))?;
            Ok(Tool { path: host.path, ..inside })
        }),
        _ => host.clone(),
    };
    let ffmpeg = match encoding {
        Ok(ffmpeg) => ffmpeg,
        Err(why) => {
            checks.push(Check::new("ffmpeg", CheckState::Failed, why));
            return (Tool { path: flags.encode.ffmpeg.clone(), ..Tool::default() }, None);
        }
    };
    let scorer = plan.quality.then(|| match &flags.encode.quality_ffmpeg {
        None => host,
        Some(path) => Tool::find(path),
    });
    let scorer = scorer.transpose().unwrap_or_else(|why| {
        checks.push(Check::new("quality", CheckState::Failed, why));
        None
    });
    checks.extend(preflight::tools(plan, &ffmpeg, scorer.as_ref(), dir));
    (ffmpeg, scorer)
}

/// Checks that a run is resumed on the same machine with the same tools.
///
/// # Errors
/// What differs.
fn check_same_machine_and_tools(header: &RunHeader, ffmpeg: &Tool, scorer: Option<&Tool>) -> Result<(), String> {
    let machine_id = |facts: &serde_json::Value| facts["machine_id_sha256"].as_str().map(str::to_owned);
    let (before, now) = (machine_id(&header.machine), machine_id(&preflight::machine_facts()));
    if header.host != hostname() || before.is_some() && before != now {
        return Err(format!("the run started on {}, and this is {}; resume it there", header.host, hostname()));
    }
    let tools = [
        ("encodes", "--ffmpeg", Some(&header.ffmpeg), Some(ffmpeg)),
        ("scores", "--quality-ffmpeg", header.scorer.as_ref(), scorer),
    ];
    for (verb, flag, before, now) in tools {
        let (Some(before), Some(now)) = (before, now) else { continue };
        if (&before.version, &before.configuration) != (&now.version, &now.configuration) {
            let digest = |tool: &Tool| short_digest(tool.configuration.as_bytes());
            return Err(format!(
                "the run {verb} with ffmpeg {} (configuration {}), and this is {} ({}); set the former with {flag}, or start a new run",
                before.version,
                digest(before),
                now.version,
                digest(now)
            ));
        }
    }
    Ok(())
}

/// Locks the host for this run. The lock is an abstract socket, which the kernel removes when the
/// process exits (unix(7)).
pub(super) fn lock_host() -> Result<UnixListener, RunError> {
    let bound = SocketAddr::from_abstract_name("wattcast-run").and_then(|name| UnixListener::bind_addr(&name));
    bound.map_err(|error| {
        let why = if error.kind() == io::ErrorKind::AddrInUse {
            "another run is active on this host, and two runs would disturb each other; wait until it ends".to_owned()
        } else {
            error.to_string()
        };
        RunError::new(Exit::Busy, why)
    })
}

/// The stem of result files, `test_results_` and the local time; a second later if files with that
/// stem exist.
fn unused_stem(dir: &Path) -> String {
    let mut now = jiff::Zoned::now();
    loop {
        let stem = format!("test_results_{}", now.strftime("%Y%m%d_%H%M%S"));
        let exists = |extension: &str| dir.join(format!("{stem}{extension}")).exists();
        if !exists(".json") && !exists(".journal.ndjson") {
            return stem;
        }
        now = now.saturating_add(jiff::SignedDuration::from_secs(1));
    }
}

fn hostname() -> String {
    energy::this_host().unwrap_or_else(|| "localhost".to_owned())
}

/// A ULID: time and randomness in 26 characters that sort by time (github.com/ulid/spec).
fn ulid() -> String {
    let milliseconds = u128::from(unix_ns() / 1_000_000);
    let value = milliseconds << 80 | u128::from(fastrand::u64(..)) << 16 | u128::from(fastrand::u16(..));
    let letter =
        |at: u32| char::from(b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"[usize::try_from(value >> (5 * at) & 31).unwrap_or(0)]);
    (0..26).rev().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn ulids_are_distinct_and_sort_by_time() {
        let (a, b) = (ulid(), ulid());
        assert!(a.len() == 26 && a != b && a[..8] <= b[..8], "{a} {b}");
        assert!(a.starts_with("01"), "{a}");
    }

    #[test]
    fn an_existing_stem_is_not_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = unused_stem(dir.path());
        fs::write(dir.path().join(format!("{first}.json")), "").unwrap();
        let second = unused_stem(dir.path());
        assert!(first < second && second.len() == "test_results_20260101_000000".len());
    }
}
