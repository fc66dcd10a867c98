//! The bill of a period: energy, cost and carbon of every stream, container, label or namespace,
//! with rows that sum to the measured energy.
//!
//! Energy is whole microjoules, money is decimal. Every microjoule of the account of a host is in
//! exactly one row: of a workload, of the system, of idle time, of no user, or of workloads that
//! ended before they were sampled. What was not measured is in no row; its times are named.

pub mod job_log;
pub mod period;
pub mod probes;
pub mod rounding;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rust_decimal::Decimal;

use crate::{
    cost::{Prices, for_energy},
    energy::{
        database::usage::{PeriodUsage, without_port},
        usage::{Gap, HostUsage, Slots, StreamUsage, WorkloadUsage},
    },
};
use period::Period;
use rounding::split;

/// What the rows of a bill are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum GroupBy {
    /// ffmpeg streams; a container's other processes are one row for each host
    Stream,
    /// Containers, guests, units and jobs, by name
    #[default]
    Container,
    /// Values of the container label of --label
    Label,
    /// Kubernetes namespaces
    Namespace,
}

impl GroupBy {
    /// The heading of the column of names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Container => "container",
            Self::Label => "label",
            Self::Namespace => "namespace",
        }
    }
}

/// The division of idle energy that the probe attributed to no workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum IdleShare {
    /// As the probe attributed it (its --idle.policy); the remainder is a row
    #[default]
    Recorded,
    /// Among the workloads of the host by their load energy, hour by hour
    Proportional,
}

/// What a row contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowKind {
    /// A stream, container, label or namespace.
    Named,
    /// Workloads without a value of what the rows are.
    Unnamed,
    /// Everything outside of workloads.
    System,
    /// Idle energy that is not divided.
    Idle,
    /// Energy without a known user.
    Unattributed,
    /// The remainder of the measured energy: workloads over the limit of series, and the last
    /// seconds of those that ended between two samples.
    Ended,
}

impl RowKind {
    /// The value of the column `kind`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Named => "named",
            Self::Unnamed => "unnamed",
            Self::System => "system",
            Self::Idle => "idle",
            Self::Unattributed => "unattributed",
            Self::Ended => "ended",
        }
    }
}

/// One row. Energy is in microjoules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BillRow {
    /// What it contains.
    pub kind: RowKind,
    /// The host; empty for a row of several.
    pub host: String,
    /// The stream, container, label value or namespace; empty for other kinds.
    pub name: String,
    /// Dynamic energy without that of being awake. Negative only for the remainder, where samples
    /// contradict each other.
    pub load: i128,
    /// Energy of keeping packages awake.
    pub awake: i128,
    /// Idle energy.
    pub idle: i128,
    /// Time in which it was sampled, in microseconds; absent where it has none.
    pub time_us: Option<u64>,
    /// Time of media that it produced, in microseconds; absent if unknown.
    pub media_us: Option<u64>,
    /// Bound of the error of load and awake energy, in microjoules; absent if unknown.
    pub bound: Option<u64>,
    /// Cost of the energy; absent without a price.
    pub cost: Option<Decimal>,
    /// Grams of CO2 equivalents of the energy; absent if a part has no intensity.
    pub carbon: Option<Decimal>,
    /// Grams of CO2 equivalents of its part of the hardware.
    pub embodied: Option<Decimal>,
    /// Values of the label `source`.
    pub sources: BTreeSet<String>,
}

impl BillRow {
    /// All energy in microjoules.
    #[must_use]
    pub fn energy(&self) -> i128 {
        self.load + self.awake + self.idle
    }

    /// Software carbon intensity in grams for an hour, ISO/IEC 21031: `((E · I) + M) / R`, where R
    /// is the hours of the row. Absent if any part is unknown.
    #[must_use]
    pub fn sci(&self) -> Option<Decimal> {
        let hours = Decimal::from(self.time_us.filter(|time| *time > 0)?).checked_div(Decimal::from(HOUR_US))?;
        self.carbon?.checked_add(self.embodied?)?.checked_div(hours)
    }
}

