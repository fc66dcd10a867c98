//! Metrics of port 9504: cost of runs, current prices of energy, compute and carbon, and budgets.

use std::collections::BTreeSet;

use cli::program;
use jiff::Timestamp;
use metrics::{
    family::{Def, Family},
    process,
};
use rust_decimal::Decimal;

use crate::pages::scenario_metrics::{MeanDefs, families_of_means, family_of_rows, labels, mean_defs};
use results::cost::{Cost, PriceOrigin, Prices, budget::BudgetStatus, money::float, per_unit};
use results::{
    model::{Entry, Model},
    repeats::configurations,
};

const LEGACY_LABELS: &[&str] = &["scenario", "streams", "bitrate", "encoder", "service", "run", "currency"];

static AMOUNT: Def = Def::gauge(
    "wattcast_cost_amount",
    &["scenario", "bitrate", "encoder", "run", "currency", "part"],
    "Cost of a scenario in units of the currency. part: energy, compute (absent without a price of \
     CPU time), gpu, total (of the parts with a price; absent while one of them is unknown).",
);
static MEAN_AMOUNT: MeanDefs = mean_defs!(
    ["scenario", "bitrate", "encoder", "run", "currency", "part"],
    "wattcast_cell_cost_amount",
    "Mean cost of a configuration over its repeats, in units of the currency. part: see \
     wattcast_cost_amount.",
    "wattcast_cell_cost_interval_amount",
    "95 % interval (Student) of that mean, in units of the currency, with exact prices assumed. \
     bound: low, high."
);
static PER: Def = Def::gauge(
    "wattcast_cost_per_unit_amount",
    &["scenario", "bitrate", "encoder", "run", "currency", "part", "unit"],
    "Cost per unit of output. part: see wattcast_cost_amount. unit: pixel, megapixel (10^6 pixels), \
     frame, stream_hour (an hour of media of one stream), viewer_hour (only where the file has a \
     number of viewers).",
);
static CARBON: Def = Def::gauge(
    "wattcast_cost_carbon_grams",
    &["scenario", "bitrate", "encoder", "run", "origin"],
    "CO2-equivalents of a scenario's energy in grams, by the grid's carbon intensity in its \
     window. origin: given, file, http.",
);
static PRICE: Def = Def::gauge(
    "wattcast_price_amount",
    &["item", "currency", "origin"],
    "Current prices in units of the currency. item: energy (per kilowatt hour, by the tariff's \
     current hour), cpu (per core-hour), gpu, node (per hour); only energy has a default. origin: \
     default (not configured), user (flag or environment), file.",
);
static ENERGY_NOW: Def = Def::gauge(
    "wattcast_energy_price_amount",
    &["currency"],
    "Current price of a joule in units of the currency, including PUE; multiplied by a rate of \
     joules it is a cost per second.",
);
static GRAMS_NOW: Def =
    Def::gauge("wattcast_energy_carbon_grams", &[], "Current CO2-equivalents of a joule in grams, including PUE.");
static INTENSITY: Def = Def::gauge(
    "wattcast_carbon_intensity_grams",
    &["origin", "region", "estimated"],
    "Current carbon intensity of the grid in grams of CO2-equivalents per kilowatt hour. \
     estimated: as reported by the source.",
);
static INTENSITY_AT: Def = Def::gauge(
    "wattcast_carbon_intensity_timestamp_seconds",
    &["origin", "region"],
    "Start of validity of that carbon intensity, in Unix seconds.",
);
static PUE: Def = Def::gauge(
    "wattcast_pue_ratio",
    &[],
    "Configured power usage effectiveness: energy of the building per energy of the machine.",
);
static RATE: Def = Def::gauge(
    "wattcast_fx_rate_ratio",
    &["from", "to", "date"],
    "Exchange rate: value of one unit of a currency in another, as of the date.",
);
static RATE_AGE: Def =
    Def::gauge("wattcast_fx_rate_age_seconds", &["from", "to"], "Age of the exchange rate in seconds.");
static RATE_STALE: Def = Def::gauge(
    "wattcast_fx_rate_stale",
    &["from", "to"],
    "1 if the exchange rate is older than --currency.max-age, else 0.",
);
static MODEL: Def = Def::gauge(
    "wattcast_compute_model_info",
    &["model"],
    "Always 1; pricing model of CPU time: used (core-seconds), reserved (or core-seconds used, if \
     more), node (the whole machine).",
);

