//! Wall power of a server by its load, estimated from its processor and size.
//!
//! The logarithms of idle power and of full power are linear in the logarithms of chips, cores of a
//! chip and memory of a chip, in the age of the generation, and have an effect of the generation
//! and of the CPU model, where these were measured. Between idle and full load the power follows
//! the curve of the generation. `scripts/fit_model.py` fits the figures and states their errors.

use units::Microjoules;

use super::{
    interval::Interval,
    size::Size,
    table::{COEFFICIENTS, GENERATIONS, GUEST, Generation, KNOWN, KNOWN_MODEL, UNSEEN},
};
use crate::energy::processor::{Processor, Vendor};

/// Full load in the unit of [`Server::at`].
pub(super) const FULL_LOAD: u64 = 1_000_000;
/// Loads with a power of their own: idle, 10 %, … 100 %.
const LEVELS: usize = 11;
const STEP: u64 = FULL_LOAD / 10;

/// The power of a server at each load.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// Microwatts at idle, 10 %, … 100 % load; ascending.
    curve: [u64; LEVELS],
    /// Name of the generation.
    pub(super) generation: &'static str,
    basis: Basis,
}

/// What the estimate rests on, and so how certain it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Basis {
    /// Servers with this CPU model were measured.
    CpuModel,
    /// Servers with other CPU models were measured.
    Regression,
    /// The size of the server is assumed: that of the generation's usual one. In a guest the power
    /// is that of its share of the threads.
    Assumed { guest: bool },
}

impl Basis {
    fn interval(self) -> Interval {
        match self {
            Self::CpuModel => KNOWN_MODEL,
            Self::Regression => UNSEEN,
            Self::Assumed { .. } => GUEST,
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::CpuModel => "servers with this CPU model",
            Self::Regression => "regression over other CPU models",
            Self::Assumed { guest: true } => "this guest's share of a usual server",
            Self::Assumed { guest: false } => "regression over other generations",
        }
    }
}

impl Server {
    /// The server with this processor and size.
    pub(super) fn estimate(processor: &Processor, size: Size) -> Self {
        let name = generation(processor);
        let generation = GENERATIONS.iter().find(|known| Some(known.name) == name).unwrap_or_else(unknown);
        let known = KNOWN.iter().find(|known| known.generation == generation.name && has(&processor.name, known.name));
        let [chips, cores, memory, threads] = generation.usual;
        let usual = Size {
            chips,
            cores: chips.saturating_mul(cores),
            threads: chips.saturating_mul(cores).saturating_mul(threads),
            memory_gb: Some(chips.saturating_mul(memory)),
            guest: false,
        };
        let of = if size.guest { usual } else { size };
        let memory_of_chip = of.memory_gb.map_or(memory, |gigabytes| gigabytes.div_ceil(of.chips.max(1)));
        let kinds = [is_dense(processor), is_low_power(&processor.name)];
        let features = features(of, memory_of_chip, generation.year, kinds);
        let watts = |level: usize| {
            let common: f64 = features.iter().zip(COEFFICIENTS[level]).map(|(x, c)| x * f64::from(c)).sum();
            let own = known.map_or(0, |known| known.effects[level]);
            ((common + f64::from(generation.effects[level] + own)) / 10_000.0).exp()
        };
        let basis = match known {
            _ if size.guest => Basis::Assumed { guest: true },
            Some(_) => Basis::CpuModel,
            // Two servers with Arm processors do not make a regression over CPU models.
            None if name.is_none_or(|name| name.starts_with("Neoverse")) => Basis::Assumed { guest: false },
            None => Basis::Regression,
        };
        let share = if size.guest { (size.threads.min(of.threads), of.threads.max(1)) } else { (1, 1) };
        Self { curve: curve(watts(0), watts(1), generation, share), generation: generation.name, basis }
    }

    /// Microwatts at a load in millionths of full load.
    pub(super) fn at(&self, load: u64) -> u64 {
        let load = load.min(FULL_LOAD);
        let level = usize::try_from(load / STEP).unwrap_or(LEVELS);
        match (self.curve.get(level), self.curve.get(level + 1)) {
            (Some(low), Some(high)) => low + high.saturating_sub(*low) * (load % STEP) / STEP,
            _ => self.curve[LEVELS - 1],
        }
    }

