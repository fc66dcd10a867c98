//! BPF iterators: creating a link and reading it.

#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

/// `struct bpf_iter_link_info`, `cgroup` (include/uapi/linux/bpf.h, 6.1).
#[repr(C)]
struct IterTarget {
    order: u32,
    descriptor: u32,
    id: u64,
}

/// `enum bpf_cgroup_iter_order` (include/uapi/linux/bpf.h).
const BPF_CGROUP_ITER_DESCENDANTS_PRE: u32 = 2;

/// Links an iterator over all cgroups below the v2 root, parents first.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn link_cgroups(program: RawFd) -> io::Result<OwnedFd> {
    // kernfs numbers a tree starting at its root (fs/kernfs/dir.c, kernfs_create_root). The id
    // selects the root of the whole tree even in a cgroup namespace, where the kernel reports that
    // there is none.
    const ROOT: u64 = 1;
    link(program, Some(&IterTarget { order: BPF_CGROUP_ITER_DESCENDANTS_PRE, descriptor: 0, id: ROOT }))
}

/// Links an iterator over all cgroups below a directory of a v1 or v2 tree, parents first.
///
/// # Errors
/// When the directory belongs to no cgroup tree, or the kernel refuses.
pub(super) fn link_tree(program: RawFd, directory: &File) -> io::Result<OwnedFd> {
    let descriptor = u32::try_from(directory.as_raw_fd()).map_err(io::Error::other)?;
    link(program, Some(&IterTarget { order: BPF_CGROUP_ITER_DESCENDANTS_PRE, descriptor, id: 0 }))
}

/// Links an iterator over all objects of its kind.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn link_all(program: RawFd) -> io::Result<OwnedFd> {
    link(program, None)
}

/// `BPF_LINK_CREATE`.
fn link(program: RawFd, target: Option<&IterTarget>) -> io::Result<OwnedFd> {
    /// `union bpf_attr`, `link_create`.
    #[repr(C)]
    struct Create {
        program: u32,
        target: u32,
        kind: u32,
        flags: u32,
        iter_info: u64,
        iter_info_size: u32,
        unused: u32,
    }
    const BPF_LINK_CREATE: libc::c_long = 28;
    const BPF_TRACE_ITER: u32 = 28;
    let create = Create {
        program: u32::try_from(program).map_err(io::Error::other)?,
        target: 0,
        kind: BPF_TRACE_ITER,
        flags: 0,
        iter_info: target.map_or(0, |target| std::ptr::from_ref(target).expose_provenance() as u64),
        iter_info_size: if target.is_some() { 16 } else { 0 },
        unused: 0,
    };
    // SAFETY: the size is that of the structure, and it and what it points to outlive the call.
    descriptor(unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw const create, size_of::<Create>()) })
}

/// `BPF_ITER_CREATE`: a file; reading it runs the iteration.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn open(link: &OwnedFd) -> io::Result<File> {
    #[repr(C)]
    struct Create {
        link: u32,
        flags: u32,
    }
    const BPF_ITER_CREATE: libc::c_long = 33;
    let create = Create { link: u32::try_from(link.as_raw_fd()).map_err(io::Error::other)?, flags: 0 };
    // SAFETY: the size is that of the structure, which outlives the call.
    descriptor(unsafe { libc::syscall(libc::SYS_bpf, BPF_ITER_CREATE, &raw const create, size_of::<Create>()) })
        .map(File::from)
}

/// The descriptor that a system call of the kernel returned, or its error.
pub(super) fn descriptor(number: libc::c_long) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    let number = RawFd::try_from(number).map_err(io::Error::other)?;
    // SAFETY: the kernel just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
