//! What a run leaves: results of schema 2, a sheet with the replaced analyser's columns, a report for people. All are made of the journal, written beside and renamed into
//! place, so a run can be resumed and its results replace those that it had.

use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value, json};

use super::{
    journal::{Repeat, Window},
    plan::{Cell, Mode, Rate},
    publish,
    record::Record,
};
use crate::{
    cells::{Cell as Cells, cells},
    cost::Prices,
    energy::{Scope, Sources},
    figures::{self, Model, float, timestamp},
    report,
    statistics::{inference::Interval, mean, quantile},
    store::{self, schema2::SCHEMA},
};

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Files {
    /// The results.
    pub results: PathBuf,
    /// The sheet.
    pub sheet: PathBuf,
    /// The report.
    pub report: PathBuf,
}

/// Writes all.
///
/// # Errors
/// When one cannot be written.
pub fn write(record: &Record, dir: &Path, stem: &str, prices: &Prices) -> io::Result<Files> {
    let files = Files {
        results: dir.join(format!("{stem}.json")),
        sheet: dir.join(format!("{stem}_analysis.csv")),
        report: dir.join(format!("{stem}.html")),
    };
    let mut text = serde_json::to_vec_pretty(&results(record)).map_err(io::Error::other)?;
    text.push(b'\n');
    publish(&files.results, &text)?;
    // As the service reads it: one model, so that no figure can differ.
    let id = stem.strip_prefix("test_results_").unwrap_or(stem);
    let run = Arc::new(store::parse(id, &text).map_err(io::Error::other)?);
    let answers: Vec<_> = run.scenarios.iter().map(Sources::in_file).collect();
    let runs = [(run, answers)];
    let model = figures::model(&runs, Scope::Container, prices);
    publish(&files.sheet, sheet(&figures::model(&runs, Scope::Host, prices), &model).as_bytes())?;
    publish(
        &files.report,
        report::html(&model, &serde_json::from_slice(&text).map_err(io::Error::other)?, prices).as_bytes(),
    )?;
    Ok(files)
}

/// The results.
#[must_use]
pub fn results(record: &Record) -> Value {
    let (head, plan) = (&record.head, record.plan());
    let (status, ended) = record.end.clone().map_or(("partial".to_owned(), None), |(status, at)| (status, Some(at)));
    let time = |ns: u64| timestamp(std::time::Duration::from_nanos(ns).as_secs_f64()).map(|time| time.to_string());
    let mut host = json!({ "name": head.host, "energy_domains": domains(record) });
    if let (Some(host), Some(facts)) = (host.as_object_mut(), head.machine.as_object()) {
        host.extend(
            facts.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())),
        );
    }
    let tool = |tool: &super::tool::Tool| json!({ "version": tool.version, "configuration": tool.configuration });
    let mut tools = json!({ "ffmpeg": tool(&head.ffmpeg) });
    if let Some(scorer) = &head.scorer {
        tools["quality_ffmpeg"] = tool(scorer);
    }
    let baselines: Vec<Value> = record.baselines.iter().filter_map(baseline).collect();
    json!({
        "schema": SCHEMA,
        "run": {
            "id": head.id,
            "name": plan.name,
            "started": time(head.started_unix_ns),
            "started_unix_ns": head.started_unix_ns,
            "ended": ended.and_then(time),
            "ended_unix_ns": ended,
            "tool": { "name": "wattcast-analysis run", "version": head.version },
            "seed": plan.protocol.seed,
            "status": status,
            "place": record.place,
            "plan": plan,
            "warm_up": record.warm_up,
        },
        "host": host,
        "tools": tools,
        "preflight": record.checks,
        "baselines": baselines,
        "cells": record.cells.iter().map(|cell| of_cell(record, cell)).collect::<Vec<_>>(),
    })
}

