//! Metrics of port 9502: energy, time and output of runs.

use std::time::SystemTime;

use cli::program;
use http::rejections;
use metrics::{
    family::{Def, Family},
    process,
};

use crate::pages::scenario_metrics::{
    self, LEGACY_SCENARIO, MeanDefs, SCENARIO, ScenarioMetric, families_of_means, family_of_rows, mean_defs,
};
use results::{
    convert::float,
    energy::{Scope, WindowEnergy},
    model::{Entry, Model},
    repeats::configurations,
    run::Scenario,
};

const ENERGY: &[&str] = &["scenario", "bitrate", "encoder", "run", "scope", "source", "way"];

static RUN_ENERGY: Def = Def::gauge(
    "wattcast_run_energy_joules",
    ENERGY,
    "Energy of a scenario's window in joules. scope: host (all measured energy), container \
     (dynamic energy attributed to the scenario's container). way: counters (in the file), probe \
     (window query), database (raw samples of the counters), samples (of power in the file, by \
     the trapezoidal rule).",
);
static RUN_EDGE: Def = Def::gauge(
    "wattcast_run_energy_edge_error_joules",
    ENERGY,
    "Largest error of the energy in joules from the edges of the window.",
);
static RUN_POWER: Def = Def::gauge(
    "wattcast_run_power_watts",
    ENERGY,
    "Mean power of a scenario in watts: energy over duration, or the mean of the samples with \
     way=\"samples\".",
);
static RUN_FRAME: Def = Def::gauge(
    "wattcast_run_energy_per_frame_joules",
    ENERGY,
    "Energy per encoded frame of a scenario in joules; absent unless the joules cover the whole \
     window.",
);
static RUN_PIXEL: Def = Def::gauge(
    "wattcast_run_energy_per_pixel_joules",
    ENERGY,
    "Energy per encoded pixel of a scenario in joules, over all outputs and streams; absent unless \
     the joules cover the whole window.",
);
static RUN_MEDIA: Def = Def::gauge(
    "wattcast_run_energy_per_media_second_joules",
    ENERGY,
    "Energy per second of media of a scenario in joules, over all streams; absent unless the joules \
     cover the whole window.",
);
static RUN_MEGABIT: Def = Def::gauge(
    "wattcast_run_energy_per_megabit_joules",
    ENERGY,
    "Energy per 10^6 bits of output of a scenario in joules: bytes written, or the requested \
     bitrate if unknown; absent unless the joules cover the whole window.",
);
static RUN_AVAILABLE: Def = Def::gauge(
    "wattcast_run_energy_available",
    &["scenario", "bitrate", "encoder", "run", "reason"],
    "1 if the energy of the scenario's whole window is known, 0 with the reason otherwise: \
     coverage (samples of less than 95 % or more than 105 % of the window), no_container (host \
     energy is known, but no container of the scenario's name), which_host (the host of the run \
     is unknown), too_old, unreachable, …",
);
static RUN_COVERAGE: Def = Def::gauge(
    "wattcast_run_energy_coverage_ratio",
    SCENARIO,
    "Energy coverage of the window: part of it that the joules were measured over, 1 for \
     counters. Figures below 0.95 and above 1.05 are not comparable.",
);
static RUN_GAP: Def = Def::gauge(
    "wattcast_run_energy_gap_seconds",
    SCENARIO,
    "Seconds of the window without samples of the counters in the database; no energy is missing \
     unless a counter was reset meanwhile.",
);
static RUN_RESETS: Def = Def::gauge(
    "wattcast_run_energy_resets",
    SCENARIO,
    "Counter resets and restarts of the probe in the window; energy between the last sample and one of them is lost.",
);
static RUN_INFO: Def = Def::gauge(
    "wattcast_run_info",
    &[
        "scenario",
        "bitrate",
        "encoder",
        "run",
        "host",
        "container",
        "resolution",
        "fps",
        "streams",
        "output_ladder",
        "preset",
        "variant",
    ],
    "Always 1; properties of a scenario and the format variant of its result file.",
);
static RUN_RANK: Def = Def::gauge(
    "wattcast_run_efficiency_rank",
    &["scenario", "bitrate", "encoder", "run", "among"],
    "Rank of a scenario's configuration by mean pixels per joule, or megabits per joule if pixels \
     are unknown; 1 is best, overlapping 95 % intervals share a rank. among: run, ladder (same \
     outputs). Absent unless the joules cover the whole window.",
);
static CELL_REPEATS: Def = Def::gauge(
    "wattcast_cell_repeats",
    SCENARIO,
    "Successful repeats of a configuration; scenario is the name of the first repeat.",
);
static CELL_ENERGY: MeanDefs = mean_defs!(
    ["scenario", "bitrate", "encoder", "run", "scope", "source"],
    "wattcast_cell_energy_joules",
    "Mean energy of a configuration over its repeats, in joules.",
    "wattcast_cell_energy_interval_joules",
    "95 % interval (Student) of that mean in joules; absent for a single repeat. bound: low, high."
);
static CELL_FRAME: MeanDefs = mean_defs!(
    ["scenario", "bitrate", "encoder", "run", "scope", "source"],
    "wattcast_cell_energy_per_frame_joules",
    "Mean energy per encoded frame of a configuration over its repeats, in joules.",
    "wattcast_cell_energy_per_frame_interval_joules",
    "95 % interval of that mean in joules. bound: low, high."
);
static CELL_DURATION: MeanDefs = mean_defs!(
    ["scenario", "bitrate", "encoder", "run"],
    "wattcast_cell_duration_seconds",
    "Mean duration of a configuration over its repeats, in seconds.",
    "wattcast_cell_duration_interval_seconds",
    "95 % interval of that mean in seconds. bound: low, high."
);
static SOURCE_UP: Def = Def::gauge(
    "wattcast_source_up",
    &["source", "reason"],
    "1 while a data source (results directory, probe, database, carbon intensity) is available, 0 \
     with the reason otherwise: absent, denied, broken.",
);
static PROBLEMS: Def = Def::gauge(
    "wattcast_results_problems",
    &[],
    "Unreadable result files and rows; the log and the page at / list them.",
);
static FILES: Def =
    Def::gauge("wattcast_results_files", &[], "Result files in the directory, including those beyond --results.keep.");
