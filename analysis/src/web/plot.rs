//! VMAF by energy per frame as SVG. Colours, lines and fonts are classes of the style sheet, so
//! that it follows the colour scheme and needs no inline style.

use std::fmt::Write as _;

use cli::number::{on_axis, score, short};
use http::index_page::escape;

use super::view::{MAX_POINTS, QualityPlot, QualityPoint};

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 320.0;
/// Space for the labels of the axes: left, right, top, bottom.
const MARGINS: [f64; 4] = [48.0, 14.0, 12.0, 44.0];
/// Energies that differ by more than this factor are drawn on a logarithmic axis.
const LOGARITHMIC_FROM: f64 = 20.0;
/// Magnitudes that an axis can show; result files of other tools may contain any number.
const MAGNITUDES: std::ops::Range<f64> = 1e-9..1e12;
/// Most configurations that the description lists.
const MAX_LISTED: usize = 12;

/// An axis: its range, and how a value becomes a position.
struct Axis {
    low: f64,
    high: f64,
    is_logarithmic: bool,
    /// Positions of `low` and `high`.
    from: f64,
    to: f64,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.is_logarithmic { value.ln() } else { value };
        let part = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low));
        self.from + part.clamp(0.0, 1.0) * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.is_logarithmic { decade_ticks(self.low, self.high) } else { even_ticks(self.low, self.high) }
    }

    /// The ticks with their texts, which differ: even ticks have the decimals of their distance.
    fn named_ticks(&self) -> Vec<(f64, String)> {
        let ticks = self.ticks();
        let text = |tick: f64| match ticks.as_slice() {
            [first, second, ..] if !self.is_logarithmic => on_axis(tick, second - first),
            _ => short(tick),
        };
        ticks.iter().map(|tick| (*tick, text(*tick))).collect()
    }
}

/// Multiples of 1, 2 or 5 times a power of ten, about six of them.
fn even_ticks(low: f64, high: f64) -> Vec<f64> {
    let least = (high - low) / 6.0;
    let power = 10_f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0].map(|factor| factor * power).into_iter().find(|step| *step >= least);
    let step = step.unwrap_or(10.0 * power);
    let first = (low / step).ceil();
    (0..12_u32).map(|number| (first + f64::from(number)) * step).take_while(|tick| *tick <= high).collect()
}

/// 1, 2 and 5 times each power of ten; only the powers over more than four decades.
fn decade_ticks(low: f64, high: f64) -> Vec<f64> {
    let factors: &[f64] = if high / low > 1e4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let first = low.log10().floor();
    let decades = (0..24_u32).map(|number| 10_f64.powf(first + f64::from(number)));
    let all = decades.flat_map(|decade| factors.iter().map(move |factor| factor * decade));
    all.filter(|tick| (low..=high).contains(tick)).collect()
}

/// The plot; `id` is unique in the document.
///
/// # Errors
/// Why there is nothing to draw.
pub fn svg(id: &str, plot: &QualityPlot) -> Result<String, String> {
    let points = &plot.points;
    if points.len() > MAX_POINTS {
        return Err(format!("{} configurations are too many for a plot", points.len()));
    }
    let [x, y] = axes(points)?;
    let mut out = format!(
        "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"640\" role=\"img\" \
         aria-labelledby=\"{id}-title {id}-desc\"><title id=\"{id}-title\">VMAF by energy per frame: {}</title>\
         <desc id=\"{id}-desc\">{}</desc>",
        escape(&plot.title),
        escape(&description(points))
    );
    draw_axes(&mut out, &x, &y);
    draw_front(&mut out, points, &x, &y);
    for point in points {
        draw_point(&mut out, point, &x, &y);
    }
    Ok(out + "</svg>")
}

