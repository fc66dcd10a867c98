//! Budgets: what energy cost since the month began, whether that lasts, and what the month will come to, with how far such forecasts were off.
//!
//! Read from the database by the hour: the growth of the joule counters in each hour of five weeks, at the price of that hour.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp, Zoned};
use rust_decimal::Decimal;
use serde::Deserialize;

use super::{
    Prices,
    money::{Amount, float},
};
use crate::{
    energy::{
        Refused,
        database::{Database, Series, escaped, host_pattern},
    },
    figures::timestamp,
    statistics::{mean, standard_deviation},
};

/// Hours that are looked back: the longest month, and a week to forecast its beginning from.
const HOURS: i64 = 38 * 24;
/// Hours of a day.
const DAY: i64 = 24;

/// One budget, as written.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What it is called.
    pub name: String,
    /// What may be spent in a month.
    pub amount: Amount,
    /// In which currency; that of prices where it is left out.
    #[serde(default)]
    pub currency: Option<String>,
    /// Whose energy: names of hosts, or `["all"]`. There is no default: nothing is summed across hosts by accident.
    pub hosts: Vec<String>,
    /// Only these containers; the hosts' whole energy where it is left out.
    #[serde(default)]
    pub containers: Vec<String>,
}

/// How a budget stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// The budget.
    pub name: String,
    /// Its currency.
    pub currency: String,
    /// What may be spent.
    pub amount: Decimal,
    /// What was, or why that is not known: the label `reason`, and the words.
    pub followed: Result<Followed, (String, String)>,
}

/// What a followed budget has come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Followed {
    /// Since the month began, in the budget's currency.
    pub spent: f64,
    /// Hours of the month that are over, and of which the database has nothing.
    pub unknown_hours: i64,
    /// By window: what was spent over what an even use of the budget spends; 1 lasts exactly.
    pub burn: Vec<(&'static str, f64)>,
    /// At the month's end, in the budget's currency: low, middle, high; absent while there is less than a day to go by.
    pub forecast: [Option<f64>; 3],
    /// Mean miss of one day's forecast, as a part.
    pub error: Option<f64>,
}

impl Settings {
    /// The expression whose value is the joules of the last `seconds`. `increase` stands for raw samples here, of which a month is not to be had: over an hour of a counter that is
    /// scraped all the time it misses by what one scrape holds; of a container that lived for less than two scrapes Prometheus sees nothing.
    /// A counter that was scraped twice counts once. A host without packages has a sensor of its platform, which holds all else.
    fn expression(&self, host_label: &str, seconds: i64) -> String {
        let mut selectors = Vec::new();
        if self.hosts != ["all"] {
            let patterns = self.hosts.iter().map(|host| host_pattern(host)).collect::<Vec<_>>();
            selectors.push(format!("{host_label}=~\"{}\"", patterns.join("|")));
        }
        let once = |family: &str, labels: &str, own: &str| {
            let all: Vec<&str> =
                selectors.iter().map(String::as_str).chain([own]).filter(|one| !one.is_empty()).collect();
            format!("max by ({host_label},{labels}) (increase({family}{{{}}}[{seconds}s]))", all.join(","))
        };
        if !self.containers.is_empty() {
            let names = self.containers.iter().map(|name| escaped(name)).collect::<Vec<_>>();
            let own = format!("container=~\"{}\"", names.join("|"));
            let labels = "container,id,package,zone,source";
            return format!("sum({})", once("wattcast_container_energy_joules_total", labels, &own));
        }
        let of =
            |zones: &str| once("wattcast_energy_joules_total", "package,zone,source", &format!("zone=~\"{zones}\""));
        let (roots, packages, platform) = (of("package|dram|gpu"), of("package"), of("psys"));
        let platform = format!("({platform} unless on ({host_label}) {packages})");
        format!("sum(({roots} unless on ({host_label}) {platform}) or {platform})")
    }
}

/// What past hours cost, by budget; an hour that is over is asked for once.
#[derive(Clone, Debug, Default)]
pub struct Known(BTreeMap<String, Hours>);

/// Asks how every budget stands.
#[must_use]
pub fn follow(
    settings: &[Settings],
    prices: &Prices,
    database: Option<&Database>,
    now: Timestamp,
    known: &mut Known,
) -> Vec<Standing> {
    let standing = |budget: &Settings| {
        let currency = budget.currency.clone().unwrap_or_else(|| prices.currency.clone());
        let hours = known.0.entry(budget.name.clone()).or_default();
        let followed = one(budget, &currency, prices, database, now, hours);
        Standing { name: exporter::label::clean(&budget.name), currency, amount: budget.amount.0, followed }
    };
    settings.iter().map(standing).collect()
}

