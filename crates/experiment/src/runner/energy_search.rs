//! Runs a search for the least energy: measures and scores what its planner asks for, and hands
//! the result over. A resumed search takes from the journal what it has already measured.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use results::{
    cost::{Prices, carbon::IntensityOrigin},
    energy::{EnergyKind, EnergySources, Scope},
    model::{Entry, Model},
    store,
};

use super::{
    context::{RunContext, Runner, stopped_error},
    energy_goal::configuration,
    error::{Exit, RunError},
    journal::Event,
    output,
    pace::Lag,
    plan::{Axes, Configuration, Mode},
    record::Record,
    search::clip,
    signals::interruptible_sleep,
    source::Clip,
    tool::{Input, encoder_arguments},
};
use crate::search::{
    energy::{EnergySearch, Measurement, Objective, Planner, Request},
    report::{Outcome, SearchReport},
};

/// Largest difference of two equal times in seconds: a result file has microseconds.
const SAME_TIME: f64 = 1e-3;
/// An encode whose lag is not known runs in real time if it needs at most this factor of the
/// media's duration, plus this many seconds for its start and end.
const REAL_TIME: (f64, f64) = (1.02, 0.5);

/// Encodes in succession whose energy is of another kind, after which that kind is compared: one
/// may be an accident, such as a container that the probe did not see.
const OTHER_KIND: u32 = 2;
/// Start of the reason why an encode was discarded; its kind follows.
const OTHER_ENERGY: &str = "its energy is of another kind: ";
/// Most changes of the kind; with more, what the search would compare is chance.
const MAX_CHANGES: usize = 3;

/// A search that is being measured.
struct Measuring<'p> {
    search: EnergySearch,
    /// Outputs of all configurations.
    base: Axes,
    /// The source of all configurations.
    clip: Clip,
    /// Name of the run.
    name: String,
    prices: &'p Prices,
    /// True after the warm-up of this session.
    is_warm: bool,
    values: Values,
    basis: Basis,
}

/// An encode as the results have it.
struct Encode {
    n: u32,
    /// Length of its window.
    seconds: f64,
    /// By how much it fell behind, in real time.
    lag: Option<Lag>,
    entry: Entry,
}

impl Encode {
    fn kind(&self) -> Option<EnergyKind> {
        self.entry.derived.energy_kind()
    }
}

/// The values of all encodes of the record, as all other outputs have them: from the model of the
/// results. It is made again only when the record has changed, so that a resumed search makes it
/// once.
#[derive(Default)]
struct Values {
    /// Number of repeats and of scores that it was made of.
    made_of: (usize, usize),
    /// Successful repeats by configuration id, in the order of their numbers.
    encodes: BTreeMap<String, Vec<Encode>>,
    /// The kinds of the energy of all encodes that have some, in the order of the record.
    kinds: Vec<EnergyKind>,
}

impl Values {
    fn update(&mut self, record: &Record, prices: &Prices) -> Result<(), RunError> {
        let of = (record.repeats.len(), record.scores.len());
        if self.made_of == of {
            return Ok(());
        }
        let model = model(record, prices).map_err(|why| RunError::new(Exit::Partial, why))?;
        let mut entries: BTreeMap<usize, Vec<Entry>> = BTreeMap::new();
        for entry in model.entries {
            if let Some(at) = entry.scenario().configuration {
                entries.entry(at).or_default().push(entry);
            }
        }
        let positions: BTreeMap<&str, usize> =
            record.configurations.iter().enumerate().map(|(at, known)| (&*known.id, at)).collect();
        (self.made_of, self.encodes, self.kinds) = (of, BTreeMap::new(), Vec::new());
        for repeat in record.repeats.iter().filter(|repeat| repeat.status == "ok") {
            let own = positions.get(&*repeat.configuration).and_then(|at| entries.get(at));
            let (Some(window), Some(own)) = (repeat.window, own) else { continue };
            let starts =
                |entry: &&Entry| entry.scenario().start.is_some_and(|at| (at - window.start).abs() < SAME_TIME);
            let Some(entry) = own.iter().find(starts).cloned() else { continue };
            let encode = Encode { n: repeat.n, seconds: window.seconds(), lag: repeat.lag, entry };
            self.kinds.extend(encode.kind());
            self.encodes.entry(repeat.configuration.clone()).or_default().push(encode);
        }
        self.encodes.values_mut().for_each(|all| all.sort_by_key(|encode| encode.n));
        Ok(())
    }