fn domains(record: &Record) -> Vec<&str> {
    let mut all: Vec<&str> =
        record.repeats.iter().flat_map(|repeat| &repeat.energy).map(|energy| &*energy.domain).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn baseline(baseline: &super::journal::Baseline) -> Option<Value> {
    let interval = Interval::of(&baseline.watts);
    let count = f64::from(u32::try_from(baseline.watts.len()).unwrap_or(u32::MAX));
    Some(json!({
        "id": format!("block-{}", baseline.block),
        "seconds": baseline.seconds,
        "source": baseline.source,
        "note": baseline.note,
        "power_watts": {
            "mean": mean(&baseline.watts)?,
            "standard_error": interval.map(|interval| interval.deviation / count.sqrt()),
            "count": baseline.watts.len(),
        },
    }))
}

fn of_cell(record: &Record, cell: &Cell) -> Value {
    let axes = &cell.axes;
    let mut shown = json!({
        "encoder": axes.encoder,
        "preset": axes.preset,
        "width": axes.width,
        "height": axes.height,
        "frames_per_second": axes.fps,
        "streams": axes.streams,
    });
    match &axes.rate {
        Rate::Bitrate(bits) => shown["bitrate"] = json!(bits),
        Rate::Crf(crf) => shown["rate_control"] = json!({ "crf": crf }),
    }
    let content = record.clips.iter().find(|clip| clip.is_for(axes));
    let repeats: Vec<Value> = record
        .repeats
        .iter()
        .filter(|repeat| repeat.cell == cell.id)
        // What was cut off and then came to a good end is that.
        .filter(|repeat| {
            repeat.status == "ok" || !record.well(&cell.id).any(|well| well.n == repeat.n) || repeat.status == "failed"
        })
        .map(|repeat| of_repeat(record, cell, repeat))
        .collect();
    let mut all = json!({
        "id": cell.id,
        "name": cell.name,
        "axes": shown,
        "argv": record.repeats.iter().find(|repeat| repeat.cell == cell.id && !repeat.argv.is_empty()).map_or(&[][..], |repeat| &repeat.argv),
        "stats": stats(record, cell),
        "repeats": repeats,
    });
    // Each repeat has its block's baseline; a cell has the first's, which all are held against.
    if let Some(first) = record.baselines.first() {
        all["baseline"] = json!(format!("block-{}", first.block));
    }
    if let Some(clip) = content {
        all["content"] = json!({
            "sha256": clip.sha256,
            "origin": clip.origin,
            "width": clip.width,
            "height": clip.height,
            "frames_per_second": clip.fps,
            "frames": clip.frames,
        });
    }
    // Scores of an encoding of its own are of no repeat.
    let shared = record
        .scores
        .iter()
        .find(|score| score.cell == cell.id && !artefacts(record, cell).any(|sha256| sha256 == score.sha256));
    if let Some(score) = shared {
        all["quality"] = json!(score.scores);
        all["quality_frames"] = json!(score.frames);
    }
    all
}

fn artefacts<'a>(record: &'a Record, cell: &'a Cell) -> impl Iterator<Item = &'a str> {
    record.well(&cell.id).flat_map(|repeat| &repeat.artefacts).map(|artefact| &*artefact.sha256)
}

fn of_repeat(record: &Record, cell: &Cell, repeat: &Repeat) -> Value {
    let mut all = Map::new();
    all.insert("n".to_owned(), json!(repeat.n));
    all.insert("block".to_owned(), json!(repeat.block));
    all.insert("status".to_owned(), json!(repeat.status));
    let mut put = |key: &str, value: Value| {
        let empty =
            value.is_null() || value.as_str().is_some_and(str::is_empty) || value.as_array().is_some_and(Vec::is_empty);
        if !empty {
            all.insert(key.to_owned(), value);
        }
    };
    put("detail", json!(repeat.detail));
    put("container", json!(repeat.container));
    put("exit", json!(repeat.exit));
    if record.baselines.iter().any(|baseline| baseline.block == repeat.block) {
        put("baseline", json!(format!("block-{}", repeat.block)));
    }
    let Some(window) = repeat.window else { return Value::Object(all) };
    put(
        "window",
        json!({ "start_unix_ns": ns(window.start), "end_unix_ns": ns(window.end), "seconds": window.seconds() }),
    );
    let progress = &repeat.progress;
    put(
        "frames",
        json!({ "encoded": progress.frames, "dropped": progress.dropped, "duplicated": progress.duplicated }),
    );
    let bytes = match repeat.artefacts.as_slice() {
        [] if progress.bytes > 0 => Some(progress.bytes),
        [] => None,
        files => Some(files.iter().map(|file| file.bytes).sum::<u64>()),
    };
    put("bytes", json!(bytes));
    let pixels = u64::from(cell.axes.width) * u64::from(cell.axes.height);
    put("pixels", json!(progress.frames * pixels));
    put("media_seconds", json!(media_seconds(cell, repeat)));
    put("frames_per_second", json!(rate(repeat, window)));
    put("energy", json!(repeat.energy));
    put("cpu", repeat.cpu_seconds.map_or(Value::Null, |seconds| json!({ "nanoseconds": ns(seconds) })));
    if !repeat.beside.is_empty() {
        put("beside_microjoules", json!(repeat.beside));
    }
    if !repeat.watts.is_empty() {
        put("samples", json!({ "step_seconds": 1.0, "power_watts": repeat.watts }));
    }
    put("artefacts", json!(repeat.artefacts));
    let first = repeat.artefacts.first();
    if let Some(score) =
        first.and_then(|first| record.scores.iter().find(|score| score.cell == cell.id && score.sha256 == first.sha256))
    {
        put("quality", json!(score.scores));
        put("quality_frames", json!(score.frames));
    }
    Value::Object(all)
}

/// Frames of all streams for a second of the window.
fn rate(repeat: &Repeat, window: Window) -> f64 {
    float(repeat.progress.frames) / window.seconds().max(1e-9)
}

/// Media of all streams. ffmpeg counts it to the start of the last frame or to its end, by version; frames are frames.
fn media_seconds(cell: &Cell, repeat: &Repeat) -> f64 {
    float(repeat.progress.frames) / cell.axes.fps
}

/// Whole nanoseconds of seconds, to the microsecond that a double of unix seconds has.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times since 1970 and lengths: positive, and far below the end"
)]
fn ns(seconds: f64) -> u64 {
    (seconds * 1e6).round().max(0.0) as u64 * 1000
}