fn one(
    budget: &Settings,
    currency: &str,
    prices: &Prices,
    database: Option<&Database>,
    now: Timestamp,
    hours: &mut Hours,
) -> Result<Followed, (String, String)> {
    let failed = |reason: &str, why: String| (reason.to_owned(), why);
    let database =
        database.ok_or_else(|| failed("no_database", "budgets are read from a database: PROMETHEUS_URL".into()))?;
    let rate = prices.rates.convert(Decimal::ONE, &prices.currency, currency).ok_or_else(|| {
        failed("no_rate", format!("no rate between {} and {currency}; add [[rates]] to the file", prices.currency))
    })?;
    let refused = |refused: Refused| (refused.reason().to_owned(), refused.to_string());
    let seconds = |second: i64| float(Decimal::from(second));
    // Whole hours of the clock, three days of them at a time: a database reads them sample by sample.
    let hour = now.as_second() / 3600;
    let oldest = hour - HOURS + 1;
    hours.retain(|end, _| *end >= oldest);
    // The last two are asked again: what was sent late may have come meanwhile.
    let mut first = hours.last_key_value().map_or(oldest, |(end, _)| end - 1).max(oldest);
    let expression = budget.expression(database.host_label(), 3600);
    while first <= hour {
        let last = (first + 3 * DAY - 1).min(hour);
        let series = database.range(&expression, seconds(first * 3600), seconds(last * 3600), 3600).map_err(refused)?;
        for (end, joules) in series.first().map(Series::points).unwrap_or_default() {
            if let Some(end) = timestamp(end) {
                let start = end.checked_sub(SignedDuration::from_hours(1)).unwrap_or(end);
                hours.insert(end.as_second() / 3600, money(prices, start, end, joules, rate));
            }
        }
        first = last + 1;
    }
    // What the hour that runs has come to.
    let begun = timestamp(seconds(hour * 3600)).unwrap_or(now);
    let running = budget.expression(database.host_label(), (now.as_second() - hour * 3600).max(1));
    let moment = seconds(now.as_second());
    let live = database.range(&running, moment, moment, 1).map_err(refused)?;
    let live = live.first().and_then(|one| one.points().first().map(|point| point.1));
    if hours.is_empty() && live.is_none() {
        return Err(failed("no_samples", format!("the database has nothing for {expression}")));
    }
    let partial = live.map(|joules| money(prices, begun, now, joules, rate)).unwrap_or_default();
    let zone = prices.tariff.time_zone().clone();
    Ok(stand(hours, partial, float(budget.amount.0), &now.to_zoned(zone)))
}

/// What joules between two moments cost.
fn money(prices: &Prices, start: Timestamp, end: Timestamp, joules: f64, rate: Decimal) -> f64 {
    let price = prices.tariff.mean(start, end).unwrap_or_else(|| prices.tariff.at(start));
    joules / 3.6e6 * float(price) * float(prices.pue) * float(rate)
}

/// What each hour that is over has cost, by the number of its end since 1970. An hour in which nobody scraped is not in it.
type Hours = BTreeMap<i64, f64>;

/// What hours come to; `partial` is what the running hour has cost until now.
fn stand(hours: &Hours, partial: f64, amount: f64, now: &Zoned) -> Followed {
    let begun = now.first_of_month().and_then(|day| day.start_of_day());
    let begun = begun.map_or_else(|_| now.timestamp(), |day| day.timestamp());
    let end = now.last_of_month().and_then(|day| day.tomorrow()).and_then(|day| day.start_of_day());
    let end = end.map_or_else(|_| now.timestamp(), |day| day.timestamp());
    let seconds = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs_f64();
    let last = now.timestamp().as_second() / 3600;
    let first = begun.as_second() / 3600 + 1;
    let of_month: Vec<f64> = hours.range(first..).map(|hour| *hour.1).collect();
    let spent = of_month.iter().sum::<f64>() + partial;
    let unknown = (last + 1 - first).max(0) - i64::try_from(of_month.len()).unwrap_or(i64::MAX);
    let an_hour = amount / (seconds(begun, end) / 3600.0);
    let burn = [("1h", 1), ("6h", 6), ("24h", 24)].into_iter().filter_map(|(window, count)| {
        let known: Vec<f64> = hours.range(last - count + 1..=last).map(|hour| *hour.1).collect();
        let whole = i64::try_from(known.len()).ok()? == count;
        (whole && an_hour > 0.0).then(|| Some((window, mean(&known)? / an_hour)))?
    });
    let left = (seconds(now.timestamp(), end) / 3600.0).max(0.0);
    let (error, deviation) = backtest(hours, last);
    // The running hour's rest is part of what is left.
    let middle = forecast(hours, last, left).map(|rest| spent + rest);
    // Days that are missed independently of each other.
    let wide = deviation.map(|deviation| 2.0 * deviation * (left / 24.0).sqrt());
    let low = middle.zip(wide).map(|(middle, wide)| (middle - wide).max(spent));
    let high = middle.zip(wide).map(|(middle, wide)| middle + wide);
    Followed { spent, unknown_hours: unknown.max(0), burn: burn.collect(), forecast: [low, middle, high], error }
}