/// The axes of the points: energy per frame in millijoules, and VMAF.
fn axes(points: &[QualityPoint]) -> Result<[Axis; 2], String> {
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
    };
    let (low, high) = range(&mut points.iter().map(millijoules));
    let (worst, best) = range(&mut points.iter().map(|point| point.vmaf.mean));
    if points.is_empty() {
        return Err("no configuration has both VMAF and energy per frame".to_owned());
    }
    if !MAGNITUDES.contains(&low) || !MAGNITUDES.contains(&high) || worst.abs() > 1e6 || best.abs() > 1e6 {
        return Err("the values are out of range".to_owned());
    }
    let [left, right, top, bottom] = MARGINS;
    let is_logarithmic = high / low > LOGARITHMIC_FROM;
    let (low, high) = if is_logarithmic {
        (low / 1.3, high * 1.3)
    } else {
        let pad = ((high - low) * 0.1).max(high * 0.02);
        ((low - pad).max(0.0), high + pad)
    };
    let pad = ((best - worst) * 0.1).max(0.5);
    let x = Axis { low, high, is_logarithmic, from: left, to: WIDTH - right };
    let y = Axis { low: worst - pad, high: best + pad, is_logarithmic: false, from: HEIGHT - bottom, to: top };
    Ok([x, y])
}

fn millijoules(point: &QualityPoint) -> f64 {
    point.joules.mean * 1000.0
}

/// The configurations on the front, from the least energy, as text.
fn description(points: &[QualityPoint]) -> String {
    let front = front(points);
    let listed: Vec<String> = front
        .iter()
        .take(MAX_LISTED)
        .map(|point| format!("{}: VMAF {}, {} mJ", point.name, score(point.vmaf.mean), short(millijoules(point))))
        .collect();
    let more = if front.len() > MAX_LISTED { "; …" } else { "" };
    format!("{} configurations; on the Pareto front: {}{more}", points.len(), listed.join("; "))
}

/// The points on the front by energy.
fn front(points: &[QualityPoint]) -> Vec<&QualityPoint> {
    let mut front: Vec<&QualityPoint> = points.iter().filter(|point| point.on_front).collect();
    front.sort_by(|a, b| a.joules.mean.total_cmp(&b.joules.mean).then(a.vmaf.mean.total_cmp(&b.vmaf.mean)));
    front
}

fn draw_axes(out: &mut String, x: &Axis, y: &Axis) {
    for (tick, text) in x.named_ticks() {
        let at = x.at(tick);
        let _ = write!(
            out,
            "<path class=\"grid\" d=\"M{at:.1} {:.1}V{:.1}\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
            y.from,
            y.to,
            y.from + 16.0
        );
    }
    for (tick, text) in y.named_ticks() {
        let at = y.at(tick);
        let _ = write!(
            out,
            "<path class=\"grid\" d=\"M{:.1} {at:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            x.from,
            x.to,
            x.from - 6.0,
            at + 4.0
        );
    }
    let scale = if x.is_logarithmic { ", logarithmic" } else { "" };
    let _ = write!(
        out,
        "<path class=\"axis\" d=\"M{0:.1} {1:.1}V{2:.1}H{3:.1}\"/>\
         <text x=\"{4:.1}\" y=\"{5:.1}\" text-anchor=\"middle\">energy per frame (mJ{scale})</text>\
         <text x=\"14\" y=\"{6:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {6:.1})\">VMAF</text>",
        x.from,
        y.to,
        y.from,
        x.to,
        (x.from + x.to) / 2.0,
        HEIGHT - 8.0,
        (y.from + y.to) / 2.0
    );
}

/// The front as steps: between two of its points, the better VMAF costs the energy of the second.
fn draw_front(out: &mut String, points: &[QualityPoint], x: &Axis, y: &Axis) {
    let front = front(points);
    let Some((first, rest)) = front.split_first() else { return };
    let _ = write!(out, "<path class=\"front\" d=\"M{:.1} {:.1}", x.at(millijoules(first)), y.at(first.vmaf.mean));
    for point in rest {
        let _ = write!(out, "H{:.1}V{:.1}", x.at(millijoules(point)), y.at(point.vmaf.mean));
    }
    out.push_str("\"/>");
}

