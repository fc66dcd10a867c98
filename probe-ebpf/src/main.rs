//! The object that the probe loads: one module per program or pair of programs, the maps beside who writes them.
#![no_std]
#![no_main]
// Inline assembly for BPF; stable compilers take it with RUSTC_BOOTSTRAP=1, as they do build-std.
#![feature(asm_experimental_arch)]

mod cgroups;
mod counters;
mod empty;
mod jobs;
mod kernel;
mod offsets;
mod slots;
mod switch;

/// Some helpers used here are offered only to GPL-compatible programs (kernel/bpf/verifier.c, `gpl_compatible`).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Unreachable: the verifier rejects a program that could get here, but `core` wants the symbol.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
