//! What ffmpeg's encoders need: the codec and the modes that carry it, the device of a hardware
//! encoder, and the names under which an encoder takes preset, quality and low delay.
//!
//! Sources: ffmpeg's documentation of its encoders, libavcodec/nvenc.c, qsvenc.c, vaapi_encode.c
//! and libsvtav1.c, and the changes of ffmpeg 6.1 for enhanced RTMP (libavformat/flvenc.c).

use super::plan::{LiveServer, Mode, Plan, Rate, parse_bitrate};

/// A video codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// H.264, AVC.
    H264,
    /// H.265, HEVC.
    Hevc,
    /// VP9.
    Vp9,
    /// AV1.
    Av1,
    /// Any other.
    Other,
}

/// The codecs, with their names and the muxer that each output mode needs: `file`, `null`, and
/// `rtmp` of nginx and of MediaMTX. An absent muxer is a mode that does not carry the codec.
static MODES: [(Codec, &str, [Option<&str>; 4]); 5] = [
    (Codec::H264, "H.264", [Some("matroska"), Some("null"), Some("flv"), Some("flv")]),
    (Codec::Hevc, "HEVC", [Some("matroska"), Some("null"), None, Some("flv")]),
    (Codec::Vp9, "VP9", [Some("matroska"), Some("null"), None, Some("flv")]),
    (Codec::Av1, "AV1", [Some("matroska"), Some("null"), None, Some("flv")]),
    (Codec::Other, "other", [Some("matroska"), Some("null"), None, None]),
];

/// The first ffmpeg that sends other codecs than H.264 over RTMP.
const ENHANCED_RTMP: (u32, u32) = (6, 1);

impl Codec {
    /// The codec of an encoder, by ffmpeg's name of the encoder.
    #[must_use]
    pub fn of(encoder: &str) -> Self {
        let has = |words: &[&str]| words.iter().any(|word| encoder.contains(word));
        if has(&["264"]) {
            Self::H264
        } else if has(&["265", "hevc"]) {
            Self::Hevc
        } else if has(&["vp9"]) {
            Self::Vp9
        } else if has(&["av1"]) {
            Self::Av1
        } else {
            Self::Other
        }
    }

    fn row(self) -> (&'static str, [Option<&'static str>; 4]) {
        let known = MODES.iter().find(|(codec, ..)| *codec == self);
        known.map_or(("other", [None; 4]), |(_, name, muxers)| (*name, *muxers))
    }

    /// The muxer with which a mode carries the codec; `None` if it does not.
    #[must_use]
    pub fn muxer(self, mode: Mode, server: LiveServer) -> Option<&'static str> {
        let [file, null, nginx, mediamtx] = self.row().1;
        match (mode, server) {
            (Mode::File, _) => file,
            (Mode::Null, _) => null,
            (Mode::Rtmp, LiveServer::Nginx) => nginx,
            (Mode::Rtmp, LiveServer::MediaMtx) => mediamtx,
        }
    }
}

/// How an encoder is built into ffmpeg, as far as its options depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// NVIDIA: frames in main memory are uploaded by the encoder.
    Nvenc,
    /// Intel Quick Sync: frames are uploaded by a filter.
    Qsv,
    /// VA-API: the same.
    Vaapi,
    /// libvpx and libaom.
    Vpx,
    /// Any other.
    Usual,
}

impl Family {
    fn of(encoder: &str) -> Self {
        if encoder.ends_with("_nvenc") {
            Self::Nvenc
        } else if encoder.ends_with("_qsv") {
            Self::Qsv
        } else if encoder.ends_with("_vaapi") {
            Self::Vaapi
        } else if encoder.starts_with("libvpx") || encoder == "libaom-av1" {
            Self::Vpx
        } else {
            Self::Usual
        }
    }
}

