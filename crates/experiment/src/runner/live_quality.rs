//! Quality of live streams, by samples.
//!
//! After the measured window of a repeat, while its streams still run, the output of its first
//! stream is recorded from the server as it is ([`SAMPLE_SECONDS`], at most [`SAMPLE_BYTES`]). It
//! is scored after all measurements, like files: cut into pieces of a second, whose frames are
//! found in the source by content, and deleted. The source is the file that the generator repeats,
//! which is what the encoder received. A piece that has no certain place in it is not scored.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    alignment::{self, SIDE, SIGNATURE},
    context::{Runner, stopped_error, unix_ns},
    error::RunError,
    frame_rate::FrameRate,
    journal::{Artefact, Repeat},
    plan::{ALL_SAMPLES_BYTES, Configuration, Plan, SAMPLE_BYTES, SAMPLE_SECONDS},
    process::run_ffmpeg,
    quality::{self, Frames, PooledScore, ScoreRequest, frame_number_times, frame_times},
    rtmp::{RtmpServer, prepare_live_source},
    signals::stop_requested,
    source::{Clip, hash_file},
    tool::Tool,
};

/// Fewest scored frames of a piece. Fewer do not find their place in the source.
const MIN_FRAMES: u64 = 8;
/// Pieces that fit in the shortest source: one over its end is lost, and a single value has no
/// interval.
const MIN_PIECES: u64 = 6;
/// Frames at the start of a piece that are not scored, because VMAF compares the motion of a frame
/// with that of the one before.
const LEAD: usize = 1;

impl Runner<'_> {
    /// Records a sample of the first stream of a repeat, whose window is over and whose encoders
    /// still run. A repeat is valid without one.
    pub(super) fn sample_live(&self, rtmp: &RtmpServer, repeat: &mut Repeat) {
        if !self.record.plan().quality {
            return;
        }
        self.display.set_step("sampling the stream, to score it");
        match self.record_sample(&rtmp.output_url(1), repeat) {
            Ok(sample) => repeat.sample = Some(sample),
            Err(why) => {
                self.display.log(&format!("  warning the stream will not be scored: {why}"));
                repeat.unsampled = why;
            }
        }
    }

    fn record_sample(&self, url: &str, repeat: &Repeat) -> Result<Artefact, String> {
        let samples = self.record.repeats.iter().filter_map(|repeat| Some((repeat, repeat.sample.as_ref()?)));
        let waiting = samples.filter(|(repeat, sample)| !self.record.has_scores(&repeat.configuration, sample));
        let waiting: u64 = waiting.map(|(_, sample)| sample.bytes).sum();
        if waiting + u64::from(SAMPLE_BYTES) > u64::from(ALL_SAMPLES_BYTES) {
            let most = ALL_SAMPLES_BYTES >> 20;
            return Err(format!("the samples of the run that wait for their scores have {most} MiB, the maximum"));
        }
        let dir = self.artefacts_dir();
        let attempt = unix_ns() / 1_000_000;
        let file = dir.join(format!("{}-{}-{attempt:x}-live.mkv", repeat.configuration, repeat.n));
        let (seconds, bytes) = (SAMPLE_SECONDS.to_string(), SAMPLE_BYTES.to_string());
        let input = ["-y", "-analyzeduration", "1000000", "-i", url, "-map", "0:v:0", "-c", "copy"];
        let mut args = input.map(OsStr::new).to_vec();
        args.extend(["-t", &*seconds, "-fs", &*bytes, "-f", "matroska"].map(OsStr::new));
        args.push(file.as_os_str());
        let recorded = fs::create_dir_all(&dir)
            .map_err(|error| format!("{}: {error}", dir.display()))
            .and_then(|()| run_ffmpeg(&self.ffmpeg.path, &args, self.record.plan().protocol.stall))
            .and_then(|()| hash_file(&file).map_err(|error| error.to_string()));
        match recorded {
            Ok((sha256, bytes)) => {
                let file = file.strip_prefix(self.dir).unwrap_or(&file).to_owned();
                Ok(Artefact { file, sha256, bytes })
            }
            Err(why) => {
                let _ = fs::remove_file(&file);
                Err(format!("cannot record it: {why}"))
            }
        }
    }

    /// Scores the samples of a configuration that have no scores yet, and deletes them.
    ///
    /// # Errors
    /// When a stop is requested, or a file cannot be written.
    pub(super) fn score_samples(
        &mut self,
        configuration: &Configuration,
        clip: &Clip,
        plan: &Plan,
    ) -> Result<(), RunError> {
        let samples = self.record.samples(&configuration.id);
        let unscored = samples.filter(|sample| !self.record.has_scores(&configuration.id, sample));
        let unscored: Vec<Artefact> = unscored.cloned().collect();
        for sample in unscored {
            self.display.set_step(&format!("scoring {}", configuration.name));
            let file = self.dir.join(&sample.file);
            let (scores, frames) = match self.sample_scores(configuration, clip, plan, &file) {
                Ok(scored) => scored,
                Err(_) if stop_requested() => return Err(stopped_error()),
                Err(why) => (quality::all_unavailable(&format!("not scored: {why}")), Frames::new()),
            };
            self.store_scores(configuration, &sample.sha256, scores, &frames)?;
            let _ = fs::remove_file(file);
        }
        Ok(())
    }

    fn sample_scores(
        &self,
        configuration: &Configuration,
        clip: &Clip,
        plan: &Plan,
        sample: &Path,
    ) -> Result<(Vec<PooledScore>, Frames), String> {
        let tool = self.scorer.ok_or("there is no ffmpeg that scores")?;
        let axes = &configuration.axes;
        let source = prepare_live_source(clip, self.ffmpeg, self.dir, plan.protocol.stall)?;
        // Making the source may have removed the directory.
        let scratch = self.create_scratch().map_err(|error| error.to_string())?;
        let comparison = Comparison {
            source: &source,
            frames: clip.frames,
            sample,
            size: (axes.width, axes.height),
            rate: axes.frame_rate(),
            model: &plan.vmaf_model,
            stall: plan.protocol.stall,
            tool,
            scratch: &scratch,
        };
        comparison.scores()
    }
}

