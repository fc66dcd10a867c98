//! Plots as SVG: power over time, energy per configuration with intervals, and quality by bit rate
//! or energy. Values are drawn as they are, without smoothing.

use std::collections::BTreeSet;

use plotters::{
    coord::ranged1d::ValueFormatter,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::compare::curves::{Curve, Resource};
use cli::number::short;
use results::{
    estimate::Estimate,
    figures::{pareto_front, score},
    model::Model,
    repeats::Configuration,
};

/// Palette that is distinguishable with red-green colour blindness (Okabe and Ito 2008).
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

/// Why a plot cannot be drawn.
pub(super) type PlotError = String;

fn colour(at: usize) -> RGBColor {
    COLOURS[at % COLOURS.len()]
}

/// Largest magnitude that is plotted.
const MAX_MAGNITUDE: f64 = 1e15;
/// Most configurations in an energy plot.
const MAX_ROWS: usize = 200;
/// Most points in a power plot: about what a screen can show.
const MAX_POINTS: usize = 4000;

/// The range of the values with a margin. `None` without finite values, or when one exceeds
/// [`MAX_MAGNITUDE`].
fn padded_range(values: impl Iterator<Item = f64>) -> Option<std::ops::Range<f64>> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for value in values.filter(|value| value.is_finite()) {
        (low, high) = (low.min(value), high.max(value));
    }
    // Result files from other tools may contain values that no axis can show.
    if low > high || low < -MAX_MAGNITUDE || high > MAX_MAGNITUDE {
        return None;
    }
    let margin = if high > low { (high - low) * 0.08 } else { high.abs().max(1.0) * 0.1 };
    Some(low - margin..high + margin)
}

fn failed(error: impl std::fmt::Display) -> PlotError {
    format!("cannot draw: {error}")
}

