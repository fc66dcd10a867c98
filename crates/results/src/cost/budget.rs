//! Monthly budgets for energy: spending, burn rate, and a forecast with its backtest error.
//!
//! The database is queried for the increase of the energy counters in each hour of five weeks,
//! which is priced with the price of that hour.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp, Zoned};
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
use statistics::{mean, standard_deviation};

/// Hours of history: the longest month, and a week from which its first days are forecast.
const HISTORY_HOURS: i64 = 38 * 24;
/// Hours per day.
const DAY: i64 = 24;

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
    /// Forecast of spending at the end of the month, in the budget's currency: low, middle, high.
    /// Absent without enough history.
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

/// The cost of past hours by budget, so that each hour is queried only once.
#[derive(Clone, Debug, Default)]
pub struct HourlyCosts(BTreeMap<String, Hours>);

/// Queries the status of every budget.
#[must_use]
pub fn evaluate(
    settings: &[BudgetSettings],
    prices: &Prices,
    database: Option<&Database>,
    now: Timestamp,
    costs: &mut HourlyCosts,
) -> Vec<BudgetStatus> {
    let status = |budget: &BudgetSettings| {
        let currency = budget.currency.clone().unwrap_or_else(|| prices.currency.clone());
        let hours = costs.0.entry(budget.name.clone()).or_default();
        let spending = query_spending(budget, &currency, prices, database, now, hours);
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
    hours: &mut Hours,
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
    // Whole hours, in queries of three days to limit the samples that the database reads for one
    // query.
    let hour = now.as_second() / 3600;
    let oldest = hour - HISTORY_HOURS + 1;
    hours.retain(|end, _| *end >= oldest);
    // The last two hours are queried again, because samples may arrive late.
    let mut first = hours.last_key_value().map_or(oldest, |(end, _)| end - 1).max(oldest);
    let expression = budget.expression(database.host_label(), 3600);
    while first <= hour {
        let last = (first + 3 * DAY - 1).min(hour);
        let series =
            database.range(&expression, seconds(first * 3600), seconds(last * 3600), 3600).map_err(query_failed)?;
        for (end, joules) in series.first().map(Series::points).unwrap_or_default() {
            if let Some(end) = timestamp(end) {
                let start = end.checked_sub(SignedDuration::from_hours(1)).unwrap_or(end);
                hours.insert(end.as_second() / 3600, energy_cost(prices, start, end, joules, rate));
            }
        }
        first = last + 1;
    }
    let hour_start = timestamp(seconds(hour * 3600)).unwrap_or(now);
    let in_current_hour = budget.expression(database.host_label(), (now.as_second() - hour * 3600).max(1));
    let moment = seconds(now.as_second());
    let current = database.range(&in_current_hour, moment, moment, 1).map_err(query_failed)?;
    let current = current.first().and_then(|series| series.points().first().map(|point| point.1));
    if hours.is_empty() && current.is_none() {
        return Err(failed("no_samples", format!("the database has no samples for {expression}")));
    }
    let partial = current.map(|joules| energy_cost(prices, hour_start, now, joules, rate)).unwrap_or_default();
    let zone = prices.tariff.time_zone().clone();
    Ok(calculate_spending(hours, partial, float(budget.amount.0), &now.to_zoned(zone)))
}

/// The cost of energy between two times, in the budget's currency.
fn energy_cost(prices: &Prices, start: Timestamp, end: Timestamp, joules: f64, rate: Decimal) -> f64 {
    let price = prices.tariff.mean(start, end).unwrap_or_else(|| prices.tariff.at(start));
    joules / 3.6e6 * float(price) * float(prices.pue) * float(rate)
}

/// Cost of each past hour, by its end in hours since 1970. Hours without samples are absent.
type Hours = BTreeMap<i64, f64>;

/// The spending from hourly costs; `partial` is the cost of the current hour until now.
fn calculate_spending(hours: &Hours, partial: f64, amount: f64, now: &Zoned) -> Spending {
    let start = now.first_of_month().and_then(|day| day.start_of_day());
    let start = start.map_or_else(|_| now.timestamp(), |day| day.timestamp());
    let end = now.last_of_month().and_then(|day| day.tomorrow()).and_then(|day| day.start_of_day());
    let end = end.map_or_else(|_| now.timestamp(), |day| day.timestamp());
    let seconds = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs_f64();
    let last = now.timestamp().as_second() / 3600;
    let first = start.as_second() / 3600 + 1;
    let of_month: Vec<f64> = hours.range(first..).map(|hour| *hour.1).collect();
    let spent = of_month.iter().sum::<f64>() + partial;
    let unknown = (last + 1 - first).max(0) - i64::try_from(of_month.len()).unwrap_or(i64::MAX);
    let even_hour = amount / (seconds(start, end) / 3600.0);
    let burn = [("1h", 1), ("6h", 6), ("24h", 24)].into_iter().filter_map(|(window, count)| {
        let known: Vec<f64> = hours.range(last - count + 1..=last).map(|hour| *hour.1).collect();
        let is_complete = i64::try_from(known.len()).ok()? == count;
        (is_complete && even_hour > 0.0).then(|| Some((window, mean(&known)? / even_hour)))?
    });
    let left = (seconds(now.timestamp(), end) / 3600.0).max(0.0);
    let (error, deviation) = backtest(hours, last);
    // The remaining hours include the rest of the current one.
    let middle = forecast(hours, last, left).map(|remaining| spent + remaining);
    // Errors of different days are assumed to be independent.
    let half_width = deviation.map(|deviation| 2.0 * deviation * (left / 24.0).sqrt());
    let low = middle.zip(half_width).map(|(middle, half_width)| (middle - half_width).max(spent));
    let high = middle.zip(half_width).map(|(middle, half_width)| middle + half_width);
    Spending { spent, unknown_hours: unknown.max(0), burn: burn.collect(), forecast: [low, middle, high], error }
}

/// Forecasts the cost of the `left` hours after `last`: for each, the mean of the same hour of day
/// in the seven days up to `last`. `None` if an hour of day has no data in these days.
fn forecast(hours: &Hours, last: i64, left: f64) -> Option<f64> {
    let mut by_hour = [0.0; 24];
    for (ahead, mean_of) in (1..).zip(&mut by_hour) {
        let same: Vec<f64> = (1..=7).filter_map(|day| hours.get(&(last + ahead - day * DAY)).copied()).collect();
        *mean_of = mean(&same)?;
    }
    // The current hour counts with its remaining part.
    let (part, whole) = (left.fract(), left.trunc());
    let (mut sum, mut remaining) = (0.0, whole);
    let mut ahead = by_hour.iter().cycle();
    if part > 0.0 {
        sum += ahead.next().copied().unwrap_or_default() * part;
    }
    for cost in ahead {
        if remaining <= 0.0 {
            break;
        }
        sum += cost;
        remaining -= 1.0;
    }
    Some(sum)
}

/// Forecasts each complete past day from the data before it. Returns the mean relative error and
/// the standard deviation of the errors, if at least two days could be forecast.
fn backtest(hours: &Hours, last: i64) -> (Option<f64>, Option<f64>) {
    let (mut relative, mut errors) = (Vec::new(), Vec::new());
    for day in 1..HISTORY_HOURS / DAY {
        let from = last - day * DAY;
        let actual: Vec<f64> = hours.range(from + 1..=from + DAY).map(|hour| *hour.1).collect();
        if i64::try_from(actual.len()) != Ok(DAY) {
            continue;
        }
        let actual = actual.iter().sum::<f64>();
        if let Some(predicted) = forecast(hours, from, 24.0) {
            errors.push(predicted - actual);
            if actual > 0.0 {
                relative.push((predicted - actual).abs() / actual);
            }
        }
    }
    if errors.len() < 2 { (None, None) } else { (mean(&relative), standard_deviation(&errors)) }
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
        let every_other = |hour: i64| if (hour + 11) / 24 % 2 == 0 { 1.0 } else { 3.0 };
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