    /// The successful repeats of a configuration that the results contain.
    fn of(&self, id: &str) -> &[Encode] {
        self.encodes.get(id).map_or(&[], Vec::as_slice)
    }
}

/// The kind of energy that is compared. Encodes with another kind are discarded, and measured again
/// as far as they are needed: the idle power becomes known during a run, or a resumed run has
/// another place or source.
#[derive(Debug, Default)]
struct Basis {
    kind: Option<EnergyKind>,
    /// The other kind of the latest encodes, and their number.
    other: Option<(EnergyKind, u32)>,
    changes: usize,
}

/// What the energy of an encode is to the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compared {
    /// Of the kind that is compared.
    Same,
    /// Of another kind.
    Other,
    /// Of the kind that is compared from now on.
    Changed,
}

impl Basis {
    /// Takes the kind of a new encode.
    ///
    /// # Errors
    /// If the kind has changed too often.
    fn note(&mut self, own: EnergyKind) -> Result<Compared, RunError> {
        let Some(kind) = self.kind.clone() else {
            self.kind = Some(own);
            return Ok(Compared::Same);
        };
        if kind == own {
            self.other = None;
            return Ok(Compared::Same);
        }
        let before = self.other.take().filter(|(other, _)| *other == own).map_or(0, |(_, count)| count);
        if before + 1 < OTHER_KIND {
            self.other = Some((own, before + 1));
            return Ok(Compared::Other);
        }
        self.changes += 1;
        if self.changes > MAX_CHANGES {
            return Err(RunError::new(
                Exit::Partial,
                format!(
                    "the kind of the energy changes again and again, between {} and {}: encodes cannot be compared. \
                     wattcast-probe doctor says why; then continue with: wattcast-analysis run --resume",
                    kind_text(&kind),
                    kind_text(&own)
                ),
            ));
        }
        self.kind = Some(own);
        Ok(Compared::Changed)
    }

    /// What is compared, for the report.
    fn describe(&self, discarded: &[String]) -> String {
        let Some(kind) = &self.kind else { return String::new() };
        let mut others: BTreeMap<&str, usize> = BTreeMap::new();
        for other in discarded.iter().filter_map(|why| why.strip_prefix(OTHER_ENERGY)) {
            *others.entry(other).or_default() += 1;
        }
        let mut text = format!("Compared is energy of the kind: {}.", kind_text(kind));
        for (other, count) in others {
            text += &format!(" Discarded, and measured again as far as needed: {count} of the kind {other}.");
        }
        text
    }
}

/// A kind of energy for people, `container, perf, with idle energy`.
fn kind_text(kind: &EnergyKind) -> String {
    format!("{kind}{}", if kind.with_idle { ", with idle energy" } else { "" })
}

/// The answer to a request.
enum Observed {
    /// The values of the encode, or why it has none.
    Result(Result<Measurement, String>),
    /// The kind of energy has changed, so the search begins again with the encodes of that kind.
    Changed,
}

/// Runs the search of the plan.
///
/// # Errors
/// When the run cannot continue.
pub(super) fn run(runner: &mut Runner<'_>, prices: &Prices) -> Result<Exit, RunError> {
    let plan = runner.record.plan().clone();
    let (Some(search), Some(first)) = (plan.energy_search, plan.configurations.first()) else {
        return Ok(Exit::Refused);
    };
    check_prices(search.objective, prices)?;
    check_filters(&search, runner)?;
    runner.discard_changed_repeats()?;
    keep_measured_configurations(runner.record);
    // All candidates have the same outputs, and so the same source.
    let clip = clip(runner, first)?;
    let mut context = runner.create_context()?;
    let mut values = Values::default();
    values.update(runner.record, prices)?;
    let mut basis = Basis::default();
    for kind in &values.kinds {
        basis.note(kind.clone())?;
    }
    let (base, name) = (first.axes.clone(), plan.name);
    let mut measuring = Measuring { search, base, clip, name, prices, is_warm: false, values, basis };
    measuring.discard_others(runner)?;
    let mut planner = measuring.planner(runner);
    loop {
        let request = planner.next_request();
        for note in planner.take_notes() {
            runner.display.log(&format!("  search  {note}"));
        }
        let Some(request) = request else { break };
        match measuring.observe(runner, &mut context, request)? {
            Observed::Result(result) => planner.record(request, result),
            Observed::Changed => {
                let kind = measuring.basis.kind.as_ref().map(kind_text).unwrap_or_default();
                runner.display.log(&format!(
                    "  search  the energy is now of the kind {kind}: begins again with the encodes of that kind"
                ));
                measuring.discard_others(runner)?;
                planner = measuring.planner(runner);
            }
        }
    }
    let report = measuring.report(&planner, &plan.encoder_args, &runner.record.discarded);
    runner.display.log(&format!("  search  {}", report.summary));
    let exit = if report.outcome == Outcome::Nothing { Exit::Partial } else { Exit::Success };
    runner.add_event(Event::Search(Box::new(report)))?;
    Ok(exit)
}

