//! The power of a meter as a line over that of the counters: `meter = offset + slope * counters`.
//! The slope includes fans and those losses of power supplies that grow with load; the offset
//! includes disks, boards and losses without load.
//!
//! The line is that of Theil and Sen (the median of the slopes of all pairs of windows), which
//! ignores up to 29 % of outliers. The newest windows do not take part in it: they are compared
//! with it. So a drift of either side is visible at once, and until it fills 29 % of the sliding
//! hours.

use std::collections::VecDeque;

use super::pairs::Pair;

/// Most windows of the line, which are four hours of minutes.
const CAPACITY: usize = 240;
/// The newest windows, which are compared with the line.
const RECENT: usize = 10;
/// Fewest windows of a line.
const MIN_WINDOWS: usize = 20;
/// Smallest spread of the power of the counters, relative to its median. With less the slope is
/// that of the noise.
const MIN_SPREAD: f64 = 0.1;
/// Largest uncertainty of a slope, relative to it.
const MAX_SLOPE_ERROR: f64 = 0.25;
/// Half width of a 95 % interval in standard deviations.
const Z: f64 = 1.96;
/// Standard deviation of a normal distribution relative to its median absolute deviation.
const MAD_SCALE: f64 = 1.4826;

/// How a meter compares with the counters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Watts of the meter while the counters show none.
    pub offset: f64,
    /// Watts of the meter for each watt of the counters.
    pub slope: f64,
    /// The meter less the line in the last minutes, relative to the meter.
    pub residual: f64,
    /// 95 % interval of the residual.
    pub low: f64,
    pub high: f64,
}

/// A line, and how far windows lie from it.
#[derive(Clone, Copy, Debug)]
struct Line {
    offset: f64,
    slope: f64,
    /// Robust standard deviation of the windows, in watts.
    scatter: f64,
    /// Number of windows, mean of their counters, and sum of squares around it.
    count: f64,
    mean: f64,
    squares: f64,
}

/// The windows of the last hours, and the last line that they gave.
#[derive(Default)]
pub(super) struct Conversion {
    windows: VecDeque<Pair>,
    line: Option<Line>,
}

impl Conversion {
    pub(super) fn push(&mut self, window: Pair) {
        self.windows.push_back(window);
        if self.windows.len() > CAPACITY + RECENT {
            self.windows.pop_front();
        }
    }

    /// Compares the newest windows with the line through the older ones. Where the load of the last
    /// hours is too even for a line, the last one stays. `None` while there is none.
    pub(super) fn compare(&mut self) -> Option<Comparison> {
        let older = self.windows.len().checked_sub(RECENT)?;
        let fitted: Vec<Pair> = self.windows.iter().take(older).copied().collect();
        self.line = Line::fit(&fitted).or(self.line);
        let line = self.line?;
        let mut recent: Vec<(f64, f64)> = self
            .windows
            .iter()
            .skip(older)
            .filter(|window| window.meter > 0.0)
            .map(|window| {
                let residual = (window.meter - line.at(window.counters)) / window.meter;
                (residual, line.half_width(window.counters) / window.meter)
            })
            .collect();
        recent.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let (residual, half) = *recent.get(recent.len() / 2)?;
        let Line { offset, slope, .. } = line;
        Some(Comparison { offset, slope, residual, low: residual - half, high: residual + half })
    }
}

impl Line {
    /// The line through windows; `None` where they do not tell it.
    fn fit(windows: &[Pair]) -> Option<Self> {
        if windows.len() < MIN_WINDOWS {
            return None;
        }
        let mut counters: Vec<f64> = windows.iter().map(|window| window.counters).collect();
        counters.sort_unstable_by(f64::total_cmp);
        // Between the 5th and the 95th percentile, so that one short peak is no spread.
        let tail = counters.len() / 20;
        let spread = counters[counters.len() - 1 - tail] - counters[tail];
        if spread <= 0.0 || spread < MIN_SPREAD * counters[counters.len() / 2] {
            return None;
        }
        // Two windows at nearly the same power have a slope of noise.
        let least = spread / 4.0;
        let slopes = windows.iter().enumerate().flat_map(|(at, a)| {
            let far = windows[at + 1..].iter().filter(move |b| (b.counters - a.counters).abs() >= least);
            far.map(move |b| (b.meter - a.meter) / (b.counters - a.counters))
        });
        let slope = median(slopes.collect())?;
        let offset = median(windows.iter().map(|window| window.meter - slope * window.counters).collect())?;
        let distance = |window: &Pair| (window.meter - offset - slope * window.counters).abs();
        let scatter = MAD_SCALE * median(windows.iter().map(distance).collect())?;
        let count = float(windows.len());
        let mean = counters.iter().sum::<f64>() / count;
        let squares: f64 = counters.iter().map(|watts| (watts - mean).powi(2)).sum();
        let slope_error = Z * scatter / squares.sqrt();
        (slope > 0.0 && slope_error <= MAX_SLOPE_ERROR * slope).then_some(Self {
            offset,
            slope,
            scatter,
            count,
            mean,
            squares,
        })
    }

