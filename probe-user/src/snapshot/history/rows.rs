//! The rows of a tick: energy of containers by accounting root, and their CPU time by package.
//!
//! With many containers they are nearly all of the history, so they are kept in columns: what rows
//! have in common once, numbers in 32 bits where that holds all of them, and no zeros at the end.

use std::sync::Arc;

use units::Microjoules;

use crate::{
    containers::Container,
    host::topology::PackageId,
    ledger::{AccountId, uncertainty::Bound},
};

/// Energy of one container from one root in one tick.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerDelta {
    pub container: Arc<Container>,
    pub id: AccountId,
    /// Dynamic energy.
    pub joules: Microjoules,
    /// The part of `joules` that being awake costs, where it is known separately. Boards have none.
    pub awake: Microjoules,
    /// Its part of the idle energy.
    pub idle: Microjoules,
    /// Bound of the error of the dynamic energy; `None` where it is unknown, as for a model.
    pub bound: Option<Bound>,
}

/// CPU time of a container in a tick: container, package (`None` where it is unknown), nanoseconds.
pub type ContainerCpuDelta = (Arc<Container>, Option<PackageId>, u64);

/// Size of a heap block in glibc: a word in front, in steps of 16 bytes, at least 32
/// (malloc/malloc.c, request2size).
pub(super) fn block(bytes: usize) -> usize {
    (bytes + size_of::<usize>()).next_multiple_of(16).max(32)
}

/// Memory of the elements of a boxed list, which has none without elements.
pub(super) fn list_bytes<T>(list: &[T]) -> usize {
    if list.is_empty() { 0 } else { block(size_of_val(list)) }
}

/// Whole numbers, without the zeros at their end.
#[derive(Clone, Debug, PartialEq)]
enum Numbers {
    Narrow(Box<[u32]>),
    Wide(Box<[u64]>),
}

impl Numbers {
    fn new(mut numbers: Vec<u64>) -> Self {
        let used = numbers.iter().rposition(|number| *number != 0).map_or(0, |last| last + 1);
        numbers.truncate(used);
        let narrow: Result<Box<[u32]>, _> = numbers.iter().map(|number| u32::try_from(*number)).collect();
        narrow.map_or_else(|_| Self::Wide(numbers.into()), Self::Narrow)
    }

    fn get(&self, at: usize) -> u64 {
        match self {
            Self::Narrow(numbers) => numbers.get(at).copied().map_or(0, u64::from),
            Self::Wide(numbers) => numbers.get(at).copied().unwrap_or(0),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Narrow(numbers) => list_bytes(numbers),
            Self::Wide(numbers) => list_bytes(numbers),
        }
    }
}

/// A [`ContainerDelta`] in its columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EnergyRow<'a> {
    pub container: &'a Arc<Container>,
    pub id: AccountId,
    pub joules: Microjoules,
    pub awake: Microjoules,
    pub idle: Microjoules,
    pub bound: Option<Bound>,
}

impl EnergyRow<'_> {
    /// The row on its own.
    #[must_use]
    pub fn to_delta(self) -> ContainerDelta {
        let Self { container, id, joules, awake, idle, bound } = self;
        ContainerDelta { container: container.clone(), id, joules, awake, idle, bound }
    }
}

/// The figures of a row, in the order of [`AccountRows::numbers`].
const FIGURES: [fn(&ContainerDelta) -> Microjoules; 3] = [|row| row.joules, |row| row.awake, |row| row.idle];

/// The parts of a bound that is unknown. Those of others are not negative.
const UNKNOWN: [f32; 2] = [-1.0, 0.0];

/// Consecutive rows of one root.
#[derive(Clone, Debug, PartialEq)]
struct AccountRows {
    id: AccountId,
    containers: Box<[Arc<Container>]>,
    /// Each of [`FIGURES`] of all containers, one after another.
    numbers: Numbers,
    /// Parts of the bounds, random and systematic; empty where all are unknown.
    bounds: Box<[[f32; 2]]>,
}

impl AccountRows {
    /// The rows of `id`.
    fn new(id: AccountId, rows: &[ContainerDelta]) -> Self {
        let figures = FIGURES.into_iter().flat_map(|figure| rows.iter().map(move |row| figure(row).0));
        let bound = |row: &ContainerDelta| {
            row.bound.map_or(UNKNOWN, |Bound { random, systematic }| [random, systematic].map(not_below))
        };
        let is_bounded = rows.iter().any(|row| row.bound.is_some());
        Self {
            id,
            containers: rows.iter().map(|row| row.container.clone()).collect(),
            numbers: Numbers::new(figures.collect()),
            bounds: if is_bounded { rows.iter().map(bound).collect() } else { Box::default() },
        }
    }

    fn row(&self, at: usize) -> EnergyRow<'_> {
        let figure = |figure: usize| Microjoules(self.numbers.get(figure * self.containers.len() + at));
        let parts = self.bounds.get(at).filter(|[random, _]| *random >= 0.0);
        let bound = parts.map(|parts| parts.map(f64::from));
        EnergyRow {
            container: &self.containers[at],
            id: self.id,
            joules: figure(0),
            awake: figure(1),
            idle: figure(2),
            bound: bound.map(|[random, systematic]| Bound { random, systematic }),
        }
    }

    fn bytes(&self) -> usize {
        list_bytes(&self.containers) + self.numbers.bytes() + list_bytes(&self.bounds)
    }
}

/// The nearest 32-bit number that is not below: a bound stays one.
fn not_below(bound: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "corrected below")]
    let near = bound as f32;
    if f64::from(near) < bound { near.next_up() } else { near }
}

/// Energy of containers in one tick.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EnergyRows(Box<[AccountRows]>);

