//! Elements of plots as SVG: axes with ticks, markers, lines. Colours are classes of the page's
//! style sheet, so that a plot follows its light or dark scheme. Attributes contain no styles.

use std::{fmt::Write as _, ops::Range};

use cli::number::on_axis;
use http::index_page::escape as escaped;

/// Width of all plots in units of their own. On a phone, a unit is about 0.7 pixels.
pub(super) const WIDTH: f64 = 480.0;
/// Number of colours in the style sheet.
const COLOURS: usize = 7;
/// Number of shapes of markers.
const SHAPES: usize = 4;
/// Largest magnitude that is plotted.
pub(super) const MAX_MAGNITUDE: f64 = 1e15;
/// Smallest difference of values that is plotted.
const SMALLEST_RANGE: f64 = 1e-9;

/// The range of the values with a margin. `None` without finite values, or when one exceeds
/// [`MAX_MAGNITUDE`].
pub(super) fn padded_range(values: impl Iterator<Item = f64>) -> Option<Range<f64>> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for value in values.filter(|value| value.is_finite()) {
        (low, high) = (low.min(value), high.max(value));
    }
    // Result files from other tools may contain values that no axis can show.
    if low > high || low < -MAX_MAGNITUDE || high > MAX_MAGNITUDE {
        return None;
    }
    let is_wide = high - low > SMALLEST_RANGE.max(1e-12 * high.abs());
    let margin = if is_wide { (high - low) * 0.08 } else { high.abs().max(1.0) * 0.1 };
    Some(low - margin..high + margin)
}

/// An axis: what it shows and where.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    range: Range<f64>,
    pixels: Range<f64>,
    is_logarithmic: bool,
}

impl Axis {
    /// An axis from `pixels.start` for the start of the range to `pixels.end` for its end.
    pub(super) fn linear(range: Range<f64>, pixels: Range<f64>) -> Self {
        Self { range, pixels, is_logarithmic: false }
    }

    /// A logarithmic axis; the range is positive.
    pub(super) fn logarithmic(range: Range<f64>, pixels: Range<f64>) -> Self {
        Self { range, pixels, is_logarithmic: true }
    }

    /// The place of a value.
    pub(super) fn at(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.is_logarithmic { value.max(f64::MIN_POSITIVE).log10() } else { value };
        let (low, high) = (scale(self.range.start), scale(self.range.end));
        self.pixels.start + (scale(value) - low) / (high - low) * (self.pixels.end - self.pixels.start)
    }

    /// Values and texts of about so many ticks.
    pub(super) fn ticks(&self, count: f64) -> Vec<(f64, String)> {
        if self.is_logarithmic {
            let ticks = decade_ticks(&self.range);
            // Inside one decade there may be none of them.
            if ticks.len() >= 3 {
                return ticks.into_iter().map(|value| (value, on_axis(value, value))).collect();
            }
        }
        let step = step(&self.range, count);
        linear_ticks(&self.range, step).into_iter().map(|value| (value, on_axis(value, step))).collect()
    }
}

/// A step of 1, 2 or 5 times a power of ten that divides the range into about `count` parts.
fn step(range: &Range<f64>, count: f64) -> f64 {
    let rough = ((range.end - range.start) / count).max(f64::MIN_POSITIVE);
    let decade = 10_f64.powf(rough.log10().floor());
    let part = rough / decade;
    decade * [1.0, 2.0, 5.0].into_iter().find(|factor| part <= *factor).unwrap_or(10.0)
}

/// The multiples of `step` in the range.
fn linear_ticks(range: &Range<f64>, step: f64) -> Vec<f64> {
    let first = (range.start / step).ceil();
    let numbers = (0_u32..50).map(|number| first + f64::from(number));
    // Adding zero removes the sign of a negative zero.
    numbers.map(|number| number * step + 0.0).take_while(|value| *value <= range.end).collect()
}

