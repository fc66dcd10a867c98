//! The plots of a report: power over time, energy per configuration with intervals, and quality by
//! bit rate or energy. Values are drawn as they are, without smoothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::svg::{Axis, Canvas, MAX_MAGNITUDE, WIDTH, padded_range};
use crate::compare::curves::{Curve, Resource};
use cli::number::{short, with_half_width};
use http::index_page::escape as escaped;
use results::{
    estimate::{Estimate, pareto_front},
    figures::score,
    model::Model,
    repeats::Configuration,
};

/// Why a plot cannot be drawn.
pub(super) type PlotError = String;

/// Most configurations in an energy plot.
const MAX_ROWS: usize = 200;
/// Most points in a power plot: about what a screen can show.
const MAX_POINTS: usize = 4000;
/// Most names in a legend.
const MAX_NAMES: usize = 24;
/// Left and right ends of the area of a plot.
const AREA: std::ops::Range<f64> = 58.0..WIDTH - 14.0;
/// Space below the area, for ticks and the name of the axis.
const BELOW: f64 = 46.0;

/// A plot with its texts.
#[derive(Clone, Debug)]
pub(super) struct Plot {
    canvas: Canvas,
    /// What it shows, for readers who do not see it.
    description: String,
    /// Series and their names.
    legend: Vec<(usize, String)>,
}

impl Plot {
    /// The plot and its legend. `number` distinguishes it from others of the page.
    pub(super) fn html(&self, number: usize, title: &str) -> String {
        let mut html = self.canvas.svg(number, title, &self.description);
        if !self.legend.is_empty() {
            html += "<ul class=\"legend\">";
            for (series, name) in self.legend.iter().take(MAX_NAMES) {
                let _ = write!(html, "<li class=\"{}\">{}</li>", Canvas::legend_class(*series), escaped(name));
            }
            if let Some(more) = self.legend.len().checked_sub(MAX_NAMES).filter(|more| *more > 0) {
                let _ = write!(html, "<li>{more} more</li>");
            }
            html += "</ul>";
        }
        html
    }
}

/// A plot of the usual height with both axes.
fn with_axes(
    x: &dyn Fn(std::ops::Range<f64>) -> Axis,
    y: std::ops::Range<f64>,
    names: [&str; 2],
) -> (Canvas, Axis, Axis) {
    let height = 320.0;
    let mut canvas = Canvas::new(height);
    let (x, y) = (x(AREA), Axis::linear(y, height - BELOW..30.0));
    canvas.axes(&x, &y, names[0], names[1]);
    (canvas, x, y)
}

