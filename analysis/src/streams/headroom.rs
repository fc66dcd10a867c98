//! Headroom: how many more streams of each kind the probe's host carries in real time.
//!
//! The CPU time of jobs and host comes from the probe, the media time from ffmpeg's reports. Both
//! are kept as the values of the last minute, a sample per block of ten seconds. A kind of stream
//! (a *profile*) has a forecast while a stream of it has run in real time for half a minute; else
//! it is absent, and the number of such jobs is exported with the reason.
//!
//! A stream on a mostly idle host takes other CPU time than on a full one, so what the streams of a
//! profile took on the fullest host of the last hour counts, as long as the host is emptier now.

use std::collections::{BTreeMap, HashMap, VecDeque};

use metrics::{family::Def, label};
use results::{
    energy::jobs::{EngineTime, HostCpu, Job, JobOutput, Jobs},
    headroom::{Forecast, Load, MIN_BLOCKS, Machine, RESERVE},
};

use super::table::{Stream, StreamTable};

/// Shortest time between two samples.
const BLOCK: f64 = 10.0;
/// Blocks that are kept.
const MAX_BLOCKS: usize = 6;
/// Longest time between two samples; after a longer one the blocks begin again.
const MAX_GAP: f64 = 30.0;
/// Media seconds per second of a stream in real time. Reports come twice a second, and the shortest
/// series has 30 s.
const REAL_TIME: std::ops::RangeInclusive<f64> = 0.95..=1.05;
/// Smallest part of an engine that a stream is said to use; driver samples scatter by about this.
const MIN_ENGINE: f64 = 0.005;
/// How long the CPU time of streams on a fuller host counts, in seconds.
const MEMORY: f64 = 3600.0;
/// By which part of the capacity a host must have been fuller than now.
const FULLER: f64 = 0.1;
/// Maximum number of profiles, and of outputs named in one.
const MAX_PROFILES: usize = 32;
const MAX_OUTPUTS: usize = 4;
/// Endings of encoders that run on a GPU: without the time of its engines, the CPUs say nothing
/// about how many more of such streams fit.
const HARDWARE: [&str; 8] = ["_nvenc", "_qsv", "_vaapi", "_amf", "_v4l2m2m", "_omx", "_vulkan", "_videotoolbox"];

const PROFILE: &[&str] = &["profile", "device"];

pub(super) static HEADROOM: Def = Def::gauge(
    "wattcast_streams_headroom",
    PROFILE,
    "Streams of a profile that the probe's host carries in real time in addition to those that run: what is free of a \
     device without a reserve of 10 %, over what one such stream uses (of CPUs: used on the fullest host of the last \
     hour). profile: encoder, size@rate and preset of the outputs. device: cpu, or a GPU, of which the engine with the \
     least room counts; the smallest of a profile limits. Absent while no stream of the profile has run in real time \
     for 30 s.",
);
pub(super) static INTERVAL: Def = Def::gauge(
    "wattcast_streams_headroom_interval",
    &["profile", "device", "bound"],
    "Lower and upper bound of the 95 % interval of wattcast_streams_headroom: scatter of the load and of the streams, \
     the value of a hyperthread, and a stream's cost that grows by 20 % or declines by 50 % until the host is full.",
);
pub(super) static COST: Def = Def::gauge(
    "wattcast_streams_profile_device_ratio",
    PROFILE,
    "What one stream of a profile uses of a device in real time, mean over its streams and the last minute: CPUs, or \
     the part of a GPU's engine (0–1).",
);
pub(super) static RUNNING: Def = Def::gauge(
    "wattcast_streams_profile_jobs",
    PROFILE,
    "Running jobs of a profile in real time, from which its headroom is forecast.",
);
pub(super) static EXCLUDED: Def = Def::gauge(
    "wattcast_streams_headroom_excluded_jobs",
    &["reason"],
    "Running jobs from which no headroom is forecast. reason: short (less than 30 s), reports (no progress reports, \
     or several jobs with one name), speed (not in real time), device (encoded by a GPU whose use by process is \
     unknown), outputs (no encoded pictures known), limit (more than 32 profiles), cpu (no CPU time).",
);

/// Why a job has no part in a forecast; the label `reason`.
type Reason = &'static str;

/// Seconds of use by GPU and engine.
type Engines = HashMap<(String, String), f64>;

