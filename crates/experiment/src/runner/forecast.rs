//! Forecast of how many streams a host carries in real time, from the first steps of a search; and
//! its error, once the search has found the number.
//!
//! A stream on a mostly idle host takes more CPU time per frame than on a full one: each frame
//! wakes CPUs. The same one to three streams without pace fill the CPUs, and never wait for a
//! frame: a second of their media takes less than on a host that is full of streams in real time,
//! which still wait, but on CPUs that are awake. So the number is between the two, nearer to the
//! steps if the host was busy in them, and both are its bounds. The steps also tell what other
//! programs use: the rest of what the kernel counts for the host in the window of the encoders,
//! `/proc/stat`.
//!
//! CPU time is the only limit that it knows: no engine of a GPU, no memory bandwidth.

use std::{fs, num::NonZero, thread};

use cli::number::{short, with_half_width};
use results::{
    convert::float,
    headroom::{Forecast, GROWTH, Load, Machine},
};
use statistics::{inference::Interval, mean};
use units::provenance::Unmeasured;

use super::{
    journal::{HostUse, Repeat},
    record::Record,
};

/// Counts of streams from which the rest is forecast: 1 to this one.
pub(super) const FORECAST_FROM: u32 = 3;
/// Encodes without pace.
pub(super) const UNPACED: u32 = 3;

/// CPU seconds of the host since its boot, without idle time, from `/proc/stat`; `None` where it
/// cannot be read.
pub(super) fn host_busy_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let hertz = float(rustix::param::clock_ticks_per_second());
    Some(busy_ticks(&text)? / hertz.max(1.0))
}

/// What the host used in so many seconds, since [`host_busy_seconds`] was `before`.
pub(super) fn host_use(before: Option<f64>, seconds: f64) -> Option<HostUse> {
    let cpu_seconds = (host_busy_seconds()? - before?).max(0.0);
    Some(HostUse { cpu_seconds, seconds })
}

/// Ticks of all CPUs without idle time: the first line of `/proc/stat` without its fields `idle`
/// and `iowait`. Guests are part of `user` and `nice` (man 5 `proc_stat`).
fn busy_ticks(stat: &str) -> Option<f64> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<f64> = fields.take(8).map(|text| text.parse::<f64>()).collect::<Result<_, _>>().ok()?;
    let [user, nice, system, _idle, _iowait, interrupts @ ..] = &ticks[..] else { return None };
    Some(user + nice + system + interrupts.iter().sum::<f64>())
}

/// What a number of streams used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    /// CPU seconds of one stream per second of media.
    cores_per_stream: f64,
    /// Mean number of CPUs that other programs used.
    others: f64,
    /// Mean number of CPUs that were in use.
    busy: f64,
    /// Joules of one stream per second of media, if the encoders' own are known.
    joules_per_second: Option<f64>,
}

impl Step {
    /// The step of `count` streams that encoded `media` seconds each. `None` without the CPU time
    /// of the encoders and of the host.
    pub(super) fn of(repeat: &Repeat, count: u32, media: f64) -> Option<Self> {
        let encoders = repeat.cpu_seconds?;
        let HostUse { cpu_seconds: host, seconds } = repeat.host.filter(|host| host.seconds > 0.0)?;
        let streams = f64::from(count) * media;
        let joules = Record::repeat_joules(repeat).filter(|(scope, _)| *scope == "container");
        Some(Self {
            cores_per_stream: encoders / streams,
            others: (host - encoders).max(0.0) / seconds,
            busy: host.max(encoders) / seconds,
            joules_per_second: joules.map(|(_, joules)| joules / streams),
        })
    }
}

/// The CPUs that this process may use. The last stream that fits is searched, so none are reserved,
/// and streams may fall behind by a part of the time.
fn machine(behind: f64) -> Machine {
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    let smt = fs::read_to_string("/sys/devices/system/cpu/smt/active");
    Machine {
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        smt: smt.is_ok_and(|active| active.trim() == "1"),
        reserve: -behind,
    }
}

/// All streams of this kind that the host carries, by the steps in real time and by the same
/// streams without pace, if they could be measured. `None` for fewer than three steps. Streams may
/// fall `behind` by a part of the time, as in the search.
pub(super) fn forecast(steps: &[Step], unpaced: &[Step], behind: f64) -> Option<Forecast> {
    forecast_on(machine(behind), steps, unpaced)
}