static OVER_LIMIT: Def = Def::gauge(
    "wattcast_results_runs_over_limit",
    &[],
    "Runs among the newest --results.keep that are not served, because the newer ones reach \
     --limit.scenarios or 64 MiB of files.",
);
static WATCHED: Def = Def::gauge(
    "wattcast_results_watched",
    &[],
    "1 while inotify reports new files, 0 while the directory is only polled.",
);

macro_rules! metric {
    ($name:literal, $help:expr, $value:expr) => {{
        static DEF: Def = Def::gauge($name, SCENARIO, $help);
        ScenarioMetric { def: &DEF, value: $value, divides_energy: false }
    }};
    (legacy_wide $name:literal, $help:expr, $value:expr) => {{
        static DEF: Def = Def::gauge($name, LEGACY_SCENARIO, $help).compat();
        ScenarioMetric { def: &DEF, value: $value, divides_energy: false }
    }};
    (legacy_divided $name:literal, $help:expr, $value:expr) => {{
        static DEF: Def = Def::gauge($name, LEGACY_SCENARIO, $help).compat();
        ScenarioMetric { def: &DEF, value: $value, divides_energy: true }
    }};
    (legacy $name:literal, $labels:expr, $help:expr, $value:expr) => {{
        static DEF: Def = Def::gauge($name, $labels, $help).compat();
        ScenarioMetric { def: &DEF, value: $value, divides_energy: false }
    }};
}

