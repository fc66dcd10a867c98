//! Port 9504: what runs cost, and what energy, compute and carbon cost now.

use std::collections::BTreeSet;

use exporter::{
    family::{Def, Family},
    process, program,
};
use jiff::Timestamp;
use rust_decimal::Decimal;

use super::{Cost, Origin, Prices, budget::Standing, money::float};
use crate::{
    cells::is_whole,
    columns::{Across, across, repeated, spread},
    figures::{Entry, Model},
};

const SEED: &[&str] = &["scenario", "streams", "bitrate", "encoder", "service", "run", "currency"];

static AMOUNT: Def = Def::gauge(
    "wattcast_cost_amount",
    &["scenario", "bitrate", "encoder", "run", "currency", "part"],
    "What a scenario cost, in units of the currency. part: energy, compute, gpu, total; the total is absent while a part of it is not known.",
);
static CELL: Across = across!(
    ["scenario", "bitrate", "encoder", "run", "currency", "part"],
    "wattcast_cell_cost_amount",
    "What a configuration cost, in units of the currency, the mean over its repeats. part: as of wattcast_cost_amount.",
    "wattcast_cell_cost_interval_amount",
    "The 95 % interval of that mean (Student's), in units of the currency; prices are taken as exact. bound: low, high."
);
static PER: Def = Def::gauge(
    "wattcast_cost_per_unit_amount",
    &["scenario", "bitrate", "encoder", "run", "currency", "unit"],
    "The total over what was delivered. unit: pixel, megapixel (10^6 pixels), frame, stream_hour (an hour of media of one stream), viewer_hour (only where \
     a file says how many watched).",
);
static CARBON: Def = Def::gauge(
    "wattcast_cost_carbon_grams",
    &["scenario", "bitrate", "encoder", "run", "origin"],
    "CO2-equivalents of a scenario's energy in grams, by the grid's intensity in its window. origin: given, file, http.",
);
static PRICE: Def = Def::gauge(
    "wattcast_price_amount",
    &["item", "currency", "origin"],
    "Prices in force now. item: energy (a kilowatt hour, by the tariff's present hour), cpu (a core for an hour), gpu, node (for an hour). origin: default \
     (nobody gave one), user (flag or environment), file.",
);
static ENERGY_NOW: Def = Def::gauge(
    "wattcast_energy_price_amount",
    &["currency"],
    "Price of a joule now, in units of the currency, PUE included: times a rate of joules it is money for a second.",
);
static GRAMS_NOW: Def =
    Def::gauge("wattcast_energy_carbon_grams", &[], "CO2-equivalents of a joule now, in grams, PUE included.");
static INTENSITY: Def = Def::gauge(
    "wattcast_carbon_intensity_grams",
    &["origin", "region", "estimated"],
    "CO2-equivalents of a kilowatt hour of the grid now, in grams. estimated is what the source says of itself.",
);
static INTENSITY_AT: Def = Def::gauge(
    "wattcast_carbon_intensity_timestamp_seconds",
    &["origin", "region"],
    "From when on that figure holds, in unix seconds.",
);
static PUE: Def =
    Def::gauge("wattcast_pue_ratio", &[], "Energy of the building for one of the machine, as it was given.");
static RATE: Def = Def::gauge(
    "wattcast_fx_rate_ratio",
    &["from", "to", "date"],
    "What one unit of a currency is worth in another, as of the date.",
);
static RATE_AGE: Def = Def::gauge("wattcast_fx_rate_age_seconds", &["from", "to"], "How long ago that day was.");
static RATE_STALE: Def =
    Def::gauge("wattcast_fx_rate_stale", &["from", "to"], "1 when that is longer ago than --currency.max-age; else 0.");
static MODEL: Def = Def::gauge(
    "wattcast_compute_model_info",
    &["model"],
    "1; how CPU time is paid for: used (core-seconds), reserved (or what was used, where that is more), node (the whole machine).",
);

static BUDGET: Def =
    Def::gauge("wattcast_budget_amount", &["budget", "currency"], "What may be spent on energy in a month.");