/// Checks that a difference of two values is one of the encoders, and not of the hours in which
/// they were measured.
fn check_prices(objective: Objective, prices: &Prices) -> Result<(), RunError> {
    let refused = |why: &str| Err(RunError::new(Exit::Usage, why));
    match (objective, &prices.carbon) {
        (Objective::Energy, _) => Ok(()),
        (Objective::Cost, _) if prices.tariff.is_timed() => refused(
            "--objective cost: the price of energy changes over time, so the search would compare hours instead of \
             encoders; set one price with --energy.price and a configuration without [tariff]",
        ),
        (Objective::Cost, _) => Ok(()),
        (Objective::Carbon, None) => {
            refused("--objective carbon: the carbon intensity is unknown; set --carbon.intensity or [carbon]")
        }
        (Objective::Carbon, Some(carbon)) if carbon.origin() != IntensityOrigin::Configured => refused(
            "--objective carbon: the carbon intensity changes over time, so the search would compare hours instead of \
             encoders; set one with --carbon.intensity",
        ),
        (Objective::Carbon, Some(_)) => Ok(()),
    }
}

/// Checks that the target can be scored.
fn check_filters(search: &EnergySearch, runner: &Runner<'_>) -> Result<(), RunError> {
    let needed = [(search.target_vmaf, "libvmaf", "VMAF"), (search.target_psnr, "psnr", "PSNR")];
    let has = |filter: &str| runner.scorer.is_some_and(|tool| tool.filters.contains(filter));
    match needed.into_iter().find(|(target, filter, _)| target.is_some() && !has(filter)) {
        None => Ok(()),
        Some((_, filter, name)) => Err(RunError::new(
            Exit::Refused,
            format!(
                "cannot search, {name} is unavailable: ffmpeg has no filter {filter}; set an ffmpeg that has it with \
                 --quality-ffmpeg, for example from the Python package imageio-ffmpeg or from BtbN, or another target"
            ),
        )),
    }
}

/// Removes the configurations without a repeat: those of the plan are for its checks, and an
/// interrupted search may have added one that it did not measure.
fn keep_measured_configurations(record: &mut Record) {
    let measured: BTreeSet<&str> = record.repeats.iter().map(|repeat| &*repeat.configuration).collect();
    let mut known = BTreeSet::new();
    record.configurations.retain(|one| measured.contains(&*one.id) && known.insert(one.id.clone()));
}