static BUDGET: Def =
    Def::gauge("wattcast_budget_amount", &["budget", "currency"], "Monthly energy budget in units of the currency.");
static SPENT: Def = Def::gauge(
    "wattcast_budget_spent_amount",
    &["budget", "currency"],
    "Cost of the energy since the start of the month, by the counters in the database, at each \
     hour's prices.",
);
static UNKNOWN: Def = Def::gauge(
    "wattcast_budget_unknown_seconds",
    &["budget"],
    "Seconds of the month so far without samples in the database; their cost is not in \
     wattcast_budget_spent_amount.",
);
static BURN: Def = Def::gauge(
    "wattcast_budget_burn_ratio",
    &["budget", "window"],
    "Budget burn rate: spending relative to an even use of the budget; above 1 the budget runs \
     out before the month ends. window: 1h, 6h, 24h.",
);
static FORECAST: Def = Def::gauge(
    "wattcast_budget_forecast_amount",
    &["budget", "currency", "bound"],
    "Forecast of the spending at the end of the month, from the trend and the days of the week of \
     the past 38 days. bound: low, middle, high (90 % interval).",
);
static FORECAST_ERROR: Def = Def::gauge(
    "wattcast_budget_forecast_error_ratio",
    &["budget"],
    "Mean relative error of one-day forecasts over the past days; absent before the third day.",
);
static BUDGET_UP: Def = Def::gauge(
    "wattcast_budget_up",
    &["budget", "reason"],
    "1 while the budget is tracked, 0 with the reason otherwise: no_database, no_samples, \
     unreachable, no_rate, …",
);

static ALIVE: Def = Def::gauge("cost_exporter_alive", &[], "1 while the exporter runs.").compat();
static SCENARIOS: Def = Def::gauge("cost_scenarios_total", &[], "Scenarios on the page, over all runs.").compat();
static INFO: Def = Def::gauge(
    "cost_exporter_info",
    &["version", "language", "region"],
    "Always 1; version and language of the program that serves the cost exporter's names.",
)
.compat();

macro_rules! legacy {
    ($name:literal, $help:literal) => {{
        static DEF: Def = Def::gauge($name, LEGACY_LABELS, $help).compat();
        &DEF
    }};
}

/// Selects a part of the cost of a scenario.
type Part = fn(&Entry) -> Option<Decimal>;

/// The legacy names.
static LEGACY: &[(&Def, Part)] = &[
    (
        legacy!(
            "cost_total_load_aware",
            "Energy and compute cost of a scenario, see cost_energy_load_aware and cost_compute_load_aware."
        ),
        |e| e.cost.legacy_total,
    ),
    (legacy!("cost_energy_load_aware", "Energy cost of a scenario."), |e| e.cost.energy),
    (
        legacy!(
            "cost_compute_load_aware",
            "Compute cost of a scenario; without --cpu.price at 0.50 per core-hour, as in the legacy exporter."
        ),
        |e| e.cost.legacy_compute,
    ),
    (legacy!("cost_total", "Same as cost_total_load_aware."), |e| e.cost.legacy_total),
    (legacy!("cost_energy", "Same as cost_energy_load_aware."), |e| e.cost.energy),
    (legacy!("cost_compute", "Same as cost_compute_load_aware."), |e| e.cost.legacy_compute),
    (
        legacy!(
            "cost_per_pixel",
            "cost_total_load_aware per encoded pixel; energy_coverage=\"part\": too low, the energy is that of a part \
             of the window."
        ),
        |e| per_unit(e.cost.legacy_total, e.derived.pixels),
    ),
    (
        legacy!(
            "cost_per_watch_hour",
            "cost_total_load_aware per hour of all streams, with one viewer per stream, as in the legacy exporter; \
             energy_coverage=\"part\": too low, the energy is that of a part of the window."
        ),
        |e| {
            let streams = f64::from(e.scenario().stream_count().unwrap_or(1));
            per_unit(e.cost.legacy_total, e.derived.seconds.map(|seconds| seconds / 3600.0 * streams))
        },
    ),
];

/// Every metric of the page, for the documentation.
#[must_use]
pub fn defs() -> Vec<&'static Def> {
    let all: [&Def; 25] = [
        &AMOUNT,
        MEAN_AMOUNT.mean,
        MEAN_AMOUNT.interval,
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
    all.into_iter().chain(LEGACY.iter().map(|(def, _)| *def)).collect()
}

