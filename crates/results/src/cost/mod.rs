//! Cost of scenarios in money and carbon, and current prices.
//!
//! All calculations are decimal: prices as configured, energy in whole microjoules, and no rounding
//! before the output. Default prices are marked as such. Only energy has one: the price of a core
//! depends on the user's machine, and a guess would be most of the sum. The legacy names alone keep
//! the guess of the legacy exporter.

use std::sync::Arc;

use jiff::Timestamp;
use rust_decimal::Decimal;

use crate::{convert::timestamp, derived::DerivedMetrics, run::Scenario};

pub mod budget;
pub mod carbon;
pub mod money;
pub mod tariff;

use carbon::Carbon;
use money::Rates;
use tariff::Tariff;

/// Microjoules per kilowatt hour.
const MICROJOULES_PER_KWH: u64 = 3_600_000_000_000;
/// Microseconds per hour.
const MICROSECONDS_PER_HOUR: u64 = 3_600_000_000;

/// The origin of a price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PriceOrigin {
    /// The built-in default.
    Default,
    /// The command line or the environment.
    User,
    /// The configuration file.
    File,
}

impl PriceOrigin {
    /// The value of the label `origin`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::User => "user",
            Self::File => "file",
        }
    }
}

/// A price and its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// The amount in [`Prices::currency`].
    pub amount: Decimal,
    /// The origin.
    pub origin: PriceOrigin,
}

/// The basis of the compute cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeModel {
    /// CPU time used
    #[default]
    Used,
    /// Reserved cores, or CPU time used if that is more
    Reserved,
    /// The whole machine for the duration of the run
    Node,
}

impl ComputeModel {
    /// The value of the label `model`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Reserved => "reserved",
            Self::Node => "node",
        }
    }
}

/// All prices, exchange rates and carbon intensity.
///
/// ```
/// use jiff::Timestamp;
/// use results::cost::{PriceOrigin, Prices};
///
/// let prices = Prices::defaults();
/// assert_eq!(prices.energy_price(Timestamp::UNIX_EPOCH).to_string(), "0.12");
/// assert_eq!(prices.energy_origin, PriceOrigin::Default);
/// ```
#[derive(Clone, Debug)]
pub struct Prices {
    /// The currency of all prices, as an ISO 4217 code.
    pub currency: String,
    /// The label `region`, and `{region}` in the URL of carbon intensity.
    pub region: String,
    /// Prices of a kilowatt hour over time.
    pub tariff: Tariff,
    /// The origin of the tariff.
    pub energy_origin: PriceOrigin,
    /// Price of one core for an hour; `None` unless the user gave one.
    pub core_hour: Option<Price>,
    /// Price of one GPU for an hour.
    pub gpu_hour: Option<Price>,
    /// Price of the machine for an hour.
    pub node_hour: Option<Price>,
    /// The basis of the compute cost.
    pub model: ComputeModel,
    /// Reserved cores of scenarios whose file contains none.
    pub reserved_cores: Option<f64>,
    /// Power usage effectiveness: energy of the facility per energy of the machine, at least 1.
    pub pue: Decimal,
    /// Exchange rates.
    pub rates: Rates,
    /// Additional currencies of reported costs.
    pub report: Vec<String>,
    /// Age above which an exchange rate is stale.
    pub rate_max_age: std::time::Duration,
    /// Carbon intensity of the grid.
    pub carbon: Option<Arc<Carbon>>,
}

/// The cost of a scenario in [`Prices::currency`]. An unknown part is absent, and so is the total
/// that it belongs to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cost {
    /// Cost of the energy.
    pub energy: Option<Decimal>,
    /// Cost of CPU time; absent without a price.
    pub compute: Option<Decimal>,
    /// Cost of GPU time; absent without a price.
    pub gpu: Option<Decimal>,
    /// The sum of the parts that have a price; absent if one of these is unknown, or if a GPU was
    /// used that has none.
    pub total: Option<Decimal>,
    /// Grams of CO₂ equivalents.
    pub carbon: Option<Decimal>,
    /// Cost of CPU time under the legacy names, which have [`legacy_core_hour`] without a price.
    pub legacy_compute: Option<Decimal>,
    /// The sum with [`Self::legacy_compute`].
    pub legacy_total: Option<Decimal>,
}

/// The price of one core for an hour under the legacy names while none is configured: the default
/// of the legacy exporter.
#[must_use]
pub fn legacy_core_hour() -> Decimal {
    Decimal::new(50, 2)
}

/// A cost per unit of `amount`; `None` if either is unknown or the amount is not positive.
#[must_use]
pub fn per_unit(cost: Option<Decimal>, amount: Option<f64>) -> Option<Decimal> {
    let amount = Decimal::try_from(amount.filter(|amount| *amount > 0.0)?).ok()?;
    cost?.checked_div(amount)
}

