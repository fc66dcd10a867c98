//! How many more streams of a kind a host carries in real time, from its load and the load of the
//! streams that run.
//!
//! All quantities are *cores*: CPU seconds per second. Where two CPUs share a core, a second next
//! to a busy sibling does less than a second alone, so loads are compared as *work*: a second alone
//! counts 1, one next to a busy sibling `weight`. A full core then does `2 · weight`.
//!
//! The forecast assumes that another stream costs what the measured ones cost. That is the part of
//! it that errs most, in both directions: on a mostly idle host each frame wakes CPUs from sleep,
//! at a low clock and with cold caches, and on a full one caches, memory and clock are shared by
//! more. No scatter of a few streams tells this, so the interval allows for it in proportion to the
//! part of the capacity that was free when the streams were measured: a growth of a fifth, or a
//! decline of a half. Streams that were measured on a full host leave nothing of it.

use statistics::{
    inference::{CONFIDENCE, t_quantile},
    mean, standard_deviation,
};

/// Part of the capacity that stays free on a host in service: one that is full to the last per cent
/// loses real time at the next scene with much motion.
pub const RESERVE: f64 = 0.1;
/// Value of a second next to a busy sibling, as the probe's default: two threads of a core do 15 %
/// more than one. The interval is that of video encoders, from nothing to 40 %.
const SIBLING_WEIGHT: [f64; 3] = [0.5, 0.575, 0.7];
/// By how much the cost of a stream may grow from an idle host to a full one.
pub const GROWTH: f64 = 0.2;
/// By how much it may decline: small pictures at a low rate took up to half less per frame on full
/// CPUs, where the wake-up of a thread is the larger part of its work.
const DECLINE: f64 = 0.5;
/// Fewest blocks of time in a forecast.
pub const MIN_BLOCKS: usize = 3;

/// The CPUs of a host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// CPUs that are online.
    pub cpus: u32,
    /// True if two CPUs share a core.
    pub smt: bool,
    /// Part of the capacity that stays free: [`RESERVE`], or 0 for the last stream that fits;
    /// negative where streams may take longer than their media lasts.
    pub reserve: f64,
}

/// The load of a host in a block of time, in cores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// CPUs that ran while their sibling was idle, or all where this is not known.
    pub alone: f64,
    /// CPUs that ran while their sibling was busy; `None` where this is not known.
    pub shared: Option<f64>,
}

/// A number of streams with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// Streams that fit in addition to those that run; a whole number, 0 on a full host.
    pub streams: f64,
    /// Lower bound of the 95 % interval.
    pub low: f64,
    /// Upper bound of the 95 % interval.
    pub high: f64,
    /// Cores that one stream uses in real time, or the part of an engine.
    pub per_stream: f64,
}

impl Machine {
    /// Work that all CPUs do.
    fn capacity(self, weight: f64) -> f64 {
        f64::from(self.cpus) * if self.smt { weight } else { 1.0 }
    }

    /// The parts of a load alone and next to a busy sibling. Where they are not known, they are
    /// those of a scheduler that gives each core one thread before any gets a second.
    fn parts(self, load: Load) -> (f64, f64) {
        if !self.smt {
            return (load.alone + load.shared.unwrap_or_default(), 0.0);
        }
        let Some(shared) = load.shared else {
            let cores = f64::from(self.cpus) / 2.0;
            let shared = (2.0 * (load.alone - cores)).clamp(0.0, load.alone.max(0.0));
            return (load.alone - shared, shared);
        };
        (load.alone, shared)
    }

    /// The work of a load, and the work of one of its CPU seconds.
    fn work(self, load: Load, weight: f64) -> (f64, f64) {
        let (alone, shared) = self.parts(load);
        let (time, work) = (alone + shared, alone + weight * shared);
        (work, if time > 0.0 { work / time } else { 1.0 })
    }

    /// The part of the capacity that is neither in use nor reserved, by the mean of some loads.
    fn idle_by(self, loads: &[Load], weight: f64) -> Option<f64> {
        let work: Vec<f64> = loads.iter().map(|load| self.work(*load, weight).0).collect();
        Some((1.0 - self.reserve.max(0.0) - mean(&work)? / self.capacity(weight)).clamp(0.0, 1.0))
    }