/// A sample of a live stream, and what it is compared with.
struct Comparison<'a> {
    /// The file that the generator repeats.
    source: &'a Path,
    /// Number of its frames.
    frames: u64,
    /// The recorded output.
    sample: &'a Path,
    /// Width and height of both in pixels.
    size: (u32, u32),
    rate: FrameRate,
    /// VMAF model, as in [`ScoreRequest`].
    model: &'a str,
    /// Time without progress after which ffmpeg is stopped.
    stall: Duration,
    /// The ffmpeg that scores.
    tool: &'a Tool,
    /// Directory for pieces and signatures, which are removed.
    scratch: &'a Path,
}

/// A piece: the numbers of its first frame in the sample and in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    sample: usize,
    source: usize,
}

impl Comparison<'_> {
    /// The scores of all pieces together.
    ///
    /// # Errors
    /// When no piece has a certain place in the source, or ffmpeg fails.
    fn scores(&self) -> Result<(Vec<PooledScore>, Frames), String> {
        let length = self.piece_length()?;
        let mut scored = Vec::new();
        for piece in self.pieces(length)? {
            scored.push(self.score_piece(piece, length)?);
        }
        Ok(quality::combine(&scored, LEAD))
    }

    /// Number of frames of a piece: a second, or less of a short source.
    fn piece_length(&self) -> Result<usize, String> {
        let scored = self.rate.frames_in(1).min(self.frames / MIN_PIECES);
        if scored < MIN_FRAMES {
            let least = MIN_FRAMES * MIN_PIECES;
            let count = self.frames;
            return Err(format!("the source has {count} frames, and {least} are needed; set a longer --duration"));
        }
        usize::try_from(scored).map(|scored| scored + LEAD).map_err(|error| error.to_string())
    }

    /// The pieces of the sample that have a certain place in the source.
    fn pieces(&self, length: usize) -> Result<Vec<Piece>, String> {
        let times = frame_times(self.sample, self.tool, self.scratch, self.stall)?;
        let (source, sample) = (self.signatures(self.source)?, self.signatures(self.sample)?);
        let expected = usize::try_from(self.frames).unwrap_or(usize::MAX);
        for (name, all, expected) in [("source", &source, expected), ("sample", &sample, times.len())] {
            let count = all.len() / SIGNATURE;
            if count != expected {
                return Err(format!("{count} of {expected} frames of the {name} were decoded"));
            }
        }
        find_pieces(&times, &sample, &source, length, self.rate)
    }

    /// The signatures of all frames of a video.
    fn signatures(&self, video: &Path) -> Result<Vec<u8>, String> {
        let file = self.scratch.join("signatures.raw");
        let filter = format!("{},scale={SIDE}:{SIDE}:flags=area,format=gray", frame_number_times(self.rate));
        let read = self
            .convert(video, &filter, &["-c:v", "rawvideo", "-f", "rawvideo"], &file)
            .and_then(|()| fs::read(&file).map_err(|error| format!("{}: {error}", file.display())));
        let _ = fs::remove_file(&file);
        read
    }

    fn score_piece(&self, piece: Piece, length: usize) -> Result<(Vec<PooledScore>, Frames), String> {
        let files: [PathBuf; 2] = ["piece-source.mkv", "piece-sample.mkv"].map(|name| self.scratch.join(name));
        let [reference, distorted] = &files;
        let frames = f64::from(u32::try_from(length).map_err(|error| error.to_string())?);
        let request = ScoreRequest {
            reference,
            distorted,
            seconds: frames / self.rate.value(),
            size: self.size,
            fps: self.rate.value(),
            model: self.model,
            stall: self.stall,
        };
        let scored = self
            .cut(self.source, piece.source, length, reference)
            .and_then(|()| self.cut(self.sample, piece.sample, length, distorted))
            .and_then(|()| quality::score(&request, self.tool, self.scratch));
        for file in &files {
            let _ = fs::remove_file(file);
        }
        scored
    }

    /// Copies frames of a video without loss.
    fn cut(&self, video: &Path, start: usize, length: usize, file: &Path) -> Result<(), String> {
        let end = start + length;
        let filter = format!("trim=start_frame={start}:end_frame={end},{}", frame_number_times(self.rate));
        self.convert(video, &filter, &["-c:v", "ffv1", "-pix_fmt", "yuv420p", "-f", "matroska"], file)
    }

    /// Filters the frames of a video, none of which is dropped or repeated: the filter gives them
    /// the times of their numbers.
    fn convert(&self, video: &Path, filter: &str, encoder: &[&str], file: &Path) -> Result<(), String> {
        let rate = self.rate.text();
        let mut args = vec![OsStr::new("-y"), OsStr::new("-i"), video.as_os_str()];
        args.extend(["-map", "0:v:0", "-an", "-vf", filter, "-r", &*rate].map(OsStr::new));
        args.extend(encoder.iter().map(OsStr::new));
        args.push(file.as_os_str());
        run_ffmpeg(&self.tool.path, &args, self.stall).map_err(|why| format!("{}: {why}", video.display()))
    }
}

