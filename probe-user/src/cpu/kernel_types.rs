//! The type information of the running kernel, in memory only while a loader looks into it.
//!
//! It is mapped and not read: since 6.16 (commit a539e2a6d51d) the kernel's own pages are used,
//! and before, the pages of an anonymous mapping go back to the kernel at once, where an allocator
//! may keep the 6 MB.

#![allow(unsafe_code)]

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::AsRawFd as _,
    ptr::NonNull,
};

use super::btf::MAX_BYTES;

/// Where the kernel publishes it.
pub(super) const PATH: &str = "/sys/kernel/btf/vmlinux";

/// The mapped file.
pub(super) struct KernelTypes {
    first: NonNull<u8>,
    length: usize,
}

impl KernelTypes {
    /// Maps the types of the running kernel.
    ///
    /// # Errors
    /// When the kernel publishes none, or no memory is left.
    pub(super) fn open() -> io::Result<Self> {
        let mut file = File::open(PATH)?;
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if length == 0 || length > MAX_BYTES {
            return Err(io::Error::other(format!("it has {length} bytes")));
        }
        if let Ok(first) = map(length, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd()) {
            return Ok(Self { first, length });
        }
        let first = map(length, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
        let types = Self { first, length };
        // SAFETY: a private, writable mapping of that length, which nothing else refers to.
        let bytes = unsafe { std::slice::from_raw_parts_mut(types.first.as_ptr(), length) };
        file.read_exact(bytes)?;
        Ok(types)
    }

    /// The types, in the format that [`super::btf::Btf`] parses.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has that length and lives as long as `self`; nothing writes to it.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.length) }
    }
}

impl Drop for KernelTypes {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to `self`, and no slice of it outlives `self`.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.length) };
    }
}

fn map(length: usize, access: libc::c_int, flags: libc::c_int, file: libc::c_int) -> io::Result<NonNull<u8>> {
    // SAFETY: a new mapping at an address that the kernel chooses; it replaces no other mapping.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, file, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at zero"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_types_are_those_of_the_file() {
        let read = testkit::or_skip!(std::fs::read(PATH).map_err(|error| format!("{PATH}: {error}")));
        assert!(KernelTypes::open().unwrap().bytes() == read);
    }
}