impl Measuring<'_> {
    fn configuration(&self, candidate: usize, rung: usize) -> Configuration {
        configuration(&self.name, &self.base, &self.search.candidates[candidate], rung)
    }

    /// A search that has no measurements yet.
    fn planner(&self, runner: &Runner<'_>) -> Planner {
        let mut planner = Planner::new(self.search.clone());
        for (at, candidate) in self.search.candidates.iter().enumerate() {
            if let Some(why) = runner.ffmpeg.missing_encoder(&candidate.encoder) {
                planner.leave_out(at, &why);
            }
        }
        planner
    }

    /// Discards the encodes whose energy is of another kind, with their files: in the results they
    /// would have no mean with the others.
    fn discard_others(&mut self, runner: &mut Runner<'_>) -> Result<(), RunError> {
        let Some(kind) = &self.basis.kind else { return Ok(()) };
        let mut others: Vec<(String, u32, String)> = Vec::new();
        for (configuration, encodes) in &self.values.encodes {
            for (n, own) in encodes.iter().filter_map(|encode| Some((encode.n, encode.kind()?))) {
                if own != *kind {
                    others.push((configuration.clone(), n, format!("{OTHER_ENERGY}{}", kind_text(&own))));
                }
            }
        }
        self.discard(runner, others)
    }

    /// Discards encodes, by configuration id and number and with the reason, and their files. The
    /// others of their configurations keep their scores.
    fn discard(&mut self, runner: &mut Runner<'_>, encodes: Vec<(String, u32, String)>) -> Result<(), RunError> {
        let (mut files, mut ids) = (BTreeSet::new(), BTreeSet::new());
        for (configuration, n, why) in encodes {
            let repeats = runner.record.successes(&configuration).filter(|repeat| repeat.n == n);
            files.extend(repeats.flat_map(|repeat| &repeat.artefacts).map(|artefact| artefact.file.clone()));
            ids.insert(configuration.clone());
            runner.add_event(Event::RepeatDiscarded { configuration, n, why })?;
        }
        let kept: BTreeSet<&PathBuf> =
            runner.record.repeats.iter().flat_map(|repeat| &repeat.artefacts).map(|artefact| &artefact.file).collect();
        for file in files.iter().filter(|file| !kept.contains(file)) {
            let _ = fs::remove_file(runner.dir.join(file));
        }
        for id in ids {
            let known = runner.record.configurations.iter().find(|known| known.id == id).cloned();
            if let Some(configuration) = known.filter(|_| runner.record.successes(&id).next().is_some()) {
                runner.score(&configuration, &self.clip)?;
            }
        }
        self.values.update(runner.record, self.prices)
    }

    /// The answer to a request: from the record, or else measured.
    fn observe(
        &mut self,
        runner: &mut Runner<'_>,
        context: &mut RunContext,
        request: Request,
    ) -> Result<Observed, RunError> {
        let configuration = self.configuration(request.candidate, request.rung);
        if !runner.record.configurations.iter().any(|known| known.id == configuration.id) {
            runner.add_event(Event::Configuration(configuration.clone()))?;
        }
        if has_repeats(runner.record, &configuration, request.repeat) {
            runner.score(&configuration, &self.clip)?;
            self.values.update(runner.record, self.prices)?;
            if let Some(measured) = self.known(runner.record, &configuration, request.repeat) {
                return Ok(Observed::Result(Ok(measured)));
            }
        }
        self.warm_up(runner, context, &configuration)?;
        runner.measure_baseline(request.block)?;
        let n = runner.record.next_repeat(&configuration.id);
        if !runner.measure_once(&configuration, request.block, &self.clip, context)? {
            return Ok(Observed::Result(Err(last_failure(runner.record, &configuration.id))));
        }
        runner.score(&configuration, &self.clip)?;
        self.values.update(runner.record, self.prices)?;
        let Some(encode) = self.values.of(&configuration.id).iter().find(|encode| encode.n == n) else {
            return Ok(Observed::Result(Err("the results do not contain the encode".to_owned())));
        };
        let Some(own) = encode.kind() else {
            return Ok(Observed::Result(self.measurement(runner.record, &configuration, encode)));
        };
        let why = format!("{OTHER_ENERGY}{}", kind_text(&own));
        match self.basis.note(own)? {
            Compared::Same => Ok(Observed::Result(self.measurement(runner.record, &configuration, encode))),
            Compared::Changed => Ok(Observed::Changed),
            Compared::Other => {
                self.discard(runner, vec![(configuration.id, n, why.clone())])?;
                Ok(Observed::Result(Err(why)))
            }
        }
    }

    /// The values of the repeat with this number among those that have values of the kind that is
    /// compared: an encode whose energy or score is missing is not asked for again.
    fn known(&self, record: &Record, configuration: &Configuration, repeat: u32) -> Option<Measurement> {
        let encodes = self.values.of(&configuration.id).iter();
        let comparable = encodes.filter(|encode| encode.kind() == self.basis.kind);
        let mut measured = comparable.filter_map(|encode| self.measurement(record, configuration, encode).ok());
        measured.nth(usize::try_from(repeat.checked_sub(1)?).ok()?)
    }

    /// Warms the machine up before the first encode of this session.
    fn warm_up(
        &mut self,
        runner: &mut Runner<'_>,
        context: &mut RunContext,
        configuration: &Configuration,
    ) -> Result<(), RunError> {
        if self.is_warm {
            return Ok(());
        }
        self.is_warm = true;
        runner.warm_up(configuration, &self.clip, context)?;
        if interruptible_sleep(runner.record.plan().protocol.cooldown) { Ok(()) } else { Err(stopped_error()) }
    }

    /// The values of an encode, or why it has none.
    fn measurement(
        &self,
        record: &Record,
        configuration: &Configuration,
        encode: &Encode,
    ) -> Result<Measurement, String> {
        let entry = &encode.entry;
        let media = record.plan().protocol.duration.as_secs_f64();
        let quality = &entry.scenario().quality;
        let [vmaf, psnr] = [&quality.vmaf, &quality.psnr].map(|score| score.as_ref().map(|score| score.value));
        let needed = [("vmaf", self.search.target_vmaf, vmaf), ("psnr", self.search.target_psnr, psnr)];
        if let Some((metric, ..)) = needed.iter().find(|(_, target, score)| target.is_some() && score.is_none()) {
            return Err(unscored(record, &configuration.id, metric));
        }
        let value = match self.search.objective {
            Objective::Energy => entry.joules_per_media_second(),
            Objective::Cost => entry.cost_per_stream_hour(),
            Objective::Carbon => entry.carbon_grams_per_stream_hour(),
        };
        let value = value.filter(|value| value.is_finite() && *value > 0.0);
        let bits = entry.derived.bits_per_second().ok_or("the size of its output is unknown")?;
        let is_short = encode.seconds <= media * REAL_TIME.0 + REAL_TIME.1;
        Ok(Measurement {
            value: value.ok_or("no energy of its whole window is known")?,
            vmaf,
            psnr,
            kbps: bits / 1000.0,
            in_time: !self.search.realtime || encode.lag.map_or(is_short, Lag::keeps_up),
        })
    }

    fn report(&self, planner: &Planner, encoder_args: &[String], discarded: &[String]) -> SearchReport {
        let unit = match self.search.objective {
            Objective::Energy => "J per second of media".to_owned(),
            Objective::Cost => format!("{} per stream hour", self.prices.currency),
            Objective::Carbon => "g CO2e per stream hour".to_owned(),
        };
        let cell = |candidate: usize, rung: usize| self.configuration(candidate, rung).id;
        let command =
            |candidate: usize, rung: usize| command_line(&self.configuration(candidate, rung).axes, encoder_args);
        let basis = self.basis.describe(discarded);
        SearchReport { basis, ..SearchReport::of(planner, &unit, &cell, &command) }
    }
}

