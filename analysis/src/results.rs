//! Port 9502: what runs used.

use std::time::SystemTime;

use exporter::{
    family::{Def, Family},
    process, program, refused,
};

use crate::{
    cells::{cells, is_whole},
    columns::{self, Across, Column, SCENARIO, WIDE, across, repeated, spread},
    energy::{Energy, Scope},
    figures::{Entry, Model, float},
    run::Scenario,
};

const ENERGY: &[&str] = &["scenario", "bitrate", "encoder", "run", "scope", "source", "way"];

static RUN_ENERGY: Def = Def::gauge(
    "wattcast_run_energy_joules",
    ENERGY,
    "Energy of a scenario's window in joules. scope=\"host\": all that was measured; scope=\"container\": the dynamic energy given to the scenario's \
     container. way: counters (in the file), probe (its window), database (raw samples of the counters), samples (of power in the file, by the trapezoid).",
);
static RUN_EDGE: Def = Def::gauge(
    "wattcast_run_energy_edge_error_joules",
    ENERGY,
    "The most that the edges of the window can have added to the energy above, or taken from it.",
);
static RUN_POWER: Def = Def::gauge(
    "wattcast_run_power_watts",
    ENERGY,
    "Mean power of a scenario in watts: its energy over its duration; the mean of the samples where way=\"samples\".",
);
static RUN_FRAME: Def = Def::gauge(
    "wattcast_run_energy_per_frame_joules",
    ENERGY,
    "Energy of a scenario over its encoded frames, in joules.",
);
static RUN_PIXEL: Def = Def::gauge(
    "wattcast_run_energy_per_pixel_joules",
    ENERGY,
    "Energy of a scenario over its encoded pixels, all outputs and streams, in joules.",
);
static RUN_MEDIA: Def = Def::gauge(
    "wattcast_run_energy_per_media_second_joules",
    ENERGY,
    "Energy of a scenario over the seconds of media of all its streams, in joules.",
);
static RUN_MEGABIT: Def = Def::gauge(
    "wattcast_run_energy_per_megabit_joules",
    ENERGY,
    "Energy of a scenario over what it put out in 10^6 bits, in joules: bytes written, else the bitrate that was asked for.",
);
static RUN_AVAILABLE: Def = Def::gauge(
    "wattcast_run_energy_available",
    &["scenario", "bitrate", "encoder", "run", "reason"],
    "1 when all the energy of a scenario's window is known; 0 with the reason why not: coverage (samples of less than 95 % of it, or of more than 105 %), no_container (the \
     host's is there, but nobody knew a container of the scenario's name), which_host (nobody says on which host it ran), too_old, unreachable, …",
);
static RUN_COVERAGE: Def = Def::gauge(
    "wattcast_run_energy_coverage_ratio",
    SCENARIO,
    "The part of the window that the joules are of; 1 for counters. Below 0.95 and above 1.05 a figure is not to be compared.",
);
static RUN_GAP: Def = Def::gauge(
    "wattcast_run_energy_gap_seconds",
    SCENARIO,
    "Seconds of the window in which the database has no sample of the counters. They went on counting, so no joule is missing unless they were reset.",
);
static RUN_RESETS: Def = Def::gauge(
    "wattcast_run_energy_resets",
    SCENARIO,
    "How often a counter began anew in the window; what it counted between its last sample and the reset is in no figure.",
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
    "1; what a scenario was, and which shape its file has.",
);
static RUN_RANK: Def = Def::gauge(
    "wattcast_run_efficiency_rank",
    &["scenario", "bitrate", "encoder", "run", "among"],
    "Rank of a scenario by pixels per joule, megabits per joule where no pixels are known; 1 is best, equals share one. among: run, ladder (the same outputs).",
);
static CELL_REPEATS: Def = Def::gauge(
    "wattcast_cell_repeats",
    SCENARIO,
    "How often a configuration was run to a good end; scenario is the name of its first repeat.",
);
static CELL_ENERGY: Across = across!(
    ["scenario", "bitrate", "encoder", "run", "scope", "source"],
    "wattcast_cell_energy_joules",
    "Energy of a configuration in joules, the mean over its repeats.",
    "wattcast_cell_energy_interval_joules",
    "The 95 % interval of that mean (Student's), in joules. bound: low, high. Absent of one repeat."
);
static CELL_FRAME: Across = across!(
    ["scenario", "bitrate", "encoder", "run", "scope", "source"],
    "wattcast_cell_energy_per_frame_joules",
    "Energy of a configuration over its encoded frames in joules, the mean over its repeats.",
    "wattcast_cell_energy_per_frame_interval_joules",
    "The 95 % interval of that mean, in joules. bound: low, high."
);
static CELL_DURATION: Across = across!(
    ["scenario", "bitrate", "encoder", "run"],
    "wattcast_cell_duration_seconds",
    "Duration of a configuration in seconds, the mean over its repeats.",
    "wattcast_cell_duration_interval_seconds",
    "The 95 % interval of that mean, in seconds. bound: low, high."
);
static SOURCE_UP: Def = Def::gauge(
    "wattcast_source_up",
    &["source", "reason"],
    "1 when the directory of results, the probe, the database or the source of carbon intensity serves; 0 with the reason absent, denied or broken.",
);
static PROBLEMS: Def = Def::gauge(
    "wattcast_results_problems",
    &[],
    "Result files and rows in them that could not be read; the log and the page at / name each.",
);
static FILES: Def = Def::gauge("wattcast_results_files", &[], "Result files in the directory, shown or not.");
static WATCHED: Def = Def::gauge(
    "wattcast_results_watched",
    &[],
    "1 while the kernel tells of new files; 0 while the directory is looked at by the clock only.",
);

