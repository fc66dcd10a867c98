//! Output of a run: results of schema 2 (JSON), a CSV file with the columns of the legacy analyser,
//! an HTML report, and a table for the terminal. All are generated from the record, so that a
//! resumed run replaces its results.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use cli::{
    colour::Meaning,
    number::{self, with_unit_and_half_width},
    terminal::{Cell, Column, Table, View},
};
use results::{
    convert::{float, timestamp},
    cost::Prices,
    energy::{EnergySources, Scope},
    estimate::Estimate,
    figures::Figures,
    model::{Entry, Model},
    repeats,
    store::{self, schema2::SCHEMA},
};
use serde_json::{Map, Value, json};
use statistics::{mean, quantile, standard_deviation};

use super::{
    files::write_atomically,
    journal::{self, Repeat, Window},
    plan::{Configuration, Mode, Rate},
    quality::all_unavailable,
    record::Record,
    tool::Tool,
};
use crate::report;

/// Paths of the output files.
#[derive(Clone, Debug)]
pub struct OutputFiles {
    /// JSON results.
    pub results: PathBuf,
    /// CSV file.
    pub csv: PathBuf,
    /// HTML report.
    pub report: PathBuf,
}

/// Writes all output files.
///
/// # Errors
/// When a file cannot be written.
pub fn write(record: &Record, dir: &Path, stem: &str, prices: &Prices) -> io::Result<OutputFiles> {
    let files = OutputFiles {
        results: dir.join(format!("{stem}.json")),
        csv: dir.join(format!("{stem}_analysis.csv")),
        report: dir.join(format!("{stem}.html")),
    };
    let mut text = serde_json::to_vec_pretty(&results(record)).map_err(io::Error::other)?;
    text.push(b'\n');
    write_atomically(&files.results, &text)?;
    // Parse the file like the service does, so that all outputs have the same values.
    let id = stem.strip_prefix("test_results_").unwrap_or(stem);
    let run = Arc::new(store::parse(id, &text).map_err(io::Error::other)?);
    let answers: Vec<_> = run.scenarios.iter().map(EnergySources::from_file).collect();
    let runs = [(run, answers)];
    let model = Model::new(&runs, Scope::Container, prices);
    write_atomically(&files.csv, csv(&Model::new(&runs, Scope::Host, prices), &model).as_bytes())?;
    let details = report::details(std::str::from_utf8(&text).map_err(io::Error::other)?);
    write_atomically(&files.report, report::html(&model, &details, prices).as_bytes())?;
    Ok(files)
}

/// Prints the results as JSON, or a table and the paths of the output files.
///
/// # Errors
/// When the results cannot be read.
pub fn print(files: &OutputFiles, record: &Record, json: bool) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    if json {
        let text = fs::read(&files.results)?;
        let _ = stdout.write_all(&text).and_then(|()| stdout.write_all(b"\n"));
        return Ok(());
    }
    let view = View::stdout();
    let [results, csv, report] = [&files.results, &files.csv, &files.report].map(|file| file.display());
    let found = record.search.as_ref().map(|search| search.text() + "\n").unwrap_or_default();
    let _ = write!(stdout, "{}{}{results}\n{csv}\n{report}\n", view.fit(&found), table(record, view));
    if view.is_terminal {
        let _ = writeln!(stdout, "{}", comparison_hint(&files.results));
    }
    Ok(())
}

/// How to compare these results with those of the run before, whose file it names.
fn comparison_hint(results: &Path) -> String {
    let dir = results.parent().unwrap_or(Path::new("."));
    let all = store::list(dir).unwrap_or_default();
    // The newest first, so the run before follows this one.
    let before = all.iter().skip_while(|file| file.path != results).nth(1);
    let command = "wattcast-analysis compare";
    match before {
        Some(before) => {
            format!("Compare with the run before: {command} {} {}", before.path.display(), results.display())
        }
        None => format!("Compare with a later run: {command} {} CANDIDATE.json", results.display()),
    }
}

