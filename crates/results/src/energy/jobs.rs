//! ffmpeg jobs as reported by the probe at `/api/v1/streams`.

use serde::Deserialize;

/// One ffmpeg process.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Job {
    /// Number of the job, unique within one start of the probe.
    pub job: u64,
    /// Names of its streams.
    pub streams: Vec<String>,
    /// How the energy of the process is shared between its streams: the label `share`.
    pub share: String,
    /// Name of the container.
    pub container: String,
    /// Image of the container.
    pub image: String,
    /// Process id; absent after its end.
    pub pid: Option<u32>,
    /// Local UDP ports of the process, from which its progress reports come.
    pub udp_ports: Vec<u16>,
    /// Start in unix seconds.
    pub started: f64,
    /// From when on its CPU time and energy are counted, in unix seconds: later than the start if
    /// the probe started during the job. Absent in answers of older probes: the start.
    pub counted_since_seconds: Option<f64>,
    /// End in unix seconds; absent while the job runs.
    pub ended: Option<f64>,
    /// CPU time of all threads since `counted_since_seconds`, in seconds.
    pub cpu_seconds: f64,
    /// Energy attributed to the job since `counted_since_seconds`.
    pub joules: f64,
    /// The source of the energy: the label `source`.
    pub source: String,
    /// True if the input is read in real time (`-re`, or a live source).
    pub paced: bool,
    /// The destination of progress reports (`-progress`).
    pub progress: Option<Progress>,
    /// Engines of GPUs that it used; empty from older probes.
    pub gpu_engines: Vec<EngineTime>,
    /// The encoded outputs.
    pub outputs: Vec<JobOutput>,
    /// Its streams that media servers receive; empty from older probes.
    pub published: Vec<Published>,
}

/// A stream of a job that media servers receive.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Published {
    /// The label `stream` of the probe.
    pub stream: String,
    /// Energy of the stream in joules: the probe's row, which successive jobs continue.
    pub joules: f64,
    /// Digests of the addresses: of application and name at the server.
    pub targets: Vec<String>,
}

/// The destination of progress reports.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// The protocol, `udp`, `http` or `unix`.
    pub kind: String,
    /// The local UDP port of the datagrams, if known.
    pub port: Option<u16>,
}

/// One output of a job.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct JobOutput {
    /// Codec, `h264`; empty if unknown.
    pub codec: String,
    /// Requested encoder, `libx264`.
    pub encoder: String,
    /// Requested preset.
    pub preset: String,
    /// Width and height in pixels.
    pub size: Option<(u32, u32)>,
    /// Requested frames per 1000 seconds.
    pub millifps: Option<u32>,
    /// True if the command line excludes pictures.
    pub without_video: bool,
}

impl Job {
    /// From when on its CPU time and energy are counted, in unix seconds.
    #[must_use]
    pub fn counted_since(&self) -> f64 {
        self.counted_since_seconds.unwrap_or(self.started).max(self.started)
    }

    /// The first known codec of the outputs; empty if none is known.
    #[must_use]
    pub fn codec(&self) -> &str {
        self.outputs.iter().map(|output| &*output.codec).find(|codec| !codec.is_empty()).unwrap_or_default()
    }
}

/// CPU time of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct HostCpu {
    /// The time in unix seconds that the CPU time of the host and of all jobs refers to.
    pub time: f64,
    /// CPUs that are online.
    pub cpus: u32,
    /// True if CPUs share cores.
    pub smt: bool,
    /// True if time next to a busy sibling is in `shared_seconds`.
    pub siblings_known: bool,
    /// CPU seconds since the start of the probe, of all processes and the kernel, while the CPU's
    /// sibling was idle.
    pub alone_seconds: f64,
    /// CPU seconds while the sibling was busy too.
    pub shared_seconds: f64,
}

/// Time of full use of an engine of a GPU.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct EngineTime {
    /// The label `gpu`.
    pub gpu: String,
    /// The label `engine`.
    pub engine: String,
    /// Seconds since the start of the probe.
    pub seconds: f64,
}

/// The jobs of a probe.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Jobs {
    /// Start of the probe in unix seconds. Job numbers are unique only within one start.
    pub probe_started: f64,
    /// CPU time of the probe's host; absent from older probes, and where it is not counted.
    #[serde(default)]
    pub host: Option<HostCpu>,
    /// Engines of GPUs as used by all processes; empty from older probes.
    #[serde(default)]
    pub gpu_engines: Vec<EngineTime>,
    /// Running jobs, and jobs that ended recently.
    pub jobs: Vec<Job>,
}

impl Jobs {
    /// Number of running jobs.
    #[must_use]
    pub fn running(&self) -> usize {
        self.jobs.iter().filter(|job| job.ended.is_none()).count()
    }
}