/// Metrics with one value per scenario.
pub static METRICS: &[ScenarioMetric] = &[
    metric!("wattcast_run_duration_seconds", "Duration of a scenario in seconds.", |e| e.derived.seconds),
    metric!("wattcast_run_start_timestamp_seconds", "Start of a scenario's window in Unix seconds.", |e| {
        Some(e.scenario().window()?.0)
    }),
    metric!("wattcast_run_end_timestamp_seconds", "End of a scenario's window in Unix seconds.", |e| {
        Some(e.scenario().window()?.1)
    }),
    metric!("wattcast_run_frames", "Frames encoded by a scenario.", |e| e.derived.frames),
    metric!("wattcast_run_dropped_frames", "Frames dropped by a scenario.", |e| e.scenario().dropped_frames.map(float)),
    metric!("wattcast_run_drop_ratio", "Dropped frames per frame of a scenario, encoded or dropped: 0 to 1.", |e| e
        .derived
        .drop_ratio),
    metric!("wattcast_run_pixels", "Pixels encoded by a scenario, over all outputs and streams.", |e| e.derived.pixels),
    metric!("wattcast_run_media_seconds", "Seconds of media encoded by a scenario, over all streams.", |e| {
        e.derived.media_seconds
    }),
    metric!("wattcast_run_cpu_seconds", "CPU seconds of a scenario's container, or of the samples in its file.", |e| {
        e.derived.cpu_seconds
    }),
    metric!(
        "wattcast_run_power_max_watts",
        "Largest sample of the host's power in a scenario's window, in watts.",
        |e| { e.derived.watts_max }
    ),
    metric!(
        "wattcast_run_power_p95_watts",
        "95th percentile of the samples of the host's power in watts (Hyndman and Fan, type 7).",
        |e| e.derived.watts_p95
    ),
    metric!(
        "wattcast_run_power_stddev_watts",
        "Standard deviation of the samples of the host's power in watts (n - 1 in the denominator).",
        |e| e.derived.watts_deviation
    ),
    metric!(
        "wattcast_run_baseline_power_watts",
        "Mean power of the host without load in watts: of the run's baseline scenario, or of the \
         baseline in its file.",
        |e| Some(e.derived.net?.baseline_watts)
    ),
    metric!("wattcast_run_net_power_watts", "Mean power of the host above its baseline, in watts.", |e| {
        Some(e.derived.net?.watts)
    }),
    metric!(
        "wattcast_run_net_energy_joules",
        "Energy of the host above its baseline in joules, with the baseline's power over the \
         scenario's duration subtracted.",
        |e| Some(e.derived.net?.joules)
    ),
    metric!(
        "wattcast_run_pixels_per_joule",
        "Encoded pixels per joule; absent unless the joules cover the whole window.",
        |e| Some(e.derived.pixels? / e.derived.whole_joules().filter(|joules| *joules > 0.0)?)
    ),
    metric!(
        "wattcast_run_energy_over_best_joules",
        "Excess energy per second of media over the best scenario with the same outputs, in joules; \
         absent unless the joules of both cover their whole windows.",
        |e| e.derived.joules_over_best
    ),
];