macro_rules! column {
    ($name:literal, $help:expr, $value:expr) => {{
        static DEF: Def = Def::gauge($name, SCENARIO, $help);
        Column { def: &DEF, value: $value }
    }};
    (wide $name:literal, $help:expr, $value:expr) => {{
        static DEF: Def = Def::gauge($name, WIDE, $help).seed();
        Column { def: &DEF, value: $value }
    }};
    (seed $name:literal, $labels:expr, $help:expr, $value:expr) => {{
        static DEF: Def = Def::gauge($name, $labels, $help).seed();
        Column { def: &DEF, value: $value }
    }};
}

/// The numbers of a scenario that follow Prometheus' rules.
pub static PRIMARY: &[Column] = &[
    column!("wattcast_run_duration_seconds", "Duration of a scenario in seconds.", |e| e.figures.seconds),
    column!("wattcast_run_start_timestamp_seconds", "Start of a scenario's window in unix seconds.", |e| {
        Some(e.scenario().window()?.0)
    }),
    column!("wattcast_run_end_timestamp_seconds", "End of a scenario's window in unix seconds.", |e| {
        Some(e.scenario().window()?.1)
    }),
    column!("wattcast_run_frames", "Frames that a scenario encoded.", |e| e.figures.frames),
    column!("wattcast_run_dropped_frames", "Frames that a scenario lost.", |e| e.scenario().dropped_frames.map(float)),
    column!("wattcast_run_drop_ratio", "Frames that a scenario lost, over those it encoded.", |e| e.figures.drop_ratio),
    column!("wattcast_run_pixels", "Pixels that a scenario encoded, all outputs and streams.", |e| e.figures.pixels),
    column!("wattcast_run_media_seconds", "Seconds of media that a scenario encoded, all streams.", |e| {
        e.figures.media_seconds
    }),
    column!(
        "wattcast_run_cpu_seconds",
        "CPU seconds of a scenario: of its container, or as its file samples them.",
        |e| { e.figures.cpu_seconds }
    ),
    column!(
        "wattcast_run_power_max_watts",
        "Largest sample of the host's power in a scenario's window, in watts.",
        |e| { e.figures.watts_max }
    ),
    column!(
        "wattcast_run_power_p95_watts",
        "95th percentile of the samples of the host's power, in watts (Hyndman and Fan, type 7).",
        |e| e.figures.watts_p95
    ),
    column!(
        "wattcast_run_power_stddev_watts",
        "Standard deviation of the samples of the host's power, in watts; n - 1 in the denominator.",
        |e| e.figures.watts_deviation
    ),
    column!(
        "wattcast_run_baseline_power_watts",
        "Mean power of the host without load, in watts: of the run's baseline scenario, or of the one that the file names.",
        |e| Some(e.figures.difference?.baseline_watts)
    ),
    column!("wattcast_run_net_power_watts", "Mean power of the host above its baseline, in watts.", |e| {
        Some(e.figures.difference?.watts)
    }),
    column!(
        "wattcast_run_net_energy_joules",
        "Energy of the host above its baseline, in joules: the baseline's power over this scenario's length is taken off.",
        |e| Some(e.figures.difference?.joules)
    ),
    column!("wattcast_run_pixels_per_joule", "Pixels that a scenario encoded for a joule.", |e| {
        Some(e.figures.pixels? / e.figures.joules().filter(|joules| *joules > 0.0)?)
    }),
    column!(
        "wattcast_run_energy_over_best_joules",
        "Joules for a second of media above what the best scenario with the same outputs needs.",
        |e| e.figures.joules_over_best
    ),
];

