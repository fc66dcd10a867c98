//! Energy of an estimated server over time, as counters of its packages and of the machine.
//!
//! The curve is not linear, so energy depends on the interval over which the load is averaged. It
//! is evaluated over windows of about a second, as the load of the published curves varies within
//! seconds too; within a window the counters follow its mean load so far.

use units::Microjoules;

use super::server::{FULL_LOAD, Server};

/// Shortest window over which the load is averaged: a tick of a second that begins early.
const WINDOW_NS: u64 = 900_000_000;

/// Thousandths of the wall power that packages and their memory use. Measured for a video encoder
/// on a server (0.51 to 0.55, Picture Coding Symposium 2024).
pub(super) const PACKAGE_SHARE: i32 = 530;
/// The range of this share for other servers and loads. An assumption, because published curves do
/// not have it.
pub(super) const PACKAGE_SHARES: [i32; 2] = [400, 750];

/// The share of a power.
fn of_packages(microwatts: u64) -> u64 {
    microwatts.saturating_mul(u64::from(PACKAGE_SHARE.unsigned_abs())) / 1000
}

/// The counters of a server: one for each package, and the last for the machine.
#[derive(Debug)]
pub(super) struct Meter {
    server: Server,
    /// CPUs of each package, in thousandths of a performance core.
    cpus: Vec<u64>,
    /// When the current window began, and the busy time of each package until then.
    began_ns: u64,
    busy_before: Vec<u128>,
    /// Energy until the window began.
    before: Vec<Microjoules>,
    /// The last readings. A window whose load falls would lower the counters.
    shown: Vec<Microjoules>,
}

impl Meter {
    pub(super) fn new(server: Server, cpus: Vec<u64>) -> Self {
        let zones = cpus.len() + 1;
        Self {
            server,
            began_ns: 0,
            busy_before: vec![0; cpus.len()],
            before: vec![Microjoules::ZERO; zones],
            shown: vec![Microjoules::ZERO; zones],
            cpus,
        }
    }

    /// The counters at a time since the start. `busy` is the time of each package in thousandths of
    /// a nanosecond of a performance core.
    pub(super) fn read(&mut self, elapsed_ns: u64, busy: &[u128]) -> &[Microjoules] {
        let length = elapsed_ns.saturating_sub(self.began_ns);
        let busy_now = busy.iter().zip(&self.busy_before);
        let in_window: Vec<u128> = busy_now.map(|(now, before)| now.saturating_sub(*before)).collect();
        let powers = self.powers(length, &in_window);
        let ends = length >= WINDOW_NS;
        for ((power, before), shown) in powers.into_iter().zip(&mut self.before).zip(&mut self.shown) {
            let now = *before + Microjoules::from_power(power, length);
            *shown = now.max(*shown);
            if ends {
                *before = now;
            }
        }
        if ends {
            self.began_ns = elapsed_ns;
            self.busy_before.copy_from_slice(busy);
        }
        &self.shown
    }

    /// Mean power of each zone in microwatts.
    fn powers(&self, length_ns: u64, busy: &[u128]) -> Vec<u64> {
        let all_busy: u128 = busy.iter().sum();
        let capacity = u128::from(self.all_cpus()) * u128::from(length_ns);
        let load = all_busy.saturating_mul(u128::from(FULL_LOAD)).checked_div(capacity).unwrap_or(0);
        let machine = self.server.at(u64::try_from(load).unwrap_or(FULL_LOAD));
        let dynamic = u128::from(machine.saturating_sub(self.server.at(0)));
        let package = |(zone, busy): (usize, &u128)| {
            let own = (dynamic * busy).checked_div(all_busy).unwrap_or(0);
            let own = u64::try_from(own).unwrap_or(u64::MAX);
            self.idle_power(zone).unwrap_or(0).saturating_add(of_packages(own))
        };
        busy.iter().enumerate().map(package).chain([machine]).collect()
    }

    fn all_cpus(&self) -> u64 {
        self.cpus.iter().sum()
    }

