//! The experiment runner: results worth comparing.
//!
//! [`flags`] become a [`plan`]; [`preflight`] looks at the machine; [`protocol`] carries the plan out with encoders ([`encode`]) of an ffmpeg ([`tool`]) in [`place`]s of
//! their own, from a [`source`] made before, or live ([`rtmp`]); `measure` is one measurement of it, and [`quality`] scores afterwards. Every step is in the [`journal`] before the next begins, and what is known
//! is what the journal says ([`record`]); [`outcome`] makes the results of it. [`search`] looks for one value, [`live`] shows what happens.

pub mod encode;
pub mod flags;
pub mod journal;
pub mod live;
mod measure;
pub mod outcome;
pub mod place;
pub mod plan;
pub mod preflight;
pub mod protocol;
pub mod quality;
pub mod record;
pub mod rtmp;
mod scoring;
pub mod search;
pub mod source;
pub mod tool;

use std::{
    fs::{self, File},
    io::{self, IsTerminal as _, Write as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use exporter::program;
use flags::{Run, What};
use journal::{Event, Head, Journal};
use live::Live;
use place::Places;
use plan::{Plan, Where};
use preflight::{Check, State, refusals};
use protocol::Runner;
use record::Record;
use tool::Tool;

use crate::{
    cost::Prices,
    energy::{self, probe::Probe},
};

/// What a run ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All is well.
    Well,
    /// Something failed; the rest is kept.
    Partly,
    /// Refused before anything was measured.
    Refused,
    /// Another run measures on this host.
    Busy,
    /// The results cannot be written.
    Unwritable,
    /// The command line, or a file that it names, is wrong.
    Usage,
    /// Somebody stopped it.
    Stopped,
}

impl End {
    /// For shells.
    #[must_use]
    pub fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Well => 0,
            Self::Partly => 1,
            Self::Refused => 3,
            Self::Busy => 4,
            Self::Unwritable => 5,
            Self::Usage => program::EX_USAGE,
            Self::Stopped => 130,
        })
    }
}

/// Why a run ends early, in words and for shells.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct Early {
    /// For shells.
    pub end: End,
    /// What, why, and what to do.
    pub why: String,
}

impl Early {
    /// One.
    pub fn new(end: End, why: impl Into<String>) -> Self {
        Self { end, why: why.into() }
    }
}

impl From<io::Error> for Early {
    /// Of what is written while a run goes on.
    fn from(error: io::Error) -> Self {
        Self::new(
            End::Unwritable,
            format!("the results cannot be written: {error}. What was measured until now is in the journal"),
        )
    }
}