/// The numbers under the names of the replaced exporters.
pub static SEED: &[Column] = &[
    column!(seed "results_scenario_duration_seconds", SCENARIO, "Duration of a scenario in seconds.", |e| e.figures.seconds),
    column!(seed "results_scenario_avg_fps", SCENARIO, "Mean frames per second of a scenario.", |e| e.scenario().avg_fps),
    column!(seed "results_scenario_dropped_frames", SCENARIO, "Frames that a scenario lost.", |e| {
        e.scenario().dropped_frames.map(float)
    }),
    column!(seed "results_scenario_total_frames", SCENARIO, "Frames that a scenario encoded.", |e| e.figures.frames),
    column!(seed "results_scenario_vmaf_score", SCENARIO, "VMAF of a scenario, 0 to 100.", |e| vmaf(e.scenario())),
    column!(seed "results_scenario_psnr_score", SCENARIO, "PSNR of a scenario in dB.", |e| {
        Some(e.scenario().quality.psnr.as_ref()?.value)
    }),
    column!(wide "results_scenario_mean_power_watts", "Mean power in watts.", |e| e.figures.watts),
    column!(wide "results_scenario_measured_power_watts", "The same as results_scenario_mean_power_watts.", |e| e.figures.watts),
    column!(wide "results_scenario_total_energy_joules", "Energy of the window in joules; of the host unless --energy.scope says otherwise.", |e| {
        e.figures.joules()
    }),
    column!(wide "results_scenario_total_energy_wh", "The same in watt hours.", |e| Some(e.figures.joules()? / 3600.0)),
    column!(wide "results_scenario_container_cpu_percent", "Mean CPU use in percent of one CPU.", |e| {
        Some(e.figures.cores? * 100.0)
    }),
    column!(wide "results_scenario_energy_wh_per_min", "Watt hours for a minute.", |e| {
        Some(e.figures.joules_per(e.figures.seconds)? / 60.0)
    }),
    column!(wide "results_scenario_energy_wh_per_mbps", "Watt hours over the bitrate that was asked for, in Mbit/s.", |e| {
        Some(e.figures.joules_per(e.scenario().bits_per_second())? / 3600.0 * 1e6)
    }),
    column!(wide "results_scenario_energy_mj_per_frame", "Millijoules for a frame.", |e| {
        Some(e.figures.joules_per(e.figures.frames)? * 1000.0)
    }),
    column!(wide "results_scenario_net_power_watts", "Mean power above the baseline's, in watts.", |e| {
        Some(e.figures.difference?.watts)
    }),
    column!(wide "results_scenario_net_energy_wh", "Energy above the baseline's, in watt hours, the baseline scaled to this length.", |e| {
        Some(e.figures.difference?.joules / 3600.0)
    }),
    column!(wide "results_scenario_net_container_cpu_percent", "Mean CPU use above the baseline's, in percent of one CPU.", |e| {
        Some(e.figures.difference?.cores? * 100.0)
    }),
    column!(wide "results_scenario_delta_power_watts", "The same as results_scenario_net_power_watts.", |e| {
        Some(e.figures.difference?.watts)
    }),
    column!(wide "results_scenario_delta_energy_wh", "The same as results_scenario_net_energy_wh.", |e| {
        Some(e.figures.difference?.joules / 3600.0)
    }),
    column!(wide "results_scenario_power_pct_increase", "Mean power above the baseline's, in percent of the baseline's.", |e| {
        let difference = e.figures.difference.filter(|difference| difference.baseline_watts > 0.0)?;
        Some(difference.watts / difference.baseline_watts * 100.0)
    }),
    column!(wide "results_scenario_efficiency_score", "Pixels for a joule; megabits for a joule where no pixels are known.", |e| {
        e.figures.efficiency
    }),
    column!(wide "results_scenario_total_pixels", "Pixels encoded, all outputs and streams.", |e| e.figures.pixels),
    column!(wide "results_scenario_power_stdev", "Standard deviation of the samples of power, in watts.", |e| {
        e.figures.watts_deviation
    }),
    column!(wide "results_scenario_predicted_power_watts", "Mean power by a line through the run's scenarios of the same configuration over their streams; absent below three different numbers of streams.", |e| {
        e.figures.predicted_watts
    }),
    column!(wide "results_scenario_predicted_energy_joules", "That power over the scenario's length, in joules.", |e| {
        Some(e.figures.predicted_watts? * e.figures.seconds?)
    }),
    column!(wide "results_scenario_predicted_efficiency_score", "Pixels for a joule of that energy.", |e| {
        Some(e.figures.pixels? / (e.figures.predicted_watts? * e.figures.seconds?))
    }),
    column!(wide "results_scenario_prediction_confidence_low", "Mean power less two standard deviations of its samples: a spread, and no confidence in any prediction.", |e| {
        spread_of(e).map(|(mean, deviation)| mean - 2.0 * deviation)
    }),
    column!(wide "results_scenario_prediction_confidence_high", "Mean power and two standard deviations of its samples: a spread, and no confidence in any prediction.", |e| {
        spread_of(e).map(|(mean, deviation)| mean + 2.0 * deviation)
    }),
    column!(seed "scenario_duration_seconds", SCENARIO, "The same as results_scenario_duration_seconds.", |e| e.figures.seconds),
    column!(seed "scenario_power_mean_watts", SCENARIO, "The same as results_scenario_mean_power_watts.", |e| e.figures.watts),
    column!(seed "scenario_power_max_watts", SCENARIO, "Largest sample of power, in watts.", |e| e.figures.watts_max),
    column!(seed "scenario_cpu_mean_percent", SCENARIO, "Mean CPU use in percent of one CPU.", |e| Some(e.figures.cores? * 100.0)),
    column!(seed "scenario_baseline_diff_power_watts", SCENARIO, "Mean power above the baseline's, in watts.", |e| Some(e.figures.difference?.watts)),
];