/// Microseconds of an hour.
pub const HOUR_US: u64 = 3_600_000_000;

/// What a bill is made for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BillRequest {
    /// The rows.
    pub by: GroupBy,
    /// The container label, with [`GroupBy::Label`].
    pub label: String,
    /// The division of idle energy.
    pub idle: IdleShare,
    /// Grams of CO2 equivalents of the production of a host, for each of its hours.
    pub embodied_per_hour: Option<Decimal>,
}

/// A bill.
#[derive(Clone, Debug, PartialEq)]
pub struct Bill {
    /// The period.
    pub period: Period,
    /// What it was made for.
    pub request: BillRequest,
    /// The rows, by kind, host and name.
    pub rows: Vec<BillRow>,
    /// The sum of all rows.
    pub total: BillRow,
    /// Measured energy of all hosts in microjoules, which the rows sum to.
    pub measured: u64,
    /// Measured energy between the samples around the edges of the period, of which a part was
    /// interpolated.
    pub edge: u64,
    /// The hosts.
    pub hosts: Vec<String>,
    /// Times without samples or with uncounted energy, by host.
    pub gaps: Vec<(String, Gap)>,
    /// The currency of the costs.
    pub currency: String,
    /// What the reader must know.
    pub notes: Vec<String>,
}

/// A row while it is summed up.
#[derive(Clone, Debug, Default)]
struct Sum {
    load: Vec<i128>,
    awake: Vec<i128>,
    idle: Vec<i128>,
    /// Workloads and streams in the sum.
    parts: u64,
    time_us: Option<u64>,
    media_us: Option<u64>,
    bound: Option<u64>,
    sources: BTreeSet<String>,
}

/// Energy of a part of a workload by slot.
#[derive(Clone, Debug, Default)]
struct Part {
    load: Vec<u64>,
    awake: Vec<u64>,
    idle: Vec<u64>,
}

type RowKey = (RowKind, String, String);

impl Sum {
    fn add(&mut self, part: &Part) {
        for (sums, more) in [(&mut self.load, &part.load), (&mut self.awake, &part.awake), (&mut self.idle, &part.idle)]
        {
            sums.resize(sums.len().max(more.len()), 0);
            for (sum, more) in sums.iter_mut().zip(more) {
                *sum += i128::from(*more);
            }
        }
    }

    /// Adds a workload or stream with its time and its bound; without one of them the sum has none.
    fn add_usage(&mut self, part: &Part, time_us: Option<u64>, bound: Option<u64>, sources: &BTreeSet<String>) {
        let first = self.parts == 0;
        let sum = |sum: Option<u64>, more: Option<u64>| match first {
            true => more,
            false => sum.zip(more).map(|(sum, more)| sum.saturating_add(more)),
        };
        (self.bound, self.time_us) = (sum(self.bound, bound), sum(self.time_us, time_us));
        self.parts += 1;
        self.sources.extend(sources.iter().cloned());
        self.add(part);
    }

    fn finish(self, (kind, host, name): RowKey, prices: &[SlotPrice]) -> BillRow {
        let sum = |parts: &[i128]| parts.iter().sum::<i128>();
        let of_slot = |slot: usize| {
            let part = |parts: &[i128]| parts.get(slot).copied().unwrap_or_default();
            whole(part(&self.load) + part(&self.awake) + part(&self.idle))
        };
        let amount = |rate: fn(&SlotPrice) -> Option<Decimal>| {
            prices.iter().enumerate().try_fold(Decimal::ZERO, |sum, (slot, price)| {
                let energy = of_slot(slot)?;
                // A slot without energy needs no price.
                let part = if energy.is_zero() { Decimal::ZERO } else { for_energy(energy, rate(price)?)? };
                sum.checked_add(part)
            })
        };
        BillRow {
            kind,
            host,
            name,
            cost: amount(|price| price.cost),
            carbon: amount(|price| price.carbon),
            load: sum(&self.load),
            awake: sum(&self.awake),
            idle: sum(&self.idle),
            time_us: self.time_us,
            media_us: self.media_us,
            bound: self.bound,
            embodied: None,
            sources: self.sources,
        }
    }
}