impl EnergyRows {
    /// All rows, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = EnergyRow<'_>> {
        self.0.iter().flat_map(|account| (0..account.containers.len()).map(move |at| account.row(at)))
    }

    /// True without rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their memory in bytes, without that of the containers.
    pub(super) fn bytes(&self) -> usize {
        list_bytes(&self.0) + self.0.iter().map(AccountRows::bytes).sum::<usize>()
    }
}

impl From<Vec<ContainerDelta>> for EnergyRows {
    fn from(rows: Vec<ContainerDelta>) -> Self {
        let by_account = rows.chunk_by(|one, next| one.id == next.id);
        Self(by_account.map(|rows| AccountRows::new(rows[0].id, rows)).collect())
    }
}

impl FromIterator<ContainerDelta> for EnergyRows {
    fn from_iter<I: IntoIterator<Item = ContainerDelta>>(rows: I) -> Self {
        rows.into_iter().collect::<Vec<_>>().into()
    }
}

/// Rows of CPU time on one package.
#[derive(Clone, Debug, PartialEq)]
struct PackageRows {
    package: Option<PackageId>,
    containers: Box<[Arc<Container>]>,
    ns: Numbers,
}

impl PackageRows {
    /// The rows of `package`.
    fn new(package: Option<PackageId>, rows: &[ContainerCpuDelta]) -> Self {
        let containers = rows.iter().map(|(container, ..)| container.clone()).collect();
        Self { package, containers, ns: Numbers::new(rows.iter().map(|(.., ns)| *ns).collect()) }
    }

    fn rows(&self) -> impl Iterator<Item = (&Arc<Container>, Option<PackageId>, u64)> {
        self.containers.iter().enumerate().map(move |(at, container)| (container, self.package, self.ns.get(at)))
    }
}

/// CPU time of containers in one tick.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CpuRows(Box<[PackageRows]>);

impl CpuRows {
    /// All rows, by package: container, package (`None` where it is unknown), nanoseconds.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<Container>, Option<PackageId>, u64)> {
        self.0.iter().flat_map(PackageRows::rows)
    }

    /// Their memory in bytes, without that of the containers.
    pub(super) fn bytes(&self) -> usize {
        let columns = |rows: &PackageRows| list_bytes(&rows.containers) + rows.ns.bytes();
        list_bytes(&self.0) + self.0.iter().map(columns).sum::<usize>()
    }
}

impl From<Vec<ContainerCpuDelta>> for CpuRows {
    fn from(mut rows: Vec<ContainerCpuDelta>) -> Self {
        rows.sort_by_key(|(_, package, _)| *package);
        let by_package = rows.chunk_by(|(_, one, _), (_, next, _)| one == next);
        Self(by_package.map(|rows| PackageRows::new(rows[0].1, rows)).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::energy::zone::{Origin, ZoneId, ZoneKind};

    fn account(number: u32) -> AccountId {
        let zone = ZoneId { package: Some(PackageId::whole(number)), kind: ZoneKind::Package };
        AccountId { zone, origin: Origin::Powercap }
    }

    fn container(number: u32) -> Arc<Container> {
        Arc::new(Container::new(number, format!("c{number}"), number.to_string(), "docker"))
    }

    /// Small, zero, and too large for 32 bits.
    fn numbers() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), 0u64..1000, any::<u64>()]
    }

    fn rows() -> impl Strategy<Value = Vec<ContainerDelta>> {
        let bound = proptest::option::of((0.0f64..1e9, 0.0f64..1e9));
        let row = (0u32..9, 0u32..3, [numbers(), numbers(), numbers()], bound);
        let delta =
            |(number, id, [joules, awake, idle], bound): (u32, u32, [u64; 3], Option<(f64, f64)>)| ContainerDelta {
                container: container(number),
                id: account(id),
                joules: Microjoules(joules),
                awake: Microjoules(awake),
                idle: Microjoules(idle),
                bound: bound.map(|(random, systematic)| Bound { random, systematic }),
            };
        proptest::collection::vec(row.prop_map(delta), 0..20)
    }

    proptest! {
        #[test]
        fn rows_of_energy_are_what_was_added_and_bounds_stay_bounds(rows in rows()) {
            let packed: EnergyRows = rows.clone().into();
            let back: Vec<ContainerDelta> = packed.iter().map(EnergyRow::to_delta).collect();
            prop_assert_eq!((back.len(), packed.is_empty()), (rows.len(), rows.is_empty()));
            for (back, row) in back.iter().zip(&rows) {
                let is_bound = |back: f64, bound: f64| back >= bound && back <= bound * (1.0 + 1e-6) + 1e-30;
                let same = match (back.bound, row.bound) {
                    (Some(back), Some(row)) => {
                        is_bound(back.random, row.random) && is_bound(back.systematic, row.systematic)
                    }
                    (back, row) => back.is_none() && row.is_none(),
                };
                prop_assert!(same, "{:?} {:?}", back.bound, row.bound);
                prop_assert_eq!(back, &ContainerDelta { bound: back.bound, ..row.clone() });
            }
        }

        #[test]
        fn rows_of_cpu_time_are_what_was_added_by_package(
            rows in proptest::collection::vec((0u32..9, proptest::option::of(0u32..3), numbers()), 0..20),
        ) {
            let row = |(number, package, ns): (u32, Option<u32>, u64)| -> ContainerCpuDelta {
                (container(number), package.map(PackageId::whole), ns)
            };
            let mut rows: Vec<ContainerCpuDelta> = rows.into_iter().map(row).collect();
            let packed: CpuRows = rows.clone().into();
            rows.sort_by_key(|(_, package, _)| *package);
            let back: Vec<ContainerCpuDelta> = packed.iter().map(|(one, package, ns)| (one.clone(), package, ns)).collect();
            prop_assert_eq!(back, rows);
        }
    }
}