/// Output of a scenario by the label `unit`.
#[must_use]
pub fn units(entry: &Entry) -> [(&'static str, Option<f64>); 5] {
    let figures = &entry.derived;
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

/// The families that depend on the runs.
pub fn families<'a>(model: &'a Model, prices: &'a Prices) -> impl Iterator<Item = Family> + 'a {
    let mut seen = BTreeSet::new();
    let currencies: Vec<&str> = std::iter::once(&prices.currency)
        .chain(&prices.report)
        .map(String::as_str)
        .filter(|code| seen.insert(*code))
        .collect();
    let shown = currencies.clone();
    let convert = move |amount: Option<Decimal>, push: &mut dyn FnMut(&str, f64)| {
        let Some(amount) = amount else { return };
        for to in &shown {
            if let Some(amount) = prices.rates.convert(amount, &prices.currency, to) {
                push(to, float(amount));
            }
        }
    };
    let amount = family_of_rows(model, &AMOUNT, |entry, push| {
        for (part, amount) in parts(&entry.cost) {
            convert(amount, &mut |currency, value| push(&[currency, part], value));
        }
    });
    // Repeats with energy of different sources have no mean cost either.
    let all = configurations(model);
    let mixed = all.iter().filter(|configuration| configuration.energy_source().is_none());
    let mixed: BTreeSet<(&str, Option<usize>)> =
        mixed.map(|one| (&*one.first().run.id, one.first().scenario().configuration)).collect();
    let means = families_of_means(model, &MEAN_AMOUNT, |entry, push| {
        if !entry.derived.is_whole || mixed.contains(&(&*entry.run.id, entry.scenario().configuration)) {
            return;
        }
        for (part, amount) in parts(&entry.cost) {
            convert(amount, &mut |currency, value| push(&[currency, part], value));
        }
    });
    let per = family_of_rows(model, &PER, |entry, push| {
        // The cost of a part of the energy is not divided by what the whole window delivered.
        if entry.derived.energy.is_some() && !entry.derived.is_whole {
            return;
        }
        for (part, amount) in parts(&entry.cost) {
            for (unit, delivered) in units(entry) {
                let cost = per_unit(amount, delivered);
                convert(cost, &mut |currency, value| push(&[currency, part, unit], value));
            }
        }
    });
    let carbon = family_of_rows(model, &CARBON, |entry, push| {
        if let (Some(grams), Some(carbon)) = (entry.cost.carbon, &prices.carbon) {
            push(&[carbon.origin().as_str()], float(grams));
        }
    });
    let legacy = LEGACY.iter().map(move |(def, part)| legacy_family(model, def, *part, &convert));
    [amount].into_iter().chain(means).chain([per, carbon]).chain(legacy)
}

/// Calls with an amount in each currency.
type Convert<'a> = &'a dyn Fn(Option<Decimal>, &mut dyn FnMut(&str, f64));

/// The family of a legacy name. A cost per unit of a part of the energy has the label
/// `energy_coverage="part"`.
fn legacy_family(model: &Model, def: &'static Def, part: Part, convert: Convert<'_>) -> Family {
    let mut family = Family::new(def);
    for entry in &model.entries {
        let is_part = def.name.starts_with("cost_per_") && !entry.derived.is_whole;
        let extra: &[(&str, &str)] = if is_part { &[("energy_coverage", "part")] } else { &[] };
        let mut own = labels(entry, def);
        // The currency is the last label.
        own.pop();
        convert(part(entry), &mut |currency, value| {
            let row: Vec<&str> = own.iter().map(|label| &**label).chain([currency]).collect();
            family.push_with_extra(&row, extra, value);
        });
    }
    family
}

/// The families that change without a new run.
#[must_use]
pub fn state(model: &Model, prices: &Prices, budgets: &[BudgetStatus], now: Timestamp) -> Vec<Family> {
    let currency = &*prices.currency;
    let mut price = Family::new(&PRICE);
    let energy = prices.energy_price(now);
    price.push(&["energy", currency, prices.energy_origin.as_str()], float(energy));
    for (item, configured) in [("cpu", prices.core_hour), ("gpu", prices.gpu_hour), ("node", prices.node_hour)] {
        if let Some(configured) = configured {
            price.push(&[item, currency, configured.origin.as_str()], float(configured.amount));
        }
    }
    let joule = |each: Decimal| each.checked_mul(prices.pue)?.checked_div(Decimal::from(3_600_000));
    let mut energy_price = Family::new(&ENERGY_NOW);
    // In one currency only, so that recording rules can multiply by it.
    if let Some(amount) = joule(energy) {
        energy_price.push(&[currency], float(amount));
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
        // Only the newest rate of a pair is in use.
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
        energy_price,
        grams_now,
        intensity,
        intensity_at,
        Family::new(&PUE).with(&[], float(prices.pue)),
        rate,
        age,
        stale,
        Family::new(&MODEL).with(&[prices.model.as_str()], 1.0),
    ];
    all.extend(budget_families(budgets));
    all.extend([
        Family::new(&ALIVE).with(&[], 1.0),
        Family::new(&SCENARIOS).with(&[], f64::from(scenarios)),
        Family::new(&INFO).with(&[program::VERSION, "rust", &prices.region], 1.0),
        program::build_info(),
    ]);
    all.extend(process::families());
    all
}

fn budget_families(budgets: &[BudgetStatus]) -> Vec<Family> {
    let [mut amount, mut spent, mut unknown, mut burn, mut forecast, mut error, mut up] =
        [&BUDGET, &SPENT, &UNKNOWN, &BURN, &FORECAST, &FORECAST_ERROR, &BUDGET_UP].map(Family::new);
    for status in budgets {
        let (name, currency) = (&*status.name, &*status.currency);
        amount.push(&[name, currency], float(status.amount));
        match &status.spending {
            Err((reason, _)) => up.push(&[name, reason], 0.0),
            Ok(spending) => {
                up.push(&[name, ""], 1.0);
                spent.push(&[name, currency], spending.spent);
                unknown.push(&[name], float(Decimal::from(spending.unknown_hours)) * 3600.0);
                for (window, ratio) in &spending.burn {
                    burn.push(&[name, window], *ratio);
                }
                for (bound, value) in ["low", "middle", "high"].into_iter().zip(spending.forecast) {
                    if let Some(value) = value {
                        forecast.push(&[name, currency, bound], value);
                    }
                }
                if let Some(ratio) = spending.error {
                    error.push(&[name], ratio);
                }
            }
        }
    }
    vec![amount, spent, unknown, burn, forecast, error, up]
}

/// Rows of the table of prices: item, price, origin.
#[must_use]
pub fn table(prices: &Prices, now: Timestamp) -> Vec<Vec<String>> {
    let describe = |origin: PriceOrigin| match origin {
        PriceOrigin::Default => "default, not configured",
        PriceOrigin::User => "flag or environment",
        PriceOrigin::File => "configuration file",
    };
    let money = |amount: Decimal| format!("{} {}", amount.normalize(), prices.currency);
    let timed = if prices.tariff.is_timed() { "energy, 1 kWh, current hour" } else { "energy, 1 kWh" };
    let mut rows = vec![
        vec![timed.to_owned(), money(prices.energy_price(now)), describe(prices.energy_origin).to_owned()],
        match prices.core_hour {
            Some(price) => vec!["CPU core, 1 h".to_owned(), money(price.amount), describe(price.origin).to_owned()],
            None => vec!["CPU core, 1 h".to_owned(), "–".to_owned(), "not configured, no default".to_owned()],
        },
    ];
    for (item, price) in [("GPU, 1 h", prices.gpu_hour), ("machine, 1 h", prices.node_hour)] {
        if let Some(price) = price {
            rows.push(vec![item.to_owned(), money(price.amount), describe(price.origin).to_owned()]);
        }
    }
    let carbon = match prices.carbon.as_ref().map(|carbon| (carbon.at(now), carbon.origin())) {
        None => ("–".to_owned(), "no carbon intensity configured".to_owned()),
        Some((None, origin)) => ("–".to_owned(), format!("no current value, source: {}", origin.as_str())),
        Some((Some((grams, reading)), origin)) => {
            let since = reading.map(|reading| format!(", valid from {}", reading.at)).unwrap_or_default();
            (format!("{} g", grams.normalize()), format!("{}{since}", origin.as_str()))
        }
    };
    rows.push(vec!["CO₂-equivalents, 1 kWh".to_owned(), carbon.0, carbon.1]);
    rows
}
