//! Metrics of port 9506: totals and state of each ffmpeg stream, and the legacy names of the ffmpeg
//! exporter.

use std::{collections::HashMap, time::Instant};

use cli::program;
use metrics::{
    family::{Def, Families, Family},
    process,
};

use super::{
    headroom::{self, Headroom},
    job_log::LogCounts,
    receive::ProgressReceiver,
    table::Stream,
};
use results::energy::jobs::Jobs;

const STREAM: &[&str] = &["stream"];
const STREAM_CODEC: &[&str] = &["stream", "codec"];

static FRAMES: Def = Def::counter(
    "wattcast_stream_frames_total",
    STREAM_CODEC,
    "Frames encoded by a stream's jobs, first video output, as reported by ffmpeg; with the \
     probe's wattcast_stream_energy_joules_total: joules per frame.",
);
static MEDIA: Def = Def::counter(
    "wattcast_stream_media_seconds_total",
    STREAM_CODEC,
    "Seconds of media written by a stream's jobs, as reported by ffmpeg; positions in the source \
     (-copyts, jumps) are left out, and it is absent while only those are known.",
);
static DROPPED: Def = Def::counter("wattcast_stream_dropped_frames_total", STREAM, "Frames dropped by ffmpeg.");
static DUPLICATED: Def =
    Def::counter("wattcast_stream_duplicated_frames_total", STREAM, "Frames duplicated by ffmpeg.");
static WRITTEN: Def = Def::counter(
    "wattcast_stream_written_bytes_total",
    STREAM,
    "Bytes written by ffmpeg, all outputs; absent until reported.",
);
static RATE: Def = Def::gauge(
    "wattcast_stream_frame_rate_hertz",
    STREAM,
    "Frames per second between the last two reports with new frames; 0 in a stall.",
);
static FRAME_TIME: Def = Def::gauge(
    "wattcast_stream_frame_duration_seconds",
    STREAM,
    "Wall time per frame in seconds, between the last two reports with new frames.",
);
static QUANTIZER: Def =
    Def::gauge("wattcast_stream_quantizer", STREAM, "Quantizer of the last frame, first video output.");
static STALLS: Def = Def::counter(
    "wattcast_stream_stalls_total",
    STREAM,
    "Stalls: periods of at least two seconds with reports but without a new frame.",
);
static STALLED: Def = Def::counter("wattcast_stream_stalled_seconds_total", STREAM, "Seconds in completed stalls.");
static JOBS: Def = Def::counter("wattcast_stream_progress_jobs_total", STREAM, "Jobs that reported for a stream.");
static REPORTS: Def = Def::counter("wattcast_stream_reports_total", STREAM, "Progress reports received for a stream.");
static REJECTED: Def =
    Def::counter("wattcast_progress_refused_total", &[], "Progress requests rejected for a missing or wrong token.");
static OVER_LIMIT: Def = Def::counter(
    "wattcast_progress_dropped_total",
    &[],
    "Progress reports dropped because of the limit on streams (--limit.streams).",
);
static DATAGRAMS: Def = Def::counter(
    "wattcast_progress_datagrams_dropped_total",
    &["reason"],
    "Datagrams of progress dropped: senders (no place for another sender that the probe does not \
     know), rate (more than 100 per second of one sender).",
);
static LOG_LOST: Def = Def::counter(
    "wattcast_job_log_lost_lines_total",
    &[],
    "Lines of ended jobs that are not in the job log (--streams.record), because it could not be \
     written for too long, or was cut off within a line.",
);
static LOG_QUEUED: Def = Def::gauge(
    "wattcast_job_log_queued_lines",
    &[],
    "Lines of ended jobs that wait until the job log (--streams.record) can be written.",
);

