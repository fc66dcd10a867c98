//! The object that the probe loads: one module per program, the maps beside the program that writes them.
#![no_std]
#![no_main]

mod offsets;
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
