//! The reported size of the tick history must match the memory that the allocator provided.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use probe_user::{
    containers::Container,
    energy::zone::{Origin, ZoneId, ZoneKind},
    host::topology::PackageId,
    ledger::AccountId,
    snapshot::history::{AccountDelta, ContainerDelta, Ring, Settlement, Tick},
};
use units::Microjoules;

/// Bytes of all allocated blocks, including the allocator's header of each block.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct CountingAllocator;

// SAFETY: every call is passed unchanged to the system allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract; malloc_usable_size takes any block of malloc's, and null.
        let (block, size) = unsafe {
            let block = System.alloc(layout);
            (block, libc::malloc_usable_size(block.cast()))
        };
        ALLOCATED.fetch_add(size + size_of::<usize>(), Ordering::Relaxed);
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        let size = unsafe { libc::malloc_usable_size(block.cast()) };
        ALLOCATED.fetch_sub(size + size_of::<usize>(), Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn a_full_history_uses_the_memory_that_it_reports() {
    let id = AccountId {
        zone: ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package },
        origin: Origin::Model,
    };
    for streams in [0u32, 1, 8, 100] {
        let containers: Vec<Arc<Container>> = (0..streams)
            .map(|number| {
                let (name, image) = (format!("stream-{number}"), "registry.example/encoder:1.2.3".to_owned());
                Arc::new(Container { image, ..Container::new(number, name, format!("{number:012}"), "docker") })
            })
            .collect();
        let limit = 1 << 20;
        let before = ALLOCATED.load(Ordering::Relaxed);
        let mut ring = Ring::new(limit);
        // A snapshot keeps the history of the previous tick.
        let mut snapshot = ring.clone();
        for sequence in 0..6000u32 {
            let none = Microjoules::ZERO;
            let delta = AccountDelta {
                id,
                measured: Some(none),
                covers: 1,
                bound_uj: 0.0,
                idle: none,
                unattributed: none,
                system: none,
                retired: none,
                settlement: Settlement::Exact,
                idle_known: true,
            };
            // Rows are pushed one by one, as in the sampler.
            let (mut energy, mut cpu) = (Vec::new(), Vec::new());
            for container in &containers {
                let (joules, awake) = (Microjoules(1), none);
                energy.push(ContainerDelta {
                    container: container.clone(),
                    id,
                    joules,
                    awake,
                    idle: none,
                    bound: None,
                });
                cpu.push((container.clone(), Some(PackageId::whole(0)), 1u64));
            }
            snapshot.clone_from(&ring);
            ring.push(Tick {
                sequence: u64::from(sequence),
                unix_ns: i64::from(sequence) * 1_000_000_000,
                monotonic_ns: i64::from(sequence) * 1_000_000_000,
                accounts: vec![delta].into(),
                energy: energy.into(),
                cpu: cpu.into(),
            });
        }
        let allocated = ALLOCATED.load(Ordering::Relaxed) - before;
        println!("{streams} containers: {allocated} bytes allocated, {} reported, limit {limit}", ring.bytes());
        assert!(ring.bytes() <= limit, "{} bytes of {limit}", ring.bytes());
        // Old ticks are removed in chunks of 64.
        let chunk = 65 * ring.bytes() / ring.ticks().count();
        assert!(ring.bytes() + chunk > limit, "the ring is full");
        // One chunk of ticks may be in both copies, and one tick only in the older copy.
        assert!(allocated <= limit + limit / 8, "{allocated} bytes allocated for {limit}");
    }
}