fn forecast_on(machine: Machine, steps: &[Step], unpaced: &[Step]) -> Option<Forecast> {
    let load = |cores: f64| Load { alone: cores, shared: None };
    let others: Vec<Load> = steps.iter().map(|step| load(step.others)).collect();
    let from = |measured: &[Step]| {
        let cores: Vec<f64> = measured.iter().map(|step| step.cores_per_stream).collect();
        let then: Vec<Load> = measured.iter().map(|step| load(step.busy)).collect();
        machine.forecast_measured_in(&others, &cores, &then)
    };
    let paced = from(steps)?;
    let Some(full) = from(unpaced) else { return Some(paced) };
    // The more of the host was idle in the steps, the more of their cost is that of waking it: half
    // of the way to streams without pace on an idle host, none on a full one.
    let then: Vec<Load> = steps.iter().map(|step| load(step.busy)).collect();
    let part = machine.idle(&then)? / 2.0;
    let between = |a: f64, b: f64| a.powf(1.0 - part) * b.powf(part);
    // How much less a stream takes on a full host is known from those without pace: it is the
    // decline that the steps alone would have to allow for.
    Some(Forecast {
        streams: (between(paced.streams, full.streams) + 1e-9).floor(),
        low: paced.low.min(full.low),
        high: full.high.max(paced.streams),
        per_stream: between(paced.per_stream, full.per_stream),
    })
}

/// The forecast for people, with what a stream costs.
pub(super) fn describe(forecast: &Forecast, steps: &[Step], record: &Record) -> String {
    let sources = record.repeats.iter().flat_map(|repeat| &repeat.energy).map(|energy| &*energy.source);
    describe_from(forecast, steps, sources)
}

/// `sources` are those of the energy of the steps.
fn describe_from<'a>(forecast: &Forecast, steps: &[Step], sources: impl IntoIterator<Item = &'a str>) -> String {
    let Forecast { streams, low, high, per_stream } = forecast;
    let joules: Vec<f64> = steps.iter().filter_map(|step| step.joules_per_second).collect();
    let energy = Interval::of(&joules).filter(|_| joules.len() == steps.len()).map_or_else(String::new, |energy| {
        let kinds: Vec<&str> = Unmeasured::among(sources).into_iter().map(Unmeasured::word).collect();
        let label = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
        format!(" and {} J per second{label}", with_half_width(energy.mean, Some(energy.half_width)))
    });
    let paced = mean(&steps.iter().map(|step| step.cores_per_stream).collect::<Vec<_>>());
    let paced = paced.filter(|paced| paced != per_stream);
    let paced = paced.map_or_else(String::new, |paced| format!(" ({} on a mostly idle host)", short(paced)));
    format!(
        "  search  forecast from 1 to {FORECAST_FROM} streams: {streams} in real time ({low} to {high}, if a stream \
         costs at most {:.0} % more on a full host than on an idle one); each takes {} CPUs{paced}{energy}",
        100.0 * GROWTH,
        short(*per_stream)
    )
}