/// Cuts a sample into successive pieces, and finds them in the source. `times` are those of the
/// sample's frames, in seconds; `sample` and `source` are signatures.
///
/// # Errors
/// When no piece has a certain place in the source.
fn find_pieces(
    times: &[f64],
    sample: &[u8],
    source: &[u8],
    length: usize,
    rate: FrameRate,
) -> Result<Vec<Piece>, String> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut refused = None;
    for (at, frames) in sample.chunks_exact(length * SIGNATURE).enumerate() {
        let start = at * length;
        let found = if is_continuous(&times[start..start + length], rate) {
            alignment::find(source, frames).map_err(|why| why.to_string())
        } else {
            Err("frames are missing".to_owned())
        };
        match found {
            // The source repeats; a part that is scored twice would be one value that counts twice.
            Ok(place) if pieces.iter().any(|known| known.source.abs_diff(place) < length) => {}
            Ok(place) => pieces.push(Piece { sample: start, source: place }),
            Err(why) => refused = refused.or(Some(why)),
        }
    }
    if pieces.is_empty() {
        let why = refused.unwrap_or_else(|| "the sample is too short".to_owned());
        return Err(format!("no piece of the stream could be compared: {why}"));
    }
    Ok(pieces)
}

/// True when successive frames are a frame's time apart.
fn is_continuous(times: &[f64], rate: FrameRate) -> bool {
    let each = 1.0 / rate.value();
    let mut numbered = times.iter().zip(0_u32..);
    numbered.all(|(time, at)| (time - times[0] - f64::from(at) * each).abs() <= each / 2.0)
}

#[cfg(test)]
mod tests {
    use testkit::{require, requires};

    use super::*;

    /// A source of 120 frames and a sample of its stream that begins at a known frame.
    struct Videos {
        dir: tempfile::TempDir,
        tool: Tool,
    }

    impl Videos {
        fn new() -> Self {
            let tool = Tool::find(&require::vmaf_ffmpeg().unwrap()).unwrap();
            Self { dir: tempfile::tempdir().unwrap(), tool }
        }

        fn file(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn make(&self, args: &[&str], name: &str) {
            let file = self.file(name);
            let mut all = vec![OsStr::new("-y")];
            all.extend(args.iter().map(OsStr::new));
            all.push(file.as_os_str());
            run_ffmpeg(&self.tool.path, &all, Duration::from_secs(60)).unwrap();
        }

        /// As the generator's file is made.
        fn make_source(&self, picture: &str) {
            let input = format!("{picture}=size=320x180:rate=30:duration=4");
            let settings = ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "10", "-bf", "0", "-g", "30"];
            self.make(&[&["-f", "lavfi", "-i", &*input][..], &settings, &["-f", "flv"]].concat(), "source.flv");
        }

