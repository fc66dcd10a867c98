//! A program that does nothing: what being called at a switch costs by itself. The probe never loads it; its measurements do.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

/// Nothing.
#[btf_tracepoint(function = "sched_switch")]
pub fn empty(_ctx: BtfTracePointContext) -> i32 {
    0
}
