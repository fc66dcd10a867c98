//! Monthly budgets for energy: spending, burn rate, and a forecast with its backtest error.
//!
//! The database is queried for the increase of the energy counters in each hour of five weeks,
//! which is priced with the price of that hour. Hours begin where those of the local clock do, so
//! that a month begins with an hour also where the clock differs from UTC by half an hour.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp, Zoned, civil::Date};
use rust_decimal::Decimal;
use serde::Deserialize;

use super::{
    Prices,
    money::{Amount, float},
};
use crate::{
    convert::timestamp,
    energy::{
        SourceError,
        database::{Database, Series, escaped, host_pattern},
    },
};
use statistics::{mean, trend::Trend};

/// Hours of history: five weeks before the first day of a month are enough for its forecast.
const HISTORY_HOURS: i64 = 38 * 24;
/// Hours per day.
const DAY: i64 = 24;
/// Hours in one query, which limits the samples that the database reads for it. From 50 points
/// VictoriaMetrics moves them to multiples of the step, which are full hours of UTC.
const HOURS_PER_QUERY: i64 = 2 * DAY;
/// Age of the newest figures. VictoriaMetrics answers the last 30 s of a range with the step before
/// (`-search.latencyOffset`): an hour that has just ended would have the cost of the one before it.
const LATENCY: SignedDuration = SignedDuration::from_secs(30);

/// The keys below `[[budget]]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetSettings {
    /// Name of the budget.
    pub name: String,
    /// Monthly amount.
    pub amount: Amount,
    /// Currency; default is that of prices.
    #[serde(default)]
    pub currency: Option<String>,
    /// Names of hosts, or `["all"]`. There is no default, so that hosts are not summed by accident.
    pub hosts: Vec<String>,
    /// Only the energy of these containers; default is the whole energy of the hosts.
    #[serde(default)]
    pub containers: Vec<String>,
}

/// The status of a budget.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetStatus {
    /// Name of the budget.
    pub name: String,
    /// Currency of the budget.
    pub currency: String,
    /// Monthly amount.
    pub amount: Decimal,
    /// The spending, or why it is unknown: the label `reason`, and a message.
    pub spending: Result<Spending, (String, String)>,
}

/// The spending of a budget in the current month.
#[derive(Clone, Debug, PartialEq)]
pub struct Spending {
    /// Amount spent since the start of the month, in the budget's currency.
    pub spent: f64,
    /// Past hours of the month without data.
    pub unknown_hours: i64,
    /// Burn rate by window: spending relative to an even use of the budget. 1 uses the budget
    /// exactly.
    pub burn: Vec<(&'static str, f64)>,
    /// Forecast of spending at the end of the month, in the budget's currency: the middle, and the
    /// ends of its 90 % interval. Absent without enough history: the middle needs a whole day, the
    /// interval four.
    pub forecast: [Option<f64>; 3],
    /// Mean relative error of past forecasts of one day.
    pub error: Option<f64>,
}

impl BudgetSettings {
    /// The PromQL expression of the energy in joules of the last `seconds`.
    ///
    /// `increase` is used because raw samples of a month are too many. Over an hour of a
    /// continuously scraped counter its error is that of one scrape; Prometheus misses a container
    /// that lived for less than two scrapes. A counter that is scraped twice counts once. On a host
    /// without packages the platform sensor counts, which includes DRAM and GPUs.
    fn expression(&self, host_label: &str, seconds: i64) -> String {
        let mut selectors = Vec::new();
        if self.hosts != ["all"] {
            let patterns = self.hosts.iter().map(|host| host_pattern(host)).collect::<Vec<_>>();
            selectors.push(format!("{host_label}=~\"{}\"", patterns.join("|")));
        }
        let increase = |family: &str, labels: &str, selector: &str| {
            let selectors: Vec<&str> = selectors.iter().map(String::as_str).chain([selector]).collect();
            format!("max by ({host_label},{labels}) (increase({family}{{{}}}[{seconds}s]))", selectors.join(","))
        };
        if !self.containers.is_empty() {
            let names = self.containers.iter().map(|name| escaped(name)).collect::<Vec<_>>();
            let selector = format!("container=~\"{}\"", names.join("|"));
            let labels = "container,id,package,zone,source";
            return format!("sum({})", increase("wattcast_container_energy_joules_total", labels, &selector));
        }
        let of_zones = |zones: &str| {
            increase("wattcast_energy_joules_total", "package,zone,source", &format!("zone=~\"{zones}\""))
        };
        let (roots, packages, platform) = (of_zones("package|dram|gpu"), of_zones("package"), of_zones("psys"));
        let platform = format!("({platform} unless on ({host_label}) {packages})");
        format!("sum(({roots} unless on ({host_label}) {platform}) or {platform})")
    }
}

/// The cost of past hours by budget, so that each hour is queried only once, and the clock of these
/// hours.
#[derive(Clone, Debug, Default)]
pub struct HourlyCosts(BTreeMap<String, (Clock, Hours)>);

/// Cost of each past hour, by its number. Hours without samples are absent.
type Hours = BTreeMap<i64, f64>;

/// Hours of the local clock, numbered since 1970. Hour `n` ends `late` seconds after the full hour
/// `n` of UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Clock {
    late: i64,
}