impl Cost {
    /// The total per unit of `amount`; `None` if either is unknown or the amount is not positive.
    #[must_use]
    pub fn per(&self, amount: Option<f64>) -> Option<Decimal> {
        per_unit(self.total, amount)
    }
}

/// The amount for an energy in microjoules, at a price or a number of grams per kilowatt hour.
#[must_use]
pub fn for_energy(microjoules: Decimal, per_kwh: Decimal) -> Option<Decimal> {
    microjoules.checked_mul(per_kwh)?.checked_div(Decimal::from(MICROJOULES_PER_KWH))
}

/// Seconds in whole microseconds; `None` outside 0 to 10^12 s.
fn microseconds(seconds: f64) -> Option<Decimal> {
    if !(0.0..1e12).contains(&seconds) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 10^18")]
    Some(Decimal::from((seconds * 1e6).round() as u64))
}

impl Prices {
    /// The default prices: that of energy is the legacy exporter's, with [`PriceOrigin::Default`];
    /// nothing else has one.
    #[must_use]
    pub fn defaults() -> Self {
        Self {
            currency: "USD".to_owned(),
            region: String::new(),
            tariff: Tariff::flat(Decimal::new(12, 2)),
            energy_origin: PriceOrigin::Default,
            core_hour: None,
            gpu_hour: None,
            node_hour: None,
            model: ComputeModel::default(),
            reserved_cores: None,
            pue: Decimal::ONE,
            rates: Rates::default(),
            report: Vec::new(),
            rate_max_age: std::time::Duration::from_secs(30 * 86_400),
            carbon: None,
        }
    }

    /// The price of a kilowatt hour at a time.
    #[must_use]
    pub fn energy_price(&self, at: Timestamp) -> Decimal {
        self.tariff.at(at)
    }

    /// Grams per kilowatt hour, the mean of a window; `None` if a part of it has no intensity.
    #[must_use]
    pub fn carbon_intensity(&self, start: Timestamp, end: Timestamp) -> Option<Decimal> {
        self.carbon.as_ref()?.mean(start, end)
    }

    /// The cost of a scenario.
    #[must_use]
    pub fn cost(&self, scenario: &Scenario, derived: &DerivedMetrics) -> Cost {
        let window = scenario.window().and_then(|(start, end)| timestamp(start).zip(timestamp(end)));
        let joules =
            derived.energy.map(|energy| Decimal::from(energy.0)).and_then(|energy| energy.checked_mul(self.pue));
        let of_energy = |per_kwh: Option<Decimal>| for_energy(joules?, per_kwh?);
        let price = match window {
            Some((start, end)) => self.tariff.mean(start, end),
            // Without a window only a constant price is known to apply.
            None => (!self.tariff.is_timed()).then(|| self.tariff.at(Timestamp::UNIX_EPOCH)),
        };
        let energy = of_energy(price);
        let grams = self.carbon.as_ref().and_then(|carbon| match window {
            Some((start, end)) => self.carbon_intensity(start, end),
            None => (carbon.origin() == carbon::IntensityOrigin::Configured)
                .then(|| carbon.at(Timestamp::UNIX_EPOCH))
                .flatten()
                .map(|f| f.0),
        });
        let hours = |seconds: Option<f64>, price: Decimal| {
            microseconds(seconds?)?.checked_mul(price)?.checked_div(Decimal::from(MICROSECONDS_PER_HOUR))
        };
        let reserved_seconds = || {
            let reserved = scenario.reserved_cores.or(self.reserved_cores)? * derived.seconds?;
            Some(derived.cpu_seconds.map_or(reserved, |used| used.max(reserved)))
        };
        let compute_at = |core_hour: Option<Decimal>| match self.model {
            ComputeModel::Used => hours(derived.cpu_seconds, core_hour?),
            ComputeModel::Reserved => hours(reserved_seconds(), core_hour?),
            ComputeModel::Node => hours(derived.seconds, self.node_hour?.amount),
        };
        let core_hour = self.core_hour.map(|price| price.amount);
        let compute = compute_at(core_hour);
        let legacy_compute = compute_at(Some(core_hour.unwrap_or_else(legacy_core_hour)));
        let gpu = match (scenario.gpu_seconds, self.gpu_hour) {
            (Some(seconds), Some(price)) => hours(Some(seconds), price.amount),
            _ => None,
        };
        // Without a price a reserved GPU is not free: the total is unknown.
        let unpriced_gpu = scenario.gpu_seconds.is_some_and(|seconds| seconds > 0.0) && gpu.is_none();
        let sum = |compute: Option<Decimal>| {
            let sum = energy?.checked_add(compute?)?.checked_add(gpu.unwrap_or_default())?;
            (!unpriced_gpu).then_some(sum)
        };
        let compute_is_priced = match self.model {
            ComputeModel::Used | ComputeModel::Reserved => core_hour.is_some(),
            ComputeModel::Node => self.node_hour.is_some(),
        };
        Cost {
            energy,
            compute,
            gpu,
            total: sum(if compute_is_priced { compute } else { Some(Decimal::ZERO) }),
            carbon: of_energy(grams),
            legacy_compute,
            legacy_total: sum(legacy_compute),
        }
    }
}

