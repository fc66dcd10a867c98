//! What the probe tells the programs before it loads them: where the running kernel keeps the fields that they read, and what
//! they are to do.

use aya_ebpf::Global;

/// The address of a field of an object: where the probe puts the offset ([`probe_ebpf::Field`]). Unsafe like what is done with it.
macro_rules! field {
    ($object:expr, $field:ident) => {{
        let mut address: $crate::kernel::Object = $object;
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

// In frozen read-only data: the verifier sees constants, and takes branches on them that are never gone out.
settings! {
    /// 1 where the kernel counts waits (CONFIG_SCHED_INFO)
    COUNTS_WAITS,
    /// 1 where the kernel has the cpu controller
    HAS_CPU,
    /// 1 where the kernel has the cpuacct controller
    HAS_CPUACCT,
    /// 1 where `sched_switch` has an argument between `preempt` and `prev` (5.18-rc1 to -rc6)
    SWITCH_SHIFTED,
    /// Slots of a bank
    SLOTS_PER_CPU,
    /// CPUs that the machine may have
    POSSIBLE_CPUS,
    /// 1 where CPUs have siblings
    SIBLINGS,
    /// 1 where hardware counters are open
    COUNTING,
}
