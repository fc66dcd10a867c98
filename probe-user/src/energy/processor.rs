//! Vendor and model of the processor, from `/proc/cpuinfo`, as far as energy counters depend on
//! them.

use std::{fs::File, io::Read as _, path::Path};

/// Enough for the entry of the first CPU. On a large server the file has a megabyte.
const MAX_READ: u64 = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// `GenuineIntel`.
    Intel,
    /// `AuthenticAMD`, and Hygon's copy of Zen.
    Amd,
    /// Another vendor, or unknown.
    Other,
}

/// A processor model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processor {
    pub vendor: Vendor,
    /// CPU family, or the implementer of an Arm processor; 0 when unknown.
    pub family: u32,
    /// CPU model, or the part of an Arm processor; 0 when unknown.
    pub model: u32,
    /// The marketing name; empty when unknown.
    pub name: String,
}

impl Processor {
    /// Reads `cpuinfo` under `procfs`. Missing fields are unknown.
    #[must_use]
    pub fn read(procfs: &Path) -> Self {
        Self::parse(&read_cpuinfo(procfs))
    }

    pub(crate) fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let mut lines = text.lines().take_while(|line| !line.is_empty());
            lines.find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key.trim() == name).then(|| value.trim())
            })
        };
        let number = |name: &str, of_arm: &str| {
            let decimal = field(name).and_then(|text| text.parse().ok());
            let hexadecimal = || u32::from_str_radix(field(of_arm)?.strip_prefix("0x")?, 16).ok();
            decimal.or_else(hexadecimal).unwrap_or(0)
        };
        Self {
            vendor: match field("vendor_id") {
                Some("GenuineIntel") => Vendor::Intel,
                Some("AuthenticAMD" | "HygonGenuine") => Vendor::Amd,
                _ => Vendor::Other,
            },
            family: number("cpu family", "CPU implementer"),
            model: number("model", "CPU part"),
            name: field("model name").unwrap_or_default().chars().filter(|char| !char.is_control()).take(80).collect(),
        }
    }
}

/// The first CPUs of `cpuinfo` under `procfs`; empty where it cannot be read, which leaves every
/// field unknown.
pub(crate) fn read_cpuinfo(procfs: &Path) -> String {
    let mut text = Vec::new();
    let _ = File::open(procfs.join("cpuinfo")).and_then(|file| file.take(MAX_READ).read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_of_the_first_cpu_is_parsed() {
        let text = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Intel(R) \
                    Xeon(R) Gold 6230 CPU @ 2.10GHz\n\nprocessor\t: 1\nvendor_id\t: AuthenticAMD\n";
        let processor = Processor::parse(text);
        assert_eq!((processor.vendor, processor.family, processor.model), (Vendor::Intel, 6, 85));
        assert!(processor.name.contains("Gold 6230"));
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\n";
        let arm = Processor::parse(arm);
        assert_eq!((arm.vendor, arm.family, arm.model), (Vendor::Other, 0x41, 0xd0c));
        let unknown = Processor::parse("");
        assert_eq!((unknown.vendor, unknown.family, &*unknown.name), (Vendor::Other, 0, ""));
    }

    #[test]
    fn hostile_fields_are_bounded_or_unknown() {
        let text =
            format!("model name: a\u{7}{}\ncpu family: 99999999999\nmodel: -1\n:\nvendor_id\n", "x".repeat(9999));
        let processor = Processor::parse(&text);
        assert_eq!((processor.vendor, processor.family, processor.model), (Vendor::Other, 0, 0));
        assert_eq!(processor.name, format!("a{}", "x".repeat(79)));
    }
}