/// Checks that an encoder has the preset, and that the mode carries its codec.
///
/// # Errors
/// What cannot work, and what can instead.
pub fn check(encoder: &str, preset: &str, mode: Mode, server: LiveServer) -> Result<(), String> {
    check_preset(encoder, preset)?;
    let codec = Codec::of(encoder);
    if codec.muxer(mode, server).is_some() {
        return Ok(());
    }
    let (name, _) = codec.row();
    let others = if codec.muxer(mode, LiveServer::MediaMtx).is_some() {
        ", or send it through MediaMTX with --mediamtx PATH"
    } else {
        ""
    };
    let server = match server {
        LiveServer::Nginx => "RTMP of nginx: nginx-rtmp supports only H.264",
        LiveServer::MediaMtx => "RTMP of MediaMTX, which carries H.264, HEVC, VP9 and AV1",
    };
    Err(format!("{encoder} ({name}) cannot be sent over {server}; use --mode file or null{others}"))
}

/// An error message if an encoder's codec needs a newer ffmpeg than `version` in the plan's mode.
#[must_use]
pub fn needs_newer_ffmpeg(encoder: &str, plan: &Plan, version: &str) -> Option<String> {
    let enhanced = plan.mode == Mode::Rtmp && Codec::of(encoder) != Codec::H264;
    // The version of a development build names no release; it is newer than those that matter.
    let is_older = release(version).is_some_and(|release| release < ENHANCED_RTMP);
    let (major, minor) = ENHANCED_RTMP;
    (enhanced && is_older).then(|| {
        format!(
            "{encoder}: ffmpeg {version} sends only H.264 over RTMP; use ffmpeg {major}.{minor} or newer, or --mode file or null"
        )
    })
}

/// Major and minor version of a release: `5.1.9-0+deb12u1`, `n7.1`.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.strip_prefix('n').unwrap_or(version).split(|c: char| !c.is_ascii_digit());
    let major = parts.next()?.parse().ok()?;
    Some((major, parts.next().and_then(|minor| minor.parse().ok()).unwrap_or(0)))
}

/// Refuses a preset that a hardware encoder does not have. Those of other encoders depend on the
/// version of a library, and ffmpeg checks them.
fn check_preset(encoder: &str, preset: &str) -> Result<(), String> {
    const NVENC: [&str; 12] =
        ["default", "slow", "medium", "fast", "hp", "hq", "bd", "ll", "llhq", "llhp", "lossless", "losslesshp"];
    const QSV: [&str; 7] = ["veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"];
    let number = preset.strip_prefix('p').unwrap_or(preset).parse::<u32>().ok();
    let one_to_seven = number.is_some_and(|number| (1..=7).contains(&number));
    let (has, names) = match Family::of(encoder) {
        Family::Nvenc => (
            NVENC.contains(&preset) || preset.starts_with('p') && one_to_seven,
            "p1 (fastest) to p7 (best quality), or a name like slow, medium, fast",
        ),
        Family::Qsv => (QSV.contains(&preset) || !preset.starts_with('p') && one_to_seven, "veryfast to veryslow"),
        Family::Vaapi => {
            (!preset.starts_with('p') && number.is_some(), "a number, its -compression_level (larger is faster)")
        }
        Family::Vpx | Family::Usual => (true, ""),
    };
    if has || preset.is_empty() { Ok(()) } else { Err(format!("{encoder} has no preset {preset:?}; it has {names}")) }
}

/// Arguments before the input: the device of a hardware encoder. ffmpeg takes the first that works.
#[must_use]
pub fn device(encoder: &str) -> &'static [&'static str] {
    match Family::of(encoder) {
        Family::Qsv => &["-init_hw_device", "qsv=hw", "-filter_hw_device", "hw"],
        Family::Vaapi => &["-init_hw_device", "vaapi=hw", "-filter_hw_device", "hw"],
        Family::Nvenc | Family::Vpx | Family::Usual => &[],
    }
}