/// Price and carbon of a kilowatt hour of one slot, with the PUE.
struct SlotPrice {
    cost: Option<Decimal>,
    carbon: Option<Decimal>,
}

/// Makes the bill of a period.
#[must_use]
pub fn bill(usage: PeriodUsage, period: Period, slots: &Slots, prices: &Prices, request: BillRequest) -> Bill {
    let PeriodUsage { hosts, mut media } = usage;
    let mut sums: BTreeMap<RowKey, Sum> = BTreeMap::new();
    for host in &hosts {
        add_host(&mut sums, host, &mut media, slots, &request);
    }
    let slot_prices = slot_prices(slots, prices);
    let mut rows: Vec<BillRow> = sums.into_iter().map(|(key, sum)| sum.finish(key, &slot_prices)).collect();
    // Rows of the account are always there; of the remainder only what exists.
    rows.retain(|row| row.energy() != 0 || matches!(row.kind, RowKind::Named));
    let host_us = hosts.iter().fold(0u64, |sum, host| sum.saturating_add(host.sampled_us));
    add_embodied(&mut rows, request.embodied_per_hour, host_us);
    let edge = hosts.iter().fold(0u64, |sum, host| sum.saturating_add(host.edge));
    let mut total = total(&rows, host_us);
    // Measured energy is not attributed: only its edges are uncertain.
    total.bound = Some(edge);
    total.sources.extend(hosts.iter().flat_map(|host| host.sources.iter().cloned()));
    let mut bill = Bill {
        period,
        rows,
        measured: hosts.iter().flat_map(|host| &host.measured).fold(0u64, |sum, part| sum.saturating_add(*part)),
        edge,
        gaps: hosts.iter().flat_map(|host| host.gaps.iter().map(|gap| (host.host.clone(), *gap))).collect(),
        hosts: hosts.into_iter().map(|host| host.host).collect(),
        currency: prices.currency.clone(),
        notes: Vec::new(),
        total,
        request,
    };
    bill.notes = notes(&bill, prices);
    bill
}

/// Price and carbon of a kilowatt hour of each slot.
fn slot_prices(slots: &Slots, prices: &Prices) -> Vec<SlotPrice> {
    let price = |(start, end): (i64, i64)| {
        let window = Timestamp::from_microsecond(start).ok().zip(Timestamp::from_microsecond(end).ok());
        let with_pue = |rate: Decimal| rate.checked_mul(prices.pue);
        SlotPrice {
            cost: window.and_then(|(start, end)| prices.tariff.mean(start, end)).and_then(with_pue),
            carbon: window.and_then(|(start, end)| prices.carbon_intensity(start, end)).and_then(with_pue),
        }
    };
    slots.iter().map(price).collect()
}