/// Runs what the flags ask for.
///
/// # Errors
/// Why it ended early; what had been measured by then is kept.
pub fn run(asked: &Run, probe: &Probe, prices: &Prices) -> Result<End, Early> {
    let usage = |why: String| Early::new(End::Usage, why);
    // A journal that is named stands where its results go.
    let beside = |path: &PathBuf| {
        path.parent().filter(|dir| !dir.as_os_str().is_empty()).map_or(PathBuf::from("."), Path::to_owned)
    };
    let named = asked.protocol.resume.as_ref().and_then(Option::as_ref).map(beside);
    let dir = named.as_ref().unwrap_or(&asked.shared.results_dir);
    if asked.protocol.resume.is_some() && (asked.names_a_plan() || asked.protocol.dry_run) {
        return Err(usage(
            "--resume goes on with the plan that the run was begun with: leave out what says another, and --dry-run"
                .to_owned(),
        ));
    }
    if asked.protocol.dry_run {
        let (plan, notes) = asked.plan().map_err(usage)?;
        let goal = match &asked.what {
            Some(What::Search { goal }) => Some(goal.describe()),
            _ => None,
        };
        return dry_run(&plan, &notes, goal.as_deref(), asked.protocol.json);
    }
    encode::heed_signals();
    let unwritable = |error: io::Error| {
        Early::new(
            End::Unwritable,
            format!(
                "{}: {error}. Results go there; name a directory that you may write with --output-dir",
                dir.display()
            ),
        )
    };
    fs::create_dir_all(dir).map_err(unwritable)?;
    let dir = fs::canonicalize(dir).map_err(unwritable)?;
    let places = asked.places(&dir);
    let _alone = alone()?;
    let live = Live::new(asked.protocol.json);
    let began = Begun::new(asked, &dir, &places, probe, &live).map_err(|early| match early.end {
        End::Unwritable => Early::new(early.end, format!("{}: {}", dir.display(), early.why)),
        _ => early,
    })?;
    if encode::stopped() {
        return Err(Early::new(End::Stopped, "stopped before anything was measured"));
    }
    let Begun { mut journal, mut record, checks, ffmpeg, scorer } = began;
    let mut note = |record: &mut Record, event: Event| -> io::Result<()> {
        journal.write(&event)?;
        record.apply(event);
        Ok(())
    };
    for check in checks.iter().filter(|check| check.state != State::Ok) {
        let word = match check.state {
            State::Failed => "refuses",
            State::Warning => "warning",
            _ => "unknown",
        };
        live.done(&format!("  {word:<8}{}: {}", check.check, check.detail));
    }
    let refused: Vec<String> =
        refusals(&checks).iter().map(|check| format!("{}: {}", check.check, check.detail)).collect();
    note(&mut record, Event::Preflight { checks })?;
    let outcome = if !refused.is_empty() && !asked.protocol.force {
        let why = refused.join("\n  ");
        protocol::skip_all(&mut journal, &mut record, &format!("refused before it began: {}", refused.join("; ")))?;
        Err(Early::new(
            End::Refused,
            format!("refused before anything was measured:\n  {why}\nMend it, or measure all the same with --force"),
        ))
    } else {
        let mut runner = Runner {
            dir: &dir,
            probe,
            places: &places,
            nginx: &asked.cell.nginx,
            patience: asked.protocol.wait_timeout,
            ffmpeg: &ffmpeg,
            scorer: scorer.as_ref(),
            live: &live,
            journal: &mut journal,
            record: &mut record,
        };
        match &asked.what {
            Some(What::Search { goal }) if asked.protocol.resume.is_none() => search::run(&mut runner, *goal),
            _ => runner.run(),
        }
    };
    live.clear();
    let status = match &outcome {
        Err(Early { end: End::Stopped, .. }) => "stopped",
        _ if record.repeats.iter().all(|repeat| repeat.status != "ok") => "failed",
        Err(_) | Ok(End::Partly) => "partial",
        Ok(_) => "ok",
    };
    let end = Event::End { status: status.to_owned(), unix_ns: unix_ns() };
    record.apply(end.clone());
    let files = outcome::write(&record, &dir, journal.stem(), prices)?;
    // Last: a run whose results could not be written has not ended, and can be resumed.
    journal.write(&end)?;
    say(&files, &record, asked.protocol.json)?;
    outcome
}

/// What is there before anything is measured.
struct Begun {
    journal: Journal,
    record: Record,
    checks: Vec<Check>,
    ffmpeg: Tool,
    scorer: Option<Tool>,
}

