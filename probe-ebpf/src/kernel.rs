//! Reading kernel objects, and the cgroup that a task belongs to.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use probe_ebpf::{FIELD_MARK, LOAD_MARK, Tag, V1_TAG};

use crate::offsets::Object;

/// A way to read a field of a kernel object.
pub trait Read {
    /// Reads the field with the number `FIELD` of an object ([`load`]).
    ///
    /// # Safety
    /// For [`Typed`], `object` is a program argument or was reached through fields of one.
    unsafe fn load<T: Copy + Default, const FIELD: u32>(object: Object) -> T;

    /// As [`Self::load`], for a field of 32 bits, which it extends to a register: the compiler does
    /// not know that the load has done so.
    ///
    /// # Safety
    /// As [`Self::load`].
    unsafe fn load_half<const FIELD: u32>(object: Object) -> u64;
}

/// Reads a field of an object: `load!(R, object, field)`, or `load!(R, type, object, field)`; the
/// type `half` is a field of 32 bits, as `u64`.
macro_rules! load {
    ($read:ident, half, $object:expr, $field:ident) => {
        <$read as $crate::kernel::Read>::load_half::<{ probe_ebpf::Field::$field as u32 }>($object)
    };
    ($read:ident, $type:ty, $object:expr, $field:ident) => {
        <$read as $crate::kernel::Read>::load::<$type, { probe_ebpf::Field::$field as u32 }>($object)
    };
    ($read:ident, $object:expr, $field:ident) => {
        <$read as $crate::kernel::Read>::load::<_, { probe_ebpf::Field::$field as u32 }>($object)
    };
}
pub(crate) use load;

/// Reads a pointer field: `follow!(R, object, field)`.
macro_rules! follow {
    ($read:ident, $object:expr, $field:ident) => {
        $crate::kernel::load!($read, $crate::kernel::Pointer, $object, $field).0
    };
}
pub(crate) use follow;

/// Loads the field directly: the verifier knows the type of a typed pointer, checks the offset
/// against it, and a fault reads as zero (kernel/bpf/verifier.c, PTR_TO_BTF_ID). It costs a fifth
/// of the helper call.
pub struct Typed;

/// Reads through a helper, which checks the address; for pointers without a type.
pub struct Probed;

impl Read for Typed {
    #[inline(always)]
    unsafe fn load<T: Copy + Default, const FIELD: u32>(object: Object) -> T {
        const { assert!(size_of::<T>() == 8) };
        let value: u64;
        // SAFETY: the caller's contract; one load, and nothing else is touched.
        unsafe {
            core::arch::asm!(
                "{0} = *(u64 *)({1} - {2})",
                out(reg) value,
                in(reg) object,
                const LOAD_MARK - FIELD,
                options(readonly, nostack, preserves_flags),
            );
            core::mem::transmute_copy(&value)
        }
    }

    #[inline(always)]
    unsafe fn load_half<const FIELD: u32>(object: Object) -> u64 {
        let value: u64;
        // SAFETY: as above.
        unsafe {
            core::arch::asm!(
                "{0} = *(u32 *)({1} - {2})",
                out(reg) value,
                in(reg) object,
                const LOAD_MARK - FIELD,
                options(readonly, nostack, preserves_flags),
            );
        }
        value
    }
}

impl Probed {
    /// Reads the value at an address; zero where there is none.
    ///
    /// # Safety
    /// No requirement: the helper checks the address.
    #[inline(always)]
    pub unsafe fn read<T: Copy + Default>(field: Object) -> T {
        // SAFETY: the helper checks the address itself and returns an error on a fault.
        unsafe { bpf_probe_read_kernel(field.cast()) }.unwrap_or_default()
    }
}

impl Read for Probed {
    #[inline(always)]
    unsafe fn load<T: Copy + Default, const FIELD: u32>(object: Object) -> T {
        let mut field = object;
        // SAFETY: as above; adds a constant to a register and touches nothing else.
        unsafe {
            core::arch::asm!(
                "{0} += {1}",
                inout(reg) field,
                const (FIELD_MARK | FIELD) as i32,
                options(pure, nomem, nostack, preserves_flags),
            );
            Self::read(field)
        }
    }

    #[inline(always)]
    unsafe fn load_half<const FIELD: u32>(object: Object) -> u64 {
        // SAFETY: the caller's contract.
        u64::from(unsafe { Self::load::<u32, FIELD>(object) })
    }
}

/// A pointer whose default is null, for [`Probed::read`].
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Pointer(pub Object);

impl Default for Pointer {
    fn default() -> Self {
        Self(core::ptr::null())
    }
}

/// The cgroup of a workload: its v2 leaf, or its v1 `cpu` cgroup if it is in the v2 root.
///
/// # Safety
/// As [`Read::load`]; `set` is a `css_set`, `leaf` its v2 leaf.
#[inline(always)]
pub unsafe fn tag<R: Read>(set: Object, leaf: Object, root: bool) -> Tag {
    // SAFETY: the caller's contract.
    unsafe {
        if root {
            let css = follow!(R, set, CssSetCpu);
            let v1 = follow!(R, css, CssCgroup);
            if load!(R, half, v1, CgroupLevel) > 0 {
                return kernfs_id::<R>(v1) | V1_TAG;
            }
        }
        kernfs_id::<R>(leaf)
    }
}

/// The id of a cgroup in its own tree.
///
/// # Safety
/// As [`Read::load`].
#[inline(always)]
pub unsafe fn kernfs_id<R: Read>(cgroup: Object) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let node = follow!(R, cgroup, CgroupKn);
        load!(R, node, KernfsId)
    }
}

/// The run queue of the CPU that `task` runs on (kernel/sched/sched.h); only where READS_CLOCK is
/// set.
///
/// # Safety
/// As [`Read::load`].
#[inline(always)]
pub unsafe fn run_queue<R: Read>(task: Object) -> Object {
    // SAFETY: the caller's contract.
    unsafe {
        let fair = follow!(R, task, TaskCfsRq);
        follow!(R, fair, CfsRqRq)
    }
}

/// The fields of a task that are read at a context switch.
#[derive(Clone, Copy)]
pub struct Task {
    /// Address of its `task_struct`.
    pub object: Object,
    /// 0 is the idle task.
    pub pid: u64,
    /// Total run time in nanoseconds.
    pub ran_ns: u64,
}

impl Task {
    /// # Safety
    /// As [`Read::load`].
    #[inline(always)]
    pub unsafe fn read<R: Read>(object: Object) -> Self {
        // SAFETY: the caller's contract.
        unsafe { Self { object, pid: load!(R, half, object, TaskPid), ran_ns: load!(R, object, TaskSumExec) } }
    }
}
