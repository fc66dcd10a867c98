//! The price of energy behind the cost per hour of the live page and of `top`. It is for display:
//! no metric contains it. Costs of runs, tariffs and PUE are those of the analysis service.

/// Joules of a kilowatt hour.
const KWH: f64 = 3.6e6;

/// A price of energy.
#[derive(Clone, Debug, PartialEq)]
pub struct EnergyPrice {
    /// Price of a kilowatt hour.
    pub per_kwh: f64,
    /// Its currency (ISO 4217).
    pub currency: String,
}

impl EnergyPrice {
    /// Price of a joule.
    #[must_use]
    pub fn per_joule(&self) -> f64 {
        self.per_kwh / KWH
    }

    /// Cost of an hour at this power.
    #[must_use]
    pub fn per_hour(&self, watts: f64) -> f64 {
        watts * 3600.0 * self.per_joule()
    }
}