/// Adds the account of one host. Each microjoule is added once.
fn add_host(
    sums: &mut BTreeMap<RowKey, Sum>,
    host: &HostUsage,
    media: &mut BTreeMap<(String, String), u64>,
    slots: &Slots,
    request: &BillRequest,
) {
    let mut parts: Vec<Part> = host.workloads.iter().map(part_of).collect();
    let mut idle = host.idle.clone();
    if request.idle == IdleShare::Proportional {
        share_idle(&mut idle, &mut parts);
    }
    let by_host = matches!(request.by, GroupBy::Stream | GroupBy::Container);
    let host_label = if by_host { host.host.clone() } else { String::new() };
    let mut remainder: Vec<i128> = host.measured.iter().map(|part| i128::from(*part)).collect();
    let mut take = |part: &[u64]| {
        for (left, taken) in remainder.iter_mut().zip(part) {
            *left -= i128::from(*taken);
        }
    };
    for part in &parts {
        [&part.load, &part.awake, &part.idle].into_iter().for_each(|part| take(part));
    }
    [&host.system, &idle, &host.unattributed].into_iter().for_each(|part| take(part));
    for (kind, part) in [
        (RowKind::Idle, Part { idle, ..Part::default() }),
        (RowKind::Unattributed, Part { load: host.unattributed.clone(), ..Part::default() }),
    ] {
        sums.entry((kind, host_label.clone(), String::new())).or_default().add(&part);
    }
    let mut system = Part { load: host.system.clone(), ..Part::default() };
    let mut media_of = |stream: &str| media.remove(&(without_port(&host.host).to_owned(), stream.to_owned()));
    if request.by == GroupBy::Stream {
        // Streams outside of containers are parts of the system.
        let outside = WorkloadUsage { dynamic: host.system.clone(), ..WorkloadUsage::default() };
        system = take_streams(sums, host, (&outside, &system), slots, &mut media_of);
        for (workload, part) in host.workloads.iter().zip(&parts) {
            let rest = take_streams(sums, host, (workload, part), slots, &mut media_of);
            let row = sums.entry((RowKind::Unnamed, host_label.clone(), String::new())).or_default();
            row.add(&rest);
            row.sources.extend(workload.sources.iter().cloned());
        }
    } else {
        add_workloads(sums, host, (&parts, &host_label), request, &mut media_of);
    }
    sums.entry((RowKind::System, host_label.clone(), String::new())).or_default().add(&system);
    for kind in [RowKind::System, RowKind::Idle, RowKind::Unattributed] {
        let row = sums.entry((kind, host_label.clone(), String::new())).or_default();
        row.sources.extend(host.sources.iter().cloned());
    }
    let row = sums.entry((RowKind::Ended, host_label, String::new())).or_default();
    row.sources.extend(host.sources.iter().cloned());
    row.load.resize(row.load.len().max(remainder.len()), 0);
    row.load.iter_mut().zip(&remainder).for_each(|(sum, more)| *sum += more);
}

/// Adds the workloads of a host by name, label or namespace.
fn add_workloads(
    sums: &mut BTreeMap<RowKey, Sum>,
    host: &HostUsage,
    (parts, host_label): (&[Part], &str),
    request: &BillRequest,
    media_of: &mut impl FnMut(&str) -> Option<u64>,
) {
    for (workload, part) in host.workloads.iter().zip(parts) {
        let name = match request.by {
            GroupBy::Label => workload.labels.get(&request.label).cloned().unwrap_or_default(),
            GroupBy::Namespace => workload.namespace.clone(),
            GroupBy::Container | GroupBy::Stream => workload.name.clone(),
        };
        let kind = if name.is_empty() { RowKind::Unnamed } else { RowKind::Named };
        let of_workload = streams_of(host, workload).map(|stream| stream.stream.as_str());
        let names: BTreeSet<&str> = of_workload.chain(is_job(workload).then_some(workload.name.as_str())).collect();
        let media = names.into_iter().filter_map(&mut *media_of).reduce(u64::saturating_add);
        let row = sums.entry((kind, host_label.to_owned(), name)).or_default();
        row.add_usage(part, workload.sampled_us, workload.bound, &workload.sources);
        row.media_us = row.media_us.map_or(media, |sum| Some(sum.saturating_add(media.unwrap_or(0))));
    }
}

/// The energy of a workload in parts.
fn part_of(workload: &WorkloadUsage) -> Part {
    // The counters are spread by themselves, so a slot may have a microjoule more of the part.
    let awake: Vec<u64> = workload.dynamic.iter().zip(&workload.awake).map(|(all, awake)| *awake.min(all)).collect();
    let load = workload.dynamic.iter().zip(&awake).map(|(all, awake)| all - awake).collect();
    Part { load, awake, idle: workload.idle.clone() }
}

/// Divides the idle energy of a host among its workloads, slot by slot. That of a slot without load
/// stays.
fn share_idle(idle: &mut [u64], parts: &mut [Part]) {
    for (slot, left) in idle.iter_mut().enumerate() {
        let weights: Vec<u64> = parts.iter().map(|part| part.load.get(slot).copied().unwrap_or(0)).collect();
        if weights.iter().all(|weight| *weight == 0) {
            continue;
        }
        for (part, share) in parts.iter_mut().zip(split(std::mem::take(left), &weights)) {
            if let Some(sum) = part.idle.get_mut(slot) {
                *sum = sum.saturating_add(share);
            }
        }
    }
}