#[cfg(test)]
mod tests {
    use units::Microjoules;

    use super::*;

    fn derived(joules: u64, cpu: f64) -> DerivedMetrics {
        DerivedMetrics {
            energy: Some(Microjoules(joules * 1_000_000)),
            cpu_seconds: Some(cpu),
            seconds: Some(100.0),
            ..DerivedMetrics::default()
        }
    }

    fn text(amount: Option<Decimal>) -> String {
        amount.map_or_else(String::new, |amount| amount.normalize().to_string())
    }

    /// Default prices, and 0.50 for a core and hour.
    fn with_core_price() -> Prices {
        let core_hour = Some(Price { amount: Decimal::new(50, 2), origin: PriceOrigin::User });
        Prices { core_hour, ..Prices::defaults() }
    }

    #[test]
    fn cpu_time_without_a_price_costs_only_under_legacy_names() {
        let cost = Prices::defaults().cost(&Scenario::default(), &derived(3_600_000, 3600.0));
        assert_eq!((text(cost.energy), cost.compute, text(cost.total)), ("0.12".into(), None, "0.12".into()));
        assert_eq!((text(cost.legacy_compute), text(cost.legacy_total)), ("0.5".into(), "0.62".into()));
        let free = Price { amount: Decimal::ZERO, origin: PriceOrigin::User };
        let prices = Prices { core_hour: Some(free), ..Prices::defaults() };
        let cost = prices.cost(&Scenario::default(), &derived(3_600_000, 3600.0));
        assert_eq!((text(cost.compute), text(cost.legacy_compute)), ("0".into(), "0".into()), "a given price");
        let unknown = DerivedMetrics { cpu_seconds: None, ..derived(3_600_000, 0.0) };
        assert_eq!(prices.cost(&Scenario::default(), &unknown).total, None, "priced and unknown");
    }

    #[test]
    fn energy_cost_includes_the_pue() {
        let mut prices = with_core_price();
        let cost = prices.cost(&Scenario::default(), &derived(3_600_000, 3600.0));
        assert_eq!(
            (text(cost.energy), text(cost.compute), text(cost.total)),
            ("0.12".into(), "0.5".into(), "0.62".into())
        );
        prices.pue = Decimal::new(15, 1);
        let cost = prices.cost(&Scenario::default(), &derived(3_600_000, 3600.0));
        assert_eq!(text(cost.energy), "0.18");
    }

    #[test]
    fn compute_cost_depends_on_the_model() {
        let mut prices = with_core_price();
        let scenario = Scenario { reserved_cores: Some(4.0), ..Scenario::default() };
        prices.model = ComputeModel::Reserved;
        assert_eq!(text(prices.cost(&scenario, &derived(0, 100.0)).compute), "0.0555555555555555555555555556");
        assert_eq!(text(prices.cost(&scenario, &derived(0, 7200.0)).compute), "1");
        assert_eq!(text(prices.cost(&Scenario::default(), &derived(0, 1.0)).compute), "", "reserved cores are unknown");
        prices.model = ComputeModel::Node;
        assert_eq!(text(prices.cost(&scenario, &derived(0, 1.0)).compute), "", "no price");
        prices.node_hour = Some(Price { amount: Decimal::from(36), origin: PriceOrigin::User });
        assert_eq!(text(prices.cost(&scenario, &derived(0, 1.0)).compute), "1");
    }

    #[test]
    fn gpu_without_a_price_has_no_total() {
        let mut prices = with_core_price();
        let scenario = Scenario { gpu_seconds: Some(1800.0), ..Scenario::default() };
        assert_eq!(prices.cost(&scenario, &derived(1, 1.0)).total, None);
        prices.gpu_hour = Some(Price { amount: Decimal::from(3), origin: PriceOrigin::User });
        let cost = prices.cost(&scenario, &derived(3_600_000, 3600.0));
        assert_eq!((text(cost.gpu), text(cost.total)), ("1.5".into(), "2.12".into()));
    }

    #[test]
    fn unknown_parts_and_their_total_are_absent() {
        let cost = Prices::defaults().cost(&Scenario::default(), &DerivedMetrics::default());
        assert_eq!(cost, Cost::default());
        let most = DerivedMetrics {
            energy: Some(Microjoules(u64::MAX)),
            cpu_seconds: Some(1e300),
            ..DerivedMetrics::default()
        };
        let cost = with_core_price().cost(&Scenario::default(), &most);
        assert!(cost.energy.is_some() && cost.compute.is_none());
    }
}