/// The pixel format, or the filters that upload frames to the device.
#[must_use]
pub fn pixel_format(encoder: &str) -> &'static [&'static str] {
    match Family::of(encoder) {
        // The encoder holds frames while it looks ahead, and the pool of uploaded ones is fixed.
        Family::Qsv => &["-vf", "format=nv12,hwupload=extra_hw_frames=64,format=qsv"],
        Family::Vaapi => &["-vf", "format=nv12,hwupload"],
        Family::Nvenc | Family::Vpx | Family::Usual => &["-pix_fmt", "yuv420p"],
    }
}

/// The option that takes an encoder's preset.
#[must_use]
pub fn preset_option(encoder: &str) -> &'static str {
    match Family::of(encoder) {
        Family::Vpx => "-cpu-used",
        Family::Vaapi => "-compression_level",
        Family::Usual if encoder == "librav1e" => "-speed",
        Family::Nvenc | Family::Qsv | Family::Usual => "-preset",
    }
}

/// Arguments for low delay in a live stream: no look-ahead and no B-frames.
#[must_use]
pub fn low_delay(encoder: &str, rate: &Rate) -> &'static [&'static str] {
    match (Family::of(encoder), encoder) {
        (_, "libx264" | "libx265") => &["-tune", "zerolatency"],
        // In its low-delay structure SVT-AV1 has a constant bit rate, and no variable one.
        (_, "libsvtav1") => match rate {
            Rate::Bitrate(_) => &["-svtav1-params", "rc=2:pred-struct=1"],
            Rate::Crf(_) => &["-svtav1-params", "pred-struct=1"],
        },
        (_, "libaom-av1") => &["-usage", "realtime", "-lag-in-frames", "0"],
        (Family::Vpx, _) => &["-deadline", "realtime", "-lag-in-frames", "0"],
        (Family::Nvenc, _) => &["-tune", "ll"],
        (Family::Qsv, _) => &["-async_depth", "1", "-bf", "0"],
        (Family::Vaapi, _) => &["-bf", "0"],
        (Family::Usual, _) => &[],
    }
}

/// Arguments of the rate control.
#[must_use]
pub fn rate_control(encoder: &str, rate: &Rate) -> Vec<String> {
    match rate {
        Rate::Bitrate(bits) => bitrate(encoder, bits),
        Rate::Crf(value) => constant_quality(encoder, &value.to_string()),
    }
}

fn bitrate(encoder: &str, bits: &str) -> Vec<String> {
    let family = Family::of(encoder);
    let buffer = parse_bitrate(bits).map_or_else(|| bits.to_owned(), |bits| format!("{:.0}", bits * 2.0));
    let mut words = if family == Family::Nvenc { vec!["-rc", "vbr"] } else { Vec::new() };
    words.extend(["-b:v", bits]);
    // SVT-AV1 takes a maximum rate only with a CRF (libsvtav1.c); for libvpx and libaom it means
    // something else. QSV and VA-API take one that equals the rate for a constant bit rate, their
    // only mode that bounds a window as the others do.
    let limited = matches!(family, Family::Nvenc | Family::Qsv | Family::Vaapi)
        || matches!(Codec::of(encoder), Codec::H264 | Codec::Hevc);
    if limited {
        words.extend(["-maxrate", bits, "-bufsize", &buffer]);
    }
    words.into_iter().map(str::to_owned).collect()
}

