//! How a plan is carried out: blocks of each cell once in an order of chance, each behind a look at the host without load, until every cell was run often enough; then the
//! scores.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    Early, End,
    encode::{Trouble, pause, stopped},
    journal::{Baseline, Event, Journal, Repeat, WarmUp},
    live::Live,
    measure::Failed,
    place::{Place, Places},
    plan::{Axes, Cell, Mode, Where},
    record::Record,
    rtmp::{self, Studio},
    source::{self, Clip, digest},
    tool::Tool,
};
use crate::{
    energy::probe::Probe,
    statistics::{inference::Interval, mean, standard_deviation},
};

/// Before our process id: what is ours while we run, in the directory of results.
pub(super) const SCRATCH: &str = ".wattcast-run-";
/// A cell that has failed so often in a session is given up.
const TRIES: usize = 2;
/// Shortest part of a baseline: below it a counter that moves once in a millisecond is off by more than its noise.
const PART: Duration = Duration::from_secs(1);
/// Two encodes of the same whose power differs by less are alike: the machine is warm.
const FLAT: f64 = 0.03;
/// A baseline that is further from the first one is another machine: less is noise, the more so the noisier it is.
const DRIFT: f64 = 0.05;

/// Who carries it out.
pub struct Runner<'a> {
    /// Of results.
    pub dir: &'a Path,
    /// Who measures.
    pub probe: &'a Probe,
    /// Where encoders can be put.
    pub places: &'a Places,
    /// For live runs.
    pub nginx: &'a Path,
    /// For what has to come up.
    pub patience: Duration,
    /// What encodes.
    pub ffmpeg: &'a Tool,
    /// What scores.
    pub scorer: Option<&'a Tool>,
    /// What people see.
    pub live: &'a Live,
    /// What is written.
    pub journal: &'a mut Journal,
    /// What was written.
    pub record: &'a mut Record,
}

/// Where a run takes place: made once, and given back when this goes.
pub struct Stage {
    pub(super) place: Place,
    pub(super) studio: Option<Studio>,
    scratch: PathBuf,
}

impl Stage {
    /// Nothing, and nowhere.
    fn nowhere() -> Self {
        Self { place: Place::None, studio: None, scratch: PathBuf::new() }
    }

    /// True where who gave one of the places is not there any more.
    fn is_lost(&self) -> bool {
        self.place.is_lost() || self.studio.as_ref().is_some_and(Studio::is_lost)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.scratch.as_os_str().is_empty() {
            let _ = fs::remove_dir_all(&self.scratch);
        }
    }
}

/// Writes a row for everything that is not run at all.
///
/// # Errors
/// When it cannot be written.
pub fn skip_all(journal: &mut Journal, record: &mut Record, why: &str) -> io::Result<()> {
    for cell in record.cells.clone() {
        if record.well(&cell.id).next().is_none() {
            let event = Event::Repeat(Box::new(row(&cell, record.next(&cell.id), 0, "skipped", why)));
            journal.write(&event)?;
            record.apply(event);
        }
    }
    Ok(())
}

pub(super) fn row(cell: &Cell, n: u32, block: u32, status: &str, detail: &str) -> Repeat {
    Repeat {
        cell: cell.id.clone(),
        n,
        block,
        status: status.to_owned(),
        detail: detail.to_owned(),
        ..Repeat::default()
    }
}

/// A run that somebody stopped.
pub(super) fn stopped_early() -> Early {
    Early::new(
        End::Stopped,
        "stopped; what was measured until now is kept. Go on with: wattcast-analysis run --resume (a search begins anew)",
    )
}