/// Means with their intervals.
fn stats(record: &Record, cell: &Cell) -> Value {
    let repeats: Vec<&Repeat> = record.well(&cell.id).collect();
    let mut all = Map::new();
    let mut put = |name: &str, unit: &str, values: Vec<f64>| {
        let Some(mean) = mean(&values) else { return };
        let interval = Interval::of(&values);
        all.insert(
            name.to_owned(),
            json!({
                "unit": unit,
                "n": values.len(),
                "mean": mean,
                "standard_deviation": interval.map(|interval| interval.deviation),
                "ci95": interval.map(|interval| [interval.ends().0, interval.ends().1]),
                "ci95_relative": interval.and_then(|interval| interval.relative()),
            }),
        );
    };
    let joules = record.joules_of(&cell.id);
    put("joules", "J", joules.clone());
    if joules.len() == repeats.len() {
        let of = |per: fn(&Cell, &Repeat) -> f64| -> Vec<f64> {
            let pairs = repeats.iter().zip(&joules).map(|(repeat, joules)| joules / per(cell, repeat));
            pairs.filter(|value| value.is_finite()).collect()
        };
        put("joules_per_frame", "J", of(|_, repeat| float(repeat.progress.frames)));
        put("joules_per_media_second", "J/s", of(media_seconds));
    }
    put("seconds", "s", repeats.iter().filter_map(|repeat| Some(repeat.window?.seconds())).collect());
    put("frames_per_second", "1/s", repeats.iter().filter_map(|repeat| Some(rate(repeat, repeat.window?))).collect());
    put("cpu_seconds", "s", repeats.iter().filter_map(|repeat| repeat.cpu_seconds).collect());
    Value::Object(all)
}