impl Clock {
    /// The clock whose hours begin with a month.
    fn of(month: Timestamp) -> Self {
        Self { late: month.as_second().rem_euclid(3600) }
    }

    /// The number of the last hour that has ended.
    fn last(self, now: Timestamp) -> i64 {
        (now.as_second() - self.late).div_euclid(3600)
    }

    /// The number of the hour that ends at `end`; `None` if none does.
    fn number(self, end: Timestamp) -> Option<i64> {
        let number = self.last(end);
        (self.end(number) == end.as_second()).then_some(number)
    }

    /// The unix second at which an hour ends.
    fn end(self, hour: i64) -> i64 {
        hour * 3600 + self.late
    }
}

/// The first moments of the local month and of the next one. A month begins with its first day,
/// which does not begin at midnight where clocks change at midnight.
fn month(now: &Zoned) -> (Timestamp, Timestamp) {
    let start = now.first_of_month().and_then(|day| day.start_of_day());
    let end = now.last_of_month().and_then(|day| day.tomorrow()).and_then(|day| day.start_of_day());
    let moment = |day: Result<Zoned, jiff::Error>| day.map_or_else(|_| now.timestamp(), |day| day.timestamp());
    (moment(start), moment(end))
}

/// Queries the status of every budget as of half a minute before `now`.
#[must_use]
pub fn evaluate(
    settings: &[BudgetSettings],
    prices: &Prices,
    database: Option<&Database>,
    now: Timestamp,
    costs: &mut HourlyCosts,
) -> Vec<BudgetStatus> {
    let now = now.checked_sub(LATENCY).unwrap_or(now);
    let status = |budget: &BudgetSettings| {
        let currency = budget.currency.clone().unwrap_or_else(|| prices.currency.clone());
        let known = costs.0.entry(budget.name.clone()).or_default();
        let spending = query_spending(budget, &currency, prices, database, now, known);
        BudgetStatus { name: metrics::label::sanitize(&budget.name), currency, amount: budget.amount.0, spending }
    };
    settings.iter().map(status).collect()
}

fn query_spending(
    budget: &BudgetSettings,
    currency: &str,
    prices: &Prices,
    database: Option<&Database>,
    now: Timestamp,
    (known_clock, hours): &mut (Clock, Hours),
) -> Result<Spending, (String, String)> {
    let failed = |reason: &str, message: String| (reason.to_owned(), message);
    let database =
        database.ok_or_else(|| failed("no_database", "budgets need a database; set PROMETHEUS_URL".into()))?;
    let rate = prices.rates.convert(Decimal::ONE, &prices.currency, currency).ok_or_else(|| {
        failed(
            "no_rate",
            format!("no exchange rate between {} and {currency}; add [[rates]] to the file", prices.currency),
        )
    })?;
    let query_failed = |error: SourceError| (error.reason().to_owned(), error.to_string());
    let seconds = |second: i64| float(Decimal::from(second));
    let local = now.to_zoned(prices.tariff.time_zone().clone());
    let clock = Clock::of(month(&local).0);
    // On Lord Howe Island, daylight saving time shifts the clock and its hours by half an hour.
    if *known_clock != clock {
        *known_clock = clock;
        hours.clear();
    }
    let hour = clock.last(now);
    let oldest = hour - HISTORY_HOURS + 1;
    hours.retain(|end, _| *end >= oldest);
    // The last two hours are queried again, because samples may arrive late.
    let mut first = hours.last_key_value().map_or(oldest, |(end, _)| end - 1).max(oldest);
    let expression = budget.expression(database.host_label(), 3600);
    while first <= hour {
        let last = (first + HOURS_PER_QUERY - 1).min(hour);
        let (from, to) = (seconds(clock.end(first)), seconds(clock.end(last)));
        let series = database.range(&expression, from, to, 3600).map_err(query_failed)?;
        for (end, joules) in series.first().map(Series::points).unwrap_or_default() {
            // An answer for other times than those asked for is of other hours.
            if let Some((end, number)) = timestamp(end).and_then(|end| Some((end, clock.number(end)?))) {
                let start = end.checked_sub(SignedDuration::from_hours(1)).unwrap_or(end);
                hours.insert(number, energy_cost(prices, start, end, joules, rate));
            }
        }
        first = last + 1;
    }
    let hour_start = timestamp(seconds(clock.end(hour))).unwrap_or(now);
    let in_current_hour = budget.expression(database.host_label(), (now.as_second() - clock.end(hour)).max(1));
    let moment = seconds(now.as_second());
    let current = database.instant(&in_current_hour, moment).map_err(query_failed)?;
    let current = current.first().and_then(|series| series.points().first().map(|point| point.1));
    if hours.is_empty() && current.is_none() {
        return Err(failed("no_samples", format!("the database has no samples for {expression}")));
    }
    let partial = current.map(|joules| energy_cost(prices, hour_start, now, joules, rate)).unwrap_or_default();
    Ok(calculate_spending(hours, partial, float(budget.amount.0), &local))
}