impl Runner<'_> {
    pub(super) fn note(&mut self, event: Event) -> Result<(), Early> {
        self.journal.write(&event)?;
        self.record.apply(event);
        Ok(())
    }

    /// Carries out the plan, or what of it is left.
    ///
    /// # Errors
    /// Why it ended early.
    pub fn run(&mut self) -> Result<End, Early> {
        self.distrust()?;
        let mut clips: BTreeMap<String, Clip> = BTreeMap::new();
        for cell in self.record.cells.clone() {
            match self.clip(&cell.axes) {
                Ok(clip) => {
                    clips.insert(cell.id.clone(), clip);
                }
                Err(_) if stopped() => return Err(stopped_early()),
                Err(why) => {
                    skip_all(self.journal, self.record, &why)?;
                    return Err(Early::new(End::Refused, why));
                }
            }
        }
        let mut stage = self.stage()?;
        let mut failures: BTreeMap<String, usize> = BTreeMap::new();
        // A cell that cannot be encoded here is a row, and the others are run.
        for cell in self.record.cells.clone() {
            if let Some(why) = self.ffmpeg.cannot(&cell.axes.encoder) {
                self.live.done(&format!("  skipped {}: {why}", cell.name));
                self.note(Event::Repeat(Box::new(row(&cell, 1, 0, "skipped", &why))))?;
                failures.insert(cell.id.clone(), TRIES);
            }
        }
        let mut warm = false;
        loop {
            let failed = |cell: &Cell| failures.get(&cell.id).is_some_and(|times| *times >= TRIES);
            let left: Vec<usize> = (0..self.record.cells.len())
                .filter(|at| !failed(&self.record.cells[*at]) && self.wants_more(&self.record.cells[*at]))
                .collect();
            // The least block that is not whole: after a cut, its cells are run before others begin the next.
            let Some(block) = left.iter().map(|at| self.record.next(&self.record.cells[*at].id)).min() else { break };
            let of_block =
                left.into_iter().filter(|at| self.record.next(&self.record.cells[*at].id) == block).collect();
            let order = self.record.plan().order(block, of_block);
            if !warm {
                // After a cut the machine is cold again.
                let first = self.record.cells[order[0]].clone();
                self.progress(self.warm_up_at_most());
                self.warm_up(&first, &clips[&first.id], &mut stage)?;
                // As before every other baseline.
                if !pause(self.record.plan().protocol.cooldown) {
                    return Err(stopped_early());
                }
                warm = true;
            }
            self.baseline(block)?;
            for at in order {
                let cell = self.record.cells[at].clone();
                if !self.measure_once(&cell, block, &clips[&cell.id], &mut stage)? {
                    *failures.entry(cell.id.clone()).or_default() += 1;
                }
            }
        }
        drop(stage);
        self.score_all(&clips)?;
        let missing = self.record.cells.iter().any(|cell| {
            self.record.well(&cell.id).count()
                < usize::try_from(self.record.plan().protocol.repeats).unwrap_or(usize::MAX)
        });
        for cell in &self.record.cells {
            let target = self.record.plan().protocol.ci_target;
            let reached = Interval::of(&self.record.joules_of(&cell.id)).and_then(|interval| interval.relative());
            if let (Some(target), Some(reached)) = (target, reached)
                && reached > target
            {
                let percent = |part: f64| part * 100.0;
                let text = format!("{:.2} %, and {:.2} % was wanted", percent(reached), percent(target));
                self.live.done(&format!("  warning {}: its interval is {text}; --max-repeats is reached", cell.name));
            }
        }
        Ok(if missing { End::Partly } else { End::Well })
    }

    /// Repeats whose files are gone, or not the same any more, are run again: what a journal says is not what a disk holds (Av1an#435).
    fn distrust(&mut self) -> Result<(), Early> {
        let mut checked: BTreeMap<PathBuf, Result<String, String>> = BTreeMap::new();
        let mut gone = Vec::new();
        for repeat in self.record.repeats.iter().filter(|repeat| repeat.status == "ok") {
            for artefact in &repeat.artefacts {
                let found = checked.entry(artefact.file.clone()).or_insert_with(|| {
                    digest(&self.dir.join(&artefact.file)).map(|(sha256, _)| sha256).map_err(|error| error.to_string())
                });
                let why = match found {
                    Ok(sha256) if *sha256 == artefact.sha256 => continue,
                    Ok(_) => "its bytes are not those that were written".to_owned(),
                    Err(error) => error.clone(),
                };
                let why = format!("{}: {why}", artefact.file.display());
                gone.push(Event::Distrusted { cell: repeat.cell.clone(), n: repeat.n, why });
                break;
            }
        }
        // Who was stopped has looked at nothing.
        if stopped() {
            return Err(stopped_early());
        }
        for event in gone {
            if let Event::Distrusted { why, .. } = &event {
                self.live.done(&format!("  again   {why}"));
            }
            self.note(event)?;
        }
        Ok(())
    }

    /// The clip of a cell; made where there is none, and written down.
    ///
    /// # Errors
    /// When the source cannot be read, or is not the one that this run was begun with.
    pub fn clip(&mut self, axes: &Axes) -> Result<Clip, String> {
        self.live.now(&format!("making the source, {}x{} at {} fps", axes.width, axes.height, axes.fps));
        let plan = self.record.plan().clone();
        let clip = source::prepare(&plan, axes, self.ffmpeg, self.dir)?;
        match self.record.clips.iter().find(|known| known.is_for(axes)) {
            Some(known) if known.sha256 != clip.sha256 => {
                return Err(format!("{}: the source is not what this run was begun with; begin anew", clip.origin));
            }
            Some(_) => {}
            None => self.note(Event::Source(clip.clone())).map_err(|early| early.why)?,
        }
        if plan.mode == Mode::Rtmp {
            rtmp::prepare(&clip, self.ffmpeg, self.dir, plan.protocol.stall)?;
        }
        Ok(clip)
    }

    /// Makes the places.
    ///
    /// # Errors
    /// When the mode cannot do without, and there are none.
    pub fn stage(&mut self) -> Result<Stage, Early> {
        super::place::sweep(self.dir, SCRATCH, |left| drop(fs::remove_dir_all(left)));
        let scratch = self.scratch()?;
        let mut stage = Stage { place: Place::None, studio: None, scratch };
        let (wanted, mode) = (self.record.plan().place, self.record.plan().mode);
        let place = self.places.make(wanted, "encoder");
        let live = mode == Mode::Rtmp;
        let made = match place {
            Ok(Place::None) if live => Err("--place none".to_owned()),
            // A file has nobody beside its encoder: the host's joules can be compared, if not told apart.
            Err(why) if wanted == Where::Auto && !live => {
                self.live.done(&format!("  warning place: the joules are the whole host's, because\n  {why}"));
                Ok(Place::None)
            }
            other => other,
        };
        let studio = made.and_then(|place| {
            stage.place = place;
            if live {
                Studio::open(self.places, wanted, self.nginx, &stage.scratch, self.patience).map(Some)
            } else {
                Ok(None)
            }
        });
        match studio {
            Ok(studio) => stage.studio = studio,
            Err(_) if stopped() => return Err(stopped_early()),
            Err(why) => {
                let what = if live {
                    "a live run is refused: generator, server and encoder need a cgroup each, or the encoder is charged for all three"
                } else {
                    "there is no such place"
                };
                let why = format!("{what}:\n  {why}");
                skip_all(self.journal, self.record, &why)?;
                return Err(Early::new(End::Refused, why));
            }
        }
        let place = stage.place.describe();
        self.live.done(&format!("  place   {place}"));
        self.note(Event::Place { place })?;
        Ok(stage)
    }

    /// Whether a cell is to be run once more.
    fn wants_more(&self, cell: &Cell) -> bool {
        let protocol = &self.record.plan().protocol;
        let count = self.record.well(&cell.id).count();
        let at_least = |times: u32| count >= usize::try_from(times).unwrap_or(usize::MAX);
        match protocol.ci_target {
            _ if !at_least(protocol.repeats) => true,
            None => false,
            Some(_) if at_least(protocol.max_repeats) => false,
            Some(target) => {
                let interval = Interval::of(&self.record.joules_of(&cell.id)).and_then(|interval| interval.relative());
                interval.is_none_or(|relative| relative > target)
            }
        }
    }

    /// One measurement, with all that belongs to it. Gives whether it came to a good end.
    ///
    /// # Errors
    /// When nothing can go on.
    pub fn measure_once(&mut self, cell: &Cell, block: u32, clip: &Clip, stage: &mut Stage) -> Result<bool, Early> {
        self.progress(Duration::ZERO);
        if stage.is_lost() {
            // The probe was started anew, and holds nothing for us any more.
            self.live.done("  place   the probe's scope is gone; asking for another");
            drop(std::mem::replace(stage, Stage::nowhere()));
            *stage = self.stage()?;
        }
        let n = self.record.next(&cell.id);
        let (repeat, gone) = self.measure(cell, n, block, clip, stage)?;
        let well = repeat.status == "ok";
        let joules = Record::joules(&repeat);
        let text = match (&*repeat.status, joules) {
            ("ok", Some((scope, joules))) => {
                let frames = crate::figures::float(repeat.progress.frames);
                format!(
                    "  {:<8}{}, repeat {n}: {joules:.3} J ({scope}), {:.3} mJ a frame",
                    "ok",
                    cell.name,
                    joules / frames.max(1.0) * 1000.0
                )
            }
            (status, _) => format!("  {status:<8}{}, repeat {n}: {}", cell.name, repeat.detail),
        };
        self.live.done(&text);
        self.note(Event::Repeat(Box::new(repeat)))?;
        if stopped() {
            return Err(stopped_early());
        }
        if gone {
            self.live.done("  the probe is gone; waiting for it");
            super::wait_for(self.probe, self.patience);
            if self.probe.alive().is_err() {
                return Err(Early::new(
                    End::Partly,
                    "the probe is gone and did not come back. Start it, and go on with: wattcast-analysis run --resume",
                ));
            }
        }
        self.live.now("cooling down");
        if !pause(self.record.plan().protocol.cooldown) {
            return Err(stopped_early());
        }
        Ok(well)
    }

    /// How much of the whole is done: what was done tells how long the rest takes, each configuration by its own. `before` comes first.
    fn progress(&self, before: Duration) {
        let (record, plan) = (&self.record, self.record.plan());
        if plan.search {
            // How many steps there will be is what it finds out.
            return self.live.plan(0.0, None, "");
        }
        let count = |cell: &Cell, status: &str| {
            record.repeats.iter().filter(|repeat| repeat.cell == cell.id && repeat.status == status).count()
        };
        let given_up = |cell: &Cell| count(cell, "failed") >= TRIES || count(cell, "skipped") > 0;
        let wanted = usize::try_from(plan.protocol.repeats).unwrap_or(usize::MAX);
        let float = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let took = |of: &dyn Fn(&Repeat) -> bool| {
            let windows = record.repeats.iter().filter(|repeat| of(repeat)).filter_map(|repeat| repeat.window);
            mean(&windows.map(|window| window.seconds()).collect::<Vec<_>>())
        };
        let usual = took(&|_| true).unwrap_or(plan.protocol.duration.as_secs_f64());
        let live = if plan.mode == Mode::Rtmp { plan.protocol.stabilization.as_secs_f64() } else { 0.0 };
        let beside = plan.protocol.cooldown.as_secs_f64() + live;
        let (mut done, mut left, mut blocks, mut block) = (0.0, 0.0, 0, u32::MAX);
        for cell in &record.cells {
            let each = took(&|repeat| repeat.cell == cell.id).unwrap_or(usual) + beside;
            let well = count(cell, "ok");
            done += float(well) * each;
            if !given_up(cell) {
                let lacks = wanted.saturating_sub(well);
                left += float(lacks) * each;
                blocks = blocks.max(lacks);
                block = block.min(if lacks > 0 { record.next(&cell.id) } else { u32::MAX });
            }
        }
        // At least the one that begins now, which may be one more for the interval's sake.
        left = left.max(usual + beside);
        let measured = record.baselines.iter().any(|known| known.block == block);
        left += float(blocks.saturating_sub(usize::from(measured))) * plan.protocol.baseline.as_secs_f64()
            + before.as_secs_f64();
        let after = if plan.quality && !plan.search && plan.mode != Mode::Rtmp { "the scores" } else { "" };
        self.live.plan(done, Some(left), after);
    }

    /// How long warming up may take.
    fn warm_up_at_most(&self) -> Duration {
        // Live streams settle by themselves, each time.
        if self.record.plan().mode == Mode::Rtmp { Duration::ZERO } else { self.record.plan().protocol.stabilization }
    }

    /// The host without load, in parts between marks; held against the first block's.
    ///
    /// # Errors
    /// When the probe is gone.
    pub fn baseline(&mut self, block: u32) -> Result<(), Early> {
        let length = self.record.plan().protocol.baseline;
        if length.is_zero() || self.record.baselines.iter().any(|known| known.block == block) {
            return Ok(());
        }
        self.live.now("measuring the host without load");
        let parts = u32::try_from((length.as_millis() / PART.as_millis()).clamp(1, 10)).unwrap_or(1);
        let measured = || -> Result<(f64, Vec<f64>, String), Failed> {
            let begin = self.probe.mark()?;
            let (mut from, mut watts, mut source) = (begin, Vec::new(), String::new());
            for _ in 0..parts {
                if !pause(length / parts) {
                    return Err(Failed::Encoder(Trouble::Stopped));
                }
                let to = self.probe.mark()?;
                let answer = self.probe.answer(from, to)?;
                let joules: f64 = answer.whole()?.accounts.iter().map(|account| account.measured_joules).sum();
                let mut sources: Vec<&str> = answer.accounts.iter().map(|account| &*account.source).collect();
                sources.dedup();
                source = sources.join("+");
                watts.push(joules / (to - from));
                from = to;
            }
            Ok((from - begin, watts, source))
        };
        match measured() {
            Ok((seconds, watts, source)) => {
                let note = self.drift(&watts).unwrap_or_default();
                if !note.is_empty() {
                    self.live.done(&format!("  warning baseline of block {block}: {note}"));
                }
                self.note(Event::Baseline(Baseline { block, seconds, watts, source, note }))
            }
            Err(_) if stopped() => Err(stopped_early()),
            Err(why) => Err(Early::new(
                End::Partly,
                format!("the host without load cannot be measured: {why}. Go on with: wattcast-analysis run --resume"),
            )),
        }
    }

    /// What is to be said of a baseline that is not the first's.
    fn drift(&self, watts: &[f64]) -> Option<String> {
        let first = self.record.baselines.first()?;
        let (before, now) = (mean(&first.watts)?, mean(watts)?);
        let noise = |values: &[f64]| {
            let count = f64::from(u32::try_from(values.len()).unwrap_or(u32::MAX));
            standard_deviation(values).map_or(0.0, |deviation| deviation / count.sqrt())
        };
        let allowed = (DRIFT * before).max(3.0 * noise(&first.watts).hypot(noise(watts)));
        let off = now - before;
        (off.abs() > allowed)
            .then(|| format!("{now:.2} W without load, {off:+.2} W from the first block's: something else has changed"))
    }

    /// Encodes the first cell unmeasured until two in a row are of the same power, for as long as settling may take.
    fn warm_up(&mut self, cell: &Cell, clip: &Clip, stage: &mut Stage) -> Result<(), Early> {
        let most = self.warm_up_at_most();
        if most.is_zero() {
            return Ok(());
        }
        self.live.now("warming up");
        let (began, mut watts, mut flat) = (Instant::now(), Vec::<f64>::new(), false);
        while !flat && (watts.is_empty() || began.elapsed() < most) {
            let outputs = self.outputs(cell, 0)?;
            let mut unused = row(cell, 0, 0, "ok", "");
            let power = self.file_window(cell, clip, stage, &outputs, &mut unused).and_then(|_| {
                let window = unused.window.ok_or_else(|| Failed::Other("no window".to_owned()))?;
                let answer = self.probe.answer(window.start, window.end)?;
                let joules: f64 = answer.whole()?.accounts.iter().map(|account| account.measured_joules).sum();
                Ok(joules / window.seconds())
            });
            for output in &outputs {
                let _ = fs::remove_file(output);
            }
            match power {
                Ok(power) => watts.push(power),
                Err(_) if stopped() => return Err(stopped_early()),
                // What is wrong with it shows when it is measured, too, and is a row then.
                Err(why) => {
                    self.live.done(&format!("  warning warm-up: {why}"));
                    break;
                }
            }
            flat = watts.len() > 1 && (watts[watts.len() - 1] / watts[watts.len() - 2] - 1.0).abs() < FLAT;
        }
        if watts.len() == 1 {
            self.live.done(
                "  note    warm-up: one encode took longer than --stabilization; whether power was flat is not known",
            );
        } else if !flat && watts.len() > 1 {
            let seconds = began.elapsed().as_secs_f64();
            self.live.done(&format!("  warning warm-up: power was not flat within {FLAT} after {seconds:.0} s; see the baselines and the intervals"));
        }
        self.note(Event::WarmUp(WarmUp { watts, flat }))
    }
}
