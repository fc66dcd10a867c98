//! Plots as SVG: power over time, joules with their intervals, and quality against what it costs. What is drawn is what the model has; nothing is smoothed.

use std::collections::{BTreeMap, BTreeSet};

use plotters::{
    coord::ranged1d::ValueFormatter,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    cells::Cell,
    compare::{
        curves::{Curve, Price, score},
        short,
    },
    figures::Model,
    statistics::{inference::Interval, mean},
};

/// Colours that people tell apart who see red and green as one (Okabe and Ito 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(60, 60, 60),
];
const WIDTH: u32 = 860;
const FONT: &str = "sans-serif";

/// Why there is no plot.
pub(super) type Nothing = String;

fn colour(at: usize) -> RGBColor {
    COLOURS[at % COLOURS.len()]
}

/// Beyond it nothing is drawn.
const LARGEST: f64 = 1e15;
/// Most configurations of a plot of them.
const MOST_ROWS: usize = 200;
/// Most points of a plot: what a screen can tell apart, and some more.
const MOST_POINTS: usize = 4000;

/// Room around values; some, where all are one.
fn span(values: impl Iterator<Item = f64>) -> Option<std::ops::Range<f64>> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for value in values.filter(|value| value.is_finite()) {
        (low, high) = (low.min(value), high.max(value));
    }
    // What a result file of others may hold, and no axis can.
    if low > high || low < -LARGEST || high > LARGEST {
        return None;
    }
    let room = if high > low { (high - low) * 0.08 } else { high.abs().max(1.0) * 0.1 };
    Some(low - room..high + room)
}

fn failed(error: impl std::fmt::Display) -> Nothing {
    format!("it cannot be drawn: {error}")
}

/// Watts of the host over the seconds of the run, each repeat a line of its own, with the configuration's colour.
///
/// # Errors
/// When there is nothing to draw.
pub(super) fn power(model: &Model, cells: &[Cell<'_>]) -> Result<String, Nothing> {
    let start = model.entries.iter().filter_map(|entry| entry.scenario().start).fold(f64::INFINITY, f64::min);
    let mut lines: Vec<(usize, Vec<(f64, f64)>)> = Vec::new();
    for (at, cell) in cells.iter().enumerate() {
        for entry in &cell.entries {
            let samples = &entry.scenario().samples;
            let (Some(begin), Some(step)) = (entry.scenario().start, samples.step) else { continue };
            let moments = std::iter::successors(Some(begin - start + step), |moment| Some(moment + step));
            // A watt and no joule: what is not a number is not drawn.
            let all =
                moments.zip(samples.watts.iter().copied()).filter(|(at, watts)| at.is_finite() && watts.is_finite());
            let points: Vec<(f64, f64)> =
                all.step_by(samples.watts.len() * model.entries.len() / MOST_POINTS + 1).collect();
            if !points.is_empty() {
                lines.push((at, points));
            }
        }
    }
    let points = || lines.iter().flat_map(|(_, points)| points);
    let nothing = || "the windows are shorter than a second, or the runner's samples are not in the file".to_owned();
    let (x, y) = (
        span(points().map(|point| point.0)).ok_or_else(nothing)?,
        span(points().map(|point| point.1).chain([0.0])).ok_or_else(nothing)?,
    );
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, 300)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(52)
            .build_cartesian_2d(x, y.start.max(0.0)..y.end)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("seconds since the first window")
            .y_desc("W, host")
            .light_line_style(WHITE)
            .draw()
            .map_err(failed)?;
        for (at, points) in &lines {
            let style = colour(*at).stroke_width(2);
            chart.draw_series(LineSeries::new(points.iter().copied(), style).point_size(2)).map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(text)
}

/// Joules for a frame of every configuration: each repeat a small dot, the mean with its 95 % interval.
///
/// # Errors
/// When there is nothing to draw.
pub(super) fn energy(cells: &[Cell<'_>]) -> Result<String, Nothing> {
    let of = |cell: &Cell<'_>| cell.of_energy(&|entry| Some(entry.figures.joules_per(entry.figures.frames)? * 1000.0));
    let sources: BTreeSet<Option<String>> = cells.iter().map(Cell::source).collect();
    let name = |cell: &Cell<'_>| {
        let name = shortened(&cell.first().scenario().name);
        // Joules of several kinds on one axis say which is which.
        match cell.source().filter(|_| sources.len() > 1) {
            Some(source) => format!("{name} ({source})"),
            None => name,
        }
    };
    let rows: Vec<(String, Vec<f64>)> = cells.iter().map(|cell| (name(cell), of(cell))).collect();
    let rows: Vec<(String, Vec<f64>)> = rows.into_iter().filter(|(_, values)| !values.is_empty()).collect();
    if rows.is_empty() {
        return Err("no configuration has joules of its whole window, and frames".to_owned());
    }
    if rows.len() > MOST_ROWS {
        return Err(format!("{} configurations are more than a picture can tell; see the table", rows.len()));
    }
    let ends = rows.iter().flat_map(|(_, values)| {
        let interval = Interval::of(values).map(|interval| [interval.ends().0, interval.ends().1]);
        values.iter().copied().chain(interval.into_iter().flatten())
    });
    let x = span(ends.chain([0.0])).ok_or("no configuration has joules and frames")?;
    let count = i32::try_from(rows.len()).map_err(failed)?;
    let height = 70 + 22 * u32::try_from(rows.len()).unwrap_or(1);
    let names: Vec<&String> = rows.iter().map(|(name, _)| name).collect();
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(330)
            .build_cartesian_2d(x.start.max(0.0)..x.end, -0.5..f64::from(count) - 0.5)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("mJ for a frame")
            .disable_y_mesh()
            .disable_y_axis()
            .y_labels(0)
            .light_line_style(WHITE)
            .draw()
            .map_err(failed)?;
        let style = TextStyle::from((FONT, 13).into_font()).pos(Pos::new(HPos::Right, VPos::Center));
        for (at, (name, values)) in names.iter().zip(rows.iter().map(|(_, values)| values)).enumerate() {
            // The first is on top.
            let y = f64::from(count) - 1.0 - f64::from(u32::try_from(at).unwrap_or(0));
            let (left, middle) = chart.backend_coord(&(x.start.max(0.0), y));
            area.draw(&Text::new((*name).clone(), (left - 8, middle), style.clone())).map_err(failed)?;
            let ink = colour(at);
            chart
                .draw_series(values.iter().map(|value| Circle::new((*value, y), 2, ink.mix(0.45).filled())))
                .map_err(failed)?;
            if let Some(interval) = Interval::of(values) {
                let (low, high) = interval.ends();
                chart
                    .draw_series([ErrorBar::new_horizontal(
                        y,
                        low.max(0.0),
                        interval.mean,
                        high,
                        ink.stroke_width(2).filled(),
                        8,
                    )])
                    .map_err(failed)?;
            }
            if let Some(mean) = mean(values) {
                chart.draw_series([Circle::new((mean, y), 4, ink.filled())]).map_err(failed)?;
            }
        }
        area.present().map_err(failed)?;
    }
    Ok(text)
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= 48 { name.to_owned() } else { name.chars().take(47).chain(['…']).collect() }
}

