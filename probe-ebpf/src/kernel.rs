//! Reading the kernel's objects, and who a task belongs to.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use probe_ebpf::{Tag, V1_TAG};

use crate::offsets::field;

/// An object of the kernel.
pub type Object = *const u8;

/// A way to read a field of an object.
pub trait Read {
    /// What lies at an address.
    ///
    /// # Safety
    /// For [`Typed`], it is a field of an object that came as an argument of the program, or by a field that was read so.
    unsafe fn read<T: Copy + Default>(field: Object) -> T;
}

/// Loads it directly: the verifier knows the type of a pointer that came typed, holds the offset against it, and lets a fault
/// read as zero (kernel/bpf/verifier.c, PTR_TO_BTF_ID). A fifth of the cost of the helper.
pub struct Typed;

/// Asks the helper, which checks the address itself; for pointers without a type.
pub struct Probed;

impl Read for Typed {
    #[inline(always)]
    unsafe fn read<T: Copy + Default>(field: Object) -> T {
        // SAFETY: the caller's contract. Volatile, so that the load stays one load at this address, as the verifier wants it.
        unsafe { field.cast::<T>().read_volatile() }
    }
}

impl Read for Probed {
    #[inline(always)]
    unsafe fn read<T: Copy + Default>(field: Object) -> T {
        // SAFETY: the helper checks the address itself and reports a fault instead of taking it.
        unsafe { bpf_probe_read_kernel(field.cast()) }.unwrap_or_default()
    }
}

/// A pointer that is a field.
///
/// # Safety
/// As [`Read::read`].
#[inline(always)]
pub unsafe fn follow<R: Read>(field: Object) -> Object {
    // SAFETY: the caller's contract.
    unsafe { R::read::<Pointer>(field) }.0
}

/// A pointer that starts as null, for [`Read::read`].
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Pointer(Object);

impl Default for Pointer {
    fn default() -> Self {
        Self(core::ptr::null())
    }
}

/// The name of a workload: its v2 leaf, or its v1 `cpu` cgroup when it sits in the v2 root.
///
/// # Safety
/// As [`Read::read`]; `set` is a `css_set`, `leaf` its v2 leaf.
#[inline(always)]
pub unsafe fn tag<R: Read>(set: Object, leaf: Object, root: bool) -> Tag {
    // SAFETY: the caller's contract.
    unsafe {
        if root {
            let css = follow::<R>(field!(set, CssSetCpu));
            let v1 = follow::<R>(field!(css, CssCgroup));
            if R::read::<u32>(field!(v1, CgroupLevel)) > 0 {
                return kernfs_id::<R>(v1) | V1_TAG;
            }
        }
        kernfs_id::<R>(leaf)
    }
}

/// The id of a cgroup in its own tree.
///
/// # Safety
/// As [`Read::read`].
#[inline(always)]
pub unsafe fn kernfs_id<R: Read>(cgroup: Object) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let node = follow::<R>(field!(cgroup, CgroupKn));
        R::read(field!(node, KernfsId))
    }
}

/// What is known of a task at a switch.
#[derive(Clone, Copy)]
pub struct Task {
    /// Its `task_struct`.
    pub object: Object,
    /// 0 is the idle task.
    pub pid: u32,
    /// Nanoseconds that it ever ran.
    pub ran_ns: u64,
}

impl Task {
    /// # Safety
    /// As [`Read::read`].
    #[inline(always)]
    pub unsafe fn read<R: Read>(object: Object) -> Self {
        // SAFETY: the caller's contract.
        unsafe { Self { object, pid: R::read(field!(object, TaskPid)), ran_ns: R::read(field!(object, TaskSumExec)) } }
    }
}
