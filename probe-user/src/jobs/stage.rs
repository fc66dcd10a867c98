//! The stages of an ffmpeg process, and the stage that a thread works for, by its name and by the
//! thread that created it.
//!
//! ffmpeg's scheduler, since 7.0, names its threads after what they do (`fftools/ffmpeg_demux.c`,
//! `_dec.c`, `_filter.c`, `_enc.c`, `_mux.c`). A library's threads have the name of the thread that
//! opened it, or one of their own. An encoder is opened by the filter thread when the first picture
//! arrives there, so the workers of the encoder of output 0 are called `vf#0:0` like the filter
//! thread, and only their creator distinguishes them: the main thread creates filter threads.
//!
//! A filter has workers too, which cannot be distinguished from those of the encoder that follows
//! it, and count as encode of the same output. They count as filter only where the encoder is known
//! to have no threads.
//!
//! Any program can choose these names. They select one of a few stages and an output, and no text
//! of them is shown.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::command_line::MAX_OUTPUTS;
use crate::cpu::ThreadCreator;

/// What a thread of an ffmpeg process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Demux,
    Decode,
    /// Filters of pictures.
    Filter,
    /// Encoders of anything but sound.
    Encode,
    Mux,
    /// Filters and encoders of sound.
    Audio,
    /// Everything else: the main thread, and time of threads that were not seen.
    Other,
}

impl Stage {
    /// Value of the label `stage`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Demux => "demux",
            Self::Decode => "decode",
            Self::Filter => "filter",
            Self::Encode => "encode",
            Self::Mux => "mux",
            Self::Audio => "audio",
            Self::Other => "other",
        }
    }
}

/// A part of a job: a stage, of one output or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StagePart {
    pub stage: Stage,
    /// Number of the output in the command line, from 0 and below [`MAX_OUTPUTS`]; `None` where the
    /// thread's name tells none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<u8>,
}

impl StagePart {
    /// The part that takes what belongs to no other.
    pub const OTHER: Self = Self { stage: Stage::Other, output: None };

    /// A part of all outputs.
    #[must_use]
    pub fn common(stage: Stage) -> Self {
        Self { stage, output: None }
    }

    /// A part of one output.
    #[must_use]
    pub fn of_output(stage: Stage, output: u8) -> Self {
        Self { stage, output: Some(output) }
    }
}

/// CPU nanoseconds of the parts of a job since its start, each part once.
pub type StageTimes = Vec<(StagePart, u64)>;

/// Maximum number of parts: of all outputs, and of each.
pub const MAX_PARTS: usize = 7 * (MAX_OUTPUTS + 1);

/// An output and a stream of it, by their numbers.
type OutputStream = (u8, u8);

/// What a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Demux,
    Decode,
    /// A filter graph of pictures; `None` for one of `-filter_complex`, which serves any outputs.
    Filter(Option<OutputStream>),
    /// A thread that a filter graph started, nearly always the encoder behind it.
    FilterWorker(Option<OutputStream>),
    AudioFilter(OutputStream),
    /// The thread that calls an encoder. `alone` if that starts no threads.
    Encode {
        of: OutputStream,
        alone: bool,
    },
    /// The muxer of an output.
    Mux(u8),
    Other,
}

impl Role {
    /// The role that a name of ffmpeg's or of a decoder's threads stands for.
    fn of_name(name: &str) -> Option<Self> {
        let numbered = |rest: &str| rest.split(':').next()?.parse::<u8>().ok();
        // libavcodec/pthread_frame.c: `av:%.7s:df%d`; dav1d's src/thread_task.c.
        if name == "dav1d-worker" || name.strip_prefix("av:").is_some_and(|rest| rest.contains(":df")) {
            return Some(Self::Decode);
        }
        if let Some(rest) = name.strip_prefix("fc") {
            return rest.parse::<u8>().ok().map(|_| Self::Filter(None));
        }
        let (kind, rest) = name.split_at_checked(3)?;
        match kind {
            "dmx" => numbered(rest).map(|_| Self::Demux),
            "dec" => numbered(rest).map(|_| Self::Decode),
            "mux" => numbered(rest).filter(|output| is_output(*output)).map(Self::Mux),
            "vf#" => output_stream(rest).map(|(of, _)| Self::Filter(Some(of))),
            "af#" => output_stream(rest).map(|(of, _)| Self::AudioFilter(of)),
            "enc" => output_stream(rest).map(|(of, codec)| Self::Encode { of, alone: has_no_threads(codec) }),
            _ => None,
        }
    }

    /// The role of a thread that a thread of this role created.
    fn of_worker(self) -> Self {
        match self {
            Self::Filter(of) => Self::FilterWorker(of),
            role => role,
        }
    }
}

fn is_output(number: u8) -> bool {
    usize::from(number) < MAX_OUTPUTS
}