    /// The 90 % interval of the machine.
    pub(super) fn interval(&self) -> Interval {
        self.basis.interval()
    }

    /// What the model rests on, for people.
    pub(super) fn describe(&self) -> String {
        let (idle, full) = (Microjoules(self.curve[0]).joules(), Microjoules(self.curve[LEVELS - 1]).joules());
        format!("{} ({}; {idle:.1} W idle to {full:.1} W)", self.generation, self.basis.describe())
    }
}

/// The entry for a generation that is not in the table.
fn unknown() -> &'static Generation {
    // The table is never empty, and the entry is its last.
    &GENERATIONS[GENERATIONS.len() - 1]
}

/// The power at each level of a server, or of a part of it.
fn curve(idle: f64, full: f64, generation: &Generation, (part, of): (u32, u32)) -> [u64; LEVELS] {
    let of_part = |watts: f64| Microjoules::from_joules(watts * f64::from(part) / f64::from(of)).0;
    let (idle, full) = (of_part(idle.min(full)), of_part(full));
    let mut curve = [idle; LEVELS];
    for (level, thousandths) in curve[1..].iter_mut().zip(generation.shape.into_iter().chain([1000])) {
        *level += (full - idle) * u64::from(thousandths) / 1000;
    }
    curve
}

/// The features in the order of the coefficients; `kinds` are dense and low power. The sizes are
/// bounded by those of the servers that were measured: a machine with one core is none of them.
fn features(size: Size, memory_of_chip: u32, year: u16, kinds: [bool; 2]) -> [f64; 13] {
    let chips = size.chips.clamp(1, 8);
    let chip = f64::from(chips).ln();
    let core = (f64::from(size.cores.max(chips)) / f64::from(chips)).clamp(2.0, 192.0).ln() - 2.8;
    let memory = f64::from(memory_of_chip.clamp(2, 1024)).ln() - 4.0;
    let age = (f64::from(year) - 2016.0) / 5.0;
    let flag = |is: bool| if is { 1.0 } else { 0.0 };
    let smt = flag(size.threads > size.cores);
    let [dense, low] = kinds.map(flag);
    [1.0, chip, core, smt, memory, age, age * age, age * core, core * core, chip * chip, chip * memory, dense, low]
}

/// True when the processor's name contains the words.
fn has(name: &str, words: &str) -> bool {
    let plain = name.to_lowercase().replace("(r)", " ").replace("(tm)", " ");
    let plain: Vec<&str> = plain.split_ascii_whitespace().collect();
    format!(" {} ", plain.join(" ")).contains(&format!(" {words} "))
}

/// Name of the processor's generation; `None` for one that is not in the table. Model numbers:
/// arch/x86/include/asm/intel-family.h, AMD's PPRs, arch/arm64/include/asm/cputype.h.
pub(super) fn generation(processor: &Processor) -> Option<&'static str> {
    match processor.vendor {
        Vendor::Intel => intel(processor),
        Vendor::Amd => amd(processor),
        // Implementer and part.
        Vendor::Other => match (processor.family, processor.model) {
            (0x41, 0xd0c) => Some("Neoverse N1"),
            (0x41, 0xd40) => Some("Neoverse V1"),
            (0x41, 0xd4f) => Some("Neoverse V2"),
            _ => None,
        },
    }
}

