//! Reading kernel objects, and the cgroup that a task belongs to.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use probe_ebpf::{Tag, V1_TAG};

use crate::offsets::{Object, field};

/// A way to read a field of a kernel object.
pub trait Read {
    /// Reads the value at an address.
    ///
    /// # Safety
    /// For [`Typed`], `field` is a field of an object that is a program argument or was reached
    /// through such fields.
    unsafe fn read<T: Copy + Default>(field: Object) -> T;
}

/// Loads the field directly: the verifier knows the type of a typed pointer, checks the offset
/// against it, and a fault reads as zero (kernel/bpf/verifier.c, PTR_TO_BTF_ID). It costs a fifth
/// of the helper call.
pub struct Typed;

/// Reads through a helper, which checks the address; for pointers without a type.
pub struct Probed;

impl Read for Typed {
    #[inline(always)]
    unsafe fn read<T: Copy + Default>(field: Object) -> T {
        // SAFETY: the caller's contract. Volatile, so that it stays a single load at this address,
        // as the verifier requires.
        unsafe { field.cast::<T>().read_volatile() }
    }
}

impl Read for Probed {
    #[inline(always)]
    unsafe fn read<T: Copy + Default>(field: Object) -> T {
        // SAFETY: the helper checks the address itself and returns an error on a fault.
        unsafe { bpf_probe_read_kernel(field.cast()) }.unwrap_or_default()
    }
}

/// Reads a pointer field.
///
/// # Safety
/// As [`Read::read`].
#[inline(always)]
pub unsafe fn follow<R: Read>(field: Object) -> Object {
    // SAFETY: the caller's contract.
    unsafe { R::read::<Pointer>(field) }.0
}

/// A pointer whose default is null, for [`Read::read`].
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Pointer(Object);

impl Default for Pointer {
    fn default() -> Self {
        Self(core::ptr::null())
    }
}

/// The cgroup of a workload: its v2 leaf, or its v1 `cpu` cgroup if it is in the v2 root.
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

/// The fields of a task that are read at a context switch.
#[derive(Clone, Copy)]
pub struct Task {
    /// Address of its `task_struct`.
    pub object: Object,
    /// 0 is the idle task.
    pub pid: u32,
    /// Total run time in nanoseconds.
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
