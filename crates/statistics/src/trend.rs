//! Forecast of the sum of the days to come from the totals of past days, with a 90 % interval.
//!
//! A straight line and effects of the days of the week are fitted by weighted least squares. The
//! interval contains the noise of the days to come and the uncertainty of everything that was
//! estimated from few days; for a sum of many days the latter is the larger part.

use super::inference::t_quantile;

/// Confidence level of a forecast.
pub const CONFIDENCE: f64 = 0.9;
/// Weight of a day relative to the day after it. Use changes, so a day of five weeks ago counts a
/// sixth of yesterday.
const DISCOUNT: f64 = 0.95;
/// Growth per day, relative to the level, that is plausible without any data: the standard
/// deviation of the prior of the slope. It has no influence once there are weeks of data; without
/// it the slope of four days would be extrapolated to a month.
const GROWTH: f64 = 0.02;
/// Fewest days of an interval and a slope.
const MIN_DAYS: usize = 4;
/// Fewest days to estimate the correlation of one day with the next.
const MIN_FOR_CORRELATION: usize = 14;
/// Fewest days to estimate the days of the week.
const MIN_FOR_WEEKDAYS: usize = 21;
/// Largest correlation of one day with the next that is taken into account.
const MAX_CORRELATION: f64 = 0.9;

/// A past day.
#[derive(Clone, Copy)]
struct Day {
    number: i32,
    /// Days since the last one: not positive.
    x: f64,
    total: f64,
    weight: f64,
}

/// The weighted sum of a figure of days.
fn weighted(days: &[Day], of: impl Fn(&Day) -> f64) -> f64 {
    days.iter().map(|day| day.weight * of(day)).sum()
}

/// A weighted least-squares line.
#[derive(Clone, Debug)]
struct WeightedLine {
    weight: f64,
    x: f64,
    y: f64,
    /// Weighted sum of the squared distances from `x`.
    spread: f64,
    slope: f64,
}

impl WeightedLine {
    /// Fits at least one day.
    fn fit(days: &[Day]) -> Self {
        let weight = weighted(days, |_| 1.0);
        let x = weighted(days, |day| day.x) / weight;
        // Relative to the first day, so that the mean of equal totals is exact.
        let first = days.first().map_or(0.0, |day| day.total);
        let y = first + weighted(days, |day| day.total - first) / weight;
        let spread = weighted(days, |day| (day.x - x).powi(2));
        let slope = if spread > 0.0 { weighted(days, |day| (day.x - x) * (day.total - y)) / spread } else { 0.0 };
        Self { weight, x, y, spread, slope }
    }

    fn at(&self, x: f64) -> f64 {
        self.y + self.slope * (x - self.x)
    }
}

/// Effect of each day of the week on the total, and its weight.
type Weekdays = [(f64, f64); 7];

fn weekday(number: i32) -> usize {
    usize::try_from(number.rem_euclid(7)).unwrap_or_default()
}

/// The effects of the days of the week around a line; `None` if one of them occurs only once.
fn weekdays(days: &[Day], line: &WeightedLine) -> Option<Weekdays> {
    let mut effects: Weekdays = [(0.0, 0.0); 7];
    let mut counts = [0; 7];
    for day in days {
        let at = weekday(day.number);
        effects[at].0 += day.weight * (day.total - line.at(day.x));
        effects[at].1 += day.weight;
        counts[at] += 1;
    }
    if days.len() < MIN_FOR_WEEKDAYS || counts.iter().any(|count| *count < 2) {
        return None;
    }
    let mean = effects.iter().map(|(sum, _)| sum).sum::<f64>() / line.weight;
    Some(effects.map(|(sum, weight)| (sum / weight - mean, weight)))
}

/// The trend of daily totals.
#[derive(Clone, Debug)]
pub struct Trend {
    last: i32,
    line: WeightedLine,
    /// Precision that the prior of the slope adds to the spread of the line.
    prior: f64,
    weekdays: Option<Weekdays>,
    /// Variance of a day of weight 1 around the trend; `None` with too few days.
    variance: Option<f64>,
    freedom: f64,
}

/// A forecast sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// The expected sum.
    pub middle: f64,
    /// Half the width of the 90 % interval; `None` for less than four past days.
    pub half_width: Option<f64>,
}

