//! Creation and removal of cgroups between two readings, reported by eBPF programs in the object of
//! a tier.

use std::ffi::CStr;

use probe_ebpf::{CGROUP_EVENTS_BYTES, CGROUP_PATH, CgroupEvent, CgroupKey, Field};

use super::{
    mapped_array::MappedArray,
    object::{BpfObject, load_error},
    offsets::KernelLayout,
    ring::Ring,
};
use crate::{
    cgroup::changes::{CgroupChanges, RemovedCgroup},
    host::{
        availability::{Reason, Unavailable},
        topology::MAX_CPUS,
    },
};

/// Hook and program.
const PROGRAMS: [(&CStr, &str); 3] =
    [(c"cgroup_mkdir", "cgroup_created"), (c"cgroup_rmdir", "cgroup_removed"), (c"cgroup_rename", "cgroup_renamed")];

/// Maximum size of the ring in bytes.
pub(super) const RING_BYTES: usize = CGROUP_EVENTS_BYTES;

/// The ring of the attached programs.
pub(super) struct CgroupEvents {
    ring: Ring,
    lost: MappedArray<u64>,
    lost_before: u64,
}

impl CgroupEvents {
    /// Attaches the programs of `object`.
    ///
    /// # Errors
    /// `absent` when the kernel has no such tracepoint or field.
    pub(super) fn attach(object: &mut BpfObject, layout: &KernelLayout) -> Result<Self, Unavailable> {
        if !layout.fields.iter().any(|(field, _)| *field == Field::CgroupRoot) {
            return Err(Unavailable::new(Reason::Absent, "this kernel does not tell the tree of a cgroup"));
        }
        for (hook, name) in PROGRAMS {
            object
                .attach_raw(name, hook)
                .map_err(|error| load_error(&format!("attach {}", hook.to_string_lossy()), &error))?;
        }
        let lost = object.mapped("CGROUP_EVENTS_LOST")?;
        let ring = Ring::new("CGROUP_EVENTS", &object.take("CGROUP_EVENTS")?)
            .map_err(|error| load_error("open the ring CGROUP_EVENTS", &error))?;
        Ok(Self { ring, lost, lost_before: 0 })
    }

    /// Appends the changes since the last call to `changes`.
    pub(super) fn drain(&mut self, changes: &mut CgroupChanges) {
        let whole = self.ring.drain(|record| add(record, changes));
        // After the ring: an event that is lost from now on is reported next time.
        let lost = self.lost.get(0);
        changes.incomplete |= !whole || lost != self.lost_before;
        self.lost_before = lost;
    }
}

/// The number of the v1 hierarchy with the `cpu` controller; 0 where there is none. From the lines
/// `number:controllers:path` of a process (man 7 cgroups).
pub(super) fn v1_hierarchy() -> u64 {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    hierarchy_of(&text).unwrap_or(0)
}

pub(crate) fn hierarchy_of(text: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (number, rest) = line.split_once(':')?;
        let (controllers, _) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == "cpu").then(|| number.parse().ok())?
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    Created(CgroupKey, String),
    Removed(RemovedCgroup),
}

/// Appends the change that one record of the ring reports.
pub(crate) fn add(record: &[u8], changes: &mut CgroupChanges) {
    match parse(record) {
        Some(Change::Created(key, path)) => changes.created.push((key, path)),
        Some(Change::Removed(removed)) => changes.removed.push(removed),
        None => changes.incomplete = true,
    }
}

/// Parses one record of the ring; `None` if it is not whole, or has a CPU that cannot exist.
fn parse(record: &[u8]) -> Option<Change> {
    let word = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(record.get(at..at + 8)?.try_into().ok()?));
    let (kind, value, key) = (word(0)?, usize::try_from(word(4)?).ok()?, CgroupKey::of(long(8)?));
    match kind {
        CgroupEvent::CREATED if value < CGROUP_PATH => {
            let path = record.get(size_of::<CgroupEvent>()..)?.get(..value)?;
            Some(Change::Created(key, String::from_utf8_lossy(path).into_owned()))
        }
        CgroupEvent::REMOVED if value < MAX_CPUS => {
            Some(Change::Removed(RemovedCgroup { key, ran_ns: long(16)?, cpu: value }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::hierarchy;

    fn record(kind: u32, value: u32, tag: u64, ran_ns: u64, path: &str) -> Vec<u8> {
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend(value.to_ne_bytes());
        bytes.extend(tag.to_ne_bytes());
        bytes.extend(ran_ns.to_ne_bytes());
        bytes.extend(path.as_bytes());
        bytes
    }

    #[test]
    fn records_of_the_ring_are_parsed() {
        let key = CgroupKey { id: 7, hierarchy: hierarchy::V1_CPU };
        let created = record(CgroupEvent::CREATED, 7, key.tag(), 0, "/docker\0garbage");
        assert_eq!(parse(&created), Some(Change::Created(key, "/docker".to_owned())));
        let removed = RemovedCgroup { key, ran_ns: 9, cpu: 3 };
        assert_eq!(parse(&record(CgroupEvent::REMOVED, 3, key.tag(), 9, "")), Some(Change::Removed(removed)));
        for broken in [record(CgroupEvent::CREATED, 9, 7, 0, "/x"), record(3, 0, 7, 0, ""), vec![1, 0, 0], Vec::new()] {
            assert_eq!(parse(&broken), None);
        }
        let longest = "x".repeat(CGROUP_PATH);
        for (kind, value) in
            [(CgroupEvent::CREATED, 512), (CgroupEvent::CREATED, u32::MAX), (CgroupEvent::REMOVED, 8192)]
        {
            let mut changes = CgroupChanges::default();
            add(&record(kind, value, 7, 0, &longest), &mut changes);
            assert_eq!(changes, CgroupChanges { incomplete: true, ..CgroupChanges::default() });
        }
    }

    #[test]
    fn v1_hierarchy_is_that_of_the_cpu_controller() {
        let text = "12:cpuset:/\n4:cpu,cpuacct:/user\n1:name=systemd:/\n0::/x\n";
        assert_eq!((hierarchy_of(text), hierarchy_of("0::/\n")), (Some(4), None));
    }
}
