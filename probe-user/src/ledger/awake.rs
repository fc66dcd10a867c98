//! For how long each package was awake in a tick.
//!
//! Where the hardware counts the time in which a package sleeps, that is what counts. Else it is
//! estimated: every package of a machine is awake while any CPU of the machine runs, and CPUs run
//! independently of each other. Idle times tell no more than that it was awake for at least as long
//! as its busiest CPU ran, and for at most as long as all ran together. On few CPUs these are close
//! near idle. On hundreds they are not, and the estimate of idle power takes that into its
//! interval.

/// How the awake time of a package is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AwakeSource {
    /// Residency counters of the package's sleep states.
    Cstate,
    /// Idle time of all CPUs of the machine.
    Estimated,
}

impl AwakeSource {
    /// Value of the label `source`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cstate => "cstate",
            Self::Estimated => "estimated",
        }
    }
}

/// Share of a tick (0 to 1) in which a package was awake.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AwakeShare {
    pub share: f64,
    pub source: AwakeSource,
}

/// The last residency of each package.
#[derive(Debug, Default)]
pub struct Residency {
    last: Vec<Option<[u64; 2]>>,
}

impl Residency {
    /// The awake share of each package since the last reading of its counters, where they are read
    /// and grew. `readings` are cycles asleep and all cycles, by package.
    pub fn advance(&mut self, readings: &[Option<[u64; 2]>]) -> Vec<Option<f64>> {
        self.last.resize(readings.len(), None);
        let share = |(now, last): (&Option<[u64; 2]>, &mut Option<[u64; 2]>)| {
            let before = std::mem::replace(last, *now);
            let ([asleep, all], [asleep_before, all_before]) = ((*now)?, before?);
            // A counter that was opened again begins at zero.
            let (asleep, all) = (asleep.checked_sub(asleep_before)?, all.checked_sub(all_before)?);
            (all > 0).then(|| 1.0 - (float(asleep) / float(all)).min(1.0))
        };
        readings.iter().zip(&mut self.last).map(share).collect()
    }
}

/// The share of time in which at least one CPU ran, when `busy_ns` is the busy time of each CPU in
/// a tick of `length_ns`.
#[must_use]
pub fn any_busy(busy_ns: impl IntoIterator<Item = u64>, length_ns: u64) -> f64 {
    let idle = |ns: u64| 1.0 - (float(ns) / float(length_ns.max(1))).min(1.0);
    1.0 - busy_ns.into_iter().map(idle).product::<f64>()
}

/// The part of `length_ns` that `share` is.
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length of time")]
pub fn part_of(share: f64, length_ns: u64) -> u64 {
    ((float(length_ns) * share.clamp(0.0, 1.0)).round() as u64).min(length_ns)
}

#[expect(clippy::cast_precision_loss, reason = "a share of time, of which a few digits count")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_busy_cpu_wakes_the_machine_and_short_runs_hardly() {
        assert_eq!(any_busy([0, 1000, 0], 1000), 1.0);
        assert_eq!(any_busy([0; 4], 1000), 0.0);
        assert_eq!(any_busy([2000, 0], 1000), 1.0, "more than a tick is a tick");
        let daemon = any_busy([2; 16], 1000);
        assert!((0.031..0.032).contains(&daemon), "{daemon}");
        assert_eq!(part_of(0.25, 1000), 250);
    }

    /// The table of docs/accuracy.md: a daemon that runs 2 ms a second on each CPU.
    #[test]
    fn documented_awake_times_of_a_daemon_are_those_of_the_estimate() {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share).replace("100.0", "100");
        let row = |cpus: u16| {
            let run = 2.0 / 1e3;
            let bounds = [run, (run * f64::from(cpus)).min(1.0)].map(percent);
            let estimated = percent(any_busy((0..cpus).map(|_| 2), 1000));
            format!("| {cpus} | {} | {estimated} | {} |", bounds[0], bounds[1])
        };
        let document = include_str!("../../../docs/accuracy.md");
        for line in [16, 32, 128, 512].map(row) {
            assert!(document.contains(&line), "{line}");
        }
    }

    #[test]
    fn residency_needs_two_readings_and_survives_a_new_counter() {
        let mut residency = Residency::default();
        assert_eq!(residency.advance(&[Some([10, 100]), None]), [None, None]);
        assert_eq!(residency.advance(&[Some([60, 200]), Some([0, 0])]), [Some(0.5), None]);
        assert_eq!(residency.advance(&[Some([5, 10]), Some([0, 50])]), [None, Some(1.0)]);
        assert_eq!(residency.advance(&[Some([500, 110]), None]), [Some(0.0), None], "clocks may differ a little");
    }
}
