//! The comparison of two runs, as `wattcast-analysis compare` computes it, with one verdict first.

use std::fmt::Write as _;

use cli::number::{short, signed};
use experiment::compare::{Comparison, Metric, Row, Verdict, by::verdict_of_runs, refusals};
use http::index_page::escape;

use super::{
    frame::{Tone, note},
    results::time_of,
    tables,
};

/// What to do without two runs.
#[must_use]
pub fn choose(why: &str) -> String {
    format!("{}<p><a class=\"button\" href=\"/results\">Choose two runs</a></p>", Tone::Warn.banner(why))
}

/// The content of the page; `baseline` and `candidate` are run ids.
#[must_use]
pub fn body(baseline: &str, candidate: &str, comparison: &Comparison) -> String {
    let (tone, verdict) = verdict(comparison);
    let mut out = tone.banner(&verdict);
    let _ = write!(
        out,
        "<p>Baseline: run of {0} (<a href=\"/results/{1}/report\">report</a>). Candidate: run of {2} \
         (<a href=\"/results/{3}/report\">report</a>). <a href=\"/compare?baseline={3}&amp;candidate={1}\">Exchange them</a></p>",
        escape(&time_of(baseline)),
        escape(baseline),
        escape(&time_of(candidate)),
        escape(candidate)
    );
    for (axis, (before, after)) in &comparison.changed {
        out += &note(&format!("changed: {axis}, {before:?} to {after:?}"));
    }
    out += &rows(comparison);
    out += &curves(comparison);
    for text in &comparison.notes {
        out += &note(text);
    }
    out + &note(
        "p: Welch's test, adjusted by Holm's method for all tests of the table; intervals: 95 %, not adjusted. The same comparison on \
         the command line: wattcast-analysis compare BASELINE CANDIDATE.",
    )
}

/// The verdict of the command, and how it is shown: by the energy, and by what became worse.
fn verdict(comparison: &Comparison) -> (Tone, String) {
    let count = |verdict: Verdict, is_energy: bool| {
        let rows = comparison.rows.iter().filter(|row| (row.metric == Metric::Energy) == is_energy);
        rows.filter(|row| row.verdict == verdict).count()
    };
    let [better, worse, same] = [Verdict::Better, Verdict::Worse, Verdict::Same].map(|verdict| count(verdict, true));
    let tone = match (better, worse + count(Verdict::Worse, false)) {
        _ if better + worse + same == 0 => Tone::Warn,
        (_, 1..) => Tone::Bad,
        (1.., 0) => Tone::Ok,
        (0, 0) => Tone::Neutral,
    };
    (tone, format!("Verdict: {}.", verdict_of_runs(comparison)))
}

fn metric(metric: Metric) -> &'static str {
    match metric {
        Metric::Energy => "energy",
        Metric::Time => "time",
        Metric::Rate => "bit rate",
        Metric::Vmaf => "VMAF",
    }
}

fn rows(comparison: &Comparison) -> String {
    if comparison.rows.is_empty() {
        return String::new();
    }
    let mut out = format!("<h2>Configurations</h2>{}<thead><tr>", tables::open("Comparison of configurations"));
    for (head, is_text) in [
        ("configuration", true),
        ("metric", true),
        ("baseline", false),
        ("candidate", false),
        ("difference", false),
        ("95 % interval", false),
        ("p", false),
        ("verdict", true),
    ] {
        let _ = write!(out, "<th scope=\"col\"{}>{head}</th>", if is_text { " class=\"text\"" } else { "" });
    }
    out.push_str("</tr></thead><tbody>");
    for row in &comparison.rows {
        out += &cells(row);
    }
    out + tables::CLOSE
}

fn cells(row: &Row) -> String {
    let absent = || "–".to_owned();
    let mean = |value: Option<(f64, Option<f64>)>| value.map_or_else(absent, |value| escape(&row.mean_text(value)));
    let (tone, word) = match row.verdict {
        Verdict::Better => (Tone::Ok, "better"),
        Verdict::Worse => (Tone::Bad, "worse"),
        Verdict::Same => (Tone::Neutral, "no significant difference"),
        Verdict::Unknown => (Tone::Warn, "not comparable"),
    };
    let name = if row.scenario == row.candidate_scenario {
        escape(&row.scenario)
    } else {
        format!("{} → {}", escape(&row.scenario), escape(&row.candidate_scenario))
    };
    // Samples without variance were not tested.
    let tested_p = row.p_adjusted.filter(|_| row.effect.is_some());
    let why = if row.p_adjusted.is_some() && tested_p.is_none() { "no variance" } else { row.why.as_str() };
    let why = if why.is_empty() { String::new() } else { format!(" {}", escape(why)) };
    format!(
        "<tr><td>{name}</td><td class=\"text\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
         <td>{}</td><td class=\"text fill\">{}{why}</td></tr>",
        metric(row.metric),
        mean(row.baseline),
        mean(row.candidate),
        row.difference_percent.map_or_else(absent, |part| format!("{} %", full(part))),
        row.interval_percent.map_or_else(absent, |(low, high)| format!("{} to {}", full(low), full(high))),
        tested_p.map_or_else(absent, |p| if p < 0.0001 { "&lt; 0.0001".to_owned() } else { short(p) }),
        tone.badge(word)
    )
}

/// A percentage with its sign, and more digits if it is small.
fn full(percent: f64) -> String {
    signed(percent, if percent != 0.0 && percent.abs() < 0.01 { 5 } else { 2 })
}