/// The values 1, 2 and 5 times a power of ten in the range; fewer of them in a wide one.
fn decade_ticks(range: &Range<f64>) -> Vec<f64> {
    let decades = (range.end / range.start).log10();
    let factors: &[f64] = match decades {
        decades if decades > 3.0 => &[1.0],
        decades if decades > 1.7 => &[1.0, 5.0],
        _ => &[1.0, 2.0, 5.0],
    };
    let first = range.start.log10().floor();
    let values = (0_u32..40).flat_map(|decade| {
        let power = 10_f64.powf(first + f64::from(decade));
        factors.iter().map(move |factor| factor * power)
    });
    values.skip_while(|value| *value < range.start).take_while(|value| *value <= range.end).collect()
}

/// A plot that is being drawn.
#[derive(Clone, Debug)]
pub(super) struct Canvas {
    height: f64,
    body: String,
}

impl Canvas {
    /// An empty plot.
    pub(super) fn new(height: f64) -> Self {
        Self { height, body: String::new() }
    }

    /// Draws the grid, the ticks and the names of both axes.
    pub(super) fn axes(&mut self, x: &Axis, y: &Axis, x_name: &str, y_name: &str) {
        self.x_axis(x, &y.pixels, x_name);
        let (left, right) = (x.pixels.start, x.pixels.end);
        for (value, text) in y.ticks(5.0) {
            let at = y.at(value);
            self.line("grid", (left, at), (right, at));
            self.text("end", (left - 6.0, at + 5.0), &text);
        }
        self.line("axis", (left, y.pixels.start), (left, y.pixels.end));
        self.text("start", (4.0, 16.0), y_name);
    }

    /// Draws the vertical grid, the ticks below it and the name of the horizontal axis.
    pub(super) fn x_axis(&mut self, x: &Axis, pixels: &Range<f64>, name: &str) {
        let (bottom, top) = (pixels.start, pixels.end);
        // A text of five digits has room between the ticks.
        for (value, text) in x.ticks(5.0) {
            let at = x.at(value);
            self.line("grid", (at, bottom), (at, top));
            self.text("middle", (at, bottom + 18.0), &text);
        }
        self.line("axis", (x.pixels.start, bottom), (x.pixels.end, bottom));
        self.text("middle", (f64::midpoint(x.pixels.start, x.pixels.end), bottom + 38.0), name);
    }

