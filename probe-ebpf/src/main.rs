//! The eBPF object that the probe loads: one module per program or pair of programs, each map in
//! the module that writes it.
#![no_std]
#![no_main]
// Inline assembly for BPF; stable compilers accept it with RUSTC_BOOTSTRAP=1, which build-std
// needs too.
#![feature(asm_experimental_arch)]

mod atomic;
mod cgroup_events;
mod cgroups;
mod counters;
mod empty;
mod jobs;
mod kernel;
mod log;
mod moves;
mod offsets;
mod slots;
mod switch;
mod threads;
mod usage;

/// The kernel offers some of the helpers used here only to GPL-compatible programs
/// (kernel/bpf/verifier.c, `gpl_compatible`).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Unreachable: the verifier rejects a program that could get here, but `core` requires the symbol.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