/// Power of the host over the duration of the run. Each repeat is a line in its configuration's
/// colour.
///
/// # Errors
/// When there is nothing to draw.
pub(super) fn power(model: &Model, configurations: &[Configuration<'_>]) -> Result<Plot, PlotError> {
    let start = model.entries.iter().filter_map(|entry| entry.scenario().start).fold(f64::INFINITY, f64::min);
    let mut lines: Vec<(usize, Vec<(f64, f64)>)> = Vec::new();
    for (at, configuration) in configurations.iter().enumerate() {
        for entry in &configuration.entries {
            let samples = &entry.scenario().samples;
            let (Some(begin), Some(step)) = (entry.scenario().start, samples.step) else { continue };
            let times = std::iter::successors(Some(begin - start + step), |time| Some(time + step));
            // Values that are not finite cannot be drawn.
            let all =
                times.zip(samples.watts.iter().copied()).filter(|(at, watts)| at.is_finite() && watts.is_finite());
            let points: Vec<(f64, f64)> =
                all.step_by(samples.watts.len() * model.entries.len() / MAX_POINTS + 1).collect();
            if !points.is_empty() {
                lines.push((at, points));
            }
        }
    }
    let points = || lines.iter().flat_map(|(_, points)| points);
    let nothing = || "the file has no power samples, or its windows are shorter than a second".to_owned();
    let (times, watts) = (
        padded_range(points().map(|point| point.0)).ok_or_else(nothing)?,
        padded_range(points().map(|point| point.1).chain([0.0])).ok_or_else(nothing)?,
    );
    let description = format!(
        "{} lines, one for each repeat, over {} s; power up to {} W.",
        lines.len(),
        short(points().map(|point| point.0).fold(0.0, f64::max)),
        short(points().map(|point| point.1).fold(0.0, f64::max))
    );
    let x = |pixels| Axis::linear(times.start.max(0.0)..times.end, pixels);
    let (mut canvas, x, y) =
        with_axes(&x, watts.start.max(0.0)..watts.end, ["seconds since the first window", "power of the host (W)"]);
    for (at, points) in &lines {
        let place = |point: &(f64, f64)| (x.at(point.0), y.at(point.1));
        // A line through a single point is invisible.
        match points.as_slice() {
            [point] => canvas.marker(*at, place(point)),
            points => canvas.polyline(&Canvas::line_class(*at), points.iter().map(place)),
        }
    }
    let drawn: BTreeSet<usize> = lines.iter().map(|(at, _)| *at).collect();
    let name = |at: usize| (at, shortened(&configurations[at].first().scenario().name));
    Ok(Plot { canvas, description, legend: drawn.into_iter().map(name).collect() })
}

/// Unit of energy per frame by the largest value: its name and its number in a joule.
pub(super) fn energy_unit(largest: f64) -> (&'static str, f64) {
    match largest {
        joules if joules >= 1.0 => ("J", 1.0),
        joules if joules >= 1e-3 || joules <= 0.0 => ("mJ", 1e3),
        _ => ("µJ", 1e6),
    }
}

/// Energy per frame of each configuration: a small dot per repeat, and the mean with its 95 %
/// interval.
///
/// # Errors
/// When there is nothing to draw.
pub(super) fn energy(configurations: &[Configuration<'_>]) -> Result<Plot, PlotError> {
    let of = |configuration: &Configuration<'_>| {
        configuration.energy_values(&|entry| entry.derived.joules_per(entry.derived.frames))
    };
    let sources: BTreeSet<Option<String>> = configurations.iter().map(Configuration::energy_source).collect();
    let name = |configuration: &Configuration<'_>| {
        let name = shortened(&configuration.first().scenario().name);
        // With several energy sources on one axis, each label contains its source.
        match configuration.energy_source().filter(|_| sources.len() > 1) {
            Some(source) => format!("{name} ({source})"),
            None => name,
        }
    };
    let mut rows: Vec<(String, Vec<f64>)> =
        configurations.iter().map(|configuration| (name(configuration), of(configuration))).collect();
    rows.retain(|(_, values)| !values.is_empty());
    if rows.is_empty() {
        return Err("no configuration has the energy of its whole window and a frame count".to_owned());
    }
    if rows.len() > MAX_ROWS {
        return Err(format!("{} configurations are too many for a plot; see the table", rows.len()));
    }
    let (unit, scale) = energy_unit(rows.iter().flat_map(|(_, values)| values).copied().fold(0.0, f64::max));
    for value in rows.iter_mut().flat_map(|(_, values)| values) {
        *value *= scale;
    }
    let bounds = rows.iter().flat_map(|(_, values)| {
        let interval = Estimate::of(values).map(|estimate| [estimate.bounds().0, estimate.bounds().1]);
        values.iter().copied().chain(interval.into_iter().flatten())
    });
    let range = padded_range(bounds.chain([0.0])).ok_or("no configuration has energy and a frame count")?;
    let axis = Axis::linear(range.start.max(0.0)..range.end, 14.0..WIDTH - 24.0);
    Ok(energy_rows(&rows, &axis, unit))
}

/// Each row has its name above its values: next to them it would leave a phone no room.
fn energy_rows(rows: &[(String, Vec<f64>)], axis: &Axis, unit: &str) -> Plot {
    let count = f64::from(u32::try_from(rows.len()).unwrap_or(u32::MAX));
    let bottom = 42.0 * count + 8.0;
    let mut canvas = Canvas::new(bottom + BELOW);
    canvas.x_axis(axis, &(bottom..4.0), &format!("energy per frame ({unit})"));
    let mut description = format!("{} configurations.", rows.len());
    let mut y = 0.0;
    for (at, (name, values)) in rows.iter().enumerate() {
        y += 42.0;
        let middle = y - 8.0;
        canvas.text("start", (14.0, middle - 14.0), name);
        for value in values {
            canvas.dot(&format!("dot {}", Canvas::line_class(at)), (axis.at(*value), middle));
        }
        let Some(estimate) = Estimate::of(values) else { continue };
        if estimate.half_width.is_some() {
            let (low, high) = estimate.bounds();
            canvas.interval(&Canvas::line_class(at), axis.at(low.max(0.0)), axis.at(high), middle);
        }
        canvas.marker(at, (axis.at(estimate.mean), middle));
        let _ = write!(description, " {name}: {} {unit}.", with_half_width(estimate.mean, estimate.half_width));
    }
    Plot { canvas, description, legend: Vec::new() }
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= 48 { name.to_owned() } else { name.chars().take(47).chain(['…']).collect() }
}

