//! Scores the output files of all configurations after the measurements, each distinct file once,
//! with a cache by content.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};

use cli::number;

use super::{
    context::{Runner, stopped_error},
    environment::ExecutionEnv,
    error::{RepeatError, RunError},
    files::write_atomically,
    journal::{Artefact, Event, Score},
    plan::{Configuration, Isolation, Mode, Plan, short_digest},
    process::{Process, wait_all},
    quality::{self, Frames, PooledScore, ScoreRequest},
    signals::stop_requested,
    source::{Clip, hash_file},
    tool::{Input, Tool, encoder_arguments},
};

/// Version of the scoring method. A change invalidates cached scores.
const SCORING_VERSION: u32 = 3;
/// Directory of cached scores in the results directory.
const CACHE_DIR: &str = ".wattcast-scores";

impl Runner<'_> {
    /// Scores all configurations whose output files have no scores yet.
    ///
    /// # Errors
    /// When a stop is requested, or a file cannot be written.
    pub(super) fn score_all(&mut self, clips: &BTreeMap<String, Clip>) -> Result<(), RunError> {
        if !self.record.plan().quality {
            return Ok(());
        }
        let mut configurations = self.record.configurations.clone();
        let mode = self.record.plan().mode;
        configurations.retain(|configuration| {
            let mut artefacts = self.record.successes(&configuration.id).flat_map(|repeat| &repeat.artefacts);
            let is_unscored = |file: &Artefact| !self.record.has_scores(&configuration.id, file);
            match mode {
                Mode::File => artefacts.any(is_unscored),
                Mode::Rtmp => self.record.samples(&configuration.id).any(is_unscored),
                Mode::Null => self.record.successes(&configuration.id).next().is_some(),
            }
        });
        let began = Instant::now();
        for (done, configuration) in configurations.iter().enumerate() {
            // The first configuration gives the estimate for the others.
            let spent = began.elapsed().as_secs_f64();
            let float = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
            let left = (done > 0).then(|| spent / float(done) * float(configurations.len() - done));
            self.display.set_progress(spent, left, "");
            self.score(configuration, &clips[&configuration.id])?;
        }
        Ok(())
    }

    /// Scores the distinct output files of a configuration.
    ///
    /// # Errors
    /// When a stop is requested, or a file cannot be written.
    pub(super) fn score(&mut self, configuration: &Configuration, clip: &Clip) -> Result<(), RunError> {
        let plan = self.record.plan().clone();
        let scratch = self.create_scratch()?;
        let mut artefacts: Vec<Artefact> = Vec::new();
        for artefact in self.record.successes(&configuration.id).flat_map(|repeat| &repeat.artefacts) {
            if !artefacts.iter().any(|known| known.sha256 == artefact.sha256) {
                artefacts.push(artefact.clone());
            }
        }
        let outcome = match plan.mode {
            Mode::Rtmp => self.score_samples(configuration, clip, &plan),
            Mode::Null => {
                let file = self.dir.join(format!(".wattcast-{}-scored.mkv", configuration.id));
                let outcome = self.score_extra_encode(configuration, clip, &plan, &scratch, &file);
                let _ = fs::remove_file(file);
                outcome
            }
            Mode::File => self.score_files(configuration, clip, &plan, &scratch, artefacts),
        };
        let _ = fs::remove_dir_all(&scratch);
        outcome
    }

    /// Encodes once more, unmeasured, and scores the file, because the measured encodes were
    /// discarded.
    fn score_extra_encode(
        &mut self,
        configuration: &Configuration,
        clip: &Clip,
        plan: &Plan,
        scratch: &Path,
        file: &Path,
    ) -> Result<(), RunError> {
        self.display.set_step(&format!("encoding {} once more, to score it", configuration.name));
        let source = self.dir.join(&clip.file);
        let seconds = plan.protocol.duration.as_secs_f64();
        let (input, output) = (Input::File(&source), file.to_string_lossy());
        let args = encoder_arguments(&configuration.axes, &input, seconds, &plan.encoder_args, Mode::File, &output);
        // Use the measured ffmpeg, which is that of the image if encoders run in containers.
        let env = match self.env_config.resolve(plan.isolation) {
            Isolation::Container => {
                self.env_config.create(Isolation::Container, "scored").unwrap_or(ExecutionEnv::None)
            }
            _ => ExecutionEnv::None,
        };
        let encoded = Process::spawn(&env, &self.ffmpeg.path, &args)
            .map_err(RepeatError::from)
            .and_then(|process| Ok(wait_all(&mut [process], plan.protocol.stall, &mut |_| true)?));
        if stop_requested() {
            return Err(stopped_error());
        }
        if let Err(why) = encoded {
            return self.add_scores(configuration, "", quality::all_unavailable(&why.to_string()), None);
        }
        let (sha256, bytes) = hash_file(file)?;
        let artefact = Artefact { file: file.strip_prefix(self.dir).unwrap_or(file).to_owned(), sha256, bytes };
        self.score_files(configuration, clip, plan, scratch, vec![artefact])
    }

    fn score_files(
        &mut self,
        configuration: &Configuration,
        clip: &Clip,
        plan: &Plan,
        scratch: &Path,
        artefacts: Vec<Artefact>,
    ) -> Result<(), RunError> {
        let Some(tool) = self.scorer else { return Ok(()) };
        for artefact in artefacts {
            if self.record.has_scores(&configuration.id, &artefact) {
                continue;
            }
            self.display.set_step(&format!("scoring {}", configuration.name));
            let request = ScoreRequest {
                reference: &self.dir.join(&clip.file),
                distorted: &self.dir.join(&artefact.file),
                seconds: plan.protocol.duration.as_secs_f64(),
                size: (configuration.axes.width, configuration.axes.height),
                fps: configuration.axes.fps,
                model: &plan.vmaf_model,
                stall: plan.protocol.stall,
            };
            let cache = self.cache_file(clip, &artefact, tool, plan);
            let (scores, frames) = match read_cache(&cache) {
                Some(cached) => cached,
                None => self.score_and_cache(&request, tool, scratch, &cache)?,
            };
            self.store_scores(configuration, &artefact.sha256, scores, &frames)?;
        }
        Ok(())
    }

    /// Records the scores of a file, and writes those of its frames next to the output files.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn store_scores(
        &mut self,
        configuration: &Configuration,
        sha256: &str,
        scores: Vec<PooledScore>,
        frames: &Frames,
    ) -> Result<(), RunError> {
        let mut log = None;
        if !frames.is_empty() {
            fs::create_dir_all(self.artefacts_dir())?;
            let digest = sha256.get(..8).unwrap_or(sha256);
            let file = self.artefacts_dir().join(format!("{}-{digest}-frames.json", configuration.id));
            write_atomically(&file, &serde_json::to_vec(frames).map_err(io::Error::other)?)?;
            log = Some(file.strip_prefix(self.dir).unwrap_or(&file).to_owned());
        }
        if let Some(vmaf) = scores.iter().find(|score| score.metric == "vmaf") {
            let text = vmaf.value.map_or_else(|| vmaf.unavailable.clone().unwrap_or_default(), number::score);
            self.display.log(&format!("  {:<8}{}: VMAF {text}", "scored", configuration.name));
        }
        self.add_scores(configuration, sha256, scores, log)
    }

    /// The cache file for the scores of a file. Its name depends on the content of clip and file,
    /// on the model and on the tool, so that any run can reuse it.
    fn cache_file(&self, clip: &Clip, artefact: &Artefact, tool: &Tool, plan: &Plan) -> PathBuf {
        let model = match plan.vmaf_model.split(':').find_map(|word| word.strip_prefix("path=")) {
            // The digest detects a different model in the same file.
            Some(file) => hash_file(Path::new(file)).map_or_else(|error| error.to_string(), |(sha256, _)| sha256),
            None => plan.vmaf_model.clone(),
        };
        let tool = format!("{} {}", tool.version, tool.configuration);
        let key = format!("{SCORING_VERSION} {} {} {model} {tool}", clip.sha256, artefact.sha256);
        self.dir.join(CACHE_DIR).join(short_digest(key.as_bytes())).with_extension("json")
    }

    /// Scores a file. Caches the scores if all metrics succeeded, because a failed one may succeed
    /// the next time.
    fn score_and_cache(
        &self,
        request: &ScoreRequest<'_>,
        tool: &Tool,
        scratch: &Path,
        cache: &Path,
    ) -> Result<(Vec<PooledScore>, Frames), RunError> {
        let scored = match quality::score(request, tool, scratch) {
            Ok(scored) => scored,
            Err(_) if stop_requested() => return Err(stopped_error()),
            Err(why) => (quality::all_unavailable(&why), Frames::new()),
        };
        if !scored.1.is_empty() && scored.1.len() == quality::supported_metrics(tool) {
            fs::create_dir_all(self.dir.join(CACHE_DIR))?;
            write_atomically(cache, &serde_json::to_vec(&scored).map_err(io::Error::other)?)?;
        }
        Ok(scored)
    }

    fn add_scores(
        &mut self,
        configuration: &Configuration,
        sha256: &str,
        scores: Vec<PooledScore>,
        frames: Option<PathBuf>,
    ) -> Result<(), RunError> {
        let (configuration, sha256) = (configuration.id.clone(), sha256.to_owned());
        self.add_event(Event::Score(Score { configuration, sha256, scores, frames }))
    }
}

fn read_cache(file: &Path) -> Option<(Vec<PooledScore>, Frames)> {
    quality::parse_scores(&cli::file::read_limited(file, 64 << 20).ok()?).ok()
}