static SPENT: Def = Def::gauge(
    "wattcast_budget_spent_amount",
    &["budget", "currency"],
    "What was spent on energy since the month began, by the counters in the database, at the prices of each hour.",
);
static UNKNOWN: Def = Def::gauge(
    "wattcast_budget_unknown_seconds",
    &["budget"],
    "Of the month until now, hours of which the database has no sample, in seconds; what they cost is not in what was spent.",
);
static BURN: Def = Def::gauge(
    "wattcast_budget_burn_ratio",
    &["budget", "window"],
    "What is spent over what an even use of the budget would spend: above 1 it does not last. window: 1h, 6h, 24h.",
);
static FORECAST: Def = Def::gauge(
    "wattcast_budget_forecast_amount",
    &["budget", "currency", "bound"],
    "What will have been spent when the month ends, if the hours to come are as those of the week before. bound: low, middle, high (two standard errors of \
     the forecasts of past days).",
);
static FORECAST_ERROR: Def = Def::gauge(
    "wattcast_budget_forecast_error_ratio",
    &["budget"],
    "How far such a forecast of one day missed, in the mean over the past days, as a part of what was spent. Absent before the third day.",
);
static BUDGET_UP: Def = Def::gauge(
    "wattcast_budget_up",
    &["budget", "reason"],
    "1 while a budget is followed; 0 with the reason: no_database, no_samples, unreachable, no_rate, …",
);

static ALIVE: Def = Def::gauge("cost_exporter_alive", &[], "1 while the exporter runs.").seed();
static SCENARIOS: Def = Def::gauge("cost_scenarios_total", &[], "Scenarios that are served, of all runs shown.").seed();
static INFO: Def = Def::gauge(
    "cost_exporter_info",
    &["version", "language", "region"],
    "1; which program serves the names of the cost exporter.",
)
.seed();

macro_rules! seed {
    ($name:literal, $help:literal) => {{
        static DEF: Def = Def::gauge($name, SEED, $help).seed();
        &DEF
    }};
}

/// A part of a cost.
type Part = fn(&Entry) -> Option<Decimal>;

/// The names of the replaced exporters.
static SEEDS: &[(&Def, Part)] = &[
    (seed!("cost_total_load_aware", "Energy and compute cost of a scenario."), |e| e.cost.total),
    (seed!("cost_energy_load_aware", "Energy cost of a scenario."), |e| e.cost.energy),
    (seed!("cost_compute_load_aware", "Compute cost of a scenario."), |e| e.cost.compute),
    (seed!("cost_total", "The same as cost_total_load_aware."), |e| e.cost.total),
    (seed!("cost_energy", "The same as cost_energy_load_aware."), |e| e.cost.energy),
    (seed!("cost_compute", "The same as cost_compute_load_aware."), |e| e.cost.compute),
    (seed!("cost_per_pixel", "Cost over pixels encoded."), |e| e.cost.per(e.figures.pixels)),
    (
        seed!(
            "cost_per_watch_hour",
            "Cost over hours of all streams, each taken as one viewer, as the replaced exporter had it."
        ),
        |e| {
            let streams = f64::from(e.scenario().stream_count().unwrap_or(1));
            e.cost.per(e.figures.seconds.map(|seconds| seconds / 3600.0 * streams))
        },
    ),
];

/// Every metric of this page, for the documentation.
#[must_use]
pub fn defs() -> Vec<&'static Def> {
    let all: [&Def; 25] = [
        &AMOUNT,
        CELL.mean,
        CELL.interval,
        &PER,
        &CARBON,
        &PRICE,
        &ENERGY_NOW,
        &GRAMS_NOW,
        &INTENSITY,
        &INTENSITY_AT,
        &PUE,
        &RATE,
        &RATE_AGE,
        &RATE_STALE,
        &MODEL,
        &BUDGET,
        &SPENT,
        &UNKNOWN,
        &BURN,
        &FORECAST,
        &FORECAST_ERROR,
        &BUDGET_UP,
        &ALIVE,
        &SCENARIOS,
        &INFO,
    ];
    all.into_iter().chain(SEEDS.iter().map(|(def, _)| *def)).collect()
}