/// What the next `left` hours after `last` will cost: each as the mean of the same hour of day in the seven days up to `last`. Nothing where an hour of day is in none
/// of them.
fn forecast(hours: &Hours, last: i64, left: f64) -> Option<f64> {
    let mut by_hour = [0.0; 24];
    for (ahead, mean_of) in (1..).zip(&mut by_hour) {
        let same: Vec<f64> = (1..=7).filter_map(|day| hours.get(&(last + ahead - day * DAY)).copied()).collect();
        *mean_of = mean(&same)?;
    }
    // The hour that runs has a part of it left, and those after it are whole.
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

/// Forecasts each whole past day from what was known before it: the mean miss as a part, and the standard deviation of what was missed. Two days at least.
fn backtest(hours: &Hours, last: i64) -> (Option<f64>, Option<f64>) {
    let (mut parts, mut missed) = (Vec::new(), Vec::new());
    for day in 1..HOURS / DAY {
        let from = last - day * DAY;
        let actual: Vec<f64> = hours.range(from + 1..=from + DAY).map(|hour| *hour.1).collect();
        if i64::try_from(actual.len()) != Ok(DAY) {
            continue;
        }
        let actual = actual.iter().sum::<f64>();
        if let Some(predicted) = forecast(hours, from, 24.0) {
            missed.push(predicted - actual);
            if actual > 0.0 {
                parts.push((predicted - actual).abs() / actual);
            }
        }
    }
    if missed.len() < 2 { (None, None) } else { (mean(&parts), standard_deviation(&missed)) }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;

    fn hours(count: i64, until: &Zoned, money: impl Fn(i64) -> f64) -> Hours {
        let last = until.timestamp().as_second() / 3600;
        (last - count + 1..=last).map(|hour| (hour, money(hour))).collect()
    }

    fn now(text: &str) -> Zoned {
        text.parse::<Timestamp>().unwrap().to_zoned(TimeZone::UTC)
    }

    #[test]
    fn an_even_use_lasts_exactly_and_is_forecast_without_a_miss() {
        let now = now("2026-11-16T00:00:00Z");
        let standing = stand(&hours(38 * 24, &now, |_| 1.0), 0.0, 720.0, &now);
        assert_eq!((standing.spent, standing.error), (360.0, Some(0.0)));
        assert_eq!(standing.burn, [("1h", 1.0), ("6h", 1.0), ("24h", 1.0)]);
        assert_eq!(standing.forecast, [Some(720.0); 3]);
    }

    #[test]
    fn evenings_come_again_and_weeks_that_differ_show_in_the_error() {
        let now = now("2026-11-16T12:00:00Z");
        let evening = |hour: i64| if (18..22).contains(&(hour % 24)) { 5.0 } else { 0.5 };
        let standing = stand(&hours(20 * 24, &now, evening), 0.0, 100.0, &now);
        let a_day = 4.0 * 5.0 + 20.0 * 0.5;
        assert!((standing.forecast[1].unwrap() - 30.0 * a_day).abs() < 1e-9, "{:?}", standing.forecast);
        assert_eq!(standing.error, Some(0.0));
        let every_other = |hour: i64| if (hour + 11) / 24 % 2 == 0 { 1.0 } else { 3.0 };
        let standing = stand(&hours(20 * 24, &now, every_other), 0.0, 100.0, &now);
        assert!(standing.error.unwrap() > 0.3 && standing.forecast[2] > standing.forecast[1], "{standing:?}");
    }

    #[test]
    fn an_hour_that_nobody_scraped_is_not_the_next_one() {
        let now = now("2026-11-16T12:00:00Z");
        let evening = |hour: i64| if (18..22).contains(&(hour % 24)) { 5.0 } else { 0.5 };
        let mut all = hours(20 * 24, &now, evening);
        let last = now.timestamp().as_second() / 3600;
        // Five hours of one morning are missing: what is forecast for evenings stays with evenings.
        all.retain(|hour, _| !(last - 30..last - 25).contains(hour));
        let standing = stand(&all, 0.0, 100.0, &now);
        let rest = standing.forecast[1].unwrap() - standing.spent;
        assert!((rest - (14.0 * 30.0 + 24.0)).abs() < 1e-9, "{standing:?}");
        assert!(standing.burn.iter().any(|(window, _)| *window == "24h"));
        all.remove(&last);
        assert!(stand(&all, 0.0, 100.0, &now).burn.is_empty(), "an hour that is not known is not cheap");
    }

    #[test]
    fn little_is_known_at_first() {
        let now = now("2026-11-01T05:30:00Z");
        let standing = stand(&hours(5, &now, |_| 2.0), 0.25, 100.0, &now);
        assert_eq!((standing.forecast, standing.error), ([None; 3], None));
        assert_eq!(standing.spent, 5.0 * 2.0 + 0.25);
        assert_eq!(standing.burn.len(), 1);
    }

    #[test]
    fn a_budget_says_whose_it_is() {
        let settings = |text: &str| toml::from_str::<Settings>(text);
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