/// The legacy names of such metrics.
pub static LEGACY: &[ScenarioMetric] = &[
    metric!(legacy "results_scenario_duration_seconds", SCENARIO, "Duration of a scenario in seconds.", |e| e.derived.seconds),
    metric!(legacy "results_scenario_avg_fps", SCENARIO, "Mean frames per second of a scenario.", |e| e.scenario().avg_fps),
    metric!(legacy "results_scenario_dropped_frames", SCENARIO, "Frames dropped by a scenario.", |e| {
        e.scenario().dropped_frames.map(float)
    }),
    metric!(legacy "results_scenario_total_frames", SCENARIO, "Frames encoded by a scenario.", |e| e.derived.frames),
    metric!(legacy "results_scenario_vmaf_score", SCENARIO, "VMAF of a scenario, 0 to 100.", |e| vmaf(e.scenario())),
    metric!(legacy "results_scenario_psnr_score", SCENARIO, "PSNR of a scenario in dB.", |e| {
        Some(e.scenario().quality.psnr.as_ref()?.value)
    }),
    metric!(legacy_wide "results_scenario_mean_power_watts", "Mean power in watts.", |e| e.derived.watts),
    metric!(legacy_wide "results_scenario_measured_power_watts", "Same as results_scenario_mean_power_watts.", |e| e.derived.watts),
    metric!(legacy_wide "results_scenario_total_energy_joules",
        "Energy of the window in joules; of the host unless --energy.scope is set.", |e| {
        e.derived.joules()
    }),
    metric!(legacy_wide "results_scenario_total_energy_wh", "Energy of the window in watt hours.", |e| Some(e.derived.joules()? / 3600.0)),
    metric!(legacy_wide "results_scenario_container_cpu_percent", "Mean CPU use in percent of one CPU.", |e| {
        Some(e.derived.cores? * 100.0)
    }),
    metric!(legacy_divided "results_scenario_energy_wh_per_min",
        "Watt hours per minute; energy_coverage=\"part\": too low, the energy is that of a part of the window.", |e| {
        Some(e.derived.joules_per(e.derived.seconds)? / 60.0)
    }),
    metric!(legacy_divided "results_scenario_energy_wh_per_mbps",
        "Watt hours per Mbit/s of the requested bitrate; energy_coverage=\"part\": too low, the energy is that of a \
         part of the window.", |e| {
        Some(e.derived.joules_per(e.scenario().bits_per_second())? / 3600.0 * 1e6)
    }),
    metric!(legacy_divided "results_scenario_energy_mj_per_frame",
        "Millijoules per frame; energy_coverage=\"part\": too low, the energy is that of a part of the window.", |e| {
        Some(e.derived.joules_per(e.derived.frames)? * 1000.0)
    }),
    metric!(legacy_wide "results_scenario_net_power_watts", "Mean power above the baseline in watts.", |e| {
        Some(e.derived.net?.watts)
    }),
    metric!(legacy_wide "results_scenario_net_energy_wh",
        "Energy above the baseline in watt hours, with the baseline scaled to the duration.", |e| {
        Some(e.derived.net?.joules / 3600.0)
    }),
    metric!(legacy_wide "results_scenario_net_container_cpu_percent", "Mean CPU use above the baseline in percent of one CPU.", |e| {
        Some(e.derived.net?.cores? * 100.0)
    }),
    metric!(legacy_wide "results_scenario_delta_power_watts", "Same as results_scenario_net_power_watts.", |e| {
        Some(e.derived.net?.watts)
    }),
    metric!(legacy_wide "results_scenario_delta_energy_wh", "Same as results_scenario_net_energy_wh.", |e| {
        Some(e.derived.net?.joules / 3600.0)
    }),
    metric!(legacy_wide "results_scenario_power_pct_increase", "Mean power above the baseline in percent of the baseline.", |e| {
        let difference = e.derived.net.filter(|difference| difference.baseline_watts > 0.0)?;
        Some(difference.watts / difference.baseline_watts * 100.0)
    }),
    metric!(legacy_divided "results_scenario_efficiency_score",
        "Pixels per joule, or megabits per joule if pixels are unknown; energy_coverage=\"part\": too high, the \
         energy is that of a part of the window.", |e| {
        e.derived.efficiency
    }),
    metric!(legacy_wide "results_scenario_total_pixels", "Encoded pixels, over all outputs and streams.", |e| e.derived.pixels),
    metric!(legacy_wide "results_scenario_power_stdev", "Standard deviation of the power samples in watts.", |e| {
        e.derived.watts_deviation
    }),
    metric!(legacy_wide "results_scenario_predicted_power_watts",
        "Mean power in watts by a linear fit over the number of streams of the run's scenarios \
         with the same configuration; absent below three different numbers of streams.", |e| {
        e.derived.predicted_watts
    }),
    metric!(legacy_wide "results_scenario_predicted_energy_joules",
        "Predicted power over the duration of the scenario, in joules.", |e| {
        Some(e.derived.predicted_watts? * e.derived.seconds?)
    }),
    metric!(legacy_wide "results_scenario_predicted_efficiency_score", "Pixels per joule of the predicted energy.", |e| {
        Some(e.derived.pixels? / (e.derived.predicted_watts? * e.derived.seconds?))
    }),
    metric!(legacy_wide "results_scenario_prediction_confidence_low",
        "Mean power minus two standard deviations of its samples: a spread, not a confidence interval.", |e| {
        host_power(e).map(|(mean, deviation)| mean - 2.0 * deviation)
    }),
    metric!(legacy_wide "results_scenario_prediction_confidence_high",
        "Mean power plus two standard deviations of its samples: a spread, not a confidence interval.", |e| {
        host_power(e).map(|(mean, deviation)| mean + 2.0 * deviation)
    }),
    metric!(legacy "scenario_duration_seconds", SCENARIO, "Same as results_scenario_duration_seconds.", |e| e.derived.seconds),
    metric!(legacy "scenario_power_mean_watts", SCENARIO, "Same as results_scenario_mean_power_watts.", |e| e.derived.watts),
    metric!(legacy "scenario_power_max_watts", SCENARIO, "Largest power sample in watts.", |e| e.derived.watts_max),
    metric!(legacy "scenario_cpu_mean_percent", SCENARIO, "Mean CPU use in percent of one CPU.", |e| Some(e.derived.cores? * 100.0)),
    metric!(legacy "scenario_baseline_diff_power_watts", SCENARIO, "Mean power above the baseline in watts.", |e| Some(e.derived.net?.watts)),
];