static UP: Def = Def::gauge("results_exporter_up", &[], "1 while the exporter runs.").seed();
static SCENARIOS: Def =
    Def::gauge("results_scenarios_total", &[], "Scenarios that are served, of all runs shown.").seed();
static EXPORTER_INFO: Def = Def::gauge(
    "results_exporter_info",
    &["version", "language"],
    "1; which program serves the names of the results exporter.",
)
.seed();
static AGE: Def =
    Def::gauge("results_file_age_seconds", &[], "Seconds since the newest run that is shown was written.");
static STALE: Def = Def::gauge("results_file_stale", &[], "1 when that is longer ago than --results.stale; else 0.");

/// Families that are not one number of a scenario each.
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
    &WATCHED,
    &PROBLEMS,
    &SOURCE_UP,
    &UP,
    &SCENARIOS,
    &EXPORTER_INFO,
];

/// Every metric of this page, for the documentation.
#[must_use]
pub fn defs() -> Vec<&'static Def> {
    let columns = PRIMARY.iter().chain(SEED).map(|column| column.def);
    OTHERS.iter().copied().chain(columns).collect()
}

/// Mean and standard deviation of the host's power, where both are the host's.
fn spread_of(entry: &Entry) -> Option<(f64, f64)> {
    let host = entry.figures.scope == Some(Scope::Host);
    Some((entry.figures.watts.filter(|_| host)?, entry.figures.watts_deviation?))
}