/// The values of a job in a sample.
#[derive(Clone, Debug)]
struct JobSample {
    cpu_seconds: f64,
    engines: Engines,
    /// Media and frames of its stream; `None` if they are not known, or not those of one job.
    written: Option<Written>,
}

#[derive(Clone, Copy, Debug)]
struct Written {
    /// When they were read, in seconds of a monotonic clock.
    at: f64,
    media_us: u64,
    frames: u64,
}

#[derive(Clone, Debug)]
struct Sample {
    host: HostCpu,
    engines: Engines,
    jobs: HashMap<u64, JobSample>,
}

/// The forecast of a profile.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileHeadroom {
    /// Label `profile`.
    pub profile: String,
    /// Label `device`: `cpu`, or the id of a GPU.
    pub device: String,
    pub forecast: Forecast,
    /// Jobs that the forecast uses.
    pub jobs: u32,
}

/// What streams of one profile use: a value per stream and block, in CPUs, and in the part of an
/// engine.
#[derive(Debug, Default)]
struct Usage {
    cores: Vec<f64>,
    engines: BTreeMap<(String, String), Vec<f64>>,
    jobs: u32,
}

/// What streams of a profile took on the fullest host.
#[derive(Debug)]
struct Fullest {
    /// When, in seconds of the host's clock.
    at: f64,
    /// Part of the capacity that was idle.
    idle: f64,
    loads: Vec<Load>,
    cores: Vec<f64>,
}

/// The samples and what follows from them.
#[derive(Debug, Default)]
pub struct Headroom {
    samples: VecDeque<Sample>,
    /// Start of the probe, with which job numbers begin again.
    probe_started: f64,
    profiles: Vec<ProfileHeadroom>,
    excluded: BTreeMap<Reason, u32>,
    /// By profile, at most [`MAX_PROFILES`].
    fullest: BTreeMap<String, Fullest>,
}

impl Headroom {
    /// Takes the answer of the probe, and the streams at the same time. `at` are seconds of a
    /// monotonic clock.
    pub fn observe(&mut self, jobs: &Jobs, table: &StreamTable, at: f64) {
        let Some(host) = jobs.host.filter(|host| host.cpus > 0) else {
            self.forget();
            self.excluded = excluded_all(jobs, "cpu");
            return;
        };
        let since = self.samples.back().map(|last| host.time - last.host.time);
        if jobs.probe_started != self.probe_started || since.is_some_and(|since| !(0.0..=MAX_GAP).contains(&since)) {
            self.forget();
            self.probe_started = jobs.probe_started;
        } else if since.is_some_and(|since| since < BLOCK) {
            return;
        }
        if self.samples.len() > MAX_BLOCKS {
            self.samples.pop_front();
        }
        let sample = sample(host, jobs, table, at);
        self.samples.push_back(sample);
        self.evaluate(jobs);
    }

    /// The probe does not answer: what is known is out of date.
    pub fn forget(&mut self) {
        *self = Self { probe_started: self.probe_started, ..Self::default() };
    }

    /// The forecasts, by profile.
    #[must_use]
    pub fn profiles(&self) -> &[ProfileHeadroom] {
        &self.profiles
    }