/// The JSON results.
#[must_use]
pub fn results(record: &Record) -> Value {
    let (header, plan) = (&record.header, record.plan());
    let (status, ended) = record.end.clone().map_or(("partial".to_owned(), None), |(status, at)| (status, Some(at)));
    let time = |ns: u64| timestamp(std::time::Duration::from_nanos(ns).as_secs_f64()).map(|time| time.to_string());
    let mut host = json!({ "name": header.host, "energy_domains": domains(record) });
    if let (Some(host), Some(facts)) = (host.as_object_mut(), header.machine.as_object()) {
        host.extend(
            facts.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())),
        );
    }
    let tool = |tool: &Tool| json!({ "version": tool.version, "configuration": tool.configuration });
    let mut tools = json!({ "ffmpeg": tool(&header.ffmpeg) });
    if let Some(scorer) = &header.scorer {
        tools["quality_ffmpeg"] = tool(scorer);
    }
    let baselines: Vec<Value> = record.baselines.iter().filter_map(baseline_json).collect();
    let cells: Vec<Value> =
        record.configurations.iter().map(|configuration| configuration_json(record, configuration)).collect();
    let mut all = json!({
        "schema": SCHEMA,
        "run": {
            "id": header.id,
            "name": plan.name,
            "started": time(header.started_unix_ns),
            "started_unix_ns": header.started_unix_ns,
            "ended": ended.and_then(time),
            "ended_unix_ns": ended,
            "tool": { "name": "wattcast-analysis run", "version": header.version },
            "seed": plan.protocol.seed,
            "status": status,
            "place": record.environment,
            "plan": plan,
            "warm_up": record.warm_up,
        },
        "host": host,
        "tools": tools,
        "preflight": record.checks,
        "baselines": baselines,
        "cells": cells,
    });
    if let Some(search) = &record.search {
        all["search"] = json!(search);
    }
    all
}

