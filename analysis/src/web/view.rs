//! What the loader publishes for the pages: the model, a summary of each run, budgets and sources.
//! It is computed once for each change of the model, not for each request.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwapOption;
use results::{
    cost::{Prices, budget::BudgetStatus},
    derived::EnergyClass,
    energy::{EnergyLookup, Scope},
    estimate::{self, Estimate},
    figures::Figures,
    model::Model,
    repeats::{Configuration, configurations},
    run::{Run, UNKNOWN},
    store::ResultFile,
};

/// Most configurations of a plot, about what can be distinguished. Beyond it there is no front
/// either, whose time grows with the square.
pub const MAX_POINTS: usize = 400;

/// What a page says without a view.
pub const NOT_READ: &str = "The results directory has not been read yet; try again in a second.";

/// The newest view; empty until the results directory was read once.
pub type SharedView = Arc<ArcSwapOption<ResultsView>>;

/// The runs and what belongs to them.
#[derive(Clone, Debug)]
pub struct ResultsView {
    pub model: Arc<Model>,
    /// Newest first.
    pub runs: Arc<Vec<RunSummary>>,
    pub prices: Arc<Prices>,
    pub budgets: Vec<BudgetStatus>,
    /// Names of the data sources with the reason if they are unavailable, else empty.
    pub sources: Vec<(String, String)>,
    /// Files and rows that could not be read.
    pub problems: Vec<String>,
}

impl ResultsView {
    /// The run with this id. Only ids of runs that were read match, so that a request cannot name
    /// another file.
    #[must_use]
    pub fn run(&self, id: &str) -> Option<&RunSummary> {
        self.runs.iter().find(|summary| summary.run.id == id)
    }

    /// A model of one run alone, with the energy that is known already. `scope` is that of the
    /// commands `report` and `compare`, so that both show the same figures.
    #[must_use]
    pub fn model_of(&self, run: &Arc<Run>, scope: Scope) -> Model {
        let entries = self.model.entries.iter().filter(|entry| Arc::ptr_eq(&entry.run, run));
        let lookups: Vec<EnergyLookup> = entries.map(|entry| entry.lookup.clone()).collect();
        Model::new(&[(run.clone(), lookups)], scope, &self.prices)
    }
}

/// The summary of a run. Figures are those of its best configuration.
#[derive(Clone, Debug)]
pub struct RunSummary {
    pub file: ResultFile,
    pub run: Arc<Run>,
    pub configurations: usize,
    /// Repeats of all configurations.
    pub measurements: usize,
    /// Lowest energy per frame in joules.
    pub joules_per_frame: Option<Estimate>,
    /// Highest VMAF.
    pub vmaf: Option<Estimate>,
    /// Lowest cost per hour of a stream, in the currency of the prices.
    pub cost_per_stream_hour: Option<Estimate>,
    /// Scope and sources of the energy of all configurations, each once; empty without energy.
    pub energy_sources: Vec<String>,
    /// The configurations with VMAF and energy per frame, grouped into comparable ones.
    pub plots: Vec<QualityPlot>,
}

/// Configurations that are comparable in VMAF and energy per frame.
#[derive(Clone, Debug, PartialEq)]
pub struct QualityPlot {
    /// What the configurations have in common.
    pub title: String,
    pub points: Vec<QualityPoint>,
}

/// A configuration in a [`QualityPlot`].
#[derive(Clone, Debug, PartialEq)]
pub struct QualityPoint {
    pub name: String,
    /// Energy per frame in joules.
    pub joules: Estimate,
    pub vmaf: Estimate,
    /// Whether no other configuration of the plot is better in energy or VMAF and worse in neither,
    /// by more than the intervals.
    pub on_front: bool,
}

/// Summaries of the runs in the order of `files`, newest first.
#[must_use]
pub fn summaries(model: &Model, files: &[(ResultFile, Arc<Run>)]) -> Vec<RunSummary> {
    let all = configurations(model);
    let summary = |(file, run): &(ResultFile, Arc<Run>)| {
        let own: Vec<&Configuration<'_>> = all.iter().filter(|one| Arc::ptr_eq(&one.first().run, run)).collect();
        RunSummary::of(file, run, &own)
    };
    files.iter().map(summary).collect()
}