fn intel(processor: &Processor) -> Option<&'static str> {
    if processor.family == 0xf {
        return Some("NetBurst");
    }
    if processor.family != 6 {
        return None;
    }
    Some(match processor.model {
        0x0f | 0x16 | 0x17 | 0x1d => "Core",
        0x1a | 0x1e | 0x1f | 0x25 | 0x2c => "Nehalem",
        0x2e | 0x2f => "Nehalem-EX",
        0x2a | 0x2d => "Sandy Bridge",
        0x3a | 0x3e => "Ivy Bridge",
        0x3c | 0x3f | 0x45 | 0x46 => "Haswell",
        0x3d | 0x47 | 0x4f | 0x56 => "Broadwell",
        // Several generations have this number. The second digit of the name distinguishes them
        // (Gold 6130, Gold 6230, Platinum 8380H).
        0x55 if scalable(&processor.name, b'2') => "Cascade Lake",
        0x55 if scalable(&processor.name, b'3') => "Cooper Lake",
        0x55 => "Skylake",
        0x4e | 0x5e => "Skylake client",
        0x8e | 0x9e | 0xa5 | 0xa6 => "Coffee Lake",
        0x6a | 0x6c | 0x7d | 0x7e => "Ice Lake",
        0x8c | 0x8d | 0xa7 => "Rocket Lake",
        0x97 | 0x9a | 0xb7 | 0xba | 0xbf => "Raptor Lake",
        0x8f => "Sapphire Rapids",
        0xcf => "Emerald Rapids",
        0xad | 0xae => "Granite Rapids",
        0xaf => "Sierra Forest",
        _ => return None,
    })
}

fn amd(processor: &Processor) -> Option<&'static str> {
    Some(match (processor.family, processor.model) {
        (0x0f | 0x10 | 0x15, _) => "Opteron",
        // The desktop's processors have the numbers of their own or of servers, by generation.
        (0x17 | 0x19 | 0x1a, _) if !processor.name.is_empty() && !processor.name.contains("EPYC") => "AMD desktop",
        (0x17 | 0x18, 0x00..=0x1f) => "EPYC 1st gen",
        (0x17, 0x30..=0x3f) => "EPYC 2nd gen",
        (0x19, 0x00..=0x0f) => "EPYC 3rd gen",
        (0x19, 0x10..=0x1f | 0xa0..=0xaf) => "EPYC 4th gen",
        (0x1a, 0x00..=0x1f) => "EPYC 5th gen",
        (0x19, 0x60..=0x6f) | (0x1a, 0x40..=0x4f) => "AMD desktop",
        _ => return None,
    })
}

/// True for servers of many small cores: EPYC 8004 and 97x4, the dense half of EPYC 9005, Xeon 6
/// with efficient cores.
fn is_dense(processor: &Processor) -> bool {
    match processor.vendor {
        Vendor::Intel => processor.family == 6 && processor.model == 0xaf,
        Vendor::Amd => {
            matches!((processor.family, processor.model), (0x19, 0xa0..=0xaf) | (0x1a, 0x10..=0x1f))
        }
        Vendor::Other => false,
    }
}

/// True for CPU models that are sold for low power: L5420, E5-2650L, Opteron HE and EE, 6421N.
fn is_low_power(name: &str) -> bool {
    let digits = |text: &str| text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    name.split_ascii_whitespace().any(|word| {
        let word = word.to_lowercase();
        let network = word.strip_suffix('n').map(|word| word.strip_suffix('p').unwrap_or(word));
        let low = word.strip_suffix('l').and_then(|word| word.split_once('-'));
        matches!(&*word, "he" | "ee")
            || word.strip_prefix('l').is_some_and(digits)
            || network.is_some_and(digits)
            || low.is_some_and(|(kind, number)| matches!(kind, "e3" | "e5" | "e7") && digits(number))
    })
}