fn domains(record: &Record) -> Vec<&str> {
    let mut all: Vec<&str> =
        record.repeats.iter().flat_map(|repeat| &repeat.energy).map(|energy| &*energy.domain).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn baseline_json(baseline: &journal::Baseline) -> Option<Value> {
    let count = f64::from(u32::try_from(baseline.watts.len()).unwrap_or(u32::MAX));
    Some(json!({
        "id": format!("block-{}", baseline.block),
        "seconds": baseline.seconds,
        "source": baseline.source,
        "note": baseline.note,
        "power_watts": {
            "mean": mean(&baseline.watts)?,
            "standard_error": standard_deviation(&baseline.watts).map(|deviation| deviation / count.sqrt()),
            "count": baseline.watts.len(),
        },
    }))
}

fn configuration_json(record: &Record, configuration: &Configuration) -> Value {
    let axes = &configuration.axes;
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
        .filter(|repeat| repeat.configuration == configuration.id)
        // A stopped or skipped repeat that succeeded later is left out.
        .filter(|repeat| {
            matches!(&*repeat.status, "ok" | "failed")
                || !record.successes(&configuration.id).any(|success| success.n == repeat.n)
        })
        .map(|repeat| repeat_json(record, configuration, repeat))
        .collect();
    let with_command = |repeat: &&Repeat| repeat.configuration == configuration.id && !repeat.argv.is_empty();
    let argv = record.repeats.iter().find(with_command).map_or(&[][..], |repeat| &repeat.argv);
    let mut all = json!({
        "id": configuration.id,
        "name": configuration.name,
        "axes": shown,
        "frame_rate": axes.frame_rate().text(),
        "argv": argv,
        "stats": stats(record, configuration),
        "repeats": repeats,
    });
    // Each repeat names the baseline of its block; the configuration names the first one, which
    // defines drift.
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
    // Scores of an extra encode belong to no repeat.
    let shared = record.scores.iter().find(|score| {
        score.configuration == configuration.id
            && !output_hashes(record, configuration).any(|sha256| sha256 == score.sha256)
    });
    if let Some(score) = shared {
        all["quality"] = json!(score.scores);
        all["quality_frames"] = json!(score.frames);
    }
    all
}

fn output_hashes<'a>(record: &'a Record, configuration: &'a Configuration) -> impl Iterator<Item = &'a str> {
    let artefacts = record.successes(&configuration.id).flat_map(|repeat| &repeat.artefacts);
    artefacts.chain(record.samples(&configuration.id)).map(|artefact| &*artefact.sha256)
}

fn repeat_json(record: &Record, configuration: &Configuration, repeat: &Repeat) -> Value {
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
        json!({ "start_unix_ns": nanoseconds(window.start), "end_unix_ns": nanoseconds(window.end), "seconds": window.seconds() }),
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
    let pixels = u64::from(configuration.axes.width) * u64::from(configuration.axes.height);
    put("pixels", json!(progress.frames * pixels));
    put("media_seconds", json!(media_seconds(configuration, repeat)));
    put("frames_per_second", json!(frame_rate(repeat, window)));
    put("lag", json!(repeat.lag));
    put("energy", json!(repeat.energy));
    put("idle_known", json!(repeat.idle_known));
    put("cpu", repeat.cpu_seconds.map_or(Value::Null, |seconds| json!({ "nanoseconds": nanoseconds(seconds) })));
    if !repeat.companion_microjoules.is_empty() {
        put("beside_microjoules", json!(repeat.companion_microjoules));
    }
    if !repeat.watts.is_empty() {
        put("samples", json!({ "step_seconds": 1.0, "power_watts": repeat.watts }));
    }
    put("artefacts", json!(repeat.artefacts));
    let score = repeat.artefacts.first().or(repeat.sample.as_ref()).and_then(|first| {
        let mut scores = record.scores.iter();
        scores.find(|score| score.configuration == configuration.id && score.sha256 == first.sha256)
    });
    if let Some(score) = score {
        put("quality", json!(score.scores));
        put("quality_frames", json!(score.frames));
    } else if !repeat.unsampled.is_empty() {
        put("quality", json!(all_unavailable(&format!("not scored: {}", repeat.unsampled))));
    }
    Value::Object(all)
}

/// Frames of all streams per second of the window.
fn frame_rate(repeat: &Repeat, window: Window) -> f64 {
    float(repeat.progress.frames) / window.seconds().max(1e-9)
}

/// Media of all streams in seconds, from the frame count: some versions of ffmpeg report the time
/// up to the start of the last frame, others up to its end.
fn media_seconds(configuration: &Configuration, repeat: &Repeat) -> f64 {
    float(repeat.progress.frames) / configuration.axes.fps
}

/// Converts seconds to nanoseconds, rounded to microseconds, which is the resolution of Unix
/// seconds in a double.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times since 1970 and durations are positive and fit"
)]
fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e6).round().max(0.0) as u64 * 1000
}

/// Means with their intervals.
fn stats(record: &Record, configuration: &Configuration) -> Value {
    let repeats: Vec<&Repeat> = record.successes(&configuration.id).collect();
    let mut all = Map::new();
    let mut put = |name: &str, unit: &str, values: Vec<f64>| {
        let Some(estimate) = Estimate::of(&values) else { return };
        let interval = estimate.half_width.map(|_| estimate.bounds());
        all.insert(
            name.to_owned(),
            json!({
                "unit": unit,
                "n": estimate.n,
                "mean": estimate.mean,
                "standard_deviation": standard_deviation(&values),
                "ci95": interval.map(|(low, high)| [low, high]),
                "ci95_relative": estimate.relative(),
            }),
        );
    };
    put("joules", "J", record.configuration_joules(&configuration.id));
    put("joules_per_frame", "J", record.joules_per_frame(&configuration.id));
    let per_media_second = record.joules_per(&configuration.id, |repeat| media_seconds(configuration, repeat));
    put("joules_per_media_second", "J/s", per_media_second);
    put("seconds", "s", repeats.iter().filter_map(|repeat| Some(repeat.window?.seconds())).collect());
    let rates = repeats.iter().filter_map(|repeat| Some(frame_rate(repeat, repeat.window?)));
    put("frames_per_second", "1/s", rates.collect());
    put("cpu_seconds", "s", repeats.iter().filter_map(|repeat| repeat.cpu_seconds).collect());
    Value::Object(all)
}

