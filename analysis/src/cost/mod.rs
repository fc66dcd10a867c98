//! What a run cost, in money and carbon, and what energy costs now.
//!
//! Everything is decimal: a price is what somebody wrote, an energy is whole microjoules, and nothing is rounded before the page. A price that nobody gave
//! is marked as the default that it is.

use std::sync::Arc;

use jiff::Timestamp;
use rust_decimal::Decimal;

use crate::{
    figures::{Figures, timestamp},
    run::Scenario,
};

pub mod budget;
pub mod carbon;
pub mod money;
pub mod page;
pub mod tariff;

use carbon::Carbon;
use money::Rates;
use tariff::Tariff;

/// Microjoules of a kilowatt hour.
const KILOWATT_HOUR: u64 = 3_600_000_000_000;
/// Microseconds of an hour.
const HOUR: u64 = 3_600_000_000;

/// Who named a price: the label `origin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody: it stands in for the user's.
    Default,
    /// The command line or the environment.
    User,
    /// The configuration file.
    File,
}

impl Origin {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::User => "user",
            Self::File => "file",
        }
    }
}

/// A price and who named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// How much.
    pub amount: Decimal,
    /// By whom.
    pub origin: Origin,
}

/// How CPU time is paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeModel {
    /// Core-seconds that were used.
    #[default]
    Used,
    /// What was kept for it, or what it used where that is more.
    Reserved,
    /// The whole machine, for as long as it ran.
    Node,
}

impl ComputeModel {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Reserved => "reserved",
            Self::Node => "node",
        }
    }
}

/// All prices.
#[derive(Clone, Debug)]
pub struct Prices {
    /// Of all prices.
    pub currency: String,
    /// A label, and the grid's zone.
    pub region: String,
    /// Of a kilowatt hour, by the hour.
    pub tariff: Tariff,
    /// Who named them.
    pub energy_origin: Origin,
    /// For a core for an hour.
    pub core_hour: Price,
    /// For a GPU for an hour.
    pub gpu_hour: Option<Price>,
    /// For the machine for an hour.
    pub node_hour: Option<Price>,
    /// How CPU time is paid for.
    pub model: ComputeModel,
    /// Cores kept, where a file does not say.
    pub reserved_cores: Option<f64>,
    /// Energy of the building for one of the machine; 1 and more.
    pub pue: Decimal,
    /// Of currencies.
    pub rates: Rates,
    /// Currencies beside the one of prices in which costs are shown.
    pub report: Vec<String>,
    /// A rate that is older is stale.
    pub rate_max_age: std::time::Duration,
    /// Of the grid.
    pub carbon: Option<Arc<Carbon>>,
}

/// What a scenario cost, in the currency of prices. What is not known is absent, and so is a sum that it belongs to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cost {
    /// Of its energy.
    pub energy: Option<Decimal>,
    /// Of CPU time.
    pub compute: Option<Decimal>,
    /// Of GPU time; nothing without a price.
    pub gpu: Option<Decimal>,
    /// Of all.
    pub total: Option<Decimal>,
    /// Grams of CO₂-equivalents.
    pub carbon: Option<Decimal>,
}

impl Cost {
    /// The total over something; nothing over nothing.
    #[must_use]
    pub fn per(&self, amount: Option<f64>) -> Option<Decimal> {
        let amount = Decimal::try_from(amount.filter(|amount| *amount > 0.0)?).ok()?;
        self.total?.checked_div(amount)
    }
}

/// Whole microseconds.
fn microseconds(seconds: f64) -> Option<Decimal> {
    if !(0.0..1e12).contains(&seconds) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 10^18")]
    Some(Decimal::from((seconds * 1e6).round() as u64))
}