static SCORE: Def = Def::gauge(
    "ffmpeg_quality_score",
    STREAM,
    "Frames not dropped, in percent, as in the legacy exporter. Not a measure of picture quality; \
     see port 9503.",
)
.compat();
static UP: Def = Def::gauge("ffmpeg_exporter_up", &[], "1 while progress reports are received.").compat();
static ACTIVE: Def = Def::gauge("ffmpeg_stream_active", STREAM, "1 while the stream's newest job reports.").compat();
static LEGACY_FPS: Def =
    Def::gauge("ffmpeg_fps", STREAM, "Frames per second, ffmpeg's mean since the start of the job.").compat();
static SPEED: Def =
    Def::gauge("ffmpeg_speed", STREAM, "Media time per wall time, ffmpeg's mean since the start of the job.").compat();
static LEGACY_FRAMES: Def = Def::counter("ffmpeg_frames_total", STREAM, "Frames encoded by a stream's jobs.").compat();
static LEGACY_DROPPED: Def = Def::counter("ffmpeg_dropped_frames_total", STREAM, "Frames dropped by ffmpeg.").compat();
static BITRATE_NOW: Def = Def::gauge(
    "ffmpeg_current_bitrate_kbps",
    STREAM,
    "Output bitrate between the last two reports in kilobits per second.",
)
.compat();
static BITRATE: Def = Def::gauge(
    "ffmpeg_avg_bitrate_kbps",
    STREAM,
    "Output bitrate in kilobits per second of media, ffmpeg's mean since the start of the job.",
)
.compat();
static LOAD: Def = Def::gauge(
    "ffmpeg_encoder_load_percent",
    STREAM,
    "Encoding time in percent of real time: 100 / speed; absent for input paced to real time, \
     where it would always be 100.",
)
.compat();
static LATENCY: Def = Def::gauge("ffmpeg_encode_latency_ms", STREAM, "Wall time per frame in milliseconds.").compat();
static PROCESSING: Def =
    Def::counter("ffmpeg_processing_time_seconds", STREAM, "Seconds from the newest job's first to its last report.")
        .compat();
static UPTIME: Def =
    Def::counter("ffmpeg_uptime_seconds", STREAM, "Seconds since the newest job's first report, while it is active.")
        .compat();

/// Every metric of the port, in the order of the page.
pub static DEFS: &[&Def] = &[
    &FRAMES,
    &MEDIA,
    &DROPPED,
    &DUPLICATED,
    &WRITTEN,
    &RATE,
    &FRAME_TIME,
    &QUANTIZER,
    &STALLS,
    &STALLED,
    &JOBS,
    &REPORTS,
    &REJECTED,
    &OVER_LIMIT,
    &DATAGRAMS,
    &LOG_LOST,
    &LOG_QUEUED,
    &headroom::HEADROOM,
    &headroom::INTERVAL,
    &headroom::COST,
    &headroom::RUNNING,
    &headroom::EXCLUDED,
    &UP,
    &ACTIVE,
    &LEGACY_FPS,
    &SPEED,
    &LEGACY_FRAMES,
    &LEGACY_DROPPED,
    &BITRATE_NOW,
    &BITRATE,
    &LOAD,
    &LATENCY,
    &PROCESSING,
    &UPTIME,
    &SCORE,
];

/// Data of the page from other sources than the reports.
pub struct Context<'a> {
    /// Jobs known to the probe.
    pub jobs: &'a Jobs,
    /// Codecs by stream.
    pub codecs: &'a HashMap<String, String>,
    /// The state of the job log, if there is one.
    pub job_log: Option<LogCounts>,
    pub headroom: &'a Headroom,
    pub now: Instant,
}

