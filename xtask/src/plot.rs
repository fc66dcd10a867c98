//! Plots with logarithmic axes as SVG, without fonts and scripts.

use std::fmt::Write as _;

/// Size of the picture, and the edges of the plot in it.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 400.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 310.0;

/// Colours that are distinguishable with all common forms of colour blindness (Okabe and Ito,
/// 2008).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// A line through points of size and cost.
pub(crate) struct Curve {
    pub(crate) label: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Whole decades around the values.
struct Axis {
    first: f64,
    last: f64,
}

impl Axis {
    /// `None` without a positive value.
    fn around(values: impl Iterator<Item = f64>) -> Option<Self> {
        let decades: Vec<f64> = values.filter(|value| *value > 0.0).map(f64::log10).collect();
        let first = decades.iter().copied().reduce(f64::min)?.floor();
        let last = decades.iter().copied().reduce(f64::max)?.ceil();
        Some(Self { first, last: last.max(first + 1.0) })
    }

    /// Where a value is, from 0 to 1.
    fn part(&self, value: f64) -> f64 {
        (value.log10() - self.first) / (self.last - self.first)
    }

    /// Its decades as values.
    fn ticks(&self) -> Vec<f64> {
        let mut ticks = Vec::new();
        let mut decade = self.first;
        while decade <= self.last {
            ticks.push(10_f64.powf(decade));
            decade += 1.0;
        }
        ticks
    }
}

/// A plot with both axes logarithmic; `None` without a positive point. Points that are not positive
/// are left out.
pub(crate) fn log_log(title: &str, x_label: &str, y_label: &str, curves: &[Curve]) -> Option<String> {
    let points = || curves.iter().flat_map(|curve| &curve.points).filter(|(x, y)| *x > 0.0 && *y > 0.0);
    let x = Axis::around(points().map(|point| point.0))?;
    let y = Axis::around(points().map(|point| point.1))?;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<title>{}</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n",
        escape(title)
    );
    text(&mut out, (LEFT, 20.0), "start", title);
    text(&mut out, (f64::midpoint(LEFT, RIGHT), HEIGHT - 12.0), "middle", x_label);
    text(&mut out, (LEFT - 60.0, TOP - 6.0), "start", y_label);
    axes(&mut out, &x, &y);
    for (number, curve) in curves.iter().enumerate() {
        draw(&mut out, number, curve, &x, &y);
    }
    out.push_str("</svg>\n");
    Some(out)
}

fn axes(out: &mut String, x: &Axis, y: &Axis) {
    for tick in x.ticks() {
        let at = across(x, tick);
        line(out, (at, TOP), (at, BOTTOM));
        text(out, (at, BOTTOM + 18.0), "middle", &number(tick));
    }
    for tick in y.ticks() {
        let at = down(y, tick);
        line(out, (LEFT, at), (RIGHT, at));
        text(out, (LEFT - 6.0, at + 4.0), "end", &number(tick));
    }
}

/// One curve with its points, and its row of the legend.
fn draw(out: &mut String, number: usize, curve: &Curve, x: &Axis, y: &Axis) {
    let colour = COLOURS[number % COLOURS.len()];
    let positive = curve.points.iter().filter(|(size, cost)| *size > 0.0 && *cost > 0.0);
    let places: Vec<(f64, f64)> = positive.map(|(size, cost)| (across(x, *size), down(y, *cost))).collect();
    let path: Vec<String> = places.iter().map(|(across, down)| format!("{across:.1},{down:.1}")).collect();
    // Writing to a string does not fail.
    let _ =
        writeln!(out, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", path.join(" "));
    for (across, down) in places {
        let _ = writeln!(out, "<circle cx=\"{across:.1}\" cy=\"{down:.1}\" r=\"3\" fill=\"{colour}\"/>");
    }
    let row = TOP + 10.0 + 18.0 * number as f64;
    let _ = writeln!(
        out,
        "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"12\" height=\"4\" fill=\"{colour}\"/>",
        RIGHT + 14.0,
        row - 6.0
    );
    text(out, (RIGHT + 32.0, row), "start", &curve.label);
}

fn across(axis: &Axis, value: f64) -> f64 {
    LEFT + (RIGHT - LEFT) * axis.part(value)
}

fn down(axis: &Axis, value: f64) -> f64 {
    BOTTOM - (BOTTOM - TOP) * axis.part(value)
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        out,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#dddddd\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(out: &mut String, at: (f64, f64), anchor: &str, text: &str) {
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"#222222\">{}</text>",
        at.0,
        at.1,
        escape(text)
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A power of ten as text: `0.01`, `1`, `1,000`.
fn number(tick: f64) -> String {
    if tick < 1.0 {
        let text = format!("{tick:.6}");
        return text.trim_end_matches('0').to_owned();
    }
    let digits = format!("{tick:.0}");
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use quick_xml::{Reader, events::Event};

    use super::*;

    fn curve(points: &[(f64, f64)]) -> Curve {
        Curve { label: "a < b".to_owned(), points: points.to_vec() }
    }

    #[test]
    fn a_plot_is_xml_with_every_point() {
        let svg = log_log("Cost & size", "size", "ms", &[curve(&[(10.0, 0.5), (4000.0, 90.0)])]).unwrap();
        let mut reader = Reader::from_str(&svg);
        let (mut open, mut circles) = (0_i32, 0);
        loop {
            match reader.read_event().unwrap() {
                Event::Start(_) => open += 1,
                Event::End(_) => open -= 1,
                Event::Empty(tag) => circles += i32::from(tag.name().as_ref() == b"circle"),
                Event::Eof => break,
                _ => {}
            }
        }
        assert_eq!((open, circles), (0, 2), "{svg}");
        assert!(svg.contains("Cost &amp; size") && svg.contains("a &lt; b"));
    }

    #[test]
    fn decades_enclose_the_values() {
        let axis = Axis::around([10.0, 4000.0].into_iter()).unwrap();
        assert_eq!(axis.ticks().iter().map(|tick| number(*tick)).collect::<Vec<_>>(), ["10", "100", "1,000", "10,000"]);
        assert!((axis.part(10.0)).abs() < 1e-9 && (axis.part(10_000.0) - 1.0).abs() < 1e-9);
        assert_eq!(Axis::around([5.0].into_iter()).unwrap().ticks().len(), 2, "one decade at least");
        assert_eq!([0.001, 0.1].map(number), ["0.001", "0.1"]);
    }

    #[test]
    fn values_without_a_logarithm_are_left_out() {
        assert!(log_log("t", "x", "y", &[curve(&[(10.0, 0.0)])]).is_none());
        let svg = log_log("t", "x", "y", &[curve(&[(10.0, 0.0), (10.0, 1.0)])]).unwrap();
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(Axis::around([1.0].into_iter()).unwrap().part(1.0).abs() < 1e-9);
    }
}