/// Parses `0:1` and `0:1:codec`: output, stream, and codec, which may be cut off.
fn output_stream(text: &str) -> Option<(OutputStream, &str)> {
    let mut parts = text.splitn(3, ':');
    let (output, stream) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    is_output(output).then_some(((output, stream), parts.next().unwrap_or_default()))
}

/// True for encoders that work in their caller's thread or in hardware. The name is cut off to
/// what fits into the name of a thread, at least five characters.
fn has_no_threads(encoder: &str) -> bool {
    if let Some((codec, _)) = encoder.split_once('_') {
        // `h264_nvenc`, `hevc_vaapi`, `av1_qsv`: a codec and an interface.
        return encoder.starts_with("wrapped_")
            || matches!(codec, "h264" | "hevc" | "av1" | "vp8" | "vp9" | "mpeg2" | "mjpeg");
    }
    !encoder.is_empty() && ("rawvideo".starts_with(encoder) || "wrapped_avframe".starts_with(encoder))
}

/// The roles of a job's threads, and what they tell of each other.
#[derive(Debug, Default)]
pub(super) struct Roles {
    /// The filter thread among threads of one graph whose creators are unknown: by role, and by the
    /// number of a graph of `-filter_complex`, which all have one role. Not by name, of which a
    /// program can have any number.
    filters: BTreeMap<(Role, u8), u32>,
    /// Streams with a filter of sound.
    audio: BTreeSet<OutputStream>,
    /// Streams whose encoder starts no threads.
    alone: BTreeSet<OutputStream>,
}

impl Roles {
    /// The role of a thread. Where its creator is unknown, the first of several filter threads of
    /// one name is the filter: it creates the others.
    pub(super) fn of(&mut self, tid: u32, name: &str, creator: &ThreadCreator) -> Role {
        let role = match (Role::of_name(name), creator) {
            (Some(Role::Filter(of)), ThreadCreator::Thread(_)) => Role::FilterWorker(of),
            (Some(filter @ Role::Filter(of)), ThreadCreator::Unknown) => {
                let graph = name.strip_prefix("fc").and_then(|number| number.parse().ok()).unwrap_or(0);
                let first = *self.filters.entry((filter, graph)).or_insert(tid);
                if first == tid { filter } else { Role::FilterWorker(of) }
            }
            (Some(role), _) => role,
            (None, ThreadCreator::Thread(creator)) => Role::of_name(creator).map_or(Role::Other, Role::of_worker),
            (None, _) => Role::Other,
        };
        match role {
            Role::AudioFilter(of) => {
                self.audio.insert(of);
            }
            Role::Encode { of, alone: true } => {
                self.alone.insert(of);
            }
            _ => {}
        }
        role
    }