fn curves(comparison: &Comparison) -> String {
    if comparison.curves.is_empty() {
        return String::new();
    }
    let mut out = String::from("<h2>Bjøntegaard deltas of the curves</h2><ul>");
    for delta in comparison.curves.iter().filter(|delta| delta.refused.is_none()) {
        let (baseline, candidate, quality) = (&delta.baseline, &delta.candidate, &delta.quality);
        let text = format!("{}: {baseline} → {candidate}, {quality}: {}", delta.measure, delta.text());
        let _ = write!(out, "<li>{}</li>", escape(&text));
    }
    for line in refusals(&comparison.curves) {
        let _ = write!(out, "<li class=\"note\">{}</li>", escape(&line));
    }
    out + "</ul>"
}

#[cfg(test)]
mod tests {
    use experiment::compare::compare;
    use results::energy::Scope;

    use super::*;
    use crate::web::view::tests::view;

    /// A result file with three repeats of one configuration.
    fn repeats(name: &str, joules: [f64; 3]) -> String {
        let repeat = |(n, joules): (usize, &f64)| {
            let start = 1_795_176_000 + n * 20;
            format!(
                r#"{{"n":{},"status":"ok","window":{{"start_unix_ns":{start}000000000,"end_unix_ns":{}000000000,"seconds":10}},
                "frames":{{"encoded":300,"dropped":0}},"pixels":1000000,"bytes":1250000,"media_seconds":10,
                "energy":[{{"scope":"host","source":"perf","microjoules":{:.0}}}]}}"#,
                n + 1,
                start + 10,
                joules * 1e6
            )
        };
        let all: Vec<String> = joules.iter().enumerate().map(repeat).collect();
        format!(
            r#"{{"schema":"wattcast/results/2","run":{{"id":"r","started":"2026-11-20T12:00:00Z","status":"ok"}},"host":{{"name":"h"}},
            "cells":[{{"name":"{name}","axes":{{"encoder":"libx264","preset":"fast","bitrate":"500k","width":640,"height":360,
            "frames_per_second":30,"streams":1}},"repeats":[{}]}}]}}"#,
            all.join(",")
        )
    }

    fn page(before: [f64; 3], after: [f64; 3]) -> String {
        let (old, new) = (repeats("<script>", before), repeats("<script>", after));
        let view = view(&[("20260102_000000", new.as_str()), ("20260101_000000", old.as_str())]);
        let model = |id: &str| view.model_of(&view.run(id).unwrap().run, Scope::Host);
        let comparison = compare(&model("20260101_000000"), &model("20260102_000000"), &Metric::ALL, 0.0);
        body("20260101_000000", "20260102_000000", &comparison)
    }

    #[test]
    fn the_verdict_is_first_and_says_the_difference() {
        let better = page([100.0, 101.0, 99.0], [50.0, 51.0, 49.0]);
        let start = "<p class=\"banner ok\">Verdict: the energy per frame of the candidate is 50 % lower than that of the baseline";
        assert!(better.starts_with(start), "{better}");
        let worse = page([50.0, 51.0, 49.0], [100.0, 101.0, 99.0]);
        let start = "<p class=\"banner bad\">Verdict: the energy per frame of the candidate is 100 % higher than that of the baseline";
        assert!(worse.starts_with(start), "{worse}");
        let same = page([50.0, 51.0, 49.0], [50.0, 51.5, 48.5]);
        let start = "<p class=\"banner\">Verdict: the energy per frame of the candidate does not differ significantly";
        assert!(same.starts_with(start), "{same}");
    }

    /// Small energies were "< 0.0001 J/frame" in both runs, and a difference "-0.0 %".
    #[test]
    fn means_have_the_digits_and_units_of_the_command() {
        let small = page([0.010, 0.010_1, 0.009_9], [0.005, 0.005_1, 0.004_9]);
        assert!(small.contains("<td>33.33 ± 0.83 µJ/frame</td><td>16.67 ± 0.83 µJ/frame</td>"), "{small}");
        assert!(small.contains("<td>1000 kbit/s</td>"), "{small}");
        let close = page([1000.0, 1000.001, 999.999], [999.98, 999.981, 999.979]);
        assert!(close.contains("is 0.002 % lower") && !close.contains("-0.0 %"), "{close}");
    }

    #[test]
    fn rows_without_variance_have_no_p() {
        let page = page([100.0; 3], [50.0; 3]);
        assert!(page.contains("badge ok\">better</span> no variance") && !page.contains("&lt; 0.0001"), "{page}");
    }

    #[test]
    fn names_of_configurations_are_escaped() {
        let page = page([100.0, 101.0, 99.0], [50.0, 51.0, 49.0]);
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"), "{page}");
        assert!(!page.contains("style="), "{page}");
    }

    #[test]
    fn runs_without_common_configurations_have_a_reason() {
        let (old, new) = (repeats("a", [1.0, 2.0, 3.0]), "{\"scenarios\":[{\"name\":\"b\"}]}".to_owned());
        let view = view(&[("20260102_000000", new.as_str()), ("20260101_000000", old.as_str())]);
        let model = |id: &str| view.model_of(&view.run(id).unwrap().run, Scope::Host);
        let comparison = compare(&model("20260101_000000"), &model("20260102_000000"), &Metric::ALL, 0.0);
        let page = body("20260101_000000", "20260102_000000", &comparison);
        let start = "<p class=\"banner warn\">Verdict: the candidate and the baseline cannot be compared: missing or failed in the candidate.<";
        assert!(page.starts_with(start), "{page}");
        assert!(choose("a < b").contains("a &lt; b"));
    }
}
