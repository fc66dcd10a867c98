//! OpenMetrics 1.0.0 (openmetrics.io, `specification/OpenMetrics.md` at v1.0.0), converted from the
//! text format.
//!
//! The sample rows are reused as they are, because most pages are never requested in this format
//! and the families are dropped after they were encoded as text. Differences from the text format
//! 0.0.4: TYPE and HELP name a counter without `_total`; a counter whose name does not end in
//! `_total` is of type `unknown`; bucket bounds are floats; quotes in HELP are escaped; a UNIT line
//! is allowed where the name ends in the unit; `# EOF` ends the page.

use bytes::Bytes;

use crate::family::{Def, Kind};

/// `Content-Type` of an OpenMetrics page.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Units that end the names of metrics.
const UNITS: [&str; 8] = ["seconds", "bytes", "joules", "watts", "ratio", "celsius", "hertz", "grams"];

/// Converts blocks of the text format, each with its definition, to one OpenMetrics page.
pub(crate) fn page<'a>(blocks: impl Iterator<Item = (&'static Def, &'a [u8])>) -> Bytes {
    let mut out = Vec::with_capacity(16 << 10);
    for (def, block) in blocks {
        let (name, kind) = match def.kind {
            Kind::Counter => def.name.strip_suffix("_total").map_or((def.name, "unknown"), |name| (name, "counter")),
            Kind::Gauge => (def.name, "gauge"),
            Kind::Histogram => (def.name, "histogram"),
        };
        let unit = UNITS.iter().find(|unit| name.strip_suffix(**unit).is_some_and(|rest| rest.ends_with('_')));
        let help = def.help.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"");
        out.extend_from_slice(format!("# TYPE {name} {kind}\n").as_bytes());
        if let Some(unit) = unit {
            out.extend_from_slice(format!("# UNIT {name} {unit}\n").as_bytes());
        }
        out.extend_from_slice(format!("# HELP {name} {help}\n").as_bytes());
        for row in block.split_inclusive(|byte| *byte == b'\n').filter(|row| !row.starts_with(b"#")) {
            match def.kind {
                Kind::Histogram => write_histogram_row(row, &mut out),
                Kind::Counter | Kind::Gauge => out.extend_from_slice(row),
            }
        }
    }
    out.extend_from_slice(b"# EOF\n");
    out.into()
}

/// Writes a histogram row with its bound as a float: `le="2"` becomes `le="2.0"`. The encoder puts
/// `le` last, and the value of another label cannot contain `le="` because its quotes are escaped.
fn write_histogram_row(row: &[u8], out: &mut Vec<u8>) {
    const LE: &[u8] = b"le=\"";
    let bound_start = row.windows(LE.len()).rposition(|window| window == LE).map(|start| start + LE.len());
    let integer_end = bound_start.and_then(|start| {
        let end = start + row[start..].iter().position(|byte| *byte == b'"')?;
        row[start..end].iter().all(|byte| byte.is_ascii_digit() || *byte == b'-').then_some(end)
    });
    match integer_end {
        Some(end) => {
            out.extend_from_slice(&row[..end]);
            out.extend_from_slice(b".0");
            out.extend_from_slice(&row[end..]);
        }
        None => out.extend_from_slice(row),
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        family::{Buckets, Def, Family},
        page::{Format, render},
    };

    static JOULES: Def = Def::counter("energy_joules_total", &["who"], "Energy of \"all\".");
    static FRAMES: Def = Def::counter("frames", &[], "Frames.");
    static WAIT: Def = Def::histogram("wait_seconds", &["who"], "Wait.");

    #[test]
    fn openmetrics_page_matches_the_specification() {
        let mut wait = Family::new(&WAIT);
        wait.push_buckets(&["le=\"5\""], &Buckets { cumulative: vec![(0.5, 1), (2.0, 1)], count: 2, sum: 3.5 });
        let families = [Family::new(&JOULES).with(&["a\n\"\\😀"], 1.0), Family::new(&FRAMES).with(&[], 2.0), wait];
        let page = render("t", families).unwrap().body(Format { openmetrics: true, gzip: false });
        assert_eq!(
            std::str::from_utf8(&page).unwrap(),
            "# TYPE energy_joules counter\n# UNIT energy_joules joules\n# HELP energy_joules Energy of \\\"all\\\".\n\
             energy_joules_total{who=\"a\\n\\\"\\\\😀\"} 1\n\
             # TYPE frames unknown\n# HELP frames Frames.\nframes 2\n\
             # TYPE wait_seconds histogram\n# UNIT wait_seconds seconds\n# HELP wait_seconds Wait.\n\
             wait_seconds_bucket{who=\"le=\\\"5\\\"\",le=\"0.5\"} 1\nwait_seconds_bucket{who=\"le=\\\"5\\\"\",le=\"2.0\"} 1\n\
             wait_seconds_bucket{who=\"le=\\\"5\\\"\",le=\"+Inf\"} 2\nwait_seconds_sum{who=\"le=\\\"5\\\"\"} 3.5\n\
             wait_seconds_count{who=\"le=\\\"5\\\"\"} 2\n# EOF\n"
        );
    }
}