    /// Idle power of a zone in microwatts. A package has the part of its CPUs.
    pub(super) fn idle_power(&self, zone: usize) -> Option<u64> {
        let machine = self.server.at(0);
        match self.cpus.get(zone) {
            Some(cpus) => {
                let part = u128::from(of_packages(machine)) * u128::from(*cpus);
                u64::try_from(part.checked_div(u128::from(self.all_cpus())).unwrap_or(0)).ok()
            }
            None => (zone == self.cpus.len()).then_some(machine),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::energy::{
        model::size::Size,
        processor::{Processor, Vendor},
    };

    const SECOND: u64 = 1_000_000_000;

    fn meter(packages: usize, cpus_each: u64) -> Meter {
        let processor = Processor { vendor: Vendor::Intel, family: 6, model: 0x6a, name: String::new() };
        let size = Size { chips: 2, cores: 64, threads: 128, memory_gb: Some(256), guest: false };
        Meter::new(Server::estimate(&processor, size), vec![cpus_each * 1000; packages])
    }

    /// Thousandths of nanoseconds.
    fn busy(seconds: u64) -> u128 {
        u128::from(seconds) * 1000 * u128::from(SECOND)
    }

    #[test]
    fn an_idle_and_a_busy_server_use_the_ends_of_the_curve() {
        let mut meter = meter(1, 4);
        let (idle, full) = (meter.server.at(0), meter.server.at(FULL_LOAD));
        assert_eq!(meter.read(10 * SECOND, &[0])[1], Microjoules(10 * idle));
        assert_eq!(meter.read(20 * SECOND, &[busy(40)])[1], Microjoules(10 * (idle + full)));
        // More than there are CPUs, by the lag of a counter.
        assert_eq!(meter.read(30 * SECOND, &[busy(90)])[1], Microjoules(10 * idle + 20 * full));
    }

    #[test]
    fn half_a_load_follows_the_curve_and_not_a_line() {
        let mut meter = meter(1, 4);
        let joules = meter.read(10 * SECOND, &[busy(20)])[1];
        assert_eq!(joules, Microjoules(10 * meter.server.at(FULL_LOAD / 2)));
        let line = u64::midpoint(meter.server.at(0), meter.server.at(FULL_LOAD));
        assert!(joules < Microjoules(10 * line) && joules > Microjoules(8 * line));
    }

    #[test]
    fn readings_within_a_window_change_no_total() {
        let (mut often, mut seldom) = (meter(2, 4), meter(2, 4));
        for step in 1..=1000 {
            often.read(step * SECOND / 100, &[u128::from(step) * 20_000_000_000, 0]);
        }
        for step in 1..=10 {
            seldom.read(step * SECOND, &[u128::from(step) * 2_000_000_000_000, 0]);
        }
        for (a, b) in often.shown.iter().zip(&seldom.shown) {
            assert!(a.0.abs_diff(b.0) < 100, "{a} {b}");
        }
    }

    #[test]
    fn the_packages_have_their_share_of_the_machine() {
        let mut meter = meter(2, 4);
        let counters = meter.read(10 * SECOND, &[busy(30), busy(10)]).to_vec();
        let packages = counters[0].0 + counters[1].0;
        assert!(of_packages(counters[2].0).abs_diff(packages) < 100, "{counters:?}");
        let idle: Vec<u64> = (0..3).map(|zone| meter.idle_power(zone).unwrap()).collect();
        assert_eq!((idle[0], meter.idle_power(3)), (idle[1], None));
        let dynamic = |zone: usize| counters[zone].0 - 10 * idle[zone];
        assert!(dynamic(0).abs_diff(3 * dynamic(1)) < 100, "{counters:?} {idle:?}");
    }

    #[test]
    fn a_load_that_stops_within_a_window_lowers_no_counter() {
        let mut meter = meter(1, 4);
        let mut last = Microjoules::ZERO;
        for (step, load) in (1..=400).map(|step| (step, u128::from(step.min(50u64)) * 40_000_000_000)) {
            let now = meter.read(step * SECOND / 100, &[load])[1];
            assert!(now >= last, "{step}: {now} < {last}");
            last = now;
        }
    }

    #[test]
    fn a_reading_without_time_or_cpus_is_zero() {
        assert_eq!(meter(1, 4).read(0, &[busy(1)]), [Microjoules::ZERO; 2]);
        assert_eq!(meter(1, 0).idle_power(0), Some(0));
    }
}