impl Begun {
    fn new(asked: &Run, dir: &Path, places: &Places, probe: &Probe, live: &Live) -> Result<Self, Early> {
        let resumed = match &asked.protocol.resume {
            None => None,
            Some(named) => {
                let path = match named {
                    Some(path) => path.clone(),
                    None => journal::unfinished(dir).map_err(|error| Early::new(End::Usage, error.to_string()))?,
                };
                let wrong = |why: String| Early::new(End::Usage, format!("{}: {why}", path.display()));
                let (journal, events) = Journal::resume(&path).map_err(|error| wrong(error.to_string()))?;
                let record = Record::of(events).map_err(wrong)?;
                if record.plan().search {
                    return Err(wrong(
                        "a search is not resumed: each step depends on those before. Begin it anew".to_owned(),
                    ));
                }
                Some((journal, record))
            }
        };
        if let Some((_, record)) = &resumed {
            let said = asked.contradicts(record.plan());
            if !said.is_empty() {
                let said = said.join(", ");
                let why = format!(
                    "--resume goes on with the plan that the run was begun with, and {said} says another: leave it out, or begin anew"
                );
                return Err(Early::new(End::Usage, why));
            }
        }
        let (plan, notes) = match &resumed {
            Some((_, record)) => (record.plan().clone(), Vec::new()),
            None => asked.plan().map_err(|why| Early::new(End::Usage, why))?,
        };
        for text in notes {
            live.done(&format!("  note    {text}"));
        }
        if !asked.protocol.skip_wait {
            live.now("waiting for the probe");
            wait_for(probe, asked.protocol.wait_timeout);
        }
        live.now("looking at the machine");
        let mut checks = preflight::machine();
        checks.extend(preflight::probe(probe));
        // In a container it is the image's that encodes, and the host's that makes sources and scores.
        let of_host = Tool::find(&asked.cell.ffmpeg);
        let encodes = match places.meant(plan.place) {
            Where::Container => of_host.clone().and_then(|host| {
                let inside = places.tool().map_err(|why| format!("the image's ffmpeg: {why}"))?;
                Ok(Tool { path: host.path, ..inside })
            }),
            _ => of_host.clone(),
        };
        let (ffmpeg, scorer) = match encodes {
            Ok(ffmpeg) => {
                let scorer = plan.quality.then(|| match &asked.cell.quality_ffmpeg {
                    None => of_host.clone(),
                    Some(path) => Tool::find(path),
                });
                let scorer = match scorer.transpose() {
                    Ok(scorer) => scorer,
                    Err(why) => {
                        checks.push(Check::new("quality", State::Failed, why));
                        None
                    }
                };
                checks.extend(preflight::tools(&plan, &ffmpeg, scorer.as_ref(), dir));
                (ffmpeg, scorer)
            }
            Err(why) => {
                checks.push(Check::new("ffmpeg", State::Failed, why));
                (Tool { path: asked.cell.ffmpeg.clone(), ..Tool::default() }, None)
            }
        };
        if let Some((mut journal, mut record)) = resumed {
            same(&record.head, &ffmpeg, scorer.as_ref()).map_err(|why| Early::new(End::Usage, why))?;
            let event = Event::Resumed { unix_ns: unix_ns() };
            journal.write(&event)?;
            record.apply(event);
            return Ok(Self { journal, record, checks, ffmpeg, scorer });
        }
        let head = Head {
            id: ulid(),
            started_unix_ns: unix_ns(),
            version: program::version().to_owned(),
            host: hostname(),
            machine: preflight::facts(),
            ffmpeg: ffmpeg.clone(),
            scorer: scorer.clone(),
            plan,
        };
        let stem = stem(dir);
        let mut journal = Journal::create(dir, &stem)?;
        let event = Event::Run(Box::new(head));
        journal.write(&event)?;
        let record = Record::of(vec![event]).map_err(|why| Early::new(End::Unwritable, why))?;
        Ok(Self { journal, record, checks, ffmpeg, scorer })
    }
}

/// One run is of one machine, one ffmpeg, and one that scores.
///
/// # Errors
/// Which of them is another than that it was begun with.
fn same(begun: &Head, ffmpeg: &Tool, scorer: Option<&Tool>) -> Result<(), String> {
    let machine = |facts: &serde_json::Value| facts["machine_id_sha256"].as_str().map(str::to_owned);
    let (then, now) = (machine(&begun.machine), machine(&preflight::facts()));
    if begun.host != hostname() || then.is_some() && then != now {
        return Err(format!("it was begun on {}, and this is {}: one run is of one machine", begun.host, hostname()));
    }
    let tools = [
        ("begun with", "--ffmpeg", Some(&begun.ffmpeg), Some(ffmpeg)),
        ("scored by", "--quality-ffmpeg", begun.scorer.as_ref(), scorer),
    ];
    for (what, flag, then, now) in tools {
        let (Some(then), Some(now)) = (then, now) else { continue };
        if (&then.version, &then.configuration) != (&now.version, &now.configuration) {
            let built = |tool: &Tool| plan::short_digest(tool.configuration.as_bytes());
            return Err(format!(
                "it was {what} ffmpeg {} (configuration {}), and this is {} ({}): one run is of one. Name that one with {flag}, or begin anew",
                then.version,
                built(then),
                now.version,
                built(now)
            ));
        }
    }
    Ok(())
}

/// Until the probe answers, for at most so long; whether it did is looked at afterwards.
fn wait_for(probe: &Probe, most: Duration) {
    let end = Instant::now() + most;
    while probe.alive().is_err_and(|why| why.is_passing())
        && Instant::now() < end
        && encode::pause(Duration::from_millis(250))
    {}
}