static UP: Def = Def::gauge("results_exporter_up", &[], "1 while the exporter runs.").compat();
static SCENARIOS: Def = Def::gauge("results_scenarios_total", &[], "Scenarios on the page, over all runs.").compat();
static EXPORTER_INFO: Def = Def::gauge(
    "results_exporter_info",
    &["version", "language"],
    "Always 1; version and language of the program that serves the results exporter's names.",
)
.compat();
static AGE: Def = Def::gauge("results_file_age_seconds", &[], "Age of the newest result file in seconds.");
static STALE: Def =
    Def::gauge("results_file_stale", &[], "1 if the newest result file is older than --results.stale, else 0.");

/// The other metrics of the page.
static OTHERS: &[&Def] = &[
    &RUN_ENERGY,
    &RUN_EDGE,
    &RUN_POWER,
    &RUN_FRAME,
    &RUN_PIXEL,
    &RUN_MEDIA,
    &RUN_MEGABIT,
    &RUN_AVAILABLE,
    &RUN_COVERAGE,
    &RUN_GAP,
    &RUN_RESETS,
    &RUN_INFO,
    &RUN_RANK,
    &CELL_REPEATS,
    CELL_ENERGY.mean,
    CELL_ENERGY.interval,
    CELL_FRAME.mean,
    CELL_FRAME.interval,
    CELL_DURATION.mean,
    CELL_DURATION.interval,
    &AGE,
    &STALE,
    &FILES,
    &OVER_LIMIT,
    &WATCHED,
    &PROBLEMS,
    &SOURCE_UP,
    &UP,
    &SCENARIOS,
    &EXPORTER_INFO,
];

/// Every metric of the page, for the documentation.
#[must_use]
pub fn defs() -> Vec<&'static Def> {
    OTHERS.iter().copied().chain(METRICS.iter().chain(LEGACY).map(|metric| metric.def)).collect()
}

/// Mean and standard deviation of the host's power; `None` if the mean is a container's.
fn host_power(entry: &Entry) -> Option<(f64, f64)> {
    let host = entry.derived.scope == Some(Scope::Host);
    Some((entry.derived.watts.filter(|_| host)?, entry.derived.watts_deviation?))
}

fn vmaf(scenario: &Scenario) -> Option<f64> {
    Some(scenario.quality.vmaf.as_ref()?.value)
}

/// Calls `push` for each scope with its labels (scope, source, way) and its joules.
fn for_each_scope(entry: &Entry, push: &mut dyn FnMut(&[&str], f64, Scope)) {
    let Some(energy) = &entry.lookup.energy else { return };
    for scope in [Scope::Host, Scope::Container] {
        if let Some(joules) = energy.total(scope) {
            push(&[scope.as_str(), &energy.sources(scope), energy.method.as_str()], joules.joules(), scope);
        }
    }
}

/// Joules per `amount` of each scope; absent for energy of a part of the window, which would be
/// divided by the whole amount.
fn energy_per(model: &Model, def: &'static Def, amount: fn(&Entry) -> Option<f64>) -> Family {
    family_of_rows(model, def, |entry, push| {
        if let Some(amount) = amount(entry).filter(|amount| *amount > 0.0 && entry.derived.is_whole) {
            for_each_scope(entry, &mut |labels, joules, _| push(labels, joules / amount));
        }
    })
}