impl RunSummary {
    fn of(file: &ResultFile, run: &Arc<Run>, own: &[&Configuration<'_>]) -> Self {
        let all: Vec<Figures> = own.iter().map(|configuration| Figures::of(configuration)).collect();
        let mut energy_sources: Vec<String> = all.iter().filter_map(|figures| figures.energy_source.clone()).collect();
        energy_sources.sort();
        energy_sources.dedup();
        let of = |value: fn(&Figures) -> Option<Estimate>| all.iter().filter_map(value);
        let by_mean = |a: &Estimate, b: &Estimate| a.mean.total_cmp(&b.mean);
        Self {
            file: file.clone(),
            run: run.clone(),
            configurations: own.len(),
            measurements: own.iter().map(|configuration| configuration.entries.len()).sum(),
            joules_per_frame: of(|figures| figures.joules_per_frame).min_by(by_mean),
            vmaf: of(|figures| figures.vmaf).max_by(by_mean),
            cost_per_stream_hour: of(|figures| figures.cost_per_stream_hour).min_by(by_mean),
            energy_sources,
            plots: plots(own, &all),
        }
    }
}

/// What comparable configurations have in common: outputs, streams, VMAF model and pooling, energy
/// sources and class, and the encoded source.
type PlotKey<'a> = (&'a str, u32, &'a str, &'a str, String, EnergyClass, &'a str);

fn plots(own: &[&Configuration<'_>], all: &[Figures]) -> Vec<QualityPlot> {
    let mut groups: BTreeMap<PlotKey<'_>, Vec<QualityPoint>> = BTreeMap::new();
    for (configuration, figures) in own.iter().zip(all) {
        let entry = configuration.first();
        let scenario = entry.scenario();
        let (Some(joules), Some(vmaf), Some(source), Some(score)) =
            (figures.joules_per_frame, figures.vmaf, figures.energy_source.clone(), &scenario.quality.vmaf)
        else {
            continue;
        };
        let key = (
            &*entry.derived.ladder,
            scenario.stream_count().unwrap_or(1),
            &*score.model,
            &*score.pooling,
            source,
            entry.derived.energy_class(),
            configuration.content_digest(),
        );
        let point = QualityPoint { name: scenario.name.clone(), joules, vmaf, on_front: false };
        groups.entry(key).or_default().push(point);
    }
    groups.into_iter().map(|(key, points)| plot(&key, points)).collect()
}

fn plot((ladder, streams, model, pooling, source, ..): &PlotKey<'_>, mut points: Vec<QualityPoint>) -> QualityPlot {
    // Without known outputs a configuration may have encoded less than another.
    if *ladder != UNKNOWN && points.len() <= MAX_POINTS {
        let bounds: Vec<[(f64, f64); 2]> = points.iter().map(bounds).collect();
        for (point, on_front) in points.iter_mut().zip(estimate::pareto_front(&bounds)) {
            point.on_front = on_front;
        }
    }
    let score = ["VMAF", *model, *pooling].into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    QualityPlot { title: format!("{ladder}, {streams} at once, {score}, energy of {source}"), points }
}

/// Bounds of the energy and of the negated score: smaller is better.
fn bounds(point: &QualityPoint) -> [(f64, f64); 2] {
    let (low, high) = point.vmaf.bounds();
    [point.joules.bounds(), (-high, -low)]
}

#[cfg(test)]
pub(super) mod tests {
    use std::{path::PathBuf, time::SystemTime};

    use results::{energy::EnergySources, store};

    use super::*;

    /// The view of these result files, by run id, newest first.
    pub(in crate::web) fn view(files: &[(&str, &str)]) -> ResultsView {
        let prices = Prices::defaults();
        let mut runs = Vec::new();
        let mut read = Vec::new();
        for (id, text) in files {
            let run = Arc::new(store::parse(id, text.as_bytes()).unwrap());
            let lookups: Vec<EnergyLookup> = run.scenarios.iter().map(EnergySources::from_file).collect();
            let path = PathBuf::from(format!("/results/test_results_{id}.json"));
            let file = ResultFile { path, id: (*id).to_owned(), modified: SystemTime::UNIX_EPOCH, bytes: 0 };
            read.push((file, run.clone()));
            runs.push((run, lookups));
        }
        let model = Model::new(&runs, Scope::Host, &prices);
        let runs = summaries(&model, &read);
        ResultsView {
            model: Arc::new(model),
            runs: Arc::new(runs),
            prices: Arc::new(prices),
            budgets: Vec::new(),
            sources: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// A row of a result file with energy and VMAF.
    pub(in crate::web) fn row(name: &str, joules: f64, vmaf: f64) -> String {
        serde_json::json!({
            "name": name, "encoder_type": "libx264", "bitrate": "1M", "resolution": "640x360", "fps": 30, "duration": 10,
            "total_frames": 300, "energy_joules": joules, "vmaf_score": vmaf,
        })
        .to_string()
    }

    pub(in crate::web) fn file(rows: &[String]) -> String {
        format!("{{\"scenarios\":[{}]}}", rows.join(","))
    }

    #[test]
    fn a_run_is_summarized_by_its_best_figures() {
        let text = file(&[row("fast", 30.0, 80.0), row("slow", 90.0, 95.0), row("worse", 95.0, 79.0)]);
        let view = view(&[("20260101_000000", text.as_str())]);
        let run = view.run("20260101_000000").unwrap();
        assert_eq!((run.configurations, run.measurements), (3, 3));
        assert_eq!(run.joules_per_frame.map(|joules| joules.mean), Some(0.1));
        assert_eq!(run.vmaf.map(|vmaf| vmaf.mean), Some(95.0));
        assert_eq!(run.plots.len(), 1);
        let front: Vec<bool> = run.plots[0].points.iter().map(|point| point.on_front).collect();
        assert_eq!(front, [true, true, false]);
    }

    #[test]
    fn only_ids_of_known_runs_are_found() {
        let text = file(&[row("a", 1.0, 90.0)]);
        let view = view(&[("20260101_000000", text.as_str())]);
        for id in ["", "..", "../20260101_000000", "20260101_000000.json", "/etc/passwd", "20260101_00000"] {
            assert!(view.run(id).is_none(), "{id}");
        }
    }

    #[test]
    fn the_model_of_a_run_has_its_energy() {
        let files =
            [("20260102_000000", file(&[row("a", 7.0, 90.0)])), ("20260101_000000", file(&[row("b", 3.0, 90.0)]))];
        let view = view(&files.each_ref().map(|(id, text)| (*id, &**text)));
        let run = view.run("20260101_000000").unwrap().run.clone();
        let model = view.model_of(&run, Scope::Host);
        let joules: Vec<Option<f64>> = model.entries.iter().map(|entry| entry.derived.joules()).collect();
        assert_eq!(joules, [Some(3.0)]);
    }
}