/// The error of the forecast, for the number that was found. `is_limit` is false if the search
/// ended at its own limit, so that more may fit.
pub(super) fn describe_error(forecast: &Forecast, found: u32, is_limit: bool) -> String {
    let Forecast { streams, low, high, .. } = forecast;
    let found = f64::from(found);
    if !is_limit {
        let verdict = if *streams >= found { "does not contradict it" } else { "is above it" };
        return format!("  search  forecast {streams}; found {found} or more, which {verdict}");
    }
    let within = if (*low..=*high).contains(&found) { "within" } else { "outside of" };
    let off = streams - found;
    let part = if found > 0.0 { format!(", {:+.0} %", 100.0 * off / found) } else { String::new() };
    format!("  search  forecast {streams}, found {found}: error {off:+}{part}; {within} its interval {low} to {high}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(cores_per_stream: f64) -> Step {
        Step { cores_per_stream, others: 0.5, busy: 1.0, joules_per_second: Some(3.0) }
    }

    #[test]
    fn busy_ticks_leave_idle_time_and_guests_out() {
        let stat = "cpu  100 20 30 1000 500 4 3 2 77 66\ncpu0 1 2 3 4\n";
        assert_eq!(busy_ticks(stat), Some(159.0));
        // Linux 2.4 had no more fields.
        assert_eq!(busy_ticks("cpu  100 20 30 1000\n"), None);
        assert_eq!(busy_ticks("cpu  a b c d e f g\n"), None);
        assert_eq!(busy_ticks(""), None);
    }

    #[test]
    fn three_steps_forecast_all_streams_of_the_host() {
        let machine = Machine { cpus: 8, smt: false, reserve: 0.0 };
        let found = forecast_on(machine, &[step(0.5), step(0.5), step(0.5)], &[]).unwrap();
        assert_eq!((found.streams, found.per_stream), (15.0, 0.5));
        assert_eq!((found.low, found.high), (12.0, 26.0), "7 of 8 CPUs were idle: 17.5 % more each, or 43.75 % less");
        assert_eq!(forecast_on(machine, &[step(0.5), step(0.5)], &[]), None);
    }

    /// Two CPUs: paced streams took 0.27 CPUs each, and those without pace 0.14. The paced ones
    /// alone forecast seven where sixteen ran, the others alone more than all that ran.
    #[test]
    fn forecast_is_between_streams_with_and_without_pace() {
        let machine = Machine { cpus: 2, smt: false, reserve: 1.0 - 1.2 };
        let paced = [0.3, 0.27, 0.24].map(|cores| Step { others: 0.1, busy: 0.2, ..step(cores) });
        let full = [0.142, 0.14, 0.138].map(|cores| Step { others: 0.02, busy: 1.9, ..step(cores) });
        let found = forecast_on(machine, &paced, &full).unwrap();
        // 2 CPUs for 1.2 s per second of media, without a tenth for others: 8 and 16.
        assert_eq!((found.streams, (found.per_stream * 1e3).round()), (10.0, 201.0));
        assert!(found.low <= 8.0 && (16.0..20.0).contains(&found.high), "{found:?}");
        // On a host that was full already, paced streams took what they take there.
        let busy = paced.map(|step| Step { busy: 2.0, ..step });
        assert_eq!(forecast_on(machine, &busy, &full).unwrap().streams, 8.0);
        // The paced streams alone do not exclude it.
        let paced_only = forecast_on(machine, &paced, &[]).unwrap();
        assert!(paced_only.streams < 16.0 && paced_only.high >= 16.0, "{paced_only:?}");
    }

    /// A stream of four fifths of a CPU may take twice as long as its media; so may what runs next
    /// to it.
    #[test]
    fn other_programs_use_their_cpus_for_all_of_the_time() {
        let machine = Machine { cpus: 8, smt: false, reserve: 1.0 - 2.0 };
        let steps = [Step { others: 4.0, busy: 8.0, ..step(0.8) }; 3];
        // (8 - 4) · 2 / 0.8, and not (8 · 2 - 4) / 0.8 = 15.
        assert_eq!(forecast_on(machine, &steps, &steps).unwrap().streams, 10.0);
    }

    #[test]
    fn a_forecast_names_what_it_assumes() {
        let forecast = Forecast { streams: 12.0, low: 9.0, high: 13.0, per_stream: 0.4 };
        let text = describe_from(&forecast, &[step(0.5); 3], []);
        assert!(text.contains("12 in real time (9 to 13, if a stream costs at most 20 % more"), "{text}");
        assert!(text.contains("each takes 0.4 CPUs (0.5 on a mostly idle host)"), "{text}");
        assert!(!text.contains("95 %") && !text.contains("of the full host"), "{text}");
    }

    /// CPU time next to a busy sibling is what the streams have on a full host: it is no reason to
    /// count its CPUs for less.
    #[test]
    fn hyperthreads_of_a_full_host_are_in_the_cost_of_its_streams() {
        let machine = Machine { cpus: 8, smt: true, reserve: 0.0 };
        let full = [Step { others: 0.0, busy: 8.0, ..step(0.8) }; 3];
        let paced = [Step { others: 0.0, ..step(0.5) }; 3];
        let found = forecast_on(machine, &paced, &full).unwrap();
        assert_eq!(found.streams, 9.0, "8 · 0.575 / 0.5 by the streams in real time, 8 / 0.8 by the others");
        assert!(found.high >= 10.0, "8 / 0.8 by those on a full host: {found:?}");
        // A host that they did not fill has free siblings, of which the cost knows nothing.
        let half = [Step { busy: 4.0, ..step(0.5) }; 3];
        let found = forecast_on(machine, &paced, &half).unwrap();
        assert_eq!((found.streams, found.low < found.streams), (9.0, true), "8 · 0.575 / 0.5");
    }

    #[test]
    fn a_step_needs_the_cpu_time_of_encoders_and_host() {
        let host = Some(HostUse { cpu_seconds: 3.0, seconds: 4.0 });
        let repeat = Repeat { cpu_seconds: Some(2.0), host, ..Repeat::default() };
        let found = Step::of(&repeat, 2, 4.0).unwrap();
        assert_eq!((found.cores_per_stream, found.others, found.busy), (0.25, 0.25, 0.75));
        assert_eq!(Step::of(&Repeat { host: None, ..repeat.clone() }, 2, 4.0), None);
        assert_eq!(Step::of(&Repeat { cpu_seconds: None, ..repeat }, 2, 4.0), None);
    }

    #[test]
    fn the_error_of_a_forecast_has_sign_and_interval() {
        let forecast = Forecast { streams: 12.0, low: 9.0, high: 13.0, per_stream: 0.5 };
        let text = describe_error(&forecast, 10, true);
        assert!(text.contains("forecast 12, found 10: error +2, +20 %; within its interval 9 to 13"), "{text}");
        let text = describe_error(&forecast, 15, true);
        assert!(text.contains("error -3, -20 %; outside of"), "{text}");
        assert!(describe_error(&forecast, 8, false).contains("8 or more, which does not contradict it"));
        assert!(describe_error(&forecast, 64, false).contains("64 or more, which is above it"));
    }
}