/// What a plot of quality has on its other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Against {
    /// The rate, in its logarithm.
    Rate,
    /// Joules for a second of media.
    Energy,
}

/// Quality against bits or joules, a line for each curve. Points of the front are ringed.
///
/// # Errors
/// When there is nothing to draw.
pub(super) fn quality(curves: &[Curve<'_>], against: Against, front: &[bool]) -> Result<String, Nothing> {
    let price = if against == Against::Rate { Price::Rate } else { Price::Energy };
    let mut lines: Vec<(String, Vec<Spot>)> = Vec::new();
    let mut number = 0;
    for curve in curves {
        let mut points = Vec::new();
        for cell in &curve.cells {
            let values = if price == Price::Rate {
                cell.values(&|entry| price.of(entry))
            } else {
                cell.of_energy(&|entry| price.of(entry))
            };
            let score = mean(&cell.values(&|entry| Some(score(entry, &curve.quality)?.1)));
            let ringed = front.get(number).copied().unwrap_or(false);
            number += 1;
            if let Some((value, score)) = mean(&values).filter(|value| *value > 0.0).zip(score) {
                let scale = if against == Against::Rate { 1e-3 } else { 1.0 };
                let half = Interval::of(&values).map_or(0.0, |interval| interval.half);
                let half = if half.is_finite() { half } else { 0.0 };
                points.push((value * scale, score, half * scale, ringed));
            }
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        lines.push((format!("{} ({})", curve.label(), curve.ladder), points));
    }
    let points = || lines.iter().flat_map(|(_, points)| points);
    let nothing = || "no configuration has both a score and that price".to_owned();
    let y = span(points().map(|point| point.1)).ok_or_else(nothing)?;
    let measure = curves.first().map(|curve| curve.quality.clone()).unwrap_or_default();
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, 380)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut builder = ChartBuilder::on(&area);
        builder.margin(12).x_label_area_size(36).y_label_area_size(52);
        match against {
            Against::Rate => {
                let low = points().map(least).fold(f64::INFINITY, f64::min) / 1.25;
                let high = points().map(|point| point.0 + point.2).fold(0.0, f64::max) * 1.25;
                if low < 1e-6 || high > LARGEST {
                    return Err("rates that no axis holds".to_owned());
                }
                let chart = builder.build_cartesian_2d((low..high).log_scale(), y).map_err(failed)?;
                draw(chart, &lines, "kbit/s, logarithmic", &measure)?;
            }
            Against::Energy => {
                let x = span(points().flat_map(|point| [least(point), point.0 + point.2])).ok_or_else(nothing)?;
                let chart = builder.build_cartesian_2d(x.start.max(0.0)..x.end, y).map_err(failed)?;
                draw(chart, &lines, "joules for a second of media", &measure)?;
            }
        }
        area.present().map_err(failed)?;
    }
    Ok(text)
}