fn draw_point(out: &mut String, point: &QualityPoint, x: &Axis, y: &Axis) {
    let (at, height) = (x.at(millijoules(point)), y.at(point.vmaf.mean));
    let (low, high) = point.joules.bounds();
    if high > low {
        // An interval may reach zero, which a logarithmic axis does not show.
        let (low, high) = ((low * 1000.0).max(x.low), high * 1000.0);
        let _ = write!(out, "<path class=\"axis\" d=\"M{:.1} {height:.1}H{:.1}\"/>", x.at(low), x.at(high));
    }
    // Size and colour both mark the front.
    let (class, radius) = if point.on_front { ("point best", 6) } else { ("point", 4) };
    let _ = write!(
        out,
        "<circle class=\"{class}\" cx=\"{at:.1}\" cy=\"{height:.1}\" r=\"{radius}\"><title>{}: VMAF {}, {} mJ/frame{}</title></circle>",
        escape(&point.name),
        score(point.vmaf.mean),
        short(millijoules(point)),
        if point.on_front { ", on the Pareto front" } else { "" }
    );
}

#[cfg(test)]
mod tests {
    use results::estimate::Estimate;

    use super::*;

    fn plot(points: &[(&str, f64, f64, bool)]) -> QualityPlot {
        let single = |mean| Estimate { mean, half_width: None, n: 1 };
        let point = |(name, joules, vmaf, on_front): &(&str, f64, f64, bool)| QualityPoint {
            name: (*name).to_owned(),
            joules: single(*joules),
            vmaf: single(*vmaf),
            on_front: *on_front,
        };
        QualityPlot { title: "<all>".to_owned(), points: points.iter().map(point).collect() }
    }

    #[test]
    fn plots_have_a_title_a_description_and_no_style() {
        let svg = svg("p", &plot(&[("<script>", 0.01, 90.0, true), ("b", 0.012, 89.0, false)])).unwrap();
        assert!(svg.contains("<title id=\"p-title\">VMAF by energy per frame: &lt;all&gt;</title>"), "{svg}");
        assert!(svg.contains("on the Pareto front: &lt;script&gt;: VMAF 90.00, 10 mJ</desc>"), "{svg}");
        assert!(!svg.contains("style=") && !svg.contains("<script>"), "{svg}");
        assert_eq!((svg.matches("<circle").count(), svg.matches("class=\"front\"").count()), (2, 1));
    }

    #[test]
    fn axes_have_ticks_over_a_small_and_a_large_range() {
        for points in [[0.010, 0.0101], [0.010, 0.2], [0.001, 5.0], [0.5, 0.5]] {
            let points: Vec<(&str, f64, f64, bool)> = points.iter().map(|joules| ("a", *joules, 90.0, true)).collect();
            for axis in axes(&plot(&points).points).unwrap() {
                let ticks = axis.ticks();
                assert!((3..=13).contains(&ticks.len()), "{points:?}: {ticks:?}");
                assert!(ticks.iter().all(|tick| (axis.low..=axis.high).contains(tick)), "{points:?}: {ticks:?}");
            }
        }
    }

    /// 100, 100.2 and 100.4 were all "100".
    #[test]
    fn texts_of_ticks_differ() {
        for (joules, scores) in [([0.01, 0.02], [99.9, 100.0]), ([0.123_4, 0.123_5], [99.0, 101.0])] {
            let points = [("a", joules[0], scores[0], true), ("b", joules[1], scores[1], true)];
            for axis in axes(&plot(&points).points).unwrap() {
                let mut texts: Vec<String> = axis.named_ticks().into_iter().map(|(_, text)| text).collect();
                let count = texts.len();
                texts.dedup();
                assert_eq!(texts.len(), count, "{texts:?}");
            }
        }
    }

    #[test]
    fn values_that_no_axis_shows_are_refused() {
        assert!(svg("p", &plot(&[])).is_err());
        for joules in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert!(svg("p", &plot(&[("a", joules, 90.0, true)])).is_err(), "{joules}");
        }
    }
}
