//! One measurement: encoders between two marks of the probe, what they used, and what they left.

use std::{
    fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

use exporter::units::Microjoules;

use super::{
    Early,
    encode::{Progress, Running, Trouble, stopped, wait},
    journal::{Artefact, Energy, Repeat, Window},
    live::Watts,
    place::{Place, Seat},
    plan::{Cell, Mode},
    protocol::{Runner, SCRATCH, Stage, row},
    quality,
    record::Record,
    rtmp,
    source::{Clip, digest},
    tool::{Input, arguments},
};
use crate::{energy::probe::Answer, statistics::mean};

impl Runner<'_> {
    /// Runs a cell between two marks. Gives the row, and whether the probe is gone.
    pub(super) fn measure(
        &mut self,
        cell: &Cell,
        n: u32,
        block: u32,
        clip: &Clip,
        stage: &mut Stage,
    ) -> Result<(Repeat, bool), Early> {
        let mut repeat = row(cell, n, block, "ok", "");
        let outputs = self.outputs(cell, n)?;
        let measured = if self.record.plan().mode == Mode::Rtmp {
            let measured = self.live_window(cell, clip, stage, &mut repeat);
            // However it went: a generator that runs on would be in the next baseline.
            if let Some(studio) = &mut stage.studio {
                studio.cut();
            }
            measured
        } else {
            self.file_window(cell, clip, stage, &outputs, &mut repeat)
        };
        let charged = measured.and_then(|done| {
            if let Some(complaint) = &done.complaint {
                // What is not applied must not stand in a label.
                return Err(Failed::Other(format!(
                    "{} does not know all that it was told: {complaint}",
                    cell.axes.encoder
                )));
            }
            self.charge(&mut repeat, &done.names)?;
            if outputs.is_empty() { Ok(Vec::new()) } else { self.keep(cell, &outputs, &done) }
        });
        let mut gone = false;
        match charged {
            Ok(artefacts) => repeat.artefacts = artefacts,
            Err(failed) => {
                (repeat.status, repeat.detail) = ("failed".to_owned(), failed.to_string());
                match failed {
                    // Whatever it was that noticed: a file that was being read, or a window that was asked for.
                    _ if stopped() => repeat.status = "stopped".to_owned(),
                    Failed::Encoder(Trouble::Ended { exit, .. }) => repeat.exit = Some(exit),
                    Failed::Probe(_) => gone = true,
                    Failed::Encoder(_) | Failed::Other(_) => {}
                }
                for output in &outputs {
                    let _ = fs::remove_file(output);
                }
            }
        }
        Ok((repeat, gone))
    }

    /// Where the streams of a repeat are written.
    pub(super) fn outputs(&self, cell: &Cell, n: u32) -> Result<Vec<PathBuf>, Early> {
        if self.record.plan().mode != Mode::File {
            return Ok(Vec::new());
        }
        let home = self.home();
        fs::create_dir_all(&home)?;
        // A name that no other attempt has: what an earlier one left may be another repeat's, too.
        let attempt = super::unix_ns() / 1_000_000;
        Ok((1..=cell.axes.streams)
            .map(|stream| home.join(format!("{}-{n}-{attempt:x}-{stream}.mkv", cell.id)))
            .collect())
    }

    /// What is ours while we run; swept after one that was killed. Made where it is not there.
    pub(super) fn scratch(&self) -> io::Result<PathBuf> {
        let dir = self.dir.join(format!("{SCRATCH}{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// What a run leaves beside its results.
    pub(super) fn home(&self) -> PathBuf {
        self.dir.join(format!("{}.files", self.journal.stem()))
    }

    /// Keeps what was encoded, each content once: repeats of most encoders are the same to the bit. A file that lacks frames is no result, whatever ffmpeg ended with: on a
    /// disk that is full some versions end well.
    pub(super) fn keep(&self, cell: &Cell, outputs: &[PathBuf], done: &Done) -> Result<Vec<Artefact>, Failed> {
        let mut all: Vec<Artefact> = Vec::new();
        let scratch = self.scratch()?;
        for (output, frames) in outputs.iter().zip(&done.frames) {
            let there = quality::count(output, self.ffmpeg, &scratch, self.record.plan().protocol.stall)?;
            if u64::try_from(there).unwrap_or(u64::MAX) != *frames {
                let said = &done.said;
                return Err(Failed::Other(format!(
                    "the file holds {there} of {frames} frames that were encoded. {said}"
                )));
            }
            let (sha256, bytes) = digest(output)?;
            let before = self.record.well(&cell.id).flat_map(|repeat| &repeat.artefacts);
            let same = before.chain(&all).find(|known| known.sha256 == sha256).cloned();
            all.push(match same {
                Some(known) => {
                    if self.dir.join(&known.file) != *output {
                        fs::remove_file(output)?;
                    }
                    known
                }
                None => {
                    let file = output.strip_prefix(self.dir).unwrap_or(output).to_owned();
                    Artefact { file, sha256, bytes }
                }
            });
        }
        Ok(all)
    }

    /// From the start of all encoders to the end of the last: all that an encode costs, and nothing beside it.
    pub(super) fn file_window(
        &self,
        cell: &Cell,
        clip: &Clip,
        stage: &Stage,
        outputs: &[PathBuf],
        repeat: &mut Repeat,
    ) -> Result<Done, Failed> {
        let plan = self.record.plan();
        let source = self.dir.join(&clip.file);
        let input = if plan.realtime { Input::Paced(&source) } else { Input::File(&source) };
        let seconds = plan.protocol.duration.as_secs_f64();
        let lines: Vec<Vec<String>> = (0..usize::try_from(cell.axes.streams).unwrap_or(1))
            .map(|at| {
                let output = outputs.get(at).map(|path| path.to_string_lossy()).unwrap_or_default();
                arguments(&cell.axes, &input, seconds, &plan.encoder_args, plan.mode, &output)
            })
            .collect();
        repeat.argv = self.shown(lines.first());
        let before = self.mean_per_frame(cell);
        let start = self.probe.mark()?;
        let watts = Watts::begin(self.probe);
        let began = Instant::now();
        let mut running = Vec::new();
        for line in &lines {
            running.push(Running::start(&stage.place, &self.ffmpeg.path, line)?);
        }
        let waited = wait(&mut running, plan.protocol.stall, &mut |all| {
            self.live.line(&cell.name, sum(all).frames, began, watts.last(), before);
            true
        });
        let end = self.probe.mark();
        repeat.watts = watts.take();
        repeat.progress = sum(&running);
        waited?;
        repeat.window = Some(Window { start, end: end? });
        Ok(Done::of(&running, &stage.place))
    }

    /// A part of live streams that have settled. Frames are those that encoders reported between the marks; a report is 0.2 s old at most.
    pub(super) fn live_window(
        &self,
        cell: &Cell,
        clip: &Clip,
        stage: &mut Stage,
        repeat: &mut Repeat,
    ) -> Result<Done, Failed> {
        let plan = self.record.plan();
        let source = rtmp::prepare(clip, self.ffmpeg, self.dir, plan.protocol.stall)?;
        let studio = stage.studio.as_mut().ok_or_else(|| Failed::Other("nothing serves".to_owned()))?;
        let urls = studio.cast(&cell.axes, &source, self.ffmpeg)?;
        let mut running = Vec::new();
        for (at, (from, to)) in urls.iter().enumerate() {
            let line = arguments(&cell.axes, &Input::Live(from), 0.0, &plan.encoder_args, Mode::Rtmp, to);
            if at == 0 {
                repeat.argv = self.shown(Some(&line));
            }
            running.push(Running::start(&stage.place, &self.ffmpeg.path, &line)?);
        }
        let frames = |all: &[Running]| all.iter().map(|one| one.progress().frames).min().unwrap_or(0);
        let mut phase = |stall: Duration,
                         until: &mut dyn FnMut(&[Running]) -> bool,
                         running: &mut Vec<Running>|
         -> Result<(), Failed> {
            wait(running, stall, &mut |all| !until(all))?;
            // Encoders of live streams end when their input does: then they measured nothing to its end.
            if running.iter_mut().any(|one| matches!(one.ended(), Ok(Some(_)))) {
                let why = studio.trouble().unwrap_or_else(|| "an encoder's input ended".to_owned());
                return Err(Failed::Other(why));
            }
            Ok(())
        };
        let comes_up = Instant::now();
        let stall = plan.protocol.stall;
        // Until the first frame a stream is not one that hangs, but one that has not come.
        let comes = |all: &[Running]| frames(all) > 0 || comes_up.elapsed() > self.patience;
        phase(self.patience * 2, &mut |all| comes(all), &mut running)?;
        if frames(&running) == 0 {
            return Err(Failed::Other(format!("no frame in {} s: {}", self.patience.as_secs(), running[0].said())));
        }
        let settled = Instant::now();
        phase(stall, &mut |_| settled.elapsed() >= plan.protocol.stabilization, &mut running)?;
        // Between the marks, as the joules are: at both ends frames are counted behind the mark.
        let start = self.probe.mark()?;
        let first = sum(&running);
        let watts = Watts::begin(self.probe);
        let began = Instant::now();
        let before = self.mean_per_frame(cell);
        let waited = phase(
            stall,
            &mut |all| {
                self.live.line(&cell.name, since(&first, &sum(all)).frames, began, watts.last(), before);
                began.elapsed() >= plan.protocol.duration
            },
            &mut running,
        );
        let end = self.probe.mark();
        let last = sum(&running);
        repeat.watts = watts.take();
        repeat.progress = since(&first, &last);
        waited?;
        let window = Window { start, end: end? };
        repeat.window = Some(window);
        // While generators still run and are known by their names.
        let beside = studio.beside();
        let answer = self.probe.answer(window.start, window.end)?;
        for (who, names) in beside {
            let mut rows = of(&answer, &names).peekable();
            // One that the probe has not seen is not known, and not nothing.
            let seen = rows.peek().is_some();
            let joules: f64 = rows.flat_map(|row| &row.energy).map(|given| given.joules).sum();
            if seen {
                repeat.beside.insert(who.to_owned(), Microjoules::from_joules(joules).0);
            }
        }
        Ok(Done::of(&running, &stage.place))
    }

    /// The command line as it is written down: without the machine's own paths.
    pub(super) fn shown(&self, line: Option<&Vec<String>>) -> Vec<String> {
        let dir = format!("{}/", self.dir.display());
        let words = line.into_iter().flatten().map(|word| word.replace(&dir, ""));
        std::iter::once("ffmpeg".to_owned()).chain(words).collect()
    }

    pub(super) fn mean_per_frame(&self, cell: &Cell) -> Option<f64> {
        let each = self.record.well(&cell.id).filter_map(|repeat| {
            let frames = repeat.progress.frames;
            (frames > 0).then_some(Record::joules(repeat)?.1 / crate::figures::float(frames))
        });
        mean(&each.collect::<Vec<_>>())
    }

    /// Asks what the window used, of the host and of the encoder.
    pub(super) fn charge(&self, repeat: &mut Repeat, names: &[String]) -> Result<(), Failed> {
        let Some(window) = repeat.window else { return Ok(()) };
        let answer = self.probe.answer(window.start, window.end)?;
        answer.whole()?;
        let energy =
            |scope: &str, package: &str, zone: &str, source: &str, joules: f64, edge: f64, off: Option<f64>| Energy {
                scope: scope.to_owned(),
                // A GPU's package is its uuid, and `all` is the machine.
                domain: if zone == "gpu" { package.to_owned() } else { format!("{zone}-{package}") },
                source: source.to_owned(),
                microjoules: Microjoules::from_joules(joules).0,
                edge_error_microjoules: Microjoules::from_joules(edge).0,
                uncertainty_microjoules: off.map(|off| Microjoules::from_joules(off).0),
            };
        for account in &answer.accounts {
            let (joules, edge) = (account.measured_joules, account.edge_error_joules);
            repeat.energy.push(energy("host", &account.package, &account.zone, &account.source, joules, edge, None));
        }
        if names.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = of(&answer, names).collect();
        if rows.is_empty() {
            repeat.detail =
                format!("the probe knows nobody of the name {}; the joules are the host's", names.join(", "));
            return Ok(());
        }
        repeat.container = rows.first().map(|row| row.container.clone());
        let mut sums: Vec<Energy> = Vec::new();
        for given in rows.iter().flat_map(|row| &row.energy) {
            let one = energy(
                "container",
                &given.package,
                &given.zone,
                &given.source,
                given.joules,
                given.edge_error_joules,
                given.uncertainty_joules,
            );
            match sums.iter_mut().find(|known| known.domain == one.domain && known.source == one.source) {
                Some(known) => {
                    known.microjoules += one.microjoules;
                    known.edge_error_microjoules += one.edge_error_microjoules;
                    known.uncertainty_microjoules =
                        known.uncertainty_microjoules.zip(one.uncertainty_microjoules).map(|(a, b)| a + b);
                }
                None => sums.push(one),
            }
        }
        repeat.energy.extend(sums);
        repeat.cpu_seconds =
            rows.iter().flat_map(|row| &row.cpu).map(|cpu| cpu.seconds).reduce(|sum, seconds| sum + seconds);
        Ok(())
    }
}

/// What encoders leave behind when they have come to a good end.
pub(super) struct Done {
    /// Whom the probe knows them as.
    names: Vec<String>,
    /// Of each stream.
    frames: Vec<u64>,
    /// What the first had to say.
    said: String,
    /// Of an option that was not used.
    complaint: Option<String>,
}

impl Done {
    fn of(all: &[Running], place: &Place) -> Self {
        let seats: Vec<Seat> = all.iter().map(|one| one.seat().clone()).collect();
        Self {
            names: place.known_as(&seats),
            frames: all.iter().map(|one| one.progress().frames).collect(),
            said: all.first().map(Running::said).unwrap_or_default(),
            complaint: all.iter().find_map(Running::complaint),
        }
    }
}

/// The rows of an answer that are whom we look for.
fn of<'a>(answer: &'a Answer, names: &'a [String]) -> impl Iterator<Item = &'a crate::energy::probe::Container> {
    answer.containers.iter().filter(|row| names.iter().any(|name| row.is(name)))
}

/// What all have done together.
fn sum(all: &[Running]) -> Progress {
    all.iter().map(Running::progress).fold(Progress::default(), |sum, one| Progress {
        frames: sum.frames + one.frames,
        dropped: sum.dropped + one.dropped,
        duplicated: sum.duplicated + one.duplicated,
        bytes: sum.bytes + one.bytes,
        media_us: sum.media_us + one.media_us,
    })
}

/// What was done from then until now.
fn since(then: &Progress, now: &Progress) -> Progress {
    Progress {
        frames: now.frames.saturating_sub(then.frames),
        dropped: now.dropped.saturating_sub(then.dropped),
        duplicated: now.duplicated.saturating_sub(then.duplicated),
        bytes: now.bytes.saturating_sub(then.bytes),
        media_us: now.media_us.saturating_sub(then.media_us),
    }
}

/// Why a repeat failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error("{0}")]
    Encoder(#[from] Trouble),
    #[error("the probe: {0}")]
    Probe(crate::energy::Refused),
    #[error("{0}")]
    Other(String),
}

impl From<crate::energy::Refused> for Failed {
    fn from(why: crate::energy::Refused) -> Self {
        // A window that will never have an answer is this repeat's loss; a probe that does not answer is everybody's.
        if why.is_passing() { Self::Probe(why) } else { Self::Other(format!("the probe: {why}")) }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<String> for Failed {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}