/// The cost of energy between two times, in the budget's currency.
fn energy_cost(prices: &Prices, start: Timestamp, end: Timestamp, joules: f64, rate: Decimal) -> f64 {
    let price = prices.tariff.mean(start, end).unwrap_or_else(|| prices.tariff.at(start));
    joules / 3.6e6 * float(price) * float(prices.pue) * float(rate)
}

/// The spending from hourly costs; `partial` is the cost of the current hour until now.
fn calculate_spending(hours: &Hours, partial: f64, amount: f64, now: &Zoned) -> Spending {
    let (start, end) = month(now);
    let clock = Clock::of(start);
    let last = clock.last(now.timestamp());
    let first = clock.last(start) + 1;
    let of_month: Vec<f64> = hours.range(first..).map(|hour| *hour.1).collect();
    let spent = of_month.iter().sum::<f64>() + partial;
    let unknown = (last + 1 - first).max(0) - i64::try_from(of_month.len()).unwrap_or(i64::MAX);
    let even_hour = amount / (end.duration_since(start).as_secs_f64() / 3600.0);
    let burn = [("1h", 1), ("6h", 6), ("24h", 24)].into_iter().filter_map(|(window, count)| {
        let known: Vec<f64> = hours.range(last - count + 1..=last).map(|hour| *hour.1).collect();
        let is_complete = i64::try_from(known.len()).ok()? == count;
        (is_complete && even_hour > 0.0).then(|| Some((window, mean(&known)? / even_hour)))?
    });
    let days = Days::of(hours, clock, now, end);
    let forecast = days.as_ref().map_or([None; 3], |days| days.forecast(spent));
    let error = days.as_ref().and_then(Days::error);
    Spending { spent, unknown_hours: unknown.max(0), burn: burn.collect(), forecast, error }
}

/// The past local days with their costs, and the days to come.
struct Days {
    /// Days relative to today, negative, with the cost of a whole day.
    past: Vec<(i32, f64)>,
    /// The rest of today as a part of a day, and the other days of the month.
    remaining: Vec<(i32, f64)>,
}

impl Days {
    /// `None` if an hour of day has no data in the last week.
    ///
    /// Noise is that of days: an hour is not independent of the next, and a total of 24 hours that
    /// ends at noon is not independent of the total before it.
    fn of(hours: &Hours, clock: Clock, now: &Zoned, end: Timestamp) -> Option<Self> {
        let last = clock.last(now.timestamp());
        let local = |hour: i64| LocalHour::of(clock, hour, now);
        let shares = shares_of_day(hours, last, &local)?;
        let whole: f64 = shares.iter().sum();
        let mut known: BTreeMap<i32, (f64, f64)> = BTreeMap::new();
        for (hour, cost) in hours.range(..=last) {
            let LocalHour { day, hour } = local(*hour)?;
            let (sum, share) = known.entry(day).or_default();
            *sum += cost;
            *share += shares[hour];
        }
        // A day of which hours are unknown counts by the known ones, if they are the larger part.
        // So does a day of 23 or 25 hours.
        let is_known = |(number, (_, share)): &(i32, (f64, f64))| *number < 0 && *share >= whole / 2.0;
        let past = known.into_iter().filter(is_known).map(|(number, (sum, share))| (number, sum / share * whole));
        let mut remaining: BTreeMap<i32, f64> = BTreeMap::new();
        for hour in last + 1.. {
            let from = clock.end(hour - 1).max(now.timestamp().as_second());
            let to = clock.end(hour).min(end.as_second());
            if to <= from {
                break;
            }
            let part = float(Decimal::from(to - from)) / 3600.0;
            let LocalHour { day, hour } = local(hour)?;
            *remaining.entry(day).or_default() += shares[hour] * part;
        }
        let remaining = remaining.into_iter().map(|(number, share)| (number, share / whole));
        Some(Self { past: past.collect(), remaining: remaining.collect() })
    }