/// The columns of the replaced analyser (`<stem>_analysis.csv`), in its order, for each configuration the means of its repeats; behind them what its users could not have: how many
/// there are, and the interval of the joules. The old columns are the host's, as they were, and come from `host`; the joules behind them are the encoder's, where they are known, from
/// `own`. What is not known is empty.
#[must_use]
pub fn sheet(host: &Model, own: &Model) -> String {
    let mut text = String::from(
        "name,bitrate,resolution,fps,duration,mean_power_w,median_power_w,total_energy_wh,predicted_mean_power_w,net_power_w,net_energy_wh,net_container_cpu_pct,\
         docker_overhead_w,docker_overhead_pct,container_cpu_pct,container_power_w,efficiency_score,efficiency_rank,output_ladder,total_pixels,\
         encoder,preset,streams,repeats,energy_joules,energy_joules_low,energy_joules_high,energy_source,vmaf\n",
    );
    let all = cells(host);
    let efficiency = |cell: &Cells<'_>| mean(&cell.of_energy(&|entry| entry.figures.efficiency));
    let mut order: Vec<f64> = all.iter().filter_map(efficiency).collect();
    order.sort_by(|a, b| b.total_cmp(a));
    for (cell, encoder) in all.iter().zip(cells(own)) {
        let (first, scenario) = (cell.first(), cell.first().scenario());
        let rank = efficiency(cell).and_then(|own| order.iter().position(|other| *other == own)).map(|at| at + 1);
        let mean_of = |value: &dyn Fn(&figures::Entry) -> Option<f64>| mean(&cell.values(value));
        let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        let own_joules = encoder.of_energy(&|entry| entry.figures.joules());
        let joules = Interval::of(&own_joules);
        let container = |entry: &figures::Entry| {
            let joules = entry.scenario().stated(Scope::Container)?.joules();
            Some(joules / entry.figures.seconds?)
        };
        let row = [
            quoted(&scenario.name),
            quoted(&scenario.bitrate),
            quoted(&scenario.resolution),
            number(scenario.fps),
            number(mean_of(&|entry| entry.figures.seconds)),
            number(mean_of(&|entry| entry.figures.watts)),
            number(mean_of(&|entry| quantile(&entry.scenario().samples.watts, 0.5))),
            number(mean_of(&|entry| Some(entry.figures.joules()? / 3600.0))),
            number(mean_of(&|entry| entry.figures.predicted_watts)),
            number(mean_of(&|entry| Some(entry.figures.difference?.watts))),
            number(mean_of(&|entry| Some(entry.figures.difference?.joules / 3600.0))),
            number(mean_of(&|entry| Some(entry.figures.difference?.cores? * 100.0))),
            // Of an engine, which nothing in a run measures.
            String::new(),
            String::new(),
            number(mean_of(&|entry| Some(entry.figures.cores? * 100.0))),
            number(mean_of(&container)),
            number(mean_of(&|entry| entry.figures.efficiency)),
            rank.map(|rank| rank.to_string()).unwrap_or_default(),
            quoted(&first.figures.ladder),
            number(mean_of(&|entry| entry.figures.pixels)),
            quoted(&scenario.encoder),
            quoted(&scenario.preset),
            scenario.stream_count().map(|count| count.to_string()).unwrap_or_default(),
            cell.entries.len().to_string(),
            number(mean(&own_joules)),
            number(joules.map(|interval| interval.ends().0)),
            number(joules.map(|interval| interval.ends().1)),
            quoted(&encoder.source().unwrap_or_default()),
            number(mean(&cell.scores(&|quality| quality.vmaf.as_ref()))),
        ];
        text += &row.join(",");
        text.push('\n');
    }
    text
}