/// The families that depend on the runs. An iterator, so that a large page needs memory for one
/// family at a time.
pub fn families(model: &Model) -> impl Iterator<Item = Family> + '_ {
    let rows = |def: &'static Def, value: fn(&results::energy::EnergyReading) -> f64| {
        family_of_rows(model, def, move |entry, push| {
            let Some(energy) = &entry.lookup.energy else { return };
            for row in &energy.rows {
                push(&[row.scope.as_str(), &row.source, energy.method.as_str()], value(row));
            }
        })
    };
    let from_energy = |def: &'static Def, value: fn(&WindowEnergy) -> f64| {
        family_of_rows(model, def, move |entry, push| {
            if let Some(energy) = &entry.lookup.energy {
                push(&[], value(energy));
            }
        })
    };
    let makers: Vec<Box<dyn Fn() -> Family + '_>> = vec![
        Box::new(move || rows(&RUN_ENERGY, |row| row.joules.joules())),
        Box::new(move || rows(&RUN_EDGE, |row| row.edge_error)),
        Box::new(move || {
            family_of_rows(model, &RUN_POWER, |entry, push| {
                for_each_scope(entry, &mut |labels, joules, scope| {
                    let own = entry.derived.scope == Some(scope);
                    let covered = entry.lookup.energy.as_ref().and_then(|energy| energy.seconds);
                    let mean = if own { entry.derived.watts } else { covered.map(|seconds| joules / seconds) };
                    if let Some(watts) = mean {
                        push(labels, watts);
                    }
                });
            })
        }),
        Box::new(move || energy_per(model, &RUN_FRAME, |entry| entry.derived.frames)),
        Box::new(move || energy_per(model, &RUN_PIXEL, |entry| entry.derived.pixels)),
        Box::new(move || energy_per(model, &RUN_MEDIA, |entry| entry.derived.media_seconds)),
        Box::new(move || energy_per(model, &RUN_MEGABIT, |entry| entry.derived.megabits)),
        Box::new(move || {
            family_of_rows(model, &RUN_AVAILABLE, |entry, push| {
                let reason = entry.lookup.reason(entry.scenario());
                push(&[&reason], f64::from(u8::from(reason.is_empty())));
            })
        }),
        Box::new(move || from_energy(&RUN_COVERAGE, |energy| energy.coverage.unwrap_or(f64::NAN))),
        Box::new(move || from_energy(&RUN_GAP, |energy| energy.gap_seconds)),
        Box::new(move || from_energy(&RUN_RESETS, |energy| energy.resets.into())),
        Box::new(move || family_of_rows(model, &RUN_INFO, |_, push| push(&[], 1.0))),
        Box::new(move || {
            family_of_rows(model, &RUN_RANK, |entry, push| {
                for (among, rank) in [("run", entry.derived.rank), ("ladder", entry.derived.ladder_rank)] {
                    if let Some(rank) = rank {
                        push(&[among], rank.into());
                    }
                }
            })
        }),
    ];
    let metrics = METRICS.iter().chain(LEGACY).map(|metric| scenario_metrics::family(model, metric));
    makers.into_iter().map(|make| make()).chain(means(model)).chain(metrics)
}

/// Repeats of each configuration, and means over them.
fn means(model: &Model) -> Vec<Family> {
    let mut repeats = Family::new(&CELL_REPEATS);
    for configuration in configurations(model).iter().filter(|configuration| configuration.is_repeated()) {
        let labels = scenario_metrics::labels(configuration.first(), &CELL_REPEATS);
        let labels: Vec<&str> = labels.iter().map(|label| &**label).collect();
        repeats.push(&labels, float(u64::try_from(configuration.entries.len()).unwrap_or(u64::MAX)));
    }
    let energy = |defs: &MeanDefs, over: fn(&Entry) -> Option<f64>| {
        families_of_means(model, defs, move |entry, push| {
            let Some(over) = over(entry).filter(|over| *over > 0.0 && entry.derived.is_whole) else { return };
            // The label `way` is left out: it is `counters` for every repeat.
            for_each_scope(entry, &mut |labels, joules, _| push(&labels[..2], joules / over));
        })
    };
    let mut all = vec![repeats];
    all.extend(energy(&CELL_ENERGY, |_| Some(1.0)));
    all.extend(energy(&CELL_FRAME, |entry| entry.derived.frames));
    all.extend(families_of_means(model, &CELL_DURATION, |entry, push| {
        if let Some(seconds) = entry.derived.seconds {
            push(&[], seconds);
        }
    }));
    all
}

