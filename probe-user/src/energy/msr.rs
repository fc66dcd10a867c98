//! RAPL from the model-specific registers, through `/dev/cpu/N/msr`. Never selected automatically,
//! because it needs CAP_SYS_RAWIO and a device that allows far more than reading energy (PLATYPUS).
//!
//! The registers are read on one CPU of each package (of each die, where Intel's registers cover a
//! die), by `pread` at the number of the register. While that CPU is offline, another one of the
//! package is read: all show the same register. The devices may be opened at the start only, so a
//! few of them are opened then.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use units::Unit;

use super::{
    counter_file::REOPENED,
    processor::{Processor, Vendor},
    source::{Source, SourceInventory},
    zone::{Ceiling, Origin, Range, Zone, ZoneId, ZoneKind},
};
use crate::host::{
    availability::{Reason, Unavailable},
    topology::{PackageId, Topology},
};

/// Energy-status registers count 32 bits and wrap (Intel SDM 14.10.3).
const RANGE: u64 = 1 << 32;

/// Intel SDM, volume 4; AMD PPR for family 17h and later.
const INTEL_UNIT: u64 = 0x606;
const INTEL_POWER_LIMIT: u64 = 0x610;
const INTEL_POWER_INFO: u64 = 0x614;
const INTEL_ZONES: [(ZoneKind, u64); 5] = [
    (ZoneKind::Package, 0x611),
    (ZoneKind::Core, 0x639),
    (ZoneKind::Uncore, 0x641),
    (ZoneKind::Dram, 0x619),
    (ZoneKind::Psys, 0x64d),
];
const AMD_UNIT: u64 = 0xc001_0299;
/// 0xC001029A counts a single core and is not read here.
const AMD_ZONES: [(ZoneKind, u64); 1] = [(ZoneKind::Package, 0xc001_029b)];

/// Server models whose DRAM counts 15.3 µJ regardless of the unit register: HSX, BDX, SKX/CLX/CPX,
/// ICX, ICX-D, KNL, KNM (intel_rapl_common.c, rapl_defaults_hsw_server). Broadwell-DE, SPR and
/// later use the register.
const FIXED_DRAM: [u32; 7] = [0x3f, 0x4f, 0x55, 0x6a, 0x6c, 0x57, 0x85];
/// Atoms whose unit is 2^ESU microjoules and not 2^-ESU joules: Silvermont, Merrifield, Airmont,
/// Moorefield (intel_rapl_common.c, rapl_check_unit_atom).
const ATOM_UNIT: [u32; 4] = [0x37, 0x4a, 0x4c, 0x5a];
/// 15.3 µJ, as in powercap and turbostat. perf uses 2^-16 J, which is 0.27 % less.
pub const FIXED_DRAM_UNIT: Unit = Unit::tenths(153);
/// Models whose psys counts whole joules: SPR, EMR (intel_rapl_common.c, psys_domain_energy_unit).
const PSYS_JOULES: [u32; 2] = [0x8f, 0xcf];

/// The open registers.
pub struct Msr {
    inventory: SourceInventory,
    registers: Vec<Register>,
}

/// Maximum number of CPUs of a package whose devices are opened.
const MAX_DEVICES: usize = 4;

/// A register of a package.
#[derive(Clone)]
struct Register {
    /// The devices of some of its CPUs. They stay valid while a CPU is offline.
    devices: Arc<[File]>,
    number: u64,
    /// The device that was read last.
    current: usize,
    /// True while no CPU of the package can be read. The register may start at zero afterwards.
    offline: bool,
}

impl Register {
    /// The counter.
    ///
    /// # Errors
    /// When no device can be read. [`REOPENED`] once, after all CPUs of the package were offline.
    fn read(&mut self) -> io::Result<u64> {
        let first = match read_register(&self.devices[self.current], self.number) {
            Ok(value) => return self.known(self.current, value),
            Err(error) => error,
        };
        let other = (0..self.devices.len())
            .filter(|device| *device != self.current)
            .find_map(|device| read_register(&self.devices[device], self.number).ok().map(|value| (device, value)));
        if let Some((device, value)) = other {
            return self.known(device, value);
        }
        // arch/x86/kernel/msr.c: a CPU that is offline refuses the call.
        self.offline |= matches!(first.raw_os_error(), Some(libc::ENXIO | libc::ENODEV));
        Err(first)
    }

    fn known(&mut self, device: usize, value: u64) -> io::Result<u64> {
        self.current = device;
        if std::mem::take(&mut self.offline) {
            return Err(io::Error::other(REOPENED));
        }
        // The upper half is reserved.
        Ok(value & (RANGE - 1))
    }
}