/// The x axis of a quality plot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QualityAxis {
    /// Bit rate on a logarithmic scale.
    Rate,
    /// Joules per second of media.
    Energy,
}

impl QualityAxis {
    fn resource(self) -> Resource {
        if self == Self::Rate { Resource::Rate } else { Resource::Energy }
    }

    /// The values of the axis in the unit of the resource.
    fn scale(self) -> f64 {
        if self == Self::Rate { 1e-3 } else { 1.0 }
    }

    fn name(self) -> &'static str {
        if self == Self::Rate { "bit rate (kbit/s, logarithmic)" } else { "energy (J per second of media)" }
    }
}

/// A point of a curve: means over the repeats, in the units of the axes.
#[derive(Clone, Copy, Debug)]
struct CurvePoint {
    value: Estimate,
    score: Estimate,
    on_front: bool,
}

impl CurvePoint {
    /// Where the error bar starts. Always positive, because the axis may be logarithmic.
    fn bar_start(&self) -> f64 {
        self.value.bounds().0.max(self.value.mean / 10.0)
    }

    fn bar_end(&self) -> f64 {
        self.value.bounds().1
    }
}

/// A curve with its points in the order of the axis.
struct Line {
    name: String,
    /// Only curves that have this in common are compared: run, outputs and source file. `None`
    /// where the outputs are unknown.
    group: Option<(String, String, String)>,
    points: Vec<CurvePoint>,
}

impl Line {
    fn of(curve: &Curve<'_>, axis: QualityAxis) -> Self {
        let resource = axis.resource();
        let scaled = |value: Estimate| Estimate {
            mean: value.mean * axis.scale(),
            half_width: value.half_width.map(|half| half * axis.scale()),
            n: value.n,
        };
        let point = |configuration: &Configuration<'_>| {
            let values = if resource == Resource::Rate {
                configuration.values(&|entry| resource.of(entry))
            } else {
                configuration.energy_values(&|entry| resource.of(entry))
            };
            let value = Estimate::of(&values).filter(|value| value.mean > 0.0)?;
            let score = Estimate::of(&configuration.values(&|entry| Some(score(entry, &curve.quality)?.1)))?;
            Some(CurvePoint { value: scaled(value), score, on_front: false })
        };
        let mut points: Vec<CurvePoint> = curve.configurations.iter().filter_map(point).collect();
        points.sort_by(|a, b| a.value.mean.total_cmp(&b.value.mean));
        let group = (curve.run.to_owned(), curve.ladder.clone(), curve.content.to_owned());
        let group = curve.has_known_outputs().then_some(group);
        Self { name: format!("{} ({})", curve.label(), curve.ladder), group, points }
    }
}

/// Marks the points on the Pareto front of the two axes of the plot, among the curves of a group.
/// The front is that of [`pareto_front`], which all views use: a point is on it unless another is
/// better in one axis by more than the intervals, and worse in none.
fn mark_front(lines: &mut [Line]) {
    let mut groups: BTreeMap<(String, String, String), Vec<(usize, usize)>> = BTreeMap::new();
    for (number, line) in lines.iter().enumerate() {
        let Some(group) = line.group.clone() else { continue };
        let places = (0..line.points.len()).map(|at| (number, at));
        groups.entry(group).or_default().extend(places);
    }
    for places in groups.values() {
        let bounds = |(line, at): &(usize, usize)| {
            let point = &lines[*line].points[*at];
            let (low, high) = point.score.bounds();
            // Smaller is better.
            [point.value.bounds(), (-high, -low)]
        };
        let front = pareto_front(&places.iter().map(bounds).collect::<Vec<_>>());
        for ((line, at), on_front) in places.iter().zip(front) {
            lines[*line].points[*at].on_front = on_front;
        }
    }
}

