//! The address of an output at a media server, as a digest that the server's own name of the stream
//! gives too: that of application and key, without host, user and query.
//!
//! An RTMP address is taken apart as ffmpeg does (libavformat/rtmpproto.c): all before the last
//! slash is the application. Servers ignore what follows a question mark in either.

use metrics::label;

/// Maximum number of addresses of one output, which the format `tee` may have.
const MAX_TARGETS: usize = 16;

/// Digests of the streams that an output publishes at media servers; empty for other outputs.
pub(super) fn targets(address: &str, format: &str) -> Vec<String> {
    let paths: Vec<String> = if format == "tee" {
        // `[f=flv:onfail=ignore]rtmp://…|[f=mpegts]srt://…`
        address.split('|').take(MAX_TARGETS).filter_map(tee_target).collect()
    } else {
        path(address, format).into_iter().collect()
    };
    let mut digests: Vec<String> =
        paths.iter().filter(|path| !path.is_empty()).map(|path| label::digest(path)).collect();
    digests.sort_unstable();
    digests.dedup();
    digests
}

fn tee_target(target: &str) -> Option<String> {
    let (options, address) = match target.trim().strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", target.trim()),
    };
    let format = options.split(':').find_map(|option| option.strip_prefix("f=")).unwrap_or_default();
    path(address, format)
}

/// Application and key, or the path, of an address.
fn path(address: &str, format: &str) -> Option<String> {
    let (scheme, rest) = address.split_once("://")?;
    let after_host = || rest.split_once('/').map(|(_, path)| path);
    match &*scheme.to_ascii_lowercase() {
        "rtmp" | "rtmps" | "rtmpt" | "rtmpe" | "rtmpts" | "rtmpte" => {
            // Options of librtmp follow after a space.
            Some(without_queries(after_host()?.split(' ').next().unwrap_or_default()))
        }
        "rtsp" | "rtsps" => Some(without_queries(after_host()?.split('?').next().unwrap_or_default())),
        "srt" => rest.split_once('?')?.1.split('&').find_map(|pair| srt_path(pair.strip_prefix("streamid=")?)),
        "http" | "https" if format == "whip" => whip_path(after_host()?),
        _ => None,
    }
}

/// The parts of a path, each without a query.
fn without_queries(path: &str) -> String {
    let parts = path.split('/').map(|part| part.split('?').next().unwrap_or_default());
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}

/// The path in the id of an SRT stream: `publish:PATH:USER:PASSWORD` of MediaMTX, or the keys `m`
/// and `r` of the SRT Access Control Guidelines.
fn srt_path(id: &str) -> Option<String> {
    let id = percent_decoded(id);
    if let Some(keys) = id.strip_prefix("#!::") {
        let key = |name: &str| keys.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        return key("m").is_none_or(|mode| mode == "publish").then(|| key("r").map(without_queries)).flatten();
    }
    id.strip_prefix("publish:")?.split(':').next().map(without_queries)
}

/// The path of a WHIP address: `/PATH/whip` of MediaMTX, `?app=APP&stream=KEY` of SRS.
fn whip_path(path: &str) -> Option<String> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    match (value("app"), value("stream")) {
        (Some(app), Some(stream)) => Some(without_queries(&format!("{app}/{stream}"))),
        _ => path.strip_suffix("/whip").map(without_queries),
    }
}

/// Replaces `%2F` and the like, as ffmpeg does in this option.
fn percent_decoded(text: &str) -> String {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *byte == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_of_a_stream_have_the_digest_of_the_server() {
        let digest = label::digest("live/hunter2");
        for (address, format) in [
            ("rtmp://h/live/hunter2", "flv"),
            ("rtmps://u:p@h:1936/live/hunter2?token=x", "flv"),
            ("RTMP://h//live/hunter2/ live=1 timeout=5", "flv"),
            ("rtmp://h/live?vhost=v/hunter2", "flv"),
            ("rtsp://h:8554/live/hunter2?a=/b", "rtsp"),
            ("srt://h:8890?pkt_size=1316&streamid=publish:live/hunter2:user:pass", "mpegts"),
            ("srt://h:10080?streamid=#!::r=live/hunter2,m=publish", "mpegts"),
            ("srt://h:10080?streamid=%23!::m%3Dpublish,r%3Dlive/hunter2", "mpegts"),
            ("http://h:8889/live/hunter2/whip", "whip"),
            ("http://h:1985/rtc/v1/whip/?app=live&stream=hunter2", "whip"),
            ("[f=flv:onfail=ignore]rtmp://h/live/hunter2|[f=null]-|rtmp://other/live/hunter2", "tee"),
        ] {
            assert_eq!(targets(address, format), std::slice::from_ref(&digest), "{address}");
        }
    }

    #[test]
    fn other_outputs_have_no_target() {
        for (address, format) in [
            ("out.mp4", ""),
            ("-", "mpegts"),
            ("rtmp://h", "flv"),
            ("rtmp://h/", "flv"),
            ("http://h/live/hunter2/whip", "mpegts"),
            ("srt://h:8890?streamid=read:live/hunter2", "mpegts"),
            ("srt://h:8890?streamid=#!::r=live/hunter2,m=request", "mpegts"),
            ("srt://h:8890", "mpegts"),
            ("udp://h:1/live/hunter2", "mpegts"),
            ("%%%", ""),
        ] {
            assert!(targets(address, format).is_empty(), "{address}");
        }
        assert_eq!(percent_decoded("%2f%zz%2"), "/%zz%2");
    }
}