/// State of the results directory.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Modification time of the newest result file.
    pub newest: Option<SystemTime>,
    pub files: usize,
    /// Number of unreadable files and rows.
    pub problems: usize,
    /// Runs among the newest that are over a limit.
    pub over_limit: usize,
    /// True while inotify reports changes.
    pub watched: bool,
    /// Age after which the newest run counts as stale.
    pub stale: std::time::Duration,
}

/// The families that change without a new run. `sources` are names with the reason if unavailable,
/// else empty.
#[must_use]
pub fn state(model: &Model, directory: &Directory, sources: &[(String, String)]) -> Vec<Family> {
    let age = directory.newest.map(|newest| SystemTime::now().duration_since(newest).unwrap_or_default());
    let (mut age_seconds, mut stale) = (Family::new(&AGE), Family::new(&STALE));
    if let Some(age) = age {
        age_seconds.push(&[], age.as_secs_f64());
        stale.push(&[], f64::from(u8::from(age > directory.stale)));
    }
    let mut up = Family::new(&SOURCE_UP);
    for (source, reason) in sources {
        up.push(&[source, reason], f64::from(u8::from(reason.is_empty())));
    }
    let count = |count: usize| float(u64::try_from(count).unwrap_or(u64::MAX));
    let mut all = vec![
        age_seconds,
        stale,
        Family::new(&FILES).with(&[], count(directory.files)),
        Family::new(&OVER_LIMIT).with(&[], count(directory.over_limit)),
        Family::new(&WATCHED).with(&[], f64::from(u8::from(directory.watched))),
        Family::new(&PROBLEMS).with(&[], count(directory.problems)),
        up,
        Family::new(&UP).with(&[], 1.0),
        Family::new(&SCENARIOS).with(&[], count(model.entries.len())),
        Family::new(&EXPORTER_INFO).with(&[program::VERSION, "rust"], 1.0),
        program::build_info(),
        rejections::family(),
    ];
    all.extend(process::families());
    all
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use metrics::page;
    use results::{cost::Prices, energy::EnergySources, store};

    use super::*;

    #[test]
    fn energy_of_a_part_is_not_divided_by_the_whole() {
        // The samples of both span 10 s.
        let text = br#"{"scenarios":[
            {"name":"part","bitrate":"1M","duration":27,"total_frames":100,"power_watts":[10,10,10],"step_seconds":5},
            {"name":"whole","bitrate":"1M","duration":10,"total_frames":100,"power_watts":[10,10,10],"step_seconds":5}]}"#;
        let run = Arc::new(store::parse("x", text).unwrap());
        let lookups = run.scenarios.iter().map(EnergySources::from_file).collect();
        let model = Model::new(&[(run, lookups)], Scope::Host, &Prices::defaults());
        let page = page::render("runs", families(&model)).unwrap();
        let page = std::str::from_utf8(page.text()).unwrap();
        let row = |name: &str, scenario: &str| {
            let start = format!("{name}{{scenario=\"{scenario}\"");
            page.lines().find(|line| line.starts_with(&start))
        };
        for name in [
            "wattcast_run_energy_per_frame_joules",
            "wattcast_run_energy_per_media_second_joules",
            "wattcast_run_energy_per_megabit_joules",
            "wattcast_run_efficiency_rank",
        ] {
            assert_eq!(row(name, "part"), None);
            assert!(row(name, "whole").is_some(), "{name}\n{page}");
        }
        let legacy = |scenario: &str| row("results_scenario_energy_mj_per_frame", scenario).unwrap();
        assert!(legacy("part").contains("energy_coverage=\"part\"") && legacy("part").ends_with(" 1000"), "{page}");
        assert!(!legacy("whole").contains("energy_coverage") && legacy("whole").ends_with(" 1000"), "{page}");
    }
}
