//! What the ring of past ticks says it holds is what the allocator gave for it.

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
    ledger::AccountId,
    topology::PackageId,
    units::Microjoules,
    window::{AccountDelta, ContainerDelta, Ring, Tick},
};

/// Bytes that the allocator has given out and what it keeps in front of each block.
static HELD: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract; malloc_usable_size takes any block of malloc's, and null.
        let (block, size) = unsafe {
            let block = System.alloc(layout);
            (block, libc::malloc_usable_size(block.cast()))
        };
        HELD.fetch_add(size + size_of::<usize>(), Ordering::Relaxed);
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        let size = unsafe { libc::malloc_usable_size(block.cast()) };
        HELD.fetch_sub(size + size_of::<usize>(), Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_full_ring_takes_what_it_says() {
    let id = AccountId {
        zone: ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package },
        origin: Origin::Model,
    };
    for streams in [0u32, 1, 8, 100] {
        let containers: Vec<Arc<Container>> = (0..streams)
            .map(|number| {
                let (name, image) = (format!("stream-{number}"), "registry.example/encoder:1.2.3".to_owned());
                Arc::new(Container { image, ..Container::plain(number, name, format!("{number:012}"), "docker") })
            })
            .collect();
        let limit = 1 << 20;
        let before = HELD.load(Ordering::Relaxed);
        let mut ring = Ring::new(limit);
        // What a snapshot holds on to: the ring as it was a tick ago.
        let mut shown = ring.clone();
        for sequence in 0..6000u32 {
            let none = Microjoules::ZERO;
            let delta = AccountDelta {
                id,
                measured: Some(none),
                covers: 1,
                off_uj: 0.0,
                idle: none,
                unattributed: none,
                system: none,
                retired: none,
            };
            // Pushed one by one, as the sampler does.
            let (mut energy, mut cpu) = (Vec::new(), Vec::new());
            for container in &containers {
                let joules = Microjoules(1);
                energy.push(ContainerDelta { container: container.clone(), id, joules, idle: none, bound: None });
                cpu.push((container.clone(), Some(PackageId::whole(0)), 1));
            }
            shown.clone_from(&ring);
            ring.push(Tick {
                sequence: u64::from(sequence),
                unix_ns: i64::from(sequence) * 1_000_000_000,
                monotonic_ns: i64::from(sequence) * 1_000_000_000,
                accounts: vec![delta].into(),
                energy: energy.into(),
                cpu: cpu.into(),
            });
        }
        let held = HELD.load(Ordering::Relaxed) - before;
        println!("{streams} containers: {held} bytes held, {} said, limit {limit}", ring.bytes());
        assert!(ring.bytes() <= limit, "{} bytes of {limit}", ring.bytes());
        // The oldest go by the chunk of 64.
        let chunk = 65 * ring.bytes() / ring.ticks().count();
        assert!(ring.bytes() + chunk > limit, "the ring is full");
        // One chunk of ticks may be in both rings, and one tick in the older alone.
        assert!(held <= limit + limit / 8, "{held} bytes held for {limit}");
    }
}