fn read_register(device: &File, number: u64) -> io::Result<u64> {
    let mut value = [0; 8];
    device.read_exact_at(&mut value, number).map(|()| u64::from_ne_bytes(value))
}

impl Msr {
    /// Opens `cpu/N/msr` under `dev` for one CPU of each package and tries every register that the
    /// processor may have.
    ///
    /// # Errors
    /// `absent` for a processor without these registers or a kernel without the device, `denied`
    /// when it may not be opened, `broken` when the registers cannot be read.
    pub fn open(dev: &Path, topology: &Topology, processor: &Processor) -> Result<Self, Unavailable> {
        let (unit_register, registers): (u64, &[_]) = match processor.vendor {
            Vendor::Intel => (INTEL_UNIT, &INTEL_ZONES),
            Vendor::Amd => (AMD_UNIT, &AMD_ZONES),
            Vendor::Other => {
                return Err(Unavailable::new(
                    Reason::Absent,
                    "cpuinfo shows neither an Intel nor an AMD processor, and others have no such registers",
                ));
            }
        };
        let mut this = Self { inventory: SourceInventory::default(), registers: Vec::new() };
        // AMD's registers cover the package, even with several dies.
        let per_die = processor.vendor == Vendor::Intel
            && topology.packages(false).iter().any(|package| topology.dies(package.package) > 1);
        let mut seen: Vec<PackageId> = Vec::new();
        for (cpu, package) in topology.cpus(per_die) {
            if seen.contains(&package) {
                continue;
            }
            seen.push(package);
            let path = dev.join(format!("cpu/{cpu}/msr"));
            let others = topology.cpus(per_die).filter(|(other, of)| *other != cpu && *of == package);
            let others = others.take(MAX_DEVICES - 1).map(|(other, _)| dev.join(format!("cpu/{other}/msr")));
            let others: Vec<File> = others.filter_map(|path| File::open(path).ok()).collect();
            if let Err(why) = this.add(&path, others, package, processor, (unit_register, registers)) {
                this.inventory.refused.push((ZoneId { package: Some(package), kind: ZoneKind::Package }, why));
            }
        }
        this.inventory.require_packages(|| "no package has an energy register that counts".to_owned())?;
        Ok(this)
    }

    fn add(
        &mut self,
        path: &PathBuf,
        others: Vec<File>,
        package: PackageId,
        processor: &Processor,
        (unit_register, registers): (u64, &[(ZoneKind, u64)]),
    ) -> Result<(), Unavailable> {
        let failed = |what: &str, error: &io::Error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => "Load the module: modprobe msr",
                io::ErrorKind::PermissionDenied => {
                    "It needs root with CAP_SYS_RAWIO, and a kernel that is not locked down"
                }
                _ => "A guest's hypervisor may refuse the register",
            };
            Unavailable::new(Reason::of(error), format!("{}{what}: {error}. {hint}", path.display()))
        };
        let file = File::open(path).map_err(|error| failed("", &error))?;
        let devices: Arc<[File]> = std::iter::once(file).chain(others).collect();
        let read = |register: u64| read_register(&devices[0], register);
        let units = read(unit_register).map_err(|error| failed(&format!(" at {unit_register:#x}"), &error))?;
        // Bits 12:8: the energy unit is 2^-ESU joules.
        let exponent = u32::try_from(units >> 8 & 0x1f).unwrap_or(0);
        for (kind, register) in registers {
            let id = ZoneId { package: (*kind != ZoneKind::Psys).then_some(package), kind: *kind };
            if self.inventory.has(id) {
                // psys covers the platform, and every package reads the same counter.
                continue;
            }
            let location = format!("{} at {register:#x}", path.display());
            let value = match read(*register) {
                Ok(value) => value,
                Err(error) if *kind == ZoneKind::Package => return Err(failed(&format!(" at {register:#x}"), &error)),
                Err(error) => {
                    self.inventory.left_out.push(format!("{location}: {error}; the processor has no such zone"));
                    continue;
                }
            };
            if value & (RANGE - 1) == 0 && *kind != ZoneKind::Package {
                self.inventory.left_out.push(format!("{location}: reads 0; the processor has no such zone"));
                continue;
            }
            let quirk = processor.vendor == Vendor::Intel && processor.family == 6;
            let unit = match kind {
                ZoneKind::Dram if quirk && FIXED_DRAM.contains(&processor.model) => Some(FIXED_DRAM_UNIT),
                ZoneKind::Psys if quirk && PSYS_JOULES.contains(&processor.model) => Unit::joules_shifted(0),
                _ if quirk && ATOM_UNIT.contains(&processor.model) => Unit::new(1 << exponent, 1),
                _ => Unit::joules_shifted(exponent),
            };
            let Some(unit) = unit else { continue };
            let ceiling = match (processor.vendor, kind) {
                (Vendor::Intel, ZoneKind::Package) => {
                    limit(units, read(INTEL_POWER_LIMIT).ok(), read(INTEL_POWER_INFO).ok())
                }
                _ => None,
            };
            self.inventory.zones.push(Zone {
                unit,
                step_uj: unit.step_uj(),
                ceiling: ceiling.map_or(Ceiling::learned(*kind), Ceiling::Limit),
                ..Zone::microjoules(id, Range::Wraps(RANGE), location)
            });
            self.registers.push(Register { devices: devices.clone(), number: *register, current: 0, offline: false });
        }
        Ok(())
    }
}