/// RFC 4180. A text that a spreadsheet would take for a formula gets a sign before it that it shows as text.
fn quoted(text: &str) -> String {
    let text = if text.starts_with(['=', '+', '-', '@']) { format!("'{text}") } else { text.to_owned() };
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

/// The results in a few lines.
#[must_use]
pub fn table(record: &Record) -> String {
    let mut text = String::new();
    if record.is_modelled() {
        text += "Energy is MODELLED from CPU time, not measured: no counter can be read on this host.\n";
    }
    let width = record.cells.iter().map(|cell| cell.name.chars().count()).max().unwrap_or(0).max(13);
    let _ = writeln!(
        text,
        "{:<width$}  {:>3}  {:>22}  {:>12}  {:>8}  {:>8}",
        "configuration", "n", "joules", "mJ a frame", "fps", "VMAF"
    );
    for cell in &record.cells {
        let joules = record.joules_of(&cell.id);
        let well: Vec<&Repeat> = record.well(&cell.id).collect();
        let rates: Vec<f64> = well.iter().filter_map(|repeat| Some(rate(repeat, repeat.window?))).collect();
        let frames: Vec<f64> = well.iter().map(|repeat| float(repeat.progress.frames)).collect();
        // Of what each repeat left; where they left nothing, the one score that they share.
        let vmaf = |sha256: Option<&str>| -> Vec<f64> {
            let own = record.scores.iter().filter(|score| score.cell == cell.id);
            let own = own.filter(|score| sha256.is_none_or(|sha256| score.sha256 == sha256));
            let vmaf = own.flat_map(|score| &score.scores).filter(|score| score.metric == "vmaf");
            vmaf.filter(|score| score.pooling == "mean").filter_map(|score| score.value).collect()
        };
        let left = well.iter().flat_map(|repeat| &repeat.artefacts);
        let each: Vec<f64> = left.flat_map(|artefact| vmaf(Some(&artefact.sha256))).collect();
        let vmaf = mean(&each).or_else(|| mean(&vmaf(None)));
        let shown = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
        };
        let sure = match (Interval::of(&joules), mean(&joules)) {
            (Some(interval), _) => format!("{:.3} ± {:.3}", interval.mean, interval.half),
            (None, Some(one)) => format!("{one:.3}"),
            (None, None) => "–".to_owned(),
        };
        let per_frame = mean(&joules)
            .zip(mean(&frames).filter(|frames| *frames > 0.0))
            .map(|(joules, frames)| joules / frames * 1000.0);
        let _ = writeln!(
            text,
            "{:<width$}  {:>3}  {sure:>22}  {:>12}  {:>8}  {:>8}",
            cell.name,
            well.len(),
            shown(per_frame, 3),
            shown(mean(&rates), 1),
            shown(vmaf, 2),
        );
        for repeat in record.repeats.iter().filter(|repeat| repeat.cell == cell.id && repeat.status != "ok") {
            let _ = writeln!(text, "    {} {}: {}", repeat.status, repeat.n, repeat.detail);
        }
    }
    if record
        .cells
        .iter()
        .any(|cell| record.well(&cell.id).any(|repeat| repeat.window.is_some_and(|window| window.seconds() < 1.0)))
    {
        text += "Some windows are shorter than a second: a counter that moves once in a millisecond is off by more than 0.1 % there; see edge_error in the results.\n";
    }
    if record.plan().mode == Mode::Rtmp {
        text += "Live: the encoder's joules hold decoding its input, too.\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_is_safe_for_spreadsheets() {
        assert_eq!(quoted("a, \"b\""), "\"a, \"\"b\"\"\"");
        assert_eq!(quoted("=cmd()"), "'=cmd()");
        assert_eq!(quoted("plain"), "plain");
    }

    #[test]
    fn times_are_whole_microseconds() {
        assert_eq!(ns(1_795_176_060.123_457), 1_795_176_060_123_457_000);
    }
}
