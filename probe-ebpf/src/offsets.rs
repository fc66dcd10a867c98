//! Values that the probe sets before it loads the programs: kernel field offsets, and settings.

use aya_ebpf::Global;

/// Address of a kernel object.
pub type Object = *const u8;

/// Address of a field of an object; the probe inserts the offset ([`probe_ebpf::Field`]). It adds a
/// constant to a pointer, so reading the result is unsafe.
macro_rules! field {
    ($object:expr, $field:ident) => {{
        let mut address: $crate::offsets::Object = $object;
        // Adds a constant to a register and touches nothing else.
        core::arch::asm!(
            "{0} += {1}",
            inout(reg) address,
            const (probe_ebpf::FIELD_MARK | probe_ebpf::Field::$field as u32) as i32,
            options(pure, nomem, nostack, preserves_flags),
        );
        address
    }};
}
pub(crate) use field;

macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub(crate) static $name: Global<u64> = Global::new(0);)+
    };
}

// These are in frozen read-only data: the verifier sees constants and skips branches that are
// never taken.
settings! {
    /// 1 where the kernel records run-queue waits (CONFIG_SCHED_INFO)
    COUNTS_WAITS,
    /// 1 where the kernel has the cpu controller
    HAS_CPU,
    /// 1 where the kernel has the cpuacct controller
    HAS_CPUACCT,
    /// 1 where `sched_switch` has an argument between `preempt` and `prev` (5.18-rc1 to -rc6)
    SWITCH_SHIFTED,
    /// Number of slots in a bank
    SLOTS_PER_CPU,
    /// Number of possible CPUs
    POSSIBLE_CPUS,
    /// 1 where CPUs have siblings
    SIBLINGS,
    /// 1 where hardware counters are open
    COUNTING,
    /// Number of the v1 hierarchy with the `cpu` controller; 0 where there is none
    V1_HIERARCHY,
    /// 1 where the run time of a removed cgroup is read from the kernel's own counters
    READS_REMOVED,
}
