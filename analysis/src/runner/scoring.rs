//! Scores of what cells left, each content once, after everything was measured; and the cache by content.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};

use super::{
    Early,
    encode::{Running, stopped, wait},
    journal::{Artefact, Event, Score},
    measure::Failed,
    place::Place,
    plan::{Cell, Mode, Where},
    protocol::{Runner, stopped_early},
    quality::{self, Question},
    source::{Clip, digest},
    tool::{Input, arguments},
};

/// How scores are made: another number where the same files would get others, so that none is taken from before.
const SCORING: u32 = 2;
/// Of scores, in the directory of results, by content.
const SCORES: &str = ".wattcast-scores";

impl Runner<'_> {
    /// Scores what every cell left, each content once.
    ///
    /// # Errors
    /// When it is stopped, or cannot be written.
    pub fn score_all(&mut self, clips: &BTreeMap<String, Clip>) -> Result<(), Early> {
        if !self.record.plan().quality {
            return Ok(());
        }
        let mut cells = self.record.cells.clone();
        let mode = self.record.plan().mode;
        cells.retain(|cell| {
            let scored =
                |sha256: &str| self.record.scores.iter().any(|score| score.cell == cell.id && score.sha256 == sha256);
            let mut artefacts = self.record.well(&cell.id).flat_map(|repeat| &repeat.artefacts);
            match mode {
                Mode::File => artefacts.any(|artefact| !scored(&artefact.sha256)),
                _ => self.record.well(&cell.id).next().is_some(),
            }
        });
        let began = Instant::now();
        for (done, cell) in cells.iter().enumerate() {
            // Nothing of how long it takes is known before the first.
            let spent = began.elapsed().as_secs_f64();
            let float = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
            let left = (done > 0).then(|| spent / float(done) * float(cells.len() - done));
            self.live.plan(spent, left, "");
            self.score(cell, &clips[&cell.id])?;
        }
        Ok(())
    }

    /// Scores what a cell left.
    ///
    /// # Errors
    /// As above.
    pub fn score(&mut self, cell: &Cell, clip: &Clip) -> Result<(), Early> {
        let plan = self.record.plan().clone();
        let scratch = self.scratch()?;
        let mut artefacts: Vec<Artefact> = Vec::new();
        for artefact in self.record.well(&cell.id).flat_map(|repeat| &repeat.artefacts) {
            if !artefacts.iter().any(|known| known.sha256 == artefact.sha256) {
                artefacts.push(artefact.clone());
            }
        }
        let mut extra = None;
        let outcome = self.score_each(cell, clip, &plan, &scratch, artefacts, &mut extra);
        if let Some(file) = extra {
            let _ = fs::remove_file(file);
        }
        let _ = fs::remove_dir_all(&scratch);
        outcome
    }

    fn score_each(
        &mut self,
        cell: &Cell,
        clip: &Clip,
        plan: &super::plan::Plan,
        scratch: &Path,
        mut artefacts: Vec<Artefact>,
        extra: &mut Option<PathBuf>,
    ) -> Result<(), Early> {
        let seconds = plan.protocol.duration.as_secs_f64();
        if plan.mode == Mode::Rtmp {
            let why = "frames of a live stream cannot be laid beside their source's; score the same settings with --mode file";
            return self.scored(cell, "", quality::unavailable(why), None);
        }
        if plan.mode == Mode::Null {
            // Nothing was written while it was measured: one encode more, which nobody measures.
            self.live.now(&format!("encoding {} once more, to score it", cell.name));
            let file = self.dir.join(format!(".wattcast-{}-scored.mkv", cell.id));
            *extra = Some(file.clone());
            let source = self.dir.join(&clip.file);
            let line = arguments(
                &cell.axes,
                &Input::File(&source),
                seconds,
                &plan.encoder_args,
                Mode::File,
                &file.to_string_lossy(),
            );
            // By the same ffmpeg as was measured: the image's, where it was in a container.
            let place = match self.places.meant(plan.place) {
                Where::Container => self.places.make(Where::Container, "scored").unwrap_or(Place::None),
                _ => Place::None,
            };
            let done = Running::start(&place, &self.ffmpeg.path, &line)
                .map_err(Failed::from)
                .and_then(|one| Ok(wait(&mut [one], plan.protocol.stall, &mut |_| true)?));
            if stopped() {
                return Err(stopped_early());
            }
            if let Err(why) = done {
                return self.scored(cell, "", quality::unavailable(&why.to_string()), None);
            }
            let (sha256, bytes) = digest(&file)?;
            artefacts = vec![Artefact { file: file.strip_prefix(self.dir).unwrap_or(&file).to_owned(), sha256, bytes }];
        }
        for artefact in artefacts {
            let known = self.record.scores.iter().any(|score| score.cell == cell.id && score.sha256 == artefact.sha256);
            let Some(tool) = self.scorer.filter(|_| !known) else { continue };
            self.live.now(&format!("scoring {}", cell.name));
            let question = Question {
                reference: &self.dir.join(&clip.file),
                distorted: &self.dir.join(&artefact.file),
                seconds,
                size: (cell.axes.width, cell.axes.height),
                fps: cell.axes.fps,
                model: &plan.vmaf_model,
                stall: plan.protocol.stall,
            };
            // By content: the same pictures of the same source, scored by the same tool, are not scored again, in whatever run.
            let tool_is = format!("{} {}", tool.version, tool.configuration);
            let model = match plan.vmaf_model.split(':').find_map(|word| word.strip_prefix("path=")) {
                // Another file under the same name is another model.
                Some(file) => digest(Path::new(file)).map_or_else(|error| error.to_string(), |(sha256, _)| sha256),
                None => plan.vmaf_model.clone(),
            };
            let key = format!("{SCORING} {} {} {model} {tool_is}", clip.sha256, artefact.sha256);
            let cache = self.dir.join(SCORES).join(super::plan::short_digest(key.as_bytes())).with_extension("json");
            let (scores, frames) = match read_cache(&cache) {
                Some(found) => found,
                None => {
                    let found = match quality::score(&question, tool, scratch) {
                        Ok(found) => found,
                        Err(_) if stopped() => return Err(stopped_early()),
                        Err(why) => (quality::unavailable(&why), quality::Frames::new()),
                    };
                    // What failed this time may not the next.
                    if !found.1.is_empty() && found.1.len() == quality::able(tool) {
                        fs::create_dir_all(self.dir.join(SCORES))?;
                        super::publish(&cache, &serde_json::to_vec(&found).map_err(io::Error::other)?)?;
                    }
                    found
                }
            };
            let mut log = None;
            if !frames.is_empty() {
                fs::create_dir_all(self.home())?;
                let file = self.home().join(format!("{}-{}-frames.json", cell.id, &artefact.sha256[..8]));
                super::publish(&file, &serde_json::to_vec(&frames).map_err(io::Error::other)?)?;
                log = Some(file.strip_prefix(self.dir).unwrap_or(&file).to_owned());
            }
            if let Some(vmaf) = scores.iter().find(|score| score.metric == "vmaf") {
                let text = vmaf
                    .value
                    .map_or_else(|| vmaf.unavailable.clone().unwrap_or_default(), |value| format!("{value:.3}"));
                self.live.done(&format!("  {:<8}{}: VMAF {text}", "scored", cell.name));
            }
            self.scored(cell, &artefact.sha256, scores, log)?;
        }
        Ok(())
    }

    fn scored(
        &mut self,
        cell: &Cell,
        sha256: &str,
        scores: Vec<quality::Scored>,
        frames: Option<PathBuf>,
    ) -> Result<(), Early> {
        self.note(Event::Score(Score { cell: cell.id.clone(), sha256: sha256.to_owned(), scores, frames }))
    }
}

fn read_cache(file: &Path) -> Option<(Vec<quality::Scored>, quality::Frames)> {
    serde_json::from_str(&exporter::file::read_whole(file, 64 << 20).ok()?).ok()
}