    /// A straight line of a class.
    pub(super) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let _ = write!(
            self.body,
            "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    /// A line through points.
    pub(super) fn polyline(&mut self, class: &str, points: impl Iterator<Item = (f64, f64)>) {
        let _ = write!(self.body, "<polyline class=\"{class}\" points=\"");
        for (x, y) in points {
            let _ = write!(self.body, "{x:.1},{y:.1} ");
        }
        self.body.push_str("\"/>");
    }

    /// Text with its anchor `start`, `middle` or `end` at a place.
    pub(super) fn text(&mut self, anchor: &str, at: (f64, f64), text: &str) {
        let _ = write!(
            self.body,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            at.0,
            at.1,
            escaped(text)
        );
    }

    /// An interval with ends, around a place.
    pub(super) fn interval(&mut self, class: &str, low: f64, high: f64, y: f64) {
        self.line(class, (low, y), (high, y));
        self.line(class, (low, y - 4.0), (low, y + 4.0));
        self.line(class, (high, y - 4.0), (high, y + 4.0));
    }

    /// A small dot.
    pub(super) fn dot(&mut self, class: &str, at: (f64, f64)) {
        let _ = write!(self.body, "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2\"/>", at.0, at.1);
    }

    /// A ring around a marker.
    pub(super) fn ring(&mut self, at: (f64, f64)) {
        let _ = write!(self.body, "<circle class=\"ring\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"9\"/>", at.0, at.1);
    }

    /// The marker of a series: series with the same colour differ in shape.
    pub(super) fn marker(&mut self, series: usize, at: (f64, f64)) {
        let (class, (x, y)) = (format!("mark s{}", series % COLOURS), at);
        let points = match series % SHAPES {
            0 => {
                let _ = write!(self.body, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>");
                return;
            }
            1 => [(-4.0, -4.0), (4.0, -4.0), (4.0, 4.0), (-4.0, 4.0)],
            2 => [(0.0, -5.0), (5.0, 4.0), (0.0, 4.0), (-5.0, 4.0)],
            _ => [(0.0, -5.5), (5.5, 0.0), (0.0, 5.5), (-5.5, 0.0)],
        };
        let _ = write!(self.body, "<polygon class=\"{class}\" points=\"");
        for (dx, dy) in points {
            let _ = write!(self.body, "{:.1},{:.1} ", x + dx, y + dy);
        }
        self.body.push_str("\"/>");
    }

    /// The class of a series's line.
    pub(super) fn line_class(series: usize) -> String {
        format!("line s{}", series % COLOURS)
    }

    /// The class of a series in the legend.
    pub(super) fn legend_class(series: usize) -> String {
        format!("s{} m{}", series % COLOURS, series % SHAPES)
    }

    /// The complete element. `number` makes the ids of its texts unique in the page.
    pub(super) fn svg(&self, number: usize, title: &str, description: &str) -> String {
        format!(
            "<svg role=\"img\" aria-labelledby=\"plot{number}-title plot{number}-desc\" viewBox=\"0 0 {WIDTH:.0} {:.0}\">\
             <title id=\"plot{number}-title\">{}</title><desc id=\"plot{number}-desc\">{}</desc>{}</svg>",
            self.height,
            escaped(title),
            escaped(description),
            self.body
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extreme_and_invalid_values_have_no_range() {
        assert_eq!(padded_range([1.7e308, 0.0].into_iter()), None);
        assert_eq!(padded_range([f64::NAN].into_iter()), None);
        assert!(padded_range([3.0].into_iter()).is_some_and(|range| range.start < 3.0 && range.end > 3.0));
    }

    fn texts(axis: &Axis) -> Vec<String> {
        axis.ticks(5.0).into_iter().map(|(_, text)| text).collect()
    }

    /// A logarithmic axis inside one decade had no ticks.
    #[test]
    fn every_axis_has_ticks() {
        let logarithmic = |range| texts(&Axis::logarithmic(range, 0.0..100.0));
        assert_eq!(logarithmic(300.0..2100.0), ["500", "1000", "2000"]);
        assert_eq!(logarithmic(345.0..365.0), ["345", "350", "355", "360", "365"]);
        assert_eq!(logarithmic(0.5..2.0e6), ["1", "10", "100", "1000", "10,000", "100,000", "1,000,000"]);
        assert_eq!(texts(&Axis::linear(-0.1..1.0, 0.0..100.0)), ["0.0", "0.5", "1.0"]);
        let mut low = 1e-6;
        while low < 1e9 {
            for factor in [1.0001, 1.01, 1.5, 3.0, 9.0, 50.0, 1e4] {
                let range = low..low * factor;
                for axis in [Axis::linear(range.clone(), 0.0..100.0), Axis::logarithmic(range.clone(), 0.0..100.0)] {
                    let texts = texts(&axis);
                    assert!((2..=14).contains(&texts.len()), "{axis:?}: {texts:?}");
                    assert!(texts.windows(2).all(|pair| pair[0] != pair[1]), "{axis:?}: {texts:?}");
                }
            }
            low *= 1.7;
        }
    }

    #[test]
    fn values_are_placed_by_their_axis() {
        let linear = Axis::linear(0.0..10.0, 100.0..0.0);
        assert!((linear.at(2.5) - 75.0).abs() < 1e-9);
        let logarithmic = Axis::logarithmic(1.0..100.0, 0.0..100.0);
        assert!((logarithmic.at(10.0) - 50.0).abs() < 1e-9);
    }

    #[test]
    fn plots_have_a_title_and_a_description() {
        let mut canvas = Canvas::new(100.0);
        canvas.text("start", (1.0, 2.0), "<a>");
        let svg = canvas.svg(3, "Power & time", "One <line>.");
        assert!(svg.starts_with("<svg role=\"img\" aria-labelledby=\"plot3-title plot3-desc\""), "{svg}");
        assert!(svg.contains("<title id=\"plot3-title\">Power &amp; time</title>"), "{svg}");
        assert!(svg.contains("<desc id=\"plot3-desc\">One &lt;line&gt;.</desc>") && svg.contains("&lt;a&gt;"), "{svg}");
    }
}