/// The CSV file (`<stem>_analysis.csv`): the means of each configuration in the columns of the
/// legacy analyser, then the number of repeats and the energy with its interval. The legacy columns
/// are those of the host and come from `host`; the energy columns are those of the encoder, where
/// known, and come from `encoder`. Unknown values are empty.
#[must_use]
pub fn csv(host: &Model, encoder: &Model) -> String {
    let mut text = String::from(
        "name,bitrate,resolution,fps,duration,mean_power_w,median_power_w,total_energy_wh,predicted_mean_power_w,net_power_w,net_energy_wh,net_container_cpu_pct,\
         docker_overhead_w,docker_overhead_pct,container_cpu_pct,container_power_w,efficiency_score,efficiency_rank,output_ladder,total_pixels,\
         encoder,preset,streams,repeats,energy_joules,energy_joules_low,energy_joules_high,energy_source,vmaf\n",
    );
    let all = repeats::configurations(host);
    for (configuration, encoder) in all.iter().zip(repeats::configurations(encoder)) {
        let (first, scenario) = (configuration.first(), configuration.first().scenario());
        let rank = configuration.entries.iter().find_map(|entry| entry.derived.rank);
        let mean_of = |value: &dyn Fn(&Entry) -> Option<f64>| mean(&configuration.values(value));
        let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        let joules = Figures::of(&encoder).joules;
        let interval = joules.filter(|joules| joules.half_width.is_some());
        let container = |entry: &Entry| {
            let joules = entry.scenario().stated(Scope::Container)?.joules();
            Some(joules / entry.derived.seconds?)
        };
        let row = [
            quoted(&scenario.name),
            quoted(&scenario.bitrate),
            quoted(&scenario.resolution),
            number(scenario.fps),
            number(mean_of(&|entry| entry.derived.seconds)),
            number(mean_of(&|entry| entry.derived.watts)),
            number(mean_of(&|entry| quantile(&entry.scenario().samples.watts, 0.5))),
            number(mean_of(&|entry| Some(entry.derived.joules()? / 3600.0))),
            number(mean_of(&|entry| entry.derived.predicted_watts)),
            number(mean_of(&|entry| Some(entry.derived.net?.watts))),
            number(mean_of(&|entry| Some(entry.derived.net?.joules / 3600.0))),
            number(mean_of(&|entry| Some(entry.derived.net?.cores? * 100.0))),
            // Columns of a container engine, which a run does not measure.
            String::new(),
            String::new(),
            number(mean_of(&|entry| Some(entry.derived.cores? * 100.0))),
            number(mean_of(&container)),
            number(mean_of(&|entry| entry.derived.efficiency)),
            rank.map(|rank| rank.to_string()).unwrap_or_default(),
            quoted(&first.derived.ladder),
            number(mean_of(&|entry| entry.derived.pixels)),
            quoted(&scenario.encoder),
            quoted(&scenario.preset),
            scenario.stream_count().map(|count| count.to_string()).unwrap_or_default(),
            configuration.entries.len().to_string(),
            number(joules.map(|joules| joules.mean)),
            number(interval.map(|joules| joules.bounds().0)),
            number(interval.map(|joules| joules.bounds().1)),
            quoted(&encoder.energy_source().unwrap_or_default()),
            number(mean(&configuration.scores(&|quality| quality.vmaf.as_ref()))),
        ];
        text += &row.join(",");
        text.push('\n');
    }
    text
}