/// Quality by bit rate or energy, one line per curve. Points on the Pareto front have a ring, and a
/// dashed line joins them.
///
/// # Errors
/// When there is nothing to draw.
pub(super) fn quality(curves: &[&Curve<'_>], axis: QualityAxis) -> Result<Plot, PlotError> {
    let mut lines: Vec<Line> = curves.iter().map(|curve| Line::of(curve, axis)).collect();
    mark_front(&mut lines);
    let points = || lines.iter().flat_map(|line| &line.points);
    let nothing = || "no configuration has both a score and this value".to_owned();
    let scores = padded_range(points().map(|point| point.score.mean)).ok_or_else(nothing)?;
    let metric = curves.first().map(|curve| curve.quality.clone()).unwrap_or_default();
    let ends = || points().flat_map(|point| [point.bar_start(), point.bar_end()]);
    let (low, high) = (ends().fold(f64::INFINITY, f64::min), ends().fold(0.0, f64::max));
    let energies = padded_range(ends()).ok_or_else(nothing)?;
    let x = |pixels| match axis {
        QualityAxis::Rate => Axis::logarithmic(low / 1.1..high * 1.1, pixels),
        QualityAxis::Energy => Axis::linear(energies.start.max(0.0)..energies.end, pixels),
    };
    if axis == QualityAxis::Rate && (low < 1e-6 || high > MAX_MAGNITUDE) {
        return Err("the bit rates are out of range".to_owned());
    }
    let (mut canvas, x, y) = with_axes(&x, scores, [axis.name(), &metric]);
    draw_fronts(&mut canvas, &lines, &x, &y);
    for (series, line) in lines.iter().enumerate() {
        let place = |point: &CurvePoint| (x.at(point.value.mean), y.at(point.score.mean));
        canvas.polyline(&Canvas::line_class(series), line.points.iter().map(place));
        for point in &line.points {
            let at = place(point);
            if point.value.half_width.is_some_and(|half| half > 0.0) {
                let (low, high) = (x.at(point.bar_start()), x.at(point.bar_end()));
                canvas.interval(&Canvas::line_class(series), low, high, at.1);
            }
            canvas.marker(series, at);
            if point.on_front {
                canvas.ring(at);
            }
        }
    }
    let description = curve_description(&lines, axis);
    let names = lines.into_iter().enumerate().filter(|(_, line)| !line.points.is_empty());
    Ok(Plot { canvas, description, legend: names.map(|(series, line)| (series, line.name)).collect() })
}

/// Joins the points of each front.
fn draw_fronts(canvas: &mut Canvas, lines: &[Line], x: &Axis, y: &Axis) {
    let mut fronts: BTreeMap<&(String, String, String), Vec<&CurvePoint>> = BTreeMap::new();
    for line in lines {
        let Some(group) = &line.group else { continue };
        fronts.entry(group).or_default().extend(line.points.iter().filter(|point| point.on_front));
    }
    for mut front in fronts.into_values().filter(|front| front.len() > 1) {
        front.sort_by(|a, b| a.value.mean.total_cmp(&b.value.mean));
        canvas.polyline("front", front.iter().map(|point| (x.at(point.value.mean), y.at(point.score.mean))));
    }
}

/// The curves in words.
fn curve_description(lines: &[Line], axis: QualityAxis) -> String {
    let mut text = format!("{} curves.", lines.len());
    for line in lines.iter().take(MAX_NAMES) {
        let (Some(first), Some(last)) = (line.points.first(), line.points.last()) else { continue };
        let on_front = line.points.iter().filter(|point| point.on_front).count();
        let _ = write!(
            text,
            " {}: score {} at {} to {} at {}, {}; {on_front} of {} points on the Pareto front.",
            line.name,
            cli::number::score(first.score.mean),
            short(first.value.mean),
            cli::number::score(last.score.mean),
            short(last.value.mean),
            axis.name(),
            line.points.len()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(value: f64, half: f64, score: f64) -> CurvePoint {
        let estimate = |mean, half| Estimate { mean, half_width: Some(half), n: 3 };
        CurvePoint { value: estimate(value, half), score: estimate(score, 0.0), on_front: false }
    }

    #[test]
    fn an_error_bar_starts_above_zero() {
        assert!((point(10.0, 20.0, 0.0).bar_start() - 1.0).abs() < 1e-12);
    }

    /// Rings were those of rate, energy and quality together, so that a plot of two of them showed
    /// dominated points with a ring.
    #[test]
    fn the_front_is_that_of_the_axes_of_the_plot() {
        let line = |content: &str, points: Vec<CurvePoint>| Line {
            name: String::new(),
            group: Some(("r".to_owned(), "l".to_owned(), content.to_owned())),
            points,
        };
        let mut lines = [
            line("a", vec![point(1.0, 0.0, 80.0), point(3.0, 0.0, 90.0)]),
            line("a", vec![point(2.0, 0.0, 95.0)]),
            line("another source", vec![point(9.0, 0.0, 70.0)]),
        ];
        mark_front(&mut lines);
        let marks: Vec<Vec<bool>> =
            lines.iter().map(|line| line.points.iter().map(|point| point.on_front).collect()).collect();
        assert_eq!(marks, [vec![true, false], vec![true], vec![true]]);
    }

    #[test]
    fn energy_has_a_unit_by_its_size() {
        assert_eq!([energy_unit(2.0).0, energy_unit(0.5).0, energy_unit(1e-6).0], ["J", "mJ", "µJ"]);
    }
}