    /// Passes every value with its definition and labels.
    pub(super) fn push(&self, push: &mut impl FnMut(&'static Def, &[&str], Option<f64>)) {
        for ProfileHeadroom { profile, device, forecast, jobs } in &self.profiles {
            let labels = [profile.as_str(), device.as_str()];
            push(&HEADROOM, &labels, Some(forecast.streams));
            push(&INTERVAL, &[profile.as_str(), device.as_str(), "low"], Some(forecast.low));
            push(&INTERVAL, &[profile.as_str(), device.as_str(), "high"], Some(forecast.high));
            push(&COST, &labels, Some(forecast.per_stream));
            push(&RUNNING, &labels, Some(f64::from(*jobs)));
        }
        for (reason, count) in &self.excluded {
            push(&EXCLUDED, &[*reason], Some(f64::from(*count)));
        }
    }

    fn evaluate(&mut self, jobs: &Jobs) {
        (self.profiles, self.excluded) = (Vec::new(), BTreeMap::new());
        let mut found: BTreeMap<String, Usage> = BTreeMap::new();
        for job in jobs.jobs.iter().filter(|job| job.ended.is_none()) {
            match self.usage(job) {
                Ok((profile, _)) if found.len() >= MAX_PROFILES && !found.contains_key(&profile) => {
                    *self.excluded.entry("limit").or_default() += 1;
                }
                Ok((profile, usage)) => {
                    let sum = found.entry(profile).or_default();
                    sum.cores.extend(usage.cores);
                    for (engine, shares) in usage.engines {
                        sum.engines.entry(engine).or_default().extend(shares);
                    }
                    sum.jobs += 1;
                }
                Err(reason) => *self.excluded.entry(reason).or_default() += 1,
            }
        }
        for (profile, usage) in found {
            self.remember(&profile, &usage);
            let forecasts = self.forecasts(&profile, &usage);
            // Each has enough blocks, so only jobs without CPU time have no forecast.
            if forecasts.is_empty() {
                *self.excluded.entry("cpu").or_default() += usage.jobs;
            }
            self.profiles.extend(forecasts.into_iter().map(|(device, forecast)| ProfileHeadroom {
                profile: profile.clone(),
                device,
                forecast,
                jobs: usage.jobs,
            }));
        }
    }

    /// Keeps the CPU time of streams if the host is the fullest of the last hour.
    fn remember(&mut self, profile: &str, usage: &Usage) {
        let Some(host) = self.samples.back().map(|last| last.host) else { return };
        self.fullest.retain(|_, known| (0.0..=MEMORY).contains(&(host.time - known.at)));
        let loads = self.loads();
        let Some(idle) = cpus_of(host).idle(&loads) else { return };
        let has_room = self.fullest.len() < MAX_PROFILES || self.fullest.contains_key(profile);
        if has_room && self.fullest.get(profile).is_none_or(|known| idle <= known.idle) {
            let cores = usage.cores.clone();
            self.fullest.insert(profile.to_owned(), Fullest { at: host.time, idle, loads, cores });
        }
    }

    /// The forecast of the CPUs: by the streams as they are, and if the host was fuller, by what
    /// they took then. The interval has both.
    fn cpu_forecast(&self, host: HostCpu, profile: &str, usage: &Usage) -> Option<Forecast> {
        let (cpus, loads) = (cpus_of(host), self.loads());
        let now = cpus.forecast(&loads, &usage.cores)?;
        let idle = cpus.idle(&loads)?;
        let Some(full) = self.fullest.get(profile).filter(|full| full.idle + FULLER <= idle) else { return Some(now) };
        let Some(then) = cpus.forecast_measured_in(&loads, &full.cores, &full.loads) else { return Some(now) };
        let (low, high) = (then.low.min(now.low), then.high.max(now.streams));
        Some(Forecast { streams: then.streams, low, high, per_stream: now.per_stream })
    }

    /// The forecasts by device: of the CPUs, and of the engine with the least room of each GPU.
    fn forecasts(&self, profile: &str, usage: &Usage) -> BTreeMap<String, Forecast> {
        let Some(host) = self.samples.back().map(|last| last.host) else { return BTreeMap::new() };
        let cpu = self.cpu_forecast(host, profile, usage).map(|forecast| ("cpu".to_owned(), forecast));
        let mut all: BTreeMap<String, Forecast> = cpu.into_iter().collect();
        // All engines of a kind count as one, as in what the driver reports.
        let engine = Machine { cpus: 1, smt: false, reserve: RESERVE };
        for (key, shares) in &usage.engines {
            let forecast = engine.forecast(&self.engine_loads(key), shares);
            let Some(forecast) = forecast.filter(|forecast| forecast.per_stream >= MIN_ENGINE) else { continue };
            let least = all.entry(key.0.clone()).or_insert(forecast);
            if forecast.streams < least.streams {
                *least = forecast;
            }
        }
        all
    }

    /// The blocks of the host's load, each with the samples around it: those in which all jobs of
    /// the last sample ran already, but not fewer than a forecast needs. Before a job began, what
    /// it uses was free.
    fn pairs(&self) -> impl Iterator<Item = (&Sample, &Sample)> {
        let has_all = |sample: &&Sample| {
            self.samples.back().is_some_and(|last| last.jobs.keys().all(|job| sample.jobs.contains_key(job)))
        };
        let settled = self.samples.iter().rev().take_while(has_all).count().saturating_sub(1);
        let skipped = self.samples.len().saturating_sub(1 + settled.max(MIN_BLOCKS));
        self.samples.iter().zip(self.samples.iter().skip(1)).skip(skipped)
    }

    /// The use of an engine by all processes in each block.
    fn engine_loads(&self, key: &(String, String)) -> Vec<Load> {
        let pairs = self.pairs();
        let load = |(before, after): (&Sample, &Sample)| {
            let used = engine_seconds(&after.engines, key) - engine_seconds(&before.engines, key);
            Load { alone: used.max(0.0) / (after.host.time - before.host.time), shared: None }
        };
        pairs.map(load).collect()
    }

    /// The load of the host in each block.
    fn loads(&self) -> Vec<Load> {
        let pairs = self.pairs();
        let load = |(before, after): (&Sample, &Sample)| {
            let (before, after) = (before.host, after.host);
            let rate = |from: f64, to: f64| (to - from).max(0.0) / (after.time - before.time);
            Load {
                alone: rate(before.alone_seconds, after.alone_seconds),
                shared: after.siblings_known.then(|| rate(before.shared_seconds, after.shared_seconds)),
            }
        };
        pairs.map(load).collect()
    }

    /// The profile of a job, and what it used in each block in real time.
    fn usage(&self, job: &Job) -> Result<(String, Usage), Reason> {
        let outputs: Vec<&JobOutput> =
            job.outputs.iter().filter(|output| output.codec != "copy" && !output.without_video).collect();
        if outputs.is_empty() {
            return Err("outputs");
        }
        let on_gpu = outputs.iter().any(|output| HARDWARE.iter().any(|ending| output.encoder.ends_with(ending)));
        if on_gpu && job.gpu_engines.is_empty() {
            return Err("device");
        }
        let last = self.samples.back().and_then(|sample| sample.jobs.get(&job.job));
        if last.is_some_and(|values| values.written.is_none()) {
            return Err("reports");
        }
        let mut own: Vec<(f64, &JobSample, Written)> = Vec::new();
        for sample in self.samples.iter().rev() {
            let values = sample.jobs.get(&job.job);
            let Some((values, written)) = values.and_then(|values| Some((values, values.written?))) else { break };
            own.push((sample.host.time, values, written));
        }
        own.reverse();
        let ([(_, _, first), .., (_, _, last)], true) = (&own[..], own.len() > MIN_BLOCKS) else {
            return Err("short");
        };
        #[expect(clippy::cast_precision_loss, reason = "a minute of media and frames")]
        let (media, frames) = (
            last.media_us.saturating_sub(first.media_us) as f64 / 1e6,
            last.frames.saturating_sub(first.frames) as f64,
        );
        if !REAL_TIME.contains(&(media / (last.at - first.at))) {
            return Err("speed");
        }
        let rates = |value: &dyn Fn(&JobSample) -> f64| -> Vec<f64> {
            let blocks = own.iter().zip(own.iter().skip(1));
            blocks.map(|(before, after)| (value(after.1) - value(before.1)).max(0.0) / (after.0 - before.0)).collect()
        };
        let of_engine = |engine: &EngineTime| {
            let key = (engine.gpu.clone(), engine.engine.clone());
            let shares = rates(&|values| engine_seconds(&values.engines, &key));
            (key, shares)
        };
        let usage = Usage {
            cores: rates(&|values| values.cpu_seconds),
            engines: job.gpu_engines.iter().map(of_engine).collect(),
            jobs: 1,
        };
        Ok((profile(&outputs, Some(frames / media)), usage))
    }
}

/// The CPUs of a host in service.
fn cpus_of(host: HostCpu) -> Machine {
    Machine { cpus: host.cpus, smt: host.smt, reserve: RESERVE }
}

/// An engine that has no entry has not been used.
fn engine_seconds(engines: &Engines, key: &(String, String)) -> f64 {
    engines.get(key).copied().unwrap_or_default()
}

fn by_engine(times: &[EngineTime]) -> Engines {
    times.iter().map(|time| ((time.gpu.clone(), time.engine.clone()), time.seconds)).collect()
}

/// All running jobs with one reason.
fn excluded_all(jobs: &Jobs, reason: Reason) -> BTreeMap<Reason, u32> {
    let running = u32::try_from(jobs.running()).unwrap_or(u32::MAX);
    if running > 0 { BTreeMap::from([(reason, running)]) } else { BTreeMap::new() }
}

fn sample(host: HostCpu, jobs: &Jobs, table: &StreamTable, at: f64) -> Sample {
    let streams: HashMap<&str, &Stream> = table.streams().collect();
    let running: Vec<&Job> = jobs.jobs.iter().filter(|job| job.ended.is_none()).collect();
    // The totals of a name that several jobs report under are those of none of them.
    let mut users: HashMap<&str, u32> = HashMap::new();
    for name in running.iter().flat_map(|job| &job.streams) {
        *users.entry(name.as_str()).or_default() += 1;
    }
    let written = |job: &Job| {
        let mut names = job.streams.iter().filter(|name| users.get(name.as_str()) == Some(&1));
        let stream = names.find_map(|name| streams.get(name.as_str()).filter(|stream| stream.has_media))?;
        Some(Written { at, media_us: stream.media_us, frames: stream.frames })
    };
    let values = |job: &&Job| {
        let engines = by_engine(&job.gpu_engines);
        (job.job, JobSample { cpu_seconds: job.cpu_seconds, engines, written: written(job) })
    };
    Sample { host, engines: by_engine(&jobs.gpu_engines), jobs: running.iter().map(values).collect() }
}

/// The label of a job's encoded outputs, `libx264 1280x720@30 veryfast`; several are joined by `+`.
/// `fps` is the frame rate that was seen, for an output whose command line has none.
fn profile(outputs: &[&JobOutput], fps: Option<f64>) -> String {
    let one = |output: &&JobOutput| {
        let known = [&output.encoder, &output.codec].into_iter().find(|name| !name.is_empty());
        let encoder = known.map_or("default", String::as_str);
        let size = output.size.map_or_else(|| "source".to_owned(), |(width, height)| format!("{width}x{height}"));
        let requested = output.millifps.map(|millifps| f64::from(millifps) / 1000.0);
        let preset = if output.preset.is_empty() { "default" } else { output.preset.as_str() };
        format!("{encoder} {size}@{} {preset}", rate(requested.or(fps)))
    };
    let mut parts: Vec<String> = outputs.iter().take(MAX_OUTPUTS).map(one).collect();
    if outputs.len() > MAX_OUTPUTS {
        parts.push(format!("{} more", outputs.len() - MAX_OUTPUTS));
    }
    label::sanitize(&parts.join(" + "))
}

/// A frame rate for a label. A rate that was seen scatters, so it is rounded to a whole number.
fn rate(fps: Option<f64>) -> String {
    match fps.filter(|fps| fps.is_finite() && *fps > 0.0) {
        Some(fps) => format!("{fps:.0}"),
        None => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ffmpeg::Report;

    use super::*;

    /// A host with 8 CPUs, and jobs of half a CPU each that write media at a speed.
    struct Bench {
        headroom: Headroom,
        table: StreamTable,
        start: Instant,
        seconds: u32,
    }

    impl Bench {
        fn new() -> Self {
            let (mut table, start) = (StreamTable::new(16, Duration::from_secs(300)), Instant::now());
            for (number, name) in (1..).zip(["a", "b", "c"]) {
                table.report(
                    number,
                    name,
                    Report { frames: Some(0), out_time_us: Some(0), ..Report::default() },
                    start,
                );
            }
            Self { headroom: Headroom::default(), table, start, seconds: 0 }
        }

        fn job(number: u64, stream: &str, seconds: f64) -> Job {
            let output = JobOutput {
                codec: "h264".into(),
                encoder: "libx264".into(),
                preset: "veryfast".into(),
                size: Some((1280, 720)),
                ..JobOutput::default()
            };
            let streams = vec![stream.to_owned()];
            Job { job: number, streams, cpu_seconds: 0.5 * seconds, outputs: vec![output], ..Job::default() }
        }

        /// A second passes; `speeds` are those of the jobs a, b, …
        fn second(&mut self, speeds: &[f64], change: impl Fn(&mut Jobs)) {
            self.seconds += 1;
            let seconds = f64::from(self.seconds);
            let now = self.start + Duration::from_secs(u64::from(self.seconds));
            let mut jobs = Jobs { probe_started: 1.5, ..Jobs::default() };
            for ((number, speed), name) in (1..).zip(speeds).zip(["a", "b", "c"]) {
                let frames = (25.0 * seconds * speed) as u64;
                let report = Report {
                    frames: Some(frames),
                    out_time_us: Some((1e6 * seconds * speed) as u64),
                    ..Report::default()
                };
                self.table.report(number, name, report, now);
                jobs.jobs.push(Self::job(number, name, seconds));
            }
            jobs.host =
                Some(HostCpu { time: 1000.0 + seconds, cpus: 8, alone_seconds: 2.0 * seconds, ..HostCpu::default() });
            change(&mut jobs);
            self.headroom.observe(&jobs, &self.table, seconds);
        }
    }

    #[test]
    fn free_cpus_become_streams_of_the_running_kind() {
        let mut bench = Bench::new();
        for second in 1..=61 {
            bench.second(&[1.0, 1.0], |_| {});
            assert_eq!(bench.headroom.profiles().is_empty(), second < 31, "{second} s");
        }
        let [only] = bench.headroom.profiles() else { panic!("{:?}", bench.headroom) };
        assert_eq!((&*only.profile, &*only.device, only.jobs), ("libx264 1280x720@25 veryfast", "cpu", 2));
        // 90 % of 8 CPUs without the 2 that are busy, at half a CPU each.
        assert_eq!(only.forecast.streams, 10.0);
        // 65 % of the capacity is free: the cost may grow by 13 %, or decline by 32.5 %.
        assert_eq!((only.forecast.low, only.forecast.high), (9.0, 15.0), "{only:?}");
        assert!(bench.headroom.excluded.is_empty());
        assert!(bench.headroom.samples.len() <= MAX_BLOCKS + 1);
    }

    /// The mean of a minute had room for six more streams when there was room for two.
    #[test]
    fn load_from_before_a_job_began_is_no_room() {
        let mut bench = Bench::new();
        for second in 1..=61_u32 {
            let more = 4.0 * f64::from(second.saturating_sub(31));
            let speeds: &[f64] = if second > 31 { &[1.0, 1.0] } else { &[1.0] };
            bench.second(speeds, |jobs| {
                if let Some(host) = &mut jobs.host {
                    host.alone_seconds += more;
                }
            });
        }
        assert_eq!(bench.headroom.profiles()[0].forecast.streams, 2.0);
    }

    /// Streams that took half a CPU each on an idle host took 0.3 on a full one: of 17 that fitted,
    /// 7 were denied.
    #[test]
    fn the_cost_on_the_fullest_host_of_the_last_hour_counts() {
        let mut bench = Bench::new();
        let mut run = |from: u32, to: u32| {
            for second in from..=to {
                let (full, idle) = (f64::from(second.min(51)), f64::from(second.saturating_sub(51)));
                bench.second(&[1.0], |jobs| {
                    jobs.jobs[0].cpu_seconds = 0.3 * full + 0.5 * idle;
                    if let Some(host) = &mut jobs.host {
                        host.alone_seconds = 7.0 * full + 2.0 * idle;
                    }
                });
            }
            let [only] = bench.headroom.profiles() else { panic!("{:?}", bench.headroom) };
            only.forecast
        };
        assert_eq!(run(1, 51).streams, 0.0, "a full host");
        let found = run(52, 121);
        assert_eq!((found.streams, found.low, found.high), (17.0, 9.0, 17.0), "5.2 CPUs, at 0.3 each");
        assert!((found.per_stream - 0.5).abs() < 1e-9, "what they use is that of the last minute");
        // The load of an hour ago says nothing about the streams of now.
        assert_eq!(run(122, 3721).streams, 10.0);
    }

    #[test]
    fn a_stream_that_is_not_in_real_time_gives_no_forecast() {
        for speed in [0.8, 2.5] {
            let mut bench = Bench::new();
            (0..41).for_each(|_| bench.second(&[speed], |_| {}));
            assert!(bench.headroom.profiles().is_empty(), "{speed}");
            assert_eq!(bench.headroom.excluded, BTreeMap::from([("speed", 1)]), "{speed}");
        }
    }

    #[test]
    fn jobs_without_cpu_time_are_not_called_short() {
        let mut bench = Bench::new();
        (0..41).for_each(|_| bench.second(&[1.0], |jobs| jobs.jobs[0].cpu_seconds = 0.0));
        assert!(bench.headroom.profiles().is_empty());
        assert_eq!(bench.headroom.excluded, BTreeMap::from([("cpu", 1)]));
    }

    #[test]
    fn jobs_without_own_reports_or_on_a_gpu_are_excluded() {
        let mut bench = Bench::new();
        (0..41).for_each(|_| {
            bench.second(&[1.0, 1.0, 1.0], |jobs| {
                jobs.jobs[0].outputs[0].encoder = "h264_nvenc".into();
                jobs.jobs[2].streams = vec!["b".into()];
                jobs.jobs.push(Job { job: 9, ..Job::default() });
            });
        });
        assert!(bench.headroom.profiles().is_empty());
        assert_eq!(bench.headroom.excluded, BTreeMap::from([("device", 1), ("outputs", 1), ("reports", 2)]));
    }

    #[test]
    fn the_engine_of_a_gpu_limits_too() {
        let mut bench = Bench::new();
        for _ in 0..41 {
            let seconds = f64::from(bench.seconds + 1);
            bench.second(&[1.0], |jobs| {
                let time = |engine: &str, share: f64| EngineTime {
                    gpu: "GPU-1".into(),
                    engine: engine.into(),
                    seconds: share * seconds,
                };
                jobs.jobs[0].outputs[0].encoder = "h264_nvenc".into();
                jobs.jobs[0].gpu_engines = vec![time("encoder", 0.125), time("sm", 0.001)];
                jobs.gpu_engines = vec![time("encoder", 0.25), time("sm", 0.5)];
            });
        }
        let found: Vec<(&str, f64)> =
            bench.headroom.profiles().iter().map(|row| (&*row.device, row.forecast.streams)).collect();
        // 0.9 of the encoder without the quarter that is used, at an eighth each.
        assert_eq!(found, [("GPU-1", 5.0), ("cpu", 10.0)]);
    }

    #[test]
    fn a_restart_or_loss_of_the_probe_begins_again() {
        let mut bench = Bench::new();
        (0..41).for_each(|_| bench.second(&[1.0], |_| {}));
        assert_eq!(bench.headroom.profiles().len(), 1);
        bench.second(&[1.0], |jobs| jobs.probe_started = 99.0);
        assert!(bench.headroom.profiles().is_empty());
        assert_eq!(bench.headroom.excluded, BTreeMap::from([("short", 1)]));
        let mut bench = Bench::new();
        (0..41).for_each(|_| bench.second(&[1.0], |_| {}));
        bench.headroom.forget();
        assert!(bench.headroom.profiles().is_empty(), "an old forecast is not kept");
        bench.second(&[1.0], |jobs| jobs.host = None);
        assert_eq!(bench.headroom.excluded, BTreeMap::from([("cpu", 1)]));
    }

    #[test]
    fn the_number_of_profiles_is_bounded() {
        let mut bench = Bench::new();
        let many = |jobs: &mut Jobs| {
            let first = jobs.jobs[0].clone();
            jobs.jobs = (0..40)
                .map(|number| {
                    let mut job = Job { job: number, streams: vec![format!("s{number}")], ..first.clone() };
                    job.outputs[0].preset = format!("p{number}");
                    job
                })
                .collect();
        };
        bench.table = StreamTable::new(64, Duration::from_secs(300));
        for second in 1..=41_u32 {
            let now = bench.start + Duration::from_secs(u64::from(second));
            for number in 0..40_u64 {
                let report = Report { out_time_us: Some(u64::from(second) * 1_000_000), ..Report::default() };
                bench.table.report(100 + number, &format!("s{number}"), report, now);
            }
            bench.second(&[1.0], many);
        }
        assert_eq!(bench.headroom.profiles().len(), MAX_PROFILES);
        assert_eq!(bench.headroom.excluded, BTreeMap::from([("limit", 8)]));
    }

    #[test]
    fn a_ladder_is_one_profile() {
        let output = |size, preset: &str| JobOutput {
            codec: "hevc".into(),
            preset: preset.into(),
            size,
            millifps: Some(29_970),
            ..JobOutput::default()
        };
        let all = [output(Some((1280, 720)), "fast"), output(None, "")];
        let all: Vec<&JobOutput> = all.iter().collect();
        assert_eq!(profile(&all, None), "hevc 1280x720@30 fast + hevc source@30 default");
        let many: Vec<&JobOutput> = std::iter::repeat_n(all[0], 7).collect();
        assert!(profile(&many, None).ends_with(" + 3 more"), "{}", profile(&many, None));
        assert_eq!(profile(&[&JobOutput::default()], None), "default source@? default");
    }
}