/// Quotes a field as in RFC 4180. A leading apostrophe keeps spreadsheets from interpreting the
/// field as a formula.
fn quoted(text: &str) -> String {
    let text = if text.starts_with(['=', '+', '-', '@']) { format!("'{text}") } else { text.to_owned() };
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

/// The results as a text table.
#[must_use]
pub fn table(record: &Record, view: View) -> String {
    let mut text = String::new();
    for sentence in record.unmeasured() {
        text += &view.fit(&format!("{}\n", view.paint(Meaning::Warning, &sentence)));
    }
    let mut table = Table::new([
        Column::left("configuration"),
        Column::right("n"),
        Column::right("energy"),
        Column::right("per frame"),
        Column::right("fps"),
        Column::right("VMAF"),
    ]);
    let mut missing = String::new();
    for configuration in &record.configurations {
        table.push(table_row(record, configuration));
        let repeats = record.repeats.iter().filter(|repeat| repeat.configuration == configuration.id);
        for repeat in repeats.filter(|repeat| repeat.status != "ok") {
            let status = view.paint(Meaning::Worse, &repeat.status);
            missing += &format!("{status} {}, repeat {}: {}\n", configuration.name, repeat.n, repeat.detail);
        }
    }
    text += &table.text(view);
    text += &view.fit(&missing);
    let is_short = |repeat: &Repeat| repeat.window.is_some_and(|window| window.seconds() < 1.0);
    let mut configurations = record.configurations.iter();
    if configurations.any(|configuration| record.successes(&configuration.id).any(is_short)) {
        text += &view.fit("Some windows are shorter than one second: a counter that is updated once per millisecond adds an error above 0.1 %; see edge_error in the results.\n");
    }
    if record.plan().mode == Mode::Rtmp {
        text += &view.fit("Live: the energy of the encoder includes decoding its input.\n");
    }
    text
}

fn table_row(record: &Record, configuration: &Configuration) -> [Cell; 6] {
    let repeats: Vec<&Repeat> = record.successes(&configuration.id).collect();
    let rates: Vec<f64> = repeats.iter().filter_map(|repeat| Some(frame_rate(repeat, repeat.window?))).collect();
    // Scores of each output file; without output files, the shared score.
    let vmaf = |sha256: Option<&str>| -> Vec<f64> {
        let own = record.scores.iter().filter(|score| score.configuration == configuration.id);
        let own = own.filter(|score| sha256.is_none_or(|sha256| score.sha256 == sha256));
        let vmaf = own.flat_map(|score| &score.scores).filter(|score| score.metric == "vmaf");
        vmaf.filter(|score| score.pooling == "mean").filter_map(|score| score.value).collect()
    };
    let artefacts = repeats.iter().flat_map(|repeat| repeat.artefacts.iter().chain(&repeat.sample));
    let each: Vec<f64> = artefacts.flat_map(|artefact| vmaf(Some(&artefact.sha256))).collect();
    let vmaf = mean(&each).or_else(|| mean(&vmaf(None)));
    let or_dash = |text: Option<String>| Cell::from(text.unwrap_or_else(|| "–".to_owned()));
    let energy = |values: &[f64], unit: &str| {
        or_dash(Estimate::of(values).map(|one| with_unit_and_half_width(one.mean, one.half_width, unit)))
    };
    [
        Cell::from(configuration.name.as_str()),
        Cell::from(repeats.len().to_string()),
        energy(&record.configuration_joules(&configuration.id), "J"),
        // The mean over the repeats, as in the report.
        energy(&record.joules_per_frame(&configuration.id), "J"),
        or_dash(mean(&rates).map(number::short)),
        or_dash(vmaf.map(number::score)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_fields_are_quoted_and_no_formulas() {
        assert_eq!(quoted("a, \"b\""), "\"a, \"\"b\"\"\"");
        assert_eq!(quoted("=cmd()"), "'=cmd()");
        assert_eq!(quoted("plain"), "plain");
    }

    #[test]
    fn the_hint_on_comparing_names_files_that_exist() {
        let dir = tempfile::tempdir().unwrap();
        let file = |id: &str| dir.path().join(format!("test_results_{id}.json"));
        for id in ["20260101_000000", "20260102_000000", "20260103_000000"] {
            fs::write(file(id), "{}").unwrap();
        }
        let hint = comparison_hint(&file("20260102_000000"));
        let files = format!("{} {}", file("20260101_000000").display(), file("20260102_000000").display());
        assert!(hint.ends_with(&files), "{hint}");
        let first = comparison_hint(&file("20260101_000000"));
        assert!(first.contains("20260101_000000.json CANDIDATE.json"), "{first}");
    }

    #[test]
    fn times_are_rounded_to_microseconds() {
        assert_eq!(nanoseconds(1_795_176_060.123_457), 1_795_176_060_123_457_000);
    }
}