/// What is delivered, by the label `unit`.
#[must_use]
pub fn units(entry: &Entry) -> [(&'static str, Option<f64>); 5] {
    let figures = &entry.figures;
    [
        ("pixel", figures.pixels),
        ("megapixel", figures.pixels.map(|pixels| pixels / 1e6)),
        ("frame", figures.frames),
        ("stream_hour", figures.media_seconds.map(|seconds| seconds / 3600.0)),
        ("viewer_hour", entry.scenario().viewers.and_then(|viewers| Some(viewers * figures.seconds? / 3600.0))),
    ]
}

/// The parts of a cost, by the label `part`.
#[must_use]
pub fn parts(cost: &Cost) -> [(&'static str, Option<Decimal>); 4] {
    [("energy", cost.energy), ("compute", cost.compute), ("gpu", cost.gpu), ("total", cost.total)]
}

/// The part of the page that changes with the runs.
pub fn families<'a>(model: &'a Model, prices: &'a Prices) -> impl Iterator<Item = Family> + 'a {
    let mut seen = BTreeSet::new();
    let currencies: Vec<&str> = std::iter::once(&prices.currency)
        .chain(&prices.report)
        .map(String::as_str)
        .filter(|code| seen.insert(*code))
        .collect();
    let shown = currencies.clone();
    let into = move |amount: Option<Decimal>, then: &mut dyn FnMut(&str, f64)| {
        let Some(amount) = amount else { return };
        for to in &shown {
            if let Some(amount) = prices.rates.convert(amount, &prices.currency, to) {
                then(to, float(amount));
            }
        }
    };
    let amount = spread(model, &AMOUNT, |entry, push| {
        for (part, amount) in parts(&entry.cost) {
            into(amount, &mut |currency, value| push(&[currency, part], value));
        }
    });
    let of_cells = repeated(model, &CELL, |entry, push| {
        if !is_whole(entry) {
            return;
        }
        for (part, amount) in parts(&entry.cost) {
            into(amount, &mut |currency, value| push(&[currency, part], value));
        }
    });
    let per = spread(model, &PER, |entry, push| {
        for (unit, delivered) in units(entry) {
            into(entry.cost.per(delivered), &mut |currency, value| push(&[currency, unit], value));
        }
    });
    let carbon = spread(model, &CARBON, |entry, push| {
        if let (Some(grams), Some(carbon)) = (entry.cost.carbon, &prices.carbon) {
            push(&[carbon.origin().as_str()], float(grams));
        }
    });
    let seeds = SEEDS.iter().map(move |(def, part)| {
        spread(model, def, |entry, push| into(part(entry), &mut |currency, value| push(&[currency], value)))
    });
    [amount].into_iter().chain(of_cells).chain([per, carbon]).chain(seeds)
}

/// The part of the page that changes by itself.
#[must_use]
pub fn state(model: &Model, prices: &Prices, budgets: &[Standing], now: Timestamp) -> Vec<Family> {
    let currency = &*prices.currency;
    let mut price = Family::new(&PRICE);
    let energy = prices.energy_now(now);
    price.push(&["energy", currency, prices.energy_origin.as_str()], float(energy));
    price.push(&["cpu", currency, prices.core_hour.origin.as_str()], float(prices.core_hour.amount));
    for (item, given) in [("gpu", prices.gpu_hour), ("node", prices.node_hour)] {
        if let Some(given) = given {
            price.push(&[item, currency, given.origin.as_str()], float(given.amount));
        }
    }
    let joule = |each: Decimal| each.checked_mul(prices.pue)?.checked_div(Decimal::from(3_600_000));
    let mut energy_now = Family::new(&ENERGY_NOW);
    // In one currency: a rule that multiplies by it wants one figure.
    if let Some(amount) = joule(energy) {
        energy_now.push(&[currency], float(amount));
    }
    let (mut grams_now, mut intensity, mut intensity_at) =
        (Family::new(&GRAMS_NOW), Family::new(&INTENSITY), Family::new(&INTENSITY_AT));
    if let Some(carbon) = &prices.carbon
        && let Some((grams, reading)) = carbon.at(now)
    {
        let (origin, region) = (carbon.origin().as_str(), &*prices.region);
        let estimated = reading.is_some_and(|reading| reading.estimated).to_string();
        intensity.push(&[origin, region, &estimated], float(grams));
        if let Some(grams) = joule(grams) {
            grams_now.push(&[], float(grams));
        }
        if let Some(reading) = reading {
            intensity_at.push(&[origin, region], float(Decimal::from(reading.at.as_second())));
        }
    }
    let (mut rate, mut age, mut stale) = (Family::new(&RATE), Family::new(&RATE_AGE), Family::new(&RATE_STALE));
    let mut pairs = BTreeSet::new();
    for known in &prices.rates.0 {
        // The newest of each pair is what counts.
        if !pairs.insert((&known.from, &known.to)) || prices.rates.between(&known.from, &known.to) != Some(known) {
            pairs.remove(&(&known.from, &known.to));
            continue;
        }
        rate.push(&[&known.from, &known.to, &known.date.to_string()], float(known.rate.0));
        let seconds = known.age_seconds(now);
        age.push(&[&known.from, &known.to], seconds);
        stale.push(&[&known.from, &known.to], f64::from(u8::from(seconds > prices.rate_max_age.as_secs_f64())));
    }
    let scenarios = u32::try_from(model.entries.len()).unwrap_or(u32::MAX);
    let mut all = vec![
        price,
        energy_now,
        grams_now,
        intensity,
        intensity_at,
        Family::new(&PUE).with(&[], float(prices.pue)),
        rate,
        age,
        stale,
        Family::new(&MODEL).with(&[prices.model.as_str()], 1.0),
    ];
    all.extend(of_budgets(budgets));
    all.extend([
        Family::new(&ALIVE).with(&[], 1.0),
        Family::new(&SCENARIOS).with(&[], f64::from(scenarios)),
        Family::new(&INFO).with(&[program::VERSION, "rust", &prices.region], 1.0),
        program::build_info(),
    ]);
    all.extend(process::families());
    all
}

fn of_budgets(budgets: &[Standing]) -> Vec<Family> {
    let [mut amount, mut spent, mut unknown, mut burn, mut forecast, mut error, mut up] =
        [&BUDGET, &SPENT, &UNKNOWN, &BURN, &FORECAST, &FORECAST_ERROR, &BUDGET_UP].map(Family::new);
    for standing in budgets {
        let (name, currency) = (&*standing.name, &*standing.currency);
        amount.push(&[name, currency], float(standing.amount));
        match &standing.followed {
            Err((reason, _)) => up.push(&[name, reason], 0.0),
            Ok(followed) => {
                up.push(&[name, ""], 1.0);
                spent.push(&[name, currency], followed.spent);
                unknown.push(&[name], float(Decimal::from(followed.unknown_hours)) * 3600.0);
                for (window, ratio) in &followed.burn {
                    burn.push(&[name, window], *ratio);
                }
                for (bound, value) in ["low", "middle", "high"].into_iter().zip(followed.forecast) {
                    if let Some(value) = value {
                        forecast.push(&[name, currency, bound], value);
                    }
                }
                if let Some(missed) = followed.error {
                    error.push(&[name], missed);
                }
            }
        }
    }
    vec![amount, spent, unknown, burn, forecast, error, up]
}

/// Prices for people: the item, how much, and whose figure it is.
#[must_use]
pub fn table(prices: &Prices, now: Timestamp) -> Vec<Vec<String>> {
    let said = |origin: Origin| match origin {
        Origin::Default => "default: nobody gave one",
        Origin::User => "given by flag or environment",
        Origin::File => "given in the configuration file",
    };
    let money = |amount: Decimal| format!("{} {}", amount.normalize(), prices.currency);
    let timed = if prices.tariff.is_timed() { "energy, 1 kWh, at this hour" } else { "energy, 1 kWh" };
    let mut rows = vec![
        vec![timed.to_owned(), money(prices.energy_now(now)), said(prices.energy_origin).to_owned()],
        vec!["a core, 1 h".to_owned(), money(prices.core_hour.amount), said(prices.core_hour.origin).to_owned()],
    ];
    for (item, price) in [("a GPU, 1 h", prices.gpu_hour), ("the machine, 1 h", prices.node_hour)] {
        if let Some(price) = price {
            rows.push(vec![item.to_owned(), money(price.amount), said(price.origin).to_owned()]);
        }
    }
    let carbon = match prices.carbon.as_ref().map(|carbon| (carbon.at(now), carbon.origin())) {
        None => ("–".to_owned(), "no carbon intensity was given".to_owned()),
        Some((None, origin)) => ("–".to_owned(), format!("no figure for now, from {}", origin.as_str())),
        Some((Some((grams, reading)), origin)) => {
            let since = reading.map(|reading| format!(", of {}", reading.at)).unwrap_or_default();
            (format!("{} g", grams.normalize()), format!("{}{since}", origin.as_str()))
        }
    };
    rows.push(vec!["CO₂-equivalents, 1 kWh".to_owned(), carbon.0, carbon.1]);
    rows
}