/// The families of the page, in order.
#[must_use]
pub fn families(receiver: &ProgressReceiver, context: &Context<'_>) -> Vec<Family> {
    let mut all = Families::new(DEFS);
    // Unknown values and values that are not finite are absent.
    let mut push = |def: &'static Def, labels: &[&str], value: Option<f64>| {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            all.push(def, labels, value);
        }
    };
    let table = receiver.table();
    for (name, stream) in table.streams() {
        let codec = context.codecs.get(name).map(String::as_str).unwrap_or_default();
        push_stream(&mut push, name, codec, stream, context);
    }
    push(&REJECTED, &[], Some(float(receiver.rejected())));
    push(&OVER_LIMIT, &[], Some(float(table.dropped())));
    for (reason, count) in receiver.dropped_datagrams() {
        push(&DATAGRAMS, &[reason], Some(float(count)));
    }
    push(&LOG_LOST, &[], context.job_log.map(|log| float(log.lost)));
    push(&LOG_QUEUED, &[], context.job_log.map(|log| float(log.queued)));
    context.headroom.push(&mut push);
    push(&UP, &[], Some(1.0));
    drop(table);
    let mut all = all.into_vec();
    all.push(program::build_info());
    all.extend(process::families());
    all
}

fn push_stream(
    push: &mut impl FnMut(&'static Def, &[&str], Option<f64>),
    name: &str,
    codec: &str,
    stream: &Stream,
    context: &Context<'_>,
) {
    let (last, active) = (&stream.last_report, stream.is_active(context.now));
    // A counter that no report had is unknown, not zero.
    let known = &stream.known;
    let frames = known.frames.map(|_| float(stream.frames));
    let dropped = known.dropped.map(|_| float(stream.dropped));
    let with_codec = [name, codec];
    let labels = [name];
    #[expect(clippy::cast_precision_loss, reason = "microseconds of media, for output")]
    let media = stream.media_us as f64 / 1e6;
    push(&FRAMES, &with_codec, frames);
    push(&MEDIA, &with_codec, stream.has_media.then_some(media));
    push(&DROPPED, &labels, dropped);
    push(&DUPLICATED, &labels, known.duplicated.map(|_| float(stream.duplicated)));
    push(&WRITTEN, &labels, known.bytes.map(|_| float(stream.bytes)));
    let rate = stream.fps_now.filter(|_| active);
    let frame = rate.filter(|rate| *rate > 0.0).map(|rate| 1.0 / rate);
    push(&RATE, &labels, rate);
    push(&FRAME_TIME, &labels, frame);
    push(&QUANTIZER, &labels, last.quantizer.filter(|_| active));
    push(&STALLS, &labels, Some(float(stream.stalls)));
    push(&STALLED, &labels, Some(stream.stalled.as_secs_f64()));
    push(&JOBS, &labels, Some(float(stream.jobs)));
    push(&REPORTS, &labels, Some(float(stream.reports)));
    push(&ACTIVE, &labels, Some(f64::from(u8::from(active))));
    push(&LEGACY_FPS, &labels, last.fps);
    push(&SPEED, &labels, last.speed);
    push(&LEGACY_FRAMES, &labels, frames);
    push(&LEGACY_DROPPED, &labels, dropped);
    push(&BITRATE_NOW, &labels, stream.bitrate_now.filter(|_| active).map(|bits| bits / 1000.0));
    push(&BITRATE, &labels, last.bitrate.map(|bits| bits / 1000.0));
    let is_paced =
        context.jobs.jobs.iter().rev().find(|job| job.streams.iter().any(|stream| stream == name)).map(|job| job.paced);
    let speed = last.speed.filter(|speed| *speed > 0.0 && active && is_paced != Some(true));
    push(&LOAD, &labels, speed.map(|speed| 100.0 / speed));
    push(&LATENCY, &labels, frame.map(|seconds| seconds * 1000.0));
    push(&PROCESSING, &labels, Some(stream.last_report_at.duration_since(stream.job_start).as_secs_f64()));
    let all = stream.frames.saturating_add(stream.dropped);
    push(&SCORE, &labels, (all > 0).then(|| float(stream.frames) / float(all) * 100.0));
    push(&UPTIME, &labels, active.then(|| context.now.duration_since(stream.job_start).as_secs_f64()));
}

#[expect(clippy::cast_precision_loss, reason = "a count, for output")]
fn float(count: u64) -> f64 {
    count as f64
}