/// The highest power limit of the package, in microwatts (Intel SDM 14.10.3: PKG_POWER_LIMIT bits
/// 14:0 and 46:32 with their enable bits 15 and 47, PKG_POWER_INFO bits 14:0 and 46:32, in 2^-PU
/// watts, PU in bits 3:0 of the unit register).
fn limit(units: u64, limits: Option<u64>, info: Option<u64>) -> Option<u64> {
    let microwatts = |field: u64| ((field & 0x7fff) * 1_000_000) >> (units & 0xf);
    let enabled = |value: u64, shift: u32| (value >> (shift + 15) & 1 == 1).then(|| microwatts(value >> shift));
    let limits = limits.into_iter().flat_map(|value| [enabled(value, 0), enabled(value, 32)]).flatten();
    // The thermal design power, and the highest limit that may be set.
    let info = info.into_iter().flat_map(|value| [microwatts(value), microwatts(value >> 32)]);
    limits.chain(info).filter(|limit| *limit > 0).max()
}

impl Source for Msr {
    fn origin(&self) -> Origin {
        Origin::Msr
    }

    fn inventory(&self) -> &SourceInventory {
        &self.inventory
    }

    fn read(&mut self, out: &mut Vec<io::Result<u64>>) {
        out.extend(self.registers.iter_mut().map(Register::read));
    }

