//! The measurement protocol: randomised blocks, each with every configuration once and with a
//! baseline before it, until every configuration has enough repeats; then the quality scores.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use cli::number::with_unit;
use results::estimate::Estimate;
use statistics::mean;

use super::{
    codec::needs_newer_ffmpeg,
    context::{RunContext, Runner, new_repeat, skip_all, stopped_error, wait_for_probe},
    error::{Exit, RunError},
    journal::{Event, Repeat},
    plan::{Axes, Configuration, Mode},
    record::Record,
    rtmp::prepare_live_source,
    signals::{interruptible_sleep, stop_requested},
    source::{Clip, hash_file, prepare_clip},
};

/// Failures per session after which a configuration is given up.
const MAX_FAILURES: usize = 2;

impl Runner<'_> {
    /// Executes the plan, or what the journal does not contain of it.
    ///
    /// # Errors
    /// When the run cannot continue.
    pub(super) fn run(&mut self) -> Result<Exit, RunError> {
        self.discard_changed_repeats()?;
        let clips = self.prepare_clips()?;
        let mut context = self.create_context()?;
        let mut failures = self.skip_unsupported_encoders()?;
        let mut warm = false;
        while let Some((block, order)) = self.next_block(&failures) {
            if !warm {
                // The machine may have cooled down since the run was interrupted.
                let first = self.record.configurations[order[0]].clone();
                self.update_progress(self.max_warm_up());
                self.warm_up(&first, &clips[&first.id], &mut context)?;
                if !interruptible_sleep(self.record.plan().protocol.cooldown) {
                    return Err(stopped_error());
                }
                warm = true;
            }
            self.measure_baseline(block)?;
            for at in order {
                let configuration = self.record.configurations[at].clone();
                if !self.measure_once(&configuration, block, &clips[&configuration.id], &mut context)? {
                    *failures.entry(configuration.id.clone()).or_default() += 1;
                }
            }
        }
        drop(context);
        self.score_all(&clips)?;
        self.warn_about_wide_intervals();
        let repeats = usize::try_from(self.record.plan().protocol.repeats).unwrap_or(usize::MAX);
        let mut configurations = self.record.configurations.iter();
        let incomplete = configurations.any(|configuration| self.record.successes(&configuration.id).count() < repeats);
        Ok(if incomplete { Exit::Partial } else { Exit::Success })
    }

    /// The clips of all configurations, by configuration id.
    fn prepare_clips(&mut self) -> Result<BTreeMap<String, Clip>, RunError> {
        let mut clips = BTreeMap::new();
        for configuration in self.record.configurations.clone() {
            match self.clip(&configuration.axes) {
                Ok(clip) => {
                    clips.insert(configuration.id, clip);
                }
                Err(_) if stop_requested() => return Err(stopped_error()),
                Err(why) => {
                    skip_all(self.journal, self.record, &why)?;
                    return Err(RunError::new(Exit::Refused, why));
                }
            }
        }
        Ok(clips)
    }

    /// Records a skipped repeat for each configuration whose encoder is missing. Returns the number
    /// of failures by configuration id.
    fn skip_unsupported_encoders(&mut self) -> Result<BTreeMap<String, usize>, RunError> {
        let mut failures = BTreeMap::new();
        for configuration in self.record.configurations.clone() {
            let encoder = &configuration.axes.encoder;
            let too_old = || needs_newer_ffmpeg(encoder, self.record.plan(), &self.ffmpeg.version);
            if let Some(why) = self.ffmpeg.missing_encoder(encoder).or_else(too_old) {
                self.display.log(&format!("  skipped {}: {why}", configuration.name));
                self.add_event(Event::Repeat(Box::new(new_repeat(&configuration, 1, 0, "skipped", &why))))?;
                failures.insert(configuration.id, MAX_FAILURES);
            }
        }
        Ok(failures)
    }

    /// Number and order of the next block: the configurations that need another repeat and have the
    /// fewest. After an interruption this completes a block before the next one starts.
    fn next_block(&self, failures: &BTreeMap<String, usize>) -> Option<(u32, Vec<usize>)> {
        let configurations = &self.record.configurations;
        let given_up = |id: &str| failures.get(id).is_some_and(|count| *count >= MAX_FAILURES);
        let next = |at: &usize| self.record.next_repeat(&configurations[*at].id);
        let mut left: Vec<usize> = (0..configurations.len())
            .filter(|at| !given_up(&configurations[*at].id) && self.needs_repeat(&configurations[*at]))
            .collect();
        let block = left.iter().map(next).min()?;
        left.retain(|at| next(at) == block);
        Some((block, self.record.plan().order(block, left)))
    }

    /// Warns about configurations that did not reach the target of --ci-target.
    fn warn_about_wide_intervals(&self) {
        let Some(target) = self.record.plan().protocol.ci_target else { return };
        for configuration in &self.record.configurations {
            if let Some(width) = self.relative_interval(configuration)
                && width > target
            {
                self.display.log(&format!(
                    "  warning {}: the interval is ±{:.2} %, the target is ±{:.2} %; --max-repeats is reached",
                    configuration.name,
                    width * 100.0,
                    target * 100.0
                ));
            }
        }
    }

    fn relative_interval(&self, configuration: &Configuration) -> Option<f64> {
        Estimate::of(&self.record.configuration_joules(&configuration.id))?.relative()
    }

    /// Discards repeats whose output files are missing or have changed, because a journal does not
    /// prove what is on disk (Av1an#435).
    pub(super) fn discard_changed_repeats(&mut self) -> Result<(), RunError> {
        let mut hashes: BTreeMap<PathBuf, Result<String, String>> = BTreeMap::new();
        let mut discarded = Vec::new();
        for repeat in self.record.repeats.iter().filter(|repeat| repeat.status == "ok") {
            for artefact in &repeat.artefacts {
                let hash = hashes.entry(artefact.file.clone()).or_insert_with(|| {
                    let hash = hash_file(&self.dir.join(&artefact.file));
                    hash.map(|(sha256, _)| sha256).map_err(|error| error.to_string())
                });
                let why = match hash {
                    Ok(sha256) if *sha256 == artefact.sha256 => continue,
                    Ok(_) => "the file has changed".to_owned(),
                    Err(error) => error.clone(),
                };
                let why = format!("{}: {why}", artefact.file.display());
                discarded.push((repeat.configuration.clone(), repeat.n, why));
                break;
            }
        }
        // hash_file fails when a stop is requested, so the list may be wrong.
        if stop_requested() {
            return Err(stopped_error());
        }
        for (configuration, n, why) in discarded {
            self.display.log(&format!("  again   {why}"));
            self.add_event(Event::RepeatDiscarded { configuration, n, why })?;
        }
        Ok(())
    }

    /// The clip of a configuration; it is made if it does not exist, and recorded.
    ///
    /// # Errors
    /// When the source cannot be read, or has changed since the run started.
    pub(super) fn clip(&mut self, axes: &Axes) -> Result<Clip, String> {
        self.display.set_step(&format!(
            "preparing the source, {}x{} at {} fps",
            axes.width,
            axes.height,
            axes.frame_rate().text()
        ));
        let plan = self.record.plan().clone();
        let clip = prepare_clip(&plan, axes, self.ffmpeg, self.dir)?;
        match self.record.clips.iter().find(|known| known.is_for(axes)) {
            Some(known) if known.sha256 != clip.sha256 => {
                return Err(format!("{}: the source has changed since the run started; start a new run", clip.origin));
            }
            Some(_) => {}
            None => self.add_event(Event::Source(clip.clone())).map_err(|error| error.message)?,
        }
        if plan.mode == Mode::Rtmp {
            prepare_live_source(&clip, self.ffmpeg, self.dir, plan.protocol.stall)?;
        }
        Ok(clip)
    }

    fn needs_repeat(&self, configuration: &Configuration) -> bool {
        let protocol = &self.record.plan().protocol;
        let count = self.record.successes(&configuration.id).count();
        let reached = |repeats: u32| count >= usize::try_from(repeats).unwrap_or(usize::MAX);
        match protocol.ci_target {
            _ if !reached(protocol.repeats) => true,
            None => false,
            Some(_) if reached(protocol.max_repeats) => false,
            Some(target) => self.relative_interval(configuration).is_none_or(|width| width > target),
        }
    }

    /// Measures and records one repeat. Returns whether it succeeded.
    ///
    /// # Errors
    /// When the run cannot continue.
    pub(super) fn measure_once(
        &mut self,
        configuration: &Configuration,
        block: u32,
        clip: &Clip,
        context: &mut RunContext,
    ) -> Result<bool, RunError> {
        self.update_progress(Duration::ZERO);
        if context.is_lost() {
            // The probe was restarted and no longer holds the lease.
            self.display.log("  place   the probe's scope is gone; requesting another");
            drop(std::mem::replace(context, RunContext::empty()));
            *context = self.create_context()?;
        }
        let n = self.record.next_repeat(&configuration.id);
        let (repeat, probe_lost) = self.measure(configuration, n, block, clip, context)?;
        let success = repeat.status == "ok";
        self.display.log(&summary(configuration, &repeat));
        self.add_event(Event::Repeat(Box::new(repeat)))?;
        if stop_requested() {
            return Err(stopped_error());
        }
        if probe_lost {
            self.display.log("  the probe does not respond; waiting for it");
            wait_for_probe(self.probe, self.timeout);
            if self.probe.alive().is_err() {
                return Err(RunError::new(
                    Exit::Partial,
                    "the probe stopped responding. Start it, and continue with: wattcast-analysis run --resume",
                ));
            }
        }
        let cooldown = self.record.plan().protocol.cooldown;
        self.display.set_step(&format!("cooling down for {}", humantime::format_duration(cooldown)));
        if !interruptible_sleep(cooldown) {
            return Err(stopped_error());
        }
        Ok(success)
    }

    /// Updates the estimate of the remaining time from the durations of past repeats. `before` is
    /// what comes before the next repeat.
    pub(super) fn update_progress(&self, before: Duration) {
        let (record, plan) = (&self.record, self.record.plan());
        if plan.search {
            // The number of steps is not known in advance.
            return self.display.set_progress(0.0, None, "");
        }
        let count = |configuration: &Configuration, status: &str| {
            let repeats = record.repeats.iter().filter(|repeat| repeat.configuration == configuration.id);
            repeats.filter(|repeat| repeat.status == status).count()
        };
        let given_up = |configuration: &Configuration| {
            count(configuration, "failed") >= MAX_FAILURES || count(configuration, "skipped") > 0
        };
        let planned = usize::try_from(plan.protocol.repeats).unwrap_or(usize::MAX);
        let float = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let mean_seconds = |filter: &dyn Fn(&Repeat) -> bool| {
            let windows = record.repeats.iter().filter(|repeat| filter(repeat)).filter_map(|repeat| repeat.window);
            mean(&windows.map(|window| window.seconds()).collect::<Vec<_>>())
        };
        let usual = mean_seconds(&|_| true).unwrap_or(plan.protocol.duration.as_secs_f64());
        let overhead = plan.protocol.cooldown.as_secs_f64() + plan.live_seconds();
        let (mut done, mut left, mut blocks, mut block) = (0.0, 0.0, 0, u32::MAX);
        for configuration in &record.configurations {
            let own = mean_seconds(&|repeat| repeat.configuration == configuration.id);
            let each = own.unwrap_or(usual) + overhead;
            let successes = count(configuration, "ok");
            done += float(successes) * each;
            if !given_up(configuration) {
                let missing = planned.saturating_sub(successes);
                left += float(missing) * each;
                blocks = blocks.max(missing);
                block = block.min(if missing > 0 { record.next_repeat(&configuration.id) } else { u32::MAX });
            }
        }
        // At least one repeat: --ci-target may require more than planned.
        left = left.max(usual + overhead);
        let has_baseline = record.baselines.iter().any(|known| known.block == block);
        left += float(blocks.saturating_sub(usize::from(has_baseline))) * plan.protocol.baseline.as_secs_f64()
            + before.as_secs_f64();
        let after = if plan.quality { "the scores" } else { "" };
        self.display.set_progress(done, Some(left), after);
    }
}

/// A log line about a repeat.
fn summary(configuration: &Configuration, repeat: &Repeat) -> String {
    let (name, n) = (&configuration.name, repeat.n);
    match (&*repeat.status, Record::repeat_joules(repeat)) {
        ("ok", Some((scope, joules))) => {
            let frames = results::convert::float(repeat.progress.frames);
            let (energy, per_frame) = (with_unit(joules, "J"), with_unit(joules / frames.max(1.0), "J/frame"));
            format!("  {:<8}{name}, repeat {n}: {energy} ({scope}), {per_frame}", "ok")
        }
        (status, _) => format!("  {status:<8}{name}, repeat {n}: {}", repeat.detail),
    }
}