    /// The part that a thread works for. Call it when the names of all threads are known.
    pub(super) fn part(&self, role: Role) -> StagePart {
        let encode = |of: OutputStream| if self.audio.contains(&of) { Stage::Audio } else { Stage::Encode };
        match role {
            Role::Demux => StagePart::common(Stage::Demux),
            Role::Decode => StagePart::common(Stage::Decode),
            Role::Filter(None) => StagePart::common(Stage::Filter),
            Role::Filter(Some(of)) => StagePart::of_output(Stage::Filter, of.0),
            Role::FilterWorker(None) => StagePart::common(Stage::Encode),
            Role::FilterWorker(Some(of)) => {
                let stage = if self.alone.contains(&of) { Stage::Filter } else { Stage::Encode };
                StagePart::of_output(stage, of.0)
            }
            Role::AudioFilter(of) => StagePart::of_output(Stage::Audio, of.0),
            Role::Encode { of, .. } => StagePart::of_output(encode(of), of.0),
            Role::Mux(output) => StagePart::of_output(Stage::Mux, output),
            Role::Other => StagePart::OTHER,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN: ThreadCreator = ThreadCreator::Main;

    fn created_by(name: &str) -> ThreadCreator {
        ThreadCreator::Thread(name.to_owned())
    }

    /// Stage and output of each thread: its name and its creator.
    fn parts(threads: &[(&str, ThreadCreator)]) -> Vec<(&'static str, Option<u8>)> {
        let mut roles = Roles::default();
        let all: Vec<Role> =
            threads.iter().zip(1u32..).map(|((name, creator), tid)| roles.of(tid, name, creator)).collect();
        let part = |role: &Role| {
            let StagePart { stage, output } = roles.part(*role);
            (stage.as_str(), output)
        };
        all.iter().map(part).collect()
    }

    /// The names that 9.0 gives its threads, of one process with two outputs and sound.
    #[test]
    fn threads_of_ffmpeg_9_have_stages_and_outputs() {
        let (first, second) = (created_by("vf#0:0"), created_by("vf#1:0"));
        let found = parts(&[
            ("ffmpeg", MAIN),
            ("av:h264:df0", MAIN),
            ("enc0:0:libx264", MAIN),
            ("enc1:0:libx265", MAIN),
            ("enc1:1:aac", MAIN),
            ("vf#0:0", MAIN),
            ("vf#1:0", MAIN),
            ("af#1:1", MAIN),
            ("dec0:0:wrapped_", MAIN),
            ("dec1:0:pcm_s16l", MAIN),
            ("dmx0:lavfi", MAIN),
            ("vf#0:0", first.clone()),
            ("vf#1:0", second.clone()),
            ("af#1:1", created_by("af#1:1")),
            ("mux0:null", first),
            ("mux1:mov,mp4,m4", second),
        ]);
        let expected = [
            ("other", None),
            ("decode", None),
            ("encode", Some(0)),
            ("encode", Some(1)),
            ("audio", Some(1)),
            ("filter", Some(0)),
            ("filter", Some(1)),
            ("audio", Some(1)),
            ("decode", None),
            ("decode", None),
            ("demux", None),
            ("encode", Some(0)),
            ("encode", Some(1)),
            ("audio", Some(1)),
            ("mux", Some(0)),
            ("mux", Some(1)),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn threads_of_ffmpeg_5_have_no_stage() {
        let all = [("ffmpeg", MAIN), ("ffmpeg", created_by("ffmpeg")), ("ffmpeg", ThreadCreator::Unknown)];
        assert_eq!(parts(&all), [("other", None); 3]);
    }

    /// A program that renamed its threads all the time filled memory.
    #[test]
    fn names_that_a_program_invents_need_no_memory() {
        let mut roles = Roles::default();
        for tid in 0..1000 {
            roles.of(tid, &format!("vf#0:0:{tid}"), &ThreadCreator::Unknown);
            roles.of(tid, &format!("fc0{}", tid % 2), &ThreadCreator::Unknown);
        }
        assert_eq!(roles.filters.len(), 3);
    }

    #[test]
    fn the_first_of_several_filter_threads_is_the_filter() {
        let unknown = ThreadCreator::Unknown;
        let all = ["vf#0:0", "vf#1:0", "vf#0:0", "vf#1:0", "fc0", "fc0", "fc1"].map(|name| (name, unknown.clone()));
        let expected = [
            ("filter", Some(0)),
            ("filter", Some(1)),
            ("encode", Some(0)),
            ("encode", Some(1)),
            ("filter", None),
            ("encode", None),
            ("filter", None),
        ];
        assert_eq!(parts(&all), expected);
    }

    /// Libraries that name their threads: libvpx, libaom, SVT-AV1.
    #[test]
    fn workers_with_names_of_their_own_follow_their_creator() {
        let names = ["vpx tile worker", "aom enc row mt", "svt-av1", ""];
        let all = names.map(|name| (name, created_by("vf#2:0")));
        assert_eq!(parts(&all), [("encode", Some(2)); 4]);
        assert_eq!(parts(&[("worker", created_by("dec0:0:av1"))]), [("decode", None)]);
        assert_eq!(parts(&[("worker", created_by("worker"))]), [("other", None)]);
        assert_eq!(parts(&[("dav1d-worker", MAIN)]), [("decode", None)]);
    }

    #[test]
    fn workers_in_front_of_an_encoder_without_threads_are_filters() {
        for encoder in ["rawvideo", "wrapped_", "h264_nve", "hevc_vaa", "av1_qsv", "wrapp", "rawvi"] {
            let name = format!("enc0:0:{encoder}");
            let all = [(&*name, MAIN), ("vf#0:0", created_by("vf#0:0"))];
            assert_eq!(parts(&all), [("encode", Some(0)), ("filter", Some(0))], "{encoder}");
        }
        for encoder in ["libx264", "libsvtav", "prores_k", "mpeg4", "mjpeg", "", "png"] {
            let name = format!("enc0:0:{encoder}");
            let all = [(&*name, MAIN), ("vf#0:0", created_by("vf#0:0"))];
            assert_eq!(parts(&all), [("encode", Some(0)); 2], "{encoder}");
        }
    }

    #[test]
    fn hostile_thread_names_have_no_stage() {
        let names = "enc enc0 enc0: enc:0:x enc16:0:x enc-1:0:x enc256:0:x vf#0 vf# vf#x:0 fc fcx fc999 mux16:mp4 \
                     mux:mp4 dmx dec dmxx av: av:x é éé vf#0:\u{fffd}";
        for name in names.split(' ').chain([""]) {
            assert_eq!(parts(&[(name, MAIN)]), [("other", None)], "{name}");
        }
        let most = format!("enc{}:255:x", MAX_OUTPUTS - 1);
        assert_eq!(parts(&[(&*most, MAIN)]), [("encode", u8::try_from(MAX_OUTPUTS - 1).ok())]);
    }
}