    /// The part of the capacity that is neither in use nor reserved, 0 to 1; `None` without loads.
    #[must_use]
    pub fn idle(self, loads: &[Load]) -> Option<f64> {
        let [_, middle, _] = SIBLING_WEIGHT;
        self.idle_by(loads, middle)
    }

    /// Forecasts from the load of the host by block of time, and from the cores of the running
    /// streams, one value per stream and block. The host's load contains the streams.
    ///
    /// `None` for fewer than [`MIN_BLOCKS`] blocks, or if the streams use no CPU time.
    #[must_use]
    pub fn forecast(self, loads: &[Load], streams: &[f64]) -> Option<Forecast> {
        self.forecast_measured_in(loads, streams, loads)
    }

    /// Forecasts as [`Machine::forecast`], from streams that were measured while the load of the
    /// host was `then`.
    ///
    /// `None` as for [`Machine::forecast`].
    #[must_use]
    pub fn forecast_measured_in(self, loads: &[Load], streams: &[f64], then: &[Load]) -> Option<Forecast> {
        if loads.len() < MIN_BLOCKS || streams.len() < MIN_BLOCKS {
            return None;
        }
        let cores = mean(streams).filter(|cores| *cores > 0.0 && cores.is_finite())?;
        let cores_off = prediction_half_width(streams)?;
        // What runs next to streams that may take longer uses its CPUs for all of that time.
        let (reserve, time) = (self.reserve.max(0.0), 1.0 - self.reserve.min(0.0));
        let free = |weight: f64| -> Option<(f64, f64, f64)> {
            let work: Vec<f64> = loads.iter().map(|load| self.work(*load, weight).0).collect();
            let each: Vec<f64> = then.iter().map(|load| self.work(*load, weight).1).collect();
            let free = self.capacity(weight) * (1.0 - reserve) - mean(&work)?;
            Some((free * time, prediction_half_width(&work)? * time, mean(&each)?))
        };
        let whole = |streams: f64| (streams + 1e-9).floor().max(0.0);
        let [_, middle, _] = SIBLING_WEIGHT;
        let (room, _, each) = free(middle)?;
        let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
        for weight in SIBLING_WEIGHT {
            let (room, off, each) = free(weight)?;
            let idle = self.idle_by(then, weight)?;
            let most = (cores + cores_off) * each * (1.0 + GROWTH * idle);
            low = low.min((room - off) / most);
            // Half of the mean is far below what the scatter of a stream in real time allows.
            let least = (cores - cores_off).max(cores / 2.0) * each * (1.0 - DECLINE * idle);
            high = high.max((room + off) / least);
        }
        let streams = whole(room / (cores * each));
        Some(Forecast { streams, low: whole(low).min(streams), high: whole(high).max(streams), per_stream: cores })
    }
}