/// True if a configuration has at least so many successful repeats.
fn has_repeats(record: &Record, configuration: &Configuration, count: u32) -> bool {
    u32::try_from(record.successes(&configuration.id).count()).is_ok_and(|found| found >= count)
}

/// Why the latest repeat of a configuration failed.
fn last_failure(record: &Record, id: &str) -> String {
    let last = record.repeats.iter().rev().find(|repeat| repeat.configuration == id);
    last.map(|repeat| repeat.detail.clone()).unwrap_or_default()
}

/// Why a configuration has no score of a metric.
fn unscored(record: &Record, id: &str, metric: &str) -> String {
    let scores = record.scores.iter().filter(|score| score.configuration == id).flat_map(|score| &score.scores);
    let mut own = scores.filter(|score| score.metric == metric);
    let why = own.find_map(|score| score.unavailable.clone()).unwrap_or_else(|| "it was not scored".to_owned());
    format!("{metric} is unavailable: {why}")
}

/// The model of the results up to now, as the service reads them.
fn model(record: &Record, prices: &Prices) -> Result<Model, String> {
    let text = serde_json::to_vec(&output::results(record)).map_err(|error| error.to_string())?;
    let run = Arc::new(store::parse(&record.header.id, &text)?);
    let lookups = run.scenarios.iter().map(EnergySources::from_file).collect();
    Ok(Model::new(&[(run, lookups)], Scope::Container, prices))
}

/// Options of ffmpeg that are for the measurement only, with the number of their values.
const MEASURING_OPTIONS: [(&str, usize); 10] = [
    ("-nostdin", 0),
    ("-hide_banner", 0),
    ("-loglevel", 1),
    ("-progress", 1),
    ("-stats_period", 1),
    ("-stream_loop", 1),
    ("-t", 1),
    ("-fflags", 1),
    ("-f", 1),
    ("-y", 0),
];

