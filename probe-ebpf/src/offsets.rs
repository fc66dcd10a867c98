//! Values that the probe sets before it loads the programs: kernel field offsets, and settings.

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

/// The value of a setting ([`probe_ebpf::SETTINGS`]), which is part of the instruction: a load from
/// memory would remain where the branch that depends on it is removed.
macro_rules! setting {
    ($name:ident) => {{
        let value: u64;
        // Assigns a constant to a register and touches nothing else.
        #[allow(unused_unsafe, reason = "some callers are unsafe blocks")]
        unsafe {
            core::arch::asm!(
                "{0} = {1}",
                out(reg) value,
                const probe_ebpf::setting_mark(stringify!($name)) as i32,
                options(nomem, nostack, preserves_flags),
            );
        }
        value
    }};
}
pub(crate) use setting;