impl Trend {
    /// Fits past days: the number of a day in any consecutive numbering, and its total. Days may be
    /// missing. `None` without any day.
    #[must_use]
    pub fn fit(days: &[(i32, f64)]) -> Option<Self> {
        let last = days.iter().map(|(number, _)| *number).max()?;
        let mut days: Vec<Day> = days
            .iter()
            .map(|(number, total)| Day {
                number: *number,
                x: f64::from(number - last),
                total: *total,
                weight: DISCOUNT.powi(last - number),
            })
            .collect();
        days.sort_by_key(|day| day.number);
        let mut line = WeightedLine::fit(&days);
        let weekdays = weekdays(&days, &line);
        if let Some(effects) = &weekdays {
            for day in &mut days {
                day.total -= effects[weekday(day.number)].0;
            }
            line = WeightedLine::fit(&days);
        }
        let (variance, freedom) = variance(&days, &line, weekdays.as_ref()).unzip();
        let prior = variance.map_or(0.0, |variance: f64| variance / (GROWTH * line.y).powi(2));
        let prior = if prior.is_finite() { prior } else { 0.0 };
        let kept = line.spread / (line.spread + prior);
        line.slope = if variance.is_some() { line.slope * kept } else { 0.0 };
        Some(Self { last, line, prior, weekdays, variance, freedom: freedom.unwrap_or(1.0) })
    }

    /// Forecasts the sum of days to come: the number of each and the part of it that counts.
    #[must_use]
    pub fn sum(&self, days: &[(i32, f64)]) -> Forecast {
        let line = &self.line;
        let parts: f64 = days.iter().map(|(_, part)| part).sum();
        let moment: f64 = days.iter().map(|(number, part)| part * self.distance(*number)).sum();
        let mut middle = parts * line.y + moment * line.slope;
        // The variance relative to that of one day: of the days to come, of the level and of the
        // slope.
        let mut relative = days.iter().map(|(_, part)| part * part).sum::<f64>() + parts * parts / line.weight;
        if line.spread > 0.0 {
            relative += moment * moment / (line.spread + self.prior);
        }
        for (at, (effect, weight)) in self.weekdays.iter().flatten().enumerate() {
            let on: f64 = days.iter().filter(|(number, _)| weekday(*number) == at).map(|(_, part)| part).sum();
            middle += on * effect;
            relative += (on - parts * weight / line.weight).powi(2) / weight;
        }
        let curvature = self.curvature(days);
        let half_width = self.variance.map(|variance| {
            let deviation = (variance * relative + curvature * curvature).sqrt();
            t_quantile(0.5 + CONFIDENCE / 2.0, self.freedom) * deviation
        });
        Forecast { middle: middle + curvature / 2.0, half_width }
    }

    /// Days from the centre of the line.
    fn distance(&self, number: i32) -> f64 {
        f64::from(number - self.last) - self.line.x
    }

    /// What compound growth with the slope of the line adds to linear growth. A few weeks of noisy
    /// days do not show which of them it is, so half of it is expected, and all of it is uncertain.
    fn curvature(&self, days: &[(i32, f64)]) -> f64 {
        let line = &self.line;
        if line.y <= 0.0 {
            return 0.0;
        }
        let variance = line.spread / line.weight;
        let squares: f64 = days.iter().map(|(number, part)| part * (self.distance(*number).powi(2) - variance)).sum();
        line.slope.powi(2) / line.y / 2.0 * squares
    }
}