fn vmaf(scenario: &Scenario) -> Option<f64> {
    Some(scenario.quality.vmaf.as_ref()?.value)
}

/// Calls for each scope with its sources' names, its joules and the way they were obtained.
fn scopes(entry: &Entry, then: &mut dyn FnMut(&[&str], f64, Scope)) {
    let Some(energy) = &entry.answer.energy else { return };
    for scope in [Scope::Host, Scope::Container] {
        if let Some(joules) = energy.of(scope) {
            then(&[scope.as_str(), &energy.sources(scope), energy.way.as_str()], joules.joules(), scope);
        }
    }
}

fn per(model: &Model, def: &'static Def, amount: fn(&Entry) -> Option<f64>) -> Family {
    spread(model, def, |entry, push| {
        if let Some(amount) = amount(entry).filter(|amount| *amount > 0.0) {
            scopes(entry, &mut |labels, joules, _| push(labels, joules / amount));
        }
    })
}

/// The part of the page that changes with the runs. One family is made at a time: a page of many scenarios is large, and its families need not all be there at once.
pub fn families(model: &Model) -> impl Iterator<Item = Family> + '_ {
    let rows = |def: &'static Def, value: fn(&crate::energy::Joules) -> f64| {
        spread(model, def, move |entry, push| {
            let Some(energy) = &entry.answer.energy else { return };
            for row in &energy.rows {
                push(&[row.scope.as_str(), &row.source, energy.way.as_str()], value(row));
            }
        })
    };
    let of_energy = |def: &'static Def, value: fn(&Energy) -> f64| {
        spread(model, def, move |entry, push| {
            if let Some(energy) = &entry.answer.energy {
                push(&[], value(energy));
            }
        })
    };
    let made: Vec<Box<dyn Fn() -> Family + '_>> = vec![
        Box::new(move || rows(&RUN_ENERGY, |row| row.joules.joules())),
        Box::new(move || rows(&RUN_EDGE, |row| row.edge_error)),
        Box::new(move || {
            spread(model, &RUN_POWER, |entry, push| {
                scopes(entry, &mut |labels, joules, scope| {
                    let own = entry.figures.scope == Some(scope);
                    let mean =
                        if own { entry.figures.watts } else { entry.figures.seconds.map(|seconds| joules / seconds) };
                    if let Some(watts) = mean {
                        push(labels, watts);
                    }
                });
            })
        }),
        Box::new(move || per(model, &RUN_FRAME, |entry| entry.figures.frames)),
        Box::new(move || per(model, &RUN_PIXEL, |entry| entry.figures.pixels)),
        Box::new(move || per(model, &RUN_MEDIA, |entry| entry.figures.media_seconds)),
        Box::new(move || per(model, &RUN_MEGABIT, |entry| entry.figures.megabits)),
        Box::new(move || {
            spread(model, &RUN_AVAILABLE, |entry, push| {
                let reason = entry.answer.reason(entry.scenario());
                push(&[&reason], f64::from(u8::from(reason.is_empty())));
            })
        }),
        Box::new(move || of_energy(&RUN_COVERAGE, |energy| energy.coverage.unwrap_or(f64::NAN))),
        Box::new(move || of_energy(&RUN_GAP, |energy| energy.gap_seconds)),
        Box::new(move || of_energy(&RUN_RESETS, |energy| energy.resets.into())),
        Box::new(move || spread(model, &RUN_INFO, |_, push| push(&[], 1.0))),
        Box::new(move || {
            spread(model, &RUN_RANK, |entry, push| {
                for (among, rank) in [("run", entry.figures.rank), ("ladder", entry.figures.ladder_rank)] {
                    if let Some(rank) = rank {
                        push(&[among], rank.into());
                    }
                }
            })
        }),
    ];
    let columns = PRIMARY.iter().chain(SEED).map(|column| columns::family(model, column));
    made.into_iter().map(|make| make()).chain(of_cells(model)).chain(columns)
}

