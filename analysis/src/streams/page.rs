//! Port 9506: what each stream delivered and how it fares, under the names of the ffmpeg exporter and under Prometheus' own.

use std::{collections::HashMap, time::Instant};

use exporter::{
    family::{Def, Families, Family},
    process, program,
};

use super::{book::Stream, names::Jobs, receive::Inlet};

const STREAM: &[&str] = &["stream"];
const STREAM_CODEC: &[&str] = &["stream", "codec"];

static FRAMES: Def = Def::counter(
    "wattcast_stream_frames_total",
    STREAM_CODEC,
    "Frames that a stream's jobs encoded, of their first video output, as ffmpeg reports them. With wattcast_stream_energy_joules_total of the \
     probe: joules per frame.",
);
static MEDIA: Def = Def::counter(
    "wattcast_stream_media_seconds_total",
    STREAM_CODEC,
    "Seconds of media that a stream's jobs wrote, as ffmpeg reports them.",
);
static DROPPED: Def = Def::counter("wattcast_stream_dropped_frames_total", STREAM, "Frames that ffmpeg left out.");
static DUPLICATED: Def =
    Def::counter("wattcast_stream_duplicated_frames_total", STREAM, "Frames that ffmpeg showed twice.");
static WRITTEN: Def = Def::counter(
    "wattcast_stream_written_bytes_total",
    STREAM,
    "Bytes that ffmpeg wrote, all outputs; absent until it says.",
);
static RATE: Def = Def::gauge(
    "wattcast_stream_frame_rate_hertz",
    STREAM,
    "Frames a second between the last two reports with new frames; 0 in a stall.",
);
static FRAME_TIME: Def = Def::gauge(
    "wattcast_stream_frame_duration_seconds",
    STREAM,
    "Time on the wall for each frame between the last two reports with new frames.",
);
static QUANTIZER: Def =
    Def::gauge("wattcast_stream_quantizer", STREAM, "Quantizer of the last frame of the first video output.");
static STALLS: Def = Def::counter(
    "wattcast_stream_stalls_total",
    STREAM,
    "Times that a job reported no new frame for two seconds or more.",
);
static STALLED: Def =
    Def::counter("wattcast_stream_stalled_seconds_total", STREAM, "Seconds in stalls that have ended.");
static JOBS: Def = Def::counter("wattcast_stream_progress_jobs_total", STREAM, "Jobs that reported under this name.");
static REPORTS: Def = Def::counter("wattcast_stream_reports_total", STREAM, "Reports taken under this name.");
static REFUSED: Def =
    Def::counter("wattcast_progress_refused_total", &[], "Posts of progress without the right token.");
static NO_ROOM: Def =
    Def::counter("wattcast_progress_dropped_total", &[], "Reports of streams that found no room (--limit.streams).");

static SCORE: Def = Def::gauge(
    "ffmpeg_quality_score",
    STREAM,
    "Frames that were not left out, in percent, as the replaced exporter had it. It says nothing of the picture; see port 9503.",
)
.seed();
static UP: Def = Def::gauge("ffmpeg_exporter_up", &[], "1 while progress is taken.").seed();
static ACTIVE: Def = Def::gauge("ffmpeg_stream_active", STREAM, "1 while the stream's newest job reports.").seed();
static SEED_FPS: Def =
    Def::gauge("ffmpeg_fps", STREAM, "Frames a second, ffmpeg's own mean since the job's start.").seed();
static SPEED: Def =
    Def::gauge("ffmpeg_speed", STREAM, "Media time over time on the wall, ffmpeg's own mean since the job's start.")
        .seed();
static SEED_FRAMES: Def = Def::counter("ffmpeg_frames_total", STREAM, "Frames that a stream's jobs encoded.").seed();
static SEED_DROPPED: Def = Def::counter("ffmpeg_dropped_frames_total", STREAM, "Frames that ffmpeg left out.").seed();
static BITRATE_NOW: Def = Def::gauge(
    "ffmpeg_current_bitrate_kbps",
    STREAM,
    "Kilobits a second that ffmpeg wrote between its last two reports.",
)
.seed();
static BITRATE: Def = Def::gauge(
    "ffmpeg_avg_bitrate_kbps",
    STREAM,
    "Kilobits a second of media, ffmpeg's own mean since the job's start.",
)
.seed();
static LOAD: Def = Def::gauge(
    "ffmpeg_encoder_load_percent",
    STREAM,
    "Part of real time that encoding takes: 100 over speed. Absent for input that comes no faster than it is played, where it would always be 100.",
)
.seed();
static LATENCY: Def = Def::gauge("ffmpeg_encode_latency_ms", STREAM, "Milliseconds on the wall for each frame.").seed();
static PROCESSING: Def =
    Def::counter("ffmpeg_processing_time_seconds", STREAM, "Seconds on the wall that the newest job has reported for.")
        .seed();