impl Prices {
    /// The default prices; they are the seeds', and marked.
    #[must_use]
    pub fn defaults() -> Self {
        let default = |amount| Price { amount, origin: Origin::Default };
        Self {
            currency: "USD".to_owned(),
            region: String::new(),
            tariff: Tariff::flat(Decimal::new(12, 2)),
            energy_origin: Origin::Default,
            core_hour: default(Decimal::new(50, 2)),
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

    /// The price of a kilowatt hour now.
    #[must_use]
    pub fn energy_now(&self, now: Timestamp) -> Decimal {
        self.tariff.at(now)
    }

    /// What a scenario cost.
    #[must_use]
    pub fn cost(&self, scenario: &Scenario, figures: &Figures) -> Cost {
        let window = scenario.window().and_then(|(start, end)| timestamp(start).zip(timestamp(end)));
        let joules =
            figures.energy.map(|energy| Decimal::from(energy.0)).and_then(|energy| energy.checked_mul(self.pue));
        let over = |each: Option<Decimal>| joules?.checked_mul(each?)?.checked_div(Decimal::from(KILOWATT_HOUR));
        let price = match window {
            Some((start, end)) => self.tariff.mean(start, end),
            // When it ran is not known, and only a price that never changes was the price then.
            None => (!self.tariff.is_timed()).then(|| self.tariff.at(Timestamp::UNIX_EPOCH)),
        };
        let energy = over(price);
        let grams = self.carbon.as_ref().and_then(|carbon| match window {
            Some((start, end)) => carbon.mean(start, end),
            None => (carbon.origin() == carbon::Origin::Given)
                .then(|| carbon.at(Timestamp::UNIX_EPOCH))
                .flatten()
                .map(|f| f.0),
        });
        let hours = |seconds: Option<f64>, price: Decimal| {
            microseconds(seconds?)?.checked_mul(price)?.checked_div(Decimal::from(HOUR))
        };
        let kept = || {
            let reserved = scenario.reserved_cores.or(self.reserved_cores)? * figures.seconds?;
            Some(figures.cpu_seconds.map_or(reserved, |used| used.max(reserved)))
        };
        let compute = match self.model {
            ComputeModel::Used => hours(figures.cpu_seconds, self.core_hour.amount),
            ComputeModel::Reserved => hours(kept(), self.core_hour.amount),
            ComputeModel::Node => self.node_hour.and_then(|price| hours(figures.seconds, price.amount)),
        };
        let gpu = match (scenario.gpu_seconds, self.gpu_hour) {
            (Some(seconds), Some(price)) => hours(Some(seconds), price.amount),
            _ => None,
        };
        // A GPU that was kept, at a price that nobody gave, is not free.
        let unpriced = scenario.gpu_seconds.is_some_and(|seconds| seconds > 0.0) && gpu.is_none();
        let total = match (energy, compute) {
            (Some(energy), Some(compute)) if !unpriced => {
                energy.checked_add(compute).and_then(|sum| sum.checked_add(gpu.unwrap_or_default()))
            }
            _ => None,
        };
        Cost { energy, compute, gpu, total, carbon: over(grams) }
    }
}

#[cfg(test)]
mod tests {
    use exporter::units::Microjoules;

    use super::*;

    fn figures(joules: u64, cpu: f64) -> Figures {
        Figures {
            energy: Some(Microjoules(joules * 1_000_000)),
            cpu_seconds: Some(cpu),
            seconds: Some(100.0),
            ..Figures::default()
        }
    }

    fn text(amount: Option<Decimal>) -> String {
        amount.map_or_else(String::new, |amount| amount.normalize().to_string())
    }

    #[test]
    fn energy_is_paid_by_the_kilowatt_hour_of_the_building() {
        let mut prices = Prices::defaults();
        let cost = prices.cost(&Scenario::default(), &figures(3_600_000, 3600.0));
        assert_eq!(
            (text(cost.energy), text(cost.compute), text(cost.total)),
            ("0.12".into(), "0.5".into(), "0.62".into())
        );
        prices.pue = Decimal::new(15, 1);
        let cost = prices.cost(&Scenario::default(), &figures(3_600_000, 3600.0));
        assert_eq!(text(cost.energy), "0.18");
    }

    #[test]
    fn compute_is_what_was_used_or_kept_or_the_whole_machine() {
        let mut prices = Prices::defaults();
        let scenario = Scenario { reserved_cores: Some(4.0), ..Scenario::default() };
        prices.model = ComputeModel::Reserved;
        assert_eq!(text(prices.cost(&scenario, &figures(0, 100.0)).compute), "0.0555555555555555555555555556");
        assert_eq!(text(prices.cost(&scenario, &figures(0, 7200.0)).compute), "1");
        assert_eq!(text(prices.cost(&Scenario::default(), &figures(0, 1.0)).compute), "", "nobody says what was kept");
        prices.model = ComputeModel::Node;
        assert_eq!(text(prices.cost(&scenario, &figures(0, 1.0)).compute), "", "no price");
        prices.node_hour = Some(Price { amount: Decimal::from(36), origin: Origin::User });
        assert_eq!(text(prices.cost(&scenario, &figures(0, 1.0)).compute), "1");
    }

    #[test]
    fn a_gpu_at_no_price_leaves_no_total() {
        let mut prices = Prices::defaults();
        let scenario = Scenario { gpu_seconds: Some(1800.0), ..Scenario::default() };
        assert_eq!(prices.cost(&scenario, &figures(1, 1.0)).total, None);
        prices.gpu_hour = Some(Price { amount: Decimal::from(3), origin: Origin::User });
        let cost = prices.cost(&scenario, &figures(3_600_000, 3600.0));
        assert_eq!((text(cost.gpu), text(cost.total)), ("1.5".into(), "2.12".into()));
    }

    #[test]
    fn what_is_not_known_is_absent_and_so_is_its_sum() {
        let cost = Prices::defaults().cost(&Scenario::default(), &Figures::default());
        assert_eq!(cost, Cost::default());
        let most = Figures { energy: Some(Microjoules(u64::MAX)), cpu_seconds: Some(1e300), ..Figures::default() };
        let cost = Prices::defaults().cost(&Scenario::default(), &most);
        assert!(cost.energy.is_some() && cost.compute.is_none());
    }
}