/// True for the row of a single job, whose name is that of its stream.
fn is_job(workload: &WorkloadUsage) -> bool {
    workload.id.starts_with("job:")
}

/// The streams of a workload; of one without an id those outside of containers.
fn streams_of<'a>(host: &'a HostUsage, workload: &'a WorkloadUsage) -> impl Iterator<Item = &'a StreamUsage> {
    // A job with a row of its own is its only stream, and that has no id.
    let is_of = move |stream: &&StreamUsage| {
        stream.id == workload.id && (!stream.id.is_empty() || stream.container == workload.name)
    };
    host.streams.iter().filter(is_of)
}

/// Adds the streams of a workload as rows, and returns what is left of it.
fn take_streams(
    sums: &mut BTreeMap<RowKey, Sum>,
    host: &HostUsage,
    (workload, part): (&WorkloadUsage, &Part),
    slots: &Slots,
    media_of: &mut impl FnMut(&str) -> Option<u64>,
) -> Part {
    let row_key = |stream: &str| (RowKind::Named, host.host.clone(), stream.to_owned());
    if is_job(workload) && !workload.name.is_empty() {
        let row = sums.entry(row_key(&workload.name)).or_default();
        row.add_usage(part, workload.sampled_us, workload.bound, &workload.sources);
        row.media_us = row.media_us.or_else(|| media_of(&workload.name));
        return Part::default();
    }
    let streams: Vec<&StreamUsage> = streams_of(host, workload).collect();
    if streams.is_empty() {
        return part.clone();
    }
    let empty = || Part { load: vec![0; slots.count()], awake: vec![0; slots.count()], idle: vec![0; slots.count()] };
    let mut shares: Vec<Part> = vec![empty(); streams.len() + 1];
    for slot in 0..slots.count() {
        let at = |all: &[u64]| all.get(slot).copied().unwrap_or(0);
        let mut weights: Vec<u64> = streams.iter().map(|stream| at(&stream.dynamic)).collect();
        let of_streams = weights.iter().fold(0u64, |sum, weight| sum.saturating_add(*weight));
        // The rest: a shell, another program. Without any energy it has all of it.
        let rest = at(&workload.dynamic).saturating_sub(of_streams);
        weights.push(if of_streams == 0 { rest.max(1) } else { rest });
        let parts =
            [split(at(&part.load), &weights), split(at(&part.awake), &weights), split(at(&part.idle), &weights)];
        for (index, share) in shares.iter_mut().enumerate() {
            (share.load[slot], share.awake[slot], share.idle[slot]) =
                (parts[0][index], parts[1][index], parts[2][index]);
        }
    }
    let rest = shares.pop().unwrap_or_default();
    for (stream, share) in streams.into_iter().zip(&shares) {
        let row = sums.entry(row_key(&stream.stream)).or_default();
        row.add_usage(share, Some(stream.sampled_us), share_of_bound(workload, stream), &stream.sources);
        row.media_us = row.media_us.or_else(|| media_of(&stream.stream));
    }
    rest
}

/// A whole number as a decimal; absent beyond 28 digits.
fn whole(number: i128) -> Option<Decimal> {
    Decimal::try_from_i128_with_scale(number, 0).ok()
}

/// The bound of a stream, in proportion to its energy: that of its container. The division among
/// the streams of a container adds what is not known.
fn share_of_bound(workload: &WorkloadUsage, stream: &StreamUsage) -> Option<u64> {
    let sum = |slots: &[u64]| slots.iter().map(|part| u128::from(*part)).sum::<u128>();
    let all = sum(&workload.dynamic).max(1);
    let share = u128::from(workload.bound?) * sum(&stream.dynamic).min(all) / all;
    u64::try_from(share).ok()
}

