//! Power of the domains that the firmware of an Arm machine caps: `/sys/class/powercap/arm-scmi:*`.
//!
//! The driver has no energy counter. `power_uw` is the mean power over the averaging interval of
//! the domain, `constraint_0_time_window_us` (drivers/powercap/arm_scmi_powercap.c; Arm DEN 0056,
//! System Control and Management Interface, power capping protocol). A domain contains its
//! subdomains, so only the outermost domain that is measured counts. Their names are the
//! firmware's.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::energy::counter_file::{label_in, number_in};

/// The prefix of the names of domains.
const CONTROL_TYPE: &str = "arm-scmi:";

/// A domain that is measured.
pub(super) struct Domain {
    /// The file with its power in microwatts.
    pub(super) power: PathBuf,
    /// The name that the firmware gives it.
    pub(super) label: String,
    /// Its averaging interval, where the firmware states it.
    pub(super) averaging_ns: Option<u64>,
}

/// The domains of a machine.
#[derive(Default)]
pub(super) struct Domains {
    /// Domains of which none contains another one.
    pub(super) measured: Vec<Domain>,
    /// Domains that are not counted, and why.
    pub(super) left_out: Vec<String>,
}

impl Domains {
    /// Finds the domains below `class`, which is `/sys/class/powercap`.
    pub(super) fn find(class: &Path) -> Self {
        let mut dirs = BTreeMap::new();
        collect(class, &mut dirs);
        let mut this = Self::default();
        for name in dirs.keys().filter(|name| name.matches(':').count() == 1) {
            this.add(name, &dirs);
        }
        this
    }

    /// Adds a domain, or its subdomains where it has no measurement of its own.
    fn add(&mut self, name: &str, dirs: &BTreeMap<String, PathBuf>) {
        let Some(dir) = dirs.get(name) else { return };
        let power = dir.join("power_uw");
        let parts: Vec<&String> = dirs.keys().filter(|other| is_direct_part(other, name)).collect();
        match fs::read(&power) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
                if parts.is_empty() {
                    // The driver answers EINVAL where the firmware does not measure.
                    self.left_out.push(format!("{}: {error}; the firmware does not measure it", power.display()));
                }
                parts.into_iter().for_each(|part| self.add(part, dirs));
            }
            // A file that may not be read is reported when it is opened.
            _ => {
                let contained = |part: &String| format!("{part}: a part of {name}");
                self.left_out.extend(parts.into_iter().map(contained));
                let averaging = number_in(&dir.join("constraint_0_time_window_us")).filter(|us| *us > 0);
                self.measured.push(Domain {
                    power,
                    label: label_in(&dir.join("name")),
                    averaging_ns: averaging.map(|us| us.saturating_mul(1000)),
                });
            }
        }
    }
}

/// True for `arm-scmi:0:1` and `arm-scmi:0`, false for deeper parts
/// (drivers/powercap/powercap_sys.c: the name of a zone is that of its parent and a number).
fn is_direct_part(name: &str, of: &str) -> bool {
    name.strip_prefix(of).and_then(|rest| rest.strip_prefix(':')).is_some_and(|number| !number.contains(':'))
}

/// Every domain by name. The class directory contains links to all of them; a plain copy of the
/// tree may contain subdomains inside their parents only.
fn collect(dir: &Path, dirs: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with(CONTROL_TYPE) && !dirs.contains_key(&name) {
            dirs.insert(name, entry.path());
            collect(&entry.path(), dirs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(zones: &[(&str, &str, Option<&str>)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (at, name, power) in zones {
            let zone = dir.path().join(at);
            fs::create_dir_all(&zone).unwrap();
            fs::write(zone.join("name"), format!("{name}\n")).unwrap();
            if let Some(power) = power {
                fs::write(zone.join("power_uw"), power).unwrap();
            }
        }
        dir
    }

    #[test]
    fn a_domain_counts_once_and_its_parts_do_not() {
        let dir = tree(&[
            ("intel-rapl:0", "package-0", Some("5\n")),
            ("arm-scmi:0", "soc", Some("9000000\n")),
            ("arm-scmi:0/arm-scmi:0:0", "big", Some("5000000\n")),
            ("arm-scmi:0/arm-scmi:0:1", "gpu", Some("1000000\n")),
            ("arm-scmi:1", "unmeasured", None),
            ("arm-scmi:1/arm-scmi:1:0", "left", Some("1000000\n")),
            ("arm-scmi:1/arm-scmi:1:a", "right", Some("2000000\n")),
            ("arm-scmi:2", "nothing", None),
        ]);
        fs::write(dir.path().join("arm-scmi:0/constraint_0_time_window_us"), "100000\n").unwrap();
        let domains = Domains::find(dir.path());
        let labels: Vec<&str> = domains.measured.iter().map(|domain| &*domain.label).collect();
        assert_eq!(labels, ["soc", "left", "right"]);
        assert_eq!((domains.measured[0].averaging_ns, domains.measured[1].averaging_ns), (Some(100_000_000), None));
        assert_eq!(domains.left_out.len(), 3, "{:?}", domains.left_out);
    }

    #[test]
    fn the_eleventh_domain_is_no_part_of_the_first() {
        assert!(is_direct_part("arm-scmi:1:0", "arm-scmi:1") && !is_direct_part("arm-scmi:10:0", "arm-scmi:1"));
        assert!(!is_direct_part("arm-scmi:1:0:2", "arm-scmi:1") && !is_direct_part("arm-scmi:1", "arm-scmi:1"));
    }
}