/// Power of the host over the duration of the run. Each repeat is a line in its configuration's
/// colour.
///
/// # Errors
/// When there is nothing to draw.
pub(super) fn power(model: &Model, configurations: &[Configuration<'_>]) -> Result<String, PlotError> {
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
    let (x, y) = (
        padded_range(points().map(|point| point.0)).ok_or_else(nothing)?,
        padded_range(points().map(|point| point.1).chain([0.0])).ok_or_else(nothing)?,
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
            .y_desc("power of the host (W)")
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

/// Energy per frame of each configuration: a small dot per repeat, and the mean with its 95 %
/// interval.
///
/// # Errors
/// When there is nothing to draw.
pub(super) fn energy(configurations: &[Configuration<'_>]) -> Result<String, PlotError> {
    let of = |configuration: &Configuration<'_>| {
        configuration.energy_values(&|entry| Some(entry.derived.joules_per(entry.derived.frames)? * 1000.0))
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
    let rows: Vec<(String, Vec<f64>)> =
        configurations.iter().map(|configuration| (name(configuration), of(configuration))).collect();
    let rows: Vec<(String, Vec<f64>)> = rows.into_iter().filter(|(_, values)| !values.is_empty()).collect();
    if rows.is_empty() {
        return Err("no configuration has the energy of its whole window and a frame count".to_owned());
    }
    if rows.len() > MAX_ROWS {
        return Err(format!("{} configurations are too many for a plot; see the table", rows.len()));
    }
    let bounds = rows.iter().flat_map(|(_, values)| {
        let interval = Estimate::of(values).map(|estimate| [estimate.bounds().0, estimate.bounds().1]);
        values.iter().copied().chain(interval.into_iter().flatten())
    });
    let x = padded_range(bounds.chain([0.0])).ok_or("no configuration has energy and a frame count")?;
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
            .x_desc("energy per frame (mJ)")
            .disable_y_mesh()
            .disable_y_axis()
            .y_labels(0)
            .light_line_style(WHITE)
            .draw()
            .map_err(failed)?;
        let style = TextStyle::from((FONT, 13).into_font()).pos(Pos::new(HPos::Right, VPos::Center));
        for (at, (name, values)) in names.iter().zip(rows.iter().map(|(_, values)| values)).enumerate() {
            // The first configuration is at the top.
            let y = f64::from(count) - 1.0 - f64::from(u32::try_from(at).unwrap_or(0));
            let (left, middle) = chart.backend_coord(&(x.start.max(0.0), y));
            area.draw(&Text::new((*name).clone(), (left - 8, middle), style.clone())).map_err(failed)?;
            let ink = colour(at);
            chart
                .draw_series(values.iter().map(|value| Circle::new((*value, y), 2, ink.mix(0.45).filled())))
                .map_err(failed)?;
            let Some(estimate) = Estimate::of(values) else { continue };
            if estimate.half_width.is_some() {
                let (low, high) = estimate.bounds();
                let style = ink.stroke_width(2).filled();
                chart
                    .draw_series([ErrorBar::new_horizontal(y, low.max(0.0), estimate.mean, high, style, 8)])
                    .map_err(failed)?;
            }
            chart.draw_series([Circle::new((estimate.mean, y), 4, ink.filled())]).map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(text)
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

/// Quality by bit rate or energy, one line per curve. Points on the Pareto front are marked with a
/// ring.
///
/// # Errors
/// When there is nothing to draw.
pub(super) fn quality(curves: &[Curve<'_>], axis: QualityAxis, front: &[bool]) -> Result<String, PlotError> {
    let resource = if axis == QualityAxis::Rate { Resource::Rate } else { Resource::Energy };
    let mut lines: Vec<(String, Vec<CurvePoint>)> = Vec::new();
    let mut number = 0;
    for curve in curves {
        let mut points = Vec::new();
        for configuration in &curve.configurations {
            let values = if resource == Resource::Rate {
                configuration.values(&|entry| resource.of(entry))
            } else {
                configuration.energy_values(&|entry| resource.of(entry))
            };
            let score = Estimate::of(&configuration.values(&|entry| Some(score(entry, &curve.quality)?.1)));
            let on_front = front.get(number).copied().unwrap_or(false);
            number += 1;
            if let Some((value, score)) = Estimate::of(&values).filter(|value| value.mean > 0.0).zip(score) {
                let scale = if axis == QualityAxis::Rate { 1e-3 } else { 1.0 };
                let half_width = value.half_width.unwrap_or_default();
                points.push((value.mean * scale, score.mean, half_width * scale, on_front));
            }
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        lines.push((format!("{} ({})", curve.label(), curve.ladder), points));
    }
    let points = || lines.iter().flat_map(|(_, points)| points);
    let nothing = || "no configuration has both a score and this value".to_owned();
    let y = padded_range(points().map(|point| point.1)).ok_or_else(nothing)?;
    let metric = curves.first().map(|curve| curve.quality.clone()).unwrap_or_default();
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, 380)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut builder = ChartBuilder::on(&area);
        builder.margin(12).x_label_area_size(36).y_label_area_size(52);
        match axis {
            QualityAxis::Rate => {
                let low = points().map(bar_start).fold(f64::INFINITY, f64::min) / 1.25;
                let high = points().map(|point| point.0 + point.2).fold(0.0, f64::max) * 1.25;
                if low < 1e-6 || high > MAX_MAGNITUDE {
                    return Err("the bit rates are out of range".to_owned());
                }
                let chart = builder.build_cartesian_2d((low..high).log_scale(), y).map_err(failed)?;
                draw(chart, &lines, "kbit/s, logarithmic", &metric)?;
            }
            QualityAxis::Energy => {
                let ends = points().flat_map(|point| [bar_start(point), point.0 + point.2]);
                let x = padded_range(ends).ok_or_else(nothing)?;
                let chart = builder.build_cartesian_2d(x.start.max(0.0)..x.end, y).map_err(failed)?;
                draw(chart, &lines, "joules per second of media", &metric)?;
            }
        }
        area.present().map_err(failed)?;
    }
    Ok(text)
}

/// Value on the x axis, score, half the width of the value's interval, and whether the point is on
/// the Pareto front.
type CurvePoint = (f64, f64, f64, bool);

/// Where the error bar of a point starts. Always positive, because the axis may be logarithmic.
fn bar_start(point: &CurvePoint) -> f64 {
    (point.0 - point.2).max(point.0 / 10.0)
}

type Lines = [(String, Vec<CurvePoint>)];

fn draw<'a, X>(
    mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, plotters::coord::types::RangedCoordf64>>,
    lines: &Lines,
    x: &str,
    y: &str,
) -> Result<(), PlotError>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64> + 'a,
{
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(&|value| short(*value))
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
        let bars = bars.map(|point| {
            ErrorBar::new_horizontal(point.1, bar_start(point), point.0, point.0 + point.2, ink.filled(), 6)
        });
        chart.draw_series(bars).map_err(failed)?;
        chart
            .draw_series(points.iter().map(|point| Circle::new((point.0, point.1), 3, ink.filled())))
            .map_err(failed)?;
        let on_front = points.iter().filter(|point| point.3);
        chart
            .draw_series(on_front.map(|point| Circle::new((point.0, point.1), 7, ink.stroke_width(2))))
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

/// Whether each configuration of the curves, in their order, is on the Pareto front.
#[must_use]
pub(super) fn front(curves: &[Curve<'_>]) -> Vec<bool> {
    let configurations: Vec<&Configuration<'_>> = curves.iter().flat_map(|curve| &curve.configurations).collect();
    pareto_front(&configurations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extreme_and_invalid_values_have_no_range() {
        assert_eq!(padded_range([1.7e308, 0.0].into_iter()), None);
        assert_eq!(padded_range([f64::NAN].into_iter()), None);
        assert!(padded_range([3.0].into_iter()).is_some_and(|range| range.start < 3.0 && range.end > 3.0));
        assert_eq!(bar_start(&(10.0, 0.0, 20.0, false)), 1.0);
    }
}