static UPTIME: Def =
    Def::counter("ffmpeg_uptime_seconds", STREAM, "Seconds since the newest job's first report, while it is active.")
        .seed();

/// Every metric of this port, in the order of the page.
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
    &REFUSED,
    &NO_ROOM,
    &UP,
    &ACTIVE,
    &SEED_FPS,
    &SPEED,
    &SEED_FRAMES,
    &SEED_DROPPED,
    &BITRATE_NOW,
    &BITRATE,
    &LOAD,
    &LATENCY,
    &PROCESSING,
    &UPTIME,
    &SCORE,
];

/// What a page needs besides the streams.
pub struct Context<'a> {
    /// What the probe told.
    pub jobs: &'a Jobs,
    /// The codec of each stream, as far as ever known.
    pub codecs: &'a HashMap<String, String>,
    /// Now.
    pub now: Instant,
}

/// The page's families, in order.
#[must_use]
pub fn families(inlet: &Inlet, context: &Context<'_>) -> Vec<Family> {
    let mut all = Families::new(DEFS);
    // What is not known, or no number, is absent.
    let mut push = |def: &'static Def, labels: &[&str], value: Option<f64>| {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            all.push(def, labels, value);
        }
    };
    let book = inlet.book();
    for (name, stream) in book.streams() {
        let codec = context.codecs.get(name).map(String::as_str).unwrap_or_default();
        row(&mut push, name, codec, stream, context);
    }
    push(&REFUSED, &[], Some(float(inlet.refused())));
    push(&NO_ROOM, &[], Some(float(book.dropped())));
    push(&UP, &[], Some(1.0));
    drop(book);
    let mut all = all.into_vec();
    all.push(program::build_info());
    all.extend(process::families());
    all
}

fn row(
    push: &mut impl FnMut(&'static Def, &[&str], Option<f64>),
    name: &str,
    codec: &str,
    stream: &Stream,
    context: &Context<'_>,
) {
    let (last, active) = (&stream.last, stream.is_active(context.now));
    let both = [name, codec];
    let one = [name];
    #[expect(clippy::cast_precision_loss, reason = "microseconds of media, for output")]
    let media = stream.media_us as f64 / 1e6;
    push(&FRAMES, &both, Some(float(stream.frames)));
    push(&MEDIA, &both, Some(media));
    push(&DROPPED, &one, Some(float(stream.dropped)));
    push(&DUPLICATED, &one, Some(float(stream.duplicated)));
    push(&WRITTEN, &one, (stream.bytes > 0).then(|| float(stream.bytes)));
    let rate = stream.fps_now.filter(|_| active);
    let frame = rate.filter(|rate| *rate > 0.0).map(|rate| 1.0 / rate);
    push(&RATE, &one, rate);
    push(&FRAME_TIME, &one, frame);
    push(&QUANTIZER, &one, last.quantizer.filter(|_| active));
    push(&STALLS, &one, Some(float(stream.stalls)));
    push(&STALLED, &one, Some(stream.stalled.as_secs_f64()));
    push(&JOBS, &one, Some(float(stream.jobs)));
    push(&REPORTS, &one, Some(float(stream.reports)));
    push(&ACTIVE, &one, Some(f64::from(u8::from(active))));
    push(&SEED_FPS, &one, last.fps);
    push(&SPEED, &one, last.speed);
    push(&SEED_FRAMES, &one, Some(float(stream.frames)));
    push(&SEED_DROPPED, &one, Some(float(stream.dropped)));
    push(&BITRATE_NOW, &one, stream.bitrate_now.filter(|_| active).map(|bits| bits / 1000.0));
    push(&BITRATE, &one, last.bitrate.map(|bits| bits / 1000.0));
    let paced =
        context.jobs.jobs.iter().rev().find(|job| job.streams.iter().any(|stream| stream == name)).map(|job| job.paced);
    let speed = last.speed.filter(|speed| *speed > 0.0 && active && paced != Some(true));
    push(&LOAD, &one, speed.map(|speed| 100.0 / speed));
    push(&LATENCY, &one, frame.map(|seconds| seconds * 1000.0));
    push(&PROCESSING, &one, Some(stream.at.duration_since(stream.since).as_secs_f64()));
    let all = stream.frames.saturating_add(stream.dropped);
    push(&SCORE, &one, (all > 0).then(|| float(stream.frames) / float(all) * 100.0));
    push(&UPTIME, &one, active.then(|| context.now.duration_since(stream.since).as_secs_f64()));
}

#[expect(clippy::cast_precision_loss, reason = "a count, for output")]
fn float(count: u64) -> f64 {
    count as f64
}