/// True when the second digit of a scalable processor's number is `digit`.
fn scalable(name: &str, digit: u8) -> bool {
    name.split([' ', '-']).any(|word| {
        let digits = word.as_bytes();
        digits.len() >= 4 && digits[..4].iter().all(u8::is_ascii_digit) && digits[1] == digit
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(vendor: Vendor, family: u32, model: u32, name: &str) -> Processor {
        Processor { vendor, family, model, name: name.to_owned() }
    }

    fn size(chips: u32, cores: u32, threads: u32, memory_gb: u32) -> Size {
        Size { chips, cores, threads, memory_gb: Some(memory_gb), guest: false }
    }

    fn assert_near(server: &Server, load: u64, watts: f64, percent: f64) {
        let estimate = Microjoules(server.at(load)).joules();
        assert!((estimate / watts - 1.0).abs() * 100.0 < percent, "{estimate} W, measured {watts} W");
    }

    #[test]
    fn the_generation_follows_from_the_model_number() {
        let of = |vendor, family, model, name: &str| generation(&processor(vendor, family, model, name));
        assert_eq!(of(Vendor::Intel, 6, 0x55, "Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz"), Some("Skylake"));
        assert_eq!(of(Vendor::Intel, 6, 0x55, "Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz"), Some("Cascade Lake"));
        assert_eq!(of(Vendor::Intel, 6, 0x55, "Intel(R) Xeon(R) Platinum 8380H CPU @ 2.90GHz"), Some("Cooper Lake"));
        assert_eq!(of(Vendor::Intel, 6, 0x8f, ""), Some("Sapphire Rapids"));
        assert_eq!(of(Vendor::Amd, 0x17, 0x31, "AMD EPYC 7742"), Some("EPYC 2nd gen"));
        assert_eq!(of(Vendor::Amd, 0x1a, 0x11, "AMD EPYC 9965 192-Core Processor"), Some("EPYC 5th gen"));
        assert_eq!(of(Vendor::Amd, 0x1a, 0x44, "AMD Ryzen 9 9950X"), Some("AMD desktop"));
        assert_eq!(of(Vendor::Other, 0x41, 0xd40, ""), Some("Neoverse V1"));
        assert_eq!(of(Vendor::Other, 0, 0, ""), None);
    }

    #[test]
    fn low_power_is_a_letter_of_the_name() {
        let low =
            ["Intel(R) Xeon(R) CPU L5420 @ 2.50GHz", "Intel(R) Xeon(R) CPU E5-2650L 0 @ 1.80GHz", "AMD EPYC 8124PN"];
        let other = ["Intel(R) Xeon(R) Platinum 8280L CPU @ 2.70GHz", "AMD EPYC 9754 128-Core Processor", "", "L", "n"];
        assert!(low.iter().all(|name| is_low_power(name)) && is_low_power("Xeon(R) Gold 6421N"));
        assert!(!other.iter().any(|name| is_low_power(name)));
    }

    #[test]
    fn every_generation_of_the_processors_is_in_the_table() {
        for family in [6, 0xf, 0x10, 0x15, 0x17, 0x19, 0x1a, 0x41] {
            for model in (0..0x100).chain([0xd0c, 0xd40, 0xd4f]) {
                for vendor in [Vendor::Intel, Vendor::Amd, Vendor::Other] {
                    for name in ["", "EPYC", "Ryzen", "6230", "8380H"] {
                        let Some(found) = generation(&processor(vendor, family, model, name)) else { continue };
                        assert!(GENERATIONS.iter().any(|known| known.name == found), "{found}");
                    }
                }
            }
        }
        for known in KNOWN {
            assert!(GENERATIONS.iter().any(|generation| generation.name == known.generation), "{known:?}");
        }
    }

    /// SPECpower results of servers with 2 chips: EPYC 7742, 256 GB, 94 W idle, 270 W at half load,
    /// 398 W; Xeon Platinum 8380, 256 GB, 137 W, 550 W; EPYC 9754, 384 GB, 591 W.
    #[test]
    fn a_measured_server_is_estimated() {
        let name = "AMD EPYC 7742 64-Core Processor";
        let rome = Server::estimate(&processor(Vendor::Amd, 0x17, 0x31, name), size(2, 128, 256, 256));
        assert_near(&rome, 0, 94.0, 25.0);
        assert_near(&rome, FULL_LOAD / 2, 270.0, 15.0);
        assert_near(&rome, FULL_LOAD, 398.0, 15.0);
        let name = "Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz";
        let ice_lake = Server::estimate(&processor(Vendor::Intel, 6, 0x6a, name), size(2, 80, 160, 256));
        assert_near(&ice_lake, 0, 137.0, 25.0);
        assert_near(&ice_lake, FULL_LOAD, 550.0, 20.0);
        let name = "AMD EPYC 9754 128-Core Processor";
        let bergamo = Server::estimate(&processor(Vendor::Amd, 0x19, 0xa0, name), size(2, 256, 512, 384));
        assert_near(&bergamo, FULL_LOAD, 591.0, 25.0);
        assert_eq!((rome.basis, ice_lake.basis, bergamo.basis), (Basis::CpuModel, Basis::CpuModel, Basis::CpuModel));
    }

    #[test]
    fn an_unknown_model_has_a_wider_interval() {
        let of = |name: &str| Server::estimate(&processor(Vendor::Intel, 6, 0x6a, name), size(2, 64, 128, 256));
        let width = |server: &Server| server.interval().energy[1] - server.interval().energy[0];
        let (known, other) = (of("Intel(R) Xeon(R) Platinum 8380"), of("Intel(R) Xeon(R) Platinum 8358"));
        let nothing = Server::estimate(&processor(Vendor::Other, 0, 0, ""), size(1, 8, 16, 32));
        assert!(width(&known) < width(&other) && width(&other) < width(&nothing));
        assert!(other.describe().contains("Ice Lake (regression over other CPU models"), "{}", other.describe());
        assert!(nothing.describe().contains("an unknown generation"), "{}", nothing.describe());
    }

    #[test]
    fn a_guest_has_the_share_of_its_threads() {
        let guest = |threads| {
            let size = Size { chips: 1, cores: threads, threads, memory_gb: Some(4), guest: true };
            Server::estimate(&processor(Vendor::Intel, 6, 0x6a, "Intel(R) Xeon(R) Platinum 8375C"), size)
        };
        let (two, eight) = (guest(2), guest(8));
        let ratio = |load| Microjoules(eight.at(load)).joules() / Microjoules(two.at(load)).joules();
        assert!((ratio(0) - 4.0).abs() < 0.001 && (ratio(FULL_LOAD) - 4.0).abs() < 0.001);
        // Two of 152 threads.
        let watts = Microjoules(two.at(FULL_LOAD)).joules();
        assert!((3.0..20.0).contains(&watts), "{watts} W");
        assert!(two.describe().contains("this guest's share"), "{}", two.describe());
    }

    /// A published table has 3.7 to 9.0 W for a thread of EPYC 9005, where every result has 0.2 to
    /// 0.4 W and 1.2 to 2.2 W.
    #[test]
    fn no_generation_is_an_outlier_by_thread() {
        for generation in GENERATIONS.iter().filter(|generation| generation.year >= 2017) {
            let [chips, cores, memory, threads] = generation.usual;
            let usual = size(chips, chips * cores, chips * cores * threads, chips * memory);
            let features = features(usual, memory, generation.year, [false; 2]);
            let watts = |level: usize| {
                let sum: f64 = features.iter().zip(COEFFICIENTS[level]).map(|(x, c)| x * f64::from(c)).sum();
                ((sum + f64::from(generation.effects[level])) / 10_000.0).exp() / f64::from(usual.threads)
            };
            let (idle, full) = (watts(0), watts(1));
            assert!((0.1..3.0).contains(&idle) && (1.0..8.0).contains(&full), "{}: {idle} {full}", generation.name);
            assert!(idle < full, "{}", generation.name);
        }
    }

    #[test]
    fn power_rises_with_load() {
        for generation in GENERATIONS {
            let curve = curve(50.0, 400.0, &generation, (1, 1));
            let server = Server { curve, generation: generation.name, basis: Basis::Regression };
            assert_eq!((server.at(0), server.at(FULL_LOAD)), (50_000_000, 400_000_000));
            assert_eq!(server.at(u64::MAX), 400_000_000);
            let powers: Vec<u64> = (0..=1000).map(|load| server.at(load * 1000)).collect();
            assert!(powers.is_sorted(), "{}", generation.name);
        }
    }

    #[test]
    fn a_machine_of_any_size_has_a_finite_power() {
        for (chips, cores, threads, memory) in [(1, 1, 1, 1), (1, 2, 2, 1), (64, 8192, 8192, 65536), (8, 4, 4, 0)] {
            let server = Server::estimate(&processor(Vendor::Other, 0, 0, ""), size(chips, cores, threads, memory));
            let (idle, full) = (server.at(0), server.at(FULL_LOAD));
            assert!(0 < idle && idle <= full && full < 100_000_000_000, "{idle} {full}");
        }
    }
}