/// A price, a score, half the price's interval, and whether it is ringed.
type Spot = (f64, f64, f64, bool);
/// Where the bar of a point begins: never at or below nothing, which no logarithm has.
fn least(spot: &Spot) -> f64 {
    (spot.0 - spot.2).max(spot.0 / 10.0)
}

type Lines = [(String, Vec<Spot>)];

fn draw<'a, X>(
    mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, plotters::coord::types::RangedCoordf64>>,
    lines: &Lines,
    x: &str,
    y: &str,
) -> Result<(), Nothing>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64> + 'a,
{
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(&|value| short(*value).trim_end_matches('0').trim_end_matches('.').to_owned())
        .light_line_style(WHITE)
        .draw()
        .map_err(failed)?;
    for (at, (name, points)) in lines.iter().enumerate() {
        let ink = colour(at);
        chart
            .draw_series(LineSeries::new(points.iter().map(|point| (point.0, point.1)), ink.stroke_width(2)))
            .map_err(failed)?
            .label(name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], ink.stroke_width(2)));
        let bars = points.iter().filter(|point| point.2 > 0.0);
        let bars = bars
            .map(|point| ErrorBar::new_horizontal(point.1, least(point), point.0, point.0 + point.2, ink.filled(), 6));
        chart.draw_series(bars).map_err(failed)?;
        chart
            .draw_series(points.iter().map(|point| Circle::new((point.0, point.1), 3, ink.filled())))
            .map_err(failed)?;
        let ringed = points.iter().filter(|point| point.3);
        chart
            .draw_series(ringed.map(|point| Circle::new((point.0, point.1), 7, ink.stroke_width(2))))
            .map_err(failed)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.2))
        .draw()
        .map_err(failed)
}

/// Which points of all curves, in their order, no other beats. One beats another that is better in rate, joules or quality and worse in none of them, where better and worse
/// are differences by more than the intervals: what is within them is noise. Joules of two kinds, scores of two models and two sources are never held against each other. A
/// point of a single repeat has no interval, and is taken as it is.
#[must_use]
pub(super) fn front(curves: &[Curve<'_>]) -> Vec<bool> {
    // Low and high of what is to be small.
    type Box3 = [(f64, f64); 3];
    let ends = |values: Vec<f64>| -> Option<(f64, f64)> {
        let mean = mean(&values)?;
        Some(Interval::of(&values).map_or((mean, mean), |interval| interval.ends()))
    };
    type Placed = (usize, Option<Box3>);
    let mut groups: BTreeMap<[&str; 4], Vec<Placed>> = BTreeMap::new();
    let mut count = 0;
    for curve in curves {
        for cell in &curve.cells {
            let score = ends(cell.values(&|entry| Some(-score(entry, &curve.quality)?.1)));
            let rate = ends(cell.values(&|entry| Price::Rate.of(entry)));
            let joules = ends(cell.of_energy(&|entry| Price::Energy.of(entry)));
            let point = rate.zip(joules).zip(score).map(|((rate, joules), score)| [rate, joules, score]);
            let group = [&*curve.ladder, &curve.quality, &curve.source, curve.content];
            groups.entry(group).or_default().push((count, point));
            count += 1;
        }
    }
    let mut on = vec![false; count];
    for group in groups.values() {
        for (at, point) in group {
            let Some(point) = point else { continue };
            let beats = |other: &Box3| {
                let worse = other.iter().zip(point).any(|(other, own)| other.0 > own.1);
                !worse && other.iter().zip(point).any(|(other, own)| other.1 < own.0)
            };
            on[*at] = !group.iter().any(|(with, other)| with != at && other.as_ref().is_some_and(beats));
        }
    }
    on
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_file_may_hold_is_drawn_for_ever() {
        assert_eq!(span([1.7e308, 0.0].into_iter()), None);
        assert_eq!(span([f64::NAN].into_iter()), None);
        assert!(span([3.0].into_iter()).is_some_and(|range| range.start < 3.0 && range.end > 3.0));
        assert_eq!(least(&(10.0, 0.0, 20.0, false)), 1.0);
    }
}