/// Variance of a day of weight 1 around the line, and its degrees of freedom. `None` for too few
/// days.
///
/// Correlated days carry less information than independent ones, and their sum varies more: the
/// variance is that of a first-order autoregressive process in the long run.
fn variance(days: &[Day], line: &WeightedLine, weekdays: Option<&Weekdays>) -> Option<(f64, f64)> {
    if days.len() < MIN_DAYS {
        return None;
    }
    let squares = days.iter().map(|day| day.weight.powi(2)).sum::<f64>();
    let leverage = days.iter().map(|day| (day.weight * (day.x - line.x)).powi(2)).sum::<f64>() / line.spread;
    // The expected weighted sum of squared errors, for a variance of 1.
    let mut expected = line.weight - squares / line.weight - leverage;
    let mut freedom = line.weight.powi(2) / squares - 2.0;
    if let Some(effects) = weekdays {
        let of_weekday =
            |at: usize| days.iter().filter(|day| weekday(day.number) == at).map(|day| day.weight.powi(2)).sum::<f64>();
        let shares = effects.iter().enumerate().map(|(at, (_, weight))| of_weekday(at) / weight);
        expected -= shares.sum::<f64>() - squares / line.weight;
        freedom -= 6.0;
    }
    let error = |day: &Day| day.total - line.at(day.x);
    let sum = days.iter().map(|day| day.weight * error(day).powi(2)).sum::<f64>();
    let neighbours = days.windows(2).filter(|pair| pair[1].number - pair[0].number == 1);
    let product = neighbours.map(|pair| pair[1].weight * error(&pair[0]) * error(&pair[1])).sum::<f64>();
    let correlation = if days.len() >= MIN_FOR_CORRELATION && sum > 0.0 { product / sum } else { 0.0 };
    let correlation = correlation.clamp(0.0, MAX_CORRELATION);
    Some((sum / expected * (1.0 + correlation) / (1.0 - correlation), freedom.max(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mean;

    /// A normal variable by Box and Muller's method.
    fn normal(random: &mut fastrand::Rng) -> f64 {
        (-2.0 * (1.0 - random.f64()).ln()).sqrt() * (2.0 * std::f64::consts::PI * random.f64()).cos()
    }

    /// Simulates months of 30 days after `history` days, and forecasts each at the start of `day`.
    /// `use_of` is the expected use of a day; day 1 is the first of the month. Returns how many of
    /// 100 intervals hold the month's sum, and the mean relative error of the middle.
    fn simulate(history: i32, day: i32, use_of: &dyn Fn(i32) -> f64) -> (f64, f64) {
        const MONTHS: u32 = 400;
        let mut random = fastrand::Rng::with_seed(5);
        let (mut held, mut errors) = (0, Vec::new());
        for _ in 0..MONTHS {
            let days: Vec<(i32, f64)> =
                (1 - history..=30).map(|day| (day, use_of(day) * (1.0 + 0.2 * normal(&mut random)).max(0.0))).collect();
            let (past, future) = days.split_at(usize::try_from(history + day - 1).unwrap());
            let whole: Vec<(i32, f64)> = future.iter().map(|(day, _)| (*day, 1.0)).collect();
            let forecast = Trend::fit(past).unwrap().sum(&whole);
            let actual: f64 = future.iter().map(|(_, total)| total).sum();
            held += u32::from((forecast.middle - actual).abs() <= forecast.half_width.unwrap());
            errors.push((forecast.middle - actual) / actual);
        }
        (f64::from(held) / f64::from(MONTHS) * 100.0, mean(&errors).unwrap())
    }

    /// The mean use of a day.
    type Use<'a> = &'a dyn Fn(i32) -> f64;

    #[test]
    fn ninety_percent_intervals_hold_with_noisy_days() {
        for day in [5, 10, 20] {
            let cases: [(&str, i32, Use<'_>); 4] = [
                ("even use", 33, &|_| 1.0),
                ("even use without history", 0, &|_| 1.0),
                ("growing use", 33, &|day| 1.0 + 0.01 * f64::from(day)),
                ("quiet weekends", 33, &|day| if day.rem_euclid(7) < 5 { 1.0 } else { 0.5 }),
            ];
            for (what, history, use_of) in cases {
                let (held, _) = simulate(history, day, use_of);
                assert!(held >= 85.0, "{what}, day {day}: {held} %");
            }
        }
    }

    #[test]
    fn growing_use_is_in_the_forecast() {
        for day in [5, 10, 20] {
            // The mean of the past week is 12 to 24 % too low for the rest of the month.
            let (_, error) = simulate(33, day, &|day| 1.0 + 0.02 * f64::from(day));
            assert!(error.abs() < 0.06, "day {day}: {error}");
        }
    }

    #[test]
    fn even_use_is_exact() {
        let past: Vec<(i32, f64)> = (-37..0).map(|day| (day, 0.3)).collect();
        let found = Trend::fit(&past).unwrap().sum(&[(0, 0.5), (1, 1.0)]);
        assert_eq!(found, Forecast { middle: 1.5 * 0.3, half_width: Some(0.0) });
        let none: Vec<(i32, f64)> = (-37..0).map(|day| (day, 0.0)).collect();
        assert_eq!(Trend::fit(&none).unwrap().sum(&[(0, 1.0)]), Forecast { middle: 0.0, half_width: Some(0.0) });
    }

    #[test]
    fn few_days_have_no_interval() {
        assert!(Trend::fit(&[]).is_none());
        for count in 1..4 {
            let past: Vec<(i32, f64)> = (0..count).map(|day| (day, f64::from(day))).collect();
            let found = Trend::fit(&past).unwrap().sum(&[(count, 1.0)]);
            assert_eq!(found.half_width, None);
            assert!(found.middle <= f64::from(count - 1), "no slope from {count} days");
        }
    }

    #[test]
    fn missing_and_unsorted_days_are_accepted() {
        let past = [(-1, 2.0), (-9, 2.0), (-4, 2.0), (-20, 2.0), (-2, 2.0)];
        assert_eq!(Trend::fit(&past).unwrap().sum(&[(0, 1.0)]).middle, 2.0);
    }
}