    /// Low, middle and high end of the month's spending.
    fn forecast(&self, spent: f64) -> [Option<f64>; 3] {
        let Some(trend) = Trend::fit(&self.past) else { return [None; 3] };
        let rest = trend.sum(&self.remaining);
        let middle = spent + rest.middle.max(0.0);
        // What is spent remains spent.
        let low = rest.half_width.map(|half_width| (middle - half_width).max(spent));
        let high = rest.half_width.map(|half_width| middle + half_width);
        [low, Some(middle), high]
    }

    /// Mean relative error of forecasts of each past day from the days before it, if there are at
    /// least two.
    fn error(&self) -> Option<f64> {
        let error = |at: usize| {
            let (number, actual) = self.past[at];
            let predicted = Trend::fit(&self.past[..at])?.sum(&[(number, 1.0)]).middle.max(0.0);
            (actual > 0.0).then(|| (predicted - actual).abs() / actual)
        };
        let errors: Vec<f64> = (1..self.past.len()).filter_map(error).collect();
        if errors.len() < 2 { None } else { mean(&errors) }
    }
}

/// An hour on the local clock.
struct LocalHour {
    /// Day relative to today.
    day: i32,
    /// Hour of day, 0 to 23.
    hour: usize,
}

impl LocalHour {
    /// `None` outside of the range of dates.
    fn of(clock: Clock, hour: i64, now: &Zoned) -> Option<Self> {
        let start = Timestamp::from_second(clock.end(hour - 1)).ok()?;
        let local = now.time_zone().to_datetime(start);
        let days = |date: Date| i32::try_from(date.duration_since(now.date()).as_hours() / DAY).ok();
        Some(Self { day: days(local.date())?, hour: usize::try_from(local.hour()).ok()? })
    }
}

