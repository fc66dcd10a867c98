//! One repeat: encoders run between two marks of the probe; then their energy is queried and their
//! output is kept.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use results::energy::probe::{self, WindowResponse};
use statistics::mean;
use units::Microjoules;

use super::{
    context::{RunContext, Runner, new_repeat, unix_ns},
    environment::{ExecutionEnv, SpawnHandle},
    error::{RepeatError, RunError},
    forecast::{host_busy_seconds, host_use},
    journal::{Artefact, Energy, Repeat, Window},
    pace::Pace,
    plan::{Configuration, Mode},
    process::{EncoderError, Process, Progress, wait_all},
    quality::count_frames,
    rtmp::{RtmpServer, prepare_live_source},
    sampler::PowerSampler,
    signals::{interruptible_sleep, stop_requested},
    source::{Clip, hash_file},
    tool::{Input, encoder_arguments},
};

impl Runner<'_> {
    /// Measures one repeat. Returns it, and whether the probe stopped responding.
    pub(super) fn measure(
        &mut self,
        configuration: &Configuration,
        n: u32,
        block: u32,
        clip: &Clip,
        context: &mut RunContext,
    ) -> Result<(Repeat, bool), RunError> {
        let mut repeat = new_repeat(configuration, n, block, "ok", "");
        let outputs = self.output_files(configuration, n)?;
        let measured = if self.record.plan().mode == Mode::Rtmp {
            let measured = self.measure_live(configuration, clip, context, &mut repeat);
            // Stop the generators in any case, or they would run during the next baseline.
            if let Some(rtmp) = &mut context.rtmp {
                rtmp.stop_generators();
            }
            measured
        } else if self.record.plan().steady {
            self.measure_steady(configuration, clip, context, &outputs, true, &mut repeat)
        } else {
            let realtime = self.record.plan().realtime;
            self.measure_files(configuration, clip, context, &outputs, realtime, &mut repeat)
        };
        let artefacts = measured.and_then(|encoded| {
            if let Some(warning) = &encoded.unused_option {
                // The labels of the configuration would name a setting that was not applied.
                let encoder = &configuration.axes.encoder;
                return Err(RepeatError::Other(format!("{encoder} does not know an option: {warning}")));
            }
            self.query_energy(&mut repeat, &encoded.names)?;
            if self.record.plan().steady {
                // They were cut.
                outputs.iter().for_each(|output| drop(fs::remove_file(output)));
                return Ok(Vec::new());
            }
            if outputs.is_empty() { Ok(Vec::new()) } else { self.keep_outputs(configuration, &outputs, &encoded) }
        });
        let mut probe_lost = false;
        match artefacts {
            Ok(artefacts) => repeat.artefacts = artefacts,
            Err(error) => {
                (repeat.status, repeat.detail) = ("failed".to_owned(), error.to_string());
                match error {
                    // A stop request can surface as any error.
                    _ if stop_requested() => repeat.status = "stopped".to_owned(),
                    RepeatError::Encoder(EncoderError::Exited { exit, .. }) => repeat.exit = Some(exit),
                    RepeatError::Probe(_) => probe_lost = true,
                    RepeatError::Encoder(_) | RepeatError::Other(_) => {}
                }
                for output in &outputs {
                    let _ = fs::remove_file(output);
                }
                if let Some(sample) = repeat.sample.take() {
                    let _ = fs::remove_file(self.dir.join(sample.file));
                }
            }
        }
        Ok((repeat, probe_lost))
    }

    /// The output files of a repeat, one per stream; empty if the output is not written to files.
    pub(super) fn output_files(&self, configuration: &Configuration, n: u32) -> Result<Vec<PathBuf>, RunError> {
        if self.record.plan().mode != Mode::File {
            return Ok(Vec::new());
        }
        let dir = self.artefacts_dir();
        fs::create_dir_all(&dir)?;
        // The name is unique per attempt, because a file of an earlier attempt may be shared with
        // another repeat.
        let attempt = unix_ns() / 1_000_000;
        Ok((1..=configuration.axes.streams)
            .map(|stream| dir.join(format!("{}-{n}-{attempt:x}-{stream}.mkv", configuration.id)))
            .collect())
    }

    /// Keeps each distinct output file once; repeats of most encoders are bit-identical. A file
    /// without all frames is an error even if ffmpeg succeeded, because some versions do on a full
    /// disk.
    fn keep_outputs(
        &self,
        configuration: &Configuration,
        outputs: &[PathBuf],
        encoded: &Encoded,
    ) -> Result<Vec<Artefact>, RepeatError> {
        let mut all: Vec<Artefact> = Vec::new();
        let scratch = self.create_scratch()?;
        for (output, frames) in outputs.iter().zip(&encoded.frames) {
            let count = count_frames(output, self.ffmpeg, &scratch, self.record.plan().protocol.stall)?;
            if u64::try_from(count).unwrap_or(u64::MAX) != *frames {
                let stderr = &encoded.stderr;
                return Err(RepeatError::Other(format!(
                    "the file contains {count} of {frames} frames that were encoded. {stderr}"
                )));
            }
            let (sha256, bytes) = hash_file(output)?;
            let earlier = self.record.successes(&configuration.id).flat_map(|repeat| &repeat.artefacts);
            let same = earlier.chain(&all).find(|known| known.sha256 == sha256).cloned();
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

    /// Encodes a clip with all streams, in real time or as fast as they can. The window is from
    /// before the first encoder starts until the last has exited, so it contains the whole cost.
    pub(super) fn measure_files(
        &self,
        configuration: &Configuration,
        clip: &Clip,
        context: &RunContext,
        outputs: &[PathBuf],
        realtime: bool,
        repeat: &mut Repeat,
    ) -> Result<Encoded, RepeatError> {
        let plan = self.record.plan();
        let source = self.dir.join(&clip.file);
        let input = if realtime { Input::RealTime(&source) } else { Input::File(&source) };
        let seconds = plan.protocol.duration.as_secs_f64();
        let commands = self.file_commands(configuration, &input, seconds, outputs);
        repeat.argv = self.displayed_command(commands.first());
        let joules_per_frame = mean(&self.record.joules_per_frame(&configuration.id));
        let start = self.probe.mark()?;
        let busy = host_busy_seconds();
        let power = PowerSampler::start(self.probe);
        let began = Instant::now();
        let mut running = Vec::new();
        for args in &commands {
            running.push(Process::spawn(&context.env, &self.ffmpeg.path, args)?);
        }
        // Sources in real time last that long; what the encoders hold back comes after it.
        let mut pace = Pace::new(running.len(), seconds);
        let waited = wait_all(&mut running, plan.protocol.stall, &mut |all| {
            pace.observe(began.elapsed().as_secs_f64(), media(all));
            let frames = total_progress(all).frames;
            self.display.show_encoders(&configuration.name, frames, began, power.latest(), joules_per_frame);
            true
        });
        repeat.host = host_use(busy, began.elapsed().as_secs_f64());
        let end = self.probe.mark();
        repeat.watts = power.finish();
        repeat.progress = total_progress(&running);
        repeat.lag = pace.slowest().filter(|_| realtime);
        waited?;
        repeat.window = Some(Window { start, end: end? });
        Ok(Encoded::new(&running, &context.env))
    }

    /// The arguments of the encoders of all streams that read a file.
    pub(super) fn file_commands(
        &self,
        configuration: &Configuration,
        input: &Input<'_>,
        seconds: f64,
        outputs: &[PathBuf],
    ) -> Vec<Vec<String>> {
        let plan = self.record.plan();
        let streams = 0..usize::try_from(configuration.axes.streams).unwrap_or(1);
        let command = |at: usize| {
            let output = outputs.get(at).map(|path| path.to_string_lossy()).unwrap_or_default();
            encoder_arguments(&configuration.axes, input, seconds, &plan.encoder_args, plan.mode, &output)
        };
        streams.map(command).collect()
    }

    /// Encodes live streams and measures a window after they have settled. Frames are those that
    /// the encoders reported between the marks; a report is at most 0.2 s old.
    fn measure_live(
        &self,
        configuration: &Configuration,
        clip: &Clip,
        context: &mut RunContext,
        repeat: &mut Repeat,
    ) -> Result<Encoded, RepeatError> {
        let plan = self.record.plan();
        let stall = plan.protocol.stall;
        let source = prepare_live_source(clip, self.ffmpeg, self.dir, stall)?;
        let rtmp = context.rtmp.as_mut().ok_or_else(|| RepeatError::Other("no RTMP server runs".to_owned()))?;
        let urls = rtmp.start_generators(&configuration.axes, &source, self.ffmpeg)?;
        let mut running = Vec::new();
        for (at, (from, to)) in urls.iter().enumerate() {
            let args =
                encoder_arguments(&configuration.axes, &Input::Live(from), 0.0, &plan.encoder_args, Mode::Rtmp, to);
            if at == 0 {
                repeat.argv = self.displayed_command(Some(&args));
            }
            running.push(Process::spawn(&context.env, &self.ffmpeg.path, &args)?);
        }
        self.wait_for_streams(rtmp, &mut running)?;
        let settling = Instant::now();
        wait_live(rtmp, &mut running, stall, &mut |_| settling.elapsed() >= plan.protocol.stabilization)?;
        let (window, _) = self.measure_window(configuration, &mut running, repeat, &mut |running, until| {
            wait_live(rtmp, running, stall, until)
        })?;
        self.query_companions(rtmp, window, repeat)?;
        self.sample_live(rtmp, repeat);
        Ok(Encoded::new(&running, &context.env))
    }

    /// Waits until each live stream has encoded a frame.
    fn wait_for_streams(&self, rtmp: &mut RtmpServer, running: &mut [Process]) -> Result<(), RepeatError> {
        let frames = |all: &[Process]| all.iter().map(|process| process.progress().frames).min().unwrap_or(0);
        let started = Instant::now();
        // The stall timeout does not apply before the first frame.
        wait_live(rtmp, running, self.timeout * 2, &mut |all| frames(all) > 0 || started.elapsed() > self.timeout)?;
        if frames(running) == 0 {
            let stderr = running[0].stderr_tail();
            return Err(RepeatError::Other(format!("no frame in {} s: {stderr}", self.timeout.as_secs())));
        }
        Ok(())
    }

    /// Queries the energy of generators and server. They must still run, because the probe resolves
    /// their names only then.
    fn query_companions(&self, rtmp: &RtmpServer, window: Window, repeat: &mut Repeat) -> Result<(), RepeatError> {
        let names_by_role = rtmp.container_names();
        let response = self.probe.window_response(window.start, window.end)?;
        for (role, names) in names_by_role {
            let mut rows = rows_of(&response, &names).peekable();
            // Containers that the probe has not seen are left out instead of recorded with zero
            // energy.
            let seen = rows.peek().is_some();
            let joules: f64 = rows.flat_map(|row| &row.energy).map(|energy| energy.joules).sum();
            if seen {
                repeat.companion_microjoules.insert(role.to_owned(), Microjoules::from_joules(joules).0);
            }
        }
        Ok(())
    }

    /// The command line for the results, with paths relative to the results directory.
    pub(super) fn displayed_command(&self, args: Option<&Vec<String>>) -> Vec<String> {
        let dir = format!("{}/", self.dir.display());
        let words = args.into_iter().flatten().map(|word| word.replace(&dir, ""));
        std::iter::once("ffmpeg".to_owned()).chain(words).collect()
    }

    /// Queries the energy of the host, and of the containers with these names, in the repeat's
    /// window.
    pub(super) fn query_energy(&self, repeat: &mut Repeat, names: &[String]) -> Result<(), RepeatError> {
        let Some(window) = repeat.window else { return Ok(()) };
        let response = self.probe.settled_window(window.start, window.end, interruptible_sleep)?;
        response.check_complete()?;
        for account in &response.accounts {
            repeat.energy.push(Energy {
                scope: "host".to_owned(),
                domain: domain(&account.zone, &account.package),
                source: account.source.clone(),
                microjoules: Microjoules::from_joules(account.measured_joules).0,
                edge_error_microjoules: Microjoules::from_joules(account.edge_error_joules).0,
                uncertainty_microjoules: None,
                model_interval_ratio: account.model_interval_ratio,
            });
        }
        if names.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = rows_of(&response, names).collect();
        let Some(first) = rows.first() else {
            repeat.detail = format!("probe has no container named {}; energy is that of the host", names.join(", "));
            return Ok(());
        };
        repeat.container = Some(first.container.clone());
        let sums = sum_by_domain(&response, &rows);
        repeat.energy.extend(unsettled_only(&response, &sums));
        repeat.energy.extend(sums);
        repeat.idle_known = response.idle_known(rows.iter().copied());
        repeat.cpu_seconds =
            rows.iter().flat_map(|row| &row.cpu).map(|cpu| cpu.seconds).reduce(|sum, seconds| sum + seconds);
        Ok(())
    }
}

/// Waits for live streams until `until` returns true. Encoders exit when their input ends, which is
/// an error here.
fn wait_live(
    rtmp: &mut RtmpServer,
    running: &mut [Process],
    stall: Duration,
    until: &mut dyn FnMut(&[Process]) -> bool,
) -> Result<(), RepeatError> {
    wait_all(running, stall, &mut |all| !until(all))?;
    if running.iter_mut().any(|process| matches!(process.try_wait(), Ok(Some(_)))) {
        let why = rtmp.generator_failure().unwrap_or_else(|| "an encoder's input ended".to_owned());
        return Err(RepeatError::Other(why));
    }
    Ok(())
}

/// Result of encoders that have finished successfully.
pub(super) struct Encoded {
    /// The names under which the probe reports the encoders.
    names: Vec<String>,
    /// Encoded frames by stream.
    frames: Vec<u64>,
    /// The last lines of the first encoder's stderr.
    stderr: String,
    /// ffmpeg's warning about an option that it did not use.
    unused_option: Option<String>,
}

impl Encoded {
    pub(super) fn new(all: &[Process], env: &ExecutionEnv) -> Self {
        let handles: Vec<SpawnHandle> = all.iter().map(|process| process.handle().clone()).collect();
        Self {
            names: env.container_names(&handles),
            frames: all.iter().map(|process| process.progress().frames).collect(),
            stderr: all.first().map(Process::stderr_tail).unwrap_or_default(),
            unused_option: all.iter().find_map(Process::unused_option_warning),
        }
    }

    /// The names under which the probe reports the encoders.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }
}

/// The rows of a response that belong to containers with these names.
fn rows_of<'a>(response: &'a WindowResponse, names: &'a [String]) -> impl Iterator<Item = &'a probe::Container> {
    response.containers.iter().filter(|row| names.iter().any(|name| row.matches(name)))
}

/// The domain of an energy zone. The package of a GPU zone is the GPU's UUID.
fn domain(zone: &str, package: &str) -> String {
    if zone == "gpu" { package.to_owned() } else { format!("{zone}-{package}") }
}

/// Energy of all containers, summed by domain and source. A sum has an uncertainty only if all its
/// parts have one.
fn sum_by_domain(response: &WindowResponse, rows: &[&probe::Container]) -> Vec<Energy> {
    let mut sums: Vec<Energy> = Vec::new();
    for part in rows.iter().flat_map(|row| &row.energy) {
        let one = Energy {
            scope: "container".to_owned(),
            domain: domain(&part.zone, &part.package),
            source: part.source.clone(),
            microjoules: Microjoules::from_joules(part.joules).0,
            edge_error_microjoules: Microjoules::from_joules(part.edge_error_joules).0,
            uncertainty_microjoules: part.uncertainty_joules.map(|joules| Microjoules::from_joules(joules).0),
            // All rows of a domain and source are of one accounting root.
            model_interval_ratio: response.model_interval(part),
        };
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
    sums
}

/// The domains in which the containers have no energy yet, and may get what is not split yet: that
/// is their error. In the domains of `sums` the probe has included it.
fn unsettled_only(response: &WindowResponse, sums: &[Energy]) -> Vec<Energy> {
    let rows = response.unsettled().map(|account| Energy {
        scope: "container".to_owned(),
        domain: domain(&account.zone, &account.package),
        source: account.source.clone(),
        microjoules: 0,
        edge_error_microjoules: Microjoules::from_joules(account.unsettled_joules).0,
        uncertainty_microjoules: None,
        model_interval_ratio: account.model_interval_ratio,
    });
    rows.filter(|row| !sums.iter().any(|sum| sum.domain == row.domain && sum.source == row.source)).collect()
}

/// The media in seconds that each stream has encoded.
pub(super) fn media(all: &[Process]) -> impl Iterator<Item = f64> {
    all.iter().map(|process| Duration::from_micros(process.progress().media_us).as_secs_f64())
}

/// Summed progress of all encoders.
pub(super) fn total_progress(all: &[Process]) -> Progress {
    all.iter().map(Process::progress).fold(Progress::default(), |sum, one| Progress {
        frames: sum.frames + one.frames,
        dropped: sum.dropped + one.dropped,
        duplicated: sum.duplicated + one.duplicated,
        bytes: sum.bytes + one.bytes,
        media_us: sum.media_us + one.media_us,
    })
}

/// Progress between two points in time.
pub(super) fn progress_since(earlier: &Progress, later: &Progress) -> Progress {
    Progress {
        frames: later.frames.saturating_sub(earlier.frames),
        dropped: later.dropped.saturating_sub(earlier.dropped),
        duplicated: later.duplicated.saturating_sub(earlier.duplicated),
        bytes: later.bytes.saturating_sub(earlier.bytes),
        media_us: later.media_us.saturating_sub(earlier.media_us),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsettled_energy_is_an_error_of_a_container_without_energy() {
        let account = |package: &str, unsettled_joules| probe::Account {
            package: package.to_owned(),
            zone: "gpu".to_owned(),
            source: "nvml".to_owned(),
            measured_joules: 10.0,
            edge_error_joules: 0.5,
            missing_seconds: 0.0,
            unsettled_joules,
            idle_known: None,
            model_interval_ratio: None,
        };
        let response = WindowResponse {
            start: None,
            end: None,
            from: None,
            to: None,
            accounts: vec![account("GPU-1", 2.5), account("GPU-2", 0.0), account("GPU-3", 1.0)],
            containers: Vec::new(),
        };
        let known = Energy {
            scope: "container".to_owned(),
            domain: "GPU-3".to_owned(),
            source: "nvml".to_owned(),
            microjoules: 4_000_000,
            edge_error_microjoules: 1_000_000,
            uncertainty_microjoules: None,
            model_interval_ratio: None,
        };
        let rows = unsettled_only(&response, &[known]);
        let found: Vec<_> =
            rows.iter().map(|row| (&*row.domain, row.microjoules, row.edge_error_microjoules)).collect();
        assert_eq!(found, [("GPU-1", 0, 2_500_000)]);
    }
}