/// What repeats say together.
fn of_cells(model: &Model) -> Vec<Family> {
    let mut repeats = Family::new(&CELL_REPEATS);
    for cell in cells(model).iter().filter(|cell| cell.is_repeated()) {
        let labels = columns::labels(cell.first(), &CELL_REPEATS);
        let labels: Vec<&str> = labels.iter().map(|label| &**label).collect();
        repeats.push(&labels, float(u64::try_from(cell.entries.len()).unwrap_or(u64::MAX)));
    }
    let energy = |defs: &Across, over: fn(&Entry) -> Option<f64>| {
        repeated(model, defs, move |entry, push| {
            let Some(over) = over(entry).filter(|over| *over > 0.0 && is_whole(entry)) else { return };
            // The way is the file's own counters, of every repeat.
            scopes(entry, &mut |labels, joules, _| push(&labels[..2], joules / over));
        })
    };
    let mut all = vec![repeats];
    all.extend(energy(&CELL_ENERGY, |_| Some(1.0)));
    all.extend(energy(&CELL_FRAME, |entry| entry.figures.frames));
    all.extend(repeated(model, &CELL_DURATION, |entry, push| {
        if let Some(seconds) = entry.figures.seconds {
            push(&[], seconds);
        }
    }));
    all
}

/// How the directory stands.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// When the newest run was written.
    pub newest: Option<SystemTime>,
    /// Result files in it.
    pub files: usize,
    /// What could not be read.
    pub problems: usize,
    /// True while the kernel tells of changes.
    pub watched: bool,
    /// A run that is older is stale.
    pub stale: std::time::Duration,
}

/// The part of the page that changes by itself. `sources` are names with the reason why they do not serve, empty when they do.
#[must_use]
pub fn state(model: &Model, directory: &Directory, sources: &[(String, String)]) -> Vec<Family> {
    let age = directory.newest.map(|newest| SystemTime::now().duration_since(newest).unwrap_or_default());
    let (mut since, mut stale) = (Family::new(&AGE), Family::new(&STALE));
    if let Some(age) = age {
        since.push(&[], age.as_secs_f64());
        stale.push(&[], f64::from(u8::from(age > directory.stale)));
    }
    let mut up = Family::new(&SOURCE_UP);
    for (source, reason) in sources {
        up.push(&[source, reason], f64::from(u8::from(reason.is_empty())));
    }
    let count = |count: usize| float(u64::try_from(count).unwrap_or(u64::MAX));
    let mut all = vec![
        since,
        stale,
        Family::new(&FILES).with(&[], count(directory.files)),
        Family::new(&WATCHED).with(&[], f64::from(u8::from(directory.watched))),
        Family::new(&PROBLEMS).with(&[], count(directory.problems)),
        up,
        Family::new(&UP).with(&[], 1.0),
        Family::new(&SCENARIOS).with(&[], count(model.entries.len())),
        Family::new(&EXPORTER_INFO).with(&[program::VERSION, "rust"], 1.0),
        program::build_info(),
        refused::family(),
    ];
    all.extend(process::families());
    all
}