fn constant_quality(encoder: &str, value: &str) -> Vec<String> {
    let words = match Family::of(encoder) {
        Family::Nvenc => vec!["-rc", "vbr", "-cq", value, "-b:v", "0"],
        Family::Qsv => vec!["-global_quality", value],
        Family::Vaapi => vec!["-rc_mode", "CQP", "-global_quality", value],
        Family::Vpx => vec!["-crf", value, "-b:v", "0"],
        Family::Usual if encoder == "librav1e" => vec!["-qp", value],
        Family::Usual => vec!["-crf", value],
    };
    words.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(encoder: &str, rate: &Rate) -> String {
        rate_control(encoder, rate).join(" ")
    }

    #[test]
    fn documentation_has_the_table_of_codecs_and_muxers() {
        let page = include_str!("../../../../docs/experiments.md");
        for (_, name, muxers) in MODES {
            let cells: Vec<String> =
                muxers.iter().map(|muxer| muxer.map_or_else(|| "–".to_owned(), |name| format!("`{name}`"))).collect();
            let row = format!("| {name} | {} |", cells.join(" | "));
            assert!(page.lines().any(|line| line.starts_with(&row)), "docs/experiments.md lacks the row: {row}");
        }
    }

    #[test]
    fn codec_is_that_of_the_encoder() {
        for (encoder, codec) in [
            ("libx264", Codec::H264),
            ("h264_nvenc", Codec::H264),
            ("libopenh264", Codec::H264),
            ("libx265", Codec::Hevc),
            ("hevc_qsv", Codec::Hevc),
            ("libvpx-vp9", Codec::Vp9),
            ("vp9_vaapi", Codec::Vp9),
            ("libvpx", Codec::Other),
            ("libsvtav1", Codec::Av1),
            ("libaom-av1", Codec::Av1),
            ("librav1e", Codec::Av1),
            ("av1_nvenc", Codec::Av1),
            ("mpeg4", Codec::Other),
        ] {
            assert_eq!(Codec::of(encoder), codec, "{encoder}");
        }
    }

    #[test]
    fn codec_that_a_mode_does_not_carry_is_refused() {
        let error = |encoder, server| check(encoder, "", Mode::Rtmp, server).unwrap_err();
        let vp9 = error("libvpx-vp9", LiveServer::Nginx);
        for word in ["libvpx-vp9 (VP9) cannot be sent", "supports only H.264", "--mode file or null", "--mediamtx"] {
            assert!(vp9.contains(word), "{word}: {vp9}");
        }
        let mpeg4 = error("mpeg4", LiveServer::Nginx);
        assert!(mpeg4.contains("--mode file") && !mpeg4.contains("--mediamtx"), "{mpeg4}");
        assert!(error("mpeg4", LiveServer::MediaMtx).contains("HEVC, VP9 and AV1"));
        for encoder in ["libsvtav1", "libx265", "libvpx-vp9", "libaom-av1", "av1_nvenc", "hevc_vaapi"] {
            assert_eq!(check(encoder, "", Mode::Rtmp, LiveServer::MediaMtx), Ok(()), "{encoder}");
            assert!(check(encoder, "", Mode::Rtmp, LiveServer::Nginx).is_err(), "{encoder}");
            for mode in [Mode::File, Mode::Null] {
                assert_eq!(check(encoder, "", mode, LiveServer::Nginx), Ok(()), "{encoder}");
            }
        }
    }

    #[test]
    fn enhanced_rtmp_needs_its_first_ffmpeg() {
        assert_eq!(
            ["5.1.9-0+deb12u1", "n7.1", "6.1", "7", "N-112345-gabcdef", ""].map(release),
            [Some((5, 1)), Some((7, 1)), Some((6, 1)), Some((7, 0)), None, None]
        );
        let plan = |mode: &str| -> Plan {
            let none = serde_json::json!({"secs": 1, "nanos": 0});
            serde_json::from_value(serde_json::json!({
                "name": "", "cells": [], "mode": mode, "place": "auto", "source": null, "realtime": false,
                "quality": false, "vmaf_model": "", "encoder_args": [],
                "protocol": {
                    "duration": none, "stabilization": none, "cooldown": none, "baseline": none, "stall": none,
                    "repeats": 1, "ci_target": null, "max_repeats": 1, "seed": 1,
                },
            }))
            .unwrap()
        };
        let live = plan("rtmp");
        for encoder in ["libx265", "libvpx-vp9", "libsvtav1", "av1_nvenc"] {
            assert!(needs_newer_ffmpeg(encoder, &live, "5.1.9").unwrap().contains("ffmpeg 6.1 or newer"), "{encoder}");
            assert_eq!(needs_newer_ffmpeg(encoder, &live, "6.1.1"), None, "{encoder}");
            assert_eq!(needs_newer_ffmpeg(encoder, &live, "N-112345-gabcdef"), None, "a development build");
            assert_eq!(needs_newer_ffmpeg(encoder, &plan("file"), "5.1.9"), None, "a file carries it");
        }
        assert_eq!(needs_newer_ffmpeg("libx264", &live, "4.4"), None);
    }

    #[test]
    fn presets_of_hardware_encoders_are_checked() {
        for encoder in ["h264_nvenc", "hevc_nvenc", "av1_nvenc"] {
            for preset in ["p1", "p2", "p3", "p4", "p5", "p6", "p7", "slow", ""] {
                assert_eq!(check(encoder, preset, Mode::File, LiveServer::Nginx), Ok(()), "{encoder} {preset}");
            }
            for preset in ["p0", "p8", "4", "veryfast", "p"] {
                let error = check(encoder, preset, Mode::File, LiveServer::Nginx).unwrap_err();
                assert!(error.contains("p1 (fastest) to p7"), "{error}");
            }
        }
        let check = |encoder, preset| check(encoder, preset, Mode::Null, LiveServer::Nginx);
        assert!(check("hevc_qsv", "veryfast").is_ok() && check("av1_qsv", "4").is_ok());
        assert!(check("h264_qsv", "p4").unwrap_err().contains("veryfast to veryslow"));
        assert!(check("h264_vaapi", "4").is_ok());
        assert!(check("h264_vaapi", "fast").unwrap_err().contains("-compression_level"));
        assert!(check("libx264", "unheard-of").is_ok(), "ffmpeg checks it");
    }

    #[test]
    fn rate_control_matches_the_encoder() {
        let (megabit, quality) = (Rate::Bitrate("1M".to_owned()), Rate::Crf(30));
        for encoder in ["h264_nvenc", "hevc_nvenc", "av1_nvenc"] {
            assert_eq!(rate(encoder, &megabit), "-rc vbr -b:v 1M -maxrate 1M -bufsize 2000000");
            assert_eq!(rate(encoder, &quality), "-rc vbr -cq 30 -b:v 0");
        }
        for encoder in ["h264_qsv", "av1_qsv", "vp9_qsv", "hevc_vaapi", "av1_vaapi"] {
            assert_eq!(rate(encoder, &megabit), "-b:v 1M -maxrate 1M -bufsize 2000000");
        }
        assert_eq!(rate("hevc_qsv", &quality), "-global_quality 30");
        assert_eq!(rate("vp9_vaapi", &quality), "-rc_mode CQP -global_quality 30");
        assert_eq!(rate("libx265", &megabit), "-b:v 1M -maxrate 1M -bufsize 2000000");
        for encoder in ["libsvtav1", "libvpx-vp9", "libaom-av1"] {
            assert_eq!(rate(encoder, &megabit), "-b:v 1M", "{encoder}");
        }
        assert_eq!(rate("libsvtav1", &quality), "-crf 30");
        assert_eq!(rate("libaom-av1", &quality), "-crf 30 -b:v 0");
    }

    #[test]
    fn live_encoders_have_low_delay() {
        let (megabit, quality) = (Rate::Bitrate("1M".to_owned()), Rate::Crf(30));
        for (encoder, words) in [
            ("libx264", "-tune zerolatency"),
            ("libx265", "-tune zerolatency"),
            ("libvpx-vp9", "-deadline realtime -lag-in-frames 0"),
            ("libaom-av1", "-usage realtime -lag-in-frames 0"),
            ("libsvtav1", "-svtav1-params rc=2:pred-struct=1"),
            ("hevc_nvenc", "-tune ll"),
            ("h264_qsv", "-async_depth 1 -bf 0"),
            ("h264_vaapi", "-bf 0"),
            ("mpeg4", ""),
        ] {
            assert_eq!(low_delay(encoder, &megabit).join(" "), words, "{encoder}");
        }
        assert_eq!(low_delay("libsvtav1", &quality), ["-svtav1-params", "pred-struct=1"]);
    }
}