/// What would be run.
fn dry_run(plan: &Plan, notes: &[String], goal: Option<&str>, json: bool) -> Result<End, Early> {
    let order = plan.order(0, (0..plan.cells.len()).collect());
    let names: Vec<&str> = order.iter().map(|at| &*plan.cells[*at].name).collect();
    let text = if json {
        serde_json::to_string_pretty(
            &serde_json::json!({ "plan": plan, "first_block": names, "about_seconds": plan.about_seconds(), "search": goal }),
        )
        .unwrap_or_default()
    } else {
        let mut text = String::new();
        for note in notes {
            text += &format!("note: {note}\n");
        }
        if let Some(goal) = goal {
            return say_dry(&format!(
                "{text}A search for {goal}: each step is measured once, beginning with\n  {}",
                names.join("\n  ")
            ));
        }
        text += &format!(
            "{} {}, {} times each{}, about {} where encoders are as fast as the source is shown, without scores. Seed {}. The first block:\n",
            plan.cells.len(),
            if plan.cells.len() == 1 { "configuration" } else { "configurations" },
            plan.protocol.repeats,
            plan.protocol.ci_target.map_or_else(String::new, |target| {
                format!(" and up to {}, until the interval is below {} %", plan.protocol.max_repeats, target * 100.0)
            }),
            humantime::format_duration(Duration::from_secs_f64(plan.about_seconds().round())),
            plan.protocol.seed,
        );
        for name in names {
            text += &format!("  {name}\n");
        }
        text
    };
    say_dry(&text)
}

fn say_dry(text: &str) -> Result<End, Early> {
    // A reader that went away has read enough.
    let _ = io::stdout().lock().write_all(format!("{}\n", text.trim_end()).as_bytes());
    Ok(End::Well)
}

/// Says where the results are, or prints them.
fn say(files: &outcome::Files, record: &Record, json: bool) -> Result<(), Early> {
    let mut out = io::stdout().lock();
    if json {
        let text = fs::read(&files.results)?;
        let _ = out.write_all(&text).and_then(|()| out.write_all(b"\n"));
    } else {
        let _ = out.write_all(outcome::table(record).as_bytes());
        let shown = [&files.results, &files.sheet, &files.report].map(|file| file.display().to_string());
        let _ = writeln!(out, "{}\n{}\n{}", shown[0], shown[1], shown[2]);
    }
    if !json && io::stdout().is_terminal() {
        let _ = writeln!(out, "Compare two runs: wattcast-analysis compare A.json B.json");
    }
    Ok(())
}

/// Nobody else measures on this host while this is held: a name in the kernel's own list, which goes with us however we end (unix(7), abstract sockets).
fn alone() -> Result<UnixListener, Early> {
    let held = SocketAddr::from_abstract_name("wattcast-run").and_then(|name| UnixListener::bind_addr(&name));
    held.map_err(|error| {
        let why = if error.kind() == io::ErrorKind::AddrInUse {
            "another run measures on this host; two at once would measure each other. Wait until it has ended"
                .to_owned()
        } else {
            error.to_string()
        };
        Early::new(End::Busy, why)
    })
}

/// `test_results_` and now, in the machine's time zone, as result files are called; the next second where that is taken.
fn stem(dir: &Path) -> String {
    let mut now = jiff::Zoned::now();
    loop {
        let stem = format!("test_results_{}", now.strftime("%Y%m%d_%H%M%S"));
        let taken = |ending: &str| dir.join(format!("{stem}{ending}")).exists();
        if !taken(".json") && !taken(".journal.ndjson") {
            return stem;
        }
        now = now.saturating_add(jiff::SignedDuration::from_secs(1));
    }
}

fn unix_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

fn hostname() -> String {
    energy::this_host().unwrap_or_else(|| "localhost".to_owned())
}

/// Time and chance in 26 letters that sort by time (github.com/ulid/spec).
fn ulid() -> String {
    let milliseconds = u128::from(unix_ns() / 1_000_000);
    let value = milliseconds << 80 | u128::from(fastrand::u64(..)) << 16 | u128::from(fastrand::u16(..));
    let letter =
        |at: u32| char::from(b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"[usize::try_from(value >> (5 * at) & 31).unwrap_or(0)]);
    (0..26).rev().map(letter).collect()
}

/// A file, whole or not at all, and on the disk.
///
/// # Errors
/// When it cannot be written.
pub fn publish(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let draft: PathBuf = file.with_file_name(format!(".{name}.part"));
    let mut to = File::create(&draft)?;
    to.write_all(bytes)?;
    to.sync_all()?;
    fs::rename(&draft, file)?;
    // A bare name has an empty parent, which is here.
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_sorts_by_time_and_is_unlike_others() {
        let (a, b) = (ulid(), ulid());
        assert!(a.len() == 26 && a != b && a[..8] <= b[..8], "{a} {b}");
        assert!(a.starts_with("01"), "{a}");
    }

    #[test]
    fn a_name_that_is_taken_is_not_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = stem(dir.path());
        fs::write(dir.path().join(format!("{first}.json")), "").unwrap();
        let second = stem(dir.path());
        assert!(first < second && second.len() == "test_results_20260101_000000".len());
    }
}