    fn packages(&self) -> Option<Box<dyn Source>> {
        // `pread` has no position, so both readers can share the devices.
        let (inventory, registers) = self.inventory.packages(&self.registers, |register| Ok(register.clone()))?;
        Some(Box::new(Self { inventory, registers }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use units::Microjoules;

    /// A sparse file in place of the device, with bytes at the number of each register. In a file,
    /// unlike in the device, neighbouring registers overlap.
    fn device(registers: &[(u64, u64)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        add_device(dir.path(), 0, registers);
        dir
    }

    fn add_device(dir: &Path, cpu: usize, registers: &[(u64, u64)]) {
        let at = dir.join(format!("cpu/{cpu}"));
        fs::create_dir_all(&at).unwrap();
        let file = File::create(at.join("msr")).unwrap();
        // Longer than the last register.
        file.set_len(0xc001_1000).unwrap();
        for (register, value) in registers {
            file.write_all_at(&value.to_ne_bytes(), *register).unwrap();
        }
    }

    fn open(dir: &Path, vendor: Vendor, model: u32) -> Result<Msr, Unavailable> {
        let processor = Processor { vendor, family: 6, model, name: String::new() };
        Msr::open(dir, &Topology::read(Path::new("/nowhere")), &processor)
    }

    fn zone(msr: &Msr, kind: ZoneKind) -> Option<&Zone> {
        msr.zones().iter().find(|zone| zone.id.kind == kind)
    }

    #[test]
    fn units_come_from_the_unit_register() {
        // ESU 14; package, core and dram count, uncore and psys read 0.
        let dir = device(&[(0x606, 14 << 8 | 3), (0x611, 0xffff_ffff_0000_0010), (0x639, 5), (0x619, 7)]);
        let mut msr = open(dir.path(), Vendor::Intel, 0x9e).unwrap();
        let kinds: Vec<_> = msr.zones().iter().map(|zone| zone.id.kind).collect();
        assert_eq!(kinds, [ZoneKind::Package, ZoneKind::Core, ZoneKind::Dram]);
        assert_eq!(msr.inventory().left_out.len(), 2, "{:?}", msr.inventory().left_out);
        assert_eq!(msr.zones()[0].unit, Unit::joules_shifted(14).unwrap());
        assert_eq!(msr.zones()[0].range, Range::Wraps(1 << 32));
        let mut raw = Vec::new();
        msr.read(&mut raw);
        let raw: Vec<_> = raw.into_iter().map(Result::unwrap).collect();
        assert_eq!(raw, [0x10, 5, 7], "the upper half of the register is not part of the counter");
    }

    /// CPU 0 went offline: another CPU of the package has the same register.
    #[test]
    fn a_register_is_read_on_another_cpu_of_the_package() {
        let dir = device(&[(0x606, 14 << 8), (0x611, 7)]);
        for cpu in [0, 1] {
            let topology = dir.path().join(format!("devices/system/cpu/cpu{cpu}/topology"));
            fs::create_dir_all(&topology).unwrap();
            fs::write(topology.join("physical_package_id"), "0").unwrap();
        }
        add_device(dir.path(), 1, &[(0x611, 7)]);
        let processor = Processor { vendor: Vendor::Intel, family: 6, model: 0x9e, name: String::new() };
        let mut msr = Msr::open(dir.path(), &Topology::read(dir.path()), &processor).unwrap();
        File::options().write(true).open(dir.path().join("cpu/0/msr")).unwrap().set_len(0).unwrap();
        let mut raw = Vec::new();
        msr.read(&mut raw);
        assert_eq!(raw.remove(0).unwrap(), 7);
    }

    #[test]
    fn a_register_that_was_offline_counts_from_its_return() {
        let dir = device(&[(0x606, 14 << 8), (0x611, 7)]);
        let mut msr = open(dir.path(), Vendor::Intel, 0x9e).unwrap();
        msr.registers[0].offline = true;
        let mut read = || {
            let mut raw = Vec::new();
            msr.read(&mut raw);
            raw.remove(0).map_err(|error| error.to_string())
        };
        assert_eq!([read(), read()], [Err(REOPENED.to_owned()), Ok(7)]);
    }

    #[test]
    fn dram_of_servers_counts_in_its_own_unit() {
        let dir = device(&[(0x606, 14 << 8), (0x611, 1), (0x619, 1000)]);
        for (model, microjoules) in [(0x55, 15_300), (0x8f, 61_035), (0x9e, 61_035)] {
            let msr = open(dir.path(), Vendor::Intel, model).unwrap();
            let dram = zone(&msr, ZoneKind::Dram).unwrap();
            assert_eq!(dram.unit.microjoules(1000), Microjoules(microjoules), "{model:#x}");
        }
    }

    #[test]
    fn some_atoms_count_in_microjoules() {
        let dir = device(&[(0x606, 5 << 8), (0x611, 1)]);
        let msr = open(dir.path(), Vendor::Intel, 0x37).unwrap();
        assert_eq!(msr.zones()[0].unit.microjoules(10), Microjoules(320));
    }

    #[test]
    fn psys_of_sapphire_rapids_counts_joules() {
        let dir = device(&[(0x606, 14 << 8), (0x611, 1), (0x64d, 3)]);
        let msr = open(dir.path(), Vendor::Intel, 0x8f).unwrap();
        assert_eq!(zone(&msr, ZoneKind::Psys).unwrap().unit.microjoules(3), Microjoules(3_000_000));
    }

    #[test]
    fn amd_has_its_own_registers_and_no_core() {
        let dir = device(&[(0xc001_0299, 16 << 8), (0xc001_029b, 9)]);
        let msr = open(dir.path(), Vendor::Amd, 0x31).unwrap();
        assert_eq!(msr.zones().len(), 1);
        assert_eq!(msr.zones()[0].unit, Unit::joules_shifted(16).unwrap());
    }

    #[test]
    fn the_highest_enabled_limit_is_used() {
        // 2^-3 W: PL1 125 W and PL2 250 W enabled, no maximum.
        let limits = 1000 | 1 << 15 | 2000 << 32 | 1 << 47;
        assert_eq!(limit(3, Some(limits), None), Some(250_000_000));
        assert_eq!(limit(3, Some(1000), Some(800 << 32)), Some(100_000_000), "a limit that is not enabled is ignored");
        assert_eq!(limit(3, None, None), None);
    }

    #[test]
    fn a_missing_device_and_another_vendor_are_absent() {
        assert_eq!(open(Path::new("/nowhere"), Vendor::Intel, 85).err().unwrap().reason, Reason::Absent);
        assert_eq!(open(Path::new("/nowhere"), Vendor::Other, 0).err().unwrap().reason, Reason::Absent);
    }
}
