//! A program that does nothing, to measure the cost of calling a program at a context switch. Only
//! benchmarks load it.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

/// Returns at once.
#[btf_tracepoint(function = "sched_switch")]
pub fn empty(_ctx: BtfTracePointContext) -> i32 {
    0
}