/// Half the width of the interval in which the next value of a sample lies.
fn prediction_half_width(values: &[f64]) -> Option<f64> {
    let count = f64::from(u32::try_from(values.len()).ok()?);
    let scatter = standard_deviation(values)? * (1.0 + 1.0 / count).sqrt();
    Some(t_quantile(0.5 + CONFIDENCE / 2.0, count - 1.0) * scatter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(cores: f64) -> Vec<Load> {
        vec![Load { alone: cores, shared: None }; 3]
    }

    #[test]
    fn free_cores_divided_by_the_cost_of_a_stream() {
        let machine = Machine { cpus: 10, smt: false, reserve: RESERVE };
        // 9 of 10 CPUs may be used, 2 are, a stream takes half of one.
        let found = machine.forecast(&idle(2.0), &[0.5; 4]).unwrap();
        assert_eq!((found.streams, found.per_stream), (14.0, 0.5));
        assert_eq!((found.low, found.high), (12.0, 21.0), "7 free cores at 14 % more each, or at 35 % less");
        assert_eq!(machine.forecast(&idle(9.5), &[0.5; 4]).unwrap().streams, 0.0, "a full host");
    }

    #[test]
    fn scatter_widens_the_interval() {
        let machine = Machine { cpus: 10, smt: false, reserve: RESERVE };
        let steady = machine.forecast(&idle(2.0), &[0.5, 0.5, 0.5]).unwrap();
        let uneven = machine.forecast(&idle(2.0), &[0.4, 0.5, 0.6]).unwrap();
        assert_eq!(steady.streams, uneven.streams);
        assert!(uneven.low < steady.low && uneven.high > steady.high, "{uneven:?}");
    }

    /// How many streams fit if one costs `alone` on an idle host and `change` more on a full one,
    /// in proportion to the load.
    fn truth(machine: Machine, others: f64, alone: f64, change: f64) -> f64 {
        let room = f64::from(machine.cpus) * (1.0 - machine.reserve) - others;
        (room / (alone * (1.0 + change)) + 1e-9).floor()
    }

    /// The cost of each of `count` streams, as it is at the load that they make.
    fn cost(machine: Machine, others: f64, alone: f64, change: f64, count: f64) -> f64 {
        // c = alone · (1 + change · (others + count · c) / cpus), solved for c.
        let per_core = alone * change / f64::from(machine.cpus);
        (alone + per_core * others) / (1.0 - per_core * count)
    }

    /// Of 2 CPUs with streams of 0.15 CPUs when full, 0.27 when idle, all but 7 were denied, and
    /// the interval ended at 12: 16 ran.
    #[test]
    fn interval_covers_a_cost_that_changes_with_the_load() {
        for cpus in [2, 8, 64] {
            for change in [-0.45, -0.3, -0.15, 0.0, 0.1, 0.2] {
                for (others, alone) in [(0.02, 0.12), (0.1, 0.27), (0.4, 0.06)] {
                    let machine = Machine { cpus, smt: false, reserve: 0.0 };
                    let found = truth(machine, others, alone, change);
                    let streams = [1.0, 2.0, 3.0].map(|count| cost(machine, others, alone, change, count));
                    let forecast = machine.forecast_measured_in(&idle(others), &streams, &idle(others)).unwrap();
                    let what = format!("{cpus} CPUs, {others} of others, {alone} {change:+}: {found}, {forecast:?}");
                    assert!(forecast.low <= found && found <= forecast.high, "{what}");
                    // From streams on the full host the number itself is right, and nearly certain.
                    let full = [alone * (1.0 + change); 3];
                    let forecast = machine.forecast_measured_in(&idle(others), &full, &idle(f64::from(cpus))).unwrap();
                    assert_eq!((forecast.low, forecast.streams, forecast.high), (found, found, found), "{what}");
                }
            }
        }
    }

    #[test]
    fn hyperthreads_are_not_whole_cores() {
        let machine = |smt| Machine { cpus: 16, smt, reserve: RESERVE };
        let (plain, smt) = (machine(false), machine(true));
        let streams = |machine: Machine| machine.forecast(&idle(1.0), &[0.5; 3]).unwrap();
        assert!(streams(smt).streams < 0.6 * streams(plain).streams, "{:?}", streams(smt));
        assert!(streams(smt).low < streams(smt).streams && streams(smt).high > streams(smt).streams);
        // 8 cores with 12 busy threads: four cores have two.
        assert_eq!(smt.parts(Load { alone: 12.0, shared: None }), (4.0, 8.0));
        assert_eq!(smt.parts(Load { alone: 3.0, shared: None }), (3.0, 0.0));
        assert_eq!(smt.parts(Load { alone: 1.0, shared: Some(6.0) }), (1.0, 6.0));
    }

    #[test]
    fn without_enough_blocks_or_cpu_time_there_is_no_forecast() {
        let machine = Machine { cpus: 4, smt: false, reserve: 0.0 };
        assert_eq!(machine.forecast(&idle(1.0)[..2], &[0.5; 3]), None);
        assert_eq!(machine.forecast(&idle(1.0), &[0.5; 2]), None);
        assert_eq!(machine.forecast(&idle(1.0), &[0.0; 3]), None);
    }
}
