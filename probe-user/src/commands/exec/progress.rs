//! Progress reports of ffmpeg through a pipe.

#![allow(unsafe_code)]

use std::{
    io::{self, PipeReader, PipeWriter, Read as _},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    process::Command,
    sync::mpsc::{Receiver, Sender},
    time::Duration,
};

use anyhow::{Context as _, Result};
use ffmpeg::{Parser, media::JobMedia};

use super::report::FrameStats;
use crate::snapshot::history::seconds;

/// True for `ffmpeg`, `ffmpeg7`, `ffmpeg-7.1`; false for `ffmpegthumbnailer`, which does not
/// support `-progress`.
pub(super) fn is_ffmpeg(name: &str) -> bool {
    let rest = name.strip_prefix("ffmpeg").map(|rest| rest.strip_prefix('-').unwrap_or(rest));
    rest.is_some_and(|rest| {
        rest.is_empty() && !name.ends_with('-')
            || !rest.is_empty() && rest.chars().all(|character| character.is_ascii_digit() || character == '.')
    })
}

/// Lets ffmpeg write its reports to a pipe, whose ends are returned.
pub(super) fn report_to_pipe(command: &mut Command) -> Result<(PipeReader, PipeWriter)> {
    let (read, write) = io::pipe().context("cannot create a pipe")?;
    let descriptor = write.as_raw_fd();
    command.arg("-progress").arg(format!("pipe:{descriptor}"));
    // SAFETY: fcntl is async-signal-safe; the descriptor stays open until the child has its own
    // copy.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(descriptor, libc::F_SETFD, 0) < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    Ok((read, write))
}

/// The last report of ffmpeg. A process that inherited the pipe may keep it open for ever, so the
/// wait has a timeout.
pub(super) fn last_report(reports: &Receiver<FrameStats>) -> Option<FrameStats> {
    let mut last = None;
    while let Ok(frames) = reports.recv_timeout(Duration::from_millis(200)) {
        last = Some(frames);
    }
    last
}

/// Reads ffmpeg's reports up to the end and sends each. Nothing here blocks, so ffmpeg is never
/// delayed.
pub(super) fn read_progress(mut pipe: PipeReader, sender: &Sender<FrameStats>) {
    let (mut parser, mut frames) = (Parser::default(), FrameStats::default());
    let mut media = JobMedia::default();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer) {
        parser.feed(&buffer[..length], |report| {
            // A value that is missing in a report has not changed.
            frames.frames = report.frames.unwrap_or(frames.frames);
            frames.dropped = report.dropped.unwrap_or(frames.dropped);
            frames.duplicated = report.duplicated.unwrap_or(frames.duplicated);
            media.add(&report);
            frames.set_media(&media);
            // This fails only when the report is already printed.
            let _ = sender.send(frames.clone());
        });
    }
    media.settle();
    frames.set_media(&media);
    let _ = sender.send(frames);
}

impl FrameStats {
    /// Takes the media time that was written, where the reports tell it.
    fn set_media(&mut self, media: &JobMedia) {
        if let Some(us) = media.written_us() {
            self.media_seconds = seconds(i64::try_from(us.saturating_mul(1000)).unwrap_or(i64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ffmpeg_gets_a_progress_option() {
        assert!(["ffmpeg", "ffmpeg7", "ffmpeg-7.1"].into_iter().all(is_ffmpeg));
        assert!(
            !["ffmpegthumbnailer", "ffmpeg-normalize", "ffmpeg-", "ffmpeg2theora", "ffprobe", ""]
                .into_iter()
                .any(is_ffmpeg)
        );
    }
}