/// What each hour of day costs: its mean over the last week. All are equal if nothing was used.
/// `None` if an hour of day has no data.
fn shares_of_day(hours: &Hours, last: i64, local: &dyn Fn(i64) -> Option<LocalHour>) -> Option<[f64; 24]> {
    let mut by_hour: [Vec<f64>; 24] = Default::default();
    for (hour, cost) in hours.range(last - 7 * DAY + 1..=last) {
        by_hour[local(*hour)?.hour].push(*cost);
    }
    let mut shares = [0.0; 24];
    for (share, costs) in shares.iter_mut().zip(&by_hour) {
        *share = mean(costs)?;
    }
    Some(if shares.iter().any(|share| *share > 0.0) { shares } else { [1.0; 24] })
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;

    fn hours(count: i64, until: &Zoned, cost: impl Fn(i64) -> f64) -> Hours {
        let last = until.timestamp().as_second() / 3600;
        (last - count + 1..=last).map(|hour| (hour, cost(hour))).collect()
    }

    fn now(text: &str) -> Zoned {
        text.parse::<Timestamp>().unwrap().to_zoned(TimeZone::UTC)
    }

    #[test]
    fn even_use_has_burn_rate_one_and_exact_forecast() {
        let now = now("2026-11-16T00:00:00Z");
        let spending = calculate_spending(&hours(38 * 24, &now, |_| 1.0), 0.0, 720.0, &now);
        assert_eq!((spending.spent, spending.error), (360.0, Some(0.0)));
        assert_eq!(spending.burn, [("1h", 1.0), ("6h", 1.0), ("24h", 1.0)]);
        assert_eq!(spending.forecast, [Some(720.0); 3]);
    }

    #[test]
    fn forecast_follows_the_hour_of_day() {
        let now = now("2026-11-16T12:00:00Z");
        let evening = |hour: i64| if (18..22).contains(&(hour % 24)) { 5.0 } else { 0.5 };
        let spending = calculate_spending(&hours(20 * 24, &now, evening), 0.0, 100.0, &now);
        let a_day = 4.0 * 5.0 + 20.0 * 0.5;
        assert!((spending.forecast[1].unwrap() - 30.0 * a_day).abs() < 1e-9, "{:?}", spending.forecast);
        assert_eq!(spending.error, Some(0.0));
        // From midnight to midnight, so that days differ.
        let every_other = |hour: i64| if (hour - 1) / 24 % 2 == 0 { 1.0 } else { 3.0 };
        let spending = calculate_spending(&hours(20 * 24, &now, every_other), 0.0, 100.0, &now);
        assert!(spending.error.unwrap() > 0.3 && spending.forecast[2] > spending.forecast[1], "{spending:?}");
    }

    #[test]
    fn missing_hours_do_not_shift_the_forecast() {
        let now = now("2026-11-16T12:00:00Z");
        let evening = |hour: i64| if (18..22).contains(&(hour % 24)) { 5.0 } else { 0.5 };
        let mut all = hours(20 * 24, &now, evening);
        let last = now.timestamp().as_second() / 3600;
        // Five hours of one morning are missing; the forecast of evenings does not change.
        all.retain(|hour, _| !(last - 30..last - 25).contains(hour));
        let spending = calculate_spending(&all, 0.0, 100.0, &now);
        let rest = spending.forecast[1].unwrap() - spending.spent;
        assert!((rest - (14.0 * 30.0 + 24.0)).abs() < 1e-9, "{spending:?}");
        assert!(spending.burn.iter().any(|(window, _)| *window == "24h"));
        all.remove(&last);
        assert!(calculate_spending(&all, 0.0, 100.0, &now).burn.is_empty(), "an unknown hour does not count as free");
    }

    #[test]
    fn new_budget_has_no_forecast() {
        let now = now("2026-11-01T05:30:00Z");
        let spending = calculate_spending(&hours(5, &now, |_| 2.0), 0.25, 100.0, &now);
        assert_eq!((spending.forecast, spending.error), ([None; 3], None));
        assert_eq!(spending.spent, 5.0 * 2.0 + 0.25);
        assert_eq!(spending.burn.len(), 1);
    }

    #[test]
    fn months_begin_at_local_midnight_also_half_an_hour_off() {
        for (now, midnight, whole) in [
            ("2026-11-01T02:20[Europe/Stockholm]", "2026-10-31T23:00:00Z", 2),
            ("2026-11-01T02:20[Asia/Kolkata]", "2026-10-31T18:30:00Z", 2),
            ("2026-11-01T02:20[Asia/Kathmandu]", "2026-10-31T18:15:00Z", 2),
            ("2026-11-01T02:20[Australia/Adelaide]", "2026-10-31T13:30:00Z", 2),
            // Clocks go back from two to one at night.
            ("2026-11-01T02:20[America/St_Johns]", "2026-11-01T02:30:00Z", 3),
        ] {
            let (local, start) = (now.parse::<Zoned>().unwrap(), midnight.parse::<Timestamp>().unwrap());
            assert_eq!(month(&local).0, start, "{now}");
            let clock = Clock::of(start);
            assert!(clock.number(start).is_some(), "{now}: an hour begins with the month");
            // The hour before midnight does not count.
            let cost = |number: i32| if number > 0 { 1.0 } else { 100.0 };
            let hours: Hours =
                (-900..=whole).map(|number| (clock.last(start) + i64::from(number), cost(number))).collect();
            let spending = calculate_spending(&hours, 0.25, 100.0, &local);
            assert_eq!((spending.spent, spending.unknown_hours), (f64::from(whole) + 0.25, 0), "{now}");
        }
    }

    #[test]
    fn changes_of_the_clock_do_not_change_an_even_forecast() {
        for (now, partial, of_month) in [
            // 31 days and an hour; 31 days without an hour; 30 days and half an hour.
            ("2026-10-16T00:00[Europe/Stockholm]", 0.0, 745.0),
            ("2026-03-16T12:00[Europe/Stockholm]", 0.0, 743.0),
            ("2026-04-10T00:00[Australia/Lord_Howe]", 0.5, 720.5),
            ("2026-10-20T12:00[Australia/Adelaide]", 0.0, 743.0),
        ] {
            let local = now.parse::<Zoned>().unwrap();
            let last = Clock::of(month(&local).0).last(local.timestamp());
            let hours: Hours = (last - HISTORY_HOURS + 1..=last).map(|hour| (hour, 1.0)).collect();
            let spending = calculate_spending(&hours, partial, of_month, &local);
            assert_eq!(spending.unknown_hours, 0, "{now}");
            for end in spending.forecast {
                assert!((end.unwrap() - of_month).abs() < 1e-6, "{now}: {spending:?}");
            }
            assert!(spending.burn.iter().all(|(_, ratio)| (ratio - 1.0).abs() < 1e-9), "{now}: {spending:?}");
        }
    }

    /// `SplitMix64` (Steele, Lea and Flood 2014).
    struct Noise(u64);

    impl Noise {
        fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            f64::from(u32::try_from((mixed ^ (mixed >> 31)) >> 32).unwrap()) / f64::from(u32::MAX)
        }

        /// Nearly normal: a sum of twelve has the variance 1.
        fn normal(&mut self) -> f64 {
            (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
        }
    }

    /// Simulates 100 months of days with 20 % noise and a growth per day, and forecasts them at
    /// noon of a day of the month. Returns how many intervals hold the final spending, and the mean
    /// relative error of the middle.
    fn simulate(day: i32, growth: f64) -> (u32, f64) {
        let start = now("2026-11-01T00:00:00Z").timestamp();
        let moment = (day - 1) * 24 + 12;
        let now = start.checked_add(SignedDuration::from_hours(i64::from(moment))).unwrap().to_zoned(TimeZone::UTC);
        let first = Clock::of(start).last(start) + 1;
        let evening = |hour: i32| if (18..22).contains(&hour.rem_euclid(24)) { 5.0 } else { 0.5 };
        let mut noise = Noise(7);
        let (mut held, mut errors) = (0, Vec::new());
        for _ in 0..100 {
            let mut all: BTreeMap<i32, f64> = BTreeMap::new();
            for day in -38..30 {
                let level = (1.0 + growth * f64::from(day)) * (1.0 + 0.2 * noise.normal()).max(0.0);
                all.extend((day * 24..(day + 1) * 24).map(|hour| (hour, level * evening(hour))));
            }
            let known = all.range(moment - 38 * 24..moment);
            let hours: Hours = known.map(|(hour, cost)| (first + i64::from(*hour), *cost)).collect();
            let of_month: f64 = all.range(0..).map(|(_, cost)| cost).sum();
            let [low, middle, high] = calculate_spending(&hours, 0.0, 1000.0, &now).forecast.map(Option::unwrap);
            held += u32::from((low..=high).contains(&of_month));
            errors.push((middle - of_month) / of_month);
        }
        (held, mean(&errors).unwrap())
    }

    #[test]
    fn ninety_percent_interval_holds_the_month() {
        for day in [5, 10, 20] {
            for growth in [0.0, 0.01] {
                let (held, _) = simulate(day, growth);
                assert!(held >= 85, "day {day}, growth {growth}: {held} of 100");
            }
        }
    }

    #[test]
    fn growing_use_is_seen_in_the_forecast() {
        for day in [5, 10, 20] {
            // The mean of the past week would be 4 to 21 % too low for the month.
            let (_, error) = simulate(day, 0.02);
            assert!(error.abs() < 0.08, "day {day}: {error}");
        }
    }

    #[test]
    fn expression_selects_hosts_and_containers() {
        let settings = |text: &str| toml::from_str::<BudgetSettings>(text);
        assert!(settings("name = \"a\"\namount = 1").unwrap_err().to_string().contains("hosts"));
        let budget = settings("name = \"a\"\namount = 1\nhosts = [\"enc.1\", \"enc-2\"]").unwrap();
        let expression = budget.expression("instance", 3600);
        let roots = "max by (instance,package,zone,source) (increase(wattcast_energy_joules_total{instance=~\"enc\\\\.1(:[0-9]+)?|enc-2(:[0-9]+)?\",zone=~\"package|dram|gpu\"}[3600s]))";
        assert!(expression.starts_with(&format!("sum(({roots} unless on (instance) (")), "{expression}");
        let budget = settings("name = \"a\"\namount = 1\nhosts = [\"all\"]\ncontainers = [\"cam\"]").unwrap();
        assert_eq!(
            budget.expression("instance", 60),
            "sum(max by (instance,container,id,package,zone,source) (increase(wattcast_container_energy_joules_total{container=~\"cam\"}[60s])))"
        );
    }
}