/// The command line of an encoder for a shell, with placeholders for its files. The size and the
/// frame rate of the measured input are a comment, because scaling was not measured.
fn command_line(axes: &Axes, encoder_args: &[String]) -> String {
    let input = Input::File(Path::new("INPUT"));
    let words = encoder_arguments(axes, &input, 1.0, encoder_args, Mode::File, "OUTPUT.mkv");
    let mut text = "ffmpeg".to_owned();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match MEASURING_OPTIONS.iter().find(|(option, _)| *option == word) {
            Some((_, values)) => words.by_ref().take(*values).for_each(drop),
            None => {
                text.push(' ');
                text += &shell_word(&word);
            }
        }
    }
    format!("{text}  # input of {}x{}, {} fps", axes.width, axes.height, axes.frame_rate().text())
}

/// A word as a shell reads it.
fn shell_word(word: &str) -> String {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "-_./:=,+@%".contains(char);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::plan::Rate;

    #[test]
    fn the_command_line_has_no_options_of_the_measurement() {
        let axes = Axes {
            encoder: "libx264".to_owned(),
            preset: "fast".to_owned(),
            rate: Rate::Bitrate("2000k".to_owned()),
            width: 640,
            height: 360,
            fps: 25.0,
            streams: 1,
        };
        let line = command_line(&axes, &["-x264-params".to_owned(), "a=1:b='2'".to_owned()]);
        assert!(line.starts_with("ffmpeg -i INPUT -map 0:v:0 -an -c:v libx264 -preset fast -b:v 2000k"), "{line}");
        assert!(line.ends_with(r"'a=1:b='\''2'\''' OUTPUT.mkv  # input of 640x360, 25 fps"), "{line}");
    }

    #[test]
    fn prices_that_change_over_time_are_refused() {
        let flat = Prices::defaults();
        assert!(check_prices(Objective::Energy, &flat).is_ok() && check_prices(Objective::Cost, &flat).is_ok());
        assert!(check_prices(Objective::Carbon, &flat).unwrap_err().message.contains("--carbon.intensity"));
    }

    /// A search ended with an error when the idle power became known, and a resumed one whenever it
    /// had become known after the first encode.
    #[test]
    fn a_new_kind_of_energy_is_compared_from_the_second_encode_on() {
        let kind = |source: &str, idle_known| EnergyKind::new(Scope::Container, [source], Some(idle_known));
        let (before, after) = (|| kind("perf", false), || kind("perf", true));
        let mut basis = Basis::default();
        let notes =
            [before(), before(), after(), before(), after(), after(), after()].map(|own| basis.note(own).unwrap());
        let (same, other) = (Compared::Same, Compared::Other);
        assert_eq!(notes, [same, same, other, same, other, Compared::Changed, same], "one may be an accident");
        assert_eq!(basis.kind, Some(after()));
        assert_eq!(kind_text(&before()), "container, perf, with idle energy");
        // A resumed search notes the kinds of its record, of which one may be an accident.
        let mut resumed = Basis { kind: Some(after()), ..Basis::default() };
        assert_eq!(resumed.note(after()).unwrap(), same);
        assert_eq!(resumed.describe(&[]), "Compared is energy of the kind: container, perf.");
        let discarded = ["x.mkv: the file has changed".to_owned(), format!("{OTHER_ENERGY}host, perf")];
        assert!(resumed.describe(&discarded).ends_with("measured again as far as needed: 1 of the kind host, perf."));
    }

    #[test]
    fn a_kind_that_changes_again_and_again_ends_the_search() {
        let kind = |source: &str| EnergyKind::new(Scope::Host, [source], None);
        let mut basis = Basis::default();
        basis.note(kind("perf")).unwrap();
        for at in 0..MAX_CHANGES {
            let source = ["model", "perf"][at % 2];
            assert_eq!(basis.note(kind(source)).unwrap(), Compared::Other);
            assert_eq!(basis.note(kind(source)).unwrap(), Compared::Changed);
        }
        basis.note(kind("perf")).unwrap();
        let error = basis.note(kind("perf")).unwrap_err().message;
        assert!(error.contains("between host, model and host, perf"), "{error}");
    }
}
