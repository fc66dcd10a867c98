//! The account of a page: which families sum to the measured energy.

/// The parts of the energy of a package, memory or GPU, and what they sum to, negative.
pub const PARTS: [(&str, i64); 6] = [
    ("wattcast_container_energy_joules_total", 1),
    ("wattcast_retired_energy_joules_total", 1),
    ("wattcast_system_energy_joules_total", 1),
    ("wattcast_idle_energy_joules_total", 1),
    ("wattcast_unattributed_energy_joules_total", 1),
    ("wattcast_energy_joules_total", -1),
];

/// Joules of a counter in whole microjoules.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "joules of a test")]
pub fn microjoules(joules: f64) -> i64 {
    (joules * 1e6).round() as i64
}