    /// Watts of the meter at watts of the counters.
    fn at(&self, counters: f64) -> f64 {
        self.offset + self.slope * counters
    }

    /// Half width of the 95 % interval of one window, which is wider far from the windows of the
    /// line.
    fn half_width(&self, counters: f64) -> f64 {
        let distance = (counters - self.mean).powi(2) / self.squares;
        Z * self.scatter * (1.0 + 1.0 / self.count + distance).sqrt()
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    let middle = values.len() / 2;
    if values.is_empty() {
        return None;
    }
    let (_, value, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    Some(*value)
}

fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reproducible noise between -1 and 1.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f64::from(u32::try_from(self.0 >> 33).unwrap()) / f64::from(1u32 << 30) - 1.0
        }
    }

    /// A machine that draws `60 W + 1.25 * counters` at the wall, with 2 % of noise, under a load
    /// that changes every few windows.
    fn windows(count: usize, noise: &mut Noise) -> Vec<Pair> {
        let load = |at: usize| [60.0, 95.0, 140.0, 180.0, 75.0][at / 4 % 5];
        let window = |at: usize, noise: &mut Noise| {
            let counters = load(at) + 5.0 * noise.next();
            Pair { counters, meter: (60.0 + 1.25 * counters) * (1.0 + 0.02 * noise.next()) }
        };
        (0..count).map(|at| window(at, &mut *noise)).collect()
    }

    fn compare(windows: &[Pair]) -> Option<Comparison> {
        let mut conversion = Conversion::default();
        let mut last = None;
        for window in windows {
            conversion.push(*window);
            last = conversion.compare();
        }
        last
    }

    #[test]
    fn the_conversion_is_found_and_its_residual_is_small() {
        let comparison = compare(&windows(120, &mut Noise(1))).unwrap();
        assert!((comparison.slope - 1.25).abs() < 0.05, "{comparison:?}");
        assert!((comparison.offset - 60.0).abs() < 6.0, "{comparison:?}");
        assert!(comparison.residual.abs() < 0.02, "{comparison:?}");
        assert!(comparison.low < 0.0 && comparison.high > 0.0, "{comparison:?}");
    }

    #[test]
    fn outliers_do_not_bend_the_line() {
        let mut all = windows(120, &mut Noise(2));
        // A quarter of the windows with something else that draws power.
        all.iter_mut().step_by(4).for_each(|window| window.meter += 150.0);
        let comparison = compare(&all).unwrap();
        assert!((comparison.slope - 1.25).abs() < 0.15, "{comparison:?}");
        assert!((comparison.offset - 60.0).abs() < 25.0, "{comparison:?}");
    }

    #[test]
    fn a_drift_is_outside_of_the_interval_for_an_hour() {
        let mut all = windows(300, &mut Noise(3));
        // The counters lose a quarter of the energy from here on.
        all.iter_mut().skip(240).for_each(|window| window.counters *= 0.75);
        let mut conversion = Conversion::default();
        for (at, window) in all.iter().enumerate() {
            conversion.push(*window);
            let Some(Comparison { low, high, .. }) = conversion.compare() else { continue };
            let drifted = low > 0.05 || high < -0.05;
            // The median of the recent windows needs half of them.
            assert!(!drifted || at >= 240, "window {at}: {low} to {high}");
            assert!(drifted || !(250..295).contains(&at), "window {at}: {low} to {high}");
        }
    }

    #[test]
    fn an_even_load_tells_no_line_and_keeps_the_last_one() {
        let even = |noise: &mut Noise| {
            let counters = 100.0 + noise.next();
            Pair { counters, meter: 60.0 + 1.25 * counters + noise.next() }
        };
        let mut noise = Noise(4);
        let only_even: Vec<Pair> = (0..200).map(|_| even(&mut noise)).collect();
        assert_eq!(compare(&only_even), None);
        let mut all = windows(100, &mut noise);
        all.extend((0..400).map(|_| even(&mut noise)));
        let comparison = compare(&all).unwrap();
        assert!((comparison.slope - 1.25).abs() < 0.1, "{comparison:?}");
        assert!(comparison.residual.abs() < 0.03, "{comparison:?}");
    }

    #[test]
    fn a_meter_that_ignores_the_load_has_no_conversion() {
        let mut noise = Noise(5);
        let mut all = windows(120, &mut noise);
        all.iter_mut().for_each(|window| window.meter = 200.0 + 10.0 * noise.next());
        assert_eq!(compare(&all), None);
        assert_eq!(compare(&windows(MIN_WINDOWS + RECENT - 1, &mut Noise(6))), None, "too few");
    }
}