/// Divides the emissions of the production of the hosts among all rows, by their energy.
fn add_embodied(rows: &mut [BillRow], per_hour: Option<Decimal>, host_us: u64) {
    let Some(all) =
        per_hour.and_then(|grams| grams.checked_mul(Decimal::from(host_us))?.checked_div(Decimal::from(HOUR_US)))
    else {
        return;
    };
    let energy: i128 = rows.iter().map(BillRow::energy).sum();
    let Some(energy) = whole(energy).filter(|energy| !energy.is_zero()) else { return };
    for row in rows {
        let share = whole(row.energy()).and_then(|part| part.checked_div(energy));
        row.embodied = share.and_then(|share| all.checked_mul(share));
    }
}

/// The sum of the rows. Its time is that of the hosts.
fn total(rows: &[BillRow], host_us: u64) -> BillRow {
    let sum = |part: fn(&BillRow) -> i128| rows.iter().map(part).sum::<i128>();
    let amount = |part: fn(&BillRow) -> Option<Decimal>| {
        rows.iter().try_fold(Decimal::ZERO, |sum, row| sum.checked_add(part(row)?))
    };
    BillRow {
        kind: RowKind::Named,
        host: String::new(),
        name: String::new(),
        load: sum(|row| row.load),
        awake: sum(|row| row.awake),
        idle: sum(|row| row.idle),
        time_us: Some(host_us),
        media_us: rows.iter().filter_map(|row| row.media_us).reduce(u64::saturating_add),
        bound: None,
        cost: amount(|row| row.cost),
        carbon: amount(|row| row.carbon),
        embodied: amount(|row| row.embodied),
        sources: rows.iter().flat_map(|row| row.sources.iter().cloned()).collect(),
    }
}

/// What the reader must know, the most important first.
fn notes(bill: &Bill, prices: &Prices) -> Vec<String> {
    let sources = bill.total.sources.iter().map(|source| (source.as_str(), None));
    let mut notes = units::provenance::Unmeasured::sentences(sources);
    let uncounted = bill.gaps.iter().fold(0u64, |sum, (_, gap)| sum.saturating_add(gap.uncounted_us));
    if uncounted > 0 {
        notes.push(format!("{} are in no row: no energy was counted then", hours(uncounted)));
    }
    let unsampled = bill.gaps.iter().filter(|(_, gap)| gap.is_long());
    let unsampled = unsampled.map(|(_, gap)| gap.length_us().saturating_sub(gap.uncounted_us));
    let unsampled = unsampled.fold(0u64, u64::saturating_add);
    if unsampled > 0 {
        notes.push(format!(
            "{} have no samples, and their energy is counted: it is spread evenly over that time",
            hours(unsampled)
        ));
    }
    if bill.rows.iter().any(|row| row.energy() < 0) {
        notes.push("the samples contradict each other: the row of ended workloads is negative".to_owned());
    }
    if prices.carbon.is_some() && bill.total.carbon.is_none() {
        notes.push("a part of the period has no carbon intensity, so there is no carbon".to_owned());
    }
    if prices.energy_origin == crate::cost::PriceOrigin::Default {
        notes.push("costs use the built-in default price; set --energy.price".to_owned());
    }
    if prices.core_hour.is_some() || prices.node_hour.is_some() || prices.gpu_hour.is_some() {
        notes.push("costs are those of energy; prices of cores, GPUs and machines are not part of a bill".to_owned());
    }
    notes
}

/// A time in hours, for people.
#[must_use]
pub fn hours(us: u64) -> String {
    let tenths = us.saturating_add(HOUR_US / 20) / (HOUR_US / 10);
    if tenths > 0 {
        return format!("{}.{} hours", tenths / 10, tenths % 10);
    }
    format!("{} seconds", us.div_ceil(1_000_000))
}

/// The time of a gap, as text in the time zone of the bill.
#[must_use]
pub fn time_text(us: i64, period: &Period) -> String {
    let text = |moment: Timestamp| moment.to_zoned(period.zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string();
    Timestamp::from_microsecond(us).map_or_else(|_| String::new(), text)
}

#[cfg(test)]
mod tests;