        /// A sample of the repeated source from frame `start`, encoded with little loss.
        fn make_sample(&self, start: usize, filter: &str) {
            let (source, end) = (self.file("source.flv"), start + 120);
            let filter = format!("trim=start_frame={start}:end_frame={end},settb=AVTB,setpts=N/(30*TB){filter}");
            let input = ["-stream_loop", "1", "-i", source.to_str().unwrap(), "-vf", &*filter];
            self.make(&[&input[..], &["-c:v", "libx264", "-crf", "12", "-f", "matroska"]].concat(), "sample.mkv");
        }

        fn compare<T>(&self, of: impl FnOnce(&Comparison<'_>) -> T) -> T {
            let (source, sample) = (self.file("source.flv"), self.file("sample.mkv"));
            of(&Comparison {
                source: &source,
                frames: 120,
                sample: &sample,
                size: (320, 180),
                rate: FrameRate::parse("30").unwrap(),
                model: "",
                stall: Duration::from_secs(60),
                tool: &self.tool,
                scratch: self.dir.path(),
            })
        }
    }

    fn places(pieces: &[Piece]) -> Vec<(usize, usize)> {
        pieces.iter().map(|piece| (piece.sample, piece.source)).collect()
    }

    #[test]
    fn pieces_of_a_stream_are_found_in_its_source_and_scored() {
        requires!(vmaf);
        let videos = Videos::new();
        videos.make_source("testsrc2");
        videos.make_sample(37, "");
        // A fourth piece is over the end of the source, where the stream begins it again.
        let pieces = videos.compare(|comparison| comparison.pieces(comparison.piece_length()?)).unwrap();
        assert_eq!(places(&pieces), [(0, 37), (21, 58), (42, 79), (84, 1)]);
        let (scores, frames) = videos.compare(|comparison| comparison.scores()).unwrap();
        let first = |metric: &str| scores.iter().find(|score| score.metric == metric).unwrap();
        // Frames shifted by one would lose 20 dB and more.
        let (vmaf, psnr) = (first("vmaf"), first("psnr"));
        assert!(vmaf.value.unwrap() > 85.0 && psnr.value.unwrap() > 35.0, "{vmaf:?} {psnr:?}");
        assert!(vmaf.pieces == Some(4) && vmaf.ci95.is_some_and(|[low, high]| low <= high), "{vmaf:?}");
        assert_eq!((frames["vmaf"].len(), frames["ssim"].len()), (80, 80), "without the frames that lead in");
        let left = fs::read_dir(videos.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> = left.collect();
        left.sort();
        assert_eq!(left, ["sample.mkv", "source.flv"], "pieces are removed");
    }

    #[test]
    fn piece_with_a_missing_frame_is_not_scored() {
        requires!(vmaf);
        let videos = Videos::new();
        videos.make_source("testsrc2");
        videos.make_sample(10, ",select='not(eq(n,5))'");
        let pieces = videos.compare(|comparison| comparison.pieces(21)).unwrap();
        assert!(pieces.len() >= 2 && pieces.iter().all(|piece| piece.sample > 0), "{pieces:?}");
        // After the missing frame the source is one frame ahead.
        assert_eq!(places(&pieces)[0], (21, 32));
    }

    #[test]
    fn stream_without_certain_place_has_no_score() {
        requires!(vmaf);
        let videos = Videos::new();
        videos.make_source("smptebars");
        videos.make_sample(30, "");
        let error = videos.compare(|comparison| comparison.scores()).unwrap_err();
        assert!(error.starts_with("no piece of the stream could be compared"), "{error}");
        // Another source.
        videos.make_source("testsrc2");
        let error = videos.compare(|comparison| comparison.scores()).unwrap_err();
        assert!(error.starts_with("no piece of the stream could be compared"), "{error}");
    }

    #[test]
    fn times_of_a_piece_have_no_gap() {
        let rate = FrameRate::parse("30000/1001").unwrap();
        let times: Vec<f64> = (0..30).map(|at| 5.0 + f64::from(at) * 1001.0 / 30_000.0).collect();
        assert!(is_continuous(&times, rate));
        let late: Vec<f64> = times.iter().map(|time| if *time > 5.5 { time + 1.001 / 30.0 } else { *time }).collect();
        assert!(!is_continuous(&late, rate));
    }
}
